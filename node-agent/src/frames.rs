//! Frames of the node connection: a big-endian `u32` length and that many bytes of JSON. Over any stream, so
//! that TLS can come between.

use std::io;

use cid_protocol::node::{FromNode, MAX_FRAME, ToNode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The next message; `Ok(None)` at the end of the stream between frames.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<ToNode>> {
    let length = match stream.read_u32().await {
        Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes"),
        ));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    let message = serde_json::from_slice(&bytes)?;
    Ok(Some(message))
}

/// Sends one message.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &FromNode) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message above the frame limit"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(json);
    // One write, one segment.
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
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
            assert_eq!(
                read(&mut frame.as_slice()).await.expect("valid"),
                Some(ToNode::Pulse {
                    time_unix_ms: 5,
                    plan: None
                })
            );
            assert_eq!(read(&mut [].as_slice()).await.expect("end"), None);
            assert!(read(&mut &frame[..10]).await.is_err());
            assert!(read(&mut [0xff, 0xff, 0xff, 0xff, 1].as_slice()).await.is_err());
            assert!(read(&mut [0, 0, 0, 2, b'{', b'}'].as_slice()).await.is_err());
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
