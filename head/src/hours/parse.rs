//! Lines of `hours` and `holidays` as an administrator writes them. Must refuse whatever has two readings.

use jiff::civil::Date;

use super::{Holiday, MINUTES_OF_A_DAY, Span};

/// Days as they are written, Monday first.
pub(super) const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// What is wrong with a line of `hours` or `holidays`; each says how to write it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// Nothing, or three words and more.
    #[error("`{0}` is no opening time; write \"Mon-Fri 20:00-06:30\", \"Sat-Sun\" or \"always\"")]
    Shape(String),
    /// No day of the week.
    #[error("`{0}` is no day; write Mon, Tue, Wed, Thu, Fri, Sat or Sun, as \"Mon-Fri\" or \"Mon,Wed\"")]
    Day(String),
    /// No time of day.
    #[error("`{0}` is no time of day; write 20:00-06:30, from 00:00 to 24:00")]
    Time(String),
    /// It ends when it begins: a whole day or none?
    #[error("`{0}` ends when it begins; name the days alone for whole days, as \"Sat-Sun\"")]
    Empty(String),
    /// No date or range of dates.
    #[error("`{0}` is no date; write \"2026-10-03\" or \"2026-12-24..2027-01-06\"")]
    Date(String),
    /// A range that ends before it begins.
    #[error("`{0}` ends before it begins; write the first day first")]
    Backwards(String),
}

pub(super) fn span(line: &str) -> Result<Span, HoursError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let whole = |days| Span {
        days,
        from: 0,
        to: MINUTES_OF_A_DAY,
    };
    match *words.as_slice() {
        [word] if word.eq_ignore_ascii_case("always") => Ok(whole(0x7f)),
        [word] if word.contains(':') => times(word, 0x7f),
        [word] => Ok(whole(days(word)?)),
        [first, second] => times(second, days(first)?),
        _ => Err(HoursError::Shape(line.to_owned())),
    }
}

fn times(text: &str, days: u8) -> Result<Span, HoursError> {
    let wrong = || HoursError::Time(text.to_owned());
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
    if from == to {
        return Err(HoursError::Empty(text.to_owned()));
    }
    if from == MINUTES_OF_A_DAY {
        return Err(wrong());
    }
    // An end at 00:00 is the end of the day on which the span began.
    let to = if to == 0 { MINUTES_OF_A_DAY } else { to };
    Ok(Span { days, from, to })
}

pub(super) fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str, most: u16| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u16>().ok().filter(|_| plain)?;
        (number <= most).then_some(number)
    };
    let total = number(hour, 24)? * 60 + number(minute, 59).filter(|_| minute.len() == 2)?;
    (total <= MINUTES_OF_A_DAY).then_some(total)
}

fn days(text: &str) -> Result<u8, HoursError> {
    text.split(',')
        .try_fold(0, |days, part| Ok(days | some_days(part)?))
}

/// `Mon`, or `Fri-Mon` through the weekend.
fn some_days(text: &str) -> Result<u8, HoursError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (mut day, last) = (day(first)?, day(last)?);
    let mut days = 1 << day;
    while day != last {
        day = (day + 1) % 7;
        days |= 1 << day;
    }
    Ok(days)
}

pub(super) fn day(text: &str) -> Result<usize, HoursError> {
    let lower = text.to_ascii_lowercase();
    let is = |long: &&str| lower == **long || long.get(..3) == Some(lower.as_str());
    LONG_DAYS
        .iter()
        .position(is)
        .ok_or_else(|| HoursError::Day(text.to_owned()))
}

pub(super) fn holiday(line: &str) -> Result<Holiday, HoursError> {
    let wrong = || HoursError::Date(line.to_owned());
    let (first, last) = line.split_once("..").unwrap_or((line, line));
    let (first, last) = (
        date(first.trim()).ok_or_else(wrong)?,
        date(last.trim()).ok_or_else(wrong)?,
    );
    if last < first {
        return Err(HoursError::Backwards(line.to_owned()));
    }
    Ok(Holiday { first, last })
}

pub(super) fn date(text: &str) -> Option<Date> {
    // Of the many forms that the library reads, the one that is documented.
    (text.len() == 10).then(|| text.parse::<Date>().ok()).flatten()
}
