//! The state directory and single files in it.
//!
//! The directory is opened once and checked: it belongs to the daemon's user and nobody else may write to it. Files are
//! reached through that descriptor and never through links, so that nobody can put another file in their place.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use overlay_control::{ApiError, Code};
use rustix::fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, unlinkat};
use zeroize::Zeroizing;

/// Why state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory or file belongs to another user.
    #[error("{path} belongs to user {owner}, and the daemon runs as user {own}")]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The daemon's user.
        own: u32,
    },
    /// Others than the owner may write to the directory or file.
    #[error("{path} has mode {mode:04o}, so others may write to it")]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is a directory, device or pipe, or larger than any state.
    #[error("{0} is not a regular file of usual size")]
    NotRegular(PathBuf),
    /// The file was written by a newer release.
    #[error("{path} has version {version}, this release knows {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
        /// The newest version known here.
        known: u16,
    },
    /// No slot holds what was written.
    #[error("no copy of {path} is whole: {why}")]
    Damaged {
        /// The file without its slot.
        path: PathBuf,
        /// What is wrong with each slot.
        why: String,
    },
}

impl StateError {
    /// The error as it is shown.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        let why = self.to_string();
        match self {
            Self::Io { path, .. } => ApiError::new(
                Code::Io,
                format!("cannot use {}", path.display()),
                why,
                "make room, or make the state directory writable for the daemon's user",
            ),
            Self::Foreign { path, .. } => ApiError::new(
                Code::StateForeign,
                "the state is not the daemon's own",
                why,
                format!("chown it to the daemon's user: `chown -R overlay {}` under the shipped unit", path.display()),
            ),
            Self::Writable { path, .. } => ApiError::new(
                Code::StateForeign,
                "the state is not the daemon's own",
                why,
                format!("look at what is in there, then `chmod go-w {}`", path.display()),
            ),
            Self::NotRegular(path) => ApiError::new(
                Code::StateForeign,
                "the state is not the daemon's own",
                why,
                format!("look at {} and move it away", path.display()),
            ),
            Self::Newer { path, .. } => ApiError::new(
                Code::StateNewer,
                format!("{} was written by a newer release", path.display()),
                why,
                "start the newer release, or move the file away",
            ),
            Self::Damaged { path, .. } => ApiError::new(
                Code::StateDamaged,
                format!("{} is damaged", path.display()),
                why,
                "put both files back from a backup, or move them away and join again; docs/operations.md says how",
            ),
        }
    }
}

/// The state directory, opened and checked.
#[derive(Debug)]
pub struct StateDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened, is a link, belongs to another user, or others may write to it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| StateError::Io { path: path.to_owned(), source: error.into() })?;
        let directory = Self { fd, path: path.to_owned() };
        let file = File::from(directory.fd.try_clone().map_err(directory.io(""))?);
        let metadata = file.metadata().map_err(directory.io(""))?;
        check_owner(path, &metadata)?;
        Ok(directory)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it, for messages.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    fn io(&self, name: &str) -> impl FnOnce(io::Error) -> StateError {
        let path = self.file(name);
        move |source| StateError::Io { path, source }
    }

    /// Reads a file of at most `most` bytes; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, is a link or no regular file, is too large, or is not the daemon's own.
    pub(super) fn read(&self, name: &str, most: u64) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        // O_NONBLOCK keeps a FIFO from blocking the open; it does nothing for a regular file.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.io(name)(error.into())),
        };
        let metadata = file.metadata().map_err(self.io(name))?;
        if !metadata.is_file() || metadata.len() > most {
            return Err(StateError::NotRegular(self.file(name)));
        }
        check_owner(&self.file(name), &metadata)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        file.take(most + 1).read_to_end(&mut bytes).map_err(self.io(name))?;
        if bytes.len() as u64 > most {
            return Err(StateError::NotRegular(self.file(name)));
        }
        Ok(Some(bytes))
    }

    /// Replaces a file of mode 0600: after any crash it holds the old bytes or the new ones.
    ///
    /// # Errors
    /// When it cannot be written; the old file is still in place then, unless only the last fsync failed.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let fresh = format!("{name}.new");
        let write = || -> io::Result<()> {
            // A leftover of a crash, or something put there by another hand: never written through.
            match unlinkat(&self.fd, &fresh, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&self.fd, &fresh, flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(bytes)?;
            file.sync_all()?;
            renameat(&self.fd, &fresh, &self.fd, name)?;
            Ok(fsync(&self.fd)?)
        };
        let written = write();
        if written.is_err() {
            // The half-written file may be absent; its removal is a courtesy that makes room.
            let _ = unlinkat(&self.fd, &fresh, AtFlags::empty());
        }
        written.map_err(self.io(name))
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => fsync(&self.fd).map_err(|error| self.io(name)(error.into())),
            Err(error) => Err(self.io(name)(error.into())),
        }
    }
}

fn check_owner(path: &Path, metadata: &std::fs::Metadata) -> Result<(), StateError> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own {
        return Err(StateError::Foreign { path: path.to_owned(), owner: metadata.uid(), own });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(StateError::Writable { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    Ok(())
}
