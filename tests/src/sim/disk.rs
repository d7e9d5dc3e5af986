//! The disk of one host: the boot epoch, and what a crash can do to it.
//!
//! The daemon writes the epoch with fsync and rename before it uses it, so a crash keeps it; a damaged or lost file makes
//! the next run start at the wall clock.

use std::time::Duration;

/// What happens to the file at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Nothing: it was synced.
    None,
    /// The file is torn or gone.
    Lost,
}

/// The wall clock of a host when the simulation begins, in milliseconds.
pub(crate) const WALL_CLOCK_START: u64 = 1_800_000_000_000;

/// The state file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    epoch: Option<u64>,
}

impl Disk {
    /// Draws the boot epoch of the next run and stores it, as the daemon does.
    pub(crate) fn next_epoch(&mut self, now: Duration) -> u64 {
        let clock = WALL_CLOCK_START + now.as_millis() as u64;
        let next = clock.max(self.epoch.map_or(0, |last| last + 1));
        self.epoch = Some(next);
        next
    }

    /// What a crash leaves.
    pub(crate) fn crash(&mut self, damage: Damage) {
        if damage == Damage::Lost {
            self.epoch = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_grows_over_crashes_also_without_the_file() {
        let mut disk = Disk::default();
        let first = disk.next_epoch(Duration::ZERO);
        disk.crash(Damage::None);
        let second = disk.next_epoch(Duration::ZERO);
        disk.crash(Damage::Lost);
        let third = disk.next_epoch(Duration::from_secs(1));
        assert!(first < second && second < third);
    }
}
