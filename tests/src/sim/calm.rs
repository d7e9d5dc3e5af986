//! After the faults: a cluster settles, and then it is quiet (S4).

use std::time::Duration;

use super::referee::Violation;
use super::world::World;

/// A cluster has settled so long after the faults.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);
/// A quiet cluster of up to a few hundred hosts sends no more than this per host and second.
pub(crate) const QUIET_RATE: f64 = 30.0;
/// How long is listened whether it is quiet.
const LISTENED: Duration = Duration::from_secs(20);

impl World {
    /// Waits until all of so many honest hosts answer each other and hold the same records; how long it took.
    ///
    /// # Errors
    /// When they do not in time (S4), and at the first broken invariant.
    pub(crate) fn require_settled(&mut self, honest: usize) -> Result<Duration, Box<Violation>> {
        let all_up = |world: &World| {
            world.nodes.iter().filter_map(|node| node.engine()).all(|engine| engine.members_answering() + 1 >= honest)
        };
        let step = Duration::from_millis(100);
        let settled = self.run_to(LONGEST, step, |world| all_up(world) && world.same_records())?;
        settled.ok_or_else(|| {
            let equal = self.same_records();
            self.violation(("S4", format!("not settled after {LONGEST:?} of calm; same records: {equal}")))
        })
    }

    /// Listens to a settled cluster; the datagrams per host and second.
    ///
    /// # Errors
    /// When they are too many (S4), and at the first broken invariant.
    pub(crate) fn require_quiet(&mut self) -> Result<f64, Box<Violation>> {
        let sent = |world: &World| world.traffic().iter().map(|traffic| traffic.datagrams).sum::<u64>();
        let before = sent(self);
        self.run_for(LISTENED)?;
        let rate = (sent(self) - before) as f64 / LISTENED.as_secs_f64() / self.settings.nodes as f64;
        if rate > QUIET_RATE {
            return Err(self.violation(("S4", format!("{rate:.1} datagrams per host and second when quiet"))));
        }
        Ok(rate)
    }
}
