//! Other people's firewalls that would drop forwarded overlay packets: found and named, never changed from here.
//!
//! Only `doctor --fix` puts two commented accept rules into Docker's `DOCKER-USER`, the chain Docker keeps for that.

use overlay_control::api::Problem;

use super::error::problem;
use super::{PlumbingError, nft};

/// A forward chain of someone else that lets nothing pass unless a rule says so: by its policy, or by its last rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppingChain {
    /// Family, table and chain, as `nft` names them.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

/// Which firewall keeps the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// Docker, with its chain `DOCKER-USER`.
    Docker,
    /// ufw.
    Ufw,
    /// firewalld.
    Firewalld,
    /// Someone unknown.
    Other,
}

/// Comment of the rules that `doctor --fix` adds.
pub const COMMENT: &str = "overlayd";

/// The ruleset of this network namespace as text.
///
/// # Errors
/// When `nft` cannot be run or refuses.
pub fn ruleset() -> Result<String, PlumbingError> {
    list("ruleset")
}

fn list(what: &str) -> Result<String, PlumbingError> {
    let output = nft::run(&["-s", "list", what], "")?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PlumbingError::Nft { what: "list the ruleset", stderr })
}

/// Finds forward chains that drop what no rule of theirs takes, outside the table `ours`.
#[must_use]
pub fn dropping_chains(ruleset: &str, ours: &str) -> Vec<DroppingChain> {
    forward_chains(ruleset, ours).into_iter().filter(|(_, drops)| *drops).map(|(chain, _)| chain).collect()
}

/// The forward chains of others, and whether each drops, as far as the text shows its rules.
fn forward_chains(ruleset: &str, ours: &str) -> Vec<(DroppingChain, bool)> {
    let (mut family, mut table, mut chain) = (String::new(), String::new(), String::new());
    let mut found: Vec<(DroppingChain, bool)> = Vec::new();
    let mut inside = false;
    for line in ruleset.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", a, b, "{"] => (family, table) = ((*a).to_owned(), (*b).to_owned()),
            ["chain", name, "{"] => chain = (*name).to_owned(),
            _ if line.contains(" hook forward ") && table != ours => {
                let place = DroppingChain { family: family.clone(), table: table.clone(), chain: chain.clone() };
                found.push((place, line.contains("policy drop")));
                inside = true;
            }
            ["}"] => inside = false,
            _ if inside && takes_the_rest(&words) => {
                if let Some((_, drops)) = found.last_mut() {
                    *drops = true;
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether a rule drops or rejects whatever reaches it.
fn takes_the_rest(words: &[&str]) -> bool {
    let counted: &[&str] = match words {
        ["counter", "packets", _, "bytes", _, rest @ ..] | ["counter", rest @ ..] => rest,
        _ => words,
    };
    matches!(counted, ["drop" | "reject", ..])
}

/// Who keeps the dropping chain.
#[must_use]
pub fn keeper(ruleset: &str, chain: &DroppingChain) -> Keeper {
    if chain.table == "firewalld" {
        Keeper::Firewalld
    } else if ruleset.contains("chain ufw-") || ruleset.contains("chain ufw6-") {
        Keeper::Ufw
    } else if ruleset.contains("chain DOCKER-USER") {
        Keeper::Docker
    } else {
        Keeper::Other
    }
}

/// Whether tables of one family, other than `ours`, accept packets from and to the TUN. What firewalld does with an interface
/// that has a zone or policy of its own is its administrator's decision.
#[must_use]
pub fn accepts(ruleset: &str, table_family: &str, ours: &str, tun: &str) -> bool {
    let (mut relevant, mut from, mut to) = (false, false, false);
    for line in ruleset.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["table", family, table, "{"] = words.as_slice() {
            relevant = *family == table_family && *table != ours;
        } else if relevant && words.iter().any(|word| *word == "accept" || word.starts_with("filter_FWD_")) {
            from |= line.contains(&format!("iifname \"{tun}\""));
            to |= line.contains(&format!("oifname \"{tun}\""));
        }
    }
    from && to
}

/// The commands that make room for the overlay in a dropping chain, and those that take it back.
#[must_use]
pub fn remedy(chain: &DroppingChain, keeper: Keeper, tun: &str) -> (Vec<String>, Vec<String>) {
    let iptables = if chain.family == "ip6" { "ip6tables" } else { "iptables" };
    let rules = |target: &str, verb: &str| -> Vec<String> {
        ["-i", "-o"]
            .iter()
            .map(|side| format!("{iptables} -{verb} {target} {side} {tun} -m comment --comment {COMMENT} -j ACCEPT"))
            .collect()
    };
    match keeper {
        Keeper::Docker => (rules("DOCKER-USER", "I"), rules("DOCKER-USER", "D")),
        Keeper::Ufw => (
            vec![format!("ufw route allow in on {tun}"), format!("ufw route allow out on {tun}")],
            vec![format!("ufw route delete allow in on {tun}"), format!("ufw route delete allow out on {tun}")],
        ),
        Keeper::Firewalld => firewalld(tun),
        Keeper::Other => {
            let target = format!("{} {} {}", chain.family, chain.table, chain.chain);
            let add =
                |side: &str| format!("nft insert rule {target} {side} \"{tun}\" counter accept comment \"{COMMENT}\"");
            let undo = format!("nft -a list chain {target}   # then: nft delete rule {target} handle N");
            (vec![add("iifname"), add("oifname")], vec![undo])
        }
    }
}

/// A zone for the TUN that lets its packets pass, and a policy for what containers send into it. Each undo belongs to the
/// command in its place, and they are run from the last to the first.
fn firewalld(tun: &str) -> (Vec<String>, Vec<String>) {
    let permanent = |words: String| format!("firewall-cmd --permanent {words}");
    let (zone, policy) = (format!("--zone={COMMENT}"), format!("--policy={COMMENT}-in"));
    let pairs = [
        (permanent(format!("--new-zone={COMMENT}")), "firewall-cmd --reload".to_owned()),
        (permanent(format!("{zone} --set-target=ACCEPT")), permanent(format!("--delete-zone={COMMENT}"))),
        (permanent(format!("{zone} --add-interface={tun}")), permanent(format!("{zone} --remove-interface={tun}"))),
        (permanent(format!("--new-policy={COMMENT}-in")), permanent(format!("--delete-policy={COMMENT}-in"))),
        (permanent(format!("{policy} --set-target=ACCEPT")), permanent(format!("{policy} --set-target=CONTINUE"))),
        (
            permanent(format!("{policy} --add-ingress-zone=ANY")),
            permanent(format!("{policy} --remove-ingress-zone=ANY")),
        ),
        (
            permanent(format!("{policy} --add-egress-zone={COMMENT}")),
            permanent(format!("{policy} --remove-egress-zone={COMMENT}")),
        ),
        ("firewall-cmd --reload".to_owned(), "firewall-cmd --reload".to_owned()),
    ];
    pairs.into_iter().unzip()
}

/// Looks for foreign forward chains that stand in the overlay's way.
///
/// # Errors
/// When `nft` cannot be run or refuses.
pub fn find_problems(ours: &str, tun: &str) -> Result<Vec<Problem>, PlumbingError> {
    // The rules of a host may be tens of thousands, ours among them; the chains alone are few.
    for (chain, drops) in forward_chains(&list("chains")?, ours) {
        let drops = drops || {
            // Its own rules tell; one that was removed meanwhile is no problem.
            let place = format!("chain {} {} {}", chain.family, chain.table, chain.chain);
            list(&place).is_ok_and(|text| !dropping_chains(&text, ours).is_empty())
        };
        if drops {
            return Ok(problems(&ruleset()?, ours, tun));
        }
    }
    Ok(Vec::new())
}

/// The problems that foreign forward chains make for the overlay.
#[must_use]
pub fn problems(ruleset: &str, ours: &str, tun: &str) -> Vec<Problem> {
    let chains = dropping_chains(ruleset, ours).into_iter().filter(|chain| !accepts(ruleset, &chain.family, ours, tun));
    chains
        .map(|chain| {
            let (fix, _) = remedy(&chain, keeper(ruleset, &chain), tun);
            problem(
                "FORWARD_DROPPED",
                format!("chain {} of table {} {} drops forwarded packets", chain.chain, chain.family, chain.table),
                "packets between containers and the overlay die in it",
                format!("overlayctl doctor --fix, or: {}", fix.join(" && ")),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"table ip filter {
	chain DOCKER-USER {
		counter packets 0 bytes 0 return
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump DOCKER-USER
	}
}
table inet overlay {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"#;

    #[test]
    fn docker_drop_policy_is_named_with_its_remedy() {
        let found = problems(DOCKER, "overlay", "overlay0");
        assert_eq!(found.len(), 1);
        assert!(found[0].next.contains("iptables -I DOCKER-USER -i overlay0"), "{}", found[0].next);
    }

    #[test]
    fn accepting_rules_silence_the_problem() {
        let accepted = DOCKER.replace(
            "		counter packets 0 bytes 0 return\n",
            "		iifname \"overlay0\" counter packets 0 bytes 0 accept\n		oifname \"overlay0\" counter packets 0 bytes 0 accept\n",
        );
        assert_eq!(problems(&accepted, "overlay", "overlay0"), []);
        let half = accepted.replace("		oifname \"overlay0\" counter packets 0 bytes 0 accept\n", "");
        assert_eq!(problems(&half, "overlay", "overlay0").len(), 1);
    }

    /// As firewalld 1.3 writes it, shortened.
    const FIREWALLD: &str = r#"table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
		jump filter_FORWARD_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_POLICIES_pre {
		oifname "overlay0" jump filter_FWD_policy_overlayd-in
	}
	chain filter_FORWARD_ZONES {
		iifname "overlay0" goto filter_FWD_overlayd
		goto filter_FWD_public
	}
}
"#;

    #[test]
    fn firewalld_that_rejects_what_it_does_not_know_is_named_until_it_has_zone_and_policy() {
        assert_eq!(problems(FIREWALLD, "overlay", "overlay0"), []);
        for line in [
            "		oifname \"overlay0\" jump filter_FWD_policy_overlayd-in\n",
            "		iifname \"overlay0\" goto filter_FWD_overlayd\n",
        ] {
            let found = problems(&FIREWALLD.replace(line, ""), "overlay", "overlay0");
            assert_eq!(found.len(), 1, "{line}");
            assert!(found[0].next.contains("--zone=overlayd --add-interface=overlay0"), "{}", found[0].next);
        }
        let open = FIREWALLD.replace("		reject with icmpx admin-prohibited\n", "").replace("overlay0", "x");
        assert_eq!(problems(&open, "overlay", "overlay0"), [], "a reject with a condition is no end");
        assert!(takes_the_rest(&["counter", "packets", "0", "bytes", "0", "drop"]));
        assert!(!takes_the_rest(&["counter", "packets", "0", "bytes", "0", "jump", "drop"]));
    }

    #[test]
    fn every_command_for_firewalld_has_what_takes_it_back() {
        let (apply, undo) = firewalld("overlay0");
        assert_eq!(apply.len(), undo.len());
        for (made, removed) in [("--new-zone", "--delete-zone"), ("--new-policy", "--delete-policy")] {
            assert!(apply.iter().any(|command| command.contains(made)));
            assert!(undo.iter().any(|command| command.contains(removed)));
        }
        assert!(apply.last().is_some_and(|command| command.ends_with("--reload")));
        assert!(undo.first().is_some_and(|command| command.ends_with("--reload")), "run last");
    }

    #[test]
    fn accept_policy_is_no_problem() {
        let open = DOCKER.replace("policy drop", "policy accept");
        assert_eq!(problems(&open, "overlay", "overlay0"), []);
    }
}
