//! Exceptions from the hours. The traces begin on Tuesday 2023-11-14 at 22:13:20 UTC; 22:30 is second 1000.

use cid_bootserver::policy::Hours;
use cid_protocol::api::{GroupHours, HoursChange};

use super::*;

const NIGHT: &str =
    "interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\nhours = [\"22:00-23:00\"]\n[groups.new]";
const DAY: &str =
    "interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\nhours = [\"08:00-20:00\"]\n[groups.new]";

impl Trace {
    fn with(text: &str) -> Self {
        let mut trace = Self::new();
        trace.registry = Registry::new(&config(text), Vec::new(), at(0));
        trace.hours(0);
        trace.events.clear();
        trace
    }

    /// A node of lab-a that is up over connection 1.
    pub(super) fn with_node(text: &str) -> Self {
        let mut trace = Self::with(text);
        trace.session(1, 1);
        trace.adopt(1, "lab-a01");
        trace.session(5, 1);
        trace.script(6, 1);
        trace.hello(20, 1, 1, "boot-1");
        trace.events.clear();
        trace
    }

    pub(super) fn hours(&mut self, second: u64) {
        self.registry.handle_hours(at(second));
        self.drain();
    }

    pub(super) fn change(
        &mut self,
        second: u64,
        change: HoursChange,
        until: Option<&str>,
    ) -> Result<(), String> {
        let changed = self.registry.change_hours(at(second), "lab-a", change, until);
        self.drain();
        changed.map_err(|error| error.to_string())
    }

    fn row(&self, second: u64) -> GroupHours {
        let rows = self.registry.group_hours(at(second), Some("lab-a")).unwrap();
        rows.into_iter().next().unwrap()
    }

    /// `closed until …, then …` and the exception.
    fn shown(&self, second: u64) -> String {
        let row = self.row(second);
        let word = |open| if open { "open" } else { "closed" };
        let exception = row.exception.map_or("none".to_owned(), |exception| {
            format!("{} until {}", word(exception.open), exception.until)
        });
        format!("{} until {}, {exception}", word(row.open), row.changes)
    }
}

#[test]
fn a_group_is_opened_for_an_evening_and_closes_by_itself() {
    let mut trace = Trace::with(DAY);
    assert_eq!(trace.shown(1), "closed until Wed 2023-11-15 08:00, none");
    let opens = Some("Wed 2023-11-15 08:00".to_owned());
    assert_eq!(trace.registry.hours(at(1), "lab-a"), Hours::Closed { opens });
    trace.change(2, HoursChange::Open, Some("23:00")).unwrap();
    assert_eq!(
        trace.shown(2),
        "open until Tue 2023-11-14 23:00, open until Tue 2023-11-14 23:00"
    );
    assert_eq!(trace.registry.hours(at(2), "lab-a"), Hours::Open);
    assert_eq!(
        trace.registry.exception_text(at(2), "lab-a").as_deref(),
        Some("by an exception lab-a is open until Tue 2023-11-14 23:00")
    );
    // 23:00 is second 2800.
    trace.hours(2_799);
    assert!(trace.groups["lab-a"].exception.is_some());
    trace.hours(2_800);
    assert_eq!(trace.groups["lab-a"].exception, None);
    assert_eq!(trace.shown(2_800), "closed until Wed 2023-11-15 08:00, none");
    assert_eq!(trace.registry.exception_text(at(2_800), "lab-a"), None);
    assert_eq!(
        trace.events,
        [
            "lab-a is to be open until Tue 2023-11-14 23:00; it is open until Tue 2023-11-14 23:00",
            "the exception of lab-a has ended; it is closed until Wed 2023-11-15 08:00",
        ]
    );
}

#[test]
fn an_exception_outlives_its_head_and_one_that_ended_meanwhile_does_not() {
    let mut trace = Trace::with(DAY);
    trace.change(2, HoursChange::Open, Some("23:00")).unwrap();
    trace.restart_with(100, DAY);
    trace.hours(100);
    assert_eq!(
        trace.shown(100),
        "open until Tue 2023-11-14 23:00, open until Tue 2023-11-14 23:00"
    );
    // Control: without what the database kept it is closed.
    trace.restart_with(3_000, DAY);
    trace.hours(3_000);
    assert_eq!(trace.shown(3_000), "closed until Wed 2023-11-15 08:00, none");
    // Of a group that is gone from head.toml nothing is shown; it ends all the same.
    trace.change(3_001, HoursChange::Open, Some("23:30")).unwrap();
    trace.restart_with(3_100, "interface = \"e0\"");
    trace.hours(3_100);
    assert!(trace.registry.group_hours(at(3_100), None).unwrap().is_empty());
    trace.hours(5_000);
    assert_eq!(trace.groups["lab-a"].exception, None);
}

#[test]
fn what_is_acknowledged_is_written_before() {
    let mut trace = Trace::with(DAY);
    trace
        .registry
        .change_hours(at(2), "lab-a", HoursChange::Open, Some("23:00"))
        .unwrap();
    let first = trace.registry.poll_output();
    assert!(matches!(first, Some(Output::PersistGroup { .. })), "{first:?}");
}

#[test]
fn a_closed_exception_gives_nodes_their_patience_and_lets_nobody_boot() {
    let mut trace = Trace::with_node(NIGHT);
    assert_eq!(trace.registry.hours(at(30), "lab-a"), Hours::Open);
    trace
        .change(30, HoursChange::Closed, Some("2023-11-15 23:00"))
        .unwrap();
    let closed = |trace: &Trace, second| matches!(trace.registry.hours(at(second), "lab-a"), Hours::Closed { opens: Some(opens) } if opens == "Thu 2023-11-16 22:00");
    assert!(closed(&trace, 30), "{}", trace.shown(30));
    trace.hours(89);
    assert!(!trace.told_to_go(), "its patience of 60 s lasts until second 90");
    trace.hours(90);
    assert!(trace.told_to_go());
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(trace.disk[&mac(1)].hold, None);
}

#[test]
fn a_group_that_an_exception_kept_open_has_patience_when_it_is_cleared() {
    let mut trace = Trace::with(DAY);
    trace.change(2, HoursChange::Open, Some("23:00")).unwrap();
    trace.session(3, 1);
    trace.adopt(1, "lab-a01");
    trace.session(5, 1);
    trace.script(6, 1);
    trace.hello(20, 1, 1, "boot-1");
    trace.change(100, HoursChange::Clear, None).unwrap();
    trace.hours(159);
    assert!(!trace.told_to_go());
    trace.hours(160);
    assert!(trace.told_to_go());
    // Cleared twice is cleared; nothing is said of it.
    let events = trace.events.len();
    trace.change(170, HoursChange::Clear, None).unwrap();
    assert_eq!(trace.events.len(), events);
}

#[test]
fn a_group_without_hours_can_be_opened_for_once() {
    let mut trace = Trace::with(DAY);
    assert_eq!(trace.registry.hours(at(1), "new"), Hours::Never);
    trace
        .registry
        .change_hours(at(2), "new", HoursChange::Open, Some("23:00"))
        .unwrap();
    assert_eq!(trace.registry.hours(at(2), "new"), Hours::Open);
    trace.drain();
    trace.hours(2_800);
    assert_eq!(trace.registry.hours(at(2_800), "new"), Hours::Never);
}

#[test]
fn nonsense_changes_nothing_and_says_what_to_do() {
    let mut trace = Trace::with(DAY);
    let mut refused = |group: &str, change, until: Option<&str>, expected: &str| {
        let error = trace
            .registry
            .change_hours(at(2), group, change, until)
            .unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        assert!(
            trace.registry.poll_output().is_none(),
            "a refused command changes nothing"
        );
    };
    refused(
        "lab-b",
        HoursChange::Open,
        Some("23:00"),
        "no group `lab-b` in head.toml; the nearest is `lab-a`",
    );
    refused("lab-a", HoursChange::Open, None, "until when is missing; write");
    refused(
        "lab-a",
        HoursChange::Clear,
        Some("23:00"),
        "`clear` takes no time",
    );
    refused(
        "lab-a",
        HoursChange::Closed,
        Some("2023-11-14 22:00"),
        "Tue 2023-11-14 22:00 is over (it is Tue 2023-11-14 22:13 in UTC); name a later time",
    );
    refused("lab-a", HoursChange::Open, Some("late"), "`late` is no time");
    refused(
        "lab-a",
        HoursChange::Open,
        Some("2026-01-01 00:00"),
        "more than a year away",
    );
}
