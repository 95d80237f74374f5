//! The connection to the head, with the streams of the job. Two tasks carry frames; nobody else waits for the socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid_protocol::work::{FromClient, MAX_CONTROL, ToClient};
use cid_streams::{Frame, Mux, Received, StreamId, window};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};

/// What came.
#[derive(Debug)]
pub(super) enum Heard {
    Told(ToClient),
    Data(StreamId, Bytes),
    End(StreamId),
}

#[derive(Clone)]
pub(super) struct Port {
    shared: Arc<Shared>,
    heard: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Heard>>>,
}

struct Shared {
    mux: Mutex<Mux>,
    stopped: Mutex<BTreeMap<StreamId, ()>>,
    /// Something is to be sent.
    wake: Notify,
    /// Something was sent.
    sent: Notify,
}

impl Shared {
    fn mux(&self) -> MutexGuard<'_, Mux> {
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    pub(super) fn open<S>(stream: S, ranks: u32) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let shared = Arc::new(Shared {
            mux: Mutex::new(Mux::new(0..ranks, window(ranks))),
            stopped: Mutex::default(),
            wake: Notify::new(),
            sent: Notify::new(),
        });
        // What waits in it is bounded by the windows.
        let (sender, heard) = mpsc::unbounded_channel();
        tokio::spawn(receive(
            Arc::clone(&shared),
            BufReader::with_capacity(CHUNK, reader),
            sender,
        ));
        tokio::spawn(send(Arc::clone(&shared), writer));
        Self {
            shared,
            heard: Arc::new(tokio::sync::Mutex::new(heard)),
        }
    }

    /// The next; `None` when the head is gone.
    pub(super) async fn hear(&self) -> Option<Heard> {
        self.heard.lock().await.recv().await
    }

    pub(super) fn tell(&self, message: &FromClient) {
        if let Ok(text) = serde_json::to_vec(message) {
            self.shared.mux().control(text);
            self.shared.wake.notify_one();
        }
    }

    pub(super) fn queue(&self, stream: StreamId, data: &[u8]) {
        self.shared.mux().queue(stream, data);
        self.shared.wake.notify_one();
    }

    pub(super) fn end(&self, stream: StreamId) {
        self.shared.mux().end(stream);
        self.shared.wake.notify_one();
    }

    pub(super) fn consumed(&self, stream: StreamId, bytes: usize) {
        self.shared.mux().consumed(stream, bytes);
        self.shared.wake.notify_one();
    }

    /// Nobody here reads this stream any more.
    pub(super) fn stop(&self, stream: StreamId) {
        self.shared.mux().stop(stream);
        self.shared.wake.notify_one();
    }

    /// Waits until all of these take something, and says how much; `None` when none of them will again.
    pub(super) async fn room(&self, streams: &[StreamId]) -> Option<usize> {
        loop {
            {
                let mux = self.shared.mux();
                let stopped = self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                let open = streams.iter().filter(|stream| !stopped.contains_key(stream));
                match open.map(|stream| mux.room(*stream)).min() {
                    None => return None,
                    Some(0) => {}
                    Some(room) => return Some(room),
                }
            }
            self.shared.sent.notified().await;
        }
    }

    /// Waits until what was told has left, or so long.
    pub(super) async fn flushed(&self, most: Duration) {
        let flushed = async {
            while self.shared.mux().waiting_first() > 0 {
                self.shared.sent.notified().await;
            }
        };
        let _ = tokio::time::timeout(most, flushed).await;
    }
}

const CHUNK: usize = 64 * 1024;

async fn send(shared: Arc<Shared>, mut writer: impl AsyncWrite + Unpin) {
    loop {
        let next = shared.mux().poll_frame();
        let Some(kind) = next else {
            shared.wake.notified().await;
            continue;
        };
        if writer.write_all(&Frame { job: 0, kind }.encode()).await.is_err() {
            return;
        }
        shared.sent.notify_one();
    }
}

/// Ends, and with it what is heard, when the head is gone or says what it must not.
async fn receive(
    shared: Arc<Shared>,
    mut reader: impl AsyncRead + Unpin,
    heard: mpsc::UnboundedSender<Heard>,
) {
    while let Ok(length) = reader.read_u32().await {
        let length = length as usize;
        if length > MAX_CONTROL {
            return;
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).await.is_err() {
            return;
        }
        let Ok(frame) = Frame::decode(&body) else { return };
        let received = shared.mux().handle(frame.kind);
        let Ok(received) = received else { return };
        let said = match received {
            Some(Received::Control(text)) => match serde_json::from_slice(&text) {
                Ok(message) => Heard::Told(message),
                Err(_) => return,
            },
            Some(Received::Data(stream, data)) => Heard::Data(stream, data),
            Some(Received::End(stream)) => Heard::End(stream),
            Some(Received::Credit(_)) => {
                shared.wake.notify_one();
                continue;
            }
            Some(Received::Stop(stream)) => {
                let mut stopped = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                stopped.insert(stream, ());
                shared.sent.notify_one();
                continue;
            }
            None => continue,
        };
        if heard.send(said).is_err() {
            return;
        }
    }
}
