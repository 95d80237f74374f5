//! The head among its members: the membership's state machine, the group key, and which changes of the history are on disk. Glue
//! without sockets ([`door`] has them) and without the database (the core writes what [`Members::writes`] gives). Must never make
//! a change known before it is committed, and never decide what a machine is: that is the registry, or the history's own judgement
//! of who answers.

pub mod door;
pub mod keys;
pub mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cid_discovery::history::chronicle::Chronicle;
use cid_discovery::history::{Change, State};
use cid_discovery::load::LoadVector;
use cid_discovery::member::{Config, Event, Membership, Output, Records};
use cid_discovery::seal::{GroupKey, Opener};
use cid_discovery::wire::{Digest, Liveness, Role};
use cid_discovery::{Boot, NodeId};
use tokio::sync::Notify;

use crate::registry::Now;
use crate::store::{Cluster, Contents, Write};
use keys::Keys;
use traffic::Traffic;

/// Most members.
pub const CAPACITY: usize = 8_192;
/// A start that finds a history longer than this begins another with the latest change of each machine.
const LONGEST_HISTORY: usize = 200_000;
/// Only nodes go home.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How far a decided change has come on its way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Flying,
    Failed,
    Arrived,
}

/// The head among its members.
pub struct Members {
    membership: Membership,
    cluster: Cluster,
    keys: Keys,
    /// On disk, so it may seal.
    sealing: GroupKey,
    /// Decided changes that are not all on disk, by place.
    unwritten: BTreeMap<u32, (Change, Way)>,
    next_place: u32,
    opener: Arc<Mutex<Opener>>,
    traffic: Arc<Traffic>,
    wake: Arc<Notify>,
    /// When each member was last heard itself.
    heard: BTreeMap<NodeId, Duration>,
}

/// What the membership knows of somebody at a moment.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sign {
    /// How long ago a datagram of it was taken.
    pub heard: Option<Duration>,
    /// Its load, and how old that is.
    pub load: Option<(LoadVector, Duration)>,
}

/// What a look at the membership needs to have done about it.
#[derive(Debug, Default)]
pub struct Todo {
    /// The group key is due.
    pub rotate: bool,
}

impl Members {
    /// The head comes (back) to its members, reached at `address`. What is returned must be on disk before anything is said.
    ///
    /// # Errors
    /// There is no randomness for a key.
    pub fn begin(
        contents: &mut Contents,
        address: SocketAddrV4,
        now: Now,
    ) -> std::io::Result<(Self, Vec<Write>)> {
        let mut writes = Vec::new();
        let mut cluster = match contents.cluster.take() {
            Some(cluster) => cluster,
            None => new_cluster()?,
        };
        cluster.head.incarnation = now.unix_ms.max(cluster.head.incarnation.saturating_add(1));
        let mut history = std::mem::take(&mut contents.history);
        if history.len() > LONGEST_HISTORY {
            let mut latest: BTreeMap<NodeId, Change> = BTreeMap::new();
            for change in history {
                latest.insert(change.boot.id, change);
            }
            history = latest.into_values().collect();
            cluster.history_epoch = cluster.history_epoch.wrapping_add(1).max(1);
            writes.push(Write::CutHistory(0));
            let places = (0..).zip(history.iter().cloned().map(Box::new));
            writes.extend(places.map(|(place, change)| Write::Change(place, change)));
        } else {
            // Behind a gap that a failed write left nothing was told to anybody.
            writes.push(Write::CutHistory(place_behind(&history)));
        }
        writes.push(Write::Cluster(Box::new(cluster.clone())));
        let next_place = place_behind(&history);
        let present = |change: &Change| change.state.is_present().then_some(change.boot.id);
        let seeds = history.iter().filter_map(present);
        let seeds = seeds.filter_map(|id| {
            let holder = contents.machines.iter().find(|record| record.node_id == Some(id));
            let address = holder?.address?;
            Some(SocketAddrV4::new(address, cid_protocol::NODE_PORT))
        });
        let config = Config {
            me: cluster.head,
            role: Role::Head,
            address,
            head: None,
            seeds: seeds
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect(),
            bail_out: NEVER,
            capacity: CAPACITY,
        };
        let chronicle = Chronicle::restore(cluster.history_epoch, now.monotonic, now.unix_ms, history);
        let seed = u64::from_be_bytes(random()?);
        let membership = Membership::new(config, Records::Head(chronicle), seed, now.monotonic);
        let members = Self {
            membership,
            keys: Keys::new(cluster.key.clone()),
            sealing: cluster.key.clone(),
            unwritten: BTreeMap::new(),
            next_place,
            opener: Arc::new(Mutex::new(Opener::new(cluster.key.clone(), CAPACITY))),
            traffic: Arc::default(),
            wake: Arc::default(),
            heard: BTreeMap::new(),
            cluster,
        };
        Ok((members, writes))
    }

    /// This boot of the head.
    pub fn head(&self) -> Boot {
        self.cluster.head
    }

    /// The group key, its epoch, how often it was changed.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Everybody, as the membership sees them.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What went through the door.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Sealed datagrams that were not opened, by reason.
    pub fn unopened(&self) -> Vec<(&'static str, u64)> {
        lock(&self.opener).drops().collect()
    }

    /// How long the history is, on disk.
    pub fn history(&self) -> Digest {
        match self.membership.records() {
            Records::Head(chronicle) => chronicle.digest(),
            Records::Node(replica) => replica.digest(),
        }
    }

    /// The last sign of somebody.
    pub fn sign_of(&self, now: Duration, id: NodeId) -> Sign {
        Sign {
            heard: self.heard.get(&id).map(|at| now.saturating_sub(*at)),
            load: self.membership.loads().load_of(now, id),
        }
    }

    /// How many members are there, suspect, dead or gone.
    pub fn count_by_liveness(&self) -> [(&'static str, u64); 4] {
        let mut counts = [("alive", 0), ("suspect", 0), ("dead", 0), ("left", 0)];
        for member in self.membership.roster().members() {
            let at = match member.liveness {
                Liveness::Alive => 0,
                Liveness::Suspect => 1,
                Liveness::Dead => 2,
                Liveness::Left => 3,
            };
            counts[at].1 += 1;
        }
        counts
    }

    /// The registry says what a machine is.
    pub fn record(&mut self, now: Duration, boot: Boot, state: State, name: &str, reason: &str) {
        // The same again is no news; an earlier boot is a ghost's.
        let _ = self.membership.record(now, boot, state, name, reason);
    }

    /// Changes that were decided since the last call, in order; from here on they wait for the disk.
    pub fn decided(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(change) = self.membership.poll_persist() {
            self.unwritten
                .insert(self.next_place, (change.clone(), Way::Failed));
            self.next_place = self.next_place.saturating_add(1);
            changes.push(change);
        }
        changes
    }

    /// What has to be written of the history: new changes, and those whose write failed.
    pub fn writes(&mut self) -> Vec<(u32, Change)> {
        let waiting = self
            .unwritten
            .iter_mut()
            .filter(|(_, (_, way))| *way == Way::Failed);
        waiting
            .map(|(place, (change, way))| {
                *way = Way::Flying;
                (*place, change.clone())
            })
            .collect()
    }

    /// Whether these places are on disk. What is there without a gap becomes known to everybody.
    pub fn handle_written(&mut self, now: Duration, places: &[u32], on_disk: bool) {
        for place in places {
            if let Some((_, way)) = self.unwritten.get_mut(place) {
                *way = if on_disk { Way::Arrived } else { Way::Failed };
            }
        }
        let mut known = 0;
        while let Some(first) = self.unwritten.first_entry()
            && first.get().1 == Way::Arrived
        {
            first.remove();
            known += 1;
        }
        if known > 0 {
            self.membership.handle_persisted_first(now, known);
            self.wake.notify_one();
        }
    }

    /// Another group key: it opens from now on, and seals when [`Members::handle_key_written`] says that it is on disk. `None`
    /// without randomness: the old one stays. `out`: who was thrown out, so that the old one ends at once.
    pub fn rotate(&mut self, now: Duration, out: Option<Option<NodeId>>) -> Option<Cluster> {
        let secret = random()
            .inspect_err(|error| tracing::error!(%error, "no randomness for another group key"))
            .ok()?;
        let key = self.keys.rotate(secret)?.clone();
        let mut opener = lock(&self.opener);
        opener.handle_key(now, key.clone(), out.is_some());
        if let Some(Some(id)) = out {
            opener.forget(id);
        }
        drop(opener);
        self.cluster.key = key;
        Some(self.cluster.clone())
    }

    /// The key is on disk and on its way to the nodes.
    pub fn handle_key_written(&mut self, key: GroupKey) {
        if key.epoch > self.sealing.epoch {
            self.sealing = key;
        }
    }

    /// Takes what members said and what time brought.
    fn handle(&mut self, now: Duration, heard: &mut Vec<door::Heard>) -> Todo {
        for door::Heard { boot, source, body } in heard.drain(..) {
            // A drop is counted there.
            let taken = self.membership.handle_datagram(now, boot, source, &body);
            let known = self.membership.roster().member(boot.id);
            if taken.is_ok() && known.is_some_and(|member| member.boot == boot) {
                self.heard.insert(boot.id, now);
            }
        }
        if self.heard.len() > CAPACITY {
            // As many as the roster has members, at the most.
            let roster = self.membership.roster();
            self.heard.retain(|id, _| roster.member(*id).is_some());
        }
        if self.membership.next_deadline(now).is_some_and(|at| now >= at) {
            self.membership.handle_deadline(now);
        }
        Todo {
            rotate: self.keys.next_deadline().is_some_and(|at| now >= at),
        }
    }

    fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let membership = self.membership.next_deadline(now);
        membership.into_iter().chain(self.keys.next_deadline()).min()
    }

    /// What the membership wants said, and what it noticed.
    fn outputs(&mut self, now: Duration) -> (Vec<Output>, Vec<Event>) {
        let (mut said, mut events) = (Vec::new(), Vec::new());
        while let Some(output) = self.membership.poll_output() {
            match output {
                Output::Event(event) => events.push(event),
                transmit => said.push(transmit),
            }
        }
        for event in &events {
            match event {
                Event::Lost(boot) | Event::Left(boot) => self.keys.handle_departed(now, boot.id),
                Event::Appeared(boot) | Event::Returned(boot) => self.keys.handle_back(boot.id),
                _ => {}
            }
        }
        (said, events)
    }
}

fn place_behind(history: &[Change]) -> u32 {
    u32::try_from(history.len()).unwrap_or(u32::MAX)
}

fn new_cluster() -> std::io::Result<Cluster> {
    Ok(Cluster {
        head: Boot {
            id: NodeId(random()?),
            incarnation: 0,
        },
        history_epoch: u32::from_be_bytes(random()?).max(1),
        key: GroupKey {
            epoch: 1,
            secret: random()?,
        },
    })
}

fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    cid_trust::random().map_err(std::io::Error::other)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
