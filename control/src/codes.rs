//! Every error code of the product, with its exit code and meaning. `docs/errors.md` is checked against this file.

use std::fmt;

/// Exit codes of `overlayctl` and `overlayd`.
pub mod exit {
    /// All went well.
    pub const OK: u8 = 0;
    /// The command failed for a reason that has no code of its own.
    pub const FAILED: u8 = 1;
    /// The command line or a file was wrong.
    pub const USAGE: u8 = 2;
    /// The daemon is not reachable.
    pub const NOT_REACHABLE: u8 = 3;
    /// The thing named does not exist.
    pub const NOT_FOUND: u8 = 4;
    /// The change collides with what is there.
    pub const CONFLICT: u8 = 5;
    /// The caller may not do this.
    pub const PERMISSION: u8 = 6;
    /// The answer did not come in time.
    pub const TIMED_OUT: u8 = 7;
    /// This host is not a member of a cluster.
    pub const NOT_MEMBER: u8 = 8;
    /// `status --check`: something is not as it should be, packets flow.
    pub const DEGRADED: u8 = 10;
    /// `status --check`: packets do not flow.
    pub const UNHEALTHY: u8 = 11;
    /// `policy test`: the policy forbids it.
    pub const DENIED: u8 = 20;
    /// No host owns the destination.
    pub const NO_ROUTE: u8 = 21;
    /// The owner of the destination does not answer.
    pub const PATH_DOWN: u8 = 22;
    /// The packet is too big for the path.
    pub const TOO_BIG: u8 = 23;
    /// The source may not be used from there.
    pub const ANTI_SPOOF: u8 = 24;
}

macro_rules! codes {
    ($($variant:ident $name:literal $exit:ident $meaning:literal;)+) => {
        /// One kind of error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)+
        }

        impl Code {
            /// Every code, in the order of `docs/errors.md`.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name shown in `error[NAME]`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The exit code of a command that ends with this error.
            #[must_use]
            pub fn exit(self) -> u8 {
                match self { $(Self::$variant => exit::$exit,)+ }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

codes! {
    Usage "USAGE" USAGE "The command line is wrong.";
    Config "CONFIG" USAGE "The configuration has problems; each is listed with file, line and key.";
    Policy "POLICY" USAGE "A policy rule is not in the rule language.";
    Invalid "INVALID" USAGE "A value in a request is not acceptable.";
    NotRunning "NOT_RUNNING" NOT_REACHABLE "Nobody answers on the control socket.";
    VersionSkew "VERSION_SKEW" NOT_REACHABLE "The daemon and the program speak different versions of the control protocol.";
    BadFrame "BAD_FRAME" NOT_REACHABLE "What came over the control socket is not a frame of this protocol.";
    NotFound "NOT_FOUND" NOT_FOUND "The peer, route, endpoint or flow named does not exist.";
    Conflict "CONFLICT" CONFLICT "The change collides with what the file or an earlier change set.";
    RestartNeeded "RESTART_NEEDED" CONFLICT "The changed values take effect at a restart only, so the reload was refused whole.";
    ReadOnly "READ_ONLY" CONFLICT "The thing is set by the file and cannot be changed from the command line.";
    Permission "PERMISSION" PERMISSION "The caller may not open the socket or may not make changes.";
    Timeout "TIMEOUT" TIMED_OUT "The answer did not come in time.";
    NotReady "NOT_READY" TIMED_OUT "The host did not become ready in time.";
    NotMember "NOT_MEMBER" NOT_MEMBER "This host is not a member of a cluster yet.";
    AlreadyMember "ALREADY_MEMBER" CONFLICT "This host is a member of a cluster already.";
    NotIssuer "NOT_ISSUER" PERMISSION "This host does not hold the authority's key.";
    Token "TOKEN" USAGE "The text is not a token, or it was not copied whole.";
    JoinRefused "JOIN_REFUSED" CONFLICT "The issuer knows the token and refuses the host; the message has its reason.";
    JoinTimeout "JOIN_TIMEOUT" TIMED_OUT "No issuer named in the token answered.";
    Passphrase "PASSPHRASE" PERMISSION "The passphrase does not open the export, or the export was changed.";
    Busy "BUSY" FAILED "The daemon has as many connections or tasks as it allows.";
    Lagged "LAGGED" FAILED "The watcher read too slowly; events were lost and the stream was closed.";
    Unsupported "UNSUPPORTED" FAILED "This daemon or kernel cannot do what was asked.";
    Namespace "NAMESPACE" FAILED "Work in a container's network namespace failed and was undone.";
    Io "IO" FAILED "A file could not be read or written.";
    Internal "INTERNAL" FAILED "The daemon met a state that should not exist.";
    Denied "DENIED" DENIED "The policy forbids the packet.";
    NoRoute "NO_ROUTE" NO_ROUTE "No host owns the destination.";
    PathDown "PATH_DOWN" PATH_DOWN "The owner of the destination does not answer.";
    TooBig "TOO_BIG" TOO_BIG "The packet is too big for the path and may not be fragmented.";
    AntiSpoof "ANTI_SPOOF" ANTI_SPOOF "The source address does not belong to where the packet comes from.";
    Capability "CAPABILITY" PERMISSION "The daemon lacks a capability it needs.";
    TunMissing "TUN_MISSING" FAILED "/dev/net/tun is missing or cannot be opened.";
    TunInUse "TUN_IN_USE" CONFLICT "Another program uses the TUN device.";
    PortInUse "PORT_IN_USE" CONFLICT "Another program uses the UDP port.";
    SocketInUse "SOCKET_IN_USE" CONFLICT "Another daemon answers on the control socket.";
    AlreadyRunning "ALREADY_RUNNING" CONFLICT "Another daemon holds the lock of this state or runtime directory.";
    Identity "IDENTITY" FAILED "The identity key is missing, unreadable or does not fit the configuration.";
    StateNewer "STATE_NEWER" FAILED "A state file was written by a newer release and is left untouched.";
    StateDamaged "STATE_DAMAGED" FAILED "No copy of a state file is whole, and nothing else says what was in it.";
    StateForeign "STATE_FOREIGN" FAILED "The state directory or a file in it does not belong to the daemon's user alone.";
    KernelTunnel "KERNEL_TUNNEL" CONFLICT "A kernel tunnel device would receive the packets of an unencrypted encapsulation.";
    Plumbing "PLUMBING" FAILED "A route, rule, link or firewall entry could not be put in place.";
    Clock "CLOCK" FAILED "The clock is so wrong that signed records cannot be judged.";
}

impl Code {
    /// The code of a name, where this release knows it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_lists_every_code_and_no_other() {
        let document = include_str!("../../docs/errors.md");
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: Vec<(String, String, String)> = rows
            .filter_map(|row| {
                let mut cells = row.trim_end_matches('|').split(" | ");
                let name = cells.next()?.trim_end_matches('`').to_owned();
                Some((name, cells.next()?.trim().to_owned(), cells.next()?.trim().to_owned()))
            })
            .collect();
        let known: Vec<(String, String, String)> = Code::ALL
            .iter()
            .map(|code| (code.name().to_owned(), code.exit().to_string(), code.meaning().to_owned()))
            .collect();
        assert_eq!(documented, known, "docs/errors.md and codes.rs differ");
    }

    #[test]
    fn names_are_unique_and_found() {
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.name()), Some(*code));
        }
        assert_eq!(Code::from_name("NO_SUCH_CODE"), None);
    }
}
