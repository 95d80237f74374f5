//! HTTP for loaders: GET and HEAD of the files, with ranges. Must stay plain enough for firmware.
//!
//! Header names are written in title case, because GRUB as Red Hat patched it compares `Content-Length: ` with its
//! case (rhboot/grub2 issue 216); no redirect, no chunked coding, always HTTP/1.1 (pxe.md rows 28-30).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE,
    RETRY_AFTER, USER_AGENT,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::directory::Directory;
use crate::files::{Files, Refusal};
use crate::roots::{self, RootDoor, RootRefusal};

/// Well-known port.
pub const PORT: u16 = 80;
/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// Connections of one address at a time: loaders use one, a shell behind one NAT a few.
const MAX_PER_ADDRESS: usize = 16;
/// Time to send the request line and headers.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Longest life of a connection: 20 MB at 1 Mbit/s are done by then.
const CONNECTION_TIME: Duration = Duration::from_secs(600);
/// Memory for a request's head, in bytes; hyper's smallest.
const MAX_HEAD: usize = 8 * 1024;

/// Why a connection was ended or a request refused before a path was looked at. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Drop {
    /// No HTTP request, or a head that was too long or did not come in time.
    #[error("http-broken-request")]
    BrokenRequest,
    /// The connection was open for [`CONNECTION_TIME`].
    #[error("http-connection-too-long")]
    TooLong,
    /// Neither GET nor HEAD.
    #[error("http-method-not-allowed")]
    Method,
    /// The address has [`MAX_PER_ADDRESS`] connections already.
    #[error("http-too-many-connections")]
    TooManyConnections,
}

/// Open connections by address, so that one stranger cannot keep a room from booting.
#[derive(Default)]
struct PerAddress(Mutex<BTreeMap<IpAddr, usize>>);

impl PerAddress {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Entered> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Entered {
            all: Arc::clone(self),
            address,
        })
    }
}

/// Leaves again when it is dropped.
struct Entered {
    all: Arc<PerAddress>,
    address: IpAddr,
}

impl std::ops::Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Serves until the task ends.
pub async fn serve<D: Directory>(listener: TcpListener, files: Files<D>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = Arc::new(PerAddress::default());
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before we came: neither ends the server.
                tracing::warn!(%error, "HTTP connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(entered) = addresses.enter(peer.ip()) else {
            files.count(&Drop::TooManyConnections);
            continue;
        };
        let files = files.clone();
        tokio::spawn(async move {
            let reset_on_close = ResetOnClose::of(&stream);
            serve_connection(stream, &reset_on_close, peer, &files).await;
            drop((slot, entered));
        });
    }
}

/// Serves one connection to its end; apart from the listener so that a test may give it a stream and a clock of its own.
pub async fn serve_connection<D: Directory, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    reset_on_close: &ResetOnClose,
    peer: SocketAddr,
    files: &Files<D>,
) {
    let service = service_fn(|request| async {
        let grub = is_grub(&request);
        let response = answer(files, peer, request).await;
        if grub && !response.status().is_success() {
            return Err(HungUp);
        }
        Ok(response)
    });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => reset_on_close.disarm(),
        // Refused and counted in `answer` already.
        Ok(Err(error)) if error.is_user() => {}
        Ok(Err(error)) => {
            reset_on_close.disarm();
            tracing::debug!(%peer, %error, "HTTP connection broken");
            files.count(&Drop::BrokenRequest);
        }
        Err(_) => {
            tracing::debug!(%peer, "HTTP connection held too long");
            files.count(&Drop::TooLong);
        }
    }
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
struct HungUp;

/// GRUB 2.12 takes a complete 404 answer for a file of unknown length and waits for its bytes for minutes: after the
/// status line of an error it reads the next header as another status line, and then forgets the error
/// (`grub-core/net/http.c`, parse_line). It notices no FIN either. What it does understand is a reset.
fn is_grub(request: &Request<Incoming>) -> bool {
    let agent = request.headers().get(USER_AGENT);
    agent.is_some_and(|value| value.as_bytes().starts_with(b"GRUB "))
}

/// A second handle of a connection's socket: while it is armed, a close is a reset. It is armed from the beginning, because GRUB
/// waits for 106 s in a transfer that ended with a FIN, and a head that is killed has no other word left. What ends in good
/// order is disarmed, so that the kernel delivers the last bytes.
#[derive(Default)]
pub struct ResetOnClose(Option<Socket>);

impl ResetOnClose {
    fn of(stream: &TcpStream) -> Self {
        let this = Self(stream.as_fd().try_clone_to_owned().ok().map(Socket::from));
        this.linger(Some(Duration::ZERO));
        this
    }

    fn disarm(&self) {
        self.linger(None);
    }

    fn linger(&self, linger: Option<Duration>) {
        if let Some(socket) = &self.0 {
            // Where it fails GRUB gives up later: slower, not worse.
            let _ = socket.set_linger(linger);
        }
    }
}

async fn answer<D: Directory>(
    files: &Files<D>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let client = match peer.ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        files.count(&Drop::Method);
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if let Some(door) = files.roots().filter(|_| roots::is_root(request.uri().path())) {
        return match root_part(door, &request).await {
            Ok(response) => response,
            Err(refusal) => {
                files.count(&refusal);
                root_refused(refusal)
            }
        };
    }
    // iPXE writes `@` as `%40` (RFC 3986, 2.1 allows it); what is no UTF-8 behind that is a path that nobody has.
    let content = match percent_decode_str(request.uri().path()).decode_utf8() {
        Ok(path) => files.open(client, &path).await,
        Err(_) => {
            files.count(&Refusal::BadPath);
            Err(Refusal::BadPath)
        }
    };
    let refused = |status| {
        let mut response = plain(status);
        // shim (16.1, `httpboot.c`) waits for bytes of a body or the end of the connection, whatever the status: without this
        // each of the three files that it tries and need not find costs [`HEADER_TIME`]. Who sent HEAD (EDK2, and GRUB through
        // it) goes on over the same connection.
        if request.method() == Method::GET {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    };
    match content {
        Ok(bytes) => {
            let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
            file(
                &bytes,
                content_type(request.uri().path()),
                range,
                request.method() == Method::HEAD,
            )
        }
        Err(Refusal::NotCommitted) => refused(StatusCode::SERVICE_UNAVAILABLE),
        Err(Refusal::BadPath) => refused(StatusCode::BAD_REQUEST),
        Err(_) => refused(StatusCode::NOT_FOUND),
    }
}

/// Of a root image: a range, or the whole where that is not longer than a range may be.
async fn root_part(
    door: &RootDoor,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, RootRefusal> {
    let path = request.uri().path();
    let size = door.size(path).await?;
    let total = usize::try_from(size).map_err(|_| RootRefusal::Range)?;
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let (status, part) = match range.map_or(Wish::Whole, |text| parse_range(text, total)) {
        Wish::Whole => (StatusCode::OK, 0..size),
        Wish::Part(part) => (StatusCode::PARTIAL_CONTENT, part.start as u64..part.end as u64),
        Wish::Impossible => return Err(RootRefusal::Range),
    };
    let length = part.end - part.start;
    let content_range = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
    let body = if request.method() == Method::HEAD {
        Bytes::new()
    } else {
        door.read(path, part).await?
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&content_range)
    {
        headers.insert(CONTENT_RANGE, value);
    }
    Ok(response)
}

fn root_refused(refusal: RootRefusal) -> Response<Full<Bytes>> {
    let mut response = plain(match refusal {
        RootRefusal::Unknown => StatusCode::NOT_FOUND,
        RootRefusal::Range => StatusCode::RANGE_NOT_SATISFIABLE,
        RootRefusal::Changed | RootRefusal::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
        RootRefusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
    });
    let why = HeaderValue::from_str(&refusal.to_string());
    let headers = response.headers_mut();
    if refusal == RootRefusal::Busy {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // An agent shows it to whoever stands before the PC.
    if let Ok(why) = why {
        headers.insert("cid-refusal", why);
    }
    response
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// UEFI HTTP Boot tells an application by its media type or its suffix.
fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().map(str::to_ascii_lowercase).as_deref() {
        Some("efi") => "application/efi",
        Some("ipxe" | "cfg" | "ps1") => "text/plain; charset=utf-8",
        _ if path.trim_matches('/').eq_ignore_ascii_case("windows") => "text/html; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn file(bytes: &Bytes, media_type: &'static str, range: Option<&str>, head: bool) -> Response<Full<Bytes>> {
    let total = bytes.len();
    let wanted = range.map_or(Wish::Whole, |text| parse_range(text, total));
    let (status, part) = match wanted {
        Wish::Whole => (StatusCode::OK, 0..total),
        Wish::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wish::Impossible => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE);
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
                response.headers_mut().insert(CONTENT_RANGE, value);
            }
            return response;
        }
    };
    let body = if head {
        Bytes::new()
    } else {
        bytes.slice(part.clone())
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(part.len()));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&format!(
            "bytes {}-{}/{total}",
            part.start,
            part.end.saturating_sub(1)
        ))
    {
        headers.insert(CONTENT_RANGE, value);
    }
    response
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Whole,
    Part(Range<usize>),
    Impossible,
}

/// One byte range (RFC 9110 14.1.2). Several ranges, and what we cannot read, mean the whole file (14.2 allows it).
fn parse_range(text: &str, total: usize) -> Wish {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Wish::Whole;
    };
    match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
        (Ok(first), _) if first >= total => Wish::Impossible,
        (Ok(first), Ok(last)) if first <= last => Wish::Part(first..last.saturating_add(1).min(total)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Wish::Part(first..total),
        (Err(_), Ok(0)) if first.trim().is_empty() => Wish::Impossible,
        (Err(_), Ok(suffix)) if first.trim().is_empty() => Wish::Part(total.saturating_sub(suffix)..total),
        _ => Wish::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-3", Wish::Part(0..4)),
            ("bytes=4-", Wish::Part(4..10)),
            ("bytes=-3", Wish::Part(7..10)),
            ("bytes=-99", Wish::Part(0..10)),
            ("bytes=8-99", Wish::Part(8..10)),
            ("bytes=10-", Wish::Impossible),
            ("bytes=-0", Wish::Impossible),
            ("bytes=3-1", Wish::Whole),
            ("bytes=0-1,3-4", Wish::Whole),
            ("lines=0-1", Wish::Whole),
            ("bytes=0-18446744073709551615", Wish::Part(0..10)),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wish::Impossible);
    }
}
