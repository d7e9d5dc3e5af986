//! Who is asked about names that are not ours: configured servers, or those of the host's `/etc/resolv.conf`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// Servers used at most, as by the C library.
const MAX_SERVERS: usize = 3;
/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The largest file read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The servers.
#[derive(Debug)]
pub(crate) struct Upstreams {
    source: Source,
    /// Addresses that lead back to us.
    own: Vec<IpAddr>,
    read: Mutex<Read>,
}

#[derive(Debug)]
enum Source {
    Configured(Vec<IpAddr>),
    File(PathBuf),
}

#[derive(Debug, Default)]
struct Read {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<IpAddr>,
}

impl Upstreams {
    /// The configured servers, or those of the host's file.
    pub(crate) fn new(configured: Option<Vec<IpAddr>>, own: &[IpAddr]) -> Self {
        let source = configured.map_or_else(|| Source::File("/etc/resolv.conf".into()), Source::Configured);
        Self { source, own: own.to_vec(), read: Mutex::default() }
    }

    /// The servers now, without those that would lead back to us.
    pub(crate) fn servers(&self) -> Vec<IpAddr> {
        match &self.source {
            Source::Configured(servers) => self.usable(servers.iter().copied()),
            Source::File(path) => {
                let mut read = self.read.lock();
                if read.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
                    read.looked = Some(Instant::now());
                    self.look(path, &mut read);
                }
                read.servers.clone()
            }
        }
    }

    fn look(&self, path: &Path, read: &mut Read) {
        let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.len() <= MAX_BYTES);
        let modified = metadata.and_then(|metadata| metadata.modified().ok());
        if modified.is_none() || modified != read.modified {
            read.modified = modified;
            let text = modified.and_then(|_| std::fs::read_to_string(path).ok()).unwrap_or_default();
            read.servers = self.usable(parse(&text));
        }
    }

    fn usable(&self, servers: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
        servers.filter(|ip| !self.own.contains(ip)).take(MAX_SERVERS).collect()
    }
}

/// The servers of a resolv.conf(5); an address with a scope is left out.
fn parse(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_file_are_used_but_for_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let own: IpAddr = "10.42.1.1".parse().unwrap();
        let text = "# nameserver 192.0.2.9\nsearch x\nnameserver 10.42.1.1\nnameserver 192.0.2.53\n nameserver ::1 \n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n";
        std::fs::write(&path, text).unwrap();
        let upstreams = Upstreams { source: Source::File(path), own: vec![own], read: Mutex::default() };
        let shown: Vec<String> = upstreams.servers().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.53", "::1", "192.0.2.54"]);
        let configured = Upstreams::new(Some(vec![own, "192.0.2.1".parse().unwrap()]), &[own]);
        assert_eq!(configured.servers(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(Upstreams::new(Some(Vec::new()), &[]).servers().is_empty());
    }
}
