//! dockerd asked over its own socket for what it does not tell drivers: names of networks and containers, and which endpoints
//! a network has.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long dockerd may take where nobody waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer read, in bytes.
const LONGEST: u64 = 16 << 20;
/// Aliases of a container that are read at most.
const MAX_ALIASES: usize = 64;

/// Where dockerd answers.
#[derive(Debug, Clone)]
pub struct Dockerd(PathBuf);

/// A network as dockerd has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DockerNetwork {
    pub(super) name: String,
    /// By the endpoint's id.
    pub(super) endpoints: BTreeMap<String, DockerEndpoint>,
}

/// A container's place in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DockerEndpoint {
    /// The container's name.
    pub(super) name: String,
    /// Its id; absent while it is made.
    pub(super) container: Option<String>,
}

impl Dockerd {
    /// The socket of its API.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// A network; `None` when dockerd has none of that id.
    pub(super) fn network(&self, network: &str, patience: Duration) -> io::Result<Option<DockerNetwork>> {
        // The network's id passed the allow-list.
        read_network(&self.get(&format!("/networks/{network}"), patience)?)
    }

    /// The aliases of a container's endpoint; `None` when dockerd has no such container or endpoint. While the container is
    /// started, dockerd does not answer.
    pub(super) fn aliases(
        &self,
        container: &str,
        endpoint: &str,
        patience: Duration,
    ) -> io::Result<Option<Vec<String>>> {
        if !super::store::is_id(container) {
            return Err(bad("an id that no container has"));
        }
        read_aliases(&self.get(&format!("/containers/{container}/json"), patience)?, endpoint)
    }

    fn get(&self, path: &str, patience: Duration) -> io::Result<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_write_timeout(Some(patience))?;
        // HTTP/1.0: the answer ends with the connection, in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let (mut answer, mut piece) = (Vec::new(), [0; 8192]);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || answer.len() as u64 > LONGEST {
                return Err(io::Error::new(ErrorKind::TimedOut, "dockerd does not answer in time"));
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut piece)? {
                0 => return Ok(answer),
                length => answer.extend(&piece[..length]),
            }
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("dockerd answered {what}"))
}

/// The body of an answer; `None` for "there is none".
fn read(answer: &[u8]) -> io::Result<Option<Value>> {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(|| bad("no head"))?;
    let status = answer[..head].split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match status {
        b"404" => Ok(None),
        b"200" => serde_json::from_slice(&answer[head + 4..]).map(Some).map_err(|_| bad("no JSON")),
        _ => Err(bad("an error")),
    }
}

pub(super) fn read_network(answer: &[u8]) -> io::Result<Option<DockerNetwork>> {
    let Some(body) = read(answer)? else { return Ok(None) };
    let containers = body.get("Containers").ok_or_else(|| bad("no containers"))?;
    let endpoint = |(key, one): (&String, &Value)| {
        // What has no container yet is listed under `ep-` and its own id.
        let container = Some(key).filter(|key| !key.starts_with("ep-")).cloned();
        let name = one["Name"].as_str().unwrap_or_default().to_owned();
        Some((one["EndpointID"].as_str()?.to_owned(), DockerEndpoint { name, container }))
    };
    let endpoints = containers.as_object().into_iter().flatten().filter_map(endpoint).collect();
    Ok(Some(DockerNetwork { name: body["Name"].as_str().unwrap_or_default().to_owned(), endpoints }))
}

pub(super) fn read_aliases(answer: &[u8], endpoint: &str) -> io::Result<Option<Vec<String>>> {
    let Some(body) = read(answer)? else { return Ok(None) };
    let networks = body["NetworkSettings"]["Networks"].as_object().ok_or_else(|| bad("no networks"))?;
    let Some(place) = networks.values().find(|place| place["EndpointID"] == endpoint) else { return Ok(None) };
    let aliases = place["Aliases"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(Some(aliases.take(MAX_ALIASES).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_anything_else_is_an_error() {
        let answer = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"Name\":\"web\",\"Containers\":{\
            \"c1\":{\"EndpointID\":\"e1\",\"Name\":\"shop\"},\"ep-2\":{\"EndpointID\":\"e2\",\"Name\":\"new\"}}}";
        let known = read_network(answer).unwrap().unwrap();
        assert_eq!(known.name, "web");
        assert_eq!(known.endpoints["e1"], DockerEndpoint { name: "shop".into(), container: Some("c1".into()) });
        assert_eq!(known.endpoints["e2"], DockerEndpoint { name: "new".into(), container: None });
        assert_eq!(read_network(b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no\"}").unwrap(), None);
        assert!(read_network(b"HTTP/1.0 200 OK\r\n\r\n{\"Containers\":{}}").unwrap().unwrap().endpoints.is_empty());
        for bad in [&b""[..], b"HTTP/1.0 500 X\r\n\r\n{}", b"HTTP/1.0 200 OK\r\n\r\n{", b"HTTP/1.0 200 OK\r\n\r\n{}"] {
            assert!(read_network(bad).is_err());
        }
    }

    #[test]
    fn aliases_are_those_of_the_endpoint() {
        let answer = |networks: &str| {
            format!("HTTP/1.0 200 OK\r\n\r\n{{\"NetworkSettings\":{{\"Networks\":{networks}}}}}").into_bytes()
        };
        let both = answer(
            r#"{"a":{"EndpointID":"e1","Aliases":["web","c0ffee"]},"b":{"EndpointID":"e2","Aliases":null},"c":{}}"#,
        );
        assert_eq!(read_aliases(&both, "e1").unwrap().unwrap(), ["web", "c0ffee"]);
        assert_eq!(read_aliases(&both, "e2").unwrap(), Some(Vec::new()));
        assert_eq!(read_aliases(&both, "e3").unwrap(), None);
        assert!(read_aliases(&answer("7"), "e1").is_err());
    }
}
