//! Who is a member, as far as this member knows: a table with SWIM's order of precedence, and the ring of who watches
//! whom. Only rules; must never send, probe or wait.

mod table;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use crate::identity::{Boot, NodeId};
use crate::random::{Random, mix};
use crate::wire::{BUCKETS, Liveness, Mode, Role, Rumor};

use table::Table;

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

/// What is known of a member: 48 bytes, since a room has the square of its machines of them.
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
    /// Since when, in hundredths of a second: [`Self::since`].
    since_hundredths: u32,
    /// How often it contradicted.
    pub refutation: u16,
    /// Present while `liveness` is [`Liveness::Suspect`].
    pub doubt: Option<Box<Doubt>>,
    /// Whether its death was declared without the head.
    pub headless: bool,
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
    members: Table,
    /// When a member that is taken for suspect or dead was last told so.
    told: BTreeMap<NodeId, Duration>,
    buckets: [u32; BUCKETS],
    capacity: usize,
}

impl Roster {
    /// A roster of `me` alone, for at most `capacity` others.
    pub fn new(me: Boot, role: Role, capacity: usize) -> Self {
        let mut roster = Self {
            members: Table::default(),
            told: BTreeMap::new(),
            buckets: [0; BUCKETS],
            capacity,
        };
        roster.toggle(me, role);
        roster
    }

    /// A member.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// For its mode, its doubt and its address; what is believed of it only [`Self::apply`] changes.
    pub(crate) fn member_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.members.get_mut(id)
    }

    /// Whether a member that is taken for suspect or dead may be told so, `pause` after the last time.
    pub(crate) fn may_tell(&mut self, now: Duration, id: NodeId, pause: Duration) -> bool {
        let due = self.told.get(&id).is_none_or(|told| now >= *told + pause);
        if due {
            self.told.insert(id, now);
        }
        due
    }

    /// Every member, the dead that are remembered included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// How many are believed to be there, the owner not counted.
    pub fn present(&self) -> usize {
        self.members.present()
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
        let mut first = NodeId([0; 16]);
        if let Some(byte) = first.0.first_mut() {
            *byte = (wanted * 256 / BUCKETS) as u8;
        }
        self.members
            .from(first)
            .take_while(move |member| bucket(member.boot.id) == wanted)
    }

    /// Applies a rumour, or a first-hand finding in its form.
    pub fn apply(&mut self, now: Duration, rumor: &Rumor) -> Effect {
        let Some(member) = self.members.get_mut(rumor.boot.id) else {
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
        let old = |member: &&Member| now >= member.since() + REMEMBER_DEAD || headless && member.headless;
        let absent = self.members.absent().filter(old);
        let ids: Vec<NodeId> = absent.map(|member| member.boot.id).collect();
        for id in &ids {
            self.members.remove(*id);
            self.told.remove(id);
        }
        ids
    }

    /// The node that `me` watches: the next on the ring that is alive, suspects skipped.
    pub fn watched_by(&self, me: NodeId) -> Option<&Member> {
        let watched = |member: &&Member| {
            member.role == Role::Node && member.liveness == Liveness::Alive && member.boot.id != me
        };
        let after = self.members.from(me);
        after.chain(self.members.iter()).find(watched)
    }

    /// Where those are reached that ask the owner, `me`, whether it is there: the next before it on the ring that is
    /// alive, and whoever stands between and is only doubted.
    pub fn watchers_of(&self, me: NodeId) -> Vec<SocketAddrV4> {
        let mut watchers = Vec::new();
        let around = self.members.before(me).chain(self.members.iter().rev());
        let nodes = |member: &&Member| member.role == Role::Node && member.is_present();
        for member in around.take(self.members.len()).filter(nodes) {
            watchers.push(member.address);
            if member.liveness == Liveness::Alive {
                break;
            }
        }
        watchers
    }

    /// Whether `me` is one of the `most` members before `id` on the ring: those that give a second opinion about it.
    pub fn is_watcher(&self, me: NodeId, id: NodeId, most: usize) -> bool {
        let alive = |member: &&Member| {
            member.role == Role::Node && member.liveness == Liveness::Alive && member.boot.id != id
        };
        let wrapped = self.members.iter().rev().take_while(|member| member.boot.id > id);
        let last = self.members.before(id).chain(wrapped).filter(alive).nth(most - 1);
        // We are among them when we stand between the last of them and `id`, going forward.
        last.is_none_or(|last| between(last.boot.id, me, id))
    }

    /// A node that is believed to be there, and passes `wanted`; each is equally likely but for a few tries.
    pub fn choose(&self, random: &mut Random, wanted: impl Fn(&Member) -> bool) -> Option<&Member> {
        (0..8).find_map(|_| {
            let member = self.members.nth_present(random.below(self.members.present()))?;
            Some(member).filter(|member| wanted(member))
        })
    }

    /// A dead member, to be asked whether it is there again.
    pub fn choose_dead(&self, random: &mut Random) -> Option<&Member> {
        let dead = |member: &&Member| member.liveness == Liveness::Dead;
        let count = self.members.absent().filter(dead).count();
        self.members.absent().filter(dead).nth(random.below(count))
    }

    /// Bytes of the heap that the roster holds, doubts not counted.
    pub fn heap_bytes(&self) -> usize {
        self.members.heap_bytes()
    }

    fn admit(&mut self, now: Duration, rumor: &Rumor) {
        let member = Member {
            boot: rumor.boot,
            address: rumor.address,
            role: rumor.role,
            mode: Mode::Quiet,
            liveness: Liveness::Left,
            since_hundredths: hundredths(now),
            refutation: rumor.refutation,
            doubt: None,
            headless: false,
        };
        self.members.insert(member);
        self.set(now, rumor, rumor.liveness);
    }

    fn retire(&mut self, id: NodeId) {
        self.told.remove(&id);
        if let Some(member) = self.members.remove(id)
            && member.is_present()
        {
            self.toggle(member.boot, member.role);
        }
    }

    fn set(&mut self, now: Duration, rumor: &Rumor, liveness: Liveness) {
        let changed = self.members.change(rumor.boot.id, |member| {
            let was = member.is_present();
            if member.liveness != liveness {
                member.since_hundredths = hundredths(now);
            }
            member.liveness = liveness;
            member.headless = liveness == Liveness::Dead && rumor.headless;
            member.doubt = (liveness == Liveness::Suspect).then(|| {
                Box::new(Doubt {
                    since: now,
                    voters: rumor.by.into_iter().collect(),
                    mine: false,
                })
            });
            (was != member.is_present()).then_some((member.boot, member.role))
        });
        if liveness == Liveness::Alive {
            self.told.remove(&rumor.boot.id);
        }
        if let Some((boot, role)) = changed.flatten() {
            self.toggle(boot, role);
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

    /// Since when `liveness` is believed, to a hundredth of a second.
    pub fn since(&self) -> Duration {
        Duration::from_millis(u64::from(self.since_hundredths) * 10)
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

/// Moments up to 497 days after the clock's zero; later ones are that.
fn hundredths(now: Duration) -> u32 {
    u32::try_from(now.as_millis() / 10).unwrap_or(u32::MAX)
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
