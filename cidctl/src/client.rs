//! HTTP/1.1 over the head's Unix socket, one connection per request. Must not interpret answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cid_protocol::api::Problem;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// A head that takes longer is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer taken, in bytes: 4,096 strangers with their hardware stay far below.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("the head is not reachable on {path}: {source}; {remedy}")]
    Unreachable {
        /// Socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// No node answers there.
    #[error(
        "no node is reachable at {address}: {source}; look for its address in `cidctl nodes` or on its screen, and ask another node"
    )]
    NodeUnreachable {
        /// Address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The head refuses.
    #[error("{}", one_line(.0))]
    Refused(Problem),
    /// The head broke off, answered nonsense, or took too long.
    #[error("the head gave no usable answer: {0}")]
    Broken(String),
}

fn one_line(problem: &Problem) -> String {
    if problem.remedy.is_empty() {
        problem.error.clone()
    } else {
        format!("{}; {}", problem.error, problem.remedy)
    }
}

/// A head's socket.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET path`; `query` values are encoded.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        let mut uri = path.to_owned();
        for (at, (key, value)) in query.iter().enumerate() {
            uri.push(if at == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            uri.push_str(&encode(value));
        }
        self.request(Method::GET, &uri, Vec::new()).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.request(Method::POST, path, body).await
    }

    /// `GET path`, upgraded to another protocol on the same connection.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| unreachable(&self.socket, source))?;
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .uri(path)
            .header("host", "head")
            .header("connection", "upgrade")
            .header("upgrade", protocol)
            .body(Full::new(Bytes::new()))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
            return Ok(TokioIo::new(upgraded));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| ClientError::Broken(error.to_string()))?;
        Err(match serde_json::from_slice(&body.to_bytes()) {
            Ok(problem) => ClientError::Refused(problem),
            Err(_) => ClientError::Broken(format!("status {status}")),
        })
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| unreachable(&self.socket, source))?;
        let exchange = exchange(stream, method, uri, body);
        let (status, bytes) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| ClientError::Broken(format!("nothing came for {} s", PATIENCE.as_secs())))??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| ClientError::Broken(error.to_string()));
        }
        Err(match serde_json::from_slice(&bytes) {
            Ok(problem) => ClientError::Refused(problem),
            Err(_) => ClientError::Broken(format!("status {status}")),
        })
    }
}

fn unreachable(path: &Path, source: std::io::Error) -> ClientError {
    let remedy = match source.kind() {
        std::io::ErrorKind::PermissionDenied => "run this as root or as a member of the socket's group",
        std::io::ErrorKind::NotFound => {
            "start it (`systemctl start cidhead`), or name its socket with --socket"
        }
        _ => "start it (`systemctl start cidhead`)",
    };
    ClientError::Unreachable {
        path: path.to_owned(),
        source,
        remedy,
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    uri: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "head")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| ClientError::Broken(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok((
        status,
        body.map_err(|error| ClientError::Broken(error.to_string()))?
            .to_bytes(),
    ))
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_sets_survive_the_query() {
        assert_eq!(encode("lab-a[01-20,25]&@x"), "lab-a%5B01-20%2C25%5D%26%40x");
    }
}
