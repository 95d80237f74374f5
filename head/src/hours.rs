//! When a group may compute: opening hours as text, and whether they are open at a moment. Must not read a clock: every
//! question brings its moment and its time zone.
//!
//! A time of day means **the first moment of that day at which the wall clock shows it or more**. So 02:30 is 03:00 on
//! the night that skips it, and its first occurrence on the night that has it twice: an opening or a closing happens
//! once, and never later than somebody who looks at the wall expects.

mod exception;
mod parse;

use std::fmt;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};

pub use exception::{Exception, Kind, Schedule, UntilError, until};
pub use parse::HoursError;

/// How far ahead the next change is looked for: longer than any school year without one.
const HORIZON_DAYS: i32 = 400;
const MINUTES_OF_A_DAY: u16 = 1_440;

/// One line of `hours`: the days on which it begins, and from when to when in minutes of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    /// 1 to 1440; at or before `from` it is of the day after.
    to: u16,
}

/// First and last day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holiday {
    first: Date,
    last: Date,
}

/// What a holiday does to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnHoliday {
    /// Open from midnight to midnight besides its hours: nobody has a lesson.
    #[default]
    Open,
    /// Closed from midnight to midnight whatever its hours: nobody is there to look after the room.
    Closed,
}

/// Opening hours of a group, checked. The default is never.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hours {
    spans: Vec<Span>,
    holidays: Vec<Holiday>,
    on_holiday: OnHoliday,
}

/// Whether a group is open at a moment, and the next change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It may compute.
    Open {
        /// Until then; `None` is for good (no change within 400 days).
        until: Option<Timestamp>,
    },
    /// Its PCs are at home.
    Closed {
        /// Until then; `None` is for good.
        opens: Option<Timestamp>,
    },
}

impl State {
    /// Whether it may compute.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// The next change.
    pub fn changes(self) -> Option<Timestamp> {
        match self {
            Self::Open { until } => until,
            Self::Closed { opens } => opens,
        }
    }
}

impl Hours {
    /// Adds one line: `"Mon-Fri 20:00-06:30"`, `"Sat-Sun"`, `"18:00-24:00"` or `"always"`.
    ///
    /// # Errors
    /// What is wrong with it and how to write it.
    pub fn add(&mut self, line: &str) -> Result<(), HoursError> {
        self.spans.push(parse::span(line)?);
        Ok(())
    }

    /// Adds a holiday: `"2026-10-03"` or `"2026-12-24..2027-01-06"`, both ends included.
    ///
    /// # Errors
    /// What is wrong with it and how to write it.
    pub fn add_holiday(&mut self, line: &str) -> Result<(), HoursError> {
        self.holidays.push(parse::holiday(line)?);
        Ok(())
    }

    /// Says what a holiday does.
    pub fn set_on_holiday(&mut self, on_holiday: OnHoliday) {
        self.on_holiday = on_holiday;
    }

    /// What a holiday does.
    pub fn on_holiday(&self) -> OnHoliday {
        self.on_holiday
    }

    /// Whether no hours were given: the group never boots by them.
    pub fn is_never(&self) -> bool {
        self.spans.is_empty()
    }

    /// The lines of `hours` again, as they may be written.
    pub fn lines(&self) -> Vec<String> {
        self.spans.iter().map(ToString::to_string).collect()
    }

    /// The lines of `holidays` again.
    pub fn holiday_lines(&self) -> Vec<String> {
        let line = |holiday: &Holiday| {
            if holiday.first == holiday.last {
                holiday.first.to_string()
            } else {
                format!("{}..{}", holiday.first, holiday.last)
            }
        };
        self.holidays.iter().map(line).collect()
    }

    /// Whether the group is open at `at` by the wall clock of `zone`, and when that changes.
    pub fn state(&self, zone: &TimeZone, at: Timestamp) -> State {
        let open = self.is_open(zone, at);
        let changes = self.next_change(zone, at, open);
        if open {
            State::Open { until: changes }
        } else {
            State::Closed { opens: changes }
        }
    }

    /// Whether the group is open at `at`.
    pub fn is_open(&self, zone: &TimeZone, at: Timestamp) -> bool {
        let today = zone.to_datetime(at).date();
        // A span lasts a day at most; the second day back is for zones that skip one.
        let near: Vec<Date> = (-2..=1).filter_map(|offset| day_after(today, offset)).collect();
        let on_holiday = near.iter().any(|day| {
            self.is_holiday(*day) && moment(zone, *day, 0).is_some_and(|start| start <= at) && {
                moment(zone, *day, MINUTES_OF_A_DAY).is_some_and(|end| at < end)
            }
        });
        match (on_holiday, self.on_holiday) {
            (true, OnHoliday::Closed) => false,
            // Without hours a group never boots: holidays add to hours, they do not stand for them.
            (true, OnHoliday::Open) if !self.is_never() => true,
            _ => near
                .iter()
                .flat_map(|day| self.of_day(zone, *day))
                .any(|(start, end)| start <= at && at < end),
        }
    }

    /// The first moment behind `at` at which it is not as it is. Only where something begins or ends can it change.
    fn next_change(&self, zone: &TimeZone, at: Timestamp, open: bool) -> Option<Timestamp> {
        if self.is_never() || (self.holidays.is_empty() && self.spans.iter().any(Span::is_always)) {
            return None;
        }
        let today = zone.to_datetime(at).date();
        (-2..HORIZON_DAYS).find_map(|offset| {
            let day = day_after(today, offset)?;
            let mut edges: Vec<Timestamp> = self
                .spans
                .iter()
                .flat_map(|span| [span.from, span.to])
                .chain([0, MINUTES_OF_A_DAY])
                .filter_map(|minute| moment(zone, day, minute))
                .filter(|edge| *edge > at)
                .collect();
            edges.sort_unstable();
            edges.into_iter().find(|edge| self.is_open(zone, *edge) != open)
        })
    }

    fn of_day(&self, zone: &TimeZone, day: Date) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let bit = 1 << day.weekday().to_monday_zero_offset();
        let begins = self.spans.iter().filter(move |span| span.days & bit != 0);
        begins.filter_map(move |span| {
            let last = if span.to > span.from {
                Some(day)
            } else {
                day_after(day, 1)
            };
            Some((moment(zone, day, span.from)?, moment(zone, last?, span.to)?))
        })
    }

    fn is_holiday(&self, day: Date) -> bool {
        self.holidays
            .iter()
            .any(|holiday| holiday.first <= day && day <= holiday.last)
    }
}

impl Span {
    fn is_always(&self) -> bool {
        (self.days, self.from, self.to) == (0x7f, 0, MINUTES_OF_A_DAY)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_always() {
            return f.write_str("always");
        }
        let days: Vec<&str> = (0..7)
            .filter(|day| self.days & (1 << day) != 0)
            .filter_map(|day| parse::DAYS.get(day).copied())
            .collect();
        f.write_str(&days.join(","))?;
        if (self.from, self.to) == (0, MINUTES_OF_A_DAY) {
            return Ok(());
        }
        let (from, to) = (self.from, self.to);
        write!(
            f,
            " {:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            to / 60,
            to % 60
        )
    }
}

/// A moment as people write it: `Mon 2026-11-23 20:00`.
pub fn for_people(zone: &TimeZone, at: Timestamp) -> String {
    let local = zone.to_datetime(at);
    let day = match local.weekday() {
        Weekday::Monday => "Mon",
        Weekday::Tuesday => "Tue",
        Weekday::Wednesday => "Wed",
        Weekday::Thursday => "Thu",
        Weekday::Friday => "Fri",
        Weekday::Saturday => "Sat",
        Weekday::Sunday => "Sun",
    };
    format!("{day} {} {:02}:{:02}", local.date(), local.hour(), local.minute())
}

/// A zone as people name it.
pub fn zone_name(zone: &TimeZone) -> &str {
    match zone.iana_name() {
        Some(name) => name,
        None if zone.is_unknown() => "UTC",
        // A copy of a zone's file has no name.
        None => "the head's own time zone",
    }
}

fn day_after(day: Date, days: i32) -> Option<Date> {
    day.checked_add(days.days()).ok()
}

/// The first moment of `day` at which the wall clock shows `minute` of the day or more.
fn moment(zone: &TimeZone, day: Date, minute: u16) -> Option<Timestamp> {
    let (day, minute) = if minute == MINUTES_OF_A_DAY {
        (day_after(day, 1)?, 0)
    } else {
        (day, minute)
    };
    let hour = i8::try_from(minute / 60).ok()?;
    let shown = DateTime::from_parts(
        day,
        jiff::civil::Time::new(hour, i8::try_from(minute % 60).ok()?, 0, 0).ok()?,
    );
    let reading = zone.to_ambiguous_timestamp(shown);
    let first = reading.earlier().ok()?;
    match reading.offset() {
        // Read with the offset behind the gap, a skipped time lies before it: the clock jumps at the next transition.
        AmbiguousOffset::Gap { .. } => zone.following(first).next().map(|jump| jump.timestamp()),
        AmbiguousOffset::Fold { .. } | AmbiguousOffset::Unambiguous { .. } => Some(first),
    }
}

#[cfg(test)]
mod tests;
