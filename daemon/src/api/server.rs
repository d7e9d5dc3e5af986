//! The socket and its connections.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overlay_control::api::{ApiError, CaptureRequest, Captured, Event, Request, Response};
use overlay_control::codes::Code;
use overlay_control::frame::{self, FrameError, HEADER_BYTES, PROTOCOL_VERSION, Reply, ReplyFrame, RequestFrame};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::timeout;

use super::access::{Access, Caller, Right};

/// Connections at a time; more are refused with a sentence.
const MAX_CONNECTIONS: usize = 64;
/// How long a request may take to arrive once it has begun, to be worked on, and an answer to be taken.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long `doctor` may work: it asks a peer, for 10 s at most, and runs commands of the system.
const DOCTOR_DEADLINE: Duration = Duration::from_secs(25);
/// How long requests that are being answered may take to end once the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// How long a connection may say nothing.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long to wait after a failed accept (out of descriptors, say), so that the loop never spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers requests.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Packets of a capture.
    type Batches: Batches;

    /// Answers one request; the caller's right to make it has been checked.
    fn handle(&self, caller: Caller, request: Request) -> impl Future<Output = Result<Response, ApiError>> + Send;

    /// A view of the events from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Begins a capture; it ends when what is returned is dropped.
    fn capture(&self, request: &CaptureRequest) -> impl Future<Output = Result<Self::Batches, ApiError>> + Send;
}

/// The captures of a backend that has none.
pub(crate) enum NoBatches {}

impl Batches for NoBatches {
    async fn next(&mut self) -> Captured {
        match *self {}
    }
}

/// Packets of a capture, batch by batch.
pub(crate) trait Batches: Send {
    /// Waits for the next.
    fn next(&mut self) -> impl Future<Output = Captured> + Send;
}

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another daemon answers there.
    #[error("another daemon answers on {0}")]
    InUse(PathBuf),
    /// The path is something else than a socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("control socket {path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl BindError {
    /// The error as it is shown.
    pub(crate) fn to_api(&self) -> ApiError {
        let what = self.to_string();
        match self {
            Self::InUse(_) => ApiError::new(
                Code::SocketInUse,
                what,
                "two daemons cannot share a control socket",
                "stop the other daemon, or set paths.socket",
            ),
            Self::NotASocket(path) => ApiError::new(
                Code::Io,
                what,
                "it may hold something of value, so it is left alone",
                format!("move {} away, or set paths.socket", path.display()),
            ),
            Self::Io { path, error } => ApiError::new(
                Code::Io,
                what,
                error.to_string(),
                format!("check that the directory of {} exists and belongs to the daemon's user", path.display()),
            ),
        }
    }
}

/// The open socket; its file is removed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The file may be gone already, with the directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Opens the socket with mode 0660 and the group `overlay` where it exists. A socket left over by a killed daemon is
    /// replaced, one that answers is not. Needs a tokio runtime.
    ///
    /// # Errors
    /// When another daemon answers there or the system refuses.
    pub(crate) fn bind(path: &Path, access: Access) -> Result<Self, BindError> {
        let io_error = |error| BindError::Io { path: path.to_owned(), error };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) => return Err(BindError::InUse(path.to_owned())),
                Err(error) => return Err(io_error(error)),
            },
        }
        // Made under another name and moved, so that nobody connects before owner and mode are right.
        let fresh = path.with_extension(format!("new.{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(io_error)?;
        let placed = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660)).and_then(|()| {
            if let Some(gid) = access.socket_gid()
                && let Err(error) = std::os::unix::fs::chown(&fresh, None, Some(gid))
            {
                // Only root may give a file to a group it is not in; members of the group then have no access.
                tracing::warn!(%error, gid, "control socket stays without its group");
            }
            std::fs::rename(&fresh, path)
        });
        if let Err(error) = placed {
            let _ = std::fs::remove_file(&fresh);
            return Err(io_error(error));
        }
        Ok(Self { listener, path: path.to_owned(), access })
    }

    /// Serves until `stop` turns true or its sender goes away. What is being answered then is answered to its end, idle
    /// connections are closed; the socket stays open for the next to serve on it.
    pub(crate) async fn run<B: Backend>(self: Arc<Self>, backend: Arc<B>, mut stop: watch::Receiver<bool>) {
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
                    tracing::warn!(%error, "control socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                refuse_at_once(&stream, &busy());
                continue;
            };
            let (backend, access, stop) = (Arc::clone(&backend), self.access.clone(), stop.clone());
            connections.spawn(async move {
                let _slot = slot;
                if let Err(error) = serve(stream, &*backend, &access, stop).await {
                    tracing::debug!(%error, "control connection ended");
                }
            });
        }
        // Whoever is still not done then is cut off with the set.
        let _ = timeout(DRAIN_DEADLINE, async { while connections.join_next().await.is_some() {} }).await;
    }
}

/// Serves one connection until it ends.
async fn serve<B: Backend>(
    mut stream: UnixStream,
    backend: &B,
    access: &Access,
    mut stop: watch::Receiver<bool>,
) -> Result<(), FrameError> {
    let credentials = stream.peer_cred()?;
    let caller = Caller { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    let right = access.right(caller);
    if right == Right::None {
        let error = forbidden("open to root and the groups overlay and overlay-admin");
        return send(&mut stream, Reply::Error(error)).await;
    }
    loop {
        let received = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            received = receive(&mut stream) => received,
        };
        let request = match received {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                // The stream cannot be trusted to be at a frame boundary any more: say why, then close.
                if let Some(answer) = explain(&error) {
                    send(&mut stream, Reply::Error(answer)).await?;
                }
                return Err(error);
            }
        };
        if request.is_change() && right < Right::Change {
            send(&mut stream, Reply::Error(forbidden("this changes something, and members of overlay may only look")))
                .await?;
            continue;
        }
        if request == Request::EventsFollow {
            let events = backend.events();
            return tokio::select! {
                _ = stop.wait_for(|stop| *stop) => Ok(()),
                followed = follow(&mut stream, events) => followed,
            };
        }
        if let Request::Capture(request) = &request {
            let batches = match backend.capture(request).await {
                Ok(batches) => batches,
                Err(error) => {
                    send(&mut stream, Reply::Error(error)).await?;
                    continue;
                }
            };
            return tokio::select! {
                _ = stop.wait_for(|stop| *stop) => Ok(()),
                captured = capture(&mut stream, batches) => captured,
            };
        }
        let deadline = match &request {
            Request::Doctor { .. } => DOCTOR_DEADLINE,
            Request::Membership(request) if request.is_slow() => DOCTOR_DEADLINE,
            _ => REQUEST_DEADLINE,
        };
        let reply = match timeout(deadline, backend.handle(caller, request)).await {
            Ok(Ok(response)) => Reply::Ok(Box::new(response)),
            Ok(Err(error)) => Reply::Error(error),
            Err(_) => Reply::Error(ApiError::new(
                Code::Timeout,
                format!("no answer within {} s", deadline.as_secs()),
                "the daemon is busy with something that takes longer",
                "try again; if it stays, read the daemon's journal",
            )),
        };
        send(&mut stream, reply).await?;
    }
}

/// Sends events until the caller goes away or falls behind.
async fn follow(stream: &mut UnixStream, mut events: broadcast::Receiver<Event>) -> Result<(), FrameError> {
    let begun = Response::Done { changed: false, notes: Vec::new() };
    send(stream, Reply::Ok(Box::new(begun))).await?;
    loop {
        let mut byte = [0; 1];
        let event = tokio::select! {
            event = events.recv() => event,
            // A follower has nothing more to say: anything read here is the end of the connection.
            _ = stream.read(&mut byte) => return Ok(()),
        };
        match event {
            Ok(event) => send(stream, Reply::Ok(Box::new(Response::Event(event)))).await?,
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                let error = ApiError::new(
                    Code::Lagged,
                    format!("{lost} events were lost"),
                    "this watcher reads more slowly than events come",
                    "start again and read faster",
                );
                return send(stream, Reply::Error(error)).await;
            }
        }
    }
}

/// Sends captured packets until the caller goes away. One that reads slowly loses packets in the ring, which counts them.
async fn capture(stream: &mut UnixStream, mut batches: impl Batches) -> Result<(), FrameError> {
    let begun = Response::Done { changed: false, notes: Vec::new() };
    send(stream, Reply::Ok(Box::new(begun))).await?;
    loop {
        let mut byte = [0; 1];
        let captured = tokio::select! {
            captured = batches.next() => captured,
            _ = stream.read(&mut byte) => return Ok(()),
        };
        send(stream, Reply::Ok(Box::new(Response::Captured(Box::new(captured))))).await?;
    }
}

/// Receives one request; `None` when the caller closed the connection or was idle for too long.
async fn receive(stream: &mut UnixStream) -> Result<Option<Request>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    match timeout(IDLE_DEADLINE, stream.read(&mut header)).await {
        Err(_) | Ok(Ok(0)) => Ok(None),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(have)) => timeout(REQUEST_DEADLINE, async {
            stream.read_exact(&mut header[have..]).await.map_err(truncated)?;
            let length = frame::body_len(header)?;
            // Grows with what arrives: a header alone makes nobody allocate.
            let mut body = Vec::new();
            (&mut *stream).take(length as u64).read_to_end(&mut body).await?;
            if body.len() < length {
                return Err(FrameError::Truncated);
            }
            frame::decode::<RequestFrame>(&body).map(|frame| Some(frame.request))
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())),
    }
}

fn truncated(error: io::Error) -> FrameError {
    if error.kind() == io::ErrorKind::UnexpectedEof { FrameError::Truncated } else { error.into() }
}

async fn send(stream: &mut UnixStream, reply: Reply) -> Result<(), FrameError> {
    let frame = match frame_of(reply) {
        Err(FrameError::TooLarge(length)) => frame_of(Reply::Error(ApiError::new(
            Code::Unsupported,
            format!("the answer has {length} bytes, more than the 1 MiB of a frame"),
            "there are too many objects for one answer",
            "ask for less, as with a selector or a limit",
        )))?,
        other => other?,
    };
    match timeout(REQUEST_DEADLINE, stream.write_all(&frame)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

fn frame_of(reply: Reply) -> Result<Vec<u8>, FrameError> {
    fn emit<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
        frame::encode(value)
    }
    emit(&ReplyFrame { version: PROTOCOL_VERSION, reply })
}

/// Tells a surplus caller so without waiting for it.
fn refuse_at_once(stream: &UnixStream, error: &ApiError) {
    if let Ok(frame) = frame_of(Reply::Error(error.clone())) {
        // A fresh socket's buffer holds this frame; if not, the caller sees the connection close.
        let _ = stream.try_write(&frame);
    }
}

fn busy() -> ApiError {
    ApiError::new(
        Code::Busy,
        format!("{MAX_CONNECTIONS} connections are open"),
        "that is as many as the daemon allows",
        "close other watchers and try again",
    )
}

fn forbidden(why: &str) -> ApiError {
    ApiError::new(
        Code::Permission,
        "not permitted",
        why,
        "use sudo, or have your user added to the group overlay-admin",
    )
}

/// What to tell a caller whose frame was refused; nothing when the stream itself is broken.
fn explain(error: &FrameError) -> Option<ApiError> {
    match error {
        FrameError::Version { theirs } => Some(ApiError::new(
            Code::VersionSkew,
            format!("the program speaks control protocol {theirs}, the daemon {PROTOCOL_VERSION}"),
            "program and daemon come from different releases",
            "use the overlayctl that came with the daemon, or restart the daemon after an upgrade",
        )),
        FrameError::TooLarge(_) | FrameError::Json(_) => Some(ApiError::new(
            Code::BadFrame,
            "unreadable request",
            error.to_string(),
            "use the overlayctl that came with the daemon",
        )),
        FrameError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Some(ApiError::new(
            Code::Timeout,
            "the request did not arrive in time",
            format!("a request must arrive within {} s once begun", REQUEST_DEADLINE.as_secs()),
            "send it whole",
        )),
        FrameError::Io(_) | FrameError::Truncated => None,
    }
}
