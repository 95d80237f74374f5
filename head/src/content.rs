//! Which nodes fetch which root image: their wishes go to the tickets of that image, and its answers to them. Nothing of it is on
//! disk: after a restart the nodes say again what they have.

pub mod store;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cid_content::tickets::{AT_A_TIME, Accused, Output, Wish};
use cid_content::{Bitmap, Digest, Tickets, Tree};
use cid_protocol::node::ToNode;
use cid_protocol::root::{RootOrder, RootPeer, RootReport, RootWish};

use crate::core::Core;
use crate::registry::ConnectionId;
use store::RootStore;

/// Images that are distributed at a time.
const MAX_SWARMS: usize = 64;

/// Figures of one kind over all images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Nodes that fetch.
    pub fetching: u64,
    /// Nodes that have all of their image.
    pub whole: u64,
    /// Nodes that wait for the head.
    pub waiting: u64,
    /// Tickets for chunks that nobody had.
    pub first: u64,
    /// Tickets for chunks that others had.
    pub again: u64,
    /// Tickets that were not used.
    pub expired: u64,
    /// Peers that were said to give wrong chunks.
    pub accusations: u64,
    /// Bytes of images that the head gave.
    pub bytes: u64,
    /// Parts that it refused to give.
    pub refused: u64,
}

#[derive(Default)]
struct Inner {
    swarms: BTreeMap<Digest, Tickets<ConnectionId>>,
    nodes: BTreeMap<ConnectionId, (Digest, RootPeer)>,
}

/// The distribution of all root images.
#[derive(Default)]
pub struct Content {
    store: OnceLock<Arc<RootStore>>,
    inner: Mutex<Inner>,
}

type Orders = Vec<(ConnectionId, RootOrder)>;

impl Content {
    /// Where the images are. Until it was said there are none.
    pub fn begin(&self, store: Arc<RootStore>) {
        let _ = self.store.set(store);
    }

    /// The images.
    pub fn store(&self) -> Option<Arc<RootStore>> {
        self.store.get().map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's connection has ended.
    pub fn gone(&self, now: Duration, id: ConnectionId) -> Orders {
        let mut inner = self.lock();
        let Some((tree, _)) = inner.nodes.remove(&id) else {
            return Orders::new();
        };
        if let Some(swarm) = inner.swarms.get_mut(&tree) {
            swarm.handle_gone(now, id);
        }
        // An image that nobody fetches or serves any more.
        if !inner.nodes.values().any(|(other, _)| *other == tree) {
            inner.swarms.remove(&tree);
        }
        inner.orders()
    }

    /// What is due, and what an administrator should know.
    pub fn deadline(&self, now: Duration) -> (Orders, Vec<String>) {
        let mut inner = self.lock();
        inner
            .swarms
            .values_mut()
            .for_each(|swarm| swarm.handle_deadline(now));
        let notes = self.store.get().map(|store| store.notes()).unwrap_or_default();
        (inner.orders(), notes)
    }

    /// Figures for `/metrics`.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for swarm in self.lock().swarms.values() {
            let (counters, (nodes, whole)) = (swarm.counters(), swarm.nodes());
            figures.fetching += (nodes - whole) as u64;
            figures.whole += whole as u64;
            figures.waiting += swarm.waiting() as u64;
            figures.first += counters.first;
            figures.again += counters.again;
            figures.expired += counters.expired;
            figures.accusations += counters.accusations;
        }
        if let Some(store) = self.store.get() {
            (figures.bytes, figures.refused) = store.counters();
        }
        figures
    }

    async fn tree(&self, root: Digest) -> Option<Arc<Tree>> {
        let store = Arc::clone(self.store.get()?);
        tokio::task::spawn_blocking(move || store.tree(&root))
            .await
            .ok()?
    }

    /// What a node says: none when it made sense.
    async fn take(
        &self,
        now: Duration,
        id: ConnectionId,
        peer: RootPeer,
        said: Said,
    ) -> Result<Orders, String> {
        let root: Digest = said
            .tree()
            .parse()
            .map_err(|_| "that is no tree's root".to_owned())?;
        let tree = self
            .tree(root)
            .await
            .ok_or("the head does not have this image any more")?;
        let chunks = tree.shape().chunks();
        let mut inner = self.lock();
        if inner.swarms.len() >= MAX_SWARMS && !inner.swarms.contains_key(&root) {
            return Err("too many images are distributed at a time".to_owned());
        }
        let wish = match said {
            Said::Whole(_) => None,
            Said::Wish(wish) => Some(decode(wish, chunks).ok_or("the wish's set does not fit the image")?),
        };
        // It fetched another one before.
        let before = inner
            .nodes
            .insert(id, (root, peer))
            .map(|(before, _)| before)
            .filter(|before| *before != root);
        if let Some(swarm) = before.and_then(|before| inner.swarms.get_mut(&before)) {
            swarm.handle_gone(now, id);
        }
        let swarm = inner
            .swarms
            .entry(root)
            .or_insert_with(|| Tickets::new(chunks, AT_A_TIME, seed(now)));
        match wish {
            None => swarm.handle_whole(now, id),
            Some(wish) => swarm.handle_wish(now, id, wish),
        }
        Ok(inner.orders())
    }

    /// Whom the others shall not ask any more.
    fn accuse(&self, now: Duration, accuser: ConnectionId, name: &str) -> (Accused, Orders) {
        let mut inner = self.lock();
        let accused = inner
            .nodes
            .iter()
            .find(|(_, (_, peer))| peer.name == name)
            .map(|(id, _)| *id);
        let tree = inner.nodes.get(&accuser).map(|(tree, _)| *tree);
        let verdict = match (accused, tree.and_then(|tree| inner.swarms.get_mut(&tree))) {
            (Some(accused), Some(swarm)) => swarm.handle_accusation(now, accuser, accused),
            _ => Accused::Ignored,
        };
        (verdict, inner.orders())
    }
}

enum Said {
    Wish(RootWish),
    Whole(String),
}

impl Said {
    fn tree(&self) -> &str {
        match self {
            Self::Wish(wish) => &wish.tree,
            Self::Whole(tree) => tree,
        }
    }
}

impl Inner {
    fn orders(&mut self) -> Orders {
        let mut orders = Orders::new();
        for (root, swarm) in &mut self.swarms {
            while let Some(output) = swarm.poll_output() {
                let tree = root.to_string();
                orders.push(match output {
                    Output::Tickets { node, chunks, valid } => {
                        let valid_ms = valid.as_millis() as u32;
                        (
                            node,
                            RootOrder::Tickets {
                                tree,
                                chunks,
                                valid_ms,
                            },
                        )
                    }
                    Output::Peers { node, peers } => {
                        let peer = |id| self.nodes.get(id).map(|(_, peer)| peer.clone());
                        let peers = peers.iter().filter_map(peer).collect();
                        (node, RootOrder::Peers { tree, peers })
                    }
                });
            }
        }
        orders
    }
}

/// What a node says of its root image, as far as distribution goes.
pub async fn handle_report(core: &Arc<Core>, id: ConnectionId, address: Ipv4Addr, report: &RootReport) {
    let said = match report {
        RootReport::Wish(wish) => Said::Wish(wish.clone()),
        RootReport::Mounted { tree, .. } => Said::Whole(tree.clone()),
        RootReport::BadPeer { peer, chunk, reason } => {
            let (verdict, orders) = core.content.accuse(core.now().monotonic, id, peer);
            send(core, orders);
            if verdict == Accused::Ignored {
                core.drops.count("root-accusation");
            }
            return core
                .tell(|registry, now| registry.handle_bad_peer(now, id, peer, *chunk, reason, verdict));
        }
        RootReport::WrongChunk { chunk, reason } => {
            core.drops.count("root-wrong-chunk");
            return core.tell(|registry, now| registry.handle_wrong_chunk(now, id, *chunk, reason));
        }
        RootReport::Fetching { .. } | RootReport::Checking { .. } | RootReport::Refused { .. } => return,
    };
    let Some((name, node)) = core.read(|registry| registry.name_and_id(id)) else {
        return core.drops.count("root-stranger");
    };
    let tree = said.tree().chars().take(64).collect();
    let peer = RootPeer {
        name,
        id: node,
        address,
    };
    match core.content.take(core.now().monotonic, id, peer, said).await {
        Ok(orders) => send(core, orders),
        Err(reason) => {
            core.drops.count("root-wish");
            core.send_now(id, ToNode::Root(RootOrder::No { tree, reason }));
        }
    }
}

/// Every second.
pub fn handle_deadline(core: &Core) {
    let (orders, notes) = core.content.deadline(core.now().monotonic);
    send(core, orders);
    for note in notes {
        tracing::error!("{note}");
        core.tell(|registry, _| registry.note("root-image", note));
    }
}

/// To the nodes.
pub fn send(core: &Core, orders: Orders) {
    for (id, order) in orders {
        core.send_now(id, ToNode::Root(order));
    }
}

fn decode(wish: RootWish, chunks: u32) -> Option<Wish> {
    let have = Bitmap::decode(&STANDARD.decode(&wish.have).ok()?, chunks).ok()?;
    Some(Wish {
        have,
        tickets: wish.tickets,
        peers: wish.peers,
        starving: wish.starving,
        using: wish.using,
    })
}

/// A head that was restarted does not begin where it began before.
fn seed(now: Duration) -> u64 {
    crate::wall::unix_now().as_nanos() as u64 ^ now.as_nanos() as u64
}
