//! Bodies over text formats.

use overlay_config::{Config, Layer};
use overlay_wire::Prefix;
use overlay_wire::policy::{PolicySet, Rule};

/// The packet-filter language: whatever parses prints to text that parses to the same value.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(rule) = text.parse::<Rule>() {
        assert_eq!(rule.to_string().parse(), Ok(rule));
    }
    if let Ok(set) = text.parse::<PolicySet>() {
        assert_eq!(set.to_string().parse(), Ok(set));
    }
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
}

/// The configuration file, alone and with a layer over it; a layer that parses prints to text that parses again.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // A line of dashes divides the file from the layer.
    let (file, layer) = text.split_once("\n---\n").unwrap_or((text, ""));
    for result in [Config::parse(file, "file"), Config::parse_layers(file, "file", Some((layer, "layer")))] {
        if let Err(problems) = result {
            assert!(!problems.0.is_empty(), "a refusal names a problem");
            assert!(!problems.to_string().is_empty());
        }
    }
    if let Ok(parsed) = Layer::parse(layer, "layer") {
        let printed = parsed.to_toml();
        assert_eq!(Layer::parse(&printed, "printed").ok(), Some(parsed), "{printed}");
    }
}

/// The frames of the control socket.
pub fn control(bytes: &[u8]) {
    overlay_control::frame::fuzz(bytes);
}
