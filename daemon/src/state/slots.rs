//! State files in two slots, `NAME.a` and `NAME.b`, each a whole copy with version, generation and checksum.
//!
//! A change is written to both, one after the other, and counts when both are on disk. So a crash leaves at least one
//! whole copy, and damage to either file afterwards loses nothing. Of two whole copies the higher generation counts.
//!
//! ```text
//! magic "OVLSTATE" (8) | version u16 | generation u64 | length u32 | BLAKE2s-256 (32) | payload
//! ```
//!
//! Numbers are big-endian. The hash covers the file's name, everything before it and the payload. This head stays as it is
//! in every later version, so that an older release can tell a newer file from a damaged one.

use std::sync::Arc;

use blake2::{Blake2s256, Digest};
use zeroize::Zeroizing;

use super::directory::{StateDir, StateError};

const MAGIC: &[u8; 8] = b"OVLSTATE";
const DOMAIN: &[u8] = b"overlay state slot v1\0";
const HASH_BYTES: usize = 32;
/// Magic, version, generation, length.
const HASHED_HEAD_BYTES: usize = 22;
const HEAD_BYTES: usize = HASHED_HEAD_BYTES + HASH_BYTES;
/// The largest file read, in bytes: a thousand members with their certificates take less than 1 MiB.
const MAX_BYTES: u64 = 16 << 20;

/// What one slot holds.
enum Slot {
    Absent,
    Whole { generation: u64, payload: Zeroizing<Vec<u8>> },
    Damaged(&'static str),
}

/// What was on disk.
#[derive(Debug)]
pub struct Loaded {
    /// The newest whole copy.
    pub payload: Zeroizing<Vec<u8>>,
    /// What was wrong with the other copy, which is written anew.
    pub damage: Option<String>,
}

/// One state file in two slots.
#[derive(Debug)]
pub struct Slots {
    directory: Arc<StateDir>,
    name: &'static str,
    version: u16,
    generation: u64,
}

impl Slots {
    /// Opens a state file and reads its newest whole copy; a damaged or older copy beside it is written anew.
    ///
    /// # Errors
    /// When a copy is of a newer release, when there are copies and none is whole, or when a file cannot be read. Nothing
    /// is written then.
    pub fn open(
        directory: &Arc<StateDir>,
        name: &'static str,
        version: u16,
    ) -> Result<(Self, Option<Loaded>), StateError> {
        let (mut slots, loaded, is_behind) = Self::look(directory, name, version)?;
        if let Some(loaded) = &loaded
            && is_behind
        {
            // A disk that takes nothing now is reported when something has to be written.
            if let Err(error) = slots.store(&loaded.payload) {
                tracing::warn!(cause = %error, "one copy of a state file stays as it is");
            }
        }
        Ok((slots, loaded))
    }

    /// Reads the newest whole copy and writes nothing, as before it is known that no other daemon uses the file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn peek(directory: &Arc<StateDir>, name: &'static str, version: u16) -> Result<Option<Loaded>, StateError> {
        Self::look(directory, name, version).map(|(_, loaded, _)| loaded)
    }

    /// The newest whole copy, and whether the other one is damaged, older or absent.
    fn look(
        directory: &Arc<StateDir>,
        name: &'static str,
        version: u16,
    ) -> Result<(Self, Option<Loaded>, bool), StateError> {
        let mut slots = Self { directory: Arc::clone(directory), name, version, generation: 0 };
        let [first, second] = [slots.read("a")?, slots.read("b")?];
        let behind = match (&first, &second) {
            (Slot::Whole { generation: one, .. }, Slot::Whole { generation: other, .. }) => one != other,
            _ => true,
        };
        let mut damage = Vec::new();
        let mut newest: Option<(u64, Zeroizing<Vec<u8>>)> = None;
        for (slot, letter) in [(first, 'a'), (second, 'b')] {
            match slot {
                Slot::Absent => {}
                Slot::Damaged(why) => damage.push(format!("{name}.{letter}: {why}")),
                Slot::Whole { generation, payload } => {
                    if newest.as_ref().is_none_or(|(newest, _)| generation > *newest) {
                        newest = Some((generation, payload));
                    }
                }
            }
        }
        let why = damage.join("; ");
        let Some((generation, payload)) = newest else {
            if damage.is_empty() {
                return Ok((slots, None, false));
            }
            return Err(StateError::Damaged { path: directory.file(name), why });
        };
        slots.generation = generation;
        Ok((slots, Some(Loaded { payload, damage: (!damage.is_empty()).then_some(why) }), behind))
    }

    /// Puts new state on disk, in both slots; it is there for good when this returns.
    ///
    /// # Errors
    /// When either copy cannot be written. A later start may then find the old state or the new one.
    pub fn store(&mut self, payload: &[u8]) -> Result<(), StateError> {
        // Also after a failure: the copy that was written must not be taken for a later one.
        self.generation += 1;
        let bytes = self.encode(payload);
        for letter in ["a", "b"] {
            self.directory.replace(&format!("{}.{letter}", self.name), &bytes)?;
        }
        Ok(())
    }

    /// Removes both copies.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn erase(&mut self) -> Result<(), StateError> {
        self.generation = 0;
        ["a", "b"].iter().try_for_each(|letter| self.directory.remove(&format!("{}.{letter}", self.name)))
    }

    fn encode(&self, payload: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_BYTES + payload.len()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        let hash = self.hash(&bytes, payload);
        bytes.extend_from_slice(&hash);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn hash(&self, head: &[u8], payload: &[u8]) -> [u8; HASH_BYTES] {
        let hash = Blake2s256::new().chain_update(DOMAIN).chain_update(self.name).chain_update(b"\0");
        hash.chain_update(head).chain_update(payload).finalize().into()
    }

    fn read(&self, letter: &str) -> Result<Slot, StateError> {
        let name = format!("{}.{letter}", self.name);
        let Some(bytes) = self.directory.read(&name, MAX_BYTES)? else { return Ok(Slot::Absent) };
        let Some((head, payload)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Ok(Slot::Damaged("it is cut off"));
        };
        let (head, hash) = head.split_at(HASHED_HEAD_BYTES);
        let (magic, numbers) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Ok(Slot::Damaged("it does not begin like a state file"));
        }
        if self.hash(head, payload) != hash {
            return Ok(Slot::Damaged("its checksum does not fit"));
        }
        // The length is under the checksum; it is there for a reader that streams.
        let number = |range: std::ops::Range<usize>| {
            numbers.get(range).unwrap_or_default().iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let version = number(0..2) as u16;
        if version > self.version {
            let path = self.directory.file(&name);
            return Err(StateError::Newer { path, version, known: self.version });
        }
        Ok(Slot::Whole { generation: number(2..10), payload: Zeroizing::new(payload.to_vec()) })
    }
}
