//! Names: those that a container gets, and what it is told of the server that knows names.

use overlay_control::api::DnsStatus;
use serde_json::{Map, Value, json};

use super::config::NetworkConfig;
use super::environment::Environment;

/// How much of a container id is a name, as engines show it.
const SHORT_ID: usize = 12;
/// The most names given.
const MOST: usize = 16;

/// The names of a container: the pod's (podman: the container's), its aliases, and its short id; the whole id where it is no
/// random one, as with `ctr`. What is no label is left out, because an engine may call a container what it likes.
pub(super) fn of(config: &NetworkConfig, environment: &Environment) -> Vec<String> {
    let pod = environment.argument("K8S_POD_NAME").map(str::to_owned);
    let aliases = config.runtime("aliases").and_then(|value| value.get(&config.name)).and_then(Value::as_array);
    let aliases = aliases.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let random = environment.container.chars().all(|digit| digit.is_ascii_hexdigit());
    let shown = if random { SHORT_ID } else { usize::MAX };
    let id: String = environment.container.chars().take(shown).collect();
    let mut names: Vec<String> = pod.into_iter().chain(aliases).chain([id]).map(|name| name.to_lowercase()).collect();
    names.retain(|name| is_label(name));
    names.sort_unstable();
    names.dedup();
    names.truncate(MOST);
    names
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&name.len()) && name.chars().all(inner) && name.starts_with(ends) && name.ends_with(ends)
}

/// What the container is told: what the configuration says, else the server of this host. The engine's own choice for one
/// container (`runtimeConfig.dns`) is for the engine to write.
pub(super) fn dns(config: &NetworkConfig, status: &DnsStatus) -> Map<String, Value> {
    if let Some(dns) = &config.dns
        && !dns.is_empty()
    {
        return dns.clone();
    }
    if !status.enabled || status.servers.is_empty() {
        return Map::new();
    }
    let told = json!({ "nameservers": status.servers, "search": [format!("ctr.{}", status.domain)] });
    told.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(format!(r#"{{"cniVersion":"1.0.0","name":"overlay"{text}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn names_are_pod_aliases_and_short_id() {
        let environment = Environment {
            container: "0123456789abcdef".into(),
            arguments: vec![("K8S_POD_NAME".into(), "Web-1".into())],
            ..Environment::default()
        };
        let config = config(r#","runtimeConfig":{"aliases":{"overlay":["db","not a label",7],"other":["x"]}}"#);
        assert_eq!(of(&config, &environment), ["0123456789ab", "db", "web-1"]);
        assert_eq!(of(&self::config(r#","runtimeConfig":{"aliases":3}"#), &environment), ["0123456789ab", "web-1"]);
    }

    #[test]
    fn id_that_somebody_chose_is_a_name_in_full() {
        let environment = Environment { container: "default-webserver".into(), ..Environment::default() };
        assert_eq!(of(&config(""), &environment), ["default-webserver"]);
        let long = Environment { container: "x".repeat(64), ..Environment::default() };
        assert!(of(&config(""), &long).is_empty());
    }

    #[test]
    fn configuration_decides_what_a_container_is_told() {
        let mut status = DnsStatus {
            enabled: true,
            domain: "overlay.internal".into(),
            servers: vec!["10.42.1.1".parse().unwrap()],
            forward: vec![],
            hosts: 0,
            containers: 0,
            answered: 0,
            forwarded: 0,
            refused: 0,
        };
        let told = dns(&config(""), &status);
        assert_eq!((&told["nameservers"], &told["search"]), (&json!(["10.42.1.1"]), &json!(["ctr.overlay.internal"])));
        assert_eq!(dns(&config(r#","dns":{}"#), &status), told);
        let own = dns(&config(r#","dns":{"nameservers":["192.0.2.53"]}"#), &status);
        assert_eq!(own["nameservers"], json!(["192.0.2.53"]));
        status.enabled = false;
        assert!(dns(&config(""), &status).is_empty());
    }
}
