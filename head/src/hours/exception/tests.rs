use proptest::prelude::*;

use super::*;

const SCHOOL: [&str; 2] = ["Mon-Fri 20:00-06:30", "Sat-Sun"];

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").expect("a zone of the bundled database")
}

fn at(text: &str) -> Timestamp {
    let civil: jiff::civil::DateTime = text.parse().expect("a time of this test");
    berlin().to_timestamp(civil).expect("in range")
}

fn hours(lines: &[&str]) -> Hours {
    let mut hours = Hours::default();
    lines
        .iter()
        .for_each(|line| hours.add(line).expect("a line of this test"));
    hours
}

fn check(lines: &[&str], (kind, from, until): (Kind, &str, &str), moment: &str, expected: &str) {
    let (hours, zone) = (hours(lines), berlin());
    let (from, until) = (at(from), at(until));
    let exception = Exception { kind, from, until };
    let state = Schedule {
        hours: &hours,
        exception: Some(&exception),
        zone: &zone,
    }
    .state(at(moment));
    let word = if state.is_open() { "open" } else { "closed" };
    let change = state
        .changes()
        .map_or("never".to_owned(), |change| for_people(&zone, change));
    assert_eq!(
        format!("{word} until {change}"),
        expected,
        "{exception:?} at {moment}"
    );
}

#[test]
fn an_exception_counts_instead_of_the_hours() {
    // Monday 2026-11-23, 18:00: an evening of work before the hours begin is one night with them.
    let early = (Kind::Open, "2026-11-23T18:00", "2026-11-23T20:00");
    check(
        &SCHOOL,
        early,
        "2026-11-23T18:30",
        "open until Tue 2026-11-24 06:30",
    );
    let lunch = (Kind::Open, "2026-11-23T12:00", "2026-11-23T13:00");
    check(
        &SCHOOL,
        lunch,
        "2026-11-23T11:00",
        "closed until Mon 2026-11-23 12:00",
    );
    check(
        &SCHOOL,
        lunch,
        "2026-11-23T12:00",
        "open until Mon 2026-11-23 13:00",
    );
    check(
        &SCHOOL,
        lunch,
        "2026-11-23T13:00",
        "closed until Mon 2026-11-23 20:00",
    );
    // It begins in a minute, for people: until then the hours count.
    let exam = (Kind::Closed, "2026-11-23T21:01", "2026-11-24T22:00");
    check(
        &SCHOOL,
        exam,
        "2026-11-23T21:00",
        "open until Mon 2026-11-23 21:01",
    );
    check(
        &SCHOOL,
        exam,
        "2026-11-23T21:01",
        "closed until Tue 2026-11-24 22:00",
    );
    // Its end lies within closed hours.
    let night = (Kind::Closed, "2026-11-23T21:01", "2026-11-24T07:00");
    check(
        &SCHOOL,
        night,
        "2026-11-23T22:00",
        "closed until Tue 2026-11-24 20:00",
    );
    // Groups that are never or always open.
    check(&[], lunch, "2026-11-23T12:30", "open until Mon 2026-11-23 13:00");
    check(&[], lunch, "2026-11-23T13:00", "closed until never");
    check(
        &["always"],
        exam,
        "2026-11-23T22:00",
        "closed until Tue 2026-11-24 22:00",
    );
    check(&["always"], exam, "2026-11-24T22:00", "open until never");
}

#[test]
fn a_time_is_the_next_one_and_a_date_is_itself() {
    let now = at("2026-11-21T09:30"); // a Saturday
    for (text, expected) in [
        ("23:00", "Sat 2026-11-21 23:00"),
        ("9:30", "Sun 2026-11-22 09:30"),
        ("24:00", "Sun 2026-11-22 00:00"),
        ("06:30", "Sun 2026-11-22 06:30"),
        ("Mon 06:30", "Mon 2026-11-23 06:30"),
        ("saturday 09:00", "Sat 2026-11-28 09:00"),
        ("sat 10:00", "Sat 2026-11-21 10:00"),
        ("2026-11-24 06:30", "Tue 2026-11-24 06:30"),
        ("2026-11-24T06:30", "Tue 2026-11-24 06:30"),
        ("Tue 2026-11-24 06:30", "Tue 2026-11-24 06:30"),
    ] {
        let end = until(text, &berlin(), now).expect(text);
        assert_eq!(for_people(&berlin(), end), expected, "{text}");
    }
    // The night that has 02:30 twice: the first; the night that skips it: the jump.
    let end = until("02:30", &berlin(), at("2026-10-24T22:00")).expect("a time");
    assert_eq!(end.to_string(), "2026-10-25T00:30:00Z");
    let end = until("02:30", &berlin(), at("2026-03-28T22:00")).expect("a time");
    assert_eq!(for_people(&berlin(), end), "Sun 2026-03-29 03:00");
}

#[test]
fn nonsense_is_refused_in_one_line_with_the_remedy() {
    let now = at("2026-11-21T09:30");
    for (text, expected) in [
        ("", "`` is no time; write 23:00"),
        ("soon", "`soon` is no time; write 23:00"),
        ("25:00", "`25:00` is no time"),
        ("Mon", "`Mon` names a day and no time; write the time too"),
        ("2026-11-24", "`2026-11-24` names a day and no time"),
        ("Mon 2026-11-24 06:30", "that date is a Tue; write the date alone"),
        (
            "2026-11-21 08:00",
            "Sat 2026-11-21 08:00 is over (it is Sat 2026-11-21 09:30 in Europe/Berlin); name",
        ),
        ("2028-01-01 08:00", "is more than a year away; change `hours`"),
        ("2026-13-01 08:00", "is no time"),
        ("9999-12-31 24:00", "is no time"),
    ] {
        let error = until(text, &berlin(), now).expect_err(text).to_string();
        assert!(
            error.contains(expected) && !error.contains('\n'),
            "{text}: {error}"
        );
    }
}

proptest! {
    /// Any text is a time that has not come yet, or a line of refusal.
    #[test]
    fn any_text_is_taken_or_refused(text in "[0-9:T a-zMon\\-]{0,24}|\\PC{0,80}") {
        let now = at("2026-11-21T09:30");
        match until(&text, &berlin(), now) {
            Ok(end) => prop_assert!(end > now),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// Between two changes nothing changes, and at a change it does.
    #[test]
    fn the_next_change_is_the_next_change(
        start in 0_i64..14 * 1_440, length in 1_i64..3 * 1_440, ahead in -1_440_i64..1_440, open: bool,
    ) {
        let (hours, zone) = (hours(&SCHOOL), berlin());
        let now = at("2026-10-19T00:00") + (start.minutes());
        let from = now + ahead.minutes();
        let kind = if open { Kind::Open } else { Kind::Closed };
        let exception = Exception { kind, from, until: from + length.minutes() };
        let schedule = Schedule { hours: &hours, exception: Some(&exception), zone: &zone };
        let state = schedule.state(now);
        let change = state.changes().expect("a school opens and closes");
        let mut minute = now;
        while minute < change {
            prop_assert_eq!(schedule.is_open(minute), state.is_open());
            minute += 1.minute();
        }
        prop_assert_ne!(schedule.is_open(change), state.is_open());
    }
}
