//! Runs every fuzz body over its corpus and a fixed number of mutated inputs.

use overlay_fuzz::{TARGETS, cost, run};

/// Mutated inputs per target where `OVERLAY_FUZZ_RUNS` says nothing.
const DEFAULT_RUNS: u64 = 20_000;
/// The seed where `OVERLAY_FUZZ_SEED` says nothing: fixed, so that a plain test run always does the same.
const DEFAULT_SEED: u64 = 1;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not `{text}`")),
        Err(_) => default,
    }
}

#[test]
fn every_target_withstands_its_corpus_and_seeded_mutations() {
    let (runs, seed) = (number("OVERLAY_FUZZ_RUNS", DEFAULT_RUNS), number("OVERLAY_FUZZ_SEED", DEFAULT_SEED));
    println!("fuzzing {} targets, {runs} inputs each (costly ones fewer), seed {seed}", TARGETS.len());
    let mut crashes = Vec::new();
    for (name, body) in TARGETS {
        let corpus = run::load_corpus(name).unwrap_or_else(|error| panic!("corpus of {name}: {error}"));
        assert!(!corpus.is_empty(), "target {name} has no corpus");
        let started = std::time::Instant::now();
        let inputs: Vec<_> = corpus.iter().map(|(_, input)| input.clone()).collect();
        crashes.extend(run::run_corpus(name, *body, &corpus).err());
        crashes.extend(run::run_mutated(name, *body, &inputs, seed, 0, runs.div_ceil(cost(name))).err());
        println!("  {name}: {} corpus files, {:?}", corpus.len(), started.elapsed());
    }
    let report: Vec<String> = crashes.iter().map(ToString::to_string).collect();
    assert!(crashes.is_empty(), "{}", report.join("\n"));
}

#[test]
fn corpus_folders_and_targets_match() {
    let mut folders: Vec<String> = std::fs::read_dir(run::corpus_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(folders, names);
}
