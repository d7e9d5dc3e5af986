//! The text that POLICY records carry: the rules, where they come from, and whether they are on trial.
//!
//! ```text
//! overlay policy 1
//! made apply
//! rules 34
//! trial 60 1784937600 6 16
//!
//! allow tcp/443 from any to any
//! ...
//! ```
//!
//! Behind the empty line come the rules, then those that are in force again when nobody confirms, each with the length
//! that the head names. A document on trial carries what was before it, so that every host can go back by itself, also
//! one that never saw it. `rules none` and a trial without a revision mean no policy for the whole cluster.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::policy::MAX_POLICY_BYTES;

const HEAD: &str = "overlay policy ";
const VERSION: &str = "1";
/// The longest time that a policy may be on trial, in seconds: a day.
pub const MAX_TRIAL_SECS: u32 = 86_400;

/// How a revision came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyMade {
    /// From a file.
    Applied,
    /// It confirms that revision, with the same rules.
    Confirmed(u64),
    /// It puts the rules of that revision in force again.
    RolledBack(u64),
}

/// Rules that were in force before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreviousPolicy {
    /// Their revision.
    pub revision: u64,
    /// The rules.
    pub rules: String,
}

/// Rules that count only for a time unless they are confirmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyTrial {
    /// How long, from when a host has them.
    pub seconds: u32,
    /// When they were published, in seconds since 1970, by the clock of the host that did.
    pub written: u64,
    /// What is in force again afterwards; absent: no policy for the whole cluster.
    pub previous: Option<PreviousPolicy>,
}

/// One revision of the cluster's policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyDocument {
    /// How it came to be.
    pub made: PolicyMade,
    /// The rules as they were written; absent: no policy for the whole cluster, so that each host's own counts.
    pub rules: Option<String>,
    /// Whether it is on trial.
    pub trial: Option<PolicyTrial>,
}

/// Why a text is no policy document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It has another version.
    #[error("it is written in version {0} of the format and this release knows version 1")]
    Version(String),
    /// A line of the head is not what belongs there.
    #[error("its head is damaged: {0}")]
    Head(&'static str),
    /// It is too long for the records.
    #[error("rules, and those before them, have {bytes} bytes together; there is room for {max}")]
    TooLong {
        /// What it has.
        bytes: usize,
        /// What there is room for.
        max: usize,
    },
}

impl PolicyDocument {
    /// The text.
    ///
    /// # Errors
    /// When it is too long for the records, or the trial is.
    pub fn emit(&self) -> Result<String, DocumentError> {
        let mut out = format!("{HEAD}{VERSION}\n");
        let made = match self.made {
            PolicyMade::Applied => "apply".to_owned(),
            PolicyMade::Confirmed(revision) => format!("confirm {revision}"),
            PolicyMade::RolledBack(revision) => format!("rollback {revision}"),
        };
        let rules = self.rules.as_ref().map_or_else(|| "none".to_owned(), |rules| rules.len().to_string());
        let mut write = |line: std::fmt::Arguments<'_>| {
            out.write_fmt(line).expect("writing to a String cannot fail");
            out.push('\n');
        };
        write(format_args!("made {made}"));
        write(format_args!("rules {rules}"));
        if let Some(PolicyTrial { seconds, written, previous }) = &self.trial {
            if *seconds > MAX_TRIAL_SECS {
                return Err(DocumentError::Head("the trial is longer than a day"));
            }
            match previous {
                None => write(format_args!("trial {seconds} {written} none")),
                Some(PreviousPolicy { revision, rules }) => {
                    write(format_args!("trial {seconds} {written} {revision} {}", rules.len()));
                }
            }
        }
        out.push('\n');
        out.push_str(self.rules.as_deref().unwrap_or_default());
        let previous = self.trial.as_ref().and_then(|trial| trial.previous.as_ref());
        out.push_str(previous.map_or("", |previous| &previous.rules));
        if out.len() > MAX_POLICY_BYTES {
            return Err(DocumentError::TooLong { bytes: out.len(), max: MAX_POLICY_BYTES });
        }
        Ok(out)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// When it is not exactly what [`Self::emit`] gives.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let (head, body) = text.split_once("\n\n").ok_or(DocumentError::Head("it has no end"))?;
        let mut lines = head.split('\n');
        let first = lines.next().and_then(|line| line.strip_prefix(HEAD)).ok_or(DocumentError::Head("first line"))?;
        if first != VERSION {
            return Err(DocumentError::Version(first.chars().take(16).flat_map(char::escape_debug).collect()));
        }
        let made = lines.next().and_then(made).ok_or(DocumentError::Head("made"))?;
        let rules_bytes =
            lines.next().and_then(|line| length(line.strip_prefix("rules ")?)).ok_or(DocumentError::Head("rules"))?;
        let trial = lines.next();
        if lines.next().is_some() {
            return Err(DocumentError::Head("a line too many"));
        }
        let (rules, rest) =
            body.split_at_checked(rules_bytes.unwrap_or(0)).ok_or(DocumentError::Head("the rules are cut off"))?;
        let trial = match trial {
            None if !rest.is_empty() => return Err(DocumentError::Head("something follows the rules")),
            None => None,
            Some(line) => Some(self::trial(line, rest).ok_or(DocumentError::Head("trial"))?),
        };
        Ok(Self { made, rules: rules_bytes.map(|_| rules.to_owned()), trial })
    }
}

/// A number in its one form.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

/// A length, or none.
fn length(text: &str) -> Option<Option<usize>> {
    if text == "none" { Some(None) } else { number(text).map(Some) }
}

fn made(line: &str) -> Option<PolicyMade> {
    match line.strip_prefix("made ")?.split_once(' ') {
        None => (line == "made apply").then_some(PolicyMade::Applied),
        Some(("confirm", revision)) => number(revision).map(PolicyMade::Confirmed),
        Some(("rollback", revision)) => number(revision).map(PolicyMade::RolledBack),
        Some(_) => None,
    }
}

fn trial(line: &str, rest: &str) -> Option<PolicyTrial> {
    let words: Vec<&str> = line.strip_prefix("trial ")?.split(' ').collect();
    let (seconds, written, previous) = match words[..] {
        [seconds, written, "none"] if rest.is_empty() => (seconds, written, None),
        [seconds, written, revision, bytes] if number(bytes) == Some(rest.len()) => {
            (seconds, written, Some(PreviousPolicy { revision: number(revision)?, rules: rest.to_owned() }))
        }
        _ => return None,
    };
    let seconds = number(seconds).filter(|seconds| *seconds <= MAX_TRIAL_SECS)?;
    Some(PolicyTrial { seconds, written: number(written)?, previous })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document() -> impl Strategy<Value = PolicyDocument> {
        let made = prop_oneof![
            Just(PolicyMade::Applied),
            any::<u64>().prop_map(PolicyMade::Confirmed),
            any::<u64>().prop_map(PolicyMade::RolledBack)
        ];
        let previous = (any::<u64>(), ".{0,80}").prop_map(|(revision, rules)| PreviousPolicy { revision, rules });
        let trial = (0..=MAX_TRIAL_SECS, any::<u64>(), proptest::option::of(previous))
            .prop_map(|(seconds, written, previous)| PolicyTrial { seconds, written, previous });
        (made, proptest::option::of("(.|\n){0,80}"), proptest::option::of(trial))
            .prop_map(|(made, rules, trial)| PolicyDocument { made, rules, trial })
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_again(document in document()) {
            let text = document.emit().expect("short");
            prop_assert_eq!(PolicyDocument::parse(&text), Ok(document));
        }

        #[test]
        fn what_parses_is_what_would_be_emitted(text in "overlay policy 1\nmade (apply|confirm [0-9]{1,3})\nrules (none|[0-9]{1,2})\n(trial 6 7 (none|8 [0-9])\n)?\n[a-z\n]{0,20}") {
            if let Ok(document) = PolicyDocument::parse(&text) {
                prop_assert_eq!(document.emit(), Ok(text));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in "(.|\n){0,120}") {
            let _ = PolicyDocument::parse(&text);
        }
    }

    #[test]
    fn newer_format_is_told_from_a_damaged_one() {
        let newer = "overlay policy 2\nmade apply\nrules 0\nzone dmz\n\n";
        assert_eq!(PolicyDocument::parse(newer), Err(DocumentError::Version("2".to_owned())));
        for text in [
            "",
            "default open\n",
            "overlay policy 1\nmade apply\nrules 9\n\nshort",
            "overlay policy 1\nmade apply\nrules 5\n\nlonger than said",
            "overlay policy 1\nmade apply\nrules 05\n\nshort",
            "overlay policy 1\nmade apply\nrules none\ntrial 90000 1 none\n\n",
            "overlay policy 1\nmade apply\nrules 1\n\n\u{e9}",
        ] {
            assert!(matches!(PolicyDocument::parse(text), Err(DocumentError::Head(_))), "{text:?}");
        }
    }

    #[test]
    fn document_that_fits_no_records_is_refused() {
        let rules = "x".repeat(MAX_POLICY_BYTES / 2);
        let alone = PolicyDocument { made: PolicyMade::Applied, rules: Some(rules.clone()), trial: None };
        assert!(alone.emit().is_ok());
        let previous = Some(PreviousPolicy { revision: 1, rules });
        let on_trial = PolicyDocument { trial: Some(PolicyTrial { seconds: 60, written: 1, previous }), ..alone };
        assert!(matches!(on_trial.emit(), Err(DocumentError::TooLong { .. })));
    }
}
