//! `[groups.NAME.requires]`: figures with their units, to and from text. Must not judge a node.

use std::fmt::Write as _;
use std::time::Duration;

use super::check::{Fault, fault};
use super::raw::{self, Spanned};
use crate::judge::{Requirements, memory_text, percent_text, rate_text, time_text};

/// Switches a default off.
const NONE: &str = "none";

pub(super) fn check(raw: &raw::Requires) -> Result<Requirements, Fault> {
    let usual = Requirements::default();
    Ok(Requirements {
        cpu_speed_hundredths: raw.cpu_speed.as_ref().map(speed).transpose()?.flatten(),
        memory_kib: or(raw.memory.as_ref(), usual.memory_kib, |value| {
            let (number, unit) = split(value.as_ref());
            let kib = match unit {
                "MiB" => scaled(number, 1_024),
                "GiB" => scaled(number, 1_048_576),
                _ => None,
            };
            sane(value, kib, "a size", "\"4 GiB\" or \"512 MiB\"", 1_u64 << 40)
        })?,
        link_kbit: or(raw.link.as_ref(), usual.link_kbit, rate)?,
        round_trip: or(raw.round_trip.as_ref(), usual.round_trip, |value| {
            let (number, unit) = split(value.as_ref());
            let micros = match unit {
                "us" => scaled(number, 1),
                "ms" => scaled(number, 1_000),
                "s" => scaled(number, 1_000_000),
                _ => None,
            };
            sane(value, micros, "a time", "\"5 ms\" or \"500 us\"", 60_000_000).map(Duration::from_micros)
        })?,
        loss_hundredths: or(raw.loss.as_ref(), usual.loss_hundredths, |value| {
            let (number, unit) = split(value.as_ref());
            let share = if unit == "%" { percent(number) } else { None };
            share.ok_or_else(|| wrong(value, "a share below 100 %", "\"2 %\" or \"0.5 %\""))
        })?,
        bandwidth_kbit: or(raw.bandwidth.as_ref(), usual.bandwidth_kbit, rate)?,
    })
}

/// The table as it would be written; every key, so that a later default changes nothing.
pub(super) fn render(out: &mut String, name: &str, requires: &Requirements) {
    let text = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
    // Writing to a String cannot fail.
    let _ = writeln!(out, "[groups.{name}.requires]");
    if let Some(hundredths) = requires.cpu_speed_hundredths {
        let _ = writeln!(out, "cpu_speed = {}.{:02}", hundredths / 100, hundredths % 100);
    }
    for (key, value) in [
        ("memory", requires.memory_kib.map(memory_text)),
        ("link", requires.link_kbit.map(rate_text)),
        ("round_trip", requires.round_trip.map(time_text)),
        ("loss", requires.loss_hundredths.map(percent_text)),
        ("bandwidth", requires.bandwidth_kbit.map(rate_text)),
    ] {
        let _ = writeln!(out, "{key} = \"{}\"", text(value));
    }
}

fn or<T>(
    value: Option<&Spanned<String>>,
    usual: Option<T>,
    parse: impl FnOnce(&Spanned<String>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    match value {
        None => Ok(usual),
        Some(value) if value.as_ref() == NONE => Ok(None),
        Some(value) => parse(value).map(Some),
    }
}

fn speed(value: &Spanned<f64>) -> Result<Option<u32>, Fault> {
    let number = *value.as_ref();
    // 0 is how one says "none" with a number.
    if !(0.0..=1_000.0).contains(&number) {
        return Err(Fault {
            span: Some(value.span()),
            what: format!("`cpu_speed` {number} is out of bounds: 0 to 1000, as `cidctl explain` shows it"),
        });
    }
    // In bounds, so it fits.
    let hundredths = (number * 100.0).round() as u32;
    Ok(Some(hundredths).filter(|hundredths| *hundredths > 0))
}

fn rate(value: &Spanned<String>) -> Result<u64, Fault> {
    let (number, unit) = split(value.as_ref());
    let kbit = match unit {
        "kbit/s" => scaled(number, 1),
        "Mbit/s" => scaled(number, 1_000),
        "Gbit/s" => scaled(number, 1_000_000),
        _ => None,
    };
    sane(
        value,
        kbit,
        "a rate",
        "\"100 Mbit/s\" or \"1 Gbit/s\"",
        1_000_000_000,
    )
}

/// Number and unit; a blank between them is optional.
fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start_matches(' '))
}

/// `2.5` of a unit, in whole base units.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 6 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let parts: u64 = fraction.parse().ok()?;
    let of = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    whole
        .checked_mul(unit)?
        .checked_add(parts.checked_mul(unit)? / of)
}

fn percent(number: &str) -> Option<u32> {
    let hundredths = scaled(number, 100)?;
    u32::try_from(hundredths).ok().filter(|share| *share < 10_000)
}

fn sane(
    value: &Spanned<String>,
    number: Option<u64>,
    what: &str,
    example: &str,
    most: u64,
) -> Result<u64, Fault> {
    number
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| wrong(value, what, example))
}

fn wrong(value: &Spanned<String>, what: &str, example: &str) -> Fault {
    let text = value.as_ref();
    fault(
        value,
        format!("`{text}` is not {what}; write {example}, or \"none\""),
    )
}
