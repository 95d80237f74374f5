//! When the agent is started, restarted and given up, and when the PC goes home. A core: no clock, no process.

use std::collections::VecDeque;
use std::time::Duration;

use cid_protocol::supervision::{FromAgent, FromInit, SILENCE_SECS};

/// From a key to the reset, in seconds, while there are no jobs; less when the group's `patience` is less.
pub(crate) const HAND_BACK_SECS: u64 = 10;
/// What of it [`crate::exit`] may need behind the drain.
const EXIT_SECS: u64 = 5;
/// Restarts before the agent is given up.
const RESTARTS: u32 = 3;
/// Delay before each restart, in seconds, times two for every one before.
const FIRST_DELAY_SECS: u64 = 1;
/// An agent that ran this long starts a new count.
const HEALTHY: Duration = Duration::from_secs(3600);
/// How long the kernel may need to end a killed agent.
const KILL_BOUND: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(SILENCE_SECS);

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    Start,
    Kill,
    Tell(FromInit),
    Show(String),
    /// A word for the screen: key and text.
    Learn(String, String),
    /// Count down to the restart on the screen.
    Leave {
        reason: String,
        within: Duration,
    },
    /// The end of this boot; nothing comes after it.
    Home {
        reason: String,
        ending: Ending,
    },
}

/// What the exit does to the PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Reboot,
    /// Only when the agent says so: the head asked, or the hours have ended. A person who wants the PC never gets this.
    PowerOff,
}

#[derive(Debug)]
enum State {
    /// Starts at this moment.
    Waiting { until: Duration },
    /// `since` <= `heard`.
    Running { since: Duration, heard: Duration },
    /// Killed; its exit is awaited.
    Killed { until: Duration },
    /// A person wants the PC.
    Draining { until: Duration, reason: String },
    /// [`Output::Home`] was said.
    Over,
}

/// The supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    state: State,
    restarts: u32,
    hand_back: Duration,
    outputs: VecDeque<Output>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            state: State::Waiting {
                until: Duration::ZERO,
            },
            restarts: 0,
            hand_back: Duration::from_secs(HAND_BACK_SECS),
            outputs: VecDeque::new(),
        }
    }
}

impl Supervisor {
    /// The group's `patience`: a hand-back takes no longer.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.hand_back = patience.min(Duration::from_secs(HAND_BACK_SECS));
    }

    /// The agent said something.
    pub(crate) fn handle_message(&mut self, now: Duration, message: FromAgent) {
        if let State::Running { heard, .. } = &mut self.state {
            *heard = now;
        }
        match (&self.state, message) {
            (State::Over, _) | (_, FromAgent::Alive) => {}
            (_, FromAgent::Status(text)) => self.outputs.push_back(Output::Show(text)),
            (_, FromAgent::Fact { key, text }) => self.outputs.push_back(Output::Learn(key, text)),
            (_, FromAgent::Up(name)) => {
                self.outputs.push_back(Output::Learn("name".to_owned(), name));
                self.outputs.push_back(Output::Show("ready for jobs".to_owned()));
            }
            (State::Draining { reason, .. }, FromAgent::Home(_) | FromAgent::Off(_)) => {
                let reason = reason.clone();
                self.home(reason);
            }
            (_, FromAgent::Home(reason)) => self.home(reason),
            (_, FromAgent::Off(reason)) => self.end(reason, Ending::PowerOff),
        }
    }

    /// The agent ended, or could not be started; `how` in plain words.
    pub(crate) fn handle_exit(&mut self, now: Duration, how: &str) {
        match &self.state {
            State::Over => {}
            State::Draining { reason, .. } => {
                let reason = reason.clone();
                self.home(reason);
            }
            State::Running { since, .. } if now >= *since + HEALTHY => {
                self.restarts = 0;
                self.restart(now, how);
            }
            _ => self.restart(now, how),
        }
    }

    /// A person wants the PC: a key, the power button.
    pub(crate) fn handle_person(&mut self, now: Duration, reason: &str) {
        match self.state {
            State::Over | State::Draining { .. } => {}
            State::Running { .. } => {
                let drain = self.hand_back.saturating_sub(Duration::from_secs(EXIT_SECS));
                let until = now + drain;
                self.state = State::Draining {
                    until,
                    reason: reason.to_owned(),
                };
                self.outputs.push_back(Output::Leave {
                    reason: reason.to_owned(),
                    within: self.hand_back,
                });
                let drain = FromInit::Drain {
                    secs: drain.as_secs(),
                    reason: reason.to_owned(),
                };
                self.outputs.push_back(Output::Tell(drain));
            }
            State::Waiting { .. } | State::Killed { .. } => self.home(reason.to_owned()),
        }
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { until } | State::Killed { until } | State::Draining { until, .. } => {
                Some(*until)
            }
            State::Running { heard, .. } => Some(*heard + SILENCE),
            State::Over => None,
        }
    }

    /// Acts on what is due; an early call does nothing.
    pub(crate) fn handle_deadline(&mut self, now: Duration) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.state {
            State::Waiting { .. } => {
                self.state = State::Running {
                    since: now,
                    heard: now,
                };
                self.outputs.push_back(Output::Start);
            }
            State::Running { since, .. } => {
                if now >= *since + HEALTHY {
                    self.restarts = 0;
                }
                self.state = State::Killed {
                    until: now + KILL_BOUND,
                };
                self.outputs.push_back(Output::Show(format!(
                    "its program said nothing for {SILENCE_SECS} s"
                )));
                self.outputs.push_back(Output::Kill);
            }
            State::Killed { .. } => self.home("its program cannot be ended".to_owned()),
            State::Draining { reason, .. } => {
                let reason = reason.clone();
                self.home(reason);
            }
            State::Over => {}
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn restart(&mut self, now: Duration, how: &str) {
        if self.restarts >= RESTARTS {
            return self.home(format!(
                "its program failed {} times, the last time it {how}",
                RESTARTS + 1
            ));
        }
        let delay = Duration::from_secs(FIRST_DELAY_SECS << self.restarts);
        self.restarts += 1;
        self.state = State::Waiting { until: now + delay };
        let text = format!("its program {how}; restart {} of {RESTARTS}", self.restarts);
        self.outputs.push_back(Output::Show(text));
    }

    fn home(&mut self, reason: String) {
        self.end(reason, Ending::Reboot);
    }

    fn end(&mut self, reason: String, ending: Ending) {
        self.state = State::Over;
        self.outputs.push_back(Output::Home { reason, ending });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn drain(s: &mut Supervisor) -> Vec<Output> {
        std::iter::from_fn(|| s.poll_output())
            .filter(|output| !matches!(output, Output::Show(_) | Output::Learn(..) | Output::Leave { .. }))
            .collect()
    }

    fn home(reason: &str) -> Output {
        let reason = reason.to_owned();
        Output::Home {
            reason,
            ending: Ending::Reboot,
        }
    }

    fn started() -> Supervisor {
        let mut s = Supervisor::default();
        s.handle_deadline(at(0));
        assert_eq!(drain(&mut s), [Output::Start]);
        s
    }

    #[test]
    fn three_restarts_then_home_within_two_minutes() {
        let mut s = started();
        let mut now = at(0);
        for _ in 0..3 {
            s.handle_exit(now, "was killed");
            now = s.next_deadline().expect("a restart is planned");
            s.handle_deadline(now);
            assert_eq!(drain(&mut s), [Output::Start]);
        }
        s.handle_exit(now, "was killed");
        let reason = "its program failed 4 times, the last time it was killed";
        assert_eq!(drain(&mut s), [home(reason)]);
        assert!(now < at(120));
    }

    #[test]
    fn a_stopped_agent_is_killed_each_time_and_home_is_within_two_minutes() {
        let mut s = started();
        let mut now = at(0);
        for round in 0..4 {
            now = s.next_deadline().expect("silence");
            s.handle_deadline(now);
            assert_eq!(drain(&mut s), [Output::Kill]);
            s.handle_exit(now, "was killed");
            if round < 3 {
                now = s.next_deadline().expect("restart");
                s.handle_deadline(now);
                assert_eq!(drain(&mut s), [Output::Start]);
            }
        }
        assert!(matches!(drain(&mut s).as_slice(), [Output::Home { .. }]));
        assert!(now <= at(120), "{now:?}");
    }

    #[test]
    fn a_heartbeat_keeps_it_alive_and_an_hour_forgives() {
        let mut s = started();
        s.handle_exit(at(1), "ended");
        s.handle_deadline(at(2));
        drain(&mut s);
        for second in (2..4000).step_by(10) {
            s.handle_message(at(second), FromAgent::Alive);
            s.handle_deadline(at(second));
            assert_eq!(drain(&mut s), []);
        }
        s.handle_exit(at(4000), "ended");
        assert_eq!(s.restarts, 1);
    }

    #[test]
    fn a_key_drains_and_the_reset_comes_when_the_agent_is_ready_or_within_ten_seconds() {
        for answers in [true, false] {
            let mut s = started();
            s.handle_person(at(5), "key pressed");
            let drain_line = FromInit::Drain {
                secs: 5,
                reason: "key pressed".into(),
            };
            assert_eq!(drain(&mut s), [Output::Tell(drain_line)]);
            s.handle_person(at(6), "key pressed");
            assert_eq!(drain(&mut s), []);
            if answers {
                s.handle_message(at(6), FromAgent::Home("drained".into()));
            } else {
                s.handle_deadline(at(9));
                assert_eq!(drain(&mut s), []);
                s.handle_deadline(at(10));
            }
            assert_eq!(drain(&mut s), [home("key pressed")]);
            assert_eq!(s.next_deadline(), None);
        }
    }

    #[test]
    fn a_short_patience_shortens_the_hand_back() {
        let mut s = started();
        s.set_patience(at(3));
        s.handle_person(at(5), "key pressed");
        s.handle_deadline(at(5));
        assert!(matches!(
            drain(&mut s).as_slice(),
            [Output::Tell(_), Output::Home { .. }]
        ));
    }

    #[test]
    fn a_key_without_an_agent_and_an_agent_that_dies_draining_are_home_at_once() {
        let mut s = started();
        s.handle_exit(at(1), "ended");
        s.handle_person(at(1), "key pressed");
        assert_eq!(drain(&mut s), [home("key pressed")]);
        let mut s = started();
        s.handle_person(at(1), "key pressed");
        s.handle_exit(at(2), "ended");
        assert!(matches!(
            drain(&mut s).as_slice(),
            [Output::Tell(_), Output::Home { .. }]
        ));
    }

    #[test]
    fn the_agent_decides_on_home() {
        let mut s = started();
        s.handle_message(at(9), FromAgent::Home("released".into()));
        assert_eq!(drain(&mut s), [home("released")]);
        s.handle_exit(at(10), "ended");
        s.handle_message(at(10), FromAgent::Home("again".into()));
        assert_eq!(drain(&mut s), []);
    }

    #[test]
    fn an_agent_that_cannot_be_ended_is_left_by_a_reboot() {
        let mut s = started();
        s.handle_deadline(at(20));
        assert_eq!(drain(&mut s), [Output::Kill]);
        s.handle_deadline(at(40));
        assert!(matches!(drain(&mut s).as_slice(), [Output::Home { .. }]));
    }

    #[test]
    fn it_is_switched_off_when_the_agent_says_so_and_never_on_a_person() {
        let off = || FromAgent::Off("the hours have ended".into());
        let mut s = started();
        s.handle_message(at(9), off());
        let expected = Output::Home {
            reason: "the hours have ended".into(),
            ending: Ending::PowerOff,
        };
        assert_eq!(drain(&mut s), [expected]);
        let mut s = started();
        s.handle_person(at(9), "key pressed");
        s.handle_message(at(9), off());
        assert_eq!(drain(&mut s).last(), Some(&home("key pressed")));
    }
}
