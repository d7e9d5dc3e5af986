//! Other people's firewalls that would drop forwarded overlay packets: found and named, never changed from here.
//!
//! Only `doctor --fix` puts two commented accept rules into Docker's `DOCKER-USER`, the chain Docker keeps for that.

use overlay_control::api::Problem;

use super::error::problem;
use super::{PlumbingError, nft};

/// A forward chain of someone else whose policy is to drop.
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

/// Finds forward chains that drop by policy, outside the table `ours`.
#[must_use]
pub fn dropping_chains(ruleset: &str, ours: &str) -> Vec<DroppingChain> {
    let (mut family, mut table, mut chain) = (String::new(), String::new(), String::new());
    let mut found = Vec::new();
    for line in ruleset.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", a, b, "{"] => (family, table) = ((*a).to_owned(), (*b).to_owned()),
            ["chain", name, "{"] => chain = (*name).to_owned(),
            _ if line.contains(" hook forward ") && line.contains("policy drop") && table != ours => {
                found.push(DroppingChain { family: family.clone(), table: table.clone(), chain: chain.clone() });
            }
            _ => {}
        }
    }
    found
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

/// Whether tables of one family, other than `ours`, accept packets from and to the TUN.
#[must_use]
pub fn accepts(ruleset: &str, table_family: &str, ours: &str, tun: &str) -> bool {
    let (mut relevant, mut from, mut to) = (false, false, false);
    for line in ruleset.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["table", family, table, "{"] = words.as_slice() {
            relevant = *family == table_family && *table != ours;
        } else if relevant && words.contains(&"accept") {
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
        Keeper::Firewalld => (
            vec![
                format!("firewall-cmd --permanent --zone=trusted --add-interface={tun}"),
                "firewall-cmd --reload".into(),
            ],
            vec![
                format!("firewall-cmd --permanent --zone=trusted --remove-interface={tun}"),
                "firewall-cmd --reload".into(),
            ],
        ),
        Keeper::Other => {
            let target = format!("{} {} {}", chain.family, chain.table, chain.chain);
            let add =
                |side: &str| format!("nft insert rule {target} {side} \"{tun}\" counter accept comment \"{COMMENT}\"");
            let undo = format!("nft -a list chain {target}   # then: nft delete rule {target} handle N");
            (vec![add("iifname"), add("oifname")], vec![undo])
        }
    }
}

/// Looks for foreign forward chains that stand in the overlay's way.
///
/// # Errors
/// When `nft` cannot be run or refuses.
pub fn find_problems(ours: &str, tun: &str) -> Result<Vec<Problem>, PlumbingError> {
    // The rules of a host may be tens of thousands, ours among them; the chains alone are few.
    if dropping_chains(&list("chains")?, ours).is_empty() {
        return Ok(Vec::new());
    }
    Ok(problems(&ruleset()?, ours, tun))
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

    #[test]
    fn accept_policy_is_no_problem() {
        let open = DOCKER.replace("policy drop", "policy accept");
        assert_eq!(problems(&open, "overlay", "overlay0"), []);
    }
}
