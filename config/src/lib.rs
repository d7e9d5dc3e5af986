//! Configuration: TOML raw to checked, defaults, and the difference between two.
