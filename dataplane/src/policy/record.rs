//! What is written down when a rule decides: a count for every rule, and an event for rules that ask for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use overlay_wire::policy::Action;

use super::Tuple;
use crate::introductions::Introductions;

/// Events kept until they are taken.
const MAX_EVENTS: usize = 64;

/// How often each rule decided, shared by the clones of one compiled policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Hits(Arc<[AtomicU64]>);

impl Hits {
    pub(super) fn new(rules: usize) -> Self {
        Self((0..rules).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn add(&self, rule: u32) {
        if let Some(count) = self.0.get(rule as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

/// A rule with `log` or `audit` decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuleEvent {
    /// The rule's place, counted from 0, in the policy of `revision`.
    pub rule: u32,
    /// The revision of the tables the policy was part of.
    pub revision: u64,
    /// What was decided about.
    pub tuple: Tuple,
    /// The decision.
    pub action: Action,
    /// The rule has the option `log`.
    pub log: bool,
    /// The rule has the option `audit`.
    pub audit: bool,
}

/// What one worker has to tell of the filter, in fixed memory: events that come when it is full are counted only.
#[derive(Debug)]
pub(crate) struct RuleLog {
    events: Vec<RuleEvent>,
    suppressed: u64,
    pub(crate) introductions: Introductions,
}

impl RuleLog {
    pub(crate) fn new() -> Self {
        Self { events: Vec::with_capacity(MAX_EVENTS), suppressed: 0, introductions: Introductions::new() }
    }

    pub(crate) fn push(&mut self, event: RuleEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.suppressed += 1;
        }
    }

    /// Moves the events to `out`; returns how many had no room since last asked.
    pub(crate) fn take(&mut self, out: &mut Vec<RuleEvent>) -> u64 {
        out.append(&mut self.events);
        std::mem::take(&mut self.suppressed)
    }
}
