//! How many flows each source holds, in fixed memory and without a lock.
//!
//! A counting sketch of two rows: a source's count is the lower of its two cells, never too low. It is too high only for
//! a source that shares both cells with busy ones, which the secret hash makes unlikely and impossible to aim at.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

/// Cells per row.
const CELLS: usize = 1 << 15;

#[derive(Debug)]
pub(super) struct Shares {
    rows: Arc<[Box<[AtomicU32]>; 2]>,
    secret: [u8; 16],
    limit: u32,
    /// In a shadow, which never writes to the cells: the sources of the flows it would have taken out.
    shadow: Option<Mutex<Vec<[u64; 2]>>>,
}

impl Shares {
    pub(super) fn new(limit: u32, secret: [u8; 16]) -> Self {
        let row = || (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        Self { rows: Arc::new([row(), row()]), secret, limit, shadow: None }
    }

    /// The same shares, for a rehearsal that changes none of them.
    pub(super) fn shadow(&self) -> Self {
        Self { rows: Arc::clone(&self.rows), secret: self.secret, limit: self.limit, shadow: Some(Mutex::default()) }
    }

    fn cells(&self, source: [u64; 2]) -> [&AtomicU32; 2] {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write_u64(source[0]);
        hasher.write_u64(source[1]);
        let hash = hasher.finish() as usize;
        [&self.rows[0][hash % CELLS], &self.rows[1][(hash >> 32) % CELLS]]
    }

    /// Whether the source may hold one flow more.
    pub(super) fn allows(&self, source: [u64; 2]) -> bool {
        let gone = match &self.shadow {
            None => 0,
            Some(removed) => removed.lock().iter().filter(|other| **other == source).count() as u32,
        };
        self.cells(source).iter().any(|cell| cell.load(Ordering::Relaxed).saturating_sub(gone) < self.limit)
    }

    pub(super) fn add(&self, source: [u64; 2]) {
        if self.shadow.is_some() {
            return;
        }
        for cell in self.cells(source) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, source: [u64; 2]) {
        if let Some(removed) = &self.shadow {
            removed.lock().push(source);
            return;
        }
        for cell in self.cells(source) {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
