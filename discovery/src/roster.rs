//! Who is a member, as far as this member knows: a table with SWIM's order of precedence, and the ring of who watches
//! whom. Only rules; must never send, probe or wait.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::ops::Bound;
use core::time::Duration;

use crate::identity::{Boot, NodeId};
use crate::random::{Random, mix};
use crate::wire::{BUCKETS, Liveness, Mode, Role, Rumor};

/// Doubts of so many members are told apart.
pub const MAX_VOTERS: usize = 3;
/// A dead member is remembered this long, lest an old rumour revive it.
pub const REMEMBER_DEAD: Duration = Duration::from_secs(3_600);

/// A doubt about a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Since when, here.
    pub since: Duration,
    /// Who doubts.
    pub voters: Vec<NodeId>,
    /// Whether we ourselves asked it in vain: only then we may declare it dead.
    pub mine: bool,
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its last boot.
    pub boot: Boot,
    /// Where it is reached.
    pub address: SocketAddrV4,
    /// What it is.
    pub role: Role,
    /// How closely it wants to be watched, as it last told us itself.
    pub mode: Mode,
    /// What is believed.
    pub liveness: Liveness,
    /// Since when.
    pub since: Duration,
    /// How often it contradicted.
    pub refutation: u16,
    /// Present while `liveness` is [`Liveness::Suspect`].
    pub doubt: Option<Doubt>,
    /// Whether its death was declared without the head.
    pub headless: bool,
    /// When it was last told that it is taken for suspect or dead.
    pub told: Duration,
}

/// What a rumour changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that we did not know.
    Nothing,
    /// Another voice in a doubt, or a newer refutation: worth passing on, nothing else.
    Echo,
    /// A member, or a later boot of one, that was not here before.
    Appeared,
    /// It was alive and is in doubt.
    Suspected,
    /// It was in doubt and is not.
    Cleared,
    /// It was dead and is alive.
    Returned,
    /// It is dead.
    Died,
    /// It said that it goes.
    Left,
}

/// The table. The owner itself is not in it.
#[derive(Debug)]
pub struct Roster {
    members: BTreeMap<NodeId, Member>,
    /// Nodes believed to be there, suspects included, for uniform choice.
    present: Vec<NodeId>,
    buckets: [u32; BUCKETS],
    capacity: usize,
}

impl Roster {
    /// A roster of `me` alone, for at most `capacity` others.
    pub fn new(me: Boot, role: Role, capacity: usize) -> Self {
        let mut roster = Self {
            members: BTreeMap::new(),
            present: Vec::new(),
            buckets: [0; BUCKETS],
            capacity,
        };
        roster.toggle(me, role);
        roster
    }

    /// A member.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    pub(crate) fn member_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.members.get_mut(&id)
    }

    /// Every member, the dead that are remembered included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// How many are believed to be there, the owner not counted.
    pub fn present(&self) -> usize {
        self.present.len()
    }

    /// Whether another stranger would not fit.
    pub fn is_full(&self) -> bool {
        self.members.len() >= self.capacity
    }

    /// One number for which nodes are there; equal for equal rosters, the owner included.
    pub fn hash(&self) -> u32 {
        self.buckets.iter().fold(0, |hash, bucket| hash ^ bucket)
    }

    /// The same by parts of the id space.
    pub fn buckets(&self) -> [u32; BUCKETS] {
        self.buckets
    }

    /// Members of one part, the dead included.
    pub fn in_bucket(&self, wanted: usize) -> impl Iterator<Item = &Member> {
        let first = NodeId([
            (wanted * 256 / BUCKETS) as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        let range = self.members.range(first..);
        range
            .map(|(_, member)| member)
            .take_while(move |member| bucket(member.boot.id) == wanted)
    }

    /// Applies a rumour, or a first-hand finding in its form.
    pub fn apply(&mut self, now: Duration, rumor: &Rumor) -> Effect {
        let Some(member) = self.members.get_mut(&rumor.boot.id) else {
            let news = matches!(rumor.liveness, Liveness::Alive | Liveness::Suspect);
            if !news || self.is_full() {
                return Effect::Nothing;
            }
            self.admit(now, rumor);
            return Effect::Appeared;
        };
        if rumor.boot.incarnation < member.boot.incarnation {
            return Effect::Nothing;
        }
        if rumor.boot.incarnation > member.boot.incarnation {
            self.retire(rumor.boot.id);
            self.admit(now, rumor);
            return match rumor.liveness {
                Liveness::Alive | Liveness::Suspect => Effect::Appeared,
                Liveness::Dead => Effect::Died,
                Liveness::Left => Effect::Left,
            };
        }
        let newer = rumor.refutation > member.refutation;
        match (rumor.liveness, member.liveness) {
            (Liveness::Alive, was) if newer => {
                member.refutation = rumor.refutation;
                member.address = rumor.address;
                self.set(now, rumor, Liveness::Alive);
                match was {
                    Liveness::Alive => Effect::Echo,
                    Liveness::Suspect => Effect::Cleared,
                    Liveness::Dead | Liveness::Left => Effect::Returned,
                }
            }
            (Liveness::Suspect, Liveness::Alive) if rumor.refutation >= member.refutation => {
                member.refutation = rumor.refutation;
                self.set(now, rumor, Liveness::Suspect);
                Effect::Suspected
            }
            (Liveness::Suspect, Liveness::Suspect) if newer => {
                member.refutation = rumor.refutation;
                self.set(now, rumor, Liveness::Suspect);
                Effect::Echo
            }
            (Liveness::Suspect, Liveness::Suspect) if rumor.refutation == member.refutation => {
                let (Some(doubt), Some(by)) = (&mut member.doubt, rumor.by) else {
                    return Effect::Nothing;
                };
                if doubt.voters.contains(&by) || doubt.voters.len() >= MAX_VOTERS {
                    return Effect::Nothing;
                }
                doubt.voters.push(by);
                Effect::Echo
            }
            (Liveness::Dead | Liveness::Left, Liveness::Alive | Liveness::Suspect)
                if rumor.refutation >= member.refutation =>
            {
                member.refutation = rumor.refutation;
                self.set(now, rumor, rumor.liveness);
                if rumor.liveness == Liveness::Dead {
                    Effect::Died
                } else {
                    Effect::Left
                }
            }
            // A head's word makes a death that was declared without it official.
            (Liveness::Dead, Liveness::Dead) if member.headless && !rumor.headless => {
                member.headless = false;
                Effect::Echo
            }
            _ => Effect::Nothing,
        }
    }

    /// Forgets the dead that were remembered long enough, and, with `headless`, those whose death was declared
    /// without the head.
    pub fn forget_dead(&mut self, now: Duration, headless: bool) -> Vec<NodeId> {
        let old = |member: &&Member| {
            !member.is_present() && (now >= member.since + REMEMBER_DEAD || headless && member.headless)
        };
        let ids: Vec<NodeId> = self
            .members
            .values()
            .filter(old)
            .map(|member| member.boot.id)
            .collect();
        for id in &ids {
            self.members.remove(id);
        }
        ids
    }

    /// The node that `me` watches: the next on the ring that is alive, suspects skipped.
    pub fn watched_by(&self, me: NodeId) -> Option<&Member> {
        let after = self.members.range((Bound::Excluded(me), Bound::Unbounded));
        let wrapped = self.members.range(..me);
        after
            .chain(wrapped)
            .map(|(_, member)| member)
            .find(|member| member.role == Role::Node && member.liveness == Liveness::Alive)
    }

    /// Whether `me` is one of the `most` members before `id` on the ring: those that give a second opinion about it.
    pub fn is_watcher(&self, me: NodeId, id: NodeId, most: usize) -> bool {
        let before = self.members.range(..id).rev();
        let wrapped = self.members.range((Bound::Excluded(id), Bound::Unbounded)).rev();
        let alive = |member: &&Member| member.role == Role::Node && member.liveness == Liveness::Alive;
        let last = before
            .chain(wrapped)
            .map(|(_, member)| member)
            .filter(alive)
            .nth(most - 1);
        // We are among them when we stand between the last of them and `id`, going forward.
        last.is_none_or(|last| between(last.boot.id, me, id))
    }

    /// A node that is believed to be there, and passes `wanted`; each is equally likely but for a few tries.
    pub fn choose(&self, random: &mut Random, wanted: impl Fn(&Member) -> bool) -> Option<&Member> {
        (0..8).find_map(|_| {
            let id = self.present.get(random.below(self.present.len()))?;
            self.members.get(id).filter(|member| wanted(member))
        })
    }

    /// A dead member, to be asked whether it is there again.
    pub fn choose_dead(&self, random: &mut Random) -> Option<&Member> {
        let dead = |member: &&Member| member.liveness == Liveness::Dead;
        let count = self.members.values().filter(dead).count();
        self.members.values().filter(dead).nth(random.below(count))
    }

    fn admit(&mut self, now: Duration, rumor: &Rumor) {
        let member = Member {
            boot: rumor.boot,
            address: rumor.address,
            role: rumor.role,
            mode: Mode::Quiet,
            liveness: Liveness::Left,
            since: now,
            refutation: rumor.refutation,
            doubt: None,
            headless: false,
            told: Duration::ZERO,
        };
        self.members.insert(rumor.boot.id, member);
        self.set(now, rumor, rumor.liveness);
    }

    fn retire(&mut self, id: NodeId) {
        if let Some(member) = self.members.remove(&id)
            && member.is_present()
        {
            self.toggle(member.boot, member.role);
            self.present.retain(|other| *other != id);
        }
    }

    fn set(&mut self, now: Duration, rumor: &Rumor, liveness: Liveness) {
        let Some(member) = self.members.get_mut(&rumor.boot.id) else {
            return;
        };
        let (boot, role, was) = (member.boot, member.role, member.is_present());
        if member.liveness != liveness {
            member.since = now;
        }
        member.liveness = liveness;
        member.headless = liveness == Liveness::Dead && rumor.headless;
        member.doubt = (liveness == Liveness::Suspect).then(|| Doubt {
            since: now,
            voters: rumor.by.into_iter().collect(),
            mine: false,
        });
        let is = member.is_present();
        if was != is {
            self.toggle(boot, role);
            if is {
                self.present.push(boot.id);
            } else {
                self.present.retain(|id| *id != boot.id);
            }
        }
    }

    /// Adds a node to the hashes, or takes it out. The head is not in them: each member judges it for itself.
    fn toggle(&mut self, boot: Boot, role: Role) {
        if role == Role::Head {
            return;
        }
        let [a, b, c, d, e, f, g, h, ..] = boot.id.0;
        let word = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if let Some(hash) = self.buckets.get_mut(bucket(boot.id)) {
            *hash ^= mix(word ^ mix(boot.incarnation)) as u32;
        }
    }
}

impl Member {
    /// Alive, as far as anybody can say.
    pub fn is_present(&self) -> bool {
        matches!(self.liveness, Liveness::Alive | Liveness::Suspect)
    }

    /// What we would say of it.
    pub fn as_rumor(&self) -> Rumor {
        let doubt = self.doubt.as_ref();
        Rumor {
            boot: self.boot,
            refutation: self.refutation,
            liveness: self.liveness,
            role: self.role,
            headless: self.headless,
            address: self.address,
            by: doubt.map(|doubt| doubt.voters.first().copied().unwrap_or(self.boot.id)),
        }
    }
}

fn bucket(id: NodeId) -> usize {
    usize::from(id.0.first().copied().unwrap_or(0)) * BUCKETS / 256
}

/// Whether `x` is reached before `end` when one goes forward on the ring from `start`.
fn between(start: NodeId, x: NodeId, end: NodeId) -> bool {
    if start < end {
        start < x && x < end
    } else {
        start < x || x < end
    }
}
