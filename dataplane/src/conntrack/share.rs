//! How many flows each source holds, in fixed memory and without a lock.
//!
//! A counting sketch of two rows: a source's count is the lower of its two cells, never too low. It is too high only for
//! a source that shares both cells with busy ones, which the secret hash makes unlikely and impossible to aim at.

use std::hash::Hasher;
use std::sync::atomic::{AtomicU32, Ordering};

use siphasher::sip::SipHasher13;

/// Cells per row.
const CELLS: usize = 1 << 15;

#[derive(Debug)]
pub(super) struct Shares {
    rows: [Box<[AtomicU32]>; 2],
    secret: [u8; 16],
    limit: u32,
}

impl Shares {
    pub(super) fn new(limit: u32, secret: [u8; 16]) -> Self {
        let row = || (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        Self { rows: [row(), row()], secret, limit }
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
        self.cells(source).iter().any(|cell| cell.load(Ordering::Relaxed) < self.limit)
    }

    pub(super) fn add(&self, source: [u64; 2]) {
        for cell in self.cells(source) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, source: [u64; 2]) {
        for cell in self.cells(source) {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
