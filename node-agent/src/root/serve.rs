//! What this node gives to others at its door: chunks that it has checked itself, to members only. How much and to whom first is decided
//! by `cid-content`; here are its clock and its connections.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cid_content::Bitmap;
use cid_content::serve::{Output, Uploads, Visitor};
use cid_protocol::peer::FromPeer;
use cid_protocol::root::{MAX_WAIT_MS, RootAnswer, RootQuestion};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::encode_set;
use super::store::Store;
use crate::frames;

/// A peer that does not take a chunk in this time is left.
const UPLOAD_BOUND: Duration = Duration::from_secs(20);
/// Without a deadline of the core.
const IDLE: Duration = Duration::from_secs(60);

/// What a node has of an image, for whoever asks; it grows.
#[derive(Debug)]
pub(crate) struct Offer {
    tree: String,
    store: Arc<Store>,
    started: Instant,
    state: Mutex<State>,
    changed: Notify,
    visitors: AtomicU64,
}

#[derive(Debug)]
struct State {
    core: Uploads,
    /// Who waits for the core's word.
    waiting: BTreeMap<Visitor, oneshot::Sender<Output>>,
}

/// Where the door finds what this node offers; `None` before it fetches anything.
pub(crate) type Offered = watch::Receiver<Option<Arc<Offer>>>;

impl Offer {
    /// Of this file, with what is in it already.
    pub(crate) fn new(store: Arc<Store>, have: Bitmap) -> Arc<Self> {
        let seed = cid_trust::random().map_or(0, u64::from_ne_bytes);
        let core = Uploads::new(have, store.tree().shape().chunk_bytes(), None, seed);
        let waiting = BTreeMap::new();
        let offer = Arc::new(Self {
            tree: store.tree().root().to_string(),
            store,
            started: Instant::now(),
            state: Mutex::new(State { core, waiting }),
            changed: Notify::new(),
            visitors: AtomicU64::new(0),
        });
        tokio::spawn(keep_time(Arc::downgrade(&offer)));
        offer
    }

    /// This chunk is in the file now, and right.
    pub(crate) fn add(&self, chunk: u32) {
        self.act(|core, _| core.handle_chunk(chunk));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the core act, and hands its words to those who wait for them.
    fn act(&self, work: impl FnOnce(&mut Uploads, Duration)) {
        let mut state = self.state();
        let State { core, waiting } = &mut *state;
        work(core, self.started.elapsed());
        while let Some(output) = core.poll_output() {
            let visitor = match &output {
                Output::Give { visitor, .. } | Output::Busy { visitor, .. } => *visitor,
                Output::Have(visitor) | Output::Missing(visitor) => *visitor,
            };
            if let Some(sender) = waiting.remove(&visitor) {
                let _ = sender.send(output);
            }
        }
        self.changed.notify_one();
    }

    async fn ask(
        &self,
        visitor: Visitor,
        question: impl FnOnce(&mut Uploads, Duration),
    ) -> io::Result<Output> {
        let (sender, answer) = oneshot::channel();
        self.state().waiting.insert(visitor, sender);
        self.act(question);
        answer.await.map_err(io::Error::other)
    }

    fn have(&self) -> String {
        encode_set(self.state().core.have())
    }
}

/// The core's clock, as long as the offer stands.
async fn keep_time(offer: Weak<Offer>) {
    while let Some(offer) = offer.upgrade() {
        let deadline = offer.state().core.next_deadline();
        let until = deadline.map_or_else(|| Instant::now() + IDLE, |deadline| offer.started + deadline);
        tokio::select! {
            () = sleep_until(until) => offer.act(|core, now| core.handle_deadline(now)),
            () = offer.changed.notified() => {}
        }
    }
}

/// One connection that asks for chunks. Dropping it frees its places.
#[derive(Debug, Default)]
pub(crate) struct Served {
    of: Option<(Arc<Offer>, Visitor)>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some((offer, visitor)) = self.of.take() {
            offer.state().waiting.remove(&visitor);
            offer.act(|core, now| core.handle_gone(now, visitor));
        }
    }
}

impl Served {
    /// Answers one question.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) async fn answer(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        offered: &Offered,
        question: RootQuestion,
    ) -> io::Result<()> {
        let tree = match &question {
            RootQuestion::Have { tree, .. } | RootQuestion::Chunk { tree, .. } => tree,
        };
        let Some((offer, visitor)) = self.offer(offered, tree) else {
            return say(stream, RootAnswer::Missing).await;
        };
        let output = match question {
            RootQuestion::Have { wait_ms, .. } => {
                let wait = Duration::from_millis(wait_ms.min(MAX_WAIT_MS).into());
                let ask = offer.ask(visitor, |core, now| core.handle_have(now, visitor, wait));
                ask.await?
            }
            RootQuestion::Chunk { chunk, .. } => {
                let ask = offer.ask(visitor, |core, now| core.handle_question(now, visitor, chunk));
                ask.await?
            }
        };
        match output {
            Output::Have(_) => say(stream, RootAnswer::Have { have: offer.have() }).await,
            Output::Missing(_) => say(stream, RootAnswer::Missing).await,
            Output::Busy { after, .. } => {
                let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
                say(stream, RootAnswer::Busy { after_ms }).await
            }
            Output::Give { chunk, .. } => {
                let given = timeout(UPLOAD_BOUND, give(stream, &offer, chunk)).await;
                offer.act(|core, now| core.handle_sent(now, visitor));
                given.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// What is offered of this tree, and who this connection is there.
    fn offer(&mut self, offered: &Offered, tree: &str) -> Option<(Arc<Offer>, Visitor)> {
        if self.of.as_ref().is_none_or(|(offer, _)| offer.tree != tree) {
            let offer = offered.borrow().clone().filter(|offer| offer.tree == tree)?;
            let visitor = offer.visitors.fetch_add(1, Ordering::Relaxed);
            self.of = Some((offer, visitor));
        }
        self.of.clone()
    }
}

async fn give(stream: &mut (impl AsyncWrite + Unpin), offer: &Offer, chunk: u32) -> io::Result<()> {
    let bytes = offer.store.read(chunk)?;
    let answer = RootAnswer::Chunk {
        chunk,
        bytes: u32::try_from(bytes.len()).map_err(io::Error::other)?,
        have: offer.have(),
    };
    say(stream, answer).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: RootAnswer) -> io::Result<()> {
    frames::write(stream, &FromPeer::Root(answer)).await
}
