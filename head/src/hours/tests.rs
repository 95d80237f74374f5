//! Minute by minute against a reading that knows no intervals: the highest wall clock seen so far, looked up in the
//! week.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

fn hours(lines: &[&str]) -> Hours {
    let mut hours = Hours::default();
    lines
        .iter()
        .for_each(|line| hours.add(line).expect("a line of this test"));
    hours
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("a zone of the bundled database")
}

fn at(text: &str, zone: &TimeZone) -> Timestamp {
    let civil: DateTime = text.parse().expect("a time of this test");
    zone.to_timestamp(civil).expect("in range")
}

fn check(hours: &Hours, moment: &str, expected: &str) {
    let berlin = zone("Europe/Berlin");
    let state = hours.state(&berlin, at(moment, &berlin));
    let word = if state.is_open() {
        "open until"
    } else {
        "closed until"
    };
    let change = state
        .changes()
        .map_or("never".to_owned(), |at| for_people(&berlin, at));
    assert_eq!(format!("{word} {change}"), expected, "at {moment}");
}

#[test]
fn a_week_of_a_school() {
    let school = hours(&["Mon-Fri 20:00-06:30", "Sat-Sun"]);
    check(&school, "2026-11-23T19:59", "closed until Mon 2026-11-23 20:00");
    check(&school, "2026-11-23T20:00", "open until Tue 2026-11-24 06:30");
    check(&school, "2026-11-24T06:29", "open until Tue 2026-11-24 06:30");
    check(&school, "2026-11-24T06:30", "closed until Tue 2026-11-24 20:00");
    // Friday night and Saturday are one.
    check(&school, "2026-11-27T21:00", "open until Mon 2026-11-30 00:00");
    check(&hours(&["always"]), "2026-11-27T21:00", "open until never");
    check(&hours(&["Mon-Sun"]), "2026-11-27T21:00", "open until never");
    check(&Hours::default(), "2026-11-27T21:00", "closed until never");
    check(
        &hours(&["fri-mon 22:00-24:00"]),
        "2026-11-23T23:00",
        "open until Tue 2026-11-24 00:00",
    );
}

#[test]
fn a_time_that_the_night_skips_or_has_twice_happens_once() {
    let night = hours(&["20:00-02:30"]);
    check(&night, "2026-03-29T01:59", "open until Sun 2026-03-29 03:00");
    check(&night, "2026-03-29T03:00", "closed until Sun 2026-03-29 20:00");
    let berlin = zone("Europe/Berlin");
    let first = at("2026-10-25T02:29", &berlin);
    assert!(night.state(&berlin, first).is_open());
    let again = first
        .checked_add(SignedDuration::from_hours(1))
        .expect("in range");
    assert!(
        !night.state(&berlin, again).is_open(),
        "02:29 for the second time"
    );
}

#[test]
fn holidays_open_or_close_the_whole_day() {
    let mut school = hours(&["Mon-Fri 20:00-06:30"]);
    school.add_holiday("2026-12-24..2026-12-25").expect("a range");
    check(&school, "2026-12-24T12:00", "open until Sat 2026-12-26 06:30");
    school.set_on_holiday(OnHoliday::Closed);
    check(&school, "2026-12-23T22:00", "open until Thu 2026-12-24 00:00");
    // Friday's night goes on where the holiday ends.
    check(&school, "2026-12-24T12:00", "closed until Sat 2026-12-26 00:00");
    let mut never = Hours::default();
    never.add_holiday("2026-12-24").expect("a date");
    check(&never, "2026-12-24T12:00", "closed until never");
}

#[test]
fn every_mistake_says_how_to_write_it() {
    for (line, words) in [
        ("", "is no opening time"),
        ("Mon 20:00 - 06:30", "is no opening time"),
        ("Mo-Fri", "`Mo` is no day"),
        ("Mon-Fri 8pm-6am", "is no time of day"),
        ("Mon 20:00-24:01", "is no time of day"),
        ("Mon 24:00-06:00", "is no time of day"),
        ("Mon 2:5-06:00", "is no time of day"),
        ("Mon 20:00-20:00", "ends when it begins"),
    ] {
        let error = Hours::default().add(line).expect_err(line).to_string();
        assert!(error.contains(words) && error.contains("; "), "{line}: {error}");
    }
    for (line, words) in [
        ("24.12.2026", "is no date"),
        ("2026-02-30", "is no date"),
        ("2027-01-06..2026-12-24", "ends before it begins"),
    ] {
        let error = Hours::default().add_holiday(line).expect_err(line).to_string();
        assert!(error.contains(words), "{line}: {error}");
    }
}

/// The naive reference: `shown` is the highest wall clock so far.
fn naive(spans: &[(u8, u16, u16)], shown: DateTime) -> bool {
    let minute = u16::try_from(i32::from(shown.hour()) * 60 + i32::from(shown.minute())).expect("of a day");
    let today = 1u8 << shown.weekday().to_monday_zero_offset();
    let yesterday = 1u8 << ((shown.weekday().to_monday_zero_offset() + 6) % 7);
    spans.iter().any(|(days, from, to)| {
        if from < to {
            days & today != 0 && (*from..*to).contains(&minute)
        } else {
            days & today != 0 && minute >= *from || days & yesterday != 0 && minute < *to
        }
    })
}

/// Walks a year minute by minute; the implementation is asked only where it said that nothing changes, once per
/// answer, so that each answer is held against every minute that it speaks for.
fn agree(zone: &TimeZone, spans: &[(u8, u16, u16)]) {
    let hours = Hours {
        spans: spans
            .iter()
            .map(|&(days, from, to)| Span { days, from, to })
            .collect(),
        ..Hours::default()
    };
    let start = at("2026-01-01T00:00", zone);
    let mut state = hours.state(zone, start);
    let mut shown = DateTime::MIN;
    for minute in 0..366 * 1_440 {
        let now = start
            .checked_add(SignedDuration::from_mins(minute))
            .expect("in range");
        if state.changes().is_some_and(|change| change <= now) {
            let before = state.is_open();
            state = hours.state(zone, now);
            assert_ne!(
                before,
                state.is_open(),
                "announced a change at {now} that is none"
            );
        }
        shown = shown.max(zone.to_datetime(now));
        assert_eq!(
            state.is_open(),
            naive(spans, shown),
            "{hours:?} at {now}, wall clock {shown}"
        );
    }
}

fn a_span() -> impl Strategy<Value = (u8, u16, u16)> {
    (1u8..128, 0u16..1_440, 1u16..=1_440).prop_filter("not empty", |(_, from, to)| from != to)
}

/// Around the hours that the nights of change skip and repeat.
fn a_night() -> impl Strategy<Value = (u8, u16, u16)> {
    (1u8..128, 90u16..200, 90u16..200).prop_filter("not empty", |(_, from, to)| from != to)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn every_minute_of_a_year_agrees(
        spans in proptest::collection::vec(prop_oneof![a_span(), a_night()], 1..4),
        name in prop_oneof![
            Just("Europe/Berlin"), Just("America/New_York"), Just("Australia/Lord_Howe"), Just("UTC")
        ],
    ) {
        agree(&zone(name), &spans);
    }

    #[test]
    fn a_line_is_read_back_as_it_is_printed((days, from, to) in a_span()) {
        let span = Span { days, from, to };
        prop_assert_eq!(parse::span(&span.to_string()), Ok(span));
    }
}
