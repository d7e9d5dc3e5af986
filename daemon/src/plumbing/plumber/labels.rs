//! Labels of this host's containers.

use overlay_control::api::LabelChange;
use overlay_wire::gossip::identities::{Identities, check_labels};

use super::{Lease, Plumber, PlumbingError};

impl Plumber {
    /// Changes the labels of an endpoint, durably; whether that changes anything.
    ///
    /// # Errors
    /// When there is no such endpoint, the labels are not acceptable, or the journal cannot be written.
    pub fn change_labels(&mut self, change: &LabelChange) -> Result<bool, PlumbingError> {
        let unknown = || PlumbingError::EndpointUnknown(change.endpoint.clone());
        let lease = self.journal.live(&change.endpoint).ok_or_else(unknown)?;
        let mut labels = lease.labels.clone();
        labels.retain(|key, _| !change.remove.contains(key));
        labels.extend(change.set.clone());
        check_labels(&labels)?;
        if labels == lease.labels {
            return Ok(false);
        }
        let lease = Lease { labels, ..lease.clone() };
        self.journal.put(lease)?;
        Ok(true)
    }

    /// The labels of this host's containers, by address; those without labels too.
    #[must_use]
    pub fn identities(&self) -> Identities {
        self.journal.identities()
    }
}
