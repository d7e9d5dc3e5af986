//! Segmentation and coalescing offloads: what turns one super-packet into packets and packets into one super-packet.
//!
//! A TUN device with a virtio-net header hands over up to 64 KiB of one flow in one read (TSO, USO) and takes the same
//! in one write (GRO). The cuts are those the kernel would make (`net/ipv4/tcp_offload.c` states the rules in code; the
//! virtio 1.2 specification, section 5.1.6, the header).

pub mod coalesce;
pub mod segment;
pub mod vnet;

pub use coalesce::{Coalescer, Entry};
pub use segment::{Segments, complete_checksum};
pub use vnet::{GsoKind, VnetHeader};

/// Why a super-packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The buffer is shorter than a virtio-net header.
    #[error("virtio-net header is cut: {0} bytes")]
    HeaderCut(usize),
    /// The segmentation kind is not one the device was told we take.
    #[error("unknown segmentation kind {0}")]
    UnknownKind(u8),
    /// The segmentation kind does not fit the packet's protocol.
    #[error("segmentation kind does not fit protocol {protocol}")]
    WrongProtocol {
        /// The packet's upper-layer protocol.
        protocol: u8,
    },
    /// The segment size is zero.
    #[error("segment size is zero")]
    ZeroSegment,
    /// The checksum range lies outside the packet.
    #[error("checksum field at {start}+{offset} lies outside {len} bytes")]
    ChecksumRange {
        /// Where summing starts.
        start: u16,
        /// The checksum field, counted from `start`.
        offset: u16,
        /// The packet's length.
        len: usize,
    },
    /// The packet's own length field differs from the bytes read.
    #[error("packet says {stated} bytes, {available} were read")]
    Length {
        /// What the IP header says.
        stated: usize,
        /// What was read.
        available: usize,
    },
}
