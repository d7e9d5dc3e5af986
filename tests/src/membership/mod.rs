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

use crate::figures::{Bound, Figure, Row, Run, Size};

pub use mesh::{Mesh, Station};

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
