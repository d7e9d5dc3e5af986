//! What a host brings into a cluster: a name and an identity.

use std::path::Path;

use overlay_config::secret;
use overlay_control::{ApiError, Code};
use overlay_routing::identity::IdentityKey;
use rand_core::OsRng;

/// The longest name of a host.
const MAX_NAME: usize = 63;

/// The name asked for, or the machine's own in the form that names have: lower-case letters, digits and hyphens.
pub(crate) fn host_name(asked: Option<&str>) -> Result<String, ApiError> {
    let machine = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = match asked {
        Some(name) => name.to_owned(),
        None => tidy(&machine()),
    };
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if name.is_empty()
        || name.len() > MAX_NAME
        || !name.bytes().all(good)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err(ApiError::new(
            Code::Invalid,
            format!("`{name}` is not a host's name"),
            "a name has 1 to 63 lower-case letters, digits and hyphens, none of them at the ends",
            "give one with --name",
        ));
    }
    Ok(name)
}

fn tidy(machine: &str) -> String {
    let first = machine.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let name: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_NAME).collect();
    name.trim_matches('-').to_owned()
}

/// The host's identity, made where there is none yet.
pub(crate) fn identity_or_new(path: &Path) -> Result<IdentityKey, ApiError> {
    let refused = |error: secret::SecretError| {
        ApiError::new(
            Code::Identity,
            format!("the identity key {} cannot be used", path.display()),
            error.to_string(),
            "restore it from a backup, or move it away to have a new one made",
        )
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = IdentityKey::generate(&mut OsRng);
            secret::write_key(path, &key.to_bytes()).map_err(refused)?;
            Ok(key)
        }
        _ => secret::read_key(path).map(|key| IdentityKey::from_bytes(&key)).map_err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_become_host_names() {
        for (machine, name) in [("web1\n", "web1"), ("Web_1.example.org", "web-1"), ("-x-", "x"), ("...", "")] {
            assert_eq!(tidy(machine), name);
        }
        assert_eq!(host_name(Some("h1")).expect("a name"), "h1");
        for bad in ["", "H1", "a.b", "-a", "a-", &"x".repeat(64)] {
            assert_eq!(host_name(Some(bad)).expect_err("refused").code, "INVALID", "{bad}");
        }
    }

    #[test]
    fn identity_is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("identity.key");
        let made = identity_or_new(&path).expect("made").host_id();
        assert_eq!(identity_or_new(&path).expect("read").host_id(), made);
        std::fs::write(&path, "not a key").expect("writable");
        assert_eq!(identity_or_new(&path).expect_err("damaged").code, "IDENTITY");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "not a key");
    }
}
