//! Shared parts of the system tests.

mod certified;
mod foreign;
mod overlay;
mod shared;
mod snapshot;
mod traffic;

pub use certified::{Certified, POOL, TestJoiner, fresh_identity};
pub use foreign::{FOREIGN_V4, FOREIGN_V6, Foreign, WireguardDevice, can_use, make_key, raw_sender_v6};
pub use overlay::Overlay;
pub use shared::{SharedLab, can_make_namespaces, lab_name};
pub use snapshot::{Snapshot, resident_kib};
pub use traffic::{Capture, Conversation, Echo, Found, raw_sender, udp_socket};
