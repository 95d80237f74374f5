//! Catching up: the parts of a roster that differ, and the changes of the history that are missing. Must never push:
//! whoever lacks something asks for it, so a stranger cannot be made to receive.

use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use super::{Event, Membership, Records, To};
use crate::history::Change;
use crate::wire::{BUCKETS, Digest, Kind, MAX_RUMORS, Refusal, Role};

/// A roster that agreed once is compared when it was unchanged this long: until then rumours are on their way.
const SETTLED: Duration = Duration::from_millis(600);
/// And at most this often.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// A roster that never agreed is compared sooner, ever less often, until all of a room of its size, switched on
/// together, would compare 500 times a second: a lossy wire makes a newcomer ask again.
const COMPARE_FIRST: Duration = Duration::from_millis(100);
const COMPARE_SHARE: Duration = Duration::from_millis(2);
/// So long after the last datagram of an answer that brought much the next question goes out: the rest of the burst is on its way.
const COMPARE_ON: Duration = Duration::from_millis(20);
/// Much is one member in so many. Hence catching up costs a room at most so many times what it brings, however fast it goes:
/// among nodes that were switched on together most of an answer is known already, and they wait.
const NEWS_SHARE: usize = 4;
/// Datagrams in answer to one question.
const BURST: usize = 8;
/// How long an answer to a pull may take.
const PULL_AGAIN: Duration = Duration::from_millis(400);
/// Pulls in vain before we wait for the next word of a longer history.
const PULLS: u32 = 8;

/// A question for more history.
#[derive(Debug)]
pub(super) struct Pulling {
    /// How far it is known to reach.
    target: Digest,
    /// Who said so.
    teller: SocketAddrV4,
    tries: u32,
    pub(super) next: Duration,
}

impl Membership {
    /// The sender's roster has this hash. If it differs from ours for longer than rumours travel, we compare.
    pub(super) fn hear_roster(&mut self, now: Duration, source: SocketAddrV4, theirs: u32) {
        if theirs == self.roster.hash() {
            self.synced = true;
            self.mismatch = None;
            return;
        }
        let brought = self.brought.filter(|at| *at >= self.compared);
        let due = if let Some(at) = brought {
            at + COMPARE_ON
        } else if self.synced {
            (self.changed + SETTLED).max(self.compared + COMPARE_AGAIN)
        } else {
            let members = u32::try_from(self.roster.present()).unwrap_or(u32::MAX);
            let share = COMPARE_SHARE.saturating_mul(members).max(2 * COMPARE_FIRST);
            self.compared + share.min(COMPARE_FIRST * (1 << self.compares.min(5)))
        };
        self.mismatch = Some((source, due));
        self.handle_mismatch(now);
    }

    /// A datagram of an answer told so many members, of which so many were news.
    pub(super) fn hear_answer(&mut self, now: Duration, told: usize, news: usize) {
        if news > 0 && news * NEWS_SHARE >= told {
            self.brought = Some(now);
            // What was asked in vain before was not in vain.
            self.compares = 0;
        }
    }

    /// Compares, if it is time.
    pub(super) fn handle_mismatch(&mut self, now: Duration) {
        let Some((peer, _)) = self.mismatch.filter(|(_, due)| now >= *due) else {
            return;
        };
        self.mismatch = None;
        self.compared = now;
        self.compares += 1;
        let kind = Kind::Compare(self.roster.buckets());
        self.send(now, To::Member(peer), kind, Vec::new());
    }

    /// Tells what we know in the parts that differ.
    pub(super) fn compare(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        theirs: &[u32; BUCKETS],
    ) -> Result<(), Refusal> {
        if !self.may_favour(now) {
            return Err(Refusal::Throttled);
        }
        let ours = self.roster.buckets();
        let mut rumors = Vec::new();
        let me = self.as_rumor();
        if self.config.role == Role::Node {
            rumors.push(me);
        }
        // Each answer begins at another part, so that a lost datagram or a long roster starves none.
        let start = self.random.below(BUCKETS);
        for index in (0..BUCKETS).map(|offset| (start + offset) % BUCKETS) {
            if ours.get(index) == theirs.get(index) {
                continue;
            }
            let nodes = self
                .roster
                .in_bucket(index)
                .filter(|member| member.role == Role::Node);
            rumors.extend(nodes.map(|member| member.as_rumor()));
            if rumors.len() >= BURST * MAX_RUMORS {
                break;
            }
        }
        for chunk in rumors.chunks(MAX_RUMORS / 4 * 3).take(BURST + 4) {
            // A doubt is 16 bytes longer, hence fewer than MAX_RUMORS.
            self.send(now, To::Member(source), Kind::Roster, chunk.to_vec());
        }
        Ok(())
    }

    /// The sender has this much of a history.
    pub(super) fn hear_history(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        theirs: Digest,
        from_head: bool,
    ) {
        let Records::Node(replica) = &mut self.records else {
            return;
        };
        replica.handle_epoch(theirs.epoch, from_head);
        if !replica.lacks(theirs) {
            return;
        }
        match &mut self.pulling {
            Some(pulling) if pulling.target.epoch == theirs.epoch => {
                pulling.target.length = pulling.target.length.max(theirs.length);
            }
            _ => {
                // A little later, so that a thousand nodes do not ask at once.
                let spread = Duration::from_millis(self.random.below(60) as u64);
                self.pulling = Some(Pulling {
                    target: theirs,
                    teller: source,
                    tries: 0,
                    next: now + spread,
                });
            }
        }
    }

    /// Asks for history, the head first, then in turn whoever said that there is more.
    pub(super) fn handle_pulling(&mut self, now: Duration) {
        let Records::Node(replica) = &self.records else {
            return;
        };
        let Some(pulling) = self.pulling.as_mut().filter(|pulling| now >= pulling.next) else {
            return;
        };
        if pulling.tries >= PULLS || !replica.lacks(pulling.target) {
            self.pulling = None;
            return;
        }
        pulling.tries += 1;
        pulling.next = now + PULL_AGAIN;
        let (tries, teller) = (pulling.tries, pulling.teller);
        let kind = match replica.missing_part() {
            Some((at, part)) => Kind::PullPart { at, part },
            None => Kind::Pull {
                from: replica.digest().length,
            },
        };
        let head = self
            .head_address()
            .filter(|_| self.hears_head(now) && tries % 2 == 1);
        self.send(now, To::Member(head.unwrap_or(teller)), kind, Vec::new());
    }

    pub(super) fn exchange_history(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        theirs: Digest,
        kind: Kind,
    ) -> Result<(), Refusal> {
        match kind {
            Kind::Pull { .. } | Kind::PullPart { .. } if !self.may_favour(now) => Err(Refusal::Throttled),
            Kind::Pull { from } => self.give_tail(now, source, from),
            Kind::PullPart { at, part } => self.give_parts(now, source, at, part),
            Kind::Tail { first, changes } => {
                let Records::Node(replica) = &mut self.records else {
                    return Err(Refusal::History);
                };
                let news = replica.handle_tail(theirs.epoch, first, changes)?;
                self.history_grew(now, news);
                Ok(())
            }
            Kind::Part {
                at,
                chain,
                part,
                parts,
                changes,
            } => {
                let Records::Node(replica) = &mut self.records else {
                    return Err(Refusal::History);
                };
                let complete = replica.handle_part((theirs.epoch, at, chain), (part, parts), changes)?;
                let burst_ended = (usize::from(part) + 1).is_multiple_of(BURST);
                if let Some(pulling) = self.pulling.as_mut() {
                    pulling.tries = 0;
                    if burst_ended {
                        pulling.next = now;
                    }
                }
                self.history_grew(now, complete);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Our prefix has grown: ask on if there is more, and let two peers know.
    fn history_grew(&mut self, now: Duration, grew: bool) {
        let Records::Node(replica) = &self.records else {
            return;
        };
        if !grew {
            return;
        }
        let digest = replica.digest();
        if let Some(pulling) = self.pulling.as_mut() {
            pulling.tries = 0;
            // The rest of the burst is on its way.
            pulling.next = now + PULL_AGAIN / 8;
            if !replica.lacks(pulling.target) {
                self.pulling = None;
            }
        }
        self.nudges = self.nudges.max(2);
        self.gossip_soon(now);
        self.event(Event::History(digest));
    }

    fn give_tail(&mut self, now: Duration, source: SocketAddrV4, from: u32) -> Result<(), Refusal> {
        let mut first = from;
        for _ in 0..BURST {
            let changes = match &self.records {
                Records::Head(chronicle) => chronicle.tail(first),
                Records::Node(replica) => replica.tail(first),
            };
            match changes {
                Some(changes) if changes.is_empty() => return Ok(()),
                Some(changes) => {
                    let next = first + u32::try_from(changes.len()).unwrap_or(0);
                    self.send(now, To::Member(source), Kind::Tail { first, changes }, Vec::new());
                    first = next;
                }
                None if first == from => {
                    let at = match &self.records {
                        Records::Head(chronicle) => chronicle.snapshot().0,
                        Records::Node(replica) => replica.digest().length,
                    };
                    return self.give_parts(now, source, at, 0);
                }
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn give_parts(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        at: u32,
        first: u16,
    ) -> Result<(), Refusal> {
        // A newer snapshot was taken meanwhile: the asker begins anew with that.
        let begin = |current: u32| if at == current { first } else { 0 };
        let burst = |first: u16| BURST - usize::from(first) % BURST;
        let (current, chain, parts, datagrams) = match &self.records {
            Records::Head(chronicle) => {
                let (current, chain, parts) = chronicle.snapshot();
                let first = begin(current);
                let some = (first..parts).take(burst(first));
                let datagrams = some.filter_map(|part| Some((part, chronicle.part(part)?.to_vec())));
                (
                    current,
                    chain,
                    parts,
                    datagrams.collect::<Vec<(u16, Vec<Change>)>>(),
                )
            }
            // The head does it better, while there is one.
            Records::Node(_) if self.hears_head(now) => return Err(Refusal::History),
            Records::Node(replica) => {
                let (current, all) = (replica.digest().length, replica.parts());
                let parts = u16::try_from(all.len()).map_err(|_| Refusal::History)?;
                let first = begin(current);
                let some = (0..parts).zip(all).skip(usize::from(first)).take(burst(first));
                (current, replica.chain(), parts, some.collect())
            }
        };
        for (part, changes) in datagrams {
            let kind = Kind::Part {
                at: current,
                chain,
                part,
                parts,
                changes,
            };
            self.send(now, To::Member(source), kind, Vec::new());
        }
        Ok(())
    }

    /// Head only: the changes that were not told yet, to whoever listens; who hears nothing asks.
    pub(super) fn tell_history(&mut self, now: Duration) {
        for _ in 0..BURST {
            let Records::Head(chronicle) = &self.records else {
                return;
            };
            let first = self.told;
            let Some(changes) = chronicle.tail(first).filter(|changes| !changes.is_empty()) else {
                self.told = chronicle.digest().length;
                return;
            };
            self.told += u32::try_from(changes.len()).unwrap_or(0);
            self.send(now, To::Group, Kind::Tail { first, changes }, Vec::new());
        }
    }
}
