//! One token, many hosts at once.

use anyhow::{Result, bail, ensure};
use overlay_routing::membership::JoinEvent;
use overlay_wire::membership::{Admission, JoinRefusal};
use std::collections::BTreeSet;

use super::{Bound, Figure, Run};
use crate::{Certified, TestJoiner, fresh_identity, lab_name};

const CROWD: usize = 100;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::standby(&lab_name("token"), run.binaries.clone(), 2)?;
    certified.init("h1")?;
    let rounds = run.count(10, 1);
    let mut admitted = (usize::MAX, 0);
    let mut subnets = BTreeSet::new();
    for round in 0..rounds {
        let ended = ask_all(&certified, &certified.invite("h1", &[])?, CROWD, &format!("crowd{round}x"))?;
        let count = ended.iter().filter_map(admission).count();
        let used_up = ended.iter().filter(|event| **event == JoinEvent::Refused(JoinRefusal::UsedUp)).count();
        ensure!(count + used_up == CROWD, "some were neither admitted nor told that the token is used up: {ended:?}");
        admitted = (admitted.0.min(count), admitted.1.max(count));
        for grant in ended.iter().filter_map(admission).flat_map(|it| &it.certificate.certificate.grants) {
            ensure!(subnets.insert(grant.to_string()), "{grant} was given twice");
        }
    }
    // The control: as many hosts as a token allows are admitted, each with a subnet of its own.
    let ended = ask_all(&certified, &certified.invite("h1", &["--uses", "5"])?, 8, "few")?;
    let grants: BTreeSet<String> =
        ended.iter().filter_map(admission).map(|it| format!("{:?}", it.certificate.certificate.grants)).collect();
    ensure!(grants.len() == 5, "a token for five hosts admitted {}: {ended:?}", grants.len());
    let what = format!("admitted of {CROWD} hosts with one token, in each of {rounds} rounds");
    Ok(vec![
        Figure::new(format!("{what}, at most"), admitted.1 as f64, "hosts", Bound::AtMost(1.0)),
        Figure::new(format!("{what}, at least"), admitted.0 as f64, "hosts", Bound::AtLeast(1.0)),
    ])
}

/// Lets so many hosts ask with one token until each is answered.
fn ask_all(certified: &Certified, token: &str, count: usize, name: &str) -> Result<Vec<JoinEvent>> {
    let view = certified.lab.view("h2")?;
    let joiners = (0..count)
        .map(|number| TestJoiner::new(view.namespace(), token, &format!("{name}{number}"), fresh_identity()))
        .collect::<Result<Vec<_>>>()?;
    let ended = TestJoiner::run_all(joiners)?;
    if ended.contains(&JoinEvent::NoAnswer) {
        bail!("some were not answered: {ended:?}");
    }
    Ok(ended)
}

fn admission(event: &JoinEvent) -> Option<&Admission> {
    match event {
        JoinEvent::Admitted(admission) => Some(admission),
        _ => None,
    }
}
