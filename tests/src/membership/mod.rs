//! What membership promises, measured on real daemons in namespaces. Each row has one scenario; the suite runs it small
//! and `cargo lab soak membership` in full, with the same limits.

mod canary;
mod flood;
mod forged;
mod garbage;
mod kills;
mod mesh;
mod replay;
mod restart;
mod revocation;
mod spoofed;
mod token;

use anyhow::{Result, bail};
use overlay_netns_harness::Binaries;
use serde::Serialize;

pub use mesh::{Mesh, Station};

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How it is called.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    run: fn(&Run) -> Result<Vec<Figure>>,
}

/// Every row, in the order of the soak.
pub const ROWS: &[Row] = &[
    Row { name: "revocation", about: "a member is cut off on every host, and its traffic ends", run: revocation::run },
    Row { name: "token", about: "one token used by a hundred hosts at once admits one", run: token::run },
    Row {
        name: "forged",
        about: "announcements beyond a member's grant change no route and are shown",
        run: forged::run,
    },
    Row {
        name: "spoofed",
        about: "packets with an inner source of another owner are not delivered",
        run: spoofed::run,
    },
    Row { name: "garbage", about: "garbage is not answered, crashes nothing and costs no memory", run: garbage::run },
    Row { name: "flood", about: "handshakes with a right first MAC starve neither a flow nor a join", run: flood::run },
    Row { name: "replay", about: "packets repeated and out of order arrive once each", run: replay::run },
    Row { name: "canary", about: "no byte of an inner packet is on the underlay, whatever happens", run: canary::run },
    Row { name: "kills", about: "daemons killed at random instants lose nothing and forward again", run: kills::run },
    Row { name: "restart", about: "all hosts killed and started at once find each other", run: restart::run },
];

/// The circumstances of one run of a row.
#[derive(Debug, Clone)]
pub struct Run {
    /// The programs of the daemons.
    pub binaries: Binaries,
    /// Start of the random sequence.
    pub seed: u64,
    /// How much of the full size.
    pub size: Size,
}

/// How much of the full size is done. The limits are the same for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A few of everything: for the suite.
    Short,
    /// This part, in percent.
    Percent(u64),
}

impl Run {
    /// How often something is done that is done `full` times in the full form and `short` times in the suite.
    pub(crate) fn count(&self, full: u64, short: u64) -> u64 {
        match self.size {
            Size::Short => short,
            Size::Percent(percent) => (full * percent / 100).max(1),
        }
    }
}

/// What a value must be to hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Only told.
    Told,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it must be.
    pub bound: Bound,
}

impl Figure {
    /// A value and its bound.
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str, bound: Bound) -> Figure {
        Figure { what: what.into(), value, unit, bound }
    }

    /// Whether the value is what it must be.
    pub fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
            Bound::Told => true,
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:.3} {}", self.what, self.value, self.unit)?;
        match self.bound {
            Bound::AtMost(most) => write!(f, " (at most {most})")?,
            Bound::AtLeast(least) => write!(f, " (at least {least})")?,
            Bound::Told => {}
        }
        f.write_str(if self.holds() { "" } else { " DOES NOT HOLD" })
    }
}

/// Runs one row.
pub fn run(name: &str, run: &Run) -> Result<Vec<Figure>> {
    let Some(row) = ROWS.iter().find(|row| row.name == name) else {
        bail!("no row {name}; there are {}", ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "));
    };
    (row.run)(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_on_the_wrong_side_of_its_bound_does_not_hold() {
        for (value, bound, holds) in [
            (2.0, Bound::AtMost(2.0), true),
            (2.1, Bound::AtMost(2.0), false),
            (f64::NAN, Bound::AtMost(2.0), false),
            (0.9, Bound::AtLeast(0.9), true),
            (0.8, Bound::AtLeast(0.9), false),
            (9.0, Bound::Told, true),
        ] {
            let figure = Figure::new("something", value, "s", bound);
            assert_eq!(figure.holds(), holds, "{figure}");
            assert_eq!(figure.to_string().ends_with("DOES NOT HOLD"), !holds);
        }
    }
}
