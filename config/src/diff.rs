//! What a reload would change, and whether it can be applied while running.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::Config;

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Applies {
    /// At the reload.
    Live,
    /// At the next start; a reload refuses it.
    Restart,
}

/// One value that differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key path.
    pub key: String,
    /// The old value; absent when the key is new.
    pub from: Option<String>,
    /// The new value; absent when the key goes away.
    pub to: Option<String>,
    /// When it takes effect.
    pub applies: Applies,
}

/// Keys whose change takes effect at a reload: the key itself, or everything below one that ends in `.` or `[`.
const LIVE: &[&str] =
    &["node.announce", "node.endpoints", "overlay.encapsulation", "member[", "peer[", "policy.", "log.level"];

/// When a change of `key` takes effect.
#[must_use]
pub fn applies(key: &str) -> Applies {
    let live = LIVE.iter().any(|live| if live.ends_with(['.', '[']) { key.starts_with(live) } else { key == *live });
    if live { Applies::Live } else { Applies::Restart }
}

/// Every value that differs, in key order; empty when the two are the same.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut values: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
    for (key, value) in old.values() {
        values.entry(key).or_default().0 = Some(value);
    }
    for (key, value) in new.values() {
        values.entry(key).or_default().1 = Some(value);
    }
    values
        .into_iter()
        .filter(|(_, (from, to))| from != to)
        .map(|(key, (from, to))| {
            let applies = applies(&key);
            Change { key, from, to, applies }
        })
        .collect()
}
