//! Frames of the node connection: a big-endian `u32` length and that many bytes of JSON. Over any stream, so
//! that TLS can come between.

use std::io;

use cid_protocol::node::MAX_FRAME;
use cid_streams::Frame;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Room for what one call of the kernel may bring.
const ROOM: usize = 16 * 1024;

/// Reads messages. Giving up on [`Reader::next`] loses nothing: what came of a frame is kept for the next call.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    stream: S,
    limit: usize,
    /// What came and is no whole frame yet; `used` bytes of it are read already.
    bytes: Vec<u8>,
    used: usize,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// Of a stream that stands between frames.
    pub(crate) fn new(stream: S) -> Self {
        Self::with_limit(stream, MAX_FRAME)
    }

    /// The same, of somebody who has little to say: a frame is at most `limit` bytes.
    pub(crate) fn with_limit(stream: S, limit: usize) -> Self {
        Self {
            stream,
            limit,
            bytes: Vec::new(),
            used: 0,
        }
    }

    /// The next message; `Ok(None)` at the end of the stream between frames.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next message, or the next frame of a job's: both travel to nodes over one connection.
    pub(crate) async fn next_of<T: DeserializeOwned>(&mut self) -> io::Result<Option<Either<T>>> {
        let Some(body) = self.next_body().await? else {
            return Ok(None);
        };
        if Frame::is_one(&body) {
            let frame = Frame::decode(&body).map_err(io::Error::other)?;
            return Ok(Some(Either::Work(frame)));
        }
        Ok(Some(Either::Message(serde_json::from_slice(&body)?)))
    }

    async fn next_body(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(body) = self.body()? {
                let (body, length) = (body.to_vec(), 4 + body.len());
                self.used += length;
                return Ok(Some(body));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more; `false` at the end of the stream between frames.
    async fn fill(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.reserve(ROOM);
        if self.stream.read_buf(&mut self.bytes).await? == 0 {
            return match self.bytes.is_empty() {
                true => Ok(false),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        Ok(true)
    }

    /// That many bytes behind the last message, which are no frame.
    pub(crate) async fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        self.bytes.drain(..self.used);
        self.used = 0;
        while self.bytes.len() < length {
            self.bytes.reserve(ROOM);
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let behind = self.bytes.split_off(length);
        Ok(std::mem::replace(&mut self.bytes, behind))
    }

    /// The next frame of what came already.
    fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(frame) = self.body()? else {
            return Ok(None);
        };
        let (message, length) = (serde_json::from_slice(frame)?, 4 + frame.len());
        self.used += length;
        Ok(Some(message))
    }

    /// Its body.
    fn body(&self) -> io::Result<Option<&[u8]>> {
        let waiting = self.bytes.get(self.used..).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > self.limit {
            let text = format!("a frame of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(rest.get(..length))
    }
}

/// What comes over a connection to the head.
#[derive(Debug)]
pub(crate) enum Either<T> {
    /// JSON.
    Message(T),
    /// About a job.
    Work(Frame),
}

/// Sends one message.
pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    // One write, one segment.
    stream.write_all(&frame(message)?).await?;
    stream.flush().await
}

/// One message as it travels.
pub(crate) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message above the frame limit"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use cid_protocol::node::{FromNode, ToNode};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime")
            .block_on(future)
    }

    #[test]
    fn frames_are_read_and_bad_ones_are_errors() {
        block_on(async {
            let json = br#"{"type":"pulse","time_unix_ms":5}"#;
            let frame = [&u32::try_from(json.len()).expect("short").to_be_bytes()[..], json].concat();
            let pulse = ToNode::Pulse {
                time_unix_ms: 5,
                plan: None,
            };
            let two = [&frame[..], &frame[..]].concat();
            let mut reader = Reader::new(two.as_slice());
            assert_eq!(reader.next().await.expect("valid"), Some(pulse.clone()));
            assert_eq!(reader.next().await.expect("valid"), Some(pulse));
            assert_eq!(reader.next::<ToNode>().await.expect("end"), None);
            assert!(Reader::new(&frame[..10]).next::<ToNode>().await.is_err());
            for wrong in [[0xff, 0xff, 0xff, 0xff, 1, 1], [0, 0, 0, 2, b'{', b'}']] {
                assert!(Reader::new(wrong.as_slice()).next::<ToNode>().await.is_err());
            }
        });
    }

    #[test]
    fn giving_up_in_the_middle_of_a_frame_loses_nothing() {
        block_on(async {
            let json = br#"{"type":"pulse","time_unix_ms":5}"#;
            let frame = [&u32::try_from(json.len()).expect("short").to_be_bytes()[..], json].concat();
            let (mut far, near) = tokio::io::duplex(1024);
            let mut reader = Reader::new(near);
            for part in frame.chunks(5) {
                let waiting = async { tokio::task::yield_now().await };
                tokio::select! {
                    biased;
                    message = reader.next::<ToNode>() => panic!("{message:?} of a part"),
                    () = waiting => {}
                }
                far.write_all(part).await.expect("room");
            }
            assert!(matches!(reader.next().await, Ok(Some(ToNode::Pulse { .. }))));
        });
    }

    #[test]
    fn raw_bytes_follow_a_frame_and_frames_follow_them() {
        block_on(async {
            let json = br#"{"type":"pulse","time_unix_ms":5}"#;
            let frame = [&u32::try_from(json.len()).expect("short").to_be_bytes()[..], json].concat();
            let stream = [&frame[..], b"raw", &frame[..]].concat();
            let mut reader = Reader::new(stream.as_slice());
            assert!(reader.next::<ToNode>().await.expect("valid").is_some());
            assert_eq!(reader.bytes(3).await.expect("there"), b"raw");
            assert!(reader.next::<ToNode>().await.expect("valid").is_some());
            assert!(reader.bytes(1).await.is_err());
        });
    }

    #[test]
    fn a_message_is_one_frame() {
        block_on(async {
            let mut bytes = Vec::new();
            write(
                &mut bytes,
                &FromNode::GoingHome {
                    reason: "key pressed".into(),
                    leaving: cid_protocol::node::Leaving::LocalBoot,
                    steps: Vec::new(),
                },
            )
            .await
            .expect("written");
            let (length, json) = bytes.split_first_chunk::<4>().expect("length");
            assert_eq!(u32::from_be_bytes(*length) as usize, json.len());
        });
    }
}
