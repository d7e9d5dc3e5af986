//! The last things that happened, for the report of a broken invariant.

use std::collections::VecDeque;
use std::time::Duration;

/// Lines kept.
const KEPT: usize = 120;

/// A ring of lines.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: VecDeque<(Duration, Line)>,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub(crate) enum Line {
    /// A state machine reported this.
    Event(usize, overlay_routing::gossip::GossipEvent),
    /// A fault was made or undone.
    Fault(String),
}

impl Trace {
    pub(crate) fn push(&mut self, at: Duration, line: Line) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back((at, line));
    }

    /// The lines as text, oldest first.
    pub(crate) fn text(&self) -> String {
        let line = |(at, line): &(Duration, Line)| match line {
            Line::Event(node, event) => format!("  {:>10.3} h{} {event:?}\n", at.as_secs_f64(), node + 1),
            Line::Fault(what) => format!("  {:>10.3} {what}\n", at.as_secs_f64()),
        };
        self.lines.iter().map(line).collect()
    }
}
