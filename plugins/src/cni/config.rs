//! The network configuration: what an engine writes to standard input.

use std::net::IpAddr;
use std::path::PathBuf;

use overlay_control::api::LimitRate;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::environment::{Environment, check_id};
use super::error::{self, CniError};
use super::ports::{self, Mapping};

/// What belongs there.
const BANDWIDTH: &str = "it holds ingressRate, ingressBurst, egressRate and egressBurst, in bits";
/// From here on a burst means none.
const NO_BURST: u64 = i32::MAX as u64;
/// The control socket unless the configuration names another.
const SOCKET: &str = "/run/overlay/overlayd.sock";

/// The parts of a configuration that this plugin reads; everything else is for others.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NetworkConfig {
    /// Version of the specification that the result must have.
    #[serde(rename = "cniVersion", default)]
    pub(super) version: String,
    /// The network's name.
    #[serde(default)]
    pub(super) name: String,
    /// Handed through to the result.
    #[serde(default)]
    pub(super) dns: Option<Map<String, Value>>,
    /// Values the engine fills in per container; keys differ in case between engines.
    #[serde(rename = "runtimeConfig", default, deserialize_with = "or_default")]
    runtime: Map<String, Value>,
    /// The result of the plugin before in the chain, or of ADD for CHECK and DEL.
    #[serde(rename = "prevResult", default)]
    pub(super) previous: Option<Value>,
    /// Attachments that GC must keep; absent means that nothing is known.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub(super) valid: Option<Vec<ValidAttachment>>,
    /// The daemon's control socket.
    #[serde(default)]
    socket: Option<PathBuf>,
    /// Labels of all its containers.
    #[serde(default)]
    pub(super) labels: Option<Map<String, Value>>,
    /// What engines and callers add for one container.
    #[serde(default)]
    pub(super) args: Option<Map<String, Value>>,
    /// The overlay network of the containers; not the name of this list unless it says so.
    #[serde(default)]
    network: Option<String>,
}

/// One attachment that an engine knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    #[serde(rename = "ifname")]
    pub(super) interface: String,
}

/// `null` counts as absent.
fn or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The version a body names; the newest where it names none.
pub(super) fn version_of(bytes: &[u8]) -> String {
    let body: Option<Value> = serde_json::from_slice(bytes).ok();
    let version = body.as_ref().and_then(|body| body.get("cniVersion")).and_then(Value::as_str);
    version
        .map_or_else(|| super::SUPPORTED[super::SUPPORTED.len() - 1].to_owned(), |text| text.chars().take(32).collect())
}

impl NetworkConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| {
            CniError::new(error::DECODE, "the network configuration cannot be read", error.to_string())
        })?;
        if !super::SUPPORTED.contains(&config.version.as_str()) {
            let shown: String = config.version.chars().take(32).collect();
            let why = format!("this plugin knows {}", super::SUPPORTED.join(", "));
            return Err(CniError::new(error::VERSION, format!("cniVersion {shown:?} is not supported"), why));
        }
        check_id("name", &config.name).map_err(|refused| CniError { code: error::CONFIG, ..refused })?;
        Ok(config)
    }

    /// Whether the version asked for is at least the given one.
    pub(super) fn is_at_least(&self, version: &str) -> bool {
        let position = |text: &str| super::SUPPORTED.iter().position(|known| *known == text);
        position(&self.version) >= position(version)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| SOCKET.into())
    }

    /// The overlay network; absent: the default one.
    pub(super) fn network(&self) -> Result<Option<String>, CniError> {
        if let Some(network) = &self.network {
            check_id("network", network).map_err(|refused| CniError { code: error::CONFIG, ..refused })?;
        }
        Ok(self.network.clone())
    }

    pub(super) fn runtime(&self, key: &str) -> Option<&Value> {
        self.runtime.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
    }

    /// The addresses asked for by capability or argument; with or without a prefix length.
    pub(super) fn addresses(&self, environment: &Environment) -> Result<Vec<IpAddr>, CniError> {
        let mut texts: Vec<String> = match self.runtime("ips") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
                CniError::new(error::CONFIG, "runtimeConfig.ips is no list of addresses", error.to_string())
            })?,
        };
        if texts.is_empty()
            && let Some(text) = environment.argument("IP")
        {
            texts = text.split(',').map(str::to_owned).collect();
        }
        let parse = |text: &String| {
            let address = text.split('/').next().unwrap_or_default().trim().parse();
            address.map_err(|error| {
                let shown: String = text.chars().take(64).collect();
                CniError::new(error::CONFIG, format!("{shown:?} is no address"), format!("{error}"))
            })
        };
        texts.iter().filter(|text| !text.trim().is_empty()).map(parse).collect()
    }

    /// The rates asked for: what the container may send, and what may be sent to it. Bits and bits per second; a burst of
    /// 2^31 - 1 or more is what engines write where none was asked for.
    pub(super) fn bandwidth(&self) -> Result<Option<(LimitRate, LimitRate)>, CniError> {
        let value = match self.runtime("bandwidth") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(value)) => value,
            Some(_) => return Err(CniError::new(error::CONFIG, "runtimeConfig.bandwidth is no object", BANDWIDTH)),
        };
        let number = |key: &str| match value.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
            None | Some((_, Value::Null)) => Ok(0),
            Some((name, number)) => number.as_u64().ok_or_else(|| {
                CniError::new(error::CONFIG, format!("runtimeConfig.bandwidth.{name} is no number"), BANDWIDTH)
            }),
        };
        let rate = |rate: u64, burst: u64| {
            let asked = (1..NO_BURST).contains(&burst) && rate > 0;
            LimitRate { bits: (rate > 0).then_some(rate), burst: asked.then(|| burst.div_ceil(8)), packets: None }
        };
        let from = rate(number("egressRate")?, number("egressBurst")?);
        let to = rate(number("ingressRate")?, number("ingressBurst")?);
        Ok(if from.bits.is_none() && to.bits.is_none() { None } else { Some((from, to)) })
    }

    /// The ports asked for by capability.
    pub(super) fn mappings(&self) -> Result<Vec<Mapping>, CniError> {
        ports::parse(self.runtime("portMappings"))
    }

    /// The hardware address asked for by capability or argument, in lower case.
    pub(super) fn mac(&self, environment: &Environment) -> Result<Option<String>, CniError> {
        let text = match self.runtime("mac") {
            Some(Value::String(text)) if !text.is_empty() => Some(text.as_str()),
            None | Some(Value::Null | Value::String(_)) => environment.argument("MAC").filter(|text| !text.is_empty()),
            Some(_) => {
                return Err(CniError::new(
                    error::CONFIG,
                    "runtimeConfig.mac is no text",
                    "write it as 02:00:00:00:00:01",
                ));
            }
        };
        text.map(mac).transpose()
    }
}

fn mac(text: &str) -> Result<String, CniError> {
    let octets: Vec<u8> = text
        .split([':', '-'])
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    let why = match octets.as_slice() {
        [first, ..] if octets.len() == 6 && text.len() == 17 => {
            if first & 1 == 0 && octets.iter().any(|octet| *octet != 0) {
                return Ok(octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"));
            }
            "it must be of one host: the lowest bit of the first octet is 0, and not all are 0"
        }
        _ => "it must be written as 02:00:00:00:00:01",
    };
    let shown: String = text.chars().take(64).collect();
    Err(CniError::new(error::CONFIG, format!("{shown:?} is no hardware address"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    fn code(text: &str) -> u32 {
        NetworkConfig::parse(text.as_bytes()).unwrap_err().code
    }

    #[test]
    fn keys_of_capabilities_are_found_in_any_case() {
        for key in ["ips", "Ips", "IPs"] {
            let config = config(&format!(
                r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{{"{key}":["10.42.1.9/24","fd42::9"],"Mac":"02-AA-00-00-00-01"}}}}"#
            ));
            let environment = Environment::default();
            assert_eq!(config.addresses(&environment).unwrap().len(), 2);
            assert_eq!(config.mac(&environment).unwrap().as_deref(), Some("02:aa:00:00:00:01"));
        }
    }

    #[test]
    fn bandwidth_is_read_as_engines_write_it() {
        let of = |bandwidth: &str| {
            let body = format!(r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{{"bandwidth":{bandwidth}}}}}"#);
            config(&body).bandwidth()
        };
        let cri =
            r#"{"IngressRate":10000000,"IngressBurst":4294967295,"EgressRate":20000000,"EgressBurst":2147483647}"#;
        let rate = |bits, burst| LimitRate { bits: Some(bits), burst, packets: None };
        assert_eq!(of(cri).unwrap(), Some((rate(20_000_000, None), rate(10_000_000, None))));
        let low = r#"{"ingressRate":8000,"ingressBurst":4000}"#;
        assert_eq!(of(low).unwrap(), Some((LimitRate::default(), rate(8000, Some(500)))));
        for none in ["null", "{}", r#"{"ingressRate":0,"egressRate":0,"ingressBurst":5}"#] {
            assert_eq!(of(none).unwrap(), None, "{none}");
        }
        for wrong in ["3", "[]", r#"{"ingressRate":"10M"}"#, r#"{"egressRate":-1}"#] {
            assert_eq!(of(wrong).unwrap_err().code, error::CONFIG, "{wrong}");
        }
    }

    #[test]
    fn network_is_what_the_key_says_and_not_the_lists_name() {
        assert_eq!(config(r#"{"cniVersion":"1.0.0","name":"web"}"#).network(), Ok(None));
        let named = config(r#"{"cniVersion":"1.0.0","name":"n","network":"web"}"#);
        assert_eq!(named.network(), Ok(Some("web".to_owned())));
        let bad = config(r#"{"cniVersion":"1.0.0","name":"n","network":"../web"}"#);
        assert_eq!(bad.network().unwrap_err().code, error::CONFIG);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"n","network":5}"#), error::DECODE);
    }

    #[test]
    fn capability_goes_before_the_argument() {
        let environment = Environment {
            arguments: vec![("IP".into(), "10.42.1.8".into()), ("MAC".into(), "02:00:00:00:00:08".into())],
            ..Environment::default()
        };
        let both = config(r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["10.42.1.9"]}}"#);
        assert_eq!(both.addresses(&environment).unwrap(), ["10.42.1.9".parse::<IpAddr>().unwrap()]);
        let alone = config(r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":null}"#);
        assert_eq!(alone.addresses(&environment).unwrap(), ["10.42.1.8".parse::<IpAddr>().unwrap()]);
        assert_eq!(alone.mac(&environment).unwrap().as_deref(), Some("02:00:00:00:00:08"));
    }

    #[test]
    fn wrong_bodies_have_their_codes() {
        assert_eq!(code(""), error::DECODE);
        assert_eq!(code("[1,2]"), error::DECODE);
        assert_eq!(code(r#"{"cniVersion":1}"#), error::DECODE);
        assert_eq!(code(r#"{"cniVersion":"0.2.0","name":"n"}"#), error::VERSION);
        assert_eq!(code(r#"{"cniVersion":"9.0.0","name":"n"}"#), error::VERSION);
        assert_eq!(code(r#"{"cniVersion":"1.0.0"}"#), error::CONFIG);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"../n"}"#), error::CONFIG);
        let unknown = r#"{"cniVersion":"1.0.0","name":"n","future":{"a":[1]},"ipam":{},"plugins":3}"#;
        assert!(NetworkConfig::parse(unknown.as_bytes()).is_ok());
    }

    #[test]
    fn wrong_addresses_are_refused_with_the_word() {
        let none = Environment::default();
        let bad = config(
            r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["10.42.1"],"mac":"01:00:00:00:00:00"}}"#,
        );
        assert!(bad.addresses(&none).unwrap_err().message.contains("10.42.1"));
        assert_eq!(bad.mac(&none).unwrap_err().code, error::CONFIG);
        for text in ["02:00:00:00:00", "02:00:00:00:00:0g", "00:00:00:00:00:00", "020000000001"] {
            assert!(mac(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_are_ordered() {
        let old = config(r#"{"cniVersion":"0.3.1","name":"n"}"#);
        let new = config(r#"{"cniVersion":"1.1.0","name":"n"}"#);
        assert!(!old.is_at_least("0.4.0") && new.is_at_least("1.1.0") && new.is_at_least("0.4.0"));
    }

    #[test]
    fn version_is_told_from_any_body() {
        assert_eq!(version_of(b"rubbish"), "1.1.0");
        assert_eq!(version_of(br#"{"cniVersion":"0.4.0","name":5}"#), "0.4.0");
    }
}
