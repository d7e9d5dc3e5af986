//! The blocking client.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::{ApiError, Captured, Event, Request, Response};
use crate::codes::Code;
use crate::frame::{self, FrameError, PROTOCOL_VERSION, Reply, ReplyFrame, RequestFrame};

/// How long a call may take unless told otherwise: the daemon's own deadline is 5 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens on the socket.
    #[error("cannot reach the daemon at {path}: {error}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The socket may not be opened.
    #[error("no permission to open {path}")]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The answer did not come in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The daemon speaks another protocol version.
    #[error("the daemon speaks control protocol {theirs}, this program {PROTOCOL_VERSION}")]
    VersionSkew {
        /// The daemon's version.
        theirs: u32,
    },
    /// What came is not a frame of this protocol.
    #[error("unreadable answer: {0}")]
    Frame(FrameError),
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon refused.
    #[error("{}", .0.what)]
    Api(ApiError),
    /// The daemon answered something else than what was asked.
    #[error("the daemon answered with `{0}`")]
    Unexpected(&'static str),
}

impl ControlError {
    /// The error as it is shown: code, what, why, next.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        let what = self.to_string();
        let error = |code, why: String, next: &str| ApiError::new(code, what.clone(), why, next);
        match self {
            Self::NotRunning { error: cause, path } => {
                let why = if cause.kind() == io::ErrorKind::NotFound {
                    format!("{} does not exist", path.display())
                } else {
                    "the socket exists, but no daemon listens on it".to_owned()
                };
                error(
                    Code::NotRunning,
                    why,
                    "start it with `systemctl start overlayd`, or give its socket with --socket PATH",
                )
            }
            Self::Permission { path } => error(
                Code::Permission,
                format!("{} is open to root and the groups overlay and overlay-admin", path.display()),
                "use sudo, or join a group: `usermod -aG overlay USER` and log in again",
            ),
            Self::Timeout(_) => error(
                Code::Timeout,
                "the daemon is busy or stopped".to_owned(),
                "try again; if it stays, `systemctl status overlayd` and its journal say more",
            ),
            Self::VersionSkew { theirs } => error(
                Code::VersionSkew,
                format!("program and daemon come from different releases ({PROTOCOL_VERSION} here, {theirs} there)"),
                "restart the daemon after an upgrade: `systemctl restart overlayd`",
            ),
            Self::Frame(cause) => {
                error(Code::BadFrame, format!("{cause}"), "check that --socket names the control socket of overlayd")
            }
            Self::Closed => error(
                Code::NotRunning,
                "it stopped, or refused the connection".to_owned(),
                "`systemctl status overlayd` and its journal say more",
            ),
            Self::Api(api) => api.clone(),
            Self::Unexpected(_) => error(
                Code::BadFrame,
                "program and daemon do not fit together".to_owned(),
                "restart the daemon after an upgrade: `systemctl restart overlayd`",
            ),
        }
    }
}

/// One connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Duration,
}

impl Client {
    /// Connects to the control socket.
    ///
    /// # Errors
    /// When nobody listens or the socket may not be opened.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ControlError::Permission { path: path.to_owned() },
            _ => ControlError::NotRunning { path: path.to_owned(), error },
        })?;
        let mut client = Self { stream, timeout: DEFAULT_TIMEOUT };
        client.set_timeout(DEFAULT_TIMEOUT)?;
        Ok(client)
    }

    /// Sets how long each read and write may take.
    ///
    /// # Errors
    /// When the socket refuses it.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), ControlError> {
        self.timeout = timeout;
        let set = self.stream.set_read_timeout(Some(timeout)).and(self.stream.set_write_timeout(Some(timeout)));
        set.map_err(|error| ControlError::Frame(error.into()))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the connection fails, times out, or the daemon refuses.
    pub fn call(&mut self, request: Request) -> Result<Response, ControlError> {
        let frame = RequestFrame { version: PROTOCOL_VERSION, request };
        match frame::write(&mut self.stream, &frame) {
            Ok(()) => self.receive(),
            // The daemon may have said why before it closed.
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(self.receive().err().unwrap_or(ControlError::Closed))
            }
            Err(error) => Err(self.classify(error)),
        }
    }

    /// Waits for the next event of a stream begun with [`Request::EventsFollow`]. Blocks without limit.
    ///
    /// # Errors
    /// When the stream ends or the daemon closes it because events were read too slowly.
    pub fn next_event(&mut self) -> Result<Event, ControlError> {
        self.stream.set_read_timeout(None).map_err(|error| ControlError::Frame(error.into()))?;
        match self.receive()? {
            Response::Event(event) => Ok(event),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Waits for the next packets of a stream begun with [`Request::Capture`]; `None` after `wait` without any.
    ///
    /// # Errors
    /// When the stream ends.
    pub fn next_captured(&mut self, wait: Option<Duration>) -> Result<Option<Captured>, ControlError> {
        self.stream.set_read_timeout(wait).map_err(|error| ControlError::Frame(error.into()))?;
        match self.receive() {
            Ok(Response::Captured(captured)) => Ok(Some(*captured)),
            Ok(other) => Err(ControlError::Unexpected(other.name())),
            Err(ControlError::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self) -> Result<Response, ControlError> {
        let body = frame::read(&mut self.stream).map_err(|error| self.classify(error))?;
        let body = body.ok_or(ControlError::Closed)?;
        let reply: ReplyFrame = frame::decode(&body).map_err(|error| self.classify(error))?;
        match reply.reply {
            Reply::Ok(response) => Ok(*response),
            Reply::Error(error) => Err(ControlError::Api(error)),
        }
    }

    fn classify(&self, error: FrameError) -> ControlError {
        match error {
            FrameError::Io(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Timeout(self.timeout),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Closed,
                _ => ControlError::Frame(error.into()),
            },
            FrameError::Version { theirs } => ControlError::VersionSkew { theirs },
            other => ControlError::Frame(other),
        }
    }
}
