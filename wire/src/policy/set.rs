//! An ordered list of rules with the default behind it, as text (one rule per line) and in serde.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Rule, RuleError};

/// What decides a packet that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicy {
    /// Containers may talk to each other and to the outside, and the outside to them.
    Open,
    /// Containers of members may talk to each other and open connections to the outside; all else is rejected.
    #[default]
    Members,
    /// Nothing may talk unless a rule allows it.
    Deny,
}

impl DefaultPolicy {
    /// Every default, widest first.
    pub const ALL: [Self; 3] = [Self::Open, Self::Members, Self::Deny];

    /// The word used in configuration and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Members => "members",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no default policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a default policy; expected open, members or deny")]
pub struct DefaultPolicyError(String);

impl FromStr for DefaultPolicy {
    type Err = DefaultPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| DefaultPolicyError(text.chars().take(32).flat_map(char::escape_debug).collect()))
    }
}

/// A whole packet filter: the first rule that matches decides, then the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySet {
    /// What decides when no rule matches.
    #[serde(default)]
    pub default: DefaultPolicy,
    /// The rules, first match first.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// Why a policy text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicySetError {
    /// A line is no rule.
    #[error("line {line}: {source}")]
    Rule {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: RuleError,
    },
    /// The `default` line names no default policy.
    #[error("line {line}: {source}")]
    Default {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: DefaultPolicyError,
    },
    /// A second `default` line.
    #[error("line {line}: `default` is given twice")]
    DefaultTwice {
        /// The line, counted from 1.
        line: usize,
    },
}

impl FromStr for PolicySet {
    type Err = PolicySetError;

    /// Parses one rule per line, with an optional `default open|members|deny` line; `#` starts a comment.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut default = None;
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            if let Some(word) = line.strip_prefix("default ") {
                let parsed =
                    word.trim().parse().map_err(|source| PolicySetError::Default { line: line_number, source })?;
                if default.replace(parsed).is_some() {
                    return Err(PolicySetError::DefaultTwice { line: line_number });
                }
                continue;
            }
            rules.push(line.parse().map_err(|source| PolicySetError::Rule { line: line_number, source })?);
        }
        Ok(Self { default: default.unwrap_or_default(), rules })
    }
}

impl fmt::Display for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        writeln!(f, "default {}", self.default)
    }
}
