//! What opening hours do to machines. Must not hold anybody: outside the hours it is the policy that sends a PC home, so
//! nothing needs to be undone when they begin.

use std::collections::VecDeque;
use std::time::Duration;

use cid_bootserver::policy;
use cid_protocol::api::NodeState;
use jiff::{SignedDuration, Timestamp};

use super::{Now, Registry};
use crate::config::Group;
use crate::hours::{State, for_people};
use crate::mac::Mac;

/// What a boot takes; one that begins later than this and `patience` before closing would only turn round.
const BOOT_TIME: Duration = Duration::from_secs(300);

/// When the machines of a group are called after its hours have begun; at the last of these it is told who came.
const ROUNDS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(30),
    Duration::from_secs(90),
    Duration::from_secs(240),
    Duration::from_secs(600),
];
/// Names in the account of who did not come.
const MOST_NAMED: usize = 64;

/// Whether a group was open when it was last looked at, and the calls that are still to be made.
#[derive(Debug)]
pub(super) struct Opening {
    open: bool,
    rounds: VecDeque<Duration>,
}

impl Opening {
    fn new(open: bool) -> Self {
        let rounds = VecDeque::new();
        Self { open, rounds }
    }
}

impl Registry {
    /// Whether a boot of `group` may begin now. Of a group that is not in head.toml the policy says more.
    pub fn hours(&self, now: Now, group: &str) -> policy::Hours {
        let Some(group) = self.groups.get(group) else {
            return policy::Hours::Never;
        };
        if group.hours.is_never() {
            return policy::Hours::Never;
        }
        let opens = |at: Option<Timestamp>| policy::Hours::Closed {
            opens: at.map(|at| for_people(&self.zone, at)),
        };
        match self.state(now, group) {
            State::Closed { opens: at } => opens(at),
            State::Open { until: Some(until) } if until < later(moment(now), group.patience + BOOT_TIME) => {
                opens(group.hours.state(&self.zone, until).changes())
            }
            State::Open { .. } => policy::Hours::Open,
        }
    }

    /// Sends home whoever is up outside its hours. Call it every second; a second call finds nobody.
    pub fn handle_closing(&mut self, now: Now) {
        let closed: Vec<&str> = self
            .groups
            .iter()
            .filter(|(_, group)| !group.hours.is_open(&self.zone, moment(now)))
            .map(|(name, _)| name.as_str())
            .collect();
        if closed.is_empty() {
            return;
        }
        let up = self.machines.values().filter(|machine| {
            let group = self.group_of(&machine.record).map(|(name, _)| name);
            machine.record.state == NodeState::Up && group.is_some_and(|group| closed.contains(&group))
        });
        let macs: Vec<Mac> = up.map(|machine| machine.record.mac).collect();
        for mac in macs {
            self.send_home(now, mac, "closing", "its group's hours have ended".to_owned());
        }
    }

    /// Until when `group` computes, for the PC's screen: the time of day, `Mon 06:30` when it is more than a day away, or nothing.
    pub(super) fn open_until(&self, now: Now, group: &str) -> String {
        let state = self.groups.get(group).map(|group| self.state(now, group));
        let Some(State::Open { until: Some(until) }) = state else {
            return String::new();
        };
        let text = for_people(&self.zone, until);
        let far = until > later(moment(now), Duration::from_secs(24 * 3600));
        let (day, time) = (
            text.get(..3).unwrap_or_default(),
            text.get(15..).unwrap_or_default(),
        );
        if far {
            format!("{day} {time}")
        } else {
            time.to_owned()
        }
    }

    /// When `group`'s nodes go home by their own clock, Unix time in milliseconds.
    pub(super) fn closes_at(&self, now: Now, group: &str) -> Option<u64> {
        let state = self.groups.get(group).map(|group| self.state(now, group))?;
        let State::Open { until: Some(until) } = state else {
            return None;
        };
        u64::try_from(until.as_millisecond()).ok()
    }

    /// Wakes groups whose hours begin, again and again for a while, and says in the end who came. Call it every second.
    pub fn handle_opening(&mut self, now: Now) {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(group) = self.groups.get(&name) else {
                continue;
            };
            let (open, wake) = (self.is_open(now, group), group.wake);
            match self.openings.get_mut(&name) {
                // What began before this head did is not known to have begun now.
                None => drop(self.openings.insert(name, Opening::new(open))),
                Some(opening) if opening.open == open => {}
                Some(opening) => {
                    *opening = Opening::new(open);
                    if open && wake {
                        opening.rounds = ROUNDS.map(|after| now.monotonic + after).into();
                    }
                }
            }
        }
        self.wake_round(now);
    }

    fn wake_round(&mut self, now: Now) {
        let due: Vec<(String, bool)> = self
            .openings
            .iter_mut()
            .filter_map(|(name, opening)| {
                let due = opening.rounds.front().is_some_and(|at| now.monotonic >= *at);
                due.then(|| opening.rounds.pop_front())?;
                Some((name.clone(), opening.rounds.is_empty()))
            })
            .collect();
        for (group, last) in due {
            let members = self.records().filter(|record| {
                record.hold.is_none() && self.group_of(record).is_some_and(|(name, _)| name == group)
            });
            let (up, silent): (Vec<_>, Vec<_>) = members
                .map(|record| (record.mac, record.label(), record.state))
                .partition(|(_, _, state)| *state == NodeState::Up);
            if last {
                let mut names: Vec<String> = silent.into_iter().map(|(_, name, _)| name).collect();
                names.sort();
                names.truncate(MOST_NAMED);
                let silent = if names.is_empty() {
                    String::new()
                } else {
                    format!("; silent: {}", names.join(", "))
                };
                self.note(
                    "opening",
                    format!("the hours of {group} have begun, {} came{silent}", up.len()),
                );
                continue;
            }
            for (mac, _, state) in silent {
                if state != NodeState::Booting {
                    self.outputs.push_back(super::Output::Wake(mac));
                }
            }
        }
    }

    pub(super) fn is_open(&self, now: Now, group: &Group) -> bool {
        group.hours.is_open(&self.zone, moment(now))
    }

    fn state(&self, now: Now, group: &Group) -> State {
        group.hours.state(&self.zone, moment(now))
    }
}

fn moment(now: Now) -> Timestamp {
    let milliseconds = i64::try_from(now.unix_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}
