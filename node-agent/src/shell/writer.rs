//! The sending half of a connection to the head, in a task of its own. Messages of the node go before anything that programs say, so that
//! a heartbeat waits for one frame at the most.

use std::io;

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::frames;
use crate::jobs::ToHead;

/// Frames of jobs that may wait.
const BULK: usize = 16;

type Message = (Vec<u8>, oneshot::Sender<io::Result<()>>);

pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    bulk: ToHead,
}

impl Writer {
    /// Ends when it is dropped, and with it what waits.
    pub(super) fn start(mut stream: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let (messages, mut first) = mpsc::channel::<Message>(1);
        let (bulk, mut then) = mpsc::channel::<Vec<u8>>(BULK);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    message = first.recv() => {
                        let Some((bytes, done)) = message else { break };
                        let written = write(&mut stream, &bytes).await;
                        let _ = done.send(written);
                    }
                    Some(bytes) = then.recv() => {
                        if write(&mut stream, &bytes).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        Self { messages, bulk }
    }

    /// Where frames of jobs go.
    pub(super) fn bulk(&self) -> ToHead {
        self.bulk.clone()
    }

    /// Sends a message; done when the kernel has it.
    ///
    /// # Errors
    /// The connection's.
    pub(super) async fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let bytes = frames::frame(message)?;
        self.messages.send((bytes, done)).await.map_err(|_| gone())?;
        written.await.map_err(|_| gone())?
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
