//! Bodies over text formats.

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
