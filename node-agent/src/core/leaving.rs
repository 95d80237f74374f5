//! The way home: when the hours end, and what is said and done on leaving. Must never wait for anybody.

use std::time::Duration;

use cid_discovery::NodeState;
use cid_protocol::node::{Ending, Leaving, WayHome};
use cid_protocol::supervision::FromAgent;

use super::{CLOSING_GRACE, Node, Output, State};

impl Node {
    /// Tells the head, then PID 1. `to_init` ends up on the screen and in the log.
    pub(super) fn go_home(&mut self, to_head: &str, to_init: &str, ending: Ending) {
        if matches!(self.state, State::Over) {
            return;
        }
        self.announce(NodeState::GoingHome);
        // A PC that is off must ask the head when it is woken: BootNext is for restarts only.
        let leaving = match (ending, self.way_home) {
            (Ending::PowerOff, _) => Leaving::PowerOff,
            (Ending::Reboot, WayHome::BootNext) => Leaving::BootNext,
            (Ending::Reboot, WayHome::LocalBoot) => Leaving::LocalBoot,
        };
        self.outputs.push_back(Output::Prepare { leaving });
        if matches!(self.state, State::Joining { .. } | State::Up { .. }) {
            self.outputs.push_back(Output::SendGoingHome {
                reason: to_head.to_owned(),
            });
        }
        self.outputs.push_back(Output::Leave);
        self.state = State::Over;
        let to_init = to_init.to_owned();
        self.outputs.push_back(Output::Tell(match ending {
            Ending::Reboot => FromAgent::Home(to_init),
            Ending::PowerOff => FromAgent::Off(to_init),
        }));
    }

    /// Each word of the head sets the hour anew, so that a clock that was put right there is right here.
    pub(super) fn plan_to_go(&mut self, now: Duration, time_unix_ms: u64) {
        self.home_at = self
            .closes_unix_ms
            .map(|at| now + Duration::from_millis(at.saturating_sub(time_unix_ms)) + CLOSING_GRACE);
    }
}

/// A time as a person says it.
pub(super) fn in_words(time: Duration) -> String {
    match time.as_secs() {
        secs if secs >= 120 && secs.is_multiple_of(60) => format!("{} min", secs / 60),
        secs => format!("{secs} s"),
    }
}
