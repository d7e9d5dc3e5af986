//! A daemon made of canned answers.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use overlay_control::api::{ApiError, Request, Response};
use overlay_control::frame::{self, PROTOCOL_VERSION, Reply, ReplyFrame, RequestFrame};

/// Answers requests on a socket in a directory of its own until dropped.
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
}

/// What a request is answered with.
pub(crate) type Answer = Result<Vec<Response>, ApiError>;

impl Daemon {
    /// A daemon that answers with `answer` and says it speaks `version`.
    pub(crate) fn new(version: u32, answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("overlayd.sock");
        let listener = UnixListener::bind(&socket).expect("the socket is free");
        // Ends with the process: the listener has no other way to wake up, and tests are short.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                while let Ok(Some(body)) = frame::read(&mut stream) {
                    let Ok(asked) = frame::decode::<RequestFrame>(&body) else { break };
                    let replies = match answer(&asked.request) {
                        Ok(responses) => responses.into_iter().map(|response| Reply::Ok(Box::new(response))).collect(),
                        Err(error) => vec![Reply::Error(error)],
                    };
                    for reply in replies {
                        let bytes = frame::encode(&ReplyFrame { version, reply }).expect("a frame");
                        if stream.write_all(&bytes).is_err() {
                            break;
                        }
                    }
                }
            }
        });
        Self { socket, _directory: directory }
    }

    /// A daemon of this release.
    pub(crate) fn current(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        Self::new(PROTOCOL_VERSION, answer)
    }

    /// Runs `overlayctl` against this daemon.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        ctl(&self.socket, arguments)
    }
}

/// Runs `overlayctl` with a socket.
pub(crate) fn ctl(socket: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overlayctl"))
        .env("OVERLAY_SOCKET", socket)
        .args(arguments)
        .output()
        .expect("overlayctl runs")
}

/// The exit code.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}
