//! Members in the order of their ids, in runs of some dozens: a balanced tree would cost a second copy of each id and
//! a third of its space. Must never judge a member; it only finds and keeps them.

use alloc::vec::Vec;

use super::Member;
use crate::identity::NodeId;

/// A run that would grow beyond this is cut in half.
const LONGEST: usize = 128;
/// A run grows by so many places at a time.
const GROWTH: usize = 8;

#[derive(Debug)]
struct Run {
    /// Not above the id of any of its members.
    first: NodeId,
    members: Vec<Member>,
    present: usize,
}

/// The members, sorted.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Never empty ones, but for a table without members.
    runs: Vec<Run>,
    len: usize,
    present: usize,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many are believed to be there.
    pub(super) fn present(&self) -> usize {
        self.present
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Member> {
        let run = self.runs.get(self.run_of(id))?;
        run.members.get(place(run, id).ok()?)
    }

    /// For everything but its liveness, which [`Self::change`] keeps count of.
    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        let index = self.run_of(id);
        let run = self.runs.get_mut(index)?;
        let place = place(run, id).ok()?;
        run.members.get_mut(place)
    }

    /// Lets `change` loose on a member; its id must stay.
    pub(super) fn change<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let index = self.run_of(id);
        let run = self.runs.get_mut(index)?;
        let place = place(run, id).ok()?;
        let member = run.members.get_mut(place)?;
        let before = usize::from(member.is_present());
        let result = change(member);
        let after = usize::from(member.is_present());
        run.present = run.present + after - before;
        self.present = self.present + after - before;
        Some(result)
    }

    /// Takes a member; one of the same id is replaced.
    pub(super) fn insert(&mut self, member: Member) {
        let id = member.boot.id;
        self.remove(id);
        let present = usize::from(member.is_present());
        let index = self.run_of(id);
        let Some(run) = self.runs.get_mut(index) else {
            self.runs.push(Run {
                first: id,
                members: alloc::vec![member],
                present,
            });
            (self.len, self.present) = (1, present);
            return;
        };
        if run.members.len() == run.members.capacity() {
            run.members.reserve_exact(GROWTH);
        }
        let place = place(run, id).unwrap_or_else(|place| place);
        run.members.insert(place, member);
        run.first = run.first.min(id);
        run.present += present;
        self.len += 1;
        self.present += present;
        if run.members.len() > LONGEST {
            let mut upper = Vec::with_capacity(LONGEST / 2 + GROWTH);
            upper.extend(run.members.drain(LONGEST / 2..));
            run.members.shrink_to(LONGEST / 2 + GROWTH);
            run.present = count_present(&run.members);
            if let Some(first) = upper.first().map(|member| member.boot.id) {
                let present = count_present(&upper);
                let members = upper;
                self.runs.insert(
                    index + 1,
                    Run {
                        first,
                        members,
                        present,
                    },
                );
            }
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Member> {
        let index = self.run_of(id);
        let run = self.runs.get_mut(index)?;
        let place = place(run, id).ok()?;
        let member = run.members.remove(place);
        let present = usize::from(member.is_present());
        run.present -= present;
        self.present -= present;
        self.len -= 1;
        if run.members.is_empty() {
            self.runs.remove(index);
        }
        Some(member)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.runs.iter().flat_map(|run| &run.members)
    }

    /// Those that are not believed to be there: cheap where there are few.
    pub(super) fn absent(&self) -> impl Iterator<Item = &Member> {
        self.runs
            .iter()
            .filter(|run| run.present < run.members.len())
            .flat_map(|run| &run.members)
            .filter(|member| !member.is_present())
    }

    /// From `id` on, in order.
    pub(super) fn from(&self, id: NodeId) -> impl Iterator<Item = &Member> {
        self.halves(id).1
    }

    /// Those before `id`, the nearest first.
    pub(super) fn before(&self, id: NodeId) -> impl Iterator<Item = &Member> {
        self.halves(id).0.rev()
    }

    fn halves(
        &self,
        id: NodeId,
    ) -> (
        impl DoubleEndedIterator<Item = &Member>,
        impl DoubleEndedIterator<Item = &Member>,
    ) {
        let index = self.run_of(id);
        let (below, rest) = self.runs.split_at(index.min(self.runs.len()));
        let (middle, above) = rest.split_at(rest.len().min(1));
        let middle = middle.first().map_or(&[][..], |run| &run.members);
        let cut = middle.partition_point(|member| member.boot.id < id);
        let (left, right) = middle.split_at(cut);
        (
            below.iter().flat_map(|run| &run.members).chain(left),
            right.iter().chain(above.iter().flat_map(|run| &run.members)),
        )
    }

    /// The one that is believed to be there and has `rank` such before it.
    pub(super) fn nth_present(&self, mut rank: usize) -> Option<&Member> {
        for run in &self.runs {
            if rank < run.present {
                return run.members.iter().filter(|member| member.is_present()).nth(rank);
            }
            rank -= run.present;
        }
        None
    }

    /// The last run that does not begin above `id`, or the first.
    fn run_of(&self, id: NodeId) -> usize {
        self.runs.partition_point(|run| run.first <= id).saturating_sub(1)
    }

    /// Bytes of the heap that the table holds.
    pub(super) fn heap_bytes(&self) -> usize {
        let runs = self.runs.capacity() * size_of::<Run>();
        let members: usize = self.runs.iter().map(|run| run.members.capacity()).sum();
        runs + members * size_of::<Member>()
    }
}

fn place(run: &Run, id: NodeId) -> Result<usize, usize> {
    run.members.binary_search_by_key(&id, |member| member.boot.id)
}

fn count_present(members: &[Member]) -> usize {
    members.iter().filter(|member| member.is_present()).count()
}
