//! Sockets around the core that decides which chunk comes from whom: workers that ask the head and other nodes, one question at a
//! time each. Every chunk is checked here before it is written; a peer whose chunk is wrong is named and left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cid_content::download::{Download, Name, Output, Source};
use cid_content::{Bitmap, ChunkError, RootManifest};
use cid_protocol::root::{MAX_ROOT_PEERS, RootOrder, RootPeer, RootPromise, RootReport, RootWish};
use cid_trust::Pin;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::encode_set;
use super::http::Failure;
use super::peer::Answer;
use super::progress::Progress;
use super::serve::Offer;
use super::store::Store;
use super::task::{Command, News, Way};
use super::workers::{self, Ask, Outcome, Worker};

/// Answers that wait.
const QUEUE: usize = 64;
/// The head's word for a file that is not what it was when it was built (`RootRefusal::Changed` of its HTTP server).
const CHANGED: &str = "root-changed-on-disk";
/// Between two words of progress.
const TICK: Duration = Duration::from_secs(1);
/// A head that says so often in a row that it does not give what it promised will not change its mind by waiting; about 20 s.
pub(super) const MAX_DECLINED: u32 = 8;
/// Peers whose addresses are kept.
const MAX_KNOWN: usize = 256;

/// How it ended.
pub(super) enum Fetched {
    /// All is there and right; in words how it came.
    Whole(String),
    /// Another promise came.
    Replaced(RootPromise, Pin),
    /// It cannot be had, for this reason.
    Wrong(String),
}

/// One image on its way.
pub(super) struct Fetch<'a> {
    manifest: &'a RootManifest,
    store: &'a Store,
    offer: &'a Offer,
    tree: String,
    core: Download,
    progress: Progress,
    known: BTreeMap<Name, RootPeer>,
    peers: BTreeMap<Name, Worker<Ask>>,
    /// Why the last question to the head was in vain.
    bad_head: Option<ChunkError>,
    /// How often it was asked in vain since the last chunk, and what it said.
    declined: (u32, String),
    started: Instant,
}

type Tell = Arc<dyn Fn(News) + Send + Sync>;

/// What the workers are made with.
struct Means<'a> {
    head: Worker<u32>,
    ways: &'a watch::Receiver<Option<Way>>,
    outcomes: mpsc::Sender<Outcome>,
    news: &'a Tell,
}

impl<'a> Fetch<'a> {
    /// `have` is in the file already. The head has welcomed this node.
    pub(super) fn new(manifest: &'a RootManifest, store: &'a Store, have: Bitmap, offer: &'a Offer) -> Self {
        let seed = cid_trust::random().map_or(0, u64::from_ne_bytes);
        let mut core = Download::new(Duration::ZERO, Arc::clone(store.tree()), Some(have), seed);
        core.handle_head(Duration::ZERO);
        Self {
            manifest,
            store,
            offer,
            tree: manifest.tree_root.to_string(),
            progress: Progress::new(manifest.image.clone(), manifest.shape.bytes(), core.bytes()),
            core,
            known: BTreeMap::new(),
            peers: BTreeMap::new(),
            bad_head: None,
            declined: (0, String::new()),
            started: Instant::now(),
        }
    }

    /// Runs until nothing is missing.
    pub(super) async fn run(
        mut self,
        inbox: &mut mpsc::Receiver<Command>,
        ways: &watch::Receiver<Option<Way>>,
        news: &Tell,
    ) -> Fetched {
        let (sender, mut outcomes) = mpsc::channel(QUEUE);
        let means = Means {
            head: workers::head(&self.tree, self.manifest.shape, ways.clone(), sender.clone()),
            ways,
            outcomes: sender,
            news,
        };
        let mut tick = Instant::now();
        loop {
            if self.obey(&means) {
                return Fetched::Whole(self.progress.sum());
            }
            if let Some(error) = self.bad_head {
                return Fetched::Wrong(format!(
                    "what comes from the head is not what it signed ({error}): a cable, a switch or memory damages it"
                ));
            }
            if self.declined.0 >= MAX_DECLINED {
                return Fetched::Wrong(match self.declined.1.as_str() {
                    CHANGED => format!("the head's copy is damaged ({CHANGED}): import the image anew"),
                    other => format!("the head does not give it: {other}"),
                });
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.show(news);
            }
            let next = self
                .core
                .next_deadline()
                .map_or(tick, |deadline| (self.started + deadline).min(tick));
            tokio::select! {
                Some(outcome) = outcomes.recv() => self.handle_outcome(outcome),
                Some(command) = inbox.recv() => {
                    let now = self.started.elapsed();
                    match command {
                        Command::Order(order) => self.handle_order(order),
                        Command::HeadGone => self.core.handle_head_gone(now),
                        Command::Promise { promise, pin } if promise.sequence != self.manifest.sequence => {
                            return Fetched::Replaced(promise, pin);
                        }
                        // A head that was started again knows nothing of earlier wishes.
                        Command::Promise { .. } => self.core.handle_head(now),
                    }
                }
                () = sleep_until(next) => self.core.handle_deadline(self.started.elapsed()),
            }
        }
    }

    /// Does what the core wants. True when all is there.
    fn obey(&mut self, means: &Means<'_>) -> bool {
        while let Some(output) = self.core.poll_output() {
            let now = self.started.elapsed();
            match output {
                Output::Connect(name) => match self.known.get(&name) {
                    Some(peer) => {
                        let what = (self.tree.clone(), self.manifest.shape);
                        let (ways, outcomes) = (means.ways.clone(), means.outcomes.clone());
                        let worker = workers::peer(name.clone(), peer.clone(), what, ways, outcomes);
                        self.peers.insert(name, worker);
                    }
                    None => self.core.handle_lost(now, &name),
                },
                Output::Disconnect(name) => drop(self.peers.remove(&name)),
                Output::AskHave { peer, wait } => self.ask(now, &peer, Ask::Have(wait)),
                Output::AskPeer { peer, chunk } => self.ask(now, &peer, Ask::Chunk(chunk)),
                Output::AskHead(chunk) => {
                    if !means.head.ask(chunk) {
                        self.core.handle_head_failed(now, chunk, None);
                    }
                }
                Output::Wish {
                    tickets,
                    peers,
                    starving,
                    using,
                } => (means.news)(News::Report(RootReport::Wish(RootWish {
                    tree: self.tree.clone(),
                    have: encode_set(self.core.have()),
                    tickets,
                    peers,
                    starving,
                    using,
                }))),
                Output::BadPeer { peer, error } => {
                    log!("cid-agent: {peer} gives wrong bytes and is asked for nothing more: {error}");
                    (means.news)(News::Report(RootReport::BadPeer {
                        peer: peer.to_string(),
                        chunk: chunk_of(&error),
                        reason: error.to_string(),
                    }));
                }
                Output::WrongFromHead(error) => {
                    let reason = error.to_string();
                    log!("cid-agent: what came from the head is thrown away and asked for again: {reason}");
                    self.progress
                        .waits(format!("the head's bytes to come right: {reason}"));
                    let chunk = chunk_of(&error);
                    (means.news)(News::Report(RootReport::WrongChunk { chunk, reason }));
                }
                Output::BadHead(error) => self.bad_head = Some(error),
                Output::Done => return true,
            }
        }
        false
    }

    fn ask(&mut self, now: Duration, name: &Name, ask: Ask) {
        if !self.peers.get(name).is_some_and(|peer| peer.ask(ask)) {
            self.peers.remove(name);
            self.core.handle_lost(now, name);
        }
    }

    fn handle_order(&mut self, order: RootOrder) {
        let now = self.started.elapsed();
        match order {
            RootOrder::Tickets {
                tree,
                chunks,
                valid_ms,
            } if tree == self.tree => {
                let valid = Duration::from_millis(valid_ms.into());
                self.core.handle_tickets(now, &chunks, valid);
            }
            RootOrder::Peers { tree, peers } if tree == self.tree => {
                let mut names = Vec::new();
                for peer in peers.into_iter().take(MAX_ROOT_PEERS) {
                    let name = Name::from(peer.name.as_str());
                    // A peer may have another address by now.
                    if self.known.len() < MAX_KNOWN || self.known.contains_key(&name) {
                        self.known.insert(name.clone(), peer);
                        names.push(name);
                    }
                }
                self.core.handle_peers(now, &names);
            }
            RootOrder::No { tree, reason } if tree == self.tree => {
                self.progress.waits(format!("the head, which says: {reason}"));
            }
            RootOrder::Tickets { .. } | RootOrder::Peers { .. } | RootOrder::No { .. } => {}
        }
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        let now = self.started.elapsed();
        match outcome {
            Outcome::Head {
                chunk,
                bytes: Ok(bytes),
            } => {
                self.take(&Source::Head, chunk, &bytes, None);
            }
            Outcome::Head {
                chunk,
                bytes: Err(failure),
            } => {
                let after = match &failure {
                    Failure::Declined(declined) => declined.retry_after,
                    Failure::Broken(_) => None,
                };
                if failure.is_final() {
                    self.declined = (self.declined.0 + 1, failure.to_string());
                }
                self.progress.waits(format!("the head: {failure}"));
                self.core.handle_head_failed(now, chunk, after);
            }
            Outcome::Met { name } => self.core.handle_connected(now, &name),
            Outcome::Peer { name, asked, answer } => match (answer, asked) {
                (Ok(Answer::Have(have)), _) => self.core.handle_have(now, &name, &have),
                (Ok(Answer::Chunk(bytes, have)), Some(chunk)) => {
                    self.take(&Source::Peer(name), chunk, &bytes, Some(&have));
                }
                (Ok(Answer::Busy(after)), _) => self.core.handle_busy(now, &name, after),
                (Ok(Answer::Missing), _) => self.core.handle_missing(now, &name),
                (Ok(Answer::Chunk(..)), None) | (Err(_), _) => {
                    self.peers.remove(&name);
                    self.core.handle_lost(now, &name);
                }
            },
        }
    }

    /// Puts a chunk into its place, if it is right. The write comes first: what the core counts as there must be there.
    fn take(&mut self, source: &Source, chunk: u32, bytes: &[u8], have: Option<&[u8]>) {
        let now = self.started.elapsed();
        let verdict = self.store.tree().check(chunk, bytes);
        if verdict.is_ok()
            && !self.core.have().contains(chunk)
            && let Err(error) = self.store.write(chunk, bytes)
        {
            self.progress.waits(format!("this PC's memory: {error}"));
            return match source {
                Source::Head => self.core.handle_head_failed(now, chunk, None),
                Source::Peer(name) => self.core.handle_lost(now, name),
            };
        }
        if self.core.handle_checked(now, source, chunk, verdict, have) {
            self.offer.add(chunk);
            self.declined.0 = 0;
            let length = u64::try_from(bytes.len()).unwrap_or(0);
            match source {
                Source::Head => self.progress.head_gave(length),
                Source::Peer(name) => self.progress.peer_gave(name, length),
            }
        }
    }

    fn show(&mut self, news: &Tell) {
        let shown = self.progress.tick(self.started.elapsed());
        news(News::Progress(shown.text));
        news(News::Report(RootReport::Fetching {
            image: self.manifest.image.clone(),
            have: shown.have,
            of: shown.of,
            waits: shown.waits,
        }));
    }
}

fn chunk_of(error: &ChunkError) -> u32 {
    match error {
        ChunkError::NoSuchChunk(chunk) | ChunkError::Length { chunk, .. } | ChunkError::Hash { chunk } => {
            *chunk
        }
    }
}
