//! Labels of a container, which rules of the overlay's policy may name.
//!
//! From the general to the particular, so that a later one replaces an earlier one: `labels` of the configuration, which all
//! containers of the list get; the engine's pairs of `CNI_ARGS`; `args.cni.labels`; and what a pod's annotation
//! `overlay/labels` says. Words that the language of rules has no room for are left out where an engine chooses them, and
//! refused where a person wrote them.

use overlay_wire::gossip::Labels;
use overlay_wire::gossip::identities::{MAX_LABELS, MAX_LABELS_BYTES, check_labels};
use overlay_wire::policy::is_label;
use serde_json::{Map, Value};

use super::config::NetworkConfig;
use super::environment::Environment;
use super::error::{self, CniError};

/// Arguments that say nothing of what a container is: words to plugins, and ids that nobody would write into a rule.
const OTHERS: [&str; 6] = ["IgnoreUnknown", "IP", "MAC", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID", "NOMAD_ALLOC_ID"];
/// The capability by which a CRI engine hands over annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The annotation with labels, as `role=web,tier=front`.
const ANNOTATION: &str = "overlay/labels";

/// The labels of a container.
pub(super) fn of(config: &NetworkConfig, environment: &Environment) -> Result<Labels, CniError> {
    let mut labels = Labels::new();
    for (key, value) in config.labels.iter().flatten() {
        labels.insert(key.clone(), word("labels", key, value)?);
    }
    let arguments = environment.arguments.iter().filter(|(key, _)| !OTHERS.contains(&key.as_str()));
    for (key, value) in arguments {
        offer(&mut labels, key, value);
    }
    for (key, value) in listed(config.args.as_ref())? {
        labels.insert(key.clone(), word("args.cni.labels", &key, &Value::String(value))?);
    }
    for (key, value) in annotated(config)? {
        labels.insert(key.clone(), word(ANNOTATION, &key, &Value::String(value))?);
    }
    check_labels(&labels)
        .map_err(|why| CniError::new(error::CONFIG, "the labels are not acceptable", why.to_string()))?;
    Ok(labels)
}

/// Takes what an engine chose where it is a label and there is room.
fn offer(labels: &mut Labels, key: &str, value: &str) {
    let used: usize = labels.iter().map(|(key, value)| 2 + key.len() + value.len()).sum();
    let is_room = labels.len() < MAX_LABELS && used + 2 + key.len() + value.len() <= MAX_LABELS_BYTES;
    if is_label(key) && is_label(value) && is_room {
        labels.insert(key.to_owned(), value.to_owned());
    }
}

fn word(place: &str, key: &str, value: &Value) -> Result<String, CniError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => String::new(),
    };
    if is_label(key) && is_label(&text) {
        return Ok(text);
    }
    let shown: String = format!("{key}={text}").chars().take(130).collect();
    let why = "key and value have letters, digits, `.`, `_`, `-` and `/`, and at most 63 characters each";
    Err(CniError::new(error::CONFIG, format!("{shown:?} in {place} is no label"), why))
}

/// `args.cni.labels`: a list of objects with `key` and `value`, or one object.
fn listed(args: Option<&Map<String, Value>>) -> Result<Vec<(String, String)>, CniError> {
    let labels = args.and_then(|args| args.get("cni")).and_then(|cni| cni.get("labels"));
    let pair = |one: &Value| {
        let text = |key: &str| one.get(key).and_then(Value::as_str).map(str::to_owned);
        text("key").zip(text("value"))
    };
    let found = match labels {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(pair).collect(),
        Some(Value::Object(map)) => {
            map.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        Some(_) => None,
    };
    found.ok_or_else(|| {
        let why = "it is a list of objects with `key` and `value`";
        CniError::new(error::CONFIG, "args.cni.labels cannot be read", why)
    })
}

fn annotated(config: &NetworkConfig) -> Result<Vec<(String, String)>, CniError> {
    let text = config.runtime(ANNOTATIONS).and_then(|annotations| annotations.get(ANNOTATION)).and_then(Value::as_str);
    let pairs = text.unwrap_or_default().split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let shown: String = pair.chars().take(64).collect();
            Err(CniError::new(error::CONFIG, format!("{shown:?} in {ANNOTATION} is no label"), "it is no KEY=VALUE"))
        }
    };
    pairs.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(format!(r#"{{"cniVersion":"1.0.0","name":"overlay"{text}}}"#).as_bytes()).unwrap()
    }

    fn read(text: &str, arguments: &[(&str, &str)]) -> Result<String, CniError> {
        let arguments = arguments.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let labels = of(&config(text), &Environment { arguments, ..Environment::default() })?;
        Ok(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn labels_come_from_everywhere_and_the_particular_counts() {
        let all = r#","labels":{"role":"none","tier":1,"site":"a"},"args":{"cni":{"labels":[
            {"key":"role","value":"list"},{"key":"team","value":"x"}]}},"runtimeConfig":{
            "io.kubernetes.cri.pod-annotations":{"overlay/labels":"role=web, zone=b","other":"y"}}"#;
        let arguments = [("IgnoreUnknown", "1"), ("K8S_POD_NAMESPACE", "shop"), ("IP", "10.42.1.9"), ("tier", "2")];
        assert_eq!(read(all, &arguments).unwrap(), "K8S_POD_NAMESPACE=shop role=web site=a team=x tier=2 zone=b");
        assert_eq!(read("", &[]).unwrap(), "");
        assert_eq!(read(r#","args":{"cni":{"labels":{"role":"map"}}}"#, &[]).unwrap(), "role=map");
        assert_eq!(read(r#","labels":null,"args":null"#, &[]).unwrap(), "");
    }

    #[test]
    fn what_an_engine_chose_is_left_out_and_what_a_person_wrote_is_refused() {
        assert_eq!(read("", &[("K8S_POD_NAME", "a b"), ("", "x"), ("ok", "yes")]).unwrap(), "ok=yes");
        let many: Vec<(String, String)> = (0..40).map(|n| (format!("k{n:02}"), "v".to_owned())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(read("", &many).unwrap().split(' ').count(), MAX_LABELS);
        for bad in [
            r#","labels":{"role":"we b"}"#,
            r#","labels":{"role":["web"]}"#,
            r#","args":{"cni":{"labels":[{"key":"role"}]}}"#,
            r#","args":{"cni":{"labels":"role=web"}}"#,
            r#","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"overlay/labels":"role"}}"#,
        ] {
            assert_eq!(read(bad, &[]).unwrap_err().code, error::CONFIG, "{bad}");
        }
        let many: String = (0..20).map(|n| format!(r#""k{n}":"v","#)).collect();
        assert_eq!(read(&format!(r#","labels":{{{many}"z":"v"}}"#), &[]).unwrap_err().code, error::CONFIG);
    }
}
