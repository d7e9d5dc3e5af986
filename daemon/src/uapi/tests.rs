use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_config::{ForeignKind, ForeignPeer, PublicKey};
use proptest::prelude::*;

use super::plan::{Fixed, Plan, Present, Refusal, plan};
use super::request::{Allowed, ParseError, Request, Secret, Set};
use super::show::{Device, Preshared, Shown};
use crate::wireguard::Keys;

const OWN: [u8; 32] = [5; 32];

fn public(seed: u8) -> [u8; 32] {
    Keys::from_secret([seed; 32]).public()
}

fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn set(lines: &str) -> Set {
    match Request::parse(format!("set=1\n{lines}\n").as_bytes()) {
        Ok(Request::Set(set)) => *set,
        Ok(Request::Get) => panic!("a get"),
        Err(error) => panic!("{error} in {lines}"),
    }
}

fn refused(text: &str) -> ParseError {
    match Request::parse(text.as_bytes()) {
        Ok(_) => panic!("{text:?} was accepted"),
        Err(error) => error,
    }
}

/// One member, one peer of the file, our own port and mark.
fn present() -> Present {
    let member = Fixed {
        name: "h2".to_owned(),
        public_key: public(2),
        endpoint: Some("192.0.2.2:51821".parse().unwrap()),
        subnets: vec!["10.42.2.0/24".parse().unwrap()],
        instead: "gossip",
        ..Fixed::default()
    };
    Present {
        public_key: public(5),
        listen_port: 51821,
        fwmark: 0x200,
        has_key_file: true,
        fixed: vec![member],
        names: BTreeSet::from(["h2".to_owned()]),
        directory: "/secrets".into(),
    }
}

fn run_with(lines: &str, layer: &[ForeignPeer], key: [u8; 32]) -> Result<Plan, Refusal> {
    plan(&set(lines), &present(), layer, &|_: &Path| Some(Secret::new(key)), 0xabcd)
}

fn run(lines: &str, layer: &[ForeignPeer]) -> Result<Vec<ForeignPeer>, Refusal> {
    run_with(lines, layer, [0; 32]).map(|plan| plan.peers)
}

fn foreign(seed: u8, prefixes: &[&str]) -> ForeignPeer {
    ForeignPeer {
        name: format!("f{seed}"),
        allowed_ips: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        kind: ForeignKind::Wireguard {
            public_key: PublicKey(public(seed)),
            endpoint: None,
            preshared_key_file: None,
            persistent_keepalive: None,
        },
    }
}

const WHOLE: &str =
    "private_key=0000000000000000000000000000000000000000000000000000000000000000\nlisten_port=0\nfwmark=0\n";

#[test]
fn set_with_every_key_parses() {
    let key = hex(&public(9));
    let text = format!(
        "private_key={k}\nlisten_port=1\nfwmark=2\nreplace_peers=true\npublic_key={key}\nupdate_only=true\n\
         preshared_key={k}\nendpoint=[2001:db8::1]:5\npersistent_keepalive_interval=25\nprotocol_version=1\n\
         replace_allowed_ips=true\nallowed_ip=10.9.0.7/16\nallowed_ip=fd00::1\nallowed_ip=-10.8.0.0/16\n\
         public_key={key}\nremove=true\n",
        k = hex(&OWN)
    );
    let set = set(&text);
    assert!(set.is_whole() && set.replace_peers);
    assert_eq!((set.listen_port, set.fwmark), (Some(1), Some(2)));
    assert_eq!(set.private_key.as_deref(), Some(&OWN));
    let [first, second] = &set.peers[..] else { panic!("{} peers", set.peers.len()) };
    assert!(first.update_only && first.replace_allowed_ips && !first.remove);
    assert_eq!(first.endpoint, Some("[2001:db8::1]:5".parse().unwrap()));
    assert_eq!(first.keepalive, Some(25));
    let added = ["10.9.0.0/16", "fd00::1/128"].map(|prefix| Allowed::Add(prefix.parse().unwrap()));
    assert_eq!(first.allowed_ips[..2], added);
    assert_eq!(first.allowed_ips[2], Allowed::Remove("10.8.0.0/16".parse().unwrap()));
    assert!(second.remove);
}

#[test]
fn broken_request_is_refused_with_its_line() {
    assert_eq!(refused("get=1\n"), ParseError::Framing);
    assert_eq!(refused(""), ParseError::Framing);
    assert_eq!(refused("get=2\n\n"), ParseError::Operation);
    assert_eq!(refused("get=1\nx=1\n\n"), ParseError::Key { line: 2 });
    assert_eq!(refused("set=1\nnonsense\n\n"), ParseError::Line { line: 2 });
    assert_eq!(refused("set=1\nendpoint=192.0.2.1:1\n\n"), ParseError::Key { line: 2 });
    for bad in
        ["listen_port=65536", "listen_port=+1", "fwmark=0x1", "replace_peers=false", "private_key=00", "public_key="]
    {
        assert_eq!(refused(&format!("set=1\n{bad}\n\n")), ParseError::Value { line: 2 }, "{bad}");
    }
    let key = hex(&public(9));
    for bad in ["allowed_ip=10.0.0.0/33", "allowed_ip=x", "endpoint=h:1", "endpoint=192.0.2.1:0", "protocol_version=2"]
    {
        let text = format!("set=1\npublic_key={key}\n{bad}\n\n");
        assert_eq!(refused(&text), ParseError::Value { line: 3 }, "{bad}");
    }
    assert_eq!(refused(&format!("set=1\npublic_key={}\u{e9}\n\n", &key[2..])), ParseError::Value { line: 2 });
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), lines in "(set=1\n)?([a-z_]{0,12}=[-0-9a-f:./]{0,70}\n){0,6}\n?") {
        let _ = Request::parse(&bytes);
        if let Ok(Request::Set(set)) = Request::parse(lines.as_bytes()) {
            let _ = plan(&set, &present(), &[foreign(3, &["10.9.0.0/16"])], &|_: &Path| None, 1);
        }
    }
}

#[test]
fn shown_device_holds_every_line_and_hides_what_it_must() {
    let mut device = Device { listen_port: 7, fwmark: 512, ..Device::default() };
    device.peers.push(Shown {
        public_key: [1; 32],
        preshared: Preshared::None,
        endpoint: Some("[2001:db8::1]:9".parse().unwrap()),
        handshake: Some(Duration::new(3, 4)),
        tx_bytes: 5,
        rx_bytes: 6,
        keepalive: 25,
        subnets: vec!["10.42.2.0/24".parse().unwrap()],
    });
    let text = device.emit();
    assert_eq!(
        text.as_str(),
        format!(
            "listen_port=7\nfwmark=512\npublic_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[2001:db8::1]:9\n\
             last_handshake_time_sec=3\nlast_handshake_time_nsec=4\ntx_bytes=5\nrx_bytes=6\n\
             persistent_keepalive_interval=25\nallowed_ip=10.42.2.0/24\nerrno=0\n\n",
            "01".repeat(32),
            "00".repeat(32)
        )
    );
    device.private_key = Some(Secret::new(OWN));
    device.peers[0].preshared = Preshared::Shown(Secret::new([0xab; 32]));
    let text = device.emit();
    assert!(text.starts_with(&format!("private_key={}\n", "05".repeat(32))));
    assert!(text.contains(&format!("preshared_key={}\n", "ab".repeat(32))));
    device.peers[0].preshared = Preshared::Hidden;
    assert!(!device.emit().contains("preshared_key"));
}

#[test]
fn new_peer_is_named_by_its_key_and_gets_what_was_asked() {
    let text = format!(
        "public_key={}\nendpoint=192.0.2.9:1\npersistent_keepalive_interval=25\npreshared_key={}\nallowed_ip=10.9.0.0/16\n",
        hex(&public(9)),
        "07".repeat(32)
    );
    let plan = run_with(&text, &[], [0; 32]).unwrap();
    let [peer] = &plan.peers[..] else { panic!("{:?}", plan.peers) };
    assert!(peer.name.starts_with("wg-") && peer.name.len() == 11, "{}", peer.name);
    let name_is_plain =
        peer.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    assert!(name_is_plain, "{}", peer.name);
    assert_eq!(peer.allowed_ips, ["10.9.0.0/16".parse().unwrap()]);
    let [(path, key)] = &plan.secrets[..] else { panic!("{} secrets", plan.secrets.len()) };
    assert_eq!(**key, [7; 32]);
    assert_eq!(path.parent(), Some(Path::new("/secrets")));
    assert_eq!(
        peer.kind,
        ForeignKind::Wireguard {
            public_key: PublicKey(public(9)),
            endpoint: Some("192.0.2.9:1".parse().unwrap()),
            preshared_key_file: Some(path.clone()),
            persistent_keepalive: Some(25),
        }
    );
}

#[test]
fn equal_preshared_key_keeps_its_file() {
    let mut peer = foreign(9, &[]);
    if let ForeignKind::Wireguard { preshared_key_file, .. } = &mut peer.kind {
        *preshared_key_file = Some(PathBuf::from("/secrets/old.psk"));
    }
    let layer = [peer];
    let ask =
        |byte: &str| format!("replace_peers=true\npublic_key={}\npreshared_key={}\n", hex(&public(9)), byte.repeat(32));
    let plan = run_with(&ask("07"), &layer, [7; 32]).unwrap();
    assert!(plan.secrets.is_empty());
    assert_eq!(plan.peers, layer);
    let plan = run_with(&ask("08"), &layer, [7; 32]).unwrap();
    assert_eq!(plan.secrets.len(), 1);
    let plan = run_with(&ask("00"), &layer, [7; 32]).unwrap();
    assert!(plan.secrets.is_empty());
    assert_eq!(plan.peers, [foreign(9, &[])]);
}

#[test]
fn update_replace_and_remove_change_foreign_peers_only() {
    let layer = [foreign(9, &["10.9.0.0/16"]), foreign(8, &["10.8.0.0/16"])];
    let nine = hex(&public(9));
    assert_eq!(run(&format!("public_key={nine}\nremove=true\n"), &layer).unwrap(), layer[1..]);
    let added = run(&format!("public_key={nine}\nallowed_ip=10.7.0.0/16\n"), &layer).unwrap();
    assert_eq!(added[0], foreign(9, &["10.7.0.0/16", "10.9.0.0/16"]));
    let replaced =
        run(&format!("public_key={nine}\nreplace_allowed_ips=true\nallowed_ip=10.8.0.0/16\n"), &layer).unwrap();
    assert_eq!(replaced, [foreign(9, &["10.8.0.0/16"]), foreign(8, &[])], "a prefix moves to who asks last");
    let unknown = hex(&public(7));
    assert_eq!(
        run(&format!("public_key={unknown}\nupdate_only=true\nallowed_ip=10.7.0.0/16\n"), &layer).unwrap(),
        layer
    );
    assert_eq!(run(&format!("public_key={unknown}\nremove=true\n"), &layer).unwrap(), layer);
    assert_eq!(run(&format!("public_key={}\n", hex(&public(5))), &layer).unwrap(), layer, "our own key");
    assert_eq!(run("replace_peers=true\n", &layer).unwrap(), []);
    let gre = ForeignPeer {
        kind: ForeignKind::Gre { endpoint: [192, 0, 2, 9].into(), key: None, checksum: false, sequence: false },
        ..foreign(6, &[])
    };
    assert_eq!(run("replace_peers=true\n", std::slice::from_ref(&gre)).unwrap(), [gre], "not a WireGuard peer");
}

#[test]
fn member_is_neither_removed_nor_altered() {
    let two = hex(&public(2));
    for change in [
        "remove=true\n".to_owned(),
        "endpoint=192.0.2.3:51821\n".to_owned(),
        "persistent_keepalive_interval=5\n".to_owned(),
        format!("preshared_key={}\n", "07".repeat(32)),
        "allowed_ip=10.9.0.0/16\n".to_owned(),
        "replace_allowed_ips=true\nallowed_ip=10.9.0.0/16\n".to_owned(),
        "allowed_ip=-10.42.2.0/24\n".to_owned(),
    ] {
        let refusal = run(&format!("public_key={two}\n{change}"), &[]).expect_err(&change);
        assert_eq!((refusal.errno, refusal.next.as_str()), (libc::EPERM, "gossip"), "{change}");
    }
    let same = "endpoint=192.0.2.2:51821\npersistent_keepalive_interval=0\nreplace_allowed_ips=true\nallowed_ip=10.42.2.0/24\n";
    assert_eq!(run(&format!("public_key={two}\n{same}"), &[]).unwrap(), []);
    let steal = run(&format!("public_key={}\nallowed_ip=10.42.2.0/24\n", hex(&public(9))), &[]).unwrap_err();
    assert_eq!(steal.errno, libc::EPERM);
}

#[test]
fn whole_configuration_keeps_members_and_the_interface() {
    let layer = [foreign(9, &["10.9.0.0/16"])];
    let (two, nine) = (hex(&public(2)), hex(&public(9)));
    let sync = format!("{WHOLE}public_key={two}\nremove=true\npublic_key={nine}\nremove=true\n");
    assert_eq!(run(&sync, &layer).unwrap(), []);
    assert_eq!(run(&format!("{WHOLE}replace_peers=true\n"), &layer).unwrap(), []);
    // One bad part refuses all of it.
    let bad = format!("public_key={nine}\nremove=true\npublic_key={two}\nremove=true\n");
    assert_eq!(run(&bad, &layer).unwrap_err().errno, libc::EPERM);
}

#[test]
fn interface_values_may_be_repeated_and_not_changed() {
    let same = format!("private_key={}\nlisten_port=51821\nfwmark=512\n", hex(&OWN));
    assert_eq!(run(&same, &[]).unwrap(), []);
    let other = format!("private_key={}\n", hex(&[6; 32]));
    for bad in [other.as_str(), "listen_port=1\n", "listen_port=0\n", "fwmark=0\n", "fwmark=1\n"] {
        assert_eq!(run(bad, &[]).expect_err(bad).errno, libc::EPERM, "{bad}");
    }
}

#[test]
fn foreign_peer_without_key_file_is_refused() {
    let present = Present { has_key_file: false, ..present() };
    let set = set(&format!("public_key={}\n", hex(&public(9))));
    let refusal = plan(&set, &present, &[], &|_: &Path| None, 0).err().expect("refused");
    assert_eq!(refusal.errno, libc::EPERM);
    assert!(refusal.next.contains("overlay.private_key_file"));
}
