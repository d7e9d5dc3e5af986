//! What members are asked on demand, and those who wait for what they say.

use std::time::Duration;

use overlay_routing::gossip::GossipEvent;
use overlay_wire::HostId;
use tokio::sync::mpsc;

use crate::core::unix_ms;

/// What members are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether they answer.
    Reach,
    /// What their clocks say.
    Clock,
}

/// What a member said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It answers.
    Reached {
        /// The member.
        host: HostId,
        /// How long the answer took, where that was measured.
        round_trip: Option<Duration>,
    },
    /// Its clock.
    Clock {
        /// The member.
        host: HostId,
        /// How far it is ahead of ours, in milliseconds.
        ahead_ms: i64,
    },
    /// It cannot be asked for its clock: it is not reachable, or its release does not tell.
    NoClock {
        /// The member.
        host: HostId,
    },
}

/// Those who wait for what members say.
#[derive(Debug, Default)]
pub struct Listeners(Vec<mpsc::Sender<Told>>);

impl Listeners {
    /// Adds one; it listens until its receiver is dropped.
    pub fn add(&mut self, listener: mpsc::Sender<Told>) {
        self.0.retain(|listener| !listener.is_closed());
        self.0.push(listener);
    }

    /// Hands on what a member said, if the event is that.
    pub fn tell(&mut self, event: &GossipEvent) {
        let told = match event {
            GossipEvent::CheckAnswered { host, round_trip } => {
                Told::Reached { host: *host, round_trip: Some(*round_trip) }
            }
            GossipEvent::MemberUp { host } => Told::Reached { host: *host, round_trip: None },
            GossipEvent::ClockTold { host, unix_ms: theirs, round_trip } => {
                Told::Clock { host: *host, ahead_ms: ahead_ms(*theirs, unix_ms(), *round_trip) }
            }
            _ => return,
        };
        // A listener that is gone, or so slow that its queue is full, hears no more.
        self.0.retain(|listener| listener.try_send(told).is_ok());
    }
}

/// How far another clock is ahead that was looked at about half a round trip ago.
fn ahead_ms(theirs: u64, now: u64, round_trip: Duration) -> i64 {
    let then = now.saturating_sub(round_trip.as_millis() as u64 / 2);
    theirs.wrapping_sub(then).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_is_signed_and_allows_for_the_way_back() {
        let trip = Duration::from_millis(400);
        assert_eq!(ahead_ms(1_000_000, 1_000_000, trip), 200);
        assert_eq!(ahead_ms(999_800, 1_000_000, trip), 0);
        assert_eq!(ahead_ms(0, 1_000_000, Duration::ZERO), -1_000_000);
    }

    #[test]
    fn listener_hears_until_it_goes() {
        let mut listeners = Listeners::default();
        let (sender, mut receiver) = mpsc::channel(4);
        listeners.add(sender);
        let host = HostId([7; 16]);
        listeners.tell(&GossipEvent::RoutesChanged);
        listeners.tell(&GossipEvent::MemberUp { host });
        assert_eq!(receiver.try_recv().ok(), Some(Told::Reached { host, round_trip: None }));
        assert!(receiver.try_recv().is_err(), "other events are nobody's answer");
        drop(receiver);
        listeners.tell(&GossipEvent::MemberUp { host });
        assert!(listeners.0.is_empty());
    }
}
