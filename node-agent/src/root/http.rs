//! As much of HTTP/1.1 (RFC 9112) as fetching parts of a file takes: GET with Range over one connection that is kept. What comes is
//! worth nothing until it was checked against the image's tree; must never take more bytes than were asked for.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longest head of a response, in bytes, and most header fields.
const MAX_HEAD: usize = 4096;
const MAX_FIELDS: usize = 32;
/// Longest word of the head for people, in characters.
const MAX_WHY: usize = 200;
/// How long the server may take to answer the dial.
const CONNECT_BOUND: Duration = Duration::from_secs(10);
/// A server that sends no byte for this long has failed.
const SILENCE_BOUND: Duration = Duration::from_secs(20);
/// What is read at once.
const ROOM: usize = 64 * 1024;

/// What a server said instead of sending what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declined {
    /// The status code.
    pub(crate) status: u16,
    /// `Retry-After` in seconds.
    pub(crate) retry_after: Option<Duration>,
    /// The head's words for people (`Cid-Refusal`); empty when it has none.
    pub(crate) why: String,
}

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered, and not with what was asked for. The connection is good for another question.
    Declined(Declined),
    /// The connection is gone, or speaks something else.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Failure {
    /// Whether the server has what it takes and will not give this, as far as one answer tells.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Declined(declined) if matches!(declined.status, 404 | 416 | 500))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Declined(declined) if declined.why.is_empty() => {
                write!(f, "it answers with status {}", declined.status)
            }
            Self::Declined(declined) => f.write_str(&declined.why),
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}

/// A connection between questions.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    host: String,
    /// Bytes that came behind a head.
    rest: Vec<u8>,
}

/// Dials over `link`, from its address: as with the connection to the head, the link decides the way.
pub(crate) async fn dial(link: &str, from: Ipv4Addr, to: SocketAddrV4) -> io::Result<Connection<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = bounded(CONNECT_BOUND, socket.connect(to.into())).await?;
    stream.set_nodelay(true)?;
    Ok(Connection::new(stream, to.to_string()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over any stream.
    pub(crate) fn new(stream: S, host: String) -> Self {
        let rest = Vec::new();
        Self { stream, host, rest }
    }

    /// These bytes of the file at `path`, as many as were asked for and no other number.
    pub(crate) async fn part(&mut self, path: &str, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let last = range.end.saturating_sub(1);
        let question = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nRange: bytes={}-{last}\r\nUser-Agent: cid-agent\r\n\r\n",
            self.host, range.start
        );
        bounded(SILENCE_BOUND, self.stream.write_all(question.as_bytes())).await?;
        let head = self.head().await?;
        let declined = match head.status {
            206 if head.first == Some(range.start) && head.length == Some(length) => None,
            // A server without ranges sends the whole file, which may be all that was asked for.
            200 if range.start == 0 && head.length == Some(length) => None,
            status => Some(Declined {
                status,
                retry_after: head.retry_after,
                why: head.why.clone(),
            }),
        };
        match declined {
            None => Ok(self.body(length).await?),
            Some(declined) if head.length.is_some_and(|length| length <= MAX_HEAD) => {
                self.body(head.length.unwrap_or(0)).await?;
                Err(Failure::Declined(declined))
            }
            // Its text is not worth reading, so the connection is of no further use.
            Some(declined) => Err(Failure::Broken(io::Error::other(format!(
                "it answers with status {}",
                declined.status
            )))),
        }
    }

    async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, used)) = parse(&self.rest)? {
                self.rest.drain(..used);
                return Ok(head);
            }
            if self.rest.len() >= MAX_HEAD {
                return Err(io::Error::other("the head of its answer is too long"));
            }
            self.fill().await?;
        }
    }

    async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.rest.len() < length {
            self.rest.reserve((length - self.rest.len()).min(ROOM));
            self.fill().await?;
        }
        let behind = self.rest.split_off(length);
        Ok(std::mem::replace(&mut self.rest, behind))
    }

    async fn fill(&mut self) -> io::Result<()> {
        match bounded(SILENCE_BOUND, self.stream.read_buf(&mut self.rest)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// What counts of the head of a response.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    status: u16,
    length: Option<usize>,
    /// First byte of `Content-Range`.
    first: Option<u64>,
    retry_after: Option<Duration>,
    why: String,
}

/// The head and its length in bytes; `None` while it is not whole.
fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let used = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("its answer is no HTTP: {error}"))),
    };
    let text = |name: &str| {
        let field = response
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok().map(str::trim)
    };
    let first = |range: &str| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok();
    let head = Head {
        status: response.code.unwrap_or(0),
        length: text("content-length").and_then(|text| text.parse().ok()),
        first: text("content-range").and_then(first),
        retry_after: text("retry-after")
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs),
        why: text("cid-refusal")
            .unwrap_or_default()
            .chars()
            .take(MAX_WHY)
            .collect(),
    };
    Ok(Some((head, used)))
}

async fn bounded<T>(bound: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(bound, work).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("runtime")
            .block_on(future)
    }

    /// Answers of a server to questions for bytes 4 to 8; `Err` is the text of what is wrong.
    fn ask(answers: &str) -> Vec<Result<String, String>> {
        block_on(async {
            let (near, mut far) = duplex(64 * 1024);
            far.write_all(answers.as_bytes()).await.expect("room");
            let reads = async {
                let mut question = vec![0; 1024];
                let length = far.read(&mut question).await.expect("a question");
                let text = String::from_utf8_lossy(&question[..length]).into_owned();
                assert!(text.starts_with(
                    "GET /root/ab/chunks HTTP/1.1\r\nHost: 10.77.0.1:80\r\nRange: bytes=4-7\r\n"
                ));
                far.shutdown().await.expect("a close");
            };
            let mut connection = Connection::new(near, "10.77.0.1:80".into());
            let mut found = Vec::new();
            let asks = async {
                for _ in 0..2 {
                    let part = connection.part("/root/ab/chunks", 4..8).await;
                    found.push(match part {
                        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                        Err(failure) => Err(failure.to_string()),
                    });
                }
            };
            tokio::join!(reads, asks);
            found
        })
    }

    #[test]
    fn parts_come_one_after_another() {
        let part =
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 4-7/100\r\n\r\nabcd";
        let found = ask(&format!("{part}{}", part.replace("abcd", "efgh")));
        assert_eq!(found, [Ok("abcd".to_owned()), Ok("efgh".to_owned())]);
        let changed = "HTTP/1.1 500 Oh\r\nCid-Refusal: its disk lies\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(ask(changed)[0], Err("its disk lies".to_owned()));
        let busy = "HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno";
        let found = ask(&format!("{busy}{part}"));
        assert_eq!(
            found,
            [
                Err("it answers with status 503".to_owned()),
                Ok("abcd".to_owned())
            ]
        );
    }

    #[test]
    fn another_number_of_bytes_than_asked_for_is_never_taken() {
        for answer in [
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 4-8/100\r\n\r\nabcde",
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/100\r\n\r\nabcd",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd",
            "HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n",
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 4-7/100\r\n\r\nab",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert!(ask(answer)[0].is_err(), "{answer}");
        }
        let long = format!("HTTP/1.1 206 P\r\nX: {}\r\n\r\n", "y".repeat(MAX_HEAD));
        assert!(ask(&long)[0].is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, used))) = parse(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
