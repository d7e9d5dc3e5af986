//! Checks on the source: size of files, and what the pure crates may use.

use anyhow::{Result, bail};
use overlay_netns_harness::workspace;
use std::path::Path;
use std::process::Command;

/// No file may be longer.
const MAX_LINES: usize = 800;
/// Crates without input, output, clock and ambient randomness, and the only packages they may depend on.
const PURE: &[(&str, &[&str])] = &[
    ("wire", &["serde", "thiserror", "subtle", "zeroize", "siphasher"]),
    (
        "routing",
        &[
            "overlay-wire",
            "serde",
            "thiserror",
            "subtle",
            "zeroize",
            "siphasher",
            "base64",
            "argon2",
            "blake2",
            "chacha20poly1305",
            "ed25519-dalek",
            "x25519-dalek",
            "curve25519-dalek",
            "hkdf",
            "sha2",
            "rand_core",
            "rand_chacha",
        ],
    ),
    ("dataplane", &["overlay-wire", "overlay-routing", "thiserror", "siphasher", "parking_lot"]),
    ("services", &["overlay-wire", "domain", "serde", "thiserror", "siphasher", "rand_core", "rand_chacha"]),
];

/// The full forms whose results are on record, one file each.
const SOAKS: [&str; 4] = ["mtu", "restart", "faults", "saving"];

/// The source files under version control or about to be.
fn tracked(pattern: &str) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.current_dir(workspace()).args(["ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]);
    let text = overlay_netns_harness::run(&mut command)?;
    Ok(text.lines().filter(|line| workspace().join(line).is_file()).map(str::to_owned).collect())
}

/// Every source file is within the limit.
pub(crate) fn file_sizes() -> Result<()> {
    let mut long = Vec::new();
    for file in tracked("*.rs")? {
        let lines = std::fs::read_to_string(workspace().join(&file))?.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{file} has {lines} lines; split it, {MAX_LINES} is the limit"));
        }
    }
    report(&long)
}

/// Every figure that was promised has a row in a committed result that names its commit and machine.
pub(crate) fn figures_on_record() -> Result<()> {
    let mut missing = Vec::new();
    let read = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(workspace().join(format!("docs/results/{name}.json"))).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let bench = read("bench");
    let rows: Vec<&str> =
        bench["figures"].as_array().into_iter().flatten().filter_map(|figure| figure["what"].as_str()).collect();
    for figure in crate::bench::FIGURES.iter().filter(|figure| !rows.contains(figure)) {
        missing.push(format!("docs/results/bench.json has no row `{figure}`; run `cargo lab bench --json` on it"));
    }
    for name in SOAKS {
        let result = read(name);
        if result["held"] != true || result["size_percent"] != 100 {
            missing.push(format!(
                "docs/results/{name}.json is missing, not of full size, or did not hold; run `cargo lab soak {name}`"
            ));
        }
    }
    let simulated = || crate::sim::PARTS.iter().filter(|part| part.is_demanded);
    for part in simulated() {
        let (name, result) = (part.name, read(part.name));
        if result["held"] != true || result["size_percent"] != 100 {
            missing.push(format!(
                "docs/results/{name}.json is missing, of a part or did not hold; run `cargo lab soak sim`"
            ));
        }
        let rows: Vec<&str> =
            result["measurements"].as_array().into_iter().flatten().filter_map(|row| row["what"].as_str()).collect();
        for title in part.titles().filter(|title| !rows.iter().any(|row| row.starts_with(title))) {
            missing.push(format!("docs/results/{name}.json has no row of `{title}`; run `cargo lab soak {name}`"));
        }
    }
    for (set, name) in [(&crate::rows::MEMBERSHIP, "membership"), (&crate::rows::CONTAINERS, "containers")] {
        missing.extend(crate::rows::gaps(set, &read(name)));
    }
    for name in SOAKS.into_iter().chain(["bench"]).chain(simulated().map(|part| part.name)) {
        if !read(name)["machine"]["commit"].is_string() {
            missing.push(format!("docs/results/{name}.json names no commit"));
        }
    }
    report(&missing)
}

/// The pure crates depend only on what is listed here.
pub(crate) fn pure_dependencies() -> Result<()> {
    let mut wrong = Vec::new();
    for (name, allowed) in PURE {
        let manifest = workspace().join(name).join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        for dependency in dependencies(&manifest)? {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} is a pure crate and may not depend on {dependency}"));
            }
        }
        if !workspace().join(name).join("clippy.toml").is_file() {
            wrong.push(format!("{name} is a pure crate and has no clippy.toml with its bans"));
        }
    }
    report(&wrong)
}

/// The names in the `[dependencies]` section; development dependencies are free.
fn dependencies(manifest: &Path) -> Result<Vec<String>> {
    Ok(section(&std::fs::read_to_string(manifest)?, "[dependencies]"))
}

fn section(text: &str, heading: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| line.trim() != heading).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned();
    lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(name).collect()
}

fn report(problems: &[String]) -> Result<()> {
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_section_is_read() {
        let text = "[package]\nname = \"a\"\n\n[dependencies]\n# why\nserde.workspace = true\nlibc = \"1\"\n\n[dev-dependencies]\nx = \"1\"\n";
        assert_eq!(section(text, "[dependencies]"), ["serde", "libc"]);
    }
}
