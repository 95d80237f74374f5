//! The registry, the database and the connections put together: inputs go in under one lock, outputs leave in their
//! order and never before what they acknowledge is on disk. Must not know what travels over the connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cid_discovery::seal::GroupKey;
use cid_protocol::api::Event;
use cid_protocol::node::ToNode;
use tokio::sync::{mpsc, oneshot};

use crate::mac::Mac;
use crate::membership::Members;
use crate::registry::{ConnectionId, Now, Output, Registry};
use crate::store::{Commit, Store, StoreError, Write};
use crate::wake::{Power, Target};

/// Deliveries that may wait for commits before them.
const DELIVERIES: usize = 16_384;
/// Messages that may wait for one slow node.
const NODE_QUEUE: usize = 16;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often last sightings are written.
const FLUSH: Duration = Duration::from_secs(30);

/// What goes to a connection's own task.
#[derive(Debug)]
pub enum Outgoing {
    /// Send this.
    Message(Box<ToNode>),
    /// Close behind what was sent.
    Close,
}

/// Drops by reason since start; reasons are a closed set of this program's own words.
#[derive(Debug, Default)]
pub struct Drops {
    reasons: Mutex<BTreeMap<&'static str, u64>>,
    connections: AtomicU64,
}

impl Drops {
    /// Counts one.
    pub fn count(&self, reason: &'static str) {
        self.add(reason, 1);
    }

    /// Counts so many at once.
    pub fn add(&self, reason: &'static str, count: u64) {
        *lock(&self.reasons).entry(reason).or_default() += count;
    }

    /// Counts a connection that was taken at the nodes' port, whatever becomes of it.
    pub fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// All connections that were taken there: those that ended without an ordinary reason are among the drops.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.reasons).clone()
    }
}

struct Delivery {
    commit: Option<Commit>,
    outputs: Vec<Output>,
    told: Told,
    done: oneshot::Sender<Result<(), String>>,
}

/// What the membership is told when a commit has ended.
#[derive(Default)]
struct Told {
    /// Places of the history that were in it.
    places: Vec<u32>,
    /// The group key that was in it.
    key: Option<GroupKey>,
}

/// The result of an input: done when it is on disk and what followed from it was sent.
#[must_use = "an acknowledgement must wait for this"]
pub struct Pending(Result<oneshot::Receiver<Result<(), String>>, String>);

impl Pending {
    /// Waits.
    ///
    /// # Errors
    /// It is not on disk; nothing may be acknowledged.
    pub async fn done(self) -> Result<(), StoreError> {
        let result = match self.0 {
            Ok(receiver) => receiver
                .await
                .unwrap_or_else(|_| Err("the head is stopping".to_owned())),
            Err(error) => Err(error),
        };
        result.map_err(StoreError::Commit)
    }

    /// For inputs that acknowledge nothing to anybody.
    pub fn unacknowledged(self) {
        if let Err(error) = self.0 {
            tracing::warn!(%error, "not written");
        }
    }
}

/// The head's shared middle.
pub struct Core {
    registry: Mutex<Registry>,
    /// Whoever holds both locks took the registry's first.
    members: Mutex<Option<Members>>,
    store: Store,
    started: Instant,
    deliveries: mpsc::Sender<Delivery>,
    connections: Mutex<BTreeMap<ConnectionId, mpsc::Sender<Outgoing>>>,
    next_connection: AtomicU64,
    power: Arc<Power>,
    /// Drops of the head's own doors (node connections, API, beacons).
    pub drops: Drops,
    /// Which of the nodes that are about to join may measure bandwidth.
    pub turns: crate::measuring::Turns,
    /// Who fetches which root image.
    pub content: crate::content::Content,
    /// Programs that people run.
    pub work: crate::jobs::Work,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere must not take the whole head with it; every critical section leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both clocks.
fn now_since(started: Instant) -> Now {
    let unix = crate::wall::unix_now();
    Now {
        monotonic: started.elapsed(),
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
    }
}

impl Core {
    /// Puts the parts together and starts the task that delivers and the one that watches deadlines. `registry`
    /// builds the registry at the first reading of the clocks. `power` switches PCs on.
    pub fn start(store: Store, power: Power, registry: impl FnOnce(Now) -> Registry) -> Arc<Self> {
        let started = Instant::now();
        let (deliveries, queue) = mpsc::channel(DELIVERIES);
        let core = Arc::new(Self {
            registry: Mutex::new(registry(now_since(started))),
            members: Mutex::new(None),
            store,
            started,
            deliveries,
            connections: Mutex::new(BTreeMap::new()),
            next_connection: AtomicU64::new(1),
            power: Arc::new(power),
            drops: Drops::default(),
            turns: crate::measuring::Turns::default(),
            content: crate::content::Content::default(),
            work: crate::jobs::Work::default(),
        });
        tokio::spawn(deliver(Arc::downgrade(&core), queue));
        tokio::spawn(tick(Arc::downgrade(&core)));
        core
    }

    /// Both clocks now.
    pub fn now(&self) -> Now {
        now_since(self.started)
    }

    /// The moment that the registry calls `at`.
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        (self.started + at).into()
    }

    /// From here on the registry's decisions go into the history, and the history's judgements to the registry.
    pub fn begin_membership(&self, members: Members) {
        let (head, key) = (members.head(), members.keys().current().clone());
        let table = members.membership().table().clone();
        *lock(&self.members) = Some(members);
        self.act(|registry, now| registry.begin_membership(now, head, &key, &table))
            .1
            .unacknowledged();
    }

    /// Looks at the membership; `None` before it was begun.
    pub fn members<T>(&self, look: impl FnOnce(&mut Members) -> T) -> Option<T> {
        lock(&self.members).as_mut().map(look)
    }

    /// Throws a machine out of the cluster: its connection ends, and the group key that it has opens nothing any more. Done when that
    /// is on disk.
    pub fn revoke(&self, mac: Mac, reason: &str) -> Pending {
        self.act(|registry, now| registry.revoke(now, mac, reason)).1
    }

    /// The database, for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Looks at the registry.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&lock(&self.registry))
    }

    /// Gives the registry an input and sends its outputs on their way.
    pub fn act<T>(&self, input: impl FnOnce(&mut Registry, Now) -> T) -> (T, Pending) {
        self.act_with(Vec::new(), input)
    }

    /// An input that acknowledges nothing to anybody, as a DHCP message that was heard: several for each exchange of a storm,
    /// and most change nothing that has to be written or sent. Those wake nobody.
    pub fn tell(&self, input: impl FnOnce(&mut Registry, Now)) {
        let queue = |commit: Option<Commit>, outputs: Vec<Output>, told: Told| {
            if commit.is_none() && outputs.is_empty() {
                return Ok(());
            }
            self.deliver_later(commit, outputs, told).map(drop)
        };
        if let Err(error) = self.enter(Vec::new(), input, queue).1 {
            tracing::warn!(%error, "not written");
        }
    }

    /// The same, with further writes (a lease) in the same commit.
    pub fn act_with<T>(
        &self,
        writes: Vec<Write>,
        input: impl FnOnce(&mut Registry, Now) -> T,
    ) -> (T, Pending) {
        let (result, queued) = self.enter(writes, input, |commit, outputs, told| {
            self.deliver_later(commit, outputs, told)
        });
        (result, Pending(queued))
    }

    fn deliver_later(
        &self,
        commit: Option<Commit>,
        outputs: Vec<Output>,
        told: Told,
    ) -> Result<oneshot::Receiver<Result<(), String>>, String> {
        let (done, receiver) = oneshot::channel();
        let delivery = Delivery {
            commit,
            outputs,
            told,
            done,
        };
        self.deliveries
            .try_send(delivery)
            .map(|()| receiver)
            .map_err(|_| "too many deliveries are waiting".to_owned())
    }

    /// Under both locks from the input to `queue`, so that the order of both queues is the order of the inputs, and what the registry
    /// says of a machine stands in the same commit as what the history says of it.
    fn enter<T, Q>(
        &self,
        mut writes: Vec<Write>,
        input: impl FnOnce(&mut Registry, Now) -> T,
        queue: impl FnOnce(Option<Commit>, Vec<Output>, Told) -> Result<Q, String>,
    ) -> (T, Result<Q, String>) {
        let mut registry = lock(&self.registry);
        let mut members = lock(&self.members);
        let now = self.now();
        // The history's own judgements are older than this input.
        if let Some(members) = &mut *members {
            for change in members.decided() {
                registry.handle_history(now, &change);
            }
        }
        let result = input(&mut registry, now);
        let mut durable = !writes.is_empty();
        let mut later = Vec::new();
        let mut outputs = Vec::new();
        let mut told = Told::default();
        while let Some(output) = registry.poll_output() {
            match output {
                Output::Persist(record) => {
                    durable = true;
                    writes.push(Write::Machine(record));
                }
                Output::PersistLazily(record) => later.push(Write::Machine(record)),
                Output::Forget(mac) => writes.push(Write::ForgetMachine(mac)),
                Output::Event {
                    mac,
                    name,
                    kind,
                    text,
                } => writes.push(Write::Event(event(now, mac, name, kind, text))),
                Output::Step { about, step } => writes.push(Write::Step(about, step)),
                Output::PersistGroup { group, record } => {
                    durable = true;
                    writes.push(Write::Group(group, record));
                }
                Output::PersistImages(record) => {
                    durable = true;
                    writes.push(Write::Images(record));
                }
                Output::PersistCredential { mac, credential } => {
                    durable = true;
                    writes.push(Write::Credential(mac, credential));
                }
                Output::Record {
                    boot,
                    state,
                    name,
                    reason,
                } => {
                    if let Some(members) = &mut *members {
                        members.record(now.monotonic, boot, state, &name, &reason);
                    }
                }
                Output::Rotate { thrown_out } => {
                    let rotated = members
                        .as_mut()
                        .and_then(|members| members.rotate(now.monotonic, thrown_out));
                    if let Some(cluster) = rotated {
                        registry.issue_key(&cluster.key, thrown_out.is_some());
                        told.key = Some(cluster.key.clone());
                        durable = true;
                        writes.push(Write::Cluster(Box::new(cluster)));
                    }
                }
                output => outputs.push(output),
            }
        }
        if let Some(members) = &mut *members {
            // The registry knows these: they are its own.
            members.decided();
            for (place, change) in members.writes() {
                durable = true;
                told.places.push(place);
                writes.push(Write::Change(place, Box::new(change)));
            }
        }
        if !later.is_empty() {
            self.store.submit_lazily(later);
        }
        let commit = if durable {
            match self.store.submit(writes) {
                Ok(commit) => Some(commit),
                Err(error) => {
                    if let Some(members) = &mut *members {
                        members.handle_written(now.monotonic, &told.places, false);
                    }
                    return (result, Err(error.to_string()));
                }
            }
        } else {
            if !writes.is_empty() {
                self.store.submit_lazily(writes);
            }
            None
        };
        (result, queue(commit, outputs, told))
    }

    /// Registers a new connection; what the registry sends to it arrives at the receiver.
    pub fn connect(&self) -> (ConnectionId, mpsc::Receiver<Outgoing>) {
        let id = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(NODE_QUEUE);
        lock(&self.connections).insert(id, sender);
        (id, receiver)
    }

    /// Sends at once, past everything that waits for the disk: only what acknowledges nothing and is worthless later.
    pub fn send_now(&self, id: ConnectionId, message: ToNode) {
        if let Some(sender) = lock(&self.connections).get(&id)
            && sender.try_send(Outgoing::Message(Box::new(message))).is_err()
        {
            self.drops.count("node-too-slow");
        }
    }

    /// Forgets a connection.
    pub fn disconnect(&self, id: ConnectionId) {
        lock(&self.connections).remove(&id);
        self.work.relay().disconnect(id);
        crate::content::send(self, self.content.gone(self.now().monotonic, id));
        self.act(|registry, _| registry.handle_disconnect(id))
            .1
            .unacknowledged();
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        lock(&self.connections).len()
    }

    fn hand_over(self: &Arc<Self>, output: Output) {
        let (connection, outgoing) = match output {
            Output::Send { connection, message } => (connection, Outgoing::Message(Box::new(message))),
            Output::Close { connection } => (connection, Outgoing::Close),
            Output::Wake(target) => return self.wake(*target),
            Output::Persist(_)
            | Output::PersistLazily(_)
            | Output::Forget(_)
            | Output::Event { .. }
            | Output::PersistGroup { .. }
            | Output::PersistImages(_)
            | Output::PersistCredential { .. }
            | Output::Record { .. }
            | Output::Rotate { .. }
            | Output::Step { .. } => return,
        };
        let mut connections = lock(&self.connections);
        if let Some(sender) = connections.get(&connection)
            && sender.try_send(outgoing).is_err()
        {
            // It does not read. Dropping the sender ends its task.
            connections.remove(&connection);
            self.drops.count("node-too-slow");
        }
    }

    /// On the side: a wake command takes seconds.
    fn wake(self: &Arc<Self>, target: Target) {
        let Some(place) = self.power.place() else {
            return self.drops.count("too-many-to-wake");
        };
        let (core, power) = (Arc::downgrade(self), Arc::clone(&self.power));
        tokio::spawn(async move {
            let outcome = match power.control(&target).wake(&target).await {
                Ok(None) => return,
                Ok(Some(text)) => Ok(text),
                Err(error) => Err(error.to_string()),
            };
            drop(place);
            if let Some(core) = core.upgrade() {
                let told = |registry: &mut Registry, now| {
                    registry.handle_wake_outcome(now, target.mac, outcome);
                };
                core.act(told).1.unacknowledged();
            }
        });
    }
}

fn event(now: Now, mac: Option<Mac>, name: String, kind: &str, text: String) -> Event {
    tracing::info!(kind, mac = mac.map(|mac| mac.to_string()), "{text}");
    Event {
        // Given by the database.
        seq: 0,
        time_unix_ms: now.unix_ms,
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        name,
        kind: kind.to_owned(),
        text,
    }
}

/// Hands outputs over, each behind its commit. Commits complete in order, so nobody waits for a later one.
async fn deliver(core: std::sync::Weak<Core>, mut queue: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = queue.recv().await {
        let result = match delivery.commit {
            Some(commit) => commit.done().await.map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let Some(core) = core.upgrade() else { return };
        let Told { places, key } = delivery.told;
        if !places.is_empty() {
            let now = core.now().monotonic;
            core.members(|members| members.handle_written(now, &places, result.is_ok()));
        }
        if result.is_ok() {
            delivery
                .outputs
                .into_iter()
                .for_each(|output| core.hand_over(output));
            // Behind the nodes' own: they are to have it when they hear it used.
            if let Some(key) = key {
                core.members(|members| members.handle_key_written(key));
            }
        }
        let _ = delivery.done.send(result);
    }
}

async fn tick(core: std::sync::Weak<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut flushed = Duration::ZERO;
    loop {
        ticks.tick().await;
        let Some(core) = core.upgrade() else { return };
        let input = |registry: &mut Registry, now: Now| {
            registry.handle_deadline(now);
            registry.handle_hours(now);
            registry.handle_calls(now);
            registry.handle_roll(now);
            if now.monotonic >= flushed + FLUSH {
                flushed = now.monotonic;
                registry.flush_lazily();
            }
        };
        core.act(input).1.unacknowledged();
        crate::content::handle_deadline(&core);
    }
}
