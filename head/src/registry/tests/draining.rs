//! Who takes no more work, why, and until when. The traces begin on Tuesday 2023-11-14 at 22:13:20 UTC; 22:30 is second 1000.

use cid_protocol::api::{HoursChange, NodeRow};
use cid_protocol::node::Plan;

use super::*;

const NIGHT: &str = "interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\nhours = [\"20:00-22:30\"]";
/// Unix seconds of second 0.
const START: u64 = 1_700_000_000;

impl Trace {
    fn row_of(&self, number: u8) -> NodeRow {
        self.registry.rows(&[mac(number)]).remove(0)
    }

    /// What a node is, why, and until which second.
    fn step(&self, number: u8) -> (NodeState, String, Option<u64>) {
        let row = self.row_of(number);
        (row.state, row.reason, row.deadline_unix.map(|at| at - START))
    }

    fn takes_work(&self, number: u8) -> bool {
        self.registry.takes_work(mac(number))
    }

    /// Plans told to nodes, in order.
    fn plans(&self) -> Vec<Option<u64>> {
        let plan = |(_, message): &(ConnectionId, ToNode)| match message {
            ToNode::Pulse {
                plan: Some(Plan { home_at_unix_ms, .. }),
                ..
            } => Some(home_at_unix_ms.map(|at| at / 1_000 - START)),
            _ => None,
        };
        self.sent.iter().filter_map(plan).collect()
    }
}

#[test]
fn a_minute_before_closing_a_node_takes_no_more_work_and_leaves_on_the_hour() {
    let mut trace = Trace::with_node(NIGHT);
    trace.hours(939);
    assert_eq!(trace.step(1), (NodeState::Up, "joined".into(), None));
    assert!(trace.takes_work(1));
    trace.hours(940);
    trace.hours(941);
    let reason = "its group lab-a closes at 22:30".to_owned();
    assert_eq!(trace.step(1), (NodeState::Draining, reason, Some(1_000)));
    assert!(!trace.takes_work(1));
    // A head that is restarted in this minute knows it, too, and the node that comes back.
    trace.restart_with(950, NIGHT);
    trace.hours(950);
    assert_eq!(trace.step(1).0, NodeState::Draining);
    trace.hello(951, 1, 2, "boot-1");
    trace.hours(952);
    assert_eq!(trace.step(1).0, NodeState::Draining);
    assert!(!trace.told_to_go());
    trace.hours(1_000);
    let reason = "its group's hours have ended".to_owned();
    assert_eq!(trace.step(1), (NodeState::GoingHome, reason, Some(1_000 + 360)));
    let released = trace.sent.last().map(|(_, message)| message.clone());
    assert!(
        matches!(released, Some(ToNode::Release { patience_secs: 0, .. })),
        "it had its patience before: {released:?}"
    );
    let text = "lab-a01 is draining: its group lab-a closes at 22:30";
    assert_eq!(trace.events.iter().filter(|event| *event == text).count(), 1);
}

#[test]
fn a_closing_that_is_put_off_gives_the_node_back_to_work_and_each_is_told() {
    let mut trace = Trace::with_node(NIGHT);
    trace.hours(945);
    assert!(!trace.takes_work(1));
    assert!(trace.plans().is_empty(), "the welcome said so");
    trace.change(950, HoursChange::Open, Some("23:00")).unwrap();
    trace.hours(951);
    assert_eq!(trace.step(1), (NodeState::Up, "takes work again".into(), None));
    // Later, then earlier than that, then as before.
    trace.change(960, HoursChange::Open, Some("22:45")).unwrap();
    trace.hours(961);
    trace.change(962, HoursChange::Clear, None).unwrap();
    trace.hours(963);
    trace.hours(964);
    assert_eq!(trace.plans(), [Some(2_800), Some(1_900), Some(1_000)]);
    assert!(!trace.takes_work(1));
}

#[test]
fn a_node_is_told_the_moment_at_which_its_group_was_closed_by_hand() {
    let mut trace = Trace::with_node(NIGHT);
    trace
        .change(100, HoursChange::Closed, Some("2023-11-15 12:00"))
        .unwrap();
    trace.hours(101);
    assert_eq!(trace.plans(), [Some(160)]);
    let reason = "its group lab-a closes at 22:16".to_owned();
    assert_eq!(trace.step(1), (NodeState::Draining, reason, Some(160)));
    // A head that is restarted gives it no second patience.
    trace.restart_with(120, NIGHT);
    trace.hours(120);
    trace.hello(121, 1, 1, "boot-1");
    assert_eq!(trace.step(1).2, Some(160));
    // Taken back within the minute: nobody has to leave.
    trace.change(130, HoursChange::Clear, None).unwrap();
    trace.hours(131);
    assert_eq!(trace.step(1).0, NodeState::Up);
    trace.hours(200);
    assert!(!trace.told_to_go());
    assert_eq!(trace.plans(), [Some(160), Some(1_000)]);
}

#[test]
fn a_head_with_other_hours_tells_them_to_the_node_that_finds_it_again() {
    let hours = |span: &str| NIGHT.replace("20:00-22:30", span);
    for (span, hour) in [("20:00-22:20", 400), ("20:00-23:00", 2_800), ("20:00-22:00", 160)] {
        let mut trace = Trace::with_node(NIGHT);
        trace.restart_with(100, &hours(span));
        trace.hours(100);
        trace.hello(101, 1, 2, "boot-1");
        let home_at = trace.sent.iter().rev().find_map(|(_, message)| match message {
            ToNode::Welcome(welcome) => welcome.home_at_unix_ms,
            _ => None,
        });
        assert_eq!(home_at.map(|at| at / 1_000 - START), Some(hour), "{span}");
        trace.hours(hour - 1);
        assert!(!trace.told_to_go(), "{span}");
        trace.hours(hour);
        assert!(trace.told_to_go(), "{span}");
    }
}

#[test]
fn an_administrators_drain_lasts_over_restarts_until_it_is_undone() {
    let mut trace = Trace::with_node(NIGHT);
    trace
        .registry
        .drain(at(30), "lab-a01", Some("its fan\nis loud"))
        .unwrap();
    trace.drain();
    let reason = "drained by the administrator: its fan is loud".to_owned();
    assert_eq!(trace.step(1), (NodeState::Draining, reason.clone(), None));
    assert!(!trace.takes_work(1) && !trace.told_to_go());
    trace.restart_with(40, NIGHT);
    trace.hours(40);
    trace.hello(41, 1, 1, "boot-1");
    trace.hours(42);
    assert_eq!(trace.step(1), (NodeState::Draining, reason.clone(), None));
    // Lost and heard again; its next boot, too.
    trace.registry.handle_disconnect(ConnectionId(1));
    trace.pass(120);
    assert_eq!(trace.state(1), NodeState::Lost);
    trace.hello(130, 1, 2, "boot-2");
    assert_eq!(trace.step(1), (NodeState::Draining, reason, None));
    trace.registry.wake(at(131), "lab-a01").unwrap();
    assert_eq!(trace.state(1), NodeState::Draining, "waking is about booting");
    trace.registry.undrain(at(132), "lab-a01").unwrap();
    trace.drain();
    assert_eq!(trace.step(1), (NodeState::Up, "takes work again".into(), None));
    assert!(trace.registry.drain(at(133), "lab-a09", None).is_err());
}

#[test]
fn a_release_drains_first_and_is_on_its_way_when_the_node_says_so_or_its_patience_is_over() {
    for says_so in [true, false] {
        let mut trace = Trace::with_node(NIGHT);
        trace.registry.release(at(30), "lab-a01").unwrap();
        trace.drain();
        let reason = || "released by the administrator".to_owned();
        assert_eq!(trace.step(1), (NodeState::Draining, reason(), Some(90)));
        let told = "released by the administrator: it has 60 s to finish its work".to_owned();
        assert!(trace.events.contains(&told), "{:?}", trace.events);
        trace.hours(31);
        assert_eq!(trace.step(1), (NodeState::Draining, reason(), Some(90)));
        if says_so {
            trace
                .registry
                .handle_going_home(at(40), ConnectionId(1), "released", Leaving::LocalBoot, &[]);
            trace.drain();
            assert_eq!(
                trace.step(1),
                (NodeState::GoingHome, "released".into(), Some(400))
            );
            continue;
        }
        trace.registry.handle_disconnect(ConnectionId(1));
        trace.pass(89);
        assert_eq!(trace.state(1), NodeState::Draining);
        trace.pass(90);
        assert_eq!(trace.step(1), (NodeState::GoingHome, reason(), Some(450)));
        trace.pass(450);
        assert_eq!(trace.state(1), NodeState::Home);
        assert!(trace.disk[&mac(1)].hold.is_some());
    }
}

#[test]
fn a_persons_wish_ends_with_the_next_opening_and_an_administrators_does_not() {
    let mut trace = Trace::with_node(NIGHT);
    trace
        .registry
        .handle_going_home(at(30), ConnectionId(1), "key pressed", Leaving::LocalBoot, &[]);
    trace.drain();
    let hold = |trace: &Trace| trace.disk[&mac(1)].hold.clone();
    assert_eq!(hold(&trace).as_deref(), Some("key pressed"));
    let text = |trace: &Trace, second| {
        let record = trace.registry.record(mac(1)).unwrap();
        trace.registry.hold_text(at(second), record)
    };
    assert_eq!(
        text(&trace, 31).as_deref(),
        Some("key pressed, until Wed 2023-11-15 20:00")
    );
    // Wednesday 20:00 is second 78400. The head is restarted on the way.
    trace.restart_with(50_000, NIGHT);
    trace.hours(78_399);
    assert_eq!(hold(&trace).as_deref(), Some("key pressed"));
    trace.woken.clear();
    trace.hours(78_400);
    assert_eq!((hold(&trace), trace.woken.clone()), (None, vec![mac(1)]));
    assert!(
        trace
            .events
            .contains(&"its group's hours begin again: it may boot".to_owned())
    );

    let mut trace = Trace::with_node(NIGHT);
    trace.registry.release(at(30), "lab-a01").unwrap();
    trace
        .registry
        .handle_going_home(at(40), ConnectionId(1), "released", Leaving::LocalBoot, &[]);
    trace.hours(78_400);
    assert_eq!(hold(&trace).as_deref(), Some("released by the administrator"));
    assert!(trace.woken.is_empty());
}

#[test]
fn who_leaves_without_a_word_is_let_in_again_at_the_next_opening_too() {
    let mut trace = Trace::with_node(NIGHT);
    trace.session(60, 1);
    assert!(trace.disk[&mac(1)].hold.is_some());
    trace.hours(78_399);
    assert!(trace.disk[&mac(1)].hold.is_some());
    trace.hours(78_400);
    assert_eq!(trace.disk[&mac(1)].hold, None);
    // Control: a group that is always open has no next opening; the hold waits for `wake`.
    let mut trace = Trace::up(1, "n1");
    trace.session(60, 1);
    trace.hours(10_000_000);
    assert!(trace.disk[&mac(1)].hold.is_some());
}

#[test]
fn a_head_that_starts_behind_the_opening_wakes_once() {
    let mut trace = Trace::new();
    trace.registry = Registry::new(&config(NIGHT), Vec::new(), at(0));
    trace.session(1, 1);
    trace.adopt(1, "lab-a01");
    // It dies, and is started two hours behind Wednesday's opening (second 78400).
    trace.restart_with(85_600, NIGHT);
    trace.hours(85_600);
    assert_eq!(trace.woken, [mac(1)]);
    // Control: once more within the same opening is nobody's wake.
    trace.restart_with(85_700, NIGHT);
    trace.hours(85_700);
    trace.hours(85_800);
    assert_eq!(trace.woken, [mac(1)]);
    // Outside the hours: nobody, and at the next opening again.
    trace.restart_with(90_000, NIGHT);
    trace.hours(90_000);
    assert_eq!(trace.woken, [mac(1)]);
    trace.hours(78_400 + 86_400);
    assert_eq!(trace.woken, [mac(1), mac(1)]);
    // A head that starts five minutes before closing calls nobody: such a boot would only turn round.
    trace.groups.clear();
    trace.restart_with(78_400 + 86_400 + 8_700, NIGHT);
    trace.hours(78_400 + 86_400 + 8_700);
    assert_eq!(trace.woken, [mac(1), mac(1)]);
    // A whole day without a head: the opening of the day before is not this one.
    trace.restart_with(78_500 + 2 * 86_400, NIGHT);
    trace.hours(78_500 + 2 * 86_400);
    assert_eq!(trace.woken, [mac(1), mac(1), mac(1)]);
}
