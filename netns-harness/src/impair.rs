//! What the underlay does to packets: loss, duplication and cuts, by nft rules in the switch namespace.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

use crate::state::LabState;
use crate::underlay;

/// Faults on the link of one host, in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Impairment {
    /// Packets lost, in percent.
    pub loss_percent: f64,
    /// Packets that arrive twice, in percent.
    pub duplicate_percent: f64,
}

/// The whole rule set for a lab; applied at every change, so it never depends on what was there before.
pub(crate) fn rules(state: &LabState) -> String {
    let mut drops = String::new();
    let mut duplicates = [String::new(), String::new()];
    for host in &state.cut_hosts {
        let _ = writeln!(drops, "    iifname \"{host}\" drop\n    oifname \"{host}\" drop");
    }
    for (one, other) in &state.cut_pairs {
        let _ = writeln!(drops, "    iifname \"{one}\" oifname \"{other}\" drop");
        let _ = writeln!(drops, "    iifname \"{other}\" oifname \"{one}\" drop");
    }
    for (host, fault) in &state.impairments {
        if let Some(share) = share(fault.loss_percent) {
            let _ = writeln!(drops, "    iifname \"{host}\" numgen random mod 100000 <= {share} drop");
            let _ = writeln!(drops, "    oifname \"{host}\" numgen random mod 100000 <= {share} drop");
        }
        if let Some(share) = share(fault.duplicate_percent) {
            for (index, other) in state.hosts.iter().enumerate() {
                let leg = if other.name == *host {
                    format!("oifname \"{host}\"")
                } else {
                    format!("iifname \"{host}\" oifname \"{}\"", other.name)
                };
                let (v4, v6) = (underlay::ipv4(index), underlay::ipv6(index));
                for (rules, to) in duplicates.iter_mut().zip([v4.to_string(), v6.to_string()]) {
                    let device = &other.name;
                    let _ = writeln!(
                        rules,
                        "    {leg} numgen random mod 100000 <= {share} dup to {to} device \"{device}\""
                    );
                }
            }
        }
    }
    let mut script = String::new();
    for (family, table, rules) in [
        ("inet", "lab_loss", &drops),
        ("ip", "lab_duplicate", &duplicates[0]),
        ("ip6", "lab_duplicate", &duplicates[1]),
    ] {
        let _ = writeln!(script, "table {family} {table} {{ }}\ndelete table {family} {table}");
        if !rules.is_empty() {
            let _ = writeln!(script, "table {family} {table} {{\n  chain forward {{");
            let _ = writeln!(script, "    type filter hook forward priority 0; policy accept;\n{rules}  }}\n}}");
        }
    }
    script
}

/// The greatest of the numbers 0 to 99,999 that are hit, or nothing where the share rounds to none.
fn share(percent: f64) -> Option<u32> {
    let share = (percent.clamp(0.0, 100.0) * 1000.0).round() as u32;
    share.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{HostSpec, Topology};
    use std::collections::BTreeMap;

    fn state() -> LabState {
        LabState {
            topology: Topology::Routed,
            hosts: vec![HostSpec::named("h1"), HostSpec::named("h2")],
            containers: Vec::new(),
            impairments: BTreeMap::new(),
            cut_hosts: Vec::new(),
            cut_pairs: Vec::new(),
        }
    }

    #[test]
    fn healthy_underlay_has_no_chain() {
        assert!(!rules(&state()).contains("chain"));
    }

    #[test]
    fn loss_of_three_percent_is_drawn_in_both_directions() {
        let mut state = state();
        state.impairments.insert("h1".into(), Impairment { loss_percent: 3.0, ..Impairment::default() });
        let script = rules(&state);
        assert_eq!(script.matches("numgen random mod 100000 <= 2999 drop").count(), 2, "{script}");
    }
}
