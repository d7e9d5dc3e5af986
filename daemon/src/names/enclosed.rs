//! Containers without a way to the outside: a question that is passed on would be one, so they get names of ours alone
//! (CVE-2024-29018 is the case of an engine that passed them on).

use std::net::IpAddr;
use std::sync::Arc;

use crate::core::Core;

/// The containers of internal networks.
#[derive(Debug, Clone)]
pub(crate) struct Enclosed(Arc<Core>);

impl Enclosed {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Whether a client is one of them: by the network whose block it is in, or by its own lease, as an engine asked.
    pub(super) fn contains(&self, client: IpAddr) -> bool {
        let view = self.0.view.load();
        let mut internal = view.networks.iter().filter(|(_, network)| network.options.internal);
        internal.any(|(_, network)| network.blocks().any(|block| block.contains(client)))
            || self.0.plumbing.enclosed().contains(&client)
    }
}
