//! An administrator's word that a group is open or closed for a while, and hours with it. Must not read a clock.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::{Hours, State, day_after, for_people, moment, parse, zone_name};

/// Longest exception, in days: what lasts longer belongs into head.toml.
const LONGEST_DAYS: i64 = 366;
/// Edges looked at for the next change: an exception adds two to those of the hours.
const MOST_EDGES: usize = 8;

/// What holds during an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The group computes.
    Open,
    /// Its PCs are at home.
    Closed,
}

impl Kind {
    /// Its word for people and in the database.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// Hours do not count from `from` (included) to `until` (not included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// What counts instead.
    pub kind: Kind,
    /// Beginning.
    pub from: Timestamp,
    /// End.
    pub until: Timestamp,
}

impl Exception {
    /// Whether it counts at `at`.
    pub fn covers(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.until
    }
}

/// Hours in a time zone with the exception from them, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Schedule<'a> {
    /// From head.toml.
    pub hours: &'a Hours,
    /// By an administrator.
    pub exception: Option<&'a Exception>,
    /// Whose wall clock the hours are read by.
    pub zone: &'a TimeZone,
}

impl Schedule<'_> {
    /// Whether the group is open at `at`.
    pub fn is_open(&self, at: Timestamp) -> bool {
        match self.exception.filter(|exception| exception.covers(at)) {
            Some(exception) => exception.kind == Kind::Open,
            None => self.hours.is_open(self.zone, at),
        }
    }

    /// The same with the next change.
    pub fn state(&self, at: Timestamp) -> State {
        let open = self.is_open(at);
        let mut edge = at;
        let changes = (0..MOST_EDGES).find_map(|_| match self.next_edge(edge) {
            None => Some(None),
            Some(next) if self.is_open(next) != open => Some(Some(next)),
            Some(next) => {
                edge = next;
                None
            }
        });
        let changes = changes.flatten();
        if open {
            State::Open { until: changes }
        } else {
            State::Closed { opens: changes }
        }
    }

    /// The next moment at which hours or exception may change what is.
    fn next_edge(&self, at: Timestamp) -> Option<Timestamp> {
        if let Some(exception) = self.exception.filter(|exception| exception.covers(at)) {
            return Some(exception.until);
        }
        let of_hours = self.hours.state(self.zone, at).changes();
        let begins = self.exception.map(|exception| exception.from);
        let begins = begins.filter(|from| *from > at);
        [of_hours, begins].into_iter().flatten().min()
    }
}

/// Why the end of an exception cannot be taken; each says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UntilError {
    /// No time at all.
    #[error("`{0}` is no time; write 23:00, \"Mon 06:30\" or \"2026-11-24 06:30\"")]
    Shape(String),
    /// Is that day in it or not?
    #[error("`{0}` names a day and no time; write the time too, as \"Mon 06:30\" or \"2026-11-24 06:30\"")]
    NoTime(String),
    /// The day of the week is not that date's.
    #[error("`{given}` is no day of this calendar: that date is a {right}; write the date alone")]
    WrongDay {
        /// As written.
        given: String,
        /// What it is.
        right: String,
    },
    /// It is over.
    #[error("{asked} is over (it is {now} in {zone}); name a later time")]
    Past {
        /// As it was understood.
        asked: String,
        /// The head's clock.
        now: String,
        /// Time zone of the hours.
        zone: String,
    },
    /// Too long.
    #[error("{0} is more than a year away; change `hours` in head.toml instead, and restart cidhead")]
    TooFar(String),
}

/// Reads the end of an exception: `23:00` is the next moment at which the wall clock shows it, `Mon 06:30` that of the next
/// such day; `2026-11-24 06:30` and the form in which the head prints moments are themselves.
///
/// # Errors
/// It is none of these, is over, or is more than a year away.
pub fn until(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Timestamp, UntilError> {
    let shown: String = text.chars().take(64).collect();
    let shape = || UntilError::Shape(shown.clone());
    let spaced = match text.as_bytes().get(10) {
        Some(b'T') => text.replacen('T', " ", 1),
        _ => text.to_owned(),
    };
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let today = zone.to_datetime(now).date();
    let minute = |word: &str| parse::minute(word).ok_or_else(shape);
    let end = match *words.as_slice() {
        [time] if time.contains(':') => next(zone, now, today, minute(time)?, |_| true),
        [day] if parse::date(day).is_some() || parse::day(day).is_ok() => {
            return Err(UntilError::NoTime(shown));
        }
        [date, time] if parse::date(date).is_some() => {
            parse::date(date).and_then(|date| moment(zone, date, minute(time).ok()?))
        }
        [day, time] => {
            let day = parse::day(day).map_err(|_| shape())?;
            next(zone, now, today, minute(time)?, |date| weekday(date) == Some(day))
        }
        [day, date, time] => {
            let (day, date) = (
                parse::day(day).map_err(|_| shape())?,
                parse::date(date).ok_or_else(shape)?,
            );
            if weekday(date) != Some(day) {
                let right = weekday(date).and_then(|day| parse::DAYS.get(day));
                let right = right.copied().unwrap_or_default().to_owned();
                return Err(UntilError::WrongDay { given: shown, right });
            }
            moment(zone, date, minute(time)?)
        }
        _ => return Err(shape()),
    };
    let end = end.ok_or_else(shape)?;
    if end <= now {
        return Err(UntilError::Past {
            asked: for_people(zone, end),
            now: for_people(zone, now),
            zone: zone_name(zone).to_owned(),
        });
    }
    if now
        .checked_add((LONGEST_DAYS * 24).hours())
        .is_ok_and(|longest| end > longest)
    {
        return Err(UntilError::TooFar(for_people(zone, end)));
    }
    Ok(end)
}

/// The first moment behind `now` with that minute of the day, on a day that fits.
fn next(
    zone: &TimeZone,
    now: Timestamp,
    today: Date,
    minute: u16,
    fits: impl Fn(Date) -> bool,
) -> Option<Timestamp> {
    let days = (-1..=8).filter_map(|offset| day_after(today, offset));
    days.filter(|day| fits(*day))
        .filter_map(|day| moment(zone, day, minute))
        .find(|at| *at > now)
}

/// Monday is 0.
fn weekday(date: Date) -> Option<usize> {
    usize::try_from(date.weekday().to_monday_zero_offset()).ok()
}

#[cfg(test)]
mod tests;
