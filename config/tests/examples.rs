//! Every file in `examples/` is a valid configuration.

use std::path::Path;

use overlay_config::Config;

#[test]
fn every_example_is_accepted() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut checked = 0;
    for entry in std::fs::read_dir(&directory).expect("examples exist") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        if let Err(problems) = Config::load_file(&path) {
            panic!("{} is refused:\n{problems}", path.display());
        }
        checked += 1;
    }
    assert!(checked >= 6, "only {checked} examples were found in {}", directory.display());
}

#[test]
fn static_cluster_files_differ_in_their_node_section_only() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/three-hosts");
    let rest = |name: &str| {
        let text = std::fs::read_to_string(directory.join(name)).expect("the example exists");
        text[text.find("[overlay]").expect("a section")..].to_owned()
    };
    for name in ["h1.toml", "h2.toml", "h3.toml"] {
        Config::load_file(&directory.join(name)).unwrap_or_else(|problems| panic!("{name} is refused:\n{problems}"));
        assert_eq!(rest(name), rest("h1.toml"), "{name}");
    }
}
