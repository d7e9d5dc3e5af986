//! Announcing the networks this host takes part in.

use std::time::Instant;

use overlay_control::{ApiError, Code};

use super::Director;

impl Director {
    /// Announces what the plumbing has; in force on this host when it returns.
    pub(super) fn publish_networks(&mut self) -> Result<(), ApiError> {
        let own = self.core.plumbing.own_networks();
        let published = self.gossip.publish_networks(&own, Instant::now());
        self.drain(true);
        published.map_err(|error| {
            ApiError::new(
                Code::Invalid,
                "the networks of this host cannot be announced",
                error.to_string(),
                "remove networks that are not used: `overlayctl network list`",
            )
        })
    }
}
