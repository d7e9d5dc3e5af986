//! The server over real sockets in a temporary directory.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use overlay_control::api::{ApiError, CaptureRequest, Event, Request, Response, Severity};
use overlay_control::{Client, Code, ControlError, Timestamp};
use tokio::sync::{broadcast, watch};

use super::access::Right;
use super::server::BindError;
use super::{Access, Backend, Caller, NoBatches, Server};

struct Echo {
    events: broadcast::Sender<Event>,
}

impl Backend for Echo {
    type Batches = NoBatches;

    async fn handle(&self, _caller: Caller, request: Request) -> Result<Response, ApiError> {
        Ok(Response::Done { changed: request.is_change(), notes: vec![format!("{request:?}")] })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn capture(&self, _request: &CaptureRequest) -> Result<NoBatches, ApiError> {
        Err(ApiError::new(Code::Unsupported, "no captures", "this is a test", "use a daemon"))
    }
}

fn event(number: usize) -> Event {
    let cause = format!("{number} {}", "x".repeat(4096));
    Event { time: Timestamp::from_unix_ms(0), severity: Severity::Info, kind: "test".into(), subject: None, cause }
}

/// Runs a server for `check`, which runs on a blocking thread with the socket's path.
fn with_server(access: Access, check: impl FnOnce(&std::path::Path, &broadcast::Sender<Event>) + Send + 'static) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("overlayd.sock");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = Server::bind(&path, access).expect("the socket is free");
        let (stop, stopped) = watch::channel(false);
        let (events, _) = broadcast::channel(4);
        let running = tokio::spawn(Arc::new(server).run(Arc::new(Echo { events: events.clone() }), stopped));
        let socket = path.clone();
        tokio::task::spawn_blocking(move || check(&socket, &events)).await.expect("the check holds");
        stop.send(true).expect("the server still runs");
        running.await.expect("the server ends");
    });
    assert!(!path.exists(), "the socket file is removed");
}

fn own() -> Access {
    Access::new(nix_uid())
}

/// The user id of this process, from the owner of its own proc entry.
fn nix_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").expect("proc is mounted").uid()
}

fn code(result: Result<Response, ControlError>) -> String {
    result.expect_err("refused").to_api().code
}

#[test]
fn several_requests_on_one_connection_are_answered() {
    with_server(own(), |path, _| {
        assert_eq!(std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777, 0o660);
        let mut client = Client::connect(path).expect("connects");
        for request in [Request::Status, Request::PeerRemove { name: "h2".into() }] {
            let changed = request.is_change();
            let notes = vec![format!("{request:?}")];
            assert_eq!(client.call(request).expect("answered"), Response::Done { changed, notes });
        }
    });
}

#[test]
fn second_daemon_is_refused_and_left_over_socket_replaced() {
    with_server(own(), |path, _| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _guard = runtime.enter();
        assert!(matches!(Server::bind(path, own()), Err(BindError::InUse(_))));
        let left = path.with_file_name("left.sock");
        drop(std::os::unix::net::UnixListener::bind(&left).expect("binds"));
        assert!(left.exists(), "a dropped listener leaves its file");
        drop(Server::bind(&left, own()).expect("replaced"));
        let file = path.with_file_name("file");
        std::fs::write(&file, "precious").expect("written");
        assert!(matches!(Server::bind(&file, own()), Err(BindError::NotASocket(_))));
    });
}

#[test]
fn surplus_connection_is_told_so() {
    with_server(own(), |path, _| {
        let mut held: Vec<Client> = (0..64).map(|_| Client::connect(path).expect("connects")).collect();
        for client in &mut held {
            client.call(Request::Version).expect("answered");
        }
        let mut surplus = Client::connect(path).expect("connects");
        assert_eq!(code(surplus.call(Request::Version)), "BUSY");
    });
}

#[test]
fn oversized_unreadable_and_foreign_version_frames_are_explained() {
    with_server(own(), |path, _| {
        let frame = |body: &[u8]| [&u32::try_from(body.len()).expect("fits").to_be_bytes(), body].concat();
        for (bytes, code) in [
            ((1u32 << 21).to_be_bytes().to_vec(), "BAD_FRAME"),
            (frame(b"{}"), "BAD_FRAME"),
            (frame(b"\xff\xff"), "BAD_FRAME"),
            (frame(br#"{"version":9,"request":"new"}"#), "VERSION_SKEW"),
        ] {
            let mut stream = StdStream::connect(path).expect("connects");
            stream.write_all(&bytes).expect("written");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("answered and closed");
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.contains(&format!(r#""code":"{code}""#)), "{text}");
        }
    });
}

#[test]
fn follower_gets_events_and_slow_follower_is_closed() {
    with_server(own(), |path, events| {
        let mut fast = Client::connect(path).expect("connects");
        fast.call(Request::EventsFollow).expect("begun");
        events.send(event(1)).expect("somebody follows");
        assert_eq!(fast.next_event().expect("an event"), event(1));
        drop(fast);

        let mut slow = Client::connect(path).expect("connects");
        slow.call(Request::EventsFollow).expect("begun");
        for number in 0..2000 {
            // Fails when the follower was closed already, which is what this test is about.
            let _ = events.send(event(number));
        }
        let end = loop {
            match slow.next_event() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end.to_api().code, "LAGGED");
    });
}

#[test]
fn rights_follow_user_and_groups() {
    let directory = tempfile::tempdir().expect("a directory");
    let (passwd, group) = (directory.path().join("passwd"), directory.path().join("group"));
    std::fs::write(&passwd, "root:x:0:0::/:/bin/sh\nann:x:1001:1001::/:\nbob:x:1002:1002::/:\neve:x:1003:1003::/:\n")
        .expect("written");
    std::fs::write(&group, "overlay:x:800:bob\noverlay-admin:x:801:ann\nannex:x:803:eve\n").expect("written");
    let access = Access::with_files(990, passwd, group);
    let right = |uid, gid| access.right(Caller { uid, gid, pid: None });
    assert_eq!(right(0, 0), Right::Change, "root");
    assert_eq!(right(990, 990), Right::Change, "the daemon's own user");
    assert_eq!(right(1001, 1001), Right::Change, "listed in overlay-admin");
    assert_eq!(right(1003, 801), Right::Change, "primary group overlay-admin");
    assert_eq!(right(1002, 1002), Right::Read, "listed in overlay");
    assert_eq!(right(1003, 800), Right::Read, "primary group overlay");
    assert_eq!(right(1003, 1003), Right::None, "in neither");
    assert_eq!(right(7777, 7777), Right::None, "unknown user");
    assert_eq!(access.socket_gid(), Some(800));
}
