//! What the packet path says of its own decisions to whoever listens. Where nobody does, nothing of it is compiled in.

use std::fmt;

use overlay_wire::Mtu;

use crate::conntrack::{Direction, Entry, FlowState, state_of};
use crate::path::{End, Exit, Path};
use crate::policy::Decision;
use crate::tables::Route;

/// One check of the packet path, in the order in which packets pass them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Stage {
    /// Addresses, options and messages that never belong on the overlay.
    #[default]
    Early,
    /// The owners of source and destination.
    Path,
    /// Fragments of a datagram.
    Fragment,
    /// The flow the packet belongs to.
    Flow,
    /// The packet filter.
    Policy,
    /// Room in the flow table.
    Table,
    /// The size the peer takes.
    Size,
    /// Limits on rates.
    Rate,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Early => "addresses",
            Self::Path => "path",
            Self::Fragment => "fragment",
            Self::Flow => "flow",
            Self::Policy => "policy",
            Self::Table => "table",
            Self::Size => "size",
            Self::Rate => "rate",
        })
    }
}

/// The flow that a packet was found to belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowNote {
    /// Its state before the packet.
    pub state: FlowState,
    /// Whether the packet goes against the direction of the flow's first one.
    pub is_reply: bool,
}

impl FlowNote {
    pub(crate) fn of(entry: &Entry, direction: Direction) -> Self {
        Self { state: state_of(entry), is_reply: direction == Direction::Reply }
    }
}

/// How a packet compares to the size its peer takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeNote {
    /// The largest IP packet after segmentation.
    pub size: usize,
    /// What the peer takes.
    pub mtu: Mtu,
}

/// What the packet path found out about one packet. Every check before [`reached`](Self::reached) let it pass; the verdict
/// tells how that one ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Notes {
    /// The last check that was made.
    pub reached: Stage,
    /// The owner of the source, once looked up.
    pub source: Option<Option<Route>>,
    /// The owner of the destination, once looked up.
    pub target: Option<Option<Route>>,
    /// The kind of place the two ends are, where there is a way.
    pub ends: Option<(End, End)>,
    /// The flow it belongs to; `None` for the first packet of a flow.
    pub flow: Option<FlowNote>,
    /// What the filter says to its flow.
    pub decision: Option<Decision>,
    /// How its size compares; `None` where nothing is encapsulated.
    pub size: Option<SizeNote>,
    /// The limit that refused it, as [`RateTable`](crate::RateTable) counts them.
    pub limit: Option<u32>,
}

impl Notes {
    pub(crate) fn way(&mut self, path: &Path) {
        self.ends = Some((path.from, path.to));
        if let Exit::Peer(peer) = path.exit {
            self.target = Some(Some(Route::Peer(peer)));
        }
    }
}

/// Listens to the packet path.
pub(crate) trait Recorder {
    /// Whether the packet is real: rules count it and limits are charged.
    const IS_REAL: bool;

    /// Writes down what `write` has to say.
    fn note(&mut self, write: impl FnOnce(&mut Notes));
}

/// Nobody listens.
pub(crate) struct Silent;

impl Recorder for Silent {
    const IS_REAL: bool = true;

    #[inline(always)]
    fn note(&mut self, _write: impl FnOnce(&mut Notes)) {}
}

impl Recorder for Notes {
    const IS_REAL: bool = true;

    #[inline]
    fn note(&mut self, write: impl FnOnce(&mut Notes)) {
        write(self);
    }
}

/// Listens to a decision about a packet that is not sent.
#[derive(Default)]
pub(crate) struct Rehearsal(pub(crate) Notes);

impl Recorder for Rehearsal {
    const IS_REAL: bool = false;

    #[inline]
    fn note(&mut self, write: impl FnOnce(&mut Notes)) {
        write(&mut self.0);
    }
}
