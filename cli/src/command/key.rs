//! `overlayctl key`: secret keys in files, public halves on standard output. Works without a daemon.

use std::path::Path;

use overlay_config::PublicKey;
use overlay_config::secret::{self, SecretError};
use overlay_control::api::ApiError;
use overlay_control::codes::{Code, exit};
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use super::Context;
use crate::args::{Key, KeyKind};
use crate::output::Outcome;

pub(super) fn run(context: &mut Context<'_>, verb: Key) -> Outcome {
    let (public, path) = match verb {
        Key::Generate { out, kind } => {
            let mut key = Zeroizing::new([0; 32]);
            OsRng.fill_bytes(key.as_mut_slice());
            secret::write_key(&out, &key).map_err(|error| written(&out, &error))?;
            (public(&key, kind), out)
        }
        Key::Public { file, kind } => {
            let key = secret::read_key(&file).map_err(|error| {
                let next = "give the path of a file that `overlayctl key generate` or `wg genkey` wrote, mode 0600";
                ApiError::new(Code::Io, "cannot read the key", error.to_string(), next)
            })?;
            (public(&key, kind), file)
        }
    };
    if context.output.json {
        context.output.object("key", &serde_json::json!({ "file": path, "public": public }))?;
    } else {
        context.output.line(&public.to_string())?;
    }
    Ok(exit::OK)
}

fn written(path: &Path, error: &SecretError) -> ApiError {
    let exists = matches!(error, SecretError::Io { error, .. } if error.kind() == std::io::ErrorKind::AlreadyExists);
    if exists {
        let next = format!(
            "`overlayctl key public {}` prints its public half; choose another path for a new key",
            path.display()
        );
        let what = format!("{} exists", path.display());
        return ApiError::new(Code::Conflict, what, "a key that is in use would be lost for ever", next);
    }
    ApiError::new(
        Code::Io,
        "cannot write the key",
        error.to_string(),
        "check that the directory exists and is writable",
    )
}

fn public(key: &[u8; 32], kind: KeyKind) -> PublicKey {
    match kind {
        KeyKind::Identity => PublicKey(ed25519_dalek::SigningKey::from_bytes(key).verifying_key().to_bytes()),
        // The conversion clamps, as wg(8) does when it uses a key.
        KeyKind::Wireguard => {
            PublicKey(x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*key)).to_bytes())
        }
    }
}
