//! Runs fuzz targets by hand: longer than the tests do, or one input again.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use overlay_fuzz::{TARGETS, run, seeds, target};

const USAGE: &str = "usage:
  overlay-fuzz list                                            name the targets
  overlay-fuzz run TARGET|all [--seed N] [--from N] [--runs N] run mutated inputs
  overlay-fuzz file TARGET FILE                                run one file
  overlay-fuzz seeds                                           write the generated corpus files";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["list"] => {
            TARGETS.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        ["run", name, options @ ..] => run_target(name, options),
        ["file", name, file] => run_file(name, file),
        ["seeds"] => seeds::write(&run::corpus_dir()).map_err(|error| format!("cannot write the corpus: {error}")),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run_target(name: &str, options: &[&str]) -> Result<(), String> {
    let (mut seed, mut from, mut runs) = (1, 0, 1_000_000);
    for pair in options.chunks(2) {
        let place = match pair[0] {
            "--seed" => &mut seed,
            "--from" => &mut from,
            "--runs" => &mut runs,
            _ => return Err(USAGE.to_owned()),
        };
        *place = pair.get(1).and_then(|text| text.parse().ok()).ok_or(format!("{} needs a number", pair[0]))?;
    }
    if name != "all" && target(name).is_none() {
        return Err(format!("no target is called `{name}`; `overlay-fuzz list` names them"));
    }
    for (known, body) in TARGETS.iter().filter(|(known, _)| name == "all" || name == *known) {
        let corpus = run::load_corpus(known).map_err(|error| format!("corpus of {known}: {error}"))?;
        let inputs: Vec<_> = corpus.into_iter().map(|(_, input)| input).collect();
        run::run_mutated(known, *body, &inputs, seed, from, runs).map_err(|crash| crash.to_string())?;
        println!("{known}: {runs} inputs from {from}, seed {seed}: ok");
    }
    Ok(())
}

fn run_file(name: &str, file: &str) -> Result<(), String> {
    let body = target(name).ok_or(format!("no target is called `{name}`; `overlay-fuzz list` names them"))?;
    let bytes = std::fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    run::run_corpus(name, body, &[(file.to_owned(), bytes)]).map_err(|crash| crash.to_string())
}
