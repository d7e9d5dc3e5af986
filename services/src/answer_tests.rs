use std::str::FromStr as _;

use domain::base::Name;
use proptest::prelude::*;

use super::*;
use crate::zone::tests::zone;
use crate::{is_answer, question, with_id};

const UDP: Transport = Transport::Udp { ceiling: 1232 };

fn query(name: &str, kind: Rtype, size: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut questions = builder.question();
    questions.push((Name::<Vec<u8>>::from_str(name).unwrap(), kind)).unwrap();
    let mut additional = questions.additional();
    if let Some(size) = size {
        let written = additional.opt(|opt| {
            opt.set_udp_payload_size(size);
            Ok(())
        });
        written.unwrap();
    }
    additional.finish()
}

fn reply(query: &[u8], transport: Transport) -> Message<Vec<u8>> {
    match answer(&zone(), query, transport, 0) {
        Answered::Reply(bytes) => Message::from_octets(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn counts(message: &Message<Vec<u8>>) -> (u16, u16, u16) {
    let counts = message.header_counts();
    (counts.ancount(), counts.nscount(), counts.arcount())
}

#[test]
fn each_question_has_its_code_and_sections() {
    for (name, kind, rcode, sections) in [
        ("web.ctr.overlay.internal.", Rtype::A, Rcode::NOERROR, (2, 0, 0)),
        ("web.ctr.overlay.internal.", Rtype::AAAA, Rcode::NOERROR, (1, 0, 0)),
        ("h1.node.overlay.internal.", Rtype::A, Rcode::NOERROR, (1, 0, 0)),
        // Nothing of this type: not the same as no such name.
        ("only6.ctr.overlay.internal.", Rtype::A, Rcode::NOERROR, (0, 1, 0)),
        ("web.ctr.overlay.internal.", Rtype::MX, Rcode::NOERROR, (0, 1, 0)),
        ("ctr.overlay.internal.", Rtype::A, Rcode::NOERROR, (0, 1, 0)),
        ("none.ctr.overlay.internal.", Rtype::A, Rcode::NXDOMAIN, (0, 1, 0)),
        ("overlay.internal.", Rtype::SOA, Rcode::NOERROR, (1, 0, 0)),
        ("overlay.internal.", Rtype::NS, Rcode::NOERROR, (1, 0, 0)),
        ("4.1.42.10.in-addr.arpa.", Rtype::PTR, Rcode::NOERROR, (1, 0, 0)),
        ("9.1.42.10.in-addr.arpa.", Rtype::PTR, Rcode::NXDOMAIN, (0, 1, 0)),
        ("web.ctr.overlay.internal.", Rtype::ANY, Rcode::NOERROR, (1, 0, 0)),
        ("web.ctr.overlay.internal.", Rtype::AXFR, Rcode::REFUSED, (0, 0, 0)),
        ("0a2a0107.addr.overlay.internal.", Rtype::A, Rcode::NOERROR, (1, 0, 0)),
    ] {
        let message = reply(&query(name, kind, None), UDP);
        assert_eq!((message.header().rcode(), counts(&message)), (rcode, sections), "{name} {kind}");
        assert!(message.header().qr() && message.header().id() == 0x1234 && message.header().rd());
        assert!(!message.header().tc(), "{name} {kind}");
    }
    for elsewhere in ["example.org.", "1.2.0.192.in-addr.arpa.", "."] {
        assert_eq!(answer(&zone(), &query(elsewhere, Rtype::A, None), UDP, 0), Answered::Elsewhere);
    }
}

#[test]
fn question_comes_back_in_its_own_letters() {
    let asked = query("WeB.CtR.overlay.internal.", Rtype::A, None);
    let message = reply(&asked, UDP);
    assert!(message.as_slice().windows(4).any(|bytes| bytes == b"\x03WeB"));
}

#[test]
fn edns_is_answered_with_edns_only_and_its_newer_versions_are_refused() {
    assert_eq!(counts(&reply(&query("web.ctr.overlay.internal.", Rtype::A, Some(1232)), UDP)).2, 1);
    let mut builder = MessageBuilder::new_vec().question();
    builder.push((Name::<Vec<u8>>::from_str("web.ctr.overlay.internal.").unwrap(), Rtype::A)).unwrap();
    let mut additional = builder.additional();
    let written = additional.opt(|opt| {
        opt.set_version(1);
        Ok(())
    });
    written.unwrap();
    let message = reply(&additional.finish(), UDP);
    assert_eq!((message.opt_rcode(), counts(&message)), (OptRcode::BADVERS, (0, 0, 1)));
}

#[test]
fn wrong_messages_have_their_codes_or_no_answer() {
    let good = query("web.ctr.overlay.internal.", Rtype::A, None);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(answer(&zone(), &response, UDP, 0), Answered::Nothing);
    assert_eq!(answer(&zone(), &good[..11], UDP, 0), Answered::Nothing);
    let mut status = good.clone();
    status[2] |= 2 << 3;
    assert_eq!(reply(&status, UDP).header().rcode(), Rcode::NOTIMP);
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(reply(&two, UDP).header().rcode(), Rcode::FORMERR);
    assert_eq!(reply(&good[..20], UDP).header().rcode(), Rcode::FORMERR);
    let mut chaos = good.clone();
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(reply(&chaos, UDP).header().rcode(), Rcode::REFUSED);
    // A compression pointer to itself.
    let mut circle = good[..12].to_vec();
    circle.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(reply(&circle, UDP).header().rcode(), Rcode::FORMERR);
}

#[test]
fn answer_that_does_not_fit_is_cut_at_whole_records_and_says_so() {
    let mut zone = zone();
    let many: Vec<std::net::IpAddr> = (0..200u8).map(|n| std::net::IpAddr::from([10, 42, 9, n])).collect();
    zone.add_container("many", &many);
    let name = "many.ctr.overlay.internal.";
    for (size, transport, records, truncated) in [
        (None, UDP, (512 - 43) / 16, true),
        (Some(4096), UDP, (1232 - 43 - 11) / 16, true),
        (Some(4096), Transport::Udp { ceiling: 4096 }, 200, false),
        (None, Transport::Tcp, 200, false),
    ] {
        let Answered::Reply(bytes) = answer(&zone, &query(name, Rtype::A, size), transport, 5) else { panic!() };
        let message = Message::from_octets(bytes).unwrap();
        assert_eq!(usize::from(counts(&message).0), records, "{size:?} {transport:?}");
        assert_eq!(message.header().tc(), truncated);
        let limit = if transport == Transport::Tcp { MAX_TCP_BYTES } else { usize::from(size.unwrap_or(512)) };
        assert!(message.as_slice().len() <= limit);
    }
}

#[test]
fn answers_are_known_by_id_and_question() {
    let asked = query("Example.org.", Rtype::A, None);
    let (id, wanted) = question(&asked).unwrap();
    let moved = with_id(&query("example.ORG.", Rtype::A, None), 99);
    assert_eq!((id, question(&moved).unwrap()), (0x1234, (99, wanted.clone())));
    let mut response = moved.clone();
    response[2] |= 0x80;
    assert!(is_answer(&response, 99, &wanted));
    assert!(!is_answer(&response, 98, &wanted) && !is_answer(&moved, 99, &wanted));
    let mut other = query("example.net.", Rtype::A, None);
    other[2] |= 0x80;
    assert!(!is_answer(&other, 0x1234, &wanted));
    assert_eq!(Message::from_octets(failure(&asked, 2).unwrap()).unwrap().header().rcode(), Rcode::SERVFAIL);
    assert_eq!(failure(&response, 2), None);
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_within_bounds_or_none(
        head in proptest::collection::vec(any::<u8>(), 0..80),
        cut in 0usize..60,
        name in "(web|h1|[a-z0-9]{1,10})\\.(ctr|node|addr)\\.overlay\\.internal\\.",
    ) {
        let mut bytes = query(&name, Rtype::A, Some(900));
        bytes.truncate(cut);
        bytes.extend(head);
        for transport in [UDP, Transport::Tcp] {
            if let Answered::Reply(reply) = answer(&zone(), &bytes, transport, 3) {
                let most = if transport == UDP { 1232 } else { MAX_TCP_BYTES };
                prop_assert!(reply.len() <= most && reply.len() >= 12 && reply[2] & 0x80 != 0);
            }
        }
    }
}

#[test]
fn question_that_points_into_the_header_is_not_passed_on() {
    let plain = query("example.org", Rtype::A, None);
    assert!(question(&plain).is_some(), "the control");
    let mut pointing = plain[..12].to_vec();
    pointing.extend([0xc0, 0, 0, 1, 0, 1]);
    assert_eq!(question(&pointing), None, "another id would make it another name");
    assert_eq!(question(&plain[..20]), None);
}
