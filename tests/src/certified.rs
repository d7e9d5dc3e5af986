//! Hosts that become members by `init` and `join`, and joiners of the exchange's own machine.

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_control::api::{PeerStatus, Request, Response, Status};
use overlay_netns_harness::{Binaries, HostSpec, Lab, Topology, netns, ping, wait_for};
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{JoinEvent, Joiner, Token};
use overlay_wire::gossip::Record;
use overlay_wire::gossip::codec::Reader;
use rand_core::{OsRng, RngCore};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The pool of every cluster here.
pub const POOL: &str = "10.42.0.0/16,fd42::/48";

/// A lab whose hosts have daemons without any configuration file.
#[derive(Debug)]
pub struct Certified {
    /// The hosts.
    pub lab: Lab,
}

impl Certified {
    /// Starts the daemons of so many hosts, all in standby.
    pub fn standby(name: &str, binaries: Binaries, hosts: usize) -> Result<Certified> {
        Certified::standby_on(name, binaries, &HostSpec::numbered(hosts))
    }

    /// As [`Self::standby`], on hosts of one's own making.
    pub fn standby_on(name: &str, binaries: Binaries, hosts: &[HostSpec]) -> Result<Certified> {
        let lab = Lab::create(name, Topology::Routed, hosts, binaries)?;
        lab.start_daemons()?;
        Ok(Certified { lab })
    }

    /// As [`Self::standby`]; then the first host founds a cluster and the others join it, each with a container.
    pub fn cluster(name: &str, binaries: Binaries, hosts: usize) -> Result<Certified> {
        let certified = Certified::standby(name, binaries, hosts)?;
        certified.init("h1")?;
        for number in 2..=hosts {
            certified.join(&format!("h{number}"), "h1")?;
        }
        for number in 1..=hosts {
            certified.lab.add_container(&format!("h{number}"), "c1")?;
        }
        certified.lab.wait_ready(Duration::from_secs(30))?;
        Ok(certified)
    }

    /// Founds a cluster.
    pub fn init(&self, host: &str) -> Result<String> {
        self.lab.ctl_ok(host, &["init", "lab", "--pool", POOL, "--name", host])
    }

    /// A token; `more` are further words of `invite`.
    pub fn invite(&self, issuer: &str, more: &[&str]) -> Result<String> {
        let words = [&["invite"], more].concat();
        Ok(self.lab.ctl_ok(issuer, &words)?.trim().to_owned())
    }

    /// Makes a host a member with a fresh token of an issuer.
    pub fn join(&self, host: &str, issuer: &str) -> Result<String> {
        let token = self.invite(issuer, &[])?;
        self.lab.ctl_ok(host, &["join", &token, "--name", host, "--timeout", "20s"])
    }

    /// Runs `overlayctl` on a host, which must fail, and gives exit code and message.
    pub fn refused(&self, host: &str, words: &[&str]) -> Result<(i32, String)> {
        let output = self.lab.ctl(host, words)?;
        let code = output.status.code().ok_or_else(|| anyhow!("killed"))?;
        if code == 0 {
            bail!("on {host}: overlayctl {} went well", words.join(" "));
        }
        Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// The status of a host.
    pub fn status(&self, host: &str) -> Result<Status> {
        match self.lab.control(host)?.call(Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => bail!("an answer of the wrong kind: {}", other.name()),
        }
    }

    /// What a host knows about a peer, if anything.
    pub fn peer(&self, host: &str, name: &str) -> Option<PeerStatus> {
        self.status(host).ok()?.peers.into_iter().find(|peer| peer.name == name)
    }

    /// The address of a host's container.
    pub fn address(&self, container: &str) -> Result<IpAddr> {
        Ok(self.lab.container(container)?.v4.into())
    }

    /// Whether one echo request from a container to another is answered in time.
    pub fn reaches(&self, from: &str, to: &str) -> bool {
        let (Ok(view), Ok(to)) = (self.lab.view(from), self.address(to)) else { return false };
        ping(&view, "-c 1 -W 0.3", &to.to_string()).is_ok_and(|report| report.is_lossless())
    }

    /// The records that a host keeps on disk.
    pub fn kept_records(&self, host: &str) -> Result<Vec<Record>> {
        let bytes = std::fs::read(self.lab.host(host)?.path("/var/lib/overlay/membership.a"))?;
        // Behind the head of a state file.
        let kept: serde_json::Value = serde_json::from_slice(bytes.get(54..).unwrap_or_default())?;
        let records = kept["records"].as_array().context("no records are kept")?;
        let decode = |text: &serde_json::Value| -> Result<Record> {
            let bytes = STANDARD.decode(text.as_str().context("a record is a text")?)?;
            Record::decode(&mut Reader::new(&bytes)).map_err(|error| anyhow!("a record that is none: {error}"))
        };
        records.iter().map(decode).collect()
    }

    /// The own certificate of a host.
    pub fn certificate(&self, host: &str) -> Result<serde_json::Value> {
        self.lab.ctl_json(host, &["cert", "show"])
    }
}

/// A host that asks to join through the exchange's own machine, from a socket in a host's namespace.
pub struct TestJoiner {
    /// Its identity.
    pub identity: IdentityKey,
    joiner: Joiner,
    socket: UdpSocket,
}

impl TestJoiner {
    /// Begins to ask with a token.
    pub fn new(namespace: &str, token: &str, name: &str, identity: IdentityKey) -> Result<TestJoiner> {
        let token: Token = token.parse()?;
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        let joiner = Joiner::new(token, &identity, name, seed, Instant::now(), Duration::from_secs(60))?;
        let socket = netns::within(namespace, || UdpSocket::bind("0.0.0.0:0").context("binding a UDP socket"))?;
        socket.set_nonblocking(true)?;
        Ok(TestJoiner { identity, joiner, socket })
    }

    /// Lets joiners run until each has ended; how, in the order in which they did.
    pub fn run_all(mut joiners: Vec<TestJoiner>) -> Result<Vec<JoinEvent>> {
        let mut ended = Vec::new();
        wait_for("every joiner to be answered", Duration::from_secs(90), || {
            joiners.retain_mut(|joiner| match joiner.turn() {
                Some(event) => {
                    ended.push(event);
                    false
                }
                None => true,
            });
            joiners.is_empty().then_some(())
        })?;
        Ok(ended)
    }

    /// Sends what is due and takes what came; how it ended, once it has.
    pub fn turn(&mut self) -> Option<JoinEvent> {
        let now = Instant::now();
        if self.joiner.poll_timeout().is_some_and(|due| due <= now) {
            self.joiner.handle_timeout(now);
        }
        while let Some(transmit) = self.joiner.poll_transmit() {
            if let SocketAddr::V4(_) = transmit.to {
                // What is not sent is lost, and sent again.
                let _ = self.socket.send_to(&transmit.bytes, transmit.to);
            }
        }
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            self.joiner.handle_datagram(from, &buffer[..length]);
        }
        self.joiner.poll_event()
    }
}

/// A fresh identity.
pub fn fresh_identity() -> IdentityKey {
    IdentityKey::generate(&mut OsRng)
}
