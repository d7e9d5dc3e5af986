//! Other implementations of WireGuard, each behind the interface `wg0` of a host.

use anyhow::{Context as _, Result};
use overlay_netns_harness::netns::{self, View};
use overlay_netns_harness::{Lab, ip_batch, packages, run_in, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::foreign::make_key;
use crate::shared::{can_have, can_use};

/// The private key of the device, as its host sees the file.
const KEY_FILE: &str = "/run/wg0.key";

/// A program that speaks WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Debian's wireguard-go.
    WireguardGo,
    /// boringtun-cli from crates.io.
    BoringtunCli,
}

impl Program {
    /// Every program.
    pub const ALL: [Program; 2] = [Program::WireguardGo, Program::BoringtunCli];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Program::WireguardGo => "wireguard-go",
            Program::BoringtunCli => "boringtun-cli",
        }
    }

    /// Whether a test may use all programs, which are installed where they are missing.
    pub fn can_use_all(test: &str) -> bool {
        can_use(test, &[("command -v wg", "wireguard-tools"), ("command -v wireguard-go", "wireguard-go")])
            && can_have(test, packages::boringtun_cli()).is_some()
    }

    /// The command that makes `wg0` and stays in the foreground.
    fn command(self) -> Result<Vec<String>> {
        let words: &[&str] = match self {
            Program::WireguardGo => &["wireguard-go", "--foreground", "wg0"],
            Program::BoringtunCli => &["--foreground", "--disable-drop-privileges", "wg0"],
        };
        let program = match self {
            Program::WireguardGo => None,
            Program::BoringtunCli => Some(packages::boringtun_cli()?.to_string_lossy().into_owned()),
        };
        Ok(program.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect())
    }
}

/// A running program.
#[derive(Debug)]
pub struct WireguardDevice {
    view: View,
    child: Child,
    socket: PathBuf,
    network: u8,
    /// Which program it is.
    pub program: Program,
    /// Its public key.
    pub public_key: String,
    /// Its underlay address.
    pub underlay: Ipv4Addr,
}

impl WireguardDevice {
    /// Starts a program on a host, with the addresses 10.99.N.1 and fd99:0:0:N::1 inside the tunnel.
    pub fn start(lab: &Lab, host: &str, program: Program, network: u8) -> Result<WireguardDevice> {
        let public_key = make_key(lab, host, KEY_FILE)?;
        let socket = lab.host(host)?.path("/run/wireguard/wg0.sock");
        // That of a killed one: `wg` would remove it, and in an unlucky moment the new one.
        if let Err(error) = fs::remove_file(&socket)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).context("removing the socket of an earlier device");
        }
        let argv = program.command()?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut command = lab.command(host, &argv)?;
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn().with_context(|| format!("{argv:?} could not be started"))?;
        let host = lab.host(host)?;
        let (view, underlay) = (host.view().clone(), host.underlay_v4());
        let device = WireguardDevice { view, child, socket, network, program, public_key, underlay };
        let up = || device.show().map(drop);
        wait_for(&format!("wg0 of {} to answer", program.name()), Duration::from_secs(20), up)?;
        device.wg(&format!("set wg0 private-key {KEY_FILE} listen-port 51820"))?;
        ip_batch(
            device.view.namespace(),
            &[
                format!("addr add {}/24 dev wg0", device.inner_v4()),
                format!("addr add {}/64 dev wg0 nodad", device.inner_v6()),
                "link set wg0 up mtu 1420".to_owned(),
                "route replace 10.42.0.0/16 dev wg0".to_owned(),
                "route replace fd42::/48 dev wg0".to_owned(),
            ],
        )?;
        Ok(device)
    }

    /// Its address inside the tunnel.
    pub fn inner_v4(&self) -> String {
        format!("10.99.{}.1", self.network)
    }

    /// See [`Self::inner_v4`].
    pub fn inner_v6(&self) -> String {
        if self.network == 0 { "fd99::1".to_owned() } else { format!("fd99:0:0:{:x}::1", self.network) }
    }

    /// The `[[peer]]` section for it with further lines.
    pub fn section(&self, name: &str, more: &str) -> String {
        format!(
            "[[peer]]\nname = \"{name}\"\npublic_key = \"{}\"\nallowed_ips = [\"10.99.{n}.0/24\", \"fd99:0:0:{n:x}::/64\"]\n\
             {more}\n",
            self.public_key,
            n = self.network
        )
    }

    /// Runs `wg` with these words on its host.
    pub fn wg(&self, words: &str) -> Result<String> {
        let argv: Vec<&str> = std::iter::once("wg").chain(words.split_whitespace()).collect();
        run_in(&self.view, &argv)
    }

    /// Makes `public_key` its only peer, without any session; `more` are further words of `wg set`.
    pub fn set_peer(&self, public_key: &str, more: &str) -> Result<()> {
        self.forget_peer(public_key)?;
        self.wg(&format!("set wg0 peer {public_key} allowed-ips 10.42.0.0/16,fd42::/48 {more}")).map(drop)
    }

    /// Removes a peer with its session.
    pub fn forget_peer(&self, public_key: &str) -> Result<()> {
        self.wg(&format!("set wg0 peer {public_key} remove")).map(drop)
    }

    /// How long ago the last handshake with its only peer was; nothing before the first.
    pub fn handshake_age(&self) -> Option<Duration> {
        let shown = self.show()?;
        let number = |key: &str| shown.get(key)?.parse::<u64>().ok();
        let told = Duration::from_secs(number("last_handshake_time_sec")?)
            + Duration::from_nanos(number("last_handshake_time_nsec")?);
        match self.program {
            // As the interface has it: since 1970, and zero for never.
            Program::WireguardGo if told.is_zero() => None,
            Program::WireguardGo => Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.saturating_sub(told)),
            // It tells the age, and nothing for never.
            Program::BoringtunCli => Some(told),
        }
    }

    /// The endpoint of its only peer.
    pub fn endpoint(&self) -> Option<String> {
        self.wg("show wg0 endpoints").ok()?.split_whitespace().nth(1).map(str::to_owned)
    }

    /// What the program tells about itself, as far as keys are told once.
    fn show(&self) -> Option<BTreeMap<String, String>> {
        let mut socket = UnixStream::connect(&self.socket).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        socket.write_all(b"get=1\n\n").ok()?;
        let lines = BufReader::new(socket).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        Some(
            lines
                .filter_map(|line| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
                .collect(),
        )
    }
}

impl Drop for WireguardDevice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let gone = || {
            let mut command = netns::command(&self.view, &["ip", "link", "show", "wg0"]).ok()?;
            command.output().is_ok_and(|output| !output.status.success()).then_some(())
        };
        let _ = wait_for("wg0 to vanish", Duration::from_secs(5), gone);
    }
}
