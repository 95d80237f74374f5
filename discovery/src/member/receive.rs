//! What a datagram does. Each part that is not believed is counted; none may make us forget a member without a
//! probe or a rumour of its death.

use core::net::SocketAddrV4;
use core::time::Duration;

use super::probing::Purpose;
use super::{Event, Membership, Records, To, WATCHERS};
use crate::identity::Boot;
use crate::rumors::Origin;
use crate::wire::{Kind, Liveness, MAX_RUMORS, Message, Mode, Refusal, Role, Rumor};

/// A member is told at most this often that it is taken for suspect or dead.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Rosters, helpers' pings and histories are given at most this often a second by a node.
const FAVOURS: u32 = 100;
/// And by the head.
const HEAD_FAVOURS: u32 = 4_000;

impl Membership {
    /// Takes the body of a sealed datagram that `from` sent from `source`. A drop is counted and its reason returned.
    pub fn handle_datagram(
        &mut self,
        now: Duration,
        from: Boot,
        source: SocketAddrV4,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let result = Message::decode(body).and_then(|message| self.receive(now, from, source, message));
        result.inspect_err(|reason| self.refuse(*reason))
    }

    fn receive(
        &mut self,
        now: Duration,
        from: Boot,
        source: SocketAddrV4,
        message: Message,
    ) -> Result<(), Refusal> {
        if from.id == self.config.me.id {
            if from.incarnation > self.config.me.incarnation {
                self.event(Event::Superseded);
            }
            return Err(Refusal::Own);
        }
        let ours = self.config.head.map(|(id, _)| id);
        if (message.role == Role::Head) != (ours == Some(from.id)) {
            return Err(Refusal::OtherHead);
        }
        let appeared = self.hear(now, from, source, &message)?;
        let passed_on = !matches!(message.kind, Kind::Roster);
        let (told, before) = (message.rumors.len(), self.roster.present());
        for rumor in message.rumors {
            self.hear_rumor(now, source, rumor, passed_on);
        }
        if !passed_on {
            self.hear_answer(now, told, self.roster.present().saturating_sub(before));
        }
        self.loads.handle_entries(now, &message.loads);
        self.hear_history(now, source, message.history, message.role == Role::Head);
        self.hear_roster(now, source, message.roster);
        let reply_to = To::Member(source);
        match message.kind {
            Kind::Hello { .. } => return self.greeted(now, from, source, appeared, message.to_group),
            Kind::Ping { probe } => {
                let limit = self.rumor_limit();
                let rumors = self.rumors.pick(6, limit);
                self.send(now, reply_to, Kind::Ack { probe }, rumors);
                if matches!(self.records, Records::Head(_)) {
                    self.send_loads(now, reply_to);
                }
            }
            Kind::Ack { probe } => {
                if !self.answered(now, probe, source, Some(from), true) {
                    return Err(Refusal::Unasked);
                }
            }
            Kind::Ask {
                probe,
                target,
                address,
            } => {
                let purpose = Purpose::Favour { asker: source, probe };
                if !self.may_favour(now) || !self.favour(now, target, address, purpose) {
                    return Err(Refusal::Throttled);
                }
            }
            Kind::Answer { probe, reached } => {
                if !self.answered(now, probe, source, None, reached) {
                    return Err(Refusal::Unasked);
                }
            }
            Kind::Gossip | Kind::Roster => {}
            Kind::Compare(theirs) => return self.compare(now, source, &theirs),
            Kind::Pull { .. } | Kind::PullPart { .. } | Kind::Tail { .. } | Kind::Part { .. } => {
                return self.exchange_history(now, source, message.history, message.kind);
            }
        }
        Ok(())
    }

    /// A member speaks: that alone says that this boot of it is there. `Ok` says whether it is new to us.
    fn hear(
        &mut self,
        now: Duration,
        from: Boot,
        source: SocketAddrV4,
        message: &Message,
    ) -> Result<bool, Refusal> {
        let known = self.roster.member(from.id).map(|member| member.boot);
        if known.is_some_and(|known| known.incarnation > from.incarnation) {
            return Err(Refusal::Ghost);
        }
        let appeared = known != Some(from);
        if appeared {
            if known.is_none() && self.roster.is_full() {
                return Err(Refusal::RosterFull);
            }
            let rumor = Rumor {
                boot: from,
                refutation: 0,
                liveness: Liveness::Alive,
                role: message.role,
                headless: false,
                address: source,
                by: None,
            };
            let effect = self.roster.apply(now, &rumor);
            self.apply_effect(now, from, effect);
            // What the whole group heard needs few to repeat it.
            let few = || self.roster.is_watcher(self.config.me.id, from.id, WATCHERS);
            if message.role == Role::Node && (!message.to_group || self.is_head() || few()) {
                self.rumors.push(rumor, Origin::Heard);
                self.gossip_soon(now);
            }
        }
        if message.role == Role::Head {
            self.hear_head(now, appeared);
        }
        let mut tell = None;
        let mut hasten = false;
        if let Some(member) = self.roster.member_mut(from.id) {
            hasten = message.mode == Mode::Busy && member.mode == Mode::Quiet;
            member.mode = message.mode;
            if member.liveness != Liveness::Alive {
                tell = Some(member.as_rumor());
            }
        }
        if tell.is_some() && !self.roster.may_tell(now, from.id, TELL_AGAIN) {
            tell = None;
        }
        if let Some(rumor) = tell {
            if let Some(doubt) = self
                .roster
                .member_mut(from.id)
                .and_then(|member| member.doubt.as_mut())
            {
                doubt.mine = false;
            }
            self.send(now, To::Member(source), Kind::Gossip, alloc::vec![rumor]);
        }
        if hasten
            && self
                .roster
                .watched_by(self.config.me.id)
                .is_some_and(|next| next.boot == from)
        {
            self.hasten_watch(now);
        }
        Ok(appeared)
    }

    fn hear_rumor(&mut self, now: Duration, source: SocketAddrV4, rumor: Rumor, pass_on: bool) {
        let me = self.config.me;
        if rumor.boot.id == me.id {
            self.hear_of_myself(now, source, &rumor);
            return;
        }
        if rumor.role == Role::Head || self.config.head.is_some_and(|(id, _)| id == rumor.boot.id) {
            // Each member judges the head by its own ears.
            return;
        }
        if rumor.liveness == Liveness::Dead && rumor.headless && self.hears_head(now) {
            let present = self
                .roster
                .member(rumor.boot.id)
                .is_some_and(|member| member.is_present());
            if present {
                self.refuse(Refusal::Headless);
                if self.is_head() || self.roster.is_watcher(me.id, rumor.boot.id, WATCHERS) {
                    self.probe(now, rumor.boot.id, Purpose::Judge);
                }
            }
            return;
        }
        if pass_on {
            self.take(now, rumor, Origin::Heard);
        } else {
            let effect = self.roster.apply(now, &rumor);
            self.apply_effect(now, rumor.boot, effect);
        }
    }

    /// Somebody doubts us: contradict with a larger number, and wonder why.
    fn hear_of_myself(&mut self, now: Duration, source: SocketAddrV4, rumor: &Rumor) {
        if rumor.boot.incarnation > self.config.me.incarnation {
            self.event(Event::Superseded);
            return;
        }
        let doubted = matches!(
            rumor.liveness,
            Liveness::Suspect | Liveness::Dead | Liveness::Left
        );
        if rumor.boot != self.config.me || !doubted || self.leaving {
            return;
        }
        if rumor.refutation < self.refutation {
            // Refuted long ago, and the sender missed it.
            let alive = alloc::vec![self.as_rumor()];
            self.send(now, To::Member(source), Kind::Gossip, alive);
            return;
        }
        if rumor.liveness == Liveness::Suspect {
            self.sicken();
        }
        self.refutation = rumor.refutation.saturating_add(1);
        let alive = self.as_rumor();
        self.rumors.push(alive, Origin::Mine);
        self.gossip(now);
    }

    /// A greeting is answered by few: the head, and the next on the ring, or whoever was greeted alone.
    fn greeted(
        &mut self,
        now: Duration,
        from: Boot,
        source: SocketAddrV4,
        appeared: bool,
        to_group: bool,
    ) -> Result<(), Refusal> {
        let few = || self.roster.is_watcher(self.config.me.id, from.id, WATCHERS);
        if to_group && !(appeared && (self.is_head() || few())) {
            return Ok(());
        }
        if !self.may_favour(now) {
            return Err(Refusal::Throttled);
        }
        let mut rumors = alloc::vec![self.as_rumor()];
        for _ in 0..MAX_RUMORS / 3 {
            let chosen = self.roster.choose(&mut self.random, |member| member.boot != from);
            rumors.extend(
                chosen
                    .filter(|member| member.role == Role::Node)
                    .map(|member| member.as_rumor()),
            );
        }
        self.send(now, To::Member(source), Kind::Roster, rumors);
        Ok(())
    }

    /// Bounds what others can make us send.
    pub(super) fn may_favour(&mut self, now: Duration) -> bool {
        let most = if matches!(self.records, Records::Head(_)) {
            HEAD_FAVOURS
        } else {
            FAVOURS
        };
        let (since, given) = &mut self.favours;
        if now >= *since + Duration::from_secs(1) {
            (*since, *given) = (now, 0);
        }
        *given += 1;
        *given <= most
    }
}
