//! Seeds of membership: certificates, bodies, tokens, stored states, and scripts for the issuer.

use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{CaKey, Issuer, IssuerConfig, KdfCost, Token, TokenRequest};
use overlay_wire::membership::certificate::certificate_body;
use overlay_wire::membership::{
    Admission, AuthorityBody, CaId, Certificate, ClusterSettings, JoinAnswer, JoinContent, JoinRefusal, Labels,
    PolicyDocument, PolicyMade, PolicyOutcome, PolicyShard, PolicyStatus, PolicyTrial, PreviousPolicy, Rights, Serial,
    SignedCertificate, TokenId,
};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, HostId};

use super::{endpoint, prefix};

pub(super) fn certificate() -> SignedCertificate {
    let certificate = Certificate {
        ca: CaId([1; 16]),
        identity: *IdentityKey::from_bytes(&[2; 32]).public().as_bytes(),
        name: "h1".to_owned(),
        serial: Serial(3),
        admitted: Serial(2),
        grants: vec![
            "10.42.1.0/24".parse().expect("a fixed grant parses"),
            "fd42::/48 max 64".parse().expect("a fixed grant parses"),
        ],
        max_prefixes: 64,
        labels: Labels::from([("role".to_owned(), "web".to_owned())]),
        rights: Rights::POLICY,
        not_before: 1_800_000_000,
        not_after: 1_802_592_000,
    };
    SignedCertificate { certificate, signature: [7; 64] }
}

fn settings() -> ClusterSettings {
    ClusterSettings {
        name: "fuzz".to_owned(),
        pool: vec![prefix("10.42.0.0/16"), prefix("fd42::/48")],
        encapsulation: Encapsulation::Gre,
        listen_port: 51821,
        policy_default: DefaultPolicy::Deny,
        mtu: Some(1400),
    }
}

pub(super) fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let keys = AuthorityBody::Keys { key: [1; 32], successor: Some([2; 32]), retired: vec![CaId([3; 16])] };
    let revoked = AuthorityBody::Revoked(vec![HostId([1; 16]), HostId([2; 16])]);
    let piece = PolicyShard { revision: 4, hash: [5; 32], count: 1, piece: b"default deny\n".to_vec() };
    let status =
        PolicyStatus { revision: 4, hash: [5; 32], outcome: PolicyOutcome::Refused, reason: "line 3".to_owned() };
    let previous = Some(PreviousPolicy { revision: 3, rules: "default open\n".to_owned() });
    let document = PolicyDocument {
        made: PolicyMade::RolledBack(2),
        rules: Some("default deny\n".to_owned()),
        trial: Some(PolicyTrial { seconds: 60, written: 1_800_000_000, previous }),
    };
    let join = JoinContent { identity: [1; 32], name: "h1".to_owned(), secret: [2; 16], signature: [3; 64] };
    let admitted = JoinAnswer::Admitted(Box::new(Admission {
        ca: [1; 32],
        other_ca: Some([2; 32]),
        certificate: certificate(),
        settings: settings(),
        issuer: certificate(),
        endpoints: vec![endpoint()],
    }));
    vec![
        ("certificate", certificate().to_bytes()),
        ("certificate-body", certificate_body(&certificate())),
        ("authority-keys", keys.encode().expect("a seed fits")),
        ("authority-revoked", revoked.encode().expect("a seed fits")),
        ("policy-piece", piece.encode()),
        ("policy-status", status.encode()),
        ("policy-document", document.emit().expect("a seed fits").into_bytes()),
        ("join", join.encode()),
        ("admitted", admitted.encode().expect("a seed fits")),
        ("refused", JoinAnswer::Refused(JoinRefusal::UsedUp).encode().expect("a seed fits")),
    ]
}

pub(super) fn stored() -> Vec<(&'static str, Vec<u8>)> {
    let issuer = IdentityKey::from_bytes(&[2; 32]).public();
    let token =
        Token { ca: CaId([1; 16]), issuer, endpoints: vec![endpoint()], id: TokenId([3; 8]), secret: [4; 16].into() };
    let config = IssuerConfig { settings: settings(), subnet_v4: 24, subnet_v6: 64, validity_secs: 3600 };
    let mut state = Issuer::found(CaKey::from_bytes(&[5; 32]), config).expect("the fixed settings are valid");
    let request = TokenRequest {
        uses: 2,
        ttl_secs: 60,
        labels: Labels::new(),
        rights: Rights::NONE,
        name: None,
        subnets: Vec::new(),
        allow: Vec::new(),
    };
    let invited = state.invite(request, &issuer, &[endpoint()], &[6; 24], 1_800_000_000).expect("the pool is free");
    let _ = state.commit(invited);
    let cost = KdfCost { memory_kib: 8, passes: 1 };
    let exported = state.export(b"passphrase", cost, &[7; 40]).expect("the pool can be split");
    let file = state.commit(exported).expect("nothing came between");
    vec![("token", token.to_text().as_bytes().to_vec()), ("state", state.state_bytes().to_vec()), ("export", file)]
}

pub(super) fn issuer() -> Vec<(&'static str, Vec<u8>)> {
    let invite = [0, 2];
    let join = |host: u8| [2, 0, host];
    vec![
        ("join", [&invite[..], &join(1), &join(2), &join(3), &join(1)].concat()),
        ("crash", [&invite[..], &join(1), &[9], &join(1), &[0x42, 0, 2], &[9], &join(2)].concat()),
        ("damage", [&invite[..], &[0x82, 0, 1, 0, 70, 4], &join(1)].concat()),
        ("expire", [&invite[..], &join(1), &[15, 0, 70], &join(2), &[10, 1], &[15, 0xff, 0xff], &join(1)].concat()),
        ("export", [&[11u8][..], &invite, &join(1), &[11, 12, 13, 1, 2, 3], &join(2)].concat()),
        ("rotate", [&invite[..], &join(1), &[14]].concat()),
    ]
}

/// Scripts for the gossip machine with certificates: as those without, and the wall clock, policies and revocations.
pub(super) fn scripts() -> Vec<(&'static str, Vec<u8>)> {
    let pause = [15, 0x03, 0xe8];
    let contact = [pause.to_vec(), vec![0; 20], pause.to_vec(), vec![0; 20]].concat();
    vec![
        ("contact", contact.clone()),
        ("clock", [contact.clone(), vec![13, 0xff, 0xff], pause.to_vec(), vec![0x8d, 0x40, 0], vec![0; 9]].concat()),
        ("policy", [contact.clone(), vec![14, 3], pause.to_vec(), vec![0; 12]].concat()),
        ("revoke", [contact, vec![14, 0x80], pause.to_vec(), vec![0; 12]].concat()),
    ]
}
