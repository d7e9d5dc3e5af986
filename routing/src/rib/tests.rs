//! The conflict rule, forged claims, foreign peers, and explanations.

use std::net::{IpAddr, Ipv4Addr};

use overlay_wire::gossip::{Grant, RouteAnnouncement};
use overlay_wire::membership::Serial;
use overlay_wire::{HostId, Prefix};
use proptest::prelude::*;

use super::*;
use crate::gossip::ForeignPrefixes;

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a valid prefix in a test")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a valid address in a test")
}

fn id(n: u8) -> HostId {
    HostId([n; 16])
}

fn member(n: u8, allow: &[&str], claims: &[&str]) -> MemberClaims {
    MemberClaims {
        host: id(n),
        name: format!("h{n}"),
        allow: allow.iter().map(|text| text.parse().expect("a valid grant")).collect(),
        authority: ClaimAuthority::Static,
        claims: claims
            .iter()
            .map(|text| {
                let route = RouteAnnouncement { prefix: prefix(text), metric: 0 };
                (route, ClaimSource::RoutesRecord { shard: 0, version: 7 })
            })
            .collect(),
    }
}

fn local(prefixes: &[&str]) -> LocalClaims {
    LocalClaims { name: "h0".into(), prefixes: prefixes.iter().map(|text| prefix(text)).collect(), announced: vec![] }
}

fn foreign(name: &str, allowed: &[&str]) -> ForeignPrefixes {
    ForeignPrefixes { name: name.into(), allowed_ips: allowed.iter().map(|text| prefix(text)).collect() }
}

fn rule_of(rib: &Rib, text: &str, owner: Owner) -> Option<Rule> {
    let claim = rib.claims().iter().find(|claim| claim.prefix == prefix(text) && claim.owner == owner)?;
    match &claim.refusal {
        Some(Refusal::Lost { rule, .. }) => Some(*rule),
        _ => None,
    }
}

#[test]
fn explicit_grant_beats_pool_grant_whatever_the_lengths() {
    let rib = Rib::build(&RibInput {
        members: vec![
            member(1, &["10.42.0.0/16 max 32"], &["10.42.2.0/25", "10.42.0.0/16"]),
            member(2, &["10.42.2.0/24"], &["10.42.2.0/24"]),
        ],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.42.2.5")), Some(Owner::Member(id(2))));
    for lost in ["10.42.2.0/25", "10.42.0.0/16"] {
        assert_eq!(rule_of(&rib, lost, Owner::Member(id(1))), Some(Rule::ExplicitBeatsPool), "{lost}");
    }
    assert_eq!(rib.owner(ip("10.42.9.9")), None, "the losing prefix is suppressed as a whole");
}

fn certified(n: u8, serial: u64, expired: Option<&[&str]>, allow: &[&str], claims: &[&str]) -> MemberClaims {
    let authority = ClaimAuthority::Certificate {
        admitted: Serial(serial),
        max_prefixes: 64,
        expired: expired.map(|kept| kept.iter().map(|text| prefix(text)).collect()),
    };
    MemberClaims { authority, ..member(n, allow, claims) }
}

#[test]
fn among_certified_members_the_first_admitted_wins_and_configured_ones_before_it() {
    let pool = &["10.42.0.0/16 max 32"][..];
    let late = || certified(1, 9, None, pool, &["10.42.2.0/25", "10.42.7.0/24"]);
    let early = || certified(5, 2, None, pool, &["10.42.2.0/24"]);
    let build = |members| Rib::build(&RibInput { members, ..RibInput::default() });
    let rib = build(vec![late(), early()]);
    assert_eq!(rib.owner(ip("10.42.2.5")), Some(Owner::Member(id(5))));
    assert_eq!(rule_of(&rib, "10.42.2.0/25", Owner::Member(id(1))), Some(Rule::LowerSerial));
    let rib = build(vec![late(), early(), member(9, pool, &["10.42.2.0/23"])]);
    assert_eq!(rib.owner(ip("10.42.2.5")), Some(Owner::Member(id(9))));
    assert_eq!(rule_of(&rib, "10.42.2.0/24", Owner::Member(id(5))), Some(Rule::StaticBeatsCertified));
    assert_eq!(rib.owner(ip("10.42.7.1")), Some(Owner::Member(id(1))), "what nobody contests stays");
}

#[test]
fn member_out_of_its_time_keeps_what_it_had_and_gets_nothing_new() {
    let grants = &["10.42.0.0/16 max 24", "10.50.1.0/24"][..];
    let claims = &["10.42.2.0/24", "10.42.3.0/24", "10.50.1.0/24"][..];
    let old = || certified(1, 1, Some(&["10.42.2.0/24"]), grants, claims);
    let build = |members| Rib::build(&RibInput { members, ..RibInput::default() });
    let rib = build(vec![old()]);
    assert_eq!(rib.owner(ip("10.42.2.1")), Some(Owner::Member(id(1))));
    assert_eq!(rib.owner(ip("10.50.1.1")), Some(Owner::Member(id(1))));
    assert_eq!(rib.owner(ip("10.42.3.1")), None);
    let refused: Vec<_> = rib.refused().map(|refused| refused.claim.refusal).collect();
    assert_eq!(refused, vec![Some(Refusal::Expired)]);
    // Whoever is in its time wins against it, though it was admitted later.
    let rib = build(vec![old(), certified(2, 7, None, &["10.0.0.0/8 max 24"], &["10.50.1.0/24", "10.42.2.0/24"])]);
    assert_eq!(rib.owner(ip("10.50.1.1")), Some(Owner::Member(id(2))));
    assert_eq!(rule_of(&rib, "10.42.2.0/24", Owner::Member(id(1))), Some(Rule::ValidBeatsExpired));
}

#[test]
fn certificate_counts_no_more_prefixes_than_it_names() {
    let mut one = certified(1, 1, None, &["10.42.0.0/16 max 24"], &["10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]);
    if let ClaimAuthority::Certificate { max_prefixes, .. } = &mut one.authority {
        *max_prefixes = 2;
    }
    let rib = Rib::build(&RibInput { members: vec![one], ..RibInput::default() });
    assert_eq!(rib.best().count(), 2);
    assert_eq!(rib.refused().map(|refused| refused.claim.refusal).collect::<Vec<_>>(), vec![Some(Refusal::TooMany)]);
}

#[test]
fn equal_grants_go_to_the_lower_host_id() {
    let pool = &["10.42.0.0/16 max 32"][..];
    let rib = Rib::build(&RibInput {
        members: vec![member(9, pool, &["10.42.2.0/24"]), member(3, pool, &["10.42.2.0/25"])],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.42.2.1")), Some(Owner::Member(id(3))));
    assert_eq!(rib.owner(ip("10.42.2.200")), None);
    assert_eq!(rule_of(&rib, "10.42.2.0/24", Owner::Member(id(9))), Some(Rule::LowerHostId));
}

#[test]
fn refused_claim_does_not_suppress_others() {
    // h1 loses to h2, so its wide claim must not take h3 down with it.
    let rib = Rib::build(&RibInput {
        members: vec![
            member(1, &["10.42.0.0/16 max 32"], &["10.42.2.0/23"]),
            member(2, &["10.42.2.0/24"], &["10.42.2.0/24"]),
            member(3, &["10.42.0.0/16 max 32"], &["10.42.3.0/24"]),
        ],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.42.3.1")), Some(Owner::Member(id(3))));
}

#[test]
fn own_prefixes_always_win_here() {
    let rib = Rib::build(&RibInput {
        local: local(&["10.42.1.0/24"]),
        foreign: vec![foreign("laptop", &["10.42.1.77/32", "10.9.0.0/16"])],
        members: vec![member(1, &["10.42.1.0/24", "0.0.0.0/0"], &["10.42.1.0/25", "10.42.1.0/24", "0.0.0.0/0"])],
    });
    assert_eq!(rib.owner(ip("10.42.1.77")), Some(Owner::Local));
    assert_eq!(rib.owner(ip("10.9.1.1")), Some(Owner::Foreign(0)));
    assert_eq!(rib.owner(ip("192.0.2.1")), None);
    assert_eq!(rule_of(&rib, "10.42.1.77/32", Owner::Foreign(0)), Some(Rule::OwnPrefixWins));
    assert_eq!(rib.refused().count(), 3);
}

#[test]
fn own_announcement_takes_nothing_from_others() {
    let mut own = local(&["10.42.1.0/24"]);
    own.announced = ["0.0.0.0/0", "192.168.7.0/24", "10.42.2.128/25"]
        .map(|text| RouteAnnouncement { prefix: prefix(text), metric: 0 })
        .to_vec();
    let rib = Rib::build(&RibInput {
        local: own,
        members: vec![member(1, &["10.42.2.0/24"], &["10.42.2.0/24"])],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.42.2.200")), Some(Owner::Member(id(1))));
    assert_eq!(rib.owner(ip("192.168.7.1")), Some(Owner::Local));
    assert_eq!(rib.owner(ip("198.51.100.1")), None, "the announced default overlaps the member's prefix");
    for lost in ["0.0.0.0/0", "10.42.2.128/25"] {
        assert_eq!(rule_of(&rib, lost, Owner::Local), Some(Rule::AnnouncementYields), "{lost}");
    }
}

#[test]
fn foreign_default_route_surrounds_members_and_own_prefixes() {
    let rib = Rib::build(&RibInput {
        local: local(&["10.42.1.0/24"]),
        foreign: vec![foreign("exit", &["0.0.0.0/0"]), foreign("site", &["10.42.2.128/25"])],
        members: vec![member(1, &["10.42.2.0/24"], &["10.42.2.0/24"])],
    });
    assert_eq!(rib.owner(ip("198.51.100.1")), Some(Owner::Foreign(0)));
    assert_eq!(rib.owner(ip("10.42.1.1")), Some(Owner::Local));
    assert_eq!(rib.owner(ip("10.42.2.1")), Some(Owner::Member(id(1))));
    assert_eq!(rib.owner(ip("10.42.2.200")), Some(Owner::Foreign(1)));
    assert_eq!(rib.refused().count(), 0);
}

#[test]
fn announcement_cannot_cut_a_piece_out_of_a_foreign_prefix() {
    let rib = Rib::build(&RibInput {
        foreign: vec![foreign("site", &["10.42.9.0/24"])],
        members: vec![member(1, &["10.42.0.0/16 max 32"], &["10.42.9.5/32", "10.42.9.0/24", "10.42.8.0/24"])],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.42.9.5")), Some(Owner::Foreign(0)));
    assert_eq!(rib.owner(ip("10.42.8.5")), Some(Owner::Member(id(1))));
    assert_eq!(rule_of(&rib, "10.42.9.5/32", Owner::Member(id(1))), Some(Rule::ConfigurationWins));
}

#[test]
fn two_foreign_peers_with_one_prefix_keep_the_first() {
    let rib = Rib::build(&RibInput {
        foreign: vec![foreign("a", &["10.9.0.0/16"]), foreign("b", &["10.9.0.0/16", "10.9.1.0/24"])],
        ..RibInput::default()
    });
    assert_eq!(rib.owner(ip("10.9.0.1")), Some(Owner::Foreign(0)));
    assert_eq!(rib.owner(ip("10.9.1.1")), Some(Owner::Foreign(1)));
    assert_eq!(rule_of(&rib, "10.9.0.0/16", Owner::Foreign(1)), Some(Rule::ConfiguredFirst));
}

#[test]
fn forged_claims_change_no_owner() {
    let honest = [
        member(2, &["10.42.2.0/24", "fd42:0:0:2::/64"], &["10.42.2.0/24", "fd42:0:0:2::/64"]),
        member(3, &["10.42.0.0/16 max 24"], &["10.42.3.0/24"]),
        member(4, &["10.42.4.0/24", "192.168.7.0/24"], &["10.42.4.0/24", "192.168.7.0/24"]),
    ];
    let before =
        Rib::build(&RibInput { local: local(&["10.42.1.0/24"]), members: honest.to_vec(), ..RibInput::default() });
    let forged = [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::/0",
        "10.0.0.0/8",
        "10.42.0.0/16",
        "10.42.0.0/15",
        "10.42.0.0/22",
        "10.42.1.0/24",
        "10.42.1.0/25",
        "10.42.1.128/25",
        "10.42.1.1/32",
        "10.42.2.0/24",
        "10.42.2.0/25",
        "10.42.2.128/25",
        "10.42.2.1/32",
        "10.42.3.0/25",
        "10.42.3.7/32",
        "10.42.4.0/24",
        "10.42.4.4/32",
        "192.168.7.0/24",
        "192.168.0.0/16",
        "192.168.7.7/32",
        "fd42::/48",
        "fd42:0:0:2::/64",
        "fd42:0:0:2::1/128",
        "127.0.0.1/32",
        "169.254.169.254/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "ff02::1/128",
        "fe80::/64",
    ];
    for text in forged {
        let mut members = honest.to_vec();
        members.push(member(0, &["10.42.5.0/24"], &[text]));
        let input = RibInput { local: local(&["10.42.1.0/24"]), members, ..RibInput::default() };
        let rib = Rib::build(&input);
        assert!(rib.best().eq(before.best()), "{text}");
        let refused: Vec<Refused> = rib.refused().collect();
        assert_eq!((refused.len(), refused[0].claim.prefix), (1, prefix(text)));
        assert!(refused[0].claim.refusal_reason().is_some());
    }
}

#[test]
fn too_many_prefixes_of_one_member_are_refused_beyond_the_limit() {
    let claims: Vec<String> = (0..100).map(|n| format!("10.42.{n}.0/24")).collect();
    let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
    let rib = Rib::build(&RibInput { members: vec![member(1, &["10.42.0.0/16"], &claims)], ..RibInput::default() });
    assert_eq!(rib.best().count(), MAX_PREFIXES_PER_OWNER);
    assert!(rib.refused().all(|refused| refused.claim.refusal == Some(Refusal::TooMany)));
}

#[test]
fn why_names_record_grant_and_the_missing_line() {
    let rib = Rib::build(&RibInput {
        members: vec![
            member(1, &["10.42.1.0/24"], &["192.168.7.0/24"]),
            member(2, &["192.168.0.0/16"], &["192.168.7.0/25"]),
        ],
        ..RibInput::default()
    });
    assert_eq!(
        rib.why(prefix("192.168.7.0/25")).to_string(),
        "192.168.7.0/25: 192.168.7.0/25 via h2 (ROUTES record of h2, shard 0, version 7; granted by allow = \
         [\"192.168.0.0/16\"])\n  refused: 192.168.7.0/24 by h1 (ROUTES record of h1, shard 0, version 7): no allow entry \
         of h1 covers 192.168.7.0/24; missing: allow = [\"192.168.7.0/24\"] for [[member]] name = \"h1\"\n"
    );
    assert_eq!(rib.why_ip(ip("203.0.113.1")).best, None);
}

#[test]
fn pool_claim_too_long_names_the_grant() {
    let rib = Rib::build(&RibInput {
        members: vec![member(1, &["10.42.0.0/16 max 24"], &["10.42.9.0/25"])],
        ..RibInput::default()
    });
    let grant: Grant = "10.42.0.0/16 max 24".parse().expect("a valid grant");
    assert_eq!(rib.claims()[0].refusal, Some(Refusal::TooLong { grant }));
}

fn any_claims() -> impl Strategy<Value = Vec<MemberClaims>> {
    let grant = prop_oneof![
        Just("10.42.0.0/16 max 24"),
        Just("10.42.0.0/16 max 32"),
        Just("10.42.1.0/24"),
        Just("10.42.0.0/20"),
        Just("0.0.0.0/0"),
    ];
    let claim = (0u32..4096, 16u8..=32)
        .prop_map(|(low, len)| Prefix::truncating(Ipv4Addr::from(0x0a2a_0000 | low).into(), len).expect("length fits"));
    let one = (proptest::collection::vec(grant, 0..3), proptest::collection::vec(claim, 0..6));
    proptest::collection::vec(one, 1..6).prop_map(|members| {
        let members = members.into_iter().zip(1u8..);
        members
            .map(|((allow, claims), n)| {
                let claims: Vec<String> = claims.iter().map(ToString::to_string).collect();
                member(n, &allow, &claims.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn order_of_members_and_claims_does_not_matter(members in any_claims(), turn in 0usize..6) {
        let mut turned = members.clone();
        let by = turn % turned.len();
        turned.rotate_left(by);
        turned.iter_mut().for_each(|member| member.claims.reverse());
        let build = |members| Rib::build(&RibInput { local: local(&["10.42.15.0/24"]), members, ..RibInput::default() });
        let (a, b) = (build(members), build(turned));
        prop_assert_eq!(a.claims(), b.claims());
    }

    #[test]
    fn claims_in_use_never_overlap_between_owners(members in any_claims()) {
        let rib = Rib::build(&RibInput { members, ..RibInput::default() });
        let best: Vec<&Claim> = rib.best().collect();
        for a in &best {
            for b in &best {
                prop_assert!(a.owner == b.owner || !a.prefix.overlaps(&b.prefix));
            }
            prop_assert!(a.grant.is_some_and(|grant| grant.permits(&a.prefix)));
        }
    }

    #[test]
    fn claims_without_a_grant_change_nothing(members in any_claims(), low in 0u32..4096, len in 0u8..=32) {
        let forged = Prefix::truncating(Ipv4Addr::from(0x0a2a_0000 | low).into(), len).expect("length fits");
        let mut more = members.clone();
        more.push(member(0, &["172.16.0.0/12"], &[&forged.to_string()]));
        let build = |members| Rib::build(&RibInput { members, ..RibInput::default() });
        prop_assert!(build(members).best().eq(build(more).best()));
    }
}
