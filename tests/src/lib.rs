//! Shared parts of the system tests.

mod certified;
pub mod containers;
mod cookies;
pub mod figures;
mod foreign;
mod forge;
mod handshakes;
mod impostor;
pub mod membership;
mod outer;
mod overlay;
mod shared;
pub mod sim;
mod snapshot;
mod traffic;
mod wireguard;

pub use certified::{Certified, POOL, TestJoiner, fresh_identity};
pub use cookies::{Cookies, Flood};
pub use foreign::{FOREIGN_V4, FOREIGN_V6, Foreign, make_key};
pub use forge::{ipv4, udp};
pub use handshakes::Initiations;
pub use impostor::{Impostor, kept_membership, kept_records, policy_pieces};
pub use outer::{ECN_COMBINED, Outer, wireguard_kind};
pub use overlay::Overlay;
pub use shared::{SharedLab, can_have, can_make_namespaces, can_use, lab_name};
pub use snapshot::{Snapshot, resident_kib};
pub use traffic::{Capture, Conversation, Echo, Found, raw_sender, raw_sender_v6, udp_socket};
pub use wireguard::{Program, WireguardDevice};
