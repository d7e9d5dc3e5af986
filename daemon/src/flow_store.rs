//! Tracked flows kept in the state directory over a restart of the daemon.
//!
//! One file, written new, fsynced and renamed, so that it is whole or absent: every few seconds while packets pass, and
//! once more when they have ended. Its time is the boot's clock (CLOCK_BOOTTIME, sleep included) with the boot's id, so a
//! wall clock that jumps moves nothing. A file of an earlier boot is not taken up: the containers of that boot are gone and
//! their addresses may be others' by now, so a flow that passes by state alone could reach a stranger; and connections of
//! networks behind this host, which may have lived on, are picked up in mid-stream where the rules allow them.
//!
//! Layout, big-endian: magic (8 bytes), version (2), marks (2), boot id (16), host id (16), time in milliseconds (8), flows
//! of [`FLOW_BYTES`] each, BLAKE2s-256 of all before (32).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blake2::{Blake2s256, Digest};
use overlay_dataplane::{Conntrack, Cursor, FLOW_BYTES, Pass, Restored, SavedWhile};
use overlay_wire::HostId;

pub use saver::{FlowSaver, SaveFigures};

mod saver;
#[cfg(test)]
mod tests;

/// The file in the state directory.
const FILE: &str = "flows.state";
const MAGIC: [u8; 8] = *b"ovlflows";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 52;
const CHECKSUM_BYTES: usize = 32;
/// Flows written at most, those that both sides agreed to first: the default size of the table, about 35 MB.
const MAX_FLOWS: usize = 262_144;
/// Packets passed after the file was written, or may have; or not every flow found room in it.
const MARK_RUNNING: u16 = 1;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum FlowFileError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Not a regular file of ours.
    #[error("it belongs to user {owner}, not to user {own}")]
    Owner {
        /// The owner.
        owner: u32,
        /// This process.
        own: u32,
    },
    /// A directory, device or pipe.
    #[error("it is no regular file")]
    Kind,
    /// Larger than any file we write, or too short to be one.
    #[error("{0} bytes are not the size of such a file")]
    Size(u64),
    /// Something else.
    #[error("it is no file of flows")]
    Magic,
    /// A later release wrote it.
    #[error("it has version {0}, this release knows {VERSION}")]
    Newer(u16),
    /// Damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// Another host wrote it.
    #[error("host {0} wrote it")]
    OtherHost(HostId),
}

/// Where the clock of this boot stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootTime {
    /// Names the boot.
    pub boot: [u8; 16],
    /// Time since its start, sleep included.
    pub elapsed: Duration,
}

impl BootTime {
    /// Reads the clock.
    ///
    /// # Errors
    /// When the kernel does not name its boot.
    pub fn now() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(|_| std::io::ErrorKind::InvalidData)?.to_be_bytes();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let elapsed = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        Ok(Self { boot, elapsed })
    }
}

/// What a file held.
#[derive(Debug)]
pub enum Loaded {
    /// There is no file.
    Nothing,
    /// It was written before this boot, or says it was written later than now.
    EarlierBoot,
    /// Flows.
    Flows {
        /// As [`Conntrack::restore`] reads them.
        bytes: Vec<u8>,
        /// Whether packets may have passed since.
        saved: SavedWhile,
        /// How long ago they were written.
        gap: Duration,
    },
}

/// The file of flows of one host.
#[derive(Clone, Debug)]
pub struct FlowStore {
    directory: PathBuf,
    host: HostId,
    uid: u32,
}

impl FlowStore {
    /// The file in this state directory; `uid` is the user we run as.
    #[must_use]
    pub fn new(directory: &Path, host: HostId, uid: u32) -> Self {
        Self { directory: directory.to_owned(), host, uid }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it is not a whole file of this host and version.
    pub fn load(&self, clock: BootTime) -> Result<Loaded, FlowFileError> {
        // Neither a link nor a pipe is followed or waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(FlowFileError::Kind),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FlowFileError::Kind);
        }
        if metadata.uid() != self.uid {
            return Err(FlowFileError::Owner { owner: metadata.uid(), own: self.uid });
        }
        let most = (HEADER_BYTES + MAX_FLOWS * FLOW_BYTES + CHECKSUM_BYTES) as u64;
        if metadata.len() > most {
            return Err(FlowFileError::Size(metadata.len()));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        file.take(most + 1).read_to_end(&mut bytes)?;
        self.parse(bytes, clock)
    }

    fn parse(&self, mut bytes: Vec<u8>, clock: BootTime) -> Result<Loaded, FlowFileError> {
        let size = FlowFileError::Size(bytes.len() as u64);
        let Some(magic) = bytes.first_chunk::<8>() else { return Err(size) };
        if *magic != MAGIC {
            return Err(FlowFileError::Magic);
        }
        let Some(header) = Header::parse(&bytes) else { return Err(size) };
        // A later version may keep its checksum elsewhere: it is named before anything else is judged.
        if header.version > VERSION {
            return Err(FlowFileError::Newer(header.version));
        }
        let Some(end) = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|end| *end >= HEADER_BYTES) else {
            return Err(size);
        };
        if Blake2s256::digest(&bytes[..end]).as_slice() != &bytes[end..] {
            return Err(FlowFileError::Checksum);
        }
        if header.host != self.host {
            return Err(FlowFileError::OtherHost(header.host));
        }
        let Some(gap) = clock.elapsed.checked_sub(header.written).filter(|_| header.boot == clock.boot) else {
            return Ok(Loaded::EarlierBoot);
        };
        bytes.truncate(end);
        bytes.drain(..HEADER_BYTES);
        let saved = if header.marks & MARK_RUNNING == 0 { SavedWhile::Stopped } else { SavedWhile::Running };
        Ok(Loaded::Flows { bytes, saved, gap })
    }

    /// Writes every flow of the table; how many there were.
    ///
    /// # Errors
    /// When the file cannot be written; the one before it stays.
    pub fn save(&self, table: &Conntrack, saved: SavedWhile) -> std::io::Result<usize> {
        let next = self.path().with_extension("new");
        let written = self.write(&next, table, saved);
        if written.is_err() {
            // What did not get whole is in nobody's way; where it cannot be removed either, the next attempt writes over it.
            let _ = std::fs::remove_file(&next);
        }
        written
    }

    fn write(&self, next: &Path, table: &Conntrack, saved: SavedWhile) -> std::io::Result<usize> {
        let clock = BootTime::now()?;
        let now = Instant::now();
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(next)?;
        // Whether all flows fit is known at the end, and the table is not counted twice for it.
        let fits = table.len() <= MAX_FLOWS;
        let marks = if saved == SavedWhile::Stopped && fits { 0 } else { MARK_RUNNING };
        let header = Header { version: VERSION, marks, boot: clock.boot, host: self.host, written: clock.elapsed };
        let mut hash = Blake2s256::new();
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_all(bytes)
        };
        put(&header.emit())?;
        let mut left = MAX_FLOWS;
        let mut flows = Vec::new();
        for pass in [Pass::Assured, Pass::Others] {
            let mut cursor = Cursor::default();
            let mut more = true;
            while more && left > 0 {
                more = table.save(pass, &mut cursor, now, &mut flows);
                flows.truncate(left * FLOW_BYTES);
                left -= flows.len() / FLOW_BYTES;
                put(&flows)?;
                flows.clear();
            }
        }
        file.write_all(&hash.finalize())?;
        file.sync_all()?;
        std::fs::rename(next, self.path())?;
        File::open(&self.directory)?.sync_all()?;
        Ok(MAX_FLOWS - left)
    }

    /// Puts the flows of the last run into the table, before the first packet; what came of it, in one sentence.
    ///
    /// # Errors
    /// With why there are none, in one sentence: the daemon starts without them.
    pub fn restore(&self, table: &Conntrack) -> Result<Option<String>, String> {
        let shown = self.path().display().to_string();
        let outcome = BootTime::now().map_err(FlowFileError::from).and_then(|clock| self.load(clock));
        let restored = match outcome {
            Ok(Loaded::Nothing) => return Ok(None),
            Ok(Loaded::EarlierBoot) => Ok(Some(format!("{shown} is of an earlier boot and is not used"))),
            Ok(Loaded::Flows { bytes, saved, gap }) => {
                let restored = table.restore(&bytes, saved, gap, Instant::now());
                Ok(Some(told(restored, saved, gap)))
            }
            Err(error) => {
                Err(format!("{shown} is not used and no flow is restored: {error}{}", self.set_aside(&error)))
            }
        };
        // From here on packets pass: a file that says none did must not outlive this moment.
        if let Err(error) = self.save(table, SavedWhile::Running) {
            let _ = std::fs::remove_file(self.path());
            return Err(format!("flows cannot be saved: {error}"));
        }
        restored
    }

    /// A newer release's file is never written over; what it is called then.
    fn set_aside(&self, error: &FlowFileError) -> String {
        if !matches!(error, FlowFileError::Newer(_)) {
            return String::new();
        }
        let aside = self.path().with_extension("state.newer");
        match std::fs::rename(self.path(), &aside) {
            Ok(()) => format!("; it is kept as {}", aside.display()),
            Err(error) => format!("; it cannot be kept: {error}"),
        }
    }
}

fn told(restored: Restored, saved: SavedWhile, gap: Duration) -> String {
    let how = match saved {
        SavedWhile::Stopped => "since the last stop",
        SavedWhile::Running => "after they were last saved",
    };
    let Restored { flows, expired, refused } = restored;
    format!(
        "{flows} flows are taken up again {:.1} s {how}; {expired} had expired, {refused} had no place",
        gap.as_secs_f64()
    )
}

/// What stands before the flows.
struct Header {
    version: u16,
    marks: u16,
    boot: [u8; 16],
    host: HostId,
    written: Duration,
}

impl Header {
    fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let written = u64::try_from(self.written.as_millis()).unwrap_or(u64::MAX);
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.version.to_be_bytes());
        out[10..12].copy_from_slice(&self.marks.to_be_bytes());
        out[12..28].copy_from_slice(&self.boot);
        out[28..44].copy_from_slice(&self.host.0);
        out[44..].copy_from_slice(&written.to_be_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| header[at..].first_chunk().map(|number| u16::from_be_bytes(*number));
        Some(Self {
            version: number(8)?,
            marks: number(10)?,
            boot: *header[12..].first_chunk()?,
            host: HostId(*header[28..].first_chunk()?),
            written: Duration::from_millis(u64::from_be_bytes(*header[44..].first_chunk()?)),
        })
    }
}
