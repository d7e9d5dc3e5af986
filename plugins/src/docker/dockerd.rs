//! dockerd asked over its own socket which endpoints a network has.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// How long each read and write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer read, in bytes.
const LONGEST: u64 = 16 << 20;

/// Where dockerd answers.
#[derive(Debug, Clone)]
pub struct Dockerd(PathBuf);

impl Dockerd {
    /// The socket of its API.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// The ids of a network's endpoints; `None` when dockerd has no such network.
    pub(super) fn endpoints(&self, network: &str) -> io::Result<Option<BTreeSet<String>>> {
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the answer ends with the connection, in one piece. The network's id passed the allow-list.
        write!(stream, "GET /networks/{network} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer)?;
        read(&answer)
    }
}

fn read(answer: &[u8]) -> io::Result<Option<BTreeSet<String>>> {
    let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("dockerd answered {what}"));
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(|| bad("no head"))?;
    let status = answer[..head].split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match status {
        b"404" => return Ok(None),
        b"200" => {}
        _ => return Err(bad("an error")),
    }
    let body: Value = serde_json::from_slice(&answer[head + 4..]).map_err(|_| bad("no JSON"))?;
    let containers = body.get("Containers").ok_or_else(|| bad("no containers"))?;
    let endpoints = containers.as_object().into_iter().flat_map(|containers| containers.values());
    Ok(Some(endpoints.filter_map(|one| one["EndpointID"].as_str().map(str::to_owned)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_anything_else_is_an_error() {
        let answer = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"Containers\":{\"c1\":{\"EndpointID\":\"e1\"},\"ep-2\":{\"EndpointID\":\"e2\"}}}";
        let known = read(answer).unwrap().unwrap();
        assert_eq!(known.into_iter().collect::<Vec<_>>(), ["e1", "e2"]);
        assert_eq!(read(b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no\"}").unwrap(), None);
        assert!(read(b"HTTP/1.0 200 OK\r\n\r\n{\"Containers\":{}}").unwrap().unwrap().is_empty());
        for bad in [&b""[..], b"HTTP/1.0 500 X\r\n\r\n{}", b"HTTP/1.0 200 OK\r\n\r\n{", b"HTTP/1.0 200 OK\r\n\r\n{}"] {
            assert!(read(bad).is_err());
        }
    }
}
