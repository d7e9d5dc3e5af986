//! Bodies over what dockerd sends to the plugin, and what it answers.

use overlay_plugins::docker::{look_at_answer, look_at_call};

/// The longest text of a refusal, in bytes: what was sent is never quoted whole.
const LONGEST_REFUSAL: usize = 1024;

/// A call, its path in the first line and its body in the rest; and the same bytes as an answer of dockerd.
pub fn call(bytes: &[u8]) {
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let path = String::from_utf8_lossy(&bytes[..line]);
    let body = bytes.get(line + 1..).unwrap_or_default();
    if let Err(refusal) = look_at_call(&path, body) {
        assert!(refusal.starts_with("overlayd: "), "{refusal}");
        assert!(refusal.len() <= LONGEST_REFUSAL, "{} bytes of refusal", refusal.len());
    }
    let (endpoints, aliases) = look_at_answer(bytes);
    assert!(endpoints <= bytes.len() && aliases <= 64);
}
