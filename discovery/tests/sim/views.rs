//! What observers of a simulated room can ask.

use std::collections::HashSet;
use std::time::Duration;

use cid_discovery::Boot;
use cid_discovery::wire::{Liveness, Role};

use super::World;

impl World {
    /// Machines that are on, nodes only.
    pub(crate) fn nodes_on(&self) -> Vec<usize> {
        (1..self.hosts.len()).filter(|index| self.is_on(*index)).collect()
    }

    fn observers(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|index| self.is_on(*index))
    }

    /// Whether `observer` believes that this boot is there.
    pub(crate) fn sees(&self, observer: usize, boot: Boot) -> bool {
        self.hosts[observer].boot == boot
            || self
                .member(observer)
                .roster()
                .member(boot.id)
                .is_some_and(|member| member.boot == boot && member.is_present())
    }

    /// Whether `observer` has declared it dead or gone, or never knew it.
    pub(crate) fn buried(&self, observer: usize, boot: Boot) -> bool {
        self.member(observer)
            .roster()
            .member(boot.id)
            .is_none_or(|member| {
                member.boot != boot || matches!(member.liveness, Liveness::Dead | Liveness::Left)
            })
    }

    /// Whether everybody who is on has buried this boot.
    pub(crate) fn all_buried(&self, boot: Boot) -> bool {
        self.observers().all(|observer| self.buried(observer, boot))
    }

    /// Runs in small steps until everybody who is on has buried this boot, at most `most`; how long it took. Only who had
    /// not yet is asked at each step: a room of 10,000 asked whole would take longer than it lives.
    pub(crate) fn time_until_buried(&mut self, most: Duration, boot: Boot) -> Option<Duration> {
        let began = self.now;
        let mut waiting: Vec<usize> = self.observers().collect();
        while self.now < began + most {
            while waiting
                .pop_if(|observer| !self.is_on(*observer) || self.buried(*observer, boot))
                .is_some()
            {}
            if waiting.is_empty() {
                if self.all_buried(boot) {
                    return Some(self.now - began);
                }
                waiting = self.observers().collect();
            }
            self.run_for(Duration::from_millis(20));
        }
        None
    }

    /// How many pairs (observer, node) are not as they should be: every living node seen, nobody else.
    pub(crate) fn wrong_pairs(&self) -> usize {
        let on: HashSet<Boot> = self
            .nodes_on()
            .into_iter()
            .map(|index| self.hosts[index].boot)
            .collect();
        self.observers()
            .map(|observer| self.wrong_of(observer, &on))
            .sum()
    }

    fn wrong_of(&self, observer: usize, on: &HashSet<Boot>) -> usize {
        let present = self.member(observer).roster().members();
        let (seen, ghosts): (Vec<_>, Vec<_>) = present
            .filter(|member| member.is_present() && member.role == Role::Node)
            .partition(|member| on.contains(&member.boot));
        let others = on.len() - usize::from(on.contains(&self.hosts[observer].boot));
        ghosts.len() + others.abs_diff(seen.len())
    }

    /// Whether no pair is wrong; cheap, by the rosters' hashes, as long as they differ.
    pub(crate) fn agreed(&self) -> bool {
        let mut hashes = self
            .observers()
            .map(|observer| self.member(observer).roster().hash());
        let first = hashes.next();
        if !hashes.all(|hash| Some(hash) == first) {
            return false;
        }
        if self.hosts.len() <= 1_001 {
            return self.wrong_pairs() == 0;
        }
        // Equal hashes of rosters: one stands for all.
        let on: HashSet<Boot> = self
            .nodes_on()
            .into_iter()
            .map(|index| self.hosts[index].boot)
            .collect();
        self.observers()
            .next()
            .is_none_or(|observer| self.wrong_of(observer, &on) == 0)
    }

    /// Runs in small steps until `done`, at most `most`; how long it took.
    pub(crate) fn time_until(&mut self, most: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.now;
        while self.now < began + most {
            if done(self) {
                return Some(self.now - began);
            }
            self.run_for(Duration::from_millis(20));
        }
        done(self).then(|| self.now - began)
    }

    /// Bytes that all hosts sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.hosts.iter().map(|host| host.sent_bytes).sum()
    }

    /// Who sees whom, for a failing test.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for observer in self.observers() {
            let member = self.member(observer);
            text += &format!("\n{observer} ({}):", member.roster().hash());
            for (index, host) in self.hosts.iter().enumerate() {
                if let Some(seen) = member.roster().member(host.boot.id) {
                    let same = if seen.boot == host.boot {
                        ""
                    } else {
                        " of another boot"
                    };
                    text += &format!(" {index} {:?} #{}{same},", seen.liveness, seen.refutation);
                }
            }
        }
        text
    }
}
