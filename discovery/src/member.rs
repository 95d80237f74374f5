//! Membership: who is in the cluster, said by each member for itself and judged by its neighbours. SWIM's probing and
//! suspicion with Lifeguard's self-doubt, on a ring, beside a head that puts the changes in order; the numbers and
//! their reasons are in docs/membership.md. One state machine for nodes and the head; it must never act for the
//! cluster without the head, see [`Membership::may_act`].
//!
//! The shell opens what [`crate::seal`] accepts, feeds it to [`Membership::handle_datagram`], drains
//! [`Membership::poll_output`], and calls [`Membership::handle_deadline`] no later than
//! [`Membership::next_deadline`] says: after the datagrams that wait, so that a late member does not judge others by
//! its own sleep.

mod probing;
mod receive;
mod silence;
mod speaking;
mod sync;
#[cfg(test)]
pub(crate) mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use crate::history::chronicle::{Chronicle, Stale};
use crate::history::replica::Replica;
use crate::history::{Change, State};
use crate::identity::{Boot, NodeId};
use crate::load::{LoadBook, LoadVector};
use crate::random::Random;
use crate::roster::Roster;
use crate::rumors::{Origin, Rumors};
use crate::wire::{Digest, Kind, Liveness, Mode, Refusal, Refusals, Role, Rumor};

use probing::Probe;
use sync::Pulling;

/// How often a quiet member is asked whether it is there.
pub const QUIET_INTERVAL: Duration = Duration::from_millis(2_500);
/// How often a busy one is.
pub const BUSY_INTERVAL: Duration = Duration::from_millis(400);
/// How often a member asks the head, a random member, or a dead one, in turn.
pub const CONTACT_INTERVAL: Duration = Duration::from_secs(5);
/// How often it asks a head that did not answer.
pub const RETRY_HEAD: Duration = Duration::from_secs(2);
/// A greeting to the group, for those that never heard of us; in rooms above [`HELLO_MEMBERS`] longer,
/// in proportion, so that what everybody must hear stays constant.
pub const HELLO_INTERVAL: Duration = Duration::from_secs(30);
/// Up to so many members greet in that rhythm.
pub const HELLO_MEMBERS: usize = 100;
/// Rumours are passed on in this rhythm, while there are any.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(50);
/// To so many members at a time.
pub const GOSSIP_FAN: usize = 4;
/// The head, which has the better wire, to so many.
pub const HEAD_FAN: usize = 16;
/// The head's answers carry the loads that it learned within so long: every node asks it twice in that time.
pub const LOADS_WINDOW: Duration = Duration::from_secs(22);
/// In at most so many datagrams.
pub const LOADS_BURST: usize = 16;
/// Without the head pings and answers carry so many loads.
pub const GOSSIP_LOADS: usize = 8;
/// Members that give a second opinion on a suspicion.
pub const WATCHERS: usize = 3;
/// Without a word from the head for so long a member is on its own: two contacts and their retries.
pub const HEAD_LEASE: Duration = Duration::from_secs(25);

/// What the membership must be told to begin.
#[derive(Debug, Clone)]
pub struct Config {
    /// This boot of this machine.
    pub me: Boot,
    /// Node or head.
    pub role: Role,
    /// Where others reach us.
    pub address: SocketAddrV4,
    /// The head that booted us; nobody else is believed to be one. `None` on the head itself.
    pub head: Option<(NodeId, SocketAddrV4)>,
    /// Members known from before, for a network without multicast and without a head.
    pub seeds: Vec<SocketAddrV4>,
    /// A node goes home when the head was silent this long.
    pub bail_out: Duration,
    /// Most members.
    pub capacity: usize,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Everybody on the link: the multicast group.
    Group,
    /// One member.
    Member(SocketAddrV4),
}

/// What happened to a member, or to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member, or a later boot of one.
    Appeared(Boot),
    /// It does not answer: give it nothing new, take nothing away.
    Suspected(Boot),
    /// It does answer.
    Cleared(Boot),
    /// It was taken for dead, and is there.
    Returned(Boot),
    /// It is taken for dead.
    Lost(Boot),
    /// It said that it goes.
    Left(Boot),
    /// The history has grown to this.
    History(Digest),
    /// The head is silent: from here on we do nothing in the cluster's name.
    HeadLost,
    /// The head speaks again.
    HeadBack,
    /// The head was silent for `bail_out`: the PC goes home, whatever peers say.
    GoHome,
    /// Another boot of this machine is a member: we are its ghost, and must stop.
    Superseded,
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Seal and send.
    Transmit {
        /// To whom.
        to: To,
        /// A [`crate::wire::Message`] as bytes.
        body: Vec<u8>,
    },
    /// Tell whom it concerns.
    Event(Event),
}

/// The head's history, or a node's prefix of it.
#[derive(Debug)]
pub enum Records {
    /// The head's.
    Head(Chronicle),
    /// A node's.
    Node(Replica),
}

#[derive(Debug)]
struct Timers {
    hello: Duration,
    hellos: u32,
    watch: Duration,
    contact: Duration,
    contacts: u32,
    /// The head said something while we waited for it: ask whether it is there.
    ask: Option<Duration>,
    gossip: Option<Duration>,
}

/// The state machine.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    random: Random,
    mode: Mode,
    refutation: u16,
    leaving: bool,
    roster: Roster,
    rumors: Rumors,
    records: Records,
    loads: LoadBook,
    load: LoadVector,
    probes: BTreeMap<u32, Probe>,
    /// Lifeguard's local health: 0 is well; above, our own answers come late, so we give others more time.
    health: u32,
    suspects: BTreeSet<NodeId>,
    /// Probes in a row that the head answered for a member that did not answer us.
    detours: u32,
    /// Members whose last probe the head answered for them; at most [`probing::MAX_AROUND`].
    around: BTreeSet<NodeId>,
    timers: Timers,
    /// Datagrams that are to tell peers how long our history is.
    nudges: u32,
    /// Head only: how much of the history the group was told.
    told: u32,
    /// When the roster last changed, was last compared, and whether it ever agreed with somebody's.
    changed: Duration,
    compared: Duration,
    compares: u32,
    synced: bool,
    /// When an answer to a comparison last brought much.
    brought: Option<Duration>,
    /// Whose roster differed last, and when to compare.
    mismatch: Option<(SocketAddrV4, Duration)>,
    pulling: Option<Pulling>,
    favours: (Duration, u32),
    head_heard: Duration,
    /// Whether it was ever heard by this process: until then we only hope.
    head_spoke: bool,
    head_lost: bool,
    going_home: bool,
    outputs: VecDeque<Output>,
    refusals: Refusals,
}

impl Membership {
    /// A member that knows nobody; it greets at once. `seed` decides its choices and spreads.
    pub fn new(config: Config, records: Records, seed: u64, now: Duration) -> Self {
        let mut random = Random::new(seed);
        let told = match &records {
            Records::Head(chronicle) => chronicle.digest().length,
            Records::Node(_) => 0,
        };
        let timers = Timers {
            hello: now,
            hellos: 0,
            watch: now + random.around(QUIET_INTERVAL),
            contact: now + random.around(CONTACT_INTERVAL),
            contacts: random.below(2) as u32,
            ask: None,
            gossip: None,
        };
        Self {
            roster: Roster::new(config.me, config.role, config.capacity),
            loads: LoadBook::new(config.me.id, config.capacity),
            config,
            random,
            mode: Mode::Quiet,
            refutation: 0,
            leaving: false,
            rumors: Rumors::default(),
            records,
            load: LoadVector::default(),
            probes: BTreeMap::new(),
            health: 0,
            suspects: BTreeSet::new(),
            detours: 0,
            around: BTreeSet::new(),
            timers,
            nudges: 0,
            told,
            changed: now,
            compared: Duration::ZERO,
            compares: 0,
            synced: false,
            brought: None,
            mismatch: None,
            pulling: None,
            favours: (now, 0),
            head_heard: now,
            head_spoke: false,
            head_lost: false,
            going_home: false,
            outputs: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// How closely we want to be watched; those who watch us are told when it changes.
    pub fn handle_mode(&mut self, now: Duration, mode: Mode) {
        if self.mode == mode {
            return;
        }
        self.mode = mode;
        let watchers = self.roster.watchers_of(self.config.me.id);
        for address in watchers {
            // Twice, because it may be lost; the next ping would tell anyway.
            self.send(now, To::Member(address), Kind::Gossip, Vec::new());
            self.send(now, To::Member(address), Kind::Gossip, Vec::new());
        }
    }

    /// Our load.
    pub fn handle_load(&mut self, now: Duration, load: LoadVector) {
        self.load = load;
        self.loads.handle_own(now, load, self.roster.present());
    }

    /// We go: peers are told, and do not look for us.
    pub fn handle_leave(&mut self, now: Duration) {
        self.leaving = true;
        let mut rumor = self.as_rumor();
        rumor.liveness = Liveness::Left;
        self.rumors.push(rumor, Origin::Mine);
        self.gossip(now);
    }

    /// Head only: puts a change of a node's state into the history.
    pub fn record(
        &mut self,
        now: Duration,
        boot: Boot,
        state: State,
        name: &str,
        reason: &str,
    ) -> Result<(), Stale> {
        let Records::Head(chronicle) = &mut self.records else {
            return Err(Stale::Same);
        };
        chronicle.record(now, boot, state, name, reason)?;
        // It may have gone between its first word and this.
        let liveness = self.roster.member(boot.id).filter(|member| member.boot == boot);
        match liveness.map(|member| member.liveness) {
            Some(liveness) => chronicle.handle_liveness(now, boot, liveness),
            None if state.is_present() => chronicle.expect(now, boot),
            None => {}
        }
        Ok(())
    }

    /// Head only: the wall clock was set.
    pub fn handle_clock(&mut self, now: Duration, unix_ms: u64) {
        if let Records::Head(chronicle) = &mut self.records {
            chronicle.handle_clock(now, unix_ms);
        }
    }

    /// Head only: the next change to write to disk, before anything else is drained.
    pub fn poll_persist(&mut self) -> Option<Change> {
        match &mut self.records {
            Records::Head(chronicle) => chronicle.poll_persist(),
            Records::Node(_) => None,
        }
    }

    /// Head only: what [`Self::poll_persist`] gave is committed, so everybody may know.
    pub fn handle_persisted(&mut self, now: Duration) {
        self.handle_persisted_first(now, usize::MAX);
    }

    /// Head only: the same for the first `count` of what was given and not yet said to be committed.
    pub fn handle_persisted_first(&mut self, now: Duration, count: usize) {
        if let Records::Head(chronicle) = &mut self.records {
            let before = chronicle.digest().length;
            chronicle.handle_persisted_first(count);
            let digest = chronicle.digest();
            if digest.length > before {
                self.outputs.push_back(Output::Event(Event::History(digest)));
                self.nudges = self.nudges.max(HEAD_FAN as u32);
                self.gossip_soon(now);
            }
        }
    }

    /// Whether this member may decide in the cluster's name: the head, and nodes that hear it. Not before its first
    /// word: an agent that restarts while the head is down knows nothing of the head.
    pub fn may_act(&self, now: Duration) -> bool {
        let heard = self.head_spoke && now < self.head_heard + HEAD_LEASE;
        self.config.role == Role::Head || (heard && !self.going_home)
    }

    /// When the head was last heard.
    pub fn head_heard(&self) -> Duration {
        self.head_heard
    }

    /// Who is there, by our own eyes and what peers say.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What the head has put in order, as far as we have it.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The latest change of each machine, as far as we have the history.
    pub fn table(&self) -> &BTreeMap<NodeId, Change> {
        match &self.records {
            Records::Head(chronicle) => chronicle.table(),
            Records::Node(replica) => replica.table(),
        }
    }

    /// Everybody's load.
    pub fn loads(&self) -> &LoadBook {
        &self.loads
    }

    /// What was dropped, by reason.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// 0 is well; above, our own answers come late.
    pub fn health(&self) -> u32 {
        self.health
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let bail_out = (self.config.role == Role::Node).then_some(if self.head_lost {
            self.head_heard + self.config.bail_out
        } else {
            self.head_heard + HEAD_LEASE
        });
        let chronicle = match &self.records {
            Records::Head(chronicle) => chronicle.next_deadline(now),
            Records::Node(_) => None,
        };
        [self.timers.hello, self.timers.watch, self.timers.contact]
            .into_iter()
            .chain(self.timers.gossip)
            .chain(self.timers.ask)
            .chain(self.pulling.as_ref().map(|pulling| pulling.next))
            .chain(self.mismatch.map(|(_, due)| due))
            .chain(self.probes.values().map(|probe| probe.next))
            .chain(self.suspects.iter().filter_map(|id| self.doubt_ends(*id)))
            .chain(bail_out.filter(|_| !self.going_home))
            .chain(chronicle)
            .min()
    }

    /// Does what is due; an early call does nothing.
    pub fn handle_deadline(&mut self, now: Duration) {
        self.handle_lateness(now);
        self.handle_probes(now);
        self.handle_doubts(now);
        if now >= self.timers.hello {
            self.hello(now);
        }
        if now >= self.timers.watch {
            self.watch(now);
        }
        if now >= self.timers.contact {
            self.contact(now);
        }
        if self.timers.ask.is_some_and(|at| now >= at) {
            self.timers.ask = None;
            self.ask_head(now);
        }
        self.handle_mismatch(now);
        self.handle_pulling(now);
        self.handle_head_silence(now);
        if let Records::Head(chronicle) = &mut self.records {
            chronicle.handle_deadline(now);
        }
        if self.timers.gossip.is_some_and(|at| now >= at) {
            self.gossip(now);
        }
    }

    fn is_head(&self) -> bool {
        self.config.role == Role::Head
    }

    fn hears_head(&self, now: Duration) -> bool {
        self.is_head() || now < self.head_heard + 3 * CONTACT_INTERVAL
    }

    fn head_address(&self) -> Option<SocketAddrV4> {
        let (id, address) = self.config.head?;
        Some(self.roster.member(id).map_or(address, |head| head.address))
    }

    fn as_rumor(&self) -> Rumor {
        Rumor {
            boot: self.config.me,
            refutation: self.refutation,
            liveness: Liveness::Alive,
            role: self.config.role,
            headless: false,
            address: self.config.address,
            by: None,
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Counts a drop.
    fn refuse(&mut self, reason: Refusal) {
        self.refusals.add(reason);
    }
}
