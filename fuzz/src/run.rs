//! Running a body over its corpus and over mutated inputs.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::Body;
use crate::mutate::Mutator;

/// An input on which a body panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The target's name.
    pub target: String,
    /// What was run.
    pub origin: Origin,
    /// The input itself.
    pub input: Vec<u8>,
}

/// Where an input came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file of the committed corpus, by name.
    Corpus(String),
    /// Made by the mutator.
    Mutated {
        /// The seed.
        seed: u64,
        /// The input's number.
        number: u64,
    },
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let target = &self.target;
        match &self.origin {
            Origin::Corpus(file) => writeln!(f, "target {target} fails on corpus file {file}")?,
            Origin::Mutated { seed, number } => {
                writeln!(f, "target {target} fails on input {number} of seed {seed}; to run it again:")?;
                writeln!(f, "  cargo run -p overlay-fuzz -- run {target} --seed {seed} --from {number} --runs 1")?;
            }
        }
        write!(f, "  input of {} bytes: ", self.input.len())?;
        self.input.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The folder of the committed corpus.
#[must_use]
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Reads a target's corpus as (file name, bytes), ordered by name.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn load_corpus(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(corpus_dir().join(target))? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}

/// Runs a body on every corpus file as it is.
///
/// # Errors
/// The first file on which the body panics.
pub fn run_corpus(target: &str, body: Body, corpus: &[(String, Vec<u8>)]) -> Result<(), Crash> {
    corpus.iter().try_for_each(|(name, input)| attempt(target, body, input, Origin::Corpus(name.clone())))
}

/// Runs a body on `count` mutated inputs, numbered from `first`.
///
/// # Errors
/// The first input on which the body panics.
pub fn run_mutated(
    target: &str,
    body: Body,
    corpus: &[Vec<u8>],
    seed: u64,
    first: u64,
    count: u64,
) -> Result<(), Crash> {
    let mutator = Mutator::new(corpus, seed, target);
    (first..first.saturating_add(count))
        .try_for_each(|number| attempt(target, body, &mutator.input(number), Origin::Mutated { seed, number }))
}

fn attempt(target: &str, body: Body, input: &[u8], origin: Origin) -> Result<(), Crash> {
    // The panic message itself goes to standard error by the usual hook.
    catch_unwind(AssertUnwindSafe(|| body(input))).map_err(|_| Crash {
        target: target.to_owned(),
        origin,
        input: input.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails_on_long_inputs(bytes: &[u8]) {
        assert!(bytes.len() < 100, "planted failure");
    }

    #[test]
    fn planted_failure_is_found_and_repeats_from_its_number() {
        let corpus = [vec![0; 90]];
        let found = run_mutated("planted", fails_on_long_inputs, &corpus, 1, 0, 1000).unwrap_err();
        let Origin::Mutated { seed, number } = found.origin else { panic!("not mutated") };
        let again = run_mutated("planted", fails_on_long_inputs, &corpus, seed, number, 1).unwrap_err();
        assert_eq!(again, found);
        assert!(found.to_string().contains(&format!("--seed {seed} --from {number} --runs 1")));
    }
}
