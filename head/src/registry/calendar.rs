//! When each group computes: its hours, the exception that an administrator made, and what follows from both, looked up
//! once and kept until it changes. Must not touch a machine.

use std::collections::VecDeque;
use std::time::Duration;

use cid_protocol::api::{GroupHours, HoursChange, HoursException};
use jiff::{SignedDuration, Timestamp};

use super::{CommandError, Now, Output, Registry};
use crate::config::{Group, nearest};
use crate::hours::{Exception, Kind, Schedule, State, for_people, until, zone_name};

/// What is kept of a group in the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupRecord {
    /// Made by an administrator; it ends by itself.
    pub exception: Option<Exception>,
    /// Its machines were called for the opening that lasts at this moment; `None` while it is closed.
    pub opened: Option<Opened>,
    /// When the nodes of a group that is closed must have left; `None` while it is open.
    pub leave: Option<Timestamp>,
}

/// An opening that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its end as far as that was known; `None` is for good.
    pub until: Option<Timestamp>,
}

/// A group's part of the calendar.
#[derive(Debug, Default)]
pub(super) struct Calendar {
    pub(super) record: GroupRecord,
    /// Calls to its machines that are still to be made, on the monotonic clock.
    pub(super) rounds: VecDeque<Duration>,
    plan: Option<Plan>,
}

/// What is known of a group's next changes. Looking further ahead than a night may take milliseconds, and every boot asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    made: Timestamp,
    /// Now, and the next change.
    pub(super) state: State,
    /// The change behind that.
    pub(super) then: Option<Timestamp>,
}

impl Plan {
    fn make(schedule: &Schedule<'_>, at: Timestamp) -> Self {
        let state = schedule.state(at);
        let next = state.changes();
        Self {
            made: at,
            state,
            then: next.and_then(|next| schedule.state(next).changes()),
        }
    }

    /// Clocks are set back, too.
    fn holds(&self, at: Timestamp) -> bool {
        self.made <= at && self.state.changes().is_none_or(|change| at < change)
    }

    /// When a group opens the next time, whatever it is now.
    pub(super) fn opens(&self) -> Option<Timestamp> {
        match self.state {
            State::Open { .. } => self.then,
            State::Closed { opens } => opens,
        }
    }
}

impl Registry {
    /// Takes over what the database kept of groups.
    pub fn restore_groups(&mut self, kept: Vec<(String, GroupRecord)>) {
        for (name, record) in kept {
            self.calendar.entry(name).or_default().record = record;
        }
    }

    /// What is planned for a group; `None` when head.toml does not have it.
    pub(super) fn plan(&self, now: Now, name: &str) -> Option<Plan> {
        let at = moment(now);
        let kept = self.calendar.get(name).and_then(|calendar| calendar.plan);
        kept.filter(|plan| plan.holds(at))
            .or_else(|| Some(Plan::make(&self.schedule(name)?, at)))
    }

    /// Whether hours or exception ever open it.
    pub(super) fn is_never(&self, now: Now, name: &str) -> bool {
        let hours = self.groups.get(name).is_none_or(|group| group.hours.is_never());
        hours
            && self
                .plan(now, name)
                .is_none_or(|plan| !plan.state.is_open() && plan.opens().is_none())
    }

    fn schedule(&self, name: &str) -> Option<Schedule<'_>> {
        let exception = self.calendar.get(name).map(|calendar| &calendar.record);
        Some(Schedule {
            hours: &self.groups.get(name)?.hours,
            exception: exception.and_then(|record| record.exception.as_ref()),
            zone: &self.zone,
        })
    }

    /// Ends exceptions whose time is over and looks the plans up again that do not hold any more.
    pub(super) fn keep_calendar(&mut self, now: Now) {
        let at = moment(now);
        let over = |(name, calendar): (&String, &Calendar)| {
            let exception = calendar.record.exception?;
            (exception.until <= at).then(|| name.clone())
        };
        for name in self.calendar.iter().filter_map(over).collect::<Vec<_>>() {
            self.put_exception(now, &name, None);
            if self.groups.contains_key(&name) {
                let counts = self.in_words(now, &name);
                self.note("hours", format!("the exception of {name} has ended; {counts}"));
            }
        }
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            let before = self.calendar.get(&name).and_then(|calendar| calendar.plan);
            if before.is_none_or(|plan| !plan.holds(at)) {
                self.plan_again(now, &name, before);
            }
        }
    }

    /// Opens or closes a group for a while, or lets its hours count again.
    ///
    /// # Errors
    /// No such group, or no such time; nothing was changed.
    pub fn change_hours(
        &mut self,
        now: Now,
        name: &str,
        change: HoursChange,
        end: Option<&str>,
    ) -> Result<(), CommandError> {
        self.known_group(name)?;
        let kind = match (change, end) {
            (HoursChange::Clear, None) => None,
            (HoursChange::Clear, Some(_)) => return Err(CommandError::ClearUntil),
            (HoursChange::Open, _) => Some(Kind::Open),
            (HoursChange::Closed, _) => Some(Kind::Closed),
        };
        let Some(kind) = kind else {
            let had = self.exception(name).is_some();
            self.put_exception(now, name, None);
            if had {
                let counts = self.in_words(now, name);
                self.note("hours", format!("the exception of {name} was cleared; {counts}"));
            }
            return Ok(());
        };
        let at = moment(now);
        let until = until(end.ok_or(CommandError::NoUntil)?, &self.zone, at)?;
        // The database keeps whole seconds.
        let from = whole_second(at);
        let exception = Exception { kind, from, until };
        self.put_exception(now, name, Some(exception));
        let counts = self.in_words(now, name);
        let (kind, until) = (kind.word(), for_people(&self.zone, until));
        self.note("hours", format!("{name} is to be {kind} until {until}; {counts}"));
        Ok(())
    }

    fn known_group(&self, name: &str) -> Result<&Group, CommandError> {
        self.groups.get(name).ok_or_else(|| {
            let group: String = name.chars().take(64).collect();
            match nearest(&group, self.groups.keys().map(String::as_str)) {
                Some(nearest) => CommandError::NoGroup {
                    nearest: nearest.to_owned(),
                    group,
                },
                None => CommandError::NoGroups,
            }
        })
    }

    fn exception(&self, name: &str) -> Option<Exception> {
        self.calendar.get(name)?.record.exception
    }

    /// That an exception counts now instead of a group's hours, for people.
    pub fn exception_text(&self, now: Now, name: &str) -> Option<String> {
        let exception = self.exception(name)?;
        let until = for_people(&self.zone, exception.until);
        exception.covers(moment(now)).then(|| {
            format!(
                "by an exception {name} is {} until {until}",
                exception.kind.word()
            )
        })
    }

    fn put_exception(&mut self, now: Now, name: &str, exception: Option<Exception>) {
        let calendar = self.calendar.entry(name.to_owned()).or_default();
        if calendar.record.exception == exception {
            return;
        }
        calendar.record.exception = exception;
        let before = calendar.plan.take();
        self.plan_again(now, name, before);
        self.persist_group(name);
    }

    /// Looks the plan up again. Where it closes a group otherwise than was foreseen, its nodes have their patience from now; that
    /// moment is kept, so that a head which is restarted gives nobody a second patience.
    fn plan_again(&mut self, now: Now, name: &str, before: Option<Plan>) {
        let (Some(plan), Some(group)) = (self.plan(now, name), self.groups.get(name)) else {
            return;
        };
        let at = whole_second(moment(now));
        let patience_ends = later(at, group.patience);
        let calendar = self.calendar.entry(name.to_owned()).or_default();
        calendar.plan = Some(plan);
        let foreseen = match before {
            Some(before) => before.state.changes().filter(|_| before.state.is_open()),
            None => calendar.record.opened.and_then(|opened| opened.until),
        };
        let leave = match plan.state {
            State::Open { .. } => None,
            State::Closed { .. } => {
                let foreseen = foreseen.filter(|until| *until <= moment(now));
                calendar.record.leave.or(foreseen).or(Some(patience_ends))
            }
        };
        if calendar.record.leave != leave {
            calendar.record.leave = leave;
            self.persist_group(name);
        }
    }

    /// When the nodes of a group must have left: its closing, or what is left of their patience when that came unforeseen.
    pub(super) fn leave(&self, now: Now, name: &str) -> Option<Timestamp> {
        let plan = self.plan(now, name)?;
        match plan.state {
            State::Open { until } => until,
            State::Closed { .. } => self.calendar.get(name).and_then(|calendar| calendar.record.leave),
        }
    }

    pub(super) fn persist_group(&mut self, name: &str) {
        if let Some(calendar) = self.calendar.get(name) {
            let (group, record) = (name.to_owned(), calendar.record);
            self.outputs.push_back(Output::PersistGroup { group, record });
        }
    }

    /// `it is open until Mon 2026-11-23 06:30`.
    fn in_words(&self, now: Now, name: &str) -> String {
        let Some(plan) = self.plan(now, name) else {
            return "head.toml does not have it".to_owned();
        };
        let word = if plan.state.is_open() { "open" } else { "closed" };
        match plan.state.changes() {
            Some(change) => format!("it is {word} until {}", for_people(&self.zone, change)),
            None => format!("it is {word} for good"),
        }
    }

    /// Every group's hours, or one group's, as the API shows them.
    ///
    /// # Errors
    /// No such group.
    pub fn group_hours(&self, now: Now, only: Option<&str>) -> Result<Vec<GroupHours>, CommandError> {
        if let Some(name) = only {
            self.known_group(name)?;
        }
        let chosen = self
            .groups
            .iter()
            .filter(|(name, _)| only.is_none_or(|only| only == *name));
        Ok(chosen
            .filter_map(|(name, group)| self.row_of_group(now, name, group))
            .collect())
    }

    fn row_of_group(&self, now: Now, name: &str, group: &Group) -> Option<GroupHours> {
        let plan = self.plan(now, name)?;
        let text = |at: Option<Timestamp>| at.map(|at| for_people(&self.zone, at)).unwrap_or_default();
        let exception = self.exception(name).map(|exception| HoursException {
            open: exception.kind == Kind::Open,
            from_unix: seconds(exception.from),
            from: text(Some(exception.from)),
            until_unix: seconds(exception.until),
            until: text(Some(exception.until)),
        });
        Some(GroupHours {
            group: name.to_owned(),
            open: plan.state.is_open(),
            changes_unix: plan.state.changes().map(seconds),
            changes: text(plan.state.changes()),
            then_unix: plan.then.map(seconds),
            then: text(plan.then),
            hours: group.hours.lines(),
            exception,
            time_zone: zone_name(&self.zone).to_owned(),
        })
    }

    /// Whether the hours are read by somebody's wall clock: neither head.toml nor this system may have named one.
    pub fn knows_its_zone(&self) -> bool {
        !self.zone.is_unknown()
    }
}

pub(super) fn moment(now: Now) -> Timestamp {
    let milliseconds = i64::try_from(now.unix_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

pub(super) fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Unix seconds; before 1970 is 1970.
pub(super) fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}
