//! What the packet path answers to the sender of a dropped packet.

use overlay_wire::icmp;
use overlay_wire::packet::{Headers, Transport};

use crate::tables::Tables;
use crate::verdict::Reply;

/// What to tell the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Policy forbids it: a TCP reset, else ICMP "administratively prohibited".
    Rejected,
    /// Nobody owns the destination.
    Unreachable,
    /// The packet exceeds this MTU.
    TooBig(u16),
}

/// Writes the answer; false when none may be sent. ICMP errors come from the host's own address.
pub(crate) fn write(tables: &Tables, packet: &[u8], headers: &Headers, answer: Answer, reply: &mut Reply) -> bool {
    let reset = answer == Answer::Rejected && matches!(headers.transport, Transport::Tcp(_));
    reply.len = match (tables.host_address(headers.src), answer) {
        _ if reset => icmp::build_tcp_reset(headers, &mut reply.buf),
        (None, _) => 0,
        (Some(source), Answer::Rejected) => icmp::build_admin_prohibited(packet, headers, source, &mut reply.buf),
        (Some(source), Answer::Unreachable) => {
            icmp::build_error(packet, headers, source, icmp::IcmpError::HostUnreachable, &mut reply.buf)
        }
        (Some(source), Answer::TooBig(mtu)) => icmp::build_too_big(packet, headers, source, mtu, &mut reply.buf),
    };
    reply.len != 0
}
