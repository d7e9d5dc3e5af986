//! Docker's forward chain drops what its rules do not name. `DOCKER-USER` is the chain it keeps for the owner of the host;
//! rules in it let the overlay's packets pass, on whose way the overlay's own filter decides, and those between neighbours on
//! a bridge, which iptables sees too where br_netfilter is loaded.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// The chain that Docker never changes.
const CHAIN: &str = "DOCKER-USER";
/// What passes: from and to the overlay's device, and what stays among the bridges of networks. From one bridge to another
/// nothing does, for which the daemon's own table sees.
const PASSING: [&[&str]; 3] = [&["-i", "overlay0"], &["-o", "overlay0"], &["-i", "ob+", "-o", "ob+"]];
/// How often the rules are looked at.
const EVERY: Duration = Duration::from_secs(10);

/// One at a time, so that no rule is made twice.
static ALONE: Mutex<()> = Mutex::new(());

/// Looks at the rules from now on.
pub(super) fn keep_admitting() {
    loop {
        admit();
        std::thread::sleep(EVERY);
    }
}

/// Looks at the rules now, without holding anybody up.
pub(super) fn admit_soon() {
    let _ = std::thread::Builder::new().name("firewall".into()).spawn(admit);
}

fn admit() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for program in ["iptables", "ip6tables"] {
        // Without the chain there is no Docker with rules here.
        if !run(program, &["-S", CHAIN, "1"]) && !run(program, &["-S", CHAIN]) {
            continue;
        }
        for passing in PASSING {
            let rule = rule(passing);
            if !run(program, &[&["-C", CHAIN], &rule[..]].concat())
                && run(program, &[&["-I", CHAIN], &rule[..]].concat())
            {
                eprintln!("{program}: packets of the overlay pass {CHAIN} ({})", passing.join(" "));
            }
        }
    }
}

/// Takes the rules away; how many there were.
pub(crate) fn withdraw() -> usize {
    let all = ["iptables", "ip6tables"].into_iter().flat_map(|program| PASSING.map(|passing| (program, passing)));
    all.filter(|(program, passing)| run(program, &[&["-D", CHAIN], &rule(passing)[..]].concat())).count()
}

fn rule<'a>(passing: &[&'a str]) -> Vec<&'a str> {
    [passing, &["-m", "comment", "--comment", "overlayd", "-j", "ACCEPT"]].concat()
}

fn run(program: &str, words: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(["-w", "2"]).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.status().is_ok_and(|status| status.success())
}
