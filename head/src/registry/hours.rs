//! What opening hours do to machines. Must not hold anybody: outside the hours it is the policy that sends a PC home, so
//! nothing needs to be undone when they begin.

use std::time::Duration;

use cid_bootserver::policy;
use cid_protocol::api::NodeState;
use jiff::Timestamp;

use super::calendar::{Opened, later, moment, seconds};
use super::{Now, Registry};
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

impl Registry {
    /// What the calendar wants done now. Call it every second; a second call finds nothing to do.
    pub fn handle_hours(&mut self, now: Now) {
        self.keep_calendar(now);
        self.end_holds(now);
        self.handle_closing(now);
        self.handle_draining(now);
        self.tell_plans(now);
        self.handle_opening(now);
    }

    /// Whether a boot of `group` may begin now. Of a group that is not in head.toml the policy says more.
    pub fn hours(&self, now: Now, name: &str) -> policy::Hours {
        let (Some(plan), Some(group)) = (self.plan(now, name), self.groups.get(name)) else {
            return policy::Hours::Never;
        };
        if self.is_never(now, name) {
            return policy::Hours::Never;
        }
        let opens = plan.opens().map(|at| for_people(&self.zone, at));
        match plan.state {
            State::Closed { .. } => policy::Hours::Closed { opens },
            State::Open { until: Some(until) } if until < later(moment(now), group.patience + BOOT_TIME) => {
                policy::Hours::Closed { opens }
            }
            State::Open { .. } => policy::Hours::Open,
        }
    }

    /// Sends home whoever is up when its group's time is over.
    fn handle_closing(&mut self, now: Now) {
        let over = |name: &&String| {
            let open = self.plan(now, name).is_some_and(|plan| plan.state.is_open());
            !open && self.leave(now, name).is_some_and(|at| at <= moment(now))
        };
        let closed: Vec<&String> = self.groups.keys().filter(over).collect();
        if closed.is_empty() {
            return;
        }
        let up = self.machines.values().filter(|machine| {
            let group = self.group_of(&machine.record).map(|(name, _)| name);
            let here = machine.is_here() || machine.record.state == NodeState::Joining;
            here && group.is_some_and(|group| closed.iter().any(|closed| *closed == group))
        });
        let macs: Vec<Mac> = up.map(|machine| machine.record.mac).collect();
        for mac in macs {
            // It has had its patience before.
            let reason = "its group's hours have ended".to_owned();
            self.send_home(now, mac, "closing", reason, Duration::ZERO);
        }
    }

    /// A person who took a PC has it until the next opening that was planned then, Unix seconds; `None` is for good.
    pub(super) fn hold_ends(&self, now: Now, record: &super::Record) -> Option<u64> {
        let (name, _) = self.group_of(record)?;
        self.plan(now, name)?.opens().map(seconds)
    }

    /// Lets go of machines that a person took, when their group opens again.
    fn end_holds(&mut self, now: Now) {
        let over = self.records().filter(|record| {
            record.hold.is_some() && record.hold_until.is_some_and(|until| until <= now.unix_secs())
        });
        for mac in over.map(|record| record.mac).collect::<Vec<_>>() {
            if let Some(machine) = self.machines.get_mut(&mac) {
                machine.record.set_hold(None, None);
            }
            let text = "its group's hours begin again: it may boot";
            self.event(now, mac, "hold-ended", text.to_owned());
            self.persist(mac);
        }
    }

    /// Why a machine may not boot if its firmware asks now, and how long that lasts, for people.
    pub fn hold_text(&self, now: Now, record: &super::Record) -> Option<String> {
        let hold = record.hold_when_asking()?;
        let until = match &record.hold {
            Some(_) => record.hold_until,
            None => self.hold_ends(now, record),
        };
        let until = until.and_then(|until| Timestamp::from_second(i64::try_from(until).ok()?).ok());
        Some(match until {
            Some(until) => format!("{hold}, until {}", for_people(&self.zone, until)),
            None => hold,
        })
    }

    /// Until when `group` computes, for the PC's screen: the time of day, `Mon 06:30` when it is more than a day away, or nothing.
    pub(super) fn open_until(&self, now: Now, group: &str) -> String {
        let Some(until) = self.leave(now, group) else {
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
        u64::try_from(self.leave(now, group)?.as_millisecond()).ok()
    }

    /// Wakes groups whose hours have begun, again and again for a while, and says in the end who came. Once for each opening: a
    /// head that starts behind it makes up for it, and one that was restarted does not wake anybody again.
    fn handle_opening(&mut self, now: Now) {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(plan) = self.plan(now, &name) else {
                continue;
            };
            let wake = self.groups.get(&name).is_some_and(|group| group.wake);
            // Who is called in the last minutes would only start its own system.
            let in_time = self.hours(now, &name) == policy::Hours::Open;
            let calendar = self.calendar.entry(name.clone()).or_default();
            let known = calendar.record.opened;
            let opened = match plan.state {
                State::Open { until } => Some(Opened { until }),
                State::Closed { .. } => None,
            };
            // Its end may have been moved; it is over when the end that was known last has passed.
            let same = known.is_some_and(|known| known.until.is_none_or(|until| until > moment(now)));
            if !in_time {
                calendar.rounds.clear();
            } else if !same && wake {
                calendar.rounds = ROUNDS.map(|after| now.monotonic + after).into();
            }
            if opened != known {
                calendar.record.opened = opened;
                self.persist_group(&name);
            }
        }
        self.wake_round(now);
    }

    fn wake_round(&mut self, now: Now) {
        let due: Vec<(String, bool)> = self
            .calendar
            .iter_mut()
            .filter_map(|(name, calendar)| {
                let due = calendar.rounds.front().is_some_and(|at| now.monotonic >= *at);
                due.then(|| calendar.rounds.pop_front())?;
                Some((name.clone(), calendar.rounds.is_empty()))
            })
            .collect();
        for (group, last) in due {
            let members = self.records().filter(|record| {
                record.hold.is_none() && self.group_of(record).is_some_and(|(name, _)| name == group)
            });
            let (up, silent): (Vec<_>, Vec<_>) = members
                .map(|record| (record.mac, record.label(), record.state))
                .partition(|(_, _, state)| {
                    matches!(state, NodeState::Up | NodeState::Suspect | NodeState::Draining)
                });
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
                    self.call(now, mac);
                }
            }
        }
    }

    pub(super) fn is_open(&self, now: Now, group: &str) -> bool {
        self.plan(now, group).is_some_and(|plan| plan.state.is_open())
    }
}
