//! This node's seat among the members: taken with the head's ticket, kept over restarts of the agent and changes of the link.
//! Every start uses an incarnation that was never used before, and keeps it first: a datagram's key depends on it.

use std::net::Ipv4Addr;
use std::time::Duration;

use cid_discovery::wire::Mode;
use cid_protocol::node::{GroupKey, MemberTicket};
use tokio::time::timeout;

use super::{Event, Shell};
use crate::door::{Door, ThrownOut};
use crate::load::Meter;
use crate::member::keep::{Keep, Seat};
use crate::member::{Handle, News, Place};

/// A member that ended is started again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// How long saying good-bye may take.
const LEAVE_BOUND: Duration = Duration::from_millis(300);

/// An agent after this one may believe the head silent for so much longer.
const KEEP_HEARD: Duration = Duration::from_secs(5);

/// The seat, and who sits on it.
pub(super) struct Seating {
    keep: Keep,
    seat: Option<Seat>,
    member: Option<Handle>,
    door: Option<Door>,
    thrown_out: ThrownOut,
    /// The link and address that are to be used.
    wanted: Option<(u32, Ipv4Addr)>,
    retry_at: Duration,
    meter: Meter,
    mode: Mode,
}

impl Seating {
    /// With the seat of the agent before this one, if there was one.
    pub(super) fn new(keep: Keep) -> Self {
        let (seat, thrown_out) = (keep.seat(), ThrownOut::default());
        if let Some(seat) = &seat {
            thrown_out.handle_key(&seat.ticket.key);
        }
        Self {
            seat,
            keep,
            member: None,
            door: None,
            thrown_out,
            wanted: None,
            retry_at: Duration::ZERO,
            meter: Meter::default(),
            mode: Mode::Quiet,
        }
    }

    /// `bail_out` as the head told the agent before this one.
    pub(super) fn bail_out(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.seat.as_ref()?.bail_out_secs))
    }

    /// Whether this node sits among the members now.
    pub(super) fn is_member(&self) -> bool {
        self.member.is_some()
    }

    fn rise(&mut self) {
        self.door = None;
        self.member = None;
    }
}

impl Shell {
    /// The incarnation with which this node is a member now, for the head.
    pub(super) fn incarnation(&self) -> Option<u64> {
        self.seating.member.as_ref().map(|member| member.incarnation)
    }

    /// This link and address are used from now on. Who was a member goes on as one, with or without the head.
    pub(super) fn sit(&mut self, index: u32, address: Ipv4Addr) {
        self.seating.wanted = Some((index, address));
        let Some(place) = self.place(index, address) else {
            return;
        };
        if self
            .seating
            .member
            .as_ref()
            .is_some_and(|member| member.place == place)
        {
            return;
        }
        if let Some(seat) = self.seating.seat.clone() {
            let incarnation = seat.incarnation + 1;
            self.start_member(place, Seat { incarnation, ..seat });
        }
    }

    /// The head welcomed this node with a ticket.
    pub(super) async fn join(&mut self, index: u32, address: Ipv4Addr, name: String, ticket: MemberTicket) {
        self.seating.wanted = Some((index, address));
        self.seating.thrown_out.handle_key(&ticket.key);
        let Some(place) = self.place(index, address) else {
            return;
        };
        let bail_out_secs = self.node.bail_out().as_secs();
        let old = self.seating.seat.take();
        if let (Some(member), Some(old)) = (&self.seating.member, &old) {
            let same = member.place == place
                && member.incarnation == ticket.incarnation
                && member.head_id == ticket.head_id
                && old.ticket.key.epoch <= ticket.key.epoch;
            if same {
                member.key(ticket.key.clone()).await;
                self.seating.seat = Some(Seat {
                    ticket,
                    ..old.clone()
                });
                return;
            }
        }
        let used = old.as_ref().map_or(0, |old| old.incarnation);
        let seat = Seat {
            incarnation: ticket.incarnation.max(used + 1),
            ticket,
            name,
            bail_out_secs,
            peers: old.map(|old| old.peers).unwrap_or_default(),
        };
        self.start_member(place, seat);
    }

    /// The head rotated the key.
    pub(super) async fn rotate(&mut self, key: GroupKey) {
        self.seating.thrown_out.handle_key(&key);
        if let Some(seat) = &mut self.seating.seat {
            seat.ticket.key.clone_from(&key);
        }
        if let Some(member) = &self.seating.member {
            member.key(key).await;
        }
    }

    /// How closely its neighbours watch this node from now on: `Busy` while it runs jobs, so that somebody else takes them within
    /// seconds of its death.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.seating.mode = mode;
        if let Some(member) = &self.seating.member {
            member.mode(mode);
        }
    }

    /// Peers need not look for this node.
    pub(super) async fn leave_members(&mut self) {
        if let Some(member) = &self.seating.member {
            let _ = timeout(LEAVE_BOUND, member.leave()).await;
        }
        self.seating.rise();
        self.seating.seat = None;
    }

    /// What the member tells.
    pub(super) fn handle_member(&mut self, now: Duration, incarnation: u64, news: Result<News, String>) {
        if self.incarnation() != Some(incarnation) {
            return;
        }
        match news {
            Ok(News::HeadHeard(at)) => self.node.handle_head_heard(at),
            Ok(News::Superseded) => {
                log!("cid-agent: another boot of this machine is a member; asking the head again");
                self.seating.rise();
                self.seating.seat = None;
                self.node
                    .handle_closed(now, "another boot of this machine is a member");
            }
            Err(why) => {
                log!("cid-agent: membership: {why}");
                self.seating.rise();
                self.seating.retry_at = now + RETRY;
            }
        }
    }

    /// The load, and another attempt where a member ended.
    pub(super) fn every_second(&mut self, now: Duration) {
        if self
            .head_heard_kept
            .is_none_or(|kept| self.node.heard() > kept + KEEP_HEARD)
        {
            self.head_heard_kept = Some(self.node.heard());
            self.keep.keep_head_heard(self.node.heard());
        }
        if self.seating.member.as_ref().is_some_and(Handle::is_over) {
            self.seating.rise();
        }
        if let Some(member) = &self.seating.member {
            let cpu_speed = self.measurements.cpu_speed();
            let load = self
                .ground
                .load(&mut self.seating.meter, &member.place.link, cpu_speed);
            member.load(load);
            // Again, since a full queue may have dropped it; the same mode once more is nothing.
            member.mode(self.seating.mode);
        } else if let Some((index, address)) = self.seating.wanted
            && now >= self.seating.retry_at
        {
            self.seating.retry_at = now + RETRY;
            self.sit(index, address);
        }
    }

    /// Where the member is asked who is there.
    pub(super) fn member_commands(&self) -> Option<tokio::sync::mpsc::Sender<crate::member::Command>> {
        self.seating.member.as_ref().map(Handle::commands)
    }

    fn place(&self, index: u32, address: Ipv4Addr) -> Option<Place> {
        Some(Place {
            link: self.wires.get(&index)?.name.clone(),
            address,
            head: self.head?,
            shared: self.ground.is_shared(),
        })
    }

    fn start_member(&mut self, place: Place, seat: Seat) {
        // The old one first: two must not hold the port.
        self.seating.rise();
        let mut seat = seat;
        // The member keeps them while it sits.
        if let Some(kept) = self.seating.keep.seat() {
            seat.peers = kept.peers;
        }
        // An incarnation that an agent after this one would not know of must not be used.
        let kept = self.seating.keep.keep_seat(&seat);
        self.seating.seat = Some(seat.clone());
        if !kept {
            return;
        }
        let (sender, incarnation) = (self.sender.clone(), seat.incarnation);
        let news = move |news| {
            // A full queue drops it: what matters is told again, and an end is seen every second.
            let _ = sender.try_send(Event::Member { incarnation, news });
        };
        let keep = self.seating.keep.clone();
        let started = self.started;
        let member = choices().and_then(|seed| Handle::start(place, seat, keep, started, seed, news));
        match member {
            Ok(member) => {
                self.open_door(&member);
                member.mode(self.seating.mode);
                self.seating.member = Some(member);
                let now = self.now();
                self.announcer.handle_address(now, None);
            }
            Err(error) => log!("cid-agent: {error:#}"),
        }
    }

    fn open_door(&mut self, member: &Handle) {
        let config = self
            .credentials
            .as_ref()
            .and_then(|credentials| credentials.server_config());
        let Some(config) = config else {
            return;
        };
        match Door::open(
            &member.place,
            config,
            member.commands(),
            self.seating.thrown_out.clone(),
            self.roots.offered(),
        ) {
            Ok(door) => self.seating.door = Some(door),
            Err(error) => log!("cid-agent: its door for administrators: {error}"),
        }
    }
}

/// What the membership draws its numbers from, questions to the head among them, which nobody may foresee. TLS has used the
/// kernel's generator by now, so this does not wait for it.
fn choices() -> anyhow::Result<u64> {
    Ok(u64::from_ne_bytes(cid_trust::random()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_members_draw_the_same_numbers() {
        let drawn: std::collections::BTreeSet<u64> =
            (0..1_000).map(|_| choices().expect("a number")).collect();
        assert_eq!(drawn.len(), 1_000);
        // Neither half stands still.
        for shift in [0, 32] {
            let halves: std::collections::BTreeSet<u64> =
                drawn.iter().map(|n| (n >> shift) & 0xffff_ffff).collect();
            assert!(halves.len() > 990, "{}", halves.len());
        }
    }
}
