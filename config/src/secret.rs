//! Secret files: read only when nobody else can, written so that nobody else ever could.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The largest secret file read, in bytes: far above any key, far below harm.
const MAX_SECRET_BYTES: u64 = 4096;

/// Why a secret file was refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be opened, read or written. A symbolic link fails here.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The path names a directory, device or pipe.
    #[error("{0} is not a regular file")]
    NotRegular(PathBuf),
    /// Others may read or change the file.
    #[error("{path} has mode {mode:04o}; a secret must be readable by its owner alone: chmod 600 {path}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than any secret.
    #[error("{0} is larger than 4096 bytes")]
    TooLarge(PathBuf),
    /// The content is not a key.
    #[error("{0} does not hold a key; expected 44 characters of base64 (32 bytes)")]
    NotAKey(PathBuf),
}

/// Reads a secret file of mode 0600 or 0400, refusing links and special files.
///
/// # Errors
/// When the file cannot be read, is not regular, may be read by others, or is too large.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let io_error = |error| SecretError::Io { path: path.to_owned(), error };
    // O_NONBLOCK keeps a FIFO from blocking the open; it does nothing for a regular file.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Err(SecretError::NotRegular(path.to_owned()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode != 0o600 && mode != 0o400 {
        return Err(SecretError::Mode { path: path.to_owned(), mode });
    }
    if metadata.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 1));
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// Reads a 32-byte key in base64, as [`write_key`] and `wg genkey` write it.
///
/// # Errors
/// As [`read`], and when the content is not a key.
pub fn read_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, SecretError> {
    let bytes = read(path)?;
    let text = bytes.trim_ascii();
    let mut key = Zeroizing::new([0; 32]);
    match STANDARD.decode_slice(text, key.as_mut_slice()) {
        Ok(32) if text.len() == 44 => Ok(key),
        _ => Err(SecretError::NotAKey(path.to_owned())),
    }
}

/// Writes a 32-byte key in base64 to a new file of mode 0600; an existing file is never overwritten.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn write_key(path: &Path, key: &[u8; 32]) -> Result<(), SecretError> {
    let io_error = |error| SecretError::Io { path: path.to_owned(), error };
    let mut text = Zeroizing::new(STANDARD.encode(key));
    text.push('\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io_error)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(io_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn written_key_reads_back_and_is_never_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_key(&path, &[9; 32]).expect("a new file is written");
        assert_eq!(*read_key(&path).expect("the key is read"), [9; 32]);
        assert!(matches!(write_key(&path, &[1; 32]), Err(SecretError::Io { .. })));
        assert_eq!(*read_key(&path).expect("the key is read"), [9; 32]);
    }

    #[test]
    fn file_others_may_read_is_refused_with_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_key(&path, &[9; 32]).expect("a new file is written");
        for mode in [0o640, 0o604, 0o660, 0o700, 0o4600] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(read(&path), Err(SecretError::Mode { mode: seen, .. }) if seen == mode), "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("chmod");
        assert!(read(&path).is_ok());
    }

    #[test]
    fn link_directory_large_and_foreign_content_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_key(&path, &[9; 32]).expect("a new file is written");
        let link = directory.path().join("link");
        symlink(&path, &link).expect("a link");
        assert!(matches!(read(&link), Err(SecretError::Io { .. })));
        assert!(matches!(read(directory.path()), Err(SecretError::NotRegular(_))));
        std::fs::write(&path, "not a key").expect("write");
        assert!(matches!(read_key(&path), Err(SecretError::NotAKey(_))));
        std::fs::write(&path, vec![b'A'; 5000]).expect("write");
        assert!(matches!(read(&path), Err(SecretError::TooLarge(_))));
    }
}
