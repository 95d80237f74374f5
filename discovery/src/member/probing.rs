//! Asking members whether they are there, and judging those that do not say so. Must never judge while it is we who
//! are late.

use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use super::{BUSY_INTERVAL, CONTACT_INTERVAL, Event, Membership, QUIET_INTERVAL, RETRY_HEAD, To, WATCHERS};
use crate::identity::{Boot, NodeId};
use crate::roster::Effect;
use crate::rumors::Origin;
use crate::wire::{Kind, Liveness, Mode, Role, Rumor};

/// Pings of one probe.
const TRIES: u32 = 4;
/// With this ping others are asked to try in our place.
const HELPED: u32 = 3;
/// So many.
const HELPERS: usize = 3;
/// Most probes at a time; a favour beyond it is refused, our own wait.
const MAX_PROBES: usize = 64;
/// A deadline met this much too late means that we slept.
const LATE: Duration = Duration::from_millis(400);
/// So many probes in a row that only the head could answer mean that the way to peers is cut.
const DETOURS: u32 = 3;
/// Most members of which we remember that only the head reaches them for us; who reaches more than that by the head only is likely
/// to reach nobody, which is told by `DETOURS`.
pub(super) const MAX_AROUND: usize = 64;
/// Worst health: timeouts eight times as long.
const WORST_HEALTH: u32 = 7;

/// For whom a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Our own judgement.
    Judge,
    /// The head: nothing but our own standing depends on it.
    Head,
    /// A member taken for dead, which may want to know.
    Courtesy,
    /// Somebody else's question.
    Favour { asker: SocketAddrV4, probe: u32 },
}

#[derive(Debug)]
pub(super) struct Probe {
    target: Boot,
    address: SocketAddrV4,
    purpose: Purpose,
    patience: Duration,
    tries: u32,
    helpers: usize,
    refused: usize,
    began: Duration,
    pub(super) next: Duration,
}

fn interval(mode: Mode) -> Duration {
    match mode {
        Mode::Quiet => QUIET_INTERVAL,
        Mode::Busy => BUSY_INTERVAL,
    }
}

/// How long one ping may take.
fn patience(mode: Mode) -> Duration {
    match mode {
        Mode::Quiet => Duration::from_millis(300),
        Mode::Busy => Duration::from_millis(150),
    }
}

/// How long a suspect has to contradict: long while one member doubts, short when `WATCHERS` do (Lifeguard).
fn doubt_lasts(mode: Mode, voters: usize) -> Duration {
    let millis = match (mode, voters) {
        (Mode::Quiet, 0 | 1) => 6_000,
        (Mode::Quiet, 2) => 4_000,
        (Mode::Quiet, _) => 3_000,
        (Mode::Busy, 0 | 1) => 2_200,
        (Mode::Busy, 2) => 1_400,
        (Mode::Busy, _) => 1_100,
    };
    Duration::from_millis(millis)
}

impl Membership {
    /// Lifeguard's observation on ourselves: who is called late cannot say that others are.
    pub(super) fn handle_lateness(&mut self, now: Duration) {
        let Some(due) = self.next_deadline(now) else {
            return;
        };
        let late = now.saturating_sub(due);
        if late < LATE {
            return;
        }
        self.sicken();
        for probe in self.probes.values_mut() {
            probe.next = probe.next.max(now + probe.patience);
        }
        for id in &self.suspects {
            if let Some(doubt) = self
                .roster
                .member_mut(*id)
                .and_then(|member| member.doubt.as_mut())
            {
                doubt.since += late;
            }
        }
    }

    pub(super) fn sicken(&mut self) {
        self.health = (self.health + 1).min(WORST_HEALTH);
    }

    /// Asks the next node on the ring, in the rhythm that this one wants.
    pub(super) fn watch(&mut self, now: Duration) {
        let target = if self.is_head() {
            let node = |member: &crate::roster::Member| member.liveness == Liveness::Alive;
            self.roster.choose(&mut self.random, node)
        } else {
            self.roster.watched_by(self.config.me.id)
        };
        let mode = target.map_or(Mode::Quiet, |member| member.mode);
        let mode = if self.is_head() { Mode::Quiet } else { mode };
        if let Some(id) = target.map(|member| member.boot.id) {
            self.probe(now, id, Purpose::Judge);
        }
        self.timers.watch = now + self.random.around(interval(mode));
    }

    /// A word came from the node that we watch, and it is busy: the next question comes sooner.
    pub(super) fn hasten_watch(&mut self, now: Duration) {
        self.timers.watch = self.timers.watch.min(now + self.random.around(BUSY_INTERVAL));
    }

    /// Asks the head, then a random member or a dead one, in turn.
    pub(super) fn contact(&mut self, now: Duration) {
        self.timers.contacts = self.timers.contacts.wrapping_add(1);
        let silent = now >= self.head_heard + 2 * CONTACT_INTERVAL + RETRY_HEAD;
        let pause = if silent && !self.is_head() {
            RETRY_HEAD
        } else {
            CONTACT_INTERVAL
        };
        self.timers.contact = now + self.random.around(pause);
        self.roster.forget_dead(now, false);
        if !self.is_head() && (silent || self.timers.contacts.is_multiple_of(2)) {
            self.ask_head(now);
            if !self.timers.contacts.is_multiple_of(2) {
                return;
            }
            if silent {
                return;
            }
        }
        if self.timers.contacts.is_multiple_of(2) {
            return;
        }
        let dead = match self.timers.contacts % 4 {
            1 => self
                .roster
                .choose_dead(&mut self.random)
                .map(|member| member.boot.id),
            _ => None,
        };
        let alive =
            |member: &crate::roster::Member| member.liveness == Liveness::Alive && member.role == Role::Node;
        if let Some(dead) = dead {
            self.probe(now, dead, Purpose::Courtesy);
        } else if let Some(id) = self
            .roster
            .choose(&mut self.random, alive)
            .map(|member| member.boot.id)
        {
            self.probe(now, id, Purpose::Judge);
        }
    }

    /// Asks the head whether it is there; our load goes with the question.
    pub(super) fn ask_head(&mut self, now: Duration) {
        let Some((id, address)) = self.config.head else {
            return;
        };
        if self.roster.member(id).is_some() {
            self.probe(now, id, Purpose::Head);
        } else {
            // Its boot is unknown, so there is nothing to compare an answer with: greet it.
            let kind = Kind::Hello {
                address: self.config.address,
            };
            let rumors = alloc::vec![self.as_rumor()];
            self.send(now, To::Member(address), kind, rumors);
        }
    }

    /// Begins a probe, unless one of that member for the same purpose is under way.
    pub(super) fn probe(&mut self, now: Duration, id: NodeId, purpose: Purpose) {
        let Some(member) = self.roster.member(id) else {
            return;
        };
        let same = |probe: &Probe| probe.target == member.boot && probe.purpose == purpose;
        if self.probes.len() >= MAX_PROBES || self.probes.values().any(same) {
            return;
        }
        let (target, address, mode) = (member.boot, member.address, member.mode);
        self.begin(now, target, address, purpose, patience(mode) * (1 + self.health));
    }

    /// Somebody asks us to ask.
    pub(super) fn favour(
        &mut self,
        now: Duration,
        target: Boot,
        address: SocketAddrV4,
        purpose: Purpose,
    ) -> bool {
        let mode = self
            .roster
            .member(target.id)
            .map_or(Mode::Quiet, |member| member.mode);
        let room = self.probes.len() < MAX_PROBES;
        if room {
            // The asker waits for two of its patiences; the answer, either way, must be there before.
            self.begin(now, target, address, purpose, patience(mode) * 4 / 5);
        }
        room
    }

    fn begin(
        &mut self,
        now: Duration,
        target: Boot,
        address: SocketAddrV4,
        purpose: Purpose,
        patience: Duration,
    ) {
        // Not counted up: an answer that an earlier process was given answers no question of ours.
        let number = self.random.draw() as u32;
        let probe = Probe {
            target,
            address,
            purpose,
            patience,
            tries: 0,
            helpers: 0,
            refused: 0,
            began: now,
            next: now,
        };
        self.probes.insert(number, probe);
        self.advance(now, number);
    }

    /// Probes whose patience has ended.
    pub(super) fn handle_probes(&mut self, now: Duration) {
        let due: Vec<u32> = self
            .probes
            .iter()
            .filter(|(_, probe)| now >= probe.next)
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            self.advance(now, number);
        }
    }

    /// The next ping of a probe, or its end.
    fn advance(&mut self, now: Duration, number: u32) {
        let Some(probe) = self.probes.get_mut(&number) else {
            return;
        };
        let tries = if matches!(probe.purpose, Purpose::Favour { .. } | Purpose::Courtesy) {
            2
        } else {
            TRIES
        };
        if probe.tries >= tries {
            if let Some(probe) = self.probes.remove(&number) {
                self.unanswered(now, &probe);
            }
            return;
        }
        probe.tries += 1;
        let (target, address, purpose) = (probe.target, probe.address, probe.purpose);
        let judging = purpose == Purpose::Judge;
        let helped = probe.tries == HELPED && judging;
        // Lest one lost question or answer makes a doubt where the head is the only way.
        let again = probe.tries > HELPED && probe.helpers > 0 && judging;
        // The head asks in our place from the first try on.
        let cut = self.detours >= DETOURS || self.around.contains(&target.id);
        let detour = judging && cut;
        probe.next = now + probe.patience;
        // Who is doubted must hear of it, to be able to contradict.
        let doubted = self
            .roster
            .member(target.id)
            .filter(|member| member.liveness != Liveness::Alive);
        let mut rumors: Vec<Rumor> = doubted.map(|member| member.as_rumor()).into_iter().collect();
        let limit = self.rumor_limit();
        rumors.extend(self.rumors.pick(6, limit));
        self.send(now, To::Member(address), Kind::Ping { probe: number }, rumors);
        if helped || again || detour {
            let helpers = if detour || again { 1 } else { HELPERS };
            self.ask_helpers(now, number, target, address, helpers);
        }
    }

    /// Asks others to try in our place: the head first, which has another way to the member than its neighbours on the ring, whose
    /// switch may be the very thing that fails.
    fn ask_helpers(&mut self, now: Duration, number: u32, target: Boot, address: SocketAddrV4, most: usize) {
        let mut helpers: Vec<(NodeId, SocketAddrV4)> = Vec::new();
        let head = self.config.head.filter(|_| self.hears_head(now));
        helpers.extend(head.and_then(|(id, _)| Some((id, self.roster.member(id)?.address))));
        while helpers.len() < most {
            let wanted = |member: &crate::roster::Member| {
                member.liveness == Liveness::Alive
                    && member.boot.id != target.id
                    && !helpers.iter().any(|(id, _)| *id == member.boot.id)
            };
            let chosen = self.roster.choose(&mut self.random, wanted);
            let Some(helper) = chosen.map(|member| (member.boot.id, member.address)) else {
                break;
            };
            helpers.push(helper);
        }
        if let Some(probe) = self.probes.get_mut(&number) {
            probe.helpers = helpers.len();
        }
        for (_, helper) in helpers {
            let kind = Kind::Ask {
                probe: number,
                target,
                address,
            };
            self.send(now, To::Member(helper), kind, Vec::new());
        }
    }

    /// An answer came, from the member itself or through a helper. False: to no question of ours.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        number: u32,
        source: SocketAddrV4,
        from: Option<Boot>,
        reached: bool,
    ) -> bool {
        let Some(probe) = self.probes.get_mut(&number) else {
            return false;
        };
        if from.is_some_and(|from| from != probe.target) {
            return false;
        }
        if !reached {
            probe.refused += 1;
            return true;
        }
        let Some(probe) = self.probes.remove(&number) else {
            return false;
        };
        if probe.purpose == Purpose::Judge {
            if from.is_some() {
                self.detours = 0;
                self.around.remove(&probe.target.id);
            } else if self.head_address() == Some(source) {
                self.detours = self.detours.saturating_add(1);
                if self.around.len() < MAX_AROUND {
                    self.around.insert(probe.target.id);
                }
            }
        }
        match probe.purpose {
            Purpose::Favour { asker, probe } => {
                let kind = Kind::Answer { probe, reached: true };
                self.send(now, To::Member(asker), kind, Vec::new());
            }
            Purpose::Judge | Purpose::Head | Purpose::Courtesy => {
                self.health = self.health.saturating_sub(1);
                self.withdraw(now, probe.target.id);
                if self.config.head.is_some_and(|(id, _)| id == probe.target.id) {
                    self.handle_head(now, probe.began);
                }
            }
        }
        true
    }

    /// We reached a suspect: we do not doubt it. Whether others do is for it to settle; it was told.
    pub(super) fn withdraw(&mut self, now: Duration, id: NodeId) {
        if let Some(doubt) = self
            .roster
            .member_mut(id)
            .and_then(|member| member.doubt.as_mut())
        {
            doubt.mine = false;
            doubt.since = now;
        }
    }

    fn unanswered(&mut self, now: Duration, probe: &Probe) {
        match probe.purpose {
            Purpose::Favour { asker, probe } => {
                let kind = Kind::Answer {
                    probe,
                    reached: false,
                };
                self.send(now, To::Member(asker), kind, Vec::new());
            }
            Purpose::Head | Purpose::Courtesy => {}
            Purpose::Judge => {
                if probe.helpers > 0 && probe.refused == 0 {
                    // Not even the helpers said that they failed: perhaps it is we who are deaf.
                    self.sicken();
                }
                self.doubt(now, probe.target);
            }
        }
    }

    /// We asked in vain: say so, go on asking, and look at the node behind it.
    fn doubt(&mut self, now: Duration, target: Boot) {
        let Some(member) = self.roster.member(target.id) else {
            return;
        };
        if member.boot != target || !member.is_present() {
            return;
        }
        let mut rumor = member.as_rumor();
        rumor.liveness = Liveness::Suspect;
        rumor.by = Some(self.config.me.id);
        if !self.is_head() && now > self.head_heard + Duration::from_secs(1) {
            // Whether we hear the head decides what our word is worth when the doubt ends; an answer to an earlier
            // question says nothing of that.
            self.probes.retain(|_, probe| probe.purpose != Purpose::Head);
            self.ask_head(now);
        }
        self.take(now, rumor, Origin::Mine);
        if let Some(doubt) = self
            .roster
            .member_mut(target.id)
            .and_then(|member| member.doubt.as_mut())
        {
            doubt.mine = true;
        }
        self.probe(now, target.id, Purpose::Judge);
    }

    /// When a doubt ends: by our own word if we asked in vain, else by our own question.
    pub(super) fn doubt_ends(&self, id: NodeId) -> Option<Duration> {
        let member = self.roster.member(id)?;
        let doubt = member.doubt.as_ref()?;
        if doubt.mine {
            return Some(doubt.since + doubt_lasts(member.mode, doubt.voters.len()));
        }
        let asking = |probe: &Probe| probe.target.id == id && probe.purpose == Purpose::Judge;
        let ends = doubt.since + 2 * doubt_lasts(member.mode, 1);
        (!self.probes.values().any(asking) && self.probes.len() < MAX_PROBES).then_some(ends)
    }

    pub(super) fn handle_doubts(&mut self, now: Duration) {
        let ids: Vec<NodeId> = self.suspects.iter().copied().collect();
        for id in ids {
            if self.doubt_ends(id).is_none_or(|end| now < end) {
                continue;
            }
            let Some(member) = self.roster.member(id) else {
                continue;
            };
            let Some(doubt) = &member.doubt else { continue };
            if !doubt.mine {
                self.probe(now, id, Purpose::Judge);
                continue;
            }
            let mut rumor = member.as_rumor();
            rumor.liveness = Liveness::Dead;
            rumor.by = None;
            rumor.headless = !self.is_head() && self.head_heard < doubt.since;
            self.take(now, rumor, Origin::Mine);
        }
    }

    /// Takes a rumour into the roster, tells whom it concerns, and passes it on if it is news.
    pub(super) fn take(&mut self, now: Duration, rumor: Rumor, origin: Origin) {
        let effect = self.roster.apply(now, &rumor);
        let boot = rumor.boot;
        self.apply_effect(now, boot, effect);
        if effect != Effect::Nothing {
            self.rumors.push(rumor, origin);
            self.gossip_soon(now);
        }
    }

    /// What a change of the roster means for everything else here.
    pub(super) fn apply_effect(&mut self, now: Duration, boot: Boot, effect: Effect) {
        let event = match effect {
            Effect::Nothing | Effect::Echo => return,
            Effect::Appeared => Event::Appeared(boot),
            Effect::Suspected => Event::Suspected(boot),
            Effect::Cleared => Event::Cleared(boot),
            Effect::Returned => Event::Returned(boot),
            Effect::Died => Event::Lost(boot),
            Effect::Left => Event::Left(boot),
        };
        let liveness = self
            .roster
            .member(boot.id)
            .map_or(Liveness::Dead, |member| member.liveness);
        self.suspects.remove(&boot.id);
        if liveness == Liveness::Suspect {
            self.suspects.insert(boot.id);
            let watcher = self.is_head() || self.roster.is_watcher(self.config.me.id, boot.id, WATCHERS);
            if watcher {
                self.probe(now, boot.id, Purpose::Judge);
            }
        }
        if matches!(liveness, Liveness::Dead | Liveness::Left) {
            self.around.remove(&boot.id);
        }
        if matches!(liveness, Liveness::Suspect | Liveness::Dead | Liveness::Left) {
            // The node behind it may be gone too: power strips have six sockets.
            self.timers.watch = self.timers.watch.min(now + Duration::from_millis(20));
        }
        if effect != Effect::Suspected && effect != Effect::Cleared {
            self.changed = now;
        }
        if let super::Records::Head(chronicle) = &mut self.records {
            chronicle.handle_liveness(now, boot, liveness);
        }
        self.event(event);
    }
}
