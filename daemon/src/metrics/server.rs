//! The HTTP server of the page: one path, one method, one request per connection, bounded in size, number and time.
//!
//! A web page in a browser on this host can make requests to loopback, and by a name that it lets point here (DNS
//! rebinding) it could read the answer too. Such a request names that name as its host, and is refused: only addresses and
//! `localhost` are served. The connection is driven by `hyper` itself, because the server that comes with `axum` lets
//! nobody bound a request's head or its time.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use overlay_control::api::Problem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::page::CONTENT_TYPE;

/// Where the page is.
const PATH: &str = "/metrics";
/// Connections at a time; the kernel keeps a few more waiting.
const MAX_CONNECTIONS: usize = 8;
/// The largest head of a request, in bytes: the least that `hyper` allows.
const MAX_HEAD_BYTES: usize = 8192;
/// Header fields in a request, at most.
const MAX_FIELDS: usize = 32;
/// How long to wait after a failed accept, so that the loop never spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a request may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadlines {
    /// For its head to arrive.
    pub(crate) head: Duration,
    /// For everything, the answer's taking included.
    pub(crate) whole: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { head: Duration::from_secs(3), whole: Duration::from_secs(10) }
    }
}

/// Who makes the page.
pub(crate) trait Source: Send + Sync + 'static {
    /// The page as text; `None` while it cannot be made.
    fn page(&self) -> impl Future<Output = Option<String>> + Send;
}

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    deadlines: Deadlines,
}

impl Server {
    /// Listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// With the problem to show: the daemon works without the page.
    pub(crate) async fn bind(address: SocketAddr, deadlines: Deadlines) -> Result<Self, Problem> {
        let problem = |error: std::io::Error| Problem {
            code: "METRICS_LISTEN".to_owned(),
            what: format!("the page of figures cannot be served at {address}"),
            why: error.to_string(),
            next: "free the address, or set metrics.listen to another one or to \"off\", and restart overlayd"
                .to_owned(),
        };
        let listener = TcpListener::bind(address).await.map_err(problem)?;
        let address = listener.local_addr().map_err(problem)?;
        Ok(Self { listener, address, deadlines })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is told.
    pub(crate) async fn run<S: Source>(self, source: Arc<S>, mut stop: watch::Receiver<bool>) {
        let local = self.address.ip();
        let router = Router::new()
            .route(PATH, get(answer::<S>))
            .layer(middleware::from_fn(move |request, next| guard(local, request, next)))
            .with_state(source);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                _ = stop.changed() => return,
                accepted = accept(&self.listener, &permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let connection = serve(stream, router.clone(), self.deadlines);
                    tokio::spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(cause = %error, "a connection to the page of figures was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // Each connection ends by itself in bounded time, so that waiting for a place is bounded too.
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve(stream: TcpStream, router: Router, deadlines: Deadlines) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadlines.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_FIELDS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(deadlines.whole, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(cause = %error, "a request for the page of figures failed"),
        Err(_) => tracing::debug!("a request for the page of figures took too long"),
    }
}

async fn answer<S: Source>(State(source): State<Arc<S>>) -> Response {
    match source.page().await {
        Some(page) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Lets only such requests through as a collector on this host makes.
async fn guard(local: IpAddr, request: Request, next: Next) -> Response {
    let mut response = match host(request.uri(), request.headers()) {
        None => StatusCode::BAD_REQUEST.into_response(),
        Some(host) if !may_be_named(&host, local) => StatusCode::MISDIRECTED_REQUEST.into_response(),
        Some(_) if request.method() != Method::GET => {
            (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]).into_response()
        }
        Some(_) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// The host a request is meant for; `None` unless it names exactly one.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let mut fields = headers.get_all(header::HOST).iter();
    let field: Authority = fields.next()?.to_str().ok()?.parse().ok()?;
    let named = uri.authority().is_none_or(|authority| authority.host() == field.host());
    (fields.next().is_none() && named).then(|| field.host().to_ascii_lowercase())
}

/// Whether a request for this host is for us and no rebound name.
fn may_be_named(host: &str, local: IpAddr) -> bool {
    if host == "localhost" {
        return true;
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        // An address cannot be rebound. Where the page is open to others, it is asked for by one of theirs.
        Ok(address) => address.to_canonical().is_loopback() || !local.is_loopback(),
        Err(_) => false,
    }
}
