//! HTTP over a unix socket: one POST per call, bounded in size, number and time.
//!
//! Every call is answered within 3 s, whatever the daemon or the disk does: work that takes longer goes on and its answer is
//! lost, and what it made is found by the next comparison.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::driver::Driver;
use super::firewall;
use super::refusal::Refusal;

/// What dockerd names its plugin protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// The longest call read, in bytes.
const LONGEST_CALL: usize = 1 << 20;
/// Connections at a time; dockerd opens one per call under way.
const MAX_CONNECTIONS: usize = 256;
/// When a call is answered at the latest.
const ANSWER: Duration = Duration::from_millis(2900);
/// How long a call may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(2);
/// How long to wait after a failed accept, so that the loop never spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends.
///
/// # Errors
/// When the socket cannot be used.
pub(super) async fn run(listener: StdListener, driver: Arc<Driver>) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("a connection could not be taken: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let driver = Arc::clone(&driver);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&driver)));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
            // A peer that goes away is no error of ours.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, driver: Arc<Driver>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answered = tokio::time::timeout(ANSWER, take(request, driver)).await;
    let result = answered.unwrap_or_else(|_| {
        Err(Refusal::new("overlayd: no answer in time; the daemon or the disk hangs: see `systemctl status overlayd`"))
    });
    let (status, value) = match result {
        Ok(value) => (StatusCode::OK, value),
        // Network drivers say `Err`, IPAM drivers `Error`; dockerd overlooks the other one.
        Err(refusal) => {
            let status = if refusal.unreadable { StatusCode::BAD_REQUEST } else { StatusCode::OK };
            (status, json!({ "Err": refusal.to_string(), "Error": refusal.to_string() }))
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(MEDIA_TYPE));
    Ok(response)
}

async fn take(request: Request<Incoming>, driver: Arc<Driver>) -> Result<Value, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::unreadable("calls are POST requests"));
    }
    let path = request.uri().path().to_owned();
    let arriving = Limited::new(request.into_body(), LONGEST_CALL).collect();
    let body = tokio::time::timeout(ARRIVAL, arriving).await.map_err(Refusal::unreadable)?;
    let body = body.map_err(Refusal::unreadable)?.to_bytes();
    let work = tokio::task::spawn_blocking(move || {
        let result = driver.answer(&path, &body);
        match &result {
            Err(error) => eprintln!("{path} refused: {error}"),
            // dockerd may have just made its rules, or made them again.
            Ok(_) if path == "/NetworkDriver.Join" => firewall::admit_soon(),
            Ok(_) => {}
        }
        result
    });
    work.await.map_err(|error| Refusal::new(format!("overlayd: the plugin failed: {error}")))?
}
