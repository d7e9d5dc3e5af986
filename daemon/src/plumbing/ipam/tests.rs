//! Which address and which block are given: cases, and properties over long series of requests.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn prefixes(list: &[&str]) -> Vec<Prefix> {
    list.iter().map(|p| p.parse().unwrap()).collect()
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

fn space(own: &[&str], taken: &[&str]) -> Space {
    let holder = |address: IpAddr| (address, Holder::Endpoint("other".into()));
    Space { own: prefixes(own), taken: addresses(taken).into_iter().map(holder).collect(), ..Space::default() }
}

fn with_blocks(own: &[&str], blocks: &[(&str, &str)]) -> Space {
    let blocks = blocks.iter().map(|(network, block)| ((*network).to_owned(), block.parse().unwrap())).collect();
    Space { blocks, ..space(own, &[]) }
}

#[test]
fn fresh_prefixes_give_the_fifth_address_of_each_family() {
    let got = space(&["10.42.1.0/24", "fd42:0:0:1::/64"], &[]).allocate(DEFAULT_NETWORK, &[]).unwrap();
    assert_eq!(got.addresses, addresses(&["10.42.1.4", "fd42:0:0:1::4"]));
    assert!(got.carved.is_empty());
}

#[test]
fn gap_is_filled_before_the_end() {
    let got = space(&["10.42.1.0/24"], &["10.42.1.4", "10.42.1.6"]).allocate(DEFAULT_NETWORK, &[]).unwrap();
    assert_eq!(got.addresses, addresses(&["10.42.1.5"]));
}

#[test]
fn full_prefix_goes_on_in_the_next_and_then_refuses_with_numbers() {
    let own = ["10.42.1.0/29", "10.42.9.0/29"];
    let first = ["10.42.1.4", "10.42.1.5", "10.42.1.6"];
    assert_eq!(space(&own, &first).allocate(DEFAULT_NETWORK, &[]).unwrap().addresses, addresses(&["10.42.9.4"]));
    let all = [&first[..], &["10.42.9.4", "10.42.9.5", "10.42.9.6"]].concat();
    let error = space(&own, &all).allocate(DEFAULT_NETWORK, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no free address for network default in 10.42.9.0/29: 6 in use, 0 resting after use, 0 reserved"
    );
    let one = space(&["10.42.1.1/32"], &[]).allocate(DEFAULT_NETWORK, &[]);
    assert!(matches!(one, Err(PlumbingError::PrefixExhausted { .. })));
    assert!(matches!(space(&[], &[]).allocate(DEFAULT_NETWORK, &[]), Err(PlumbingError::NoOwnPrefix)));
}

#[test]
fn claims_outside_reserved_or_taken_are_refused_with_the_holder() {
    let space = space(&["10.42.1.0/24"], &["10.42.1.9"]);
    for bad in ["10.42.1.0", "10.42.1.1", "10.42.1.3", "10.42.1.255", "10.42.1.9"] {
        let refused = space.claim(DEFAULT_NETWORK, &[], &addresses(&[bad]));
        assert!(matches!(refused, Err(PlumbingError::AddressRefused { .. })), "{bad}");
    }
    let taken = space.claim(DEFAULT_NETWORK, &[], &addresses(&["10.42.1.9"])).unwrap_err();
    assert_eq!(taken.to_string(), "address 10.42.1.9 cannot be given: endpoint other has it");
    let outside = space.claim(DEFAULT_NETWORK, &[], &addresses(&["10.42.2.9"]));
    assert!(matches!(outside, Err(PlumbingError::AddressElsewhere { .. })));
    assert!(space.claim(DEFAULT_NETWORK, &[], &addresses(&["10.42.1.8"])).is_ok());
    assert!(space.claim(DEFAULT_NETWORK, &[], &addresses(&["10.42.1.8", "10.42.1.10"])).is_err());
}

#[test]
fn network_gets_a_block_of_each_family_from_the_upper_end() {
    let space = space(&["10.42.1.0/24", "fd42:0:0:1::/64"], &["10.42.1.230"]);
    let got = space.allocate("web", &[]).unwrap();
    assert_eq!(got.carved, prefixes(&["10.42.1.192/27", "fd42:0:0:1:ffff::/80"]));
    assert_eq!(got.addresses, addresses(&["10.42.1.192", "fd42:0:0:1:ffff::"]));
}

#[test]
fn network_with_room_gets_no_block_and_a_full_one_does() {
    let own = ["10.42.1.0/28"];
    let mut space = with_blocks(&own, &[("web", "10.42.1.14/31")]);
    space.taken.insert("10.42.1.14".parse().unwrap(), Holder::Endpoint("a".into()));
    // The last address of the prefix is nobody's, so the block is full.
    let got = space.allocate("web", &[]).unwrap();
    assert_eq!((got.carved, got.addresses), (prefixes(&["10.42.1.12/31"]), addresses(&["10.42.1.12"])));
    let got = with_blocks(&own, &[("web", "10.42.1.14/31")]).allocate("web", &[]).unwrap();
    assert_eq!((got.carved, got.addresses), (vec![], addresses(&["10.42.1.14"])));
}

#[test]
fn default_network_leaves_blocks_alone_and_skips_large_ones_at_once() {
    let space = with_blocks(&["10.42.1.0/29", "fd42::/64"], &[("web", "10.42.1.4/31"), ("web", "fd42::/80")]);
    let got = space.allocate(DEFAULT_NETWORK, &[]).unwrap();
    assert_eq!(got.addresses, addresses(&["10.42.1.6", "fd42:0:0:0:1::"]));
    let refused = space.claim(DEFAULT_NETWORK, &[], &addresses(&["10.42.1.4"])).unwrap_err();
    assert!(refused.to_string().contains("10.42.1.4/31 is network web's here"), "{refused}");
    assert!(space.claim("web", &[], &addresses(&["10.42.1.4"])).is_ok());
}

#[test]
fn claimed_address_of_a_network_carves_the_block_around_it() {
    let space = space(&["10.42.1.0/24"], &["10.42.1.40"]);
    let got = space.claim("web", &[], &addresses(&["10.42.1.70"])).unwrap();
    assert_eq!(got.carved, prefixes(&["10.42.1.64/27"]));
    // Containers of the default network live there already.
    assert!(space.claim("web", &[], &addresses(&["10.42.1.41"])).is_err());
}

#[test]
fn pool_confines_blocks_and_families() {
    let own = ["10.42.1.0/24", "fd42:0:0:1::/64"];
    let got = space(&own, &[]).allocate("web", &prefixes(&["10.42.1.64/26"])).unwrap();
    assert_eq!(got.carved, prefixes(&["10.42.1.96/27"]));
    assert_eq!(got.addresses, addresses(&["10.42.1.96"]));
    let wide = space(&own, &[]).allocate("web", &prefixes(&["10.42.0.0/16"])).unwrap();
    assert_eq!(wide.carved, prefixes(&["10.42.1.224/27"]));
    let small = space(&own, &[]).allocate("web", &prefixes(&["10.42.1.8/30"])).unwrap();
    assert_eq!(small.carved, prefixes(&["10.42.1.8/30"]));
    let elsewhere = space(&own, &[]).allocate("web", &prefixes(&["10.42.2.0/24"]));
    assert!(matches!(elsewhere, Err(PlumbingError::OutsidePool { .. })));
    assert!(space(&own, &[]).claim("web", &prefixes(&["10.42.1.64/26"]), &addresses(&["10.42.1.200"])).is_err());
}

#[test]
fn usage_adds_up_to_the_prefix() {
    let mut space = with_blocks(&["10.42.1.0/24"], &[("web", "10.42.1.224/27"), ("db", "10.42.1.192/27")]);
    space.taken.insert("10.42.1.4".parse().unwrap(), Holder::Endpoint("a".into()));
    space.taken.insert("10.42.1.225".parse().unwrap(), Holder::Resting("b".into(), 5));
    let usage = space.usage();
    let row = |at: usize| (usage[at].network.as_str(), usage[at].used, usage[at].resting, usage[at].free);
    assert_eq!(row(0), ("default", 1, 0, 256 - 64 - 4 - 1));
    assert_eq!(row(1), ("web", 0, 1, 32 - 1 - 1));
    assert_eq!(row(2), ("db", 0, 0, 32));
}

/// What a series of requests may contain.
#[derive(Debug, Clone)]
enum Step {
    Allocate(usize),
    Claim(usize, u8),
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..4).prop_map(Step::Allocate),
        2 => (0usize..4, any::<u8>()).prop_map(|(network, last)| Step::Claim(network, last)),
        1 => any::<usize>().prop_map(Step::Free),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_address_is_given_twice_and_no_blocks_overlap(
        len in 24u8..=30,
        with_v6 in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let names = [DEFAULT_NETWORK, "web", "db", "small"];
        let pools = [vec![], vec![], vec![], prefixes(&["10.42.1.0/25", "fd42:0:0:1::/72"])];
        let mut space = Space::default();
        space.own.push(Prefix::truncating("10.42.1.0".parse().unwrap(), len).unwrap());
        space.own.extend(with_v6.then(|| "fd42:0:0:1::/64".parse::<Prefix>().unwrap()));
        for step in steps {
            let (network, grant) = match step {
                Step::Allocate(network) => (network, space.allocate(names[network], &pools[network])),
                Step::Claim(network, last) => {
                    let wanted = [IpAddr::from([10, 42, 1, last])];
                    (network, space.claim(names[network], &pools[network], &wanted))
                }
                Step::Free(place) => {
                    let place = place % space.taken.len().max(1);
                    if let Some(address) = space.taken.keys().nth(place).copied() {
                        space.taken.remove(&address);
                    }
                    continue;
                }
            };
            let Ok(grant) = grant else { continue };
            for block in grant.carved {
                prop_assert!(space.own.iter().any(|own| own.covers(&block)));
                prop_assert!(!space.blocks.iter().any(|(_, other)| other.overlaps(&block)), "{block} overlaps");
                prop_assert!(!space.taken.keys().any(|taken| block.contains(*taken)), "{block} is inhabited");
                let pool = &pools[network];
                prop_assert!(pool.is_empty() || pool.iter().any(|part| part.covers(&block)), "{block} is outside the pool");
                space.blocks.push((names[network].to_owned(), block));
            }
            prop_assert!(!grant.addresses.is_empty());
            let families: BTreeSet<bool> = grant.addresses.iter().map(IpAddr::is_ipv4).collect();
            prop_assert_eq!(families.len(), grant.addresses.len());
            for address in grant.addresses {
                prop_assert_eq!(space.network_of(address), names[network]);
                let own = space.own.iter().find(|own| own.contains(address));
                let own = own.expect("an own address");
                prop_assert!((0..RESERVED).all(|index| own.nth(index) != Some(address)), "{address} is reserved");
                let held = space.taken.insert(address, Holder::Endpoint(names[network].to_owned()));
                prop_assert_eq!(held, None, "{} was given twice", address);
            }
        }
    }
}

#[test]
fn part_of_a_prefix_is_cut_into_blocks_around_what_its_owner_holds() {
    let part: Prefix = "10.42.1.128/26".parse().unwrap();
    let range: Prefix = "10.42.1.144/30".parse().unwrap();
    let mut space = space(&["10.42.1.0/24"], &["10.42.1.140", "10.42.1.190"]);
    // Somebody else's address keeps the block in the part of the default network.
    assert!(matches!(space.allocate_part("web", &[part], &range), Err(PlumbingError::PrefixExhausted { .. })));
    space.aside = addresses(&["10.42.1.140", "10.42.1.190"]).into_iter().collect();
    let grant = space.allocate_part("web", &[part], &range).unwrap();
    assert_eq!(grant.carved, ["10.42.1.128/27".parse().unwrap()]);
    assert_eq!(grant.addresses, addresses(&["10.42.1.144"]));
    space.blocks.push(("web".into(), grant.carved[0]));
    (144..148).for_each(|last| drop(space.taken.insert([10, 42, 1, last].into(), Holder::Held("docker/p".into()))));
    assert!(matches!(space.allocate_part("web", &[part], &range), Err(PlumbingError::PrefixExhausted { .. })));
    // The rest of the block, then the other block of the part, and then no more.
    assert_eq!(space.allocate_part("web", &[part], &part).unwrap().addresses, addresses(&["10.42.1.128"]));
    let claimed = space.claim("web", &[part], &addresses(&["10.42.1.170"])).unwrap();
    assert_eq!(claimed.carved, ["10.42.1.160/27".parse().unwrap()]);
    assert!(space.claim("other", &[part], &addresses(&["10.42.1.150"])).is_err());
    assert!(space.allocate_part("web", &[part], &"10.42.2.0/27".parse().unwrap()).is_err());
}
