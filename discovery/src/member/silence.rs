//! Whether the head is there, for this member alone. Must never take a seal for an answer: what was sealed once can be
//! played back to a process that has just begun.

use core::time::Duration;

use super::{Event, HEAD_LEASE, Membership};

impl Membership {
    /// The head answered what we asked it at `asked`: nobody can play that back. Somebody can withhold it, and a process
    /// that gets no CPU keeps its questions open: so it says that the head was there then, not that it is now.
    pub(super) fn handle_head(&mut self, now: Duration, asked: Duration) {
        if now >= asked + HEAD_LEASE {
            return;
        }
        self.head_heard = self.head_heard.max(asked);
        self.head_spoke = true;
        if self.head_lost {
            self.head_lost = false;
            // What we declared without it is void; who is really there, comparing tells.
            self.roster.forget_dead(now, true);
            self.event(Event::HeadBack);
        }
    }

    /// The head's seal was on a datagram; perhaps somebody played it back. While we miss the head we ask it, and
    /// believe the answer; not all of a room in one moment.
    pub(super) fn hear_head(&mut self, now: Duration, appeared: bool) {
        let silent = !self.hears_head(now);
        if (appeared || silent || !self.head_spoke) && self.timers.ask.is_none() {
            let spread = self.random.below(self.roster.present().min(1_000));
            self.timers.ask = Some(now + Duration::from_millis(spread as u64 / 2));
        }
    }

    pub(super) fn handle_head_silence(&mut self, now: Duration) {
        if self.is_head() {
            return;
        }
        if !self.head_lost && now >= self.head_heard + HEAD_LEASE {
            self.head_lost = true;
            self.event(Event::HeadLost);
        }
        if !self.going_home && now >= self.head_heard + self.config.bail_out {
            self.going_home = true;
            self.event(Event::GoHome);
        }
    }
}
