//! The socket and its connections.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overlay_control::api::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::request::Request;
use crate::backend::Api;

/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 16;
/// The largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// How long a request may take to arrive, to be worked on, and its answer to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept, so that the loop never spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The open socket; its file is removed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The file may be gone already, with the directory.
        let _ = fs::remove_file(&self.path);
    }
}

impl Server {
    /// Opens the socket with mode 0600; one that nobody listens on any more is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    /// With the problem to show: the daemon works without this socket.
    pub(crate) fn bind(path: &Path) -> Result<Self, Problem> {
        Self::open(path).map_err(|error| Problem {
            code: "UAPI_SOCKET".to_owned(),
            what: format!("the socket {} for the wg tools cannot be opened", path.display()),
            why: error.to_string(),
            next: "see that no other program uses it and that overlayd may write there, then restart overlayd; \
                   overlayctl works all the same"
                .to_owned(),
        })
    }

    fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(error) => return Err(error),
            },
        }
        // Made under another name and moved, so that nobody connects before the mode is right.
        let fresh = path.with_extension(format!("new.{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        let placed =
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&fresh, path));
        if let Err(error) = placed {
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until `stop` turns true or its sender goes away; open connections are closed then.
    pub(crate) async fn run(self, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "wg socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let api = Arc::clone(&api);
            connections.spawn(async move {
                let _slot = slot;
                if let Err(error) = serve(stream, api).await {
                    tracing::debug!(%error, "wg connection ended");
                }
            });
        }
    }
}

/// Answers requests until the caller closes.
async fn serve(mut stream: UnixStream, api: Arc<Api>) -> io::Result<()> {
    let root = stream.peer_cred()?.uid() == 0;
    loop {
        let request = match timeout(DEADLINE, receive(&mut stream)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                return send(&mut stream, errno(-libc::E2BIG).as_bytes()).await;
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return send(&mut stream, errno(-libc::ETIMEDOUT).as_bytes()).await,
        };
        let answer = match Request::parse(&request) {
            Ok(Request::Get) => api.uapi_device(root).emit(),
            // `wg` expects the number of a failed change to be negative, as wireguard-go gives it.
            Ok(Request::Set(set)) => {
                // A task of its own: a caller that goes away does not cut a change in half.
                let api = Arc::clone(&api);
                let change = tokio::spawn(async move { api.uapi_set(&set).await });
                match timeout(DEADLINE, change).await {
                    Ok(Ok(number)) => errno(-number),
                    Ok(Err(_)) => errno(-libc::EIO),
                    Err(_) => errno(-libc::ETIMEDOUT),
                }
            }
            Err(error) => {
                tracing::warn!(cause = %error, "a request of the wg tools is refused");
                let sign = if request.starts_with(b"get=") { 1 } else { -1 };
                errno(sign * error.errno())
            }
        };
        send(&mut stream, answer.as_bytes()).await?;
    }
}

/// Reads up to and with the empty line that ends a request; `None` when the caller closed before one began.
async fn receive(stream: &mut UnixStream) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut request = Zeroizing::new(Vec::new());
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let have = stream.read(piece.as_mut()).await?;
        if have == 0 {
            // Cut off: it goes to the parser, which refuses it.
            return Ok((!request.is_empty()).then_some(request));
        }
        let from = request.len().saturating_sub(1);
        request.extend_from_slice(piece.get(..have).unwrap_or_default());
        if request.len() > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let end = request.get(from..).unwrap_or_default().windows(2).position(|pair| pair == b"\n\n");
        if let Some(end) = end {
            // What follows belongs to no request: callers wait for the answer before they go on.
            request.truncate(from + end + 2);
            return Ok(Some(request));
        }
    }
}

async fn send(stream: &mut UnixStream, answer: &[u8]) -> io::Result<()> {
    timeout(DEADLINE, stream.write_all(answer)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn errno(number: i32) -> Zeroizing<String> {
    Zeroizing::new(format!("errno={number}\n\n"))
}
