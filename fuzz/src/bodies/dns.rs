//! Bodies over messages of the domain name system.

use std::sync::OnceLock;

use overlay_services::{
    Answered, MAX_TCP_BYTES, NAME_BITS_BYTES, Transport, Zone, answer, as_asked, essence, failure, is_answer, question,
    with_case, with_id,
};

fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let prefixes = ["10.42.0.0/16", "fd42::/48"].map(|prefix| prefix.parse().expect("a prefix"));
        let own = ["10.42.1.1", "fd42:0:0:1::1"].map(|ip| ip.parse().expect("an address"));
        let mut zone = Zone::new("overlay.internal", &prefixes, &own, 1).expect("a domain");
        zone.add_host("h1", &own);
        let many: Vec<_> = (0..200u8).map(|last| std::net::IpAddr::from([10, 42, 7, last])).collect();
        zone.add_container("many", &many);
        zone.add_container("web", &many[..1]);
        zone
    })
}

/// A query and a would-be answer: whatever comes, an answer is a response of at most the size that was asked for.
pub fn message(bytes: &[u8]) {
    for (transport, most) in [
        (Transport::Udp { ceiling: 1232 }, 1232),
        (Transport::Udp { ceiling: 0 }, 512),
        (Transport::Tcp, MAX_TCP_BYTES),
    ] {
        if let Answered::Reply(reply) = answer(zone(), bytes, transport, bytes.len()) {
            assert!(reply.len() >= 12 && reply.len() <= most, "{} bytes over {transport:?}", reply.len());
            assert_eq!((reply[..2] == bytes[..2], reply[2] & 0x80), (true, 0x80));
            // Nothing at all is never the whole answer to a question that has one.
            assert!(reply[2] & 2 == 0 || transport != Transport::Tcp);
            assert_eq!(answer(zone(), &reply, transport, 0), Answered::Nothing, "no answer to an answer");
        }
    }
    if let Some(reply) = failure(bytes, 2) {
        assert!(reply.len() <= 512 && reply[3] & 15 == 2);
    }
    let spelled = with_case(bytes, &[0xa5; NAME_BITS_BYTES]);
    assert_eq!((spelled.len(), essence(&spelled)), (bytes.len(), essence(bytes)));
    assert_eq!(as_asked(&spelled, bytes), bytes);
    if let Some((id, asked)) = question(bytes) {
        assert_eq!(question(&spelled).map(|(_, question)| question), Some(asked.clone()));
        let moved = with_id(bytes, id ^ 0x5555);
        assert_eq!(question(&moved), Some((id ^ 0x5555, asked.clone())));
        assert!(!is_answer(&moved, id, &asked));
    }
}
