//! One machine's life: seen, adopted, booting, up, home, lost.

use super::*;

#[test]
fn from_seen_over_adopted_and_booting_to_up_and_home() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    assert_eq!(trace.state(1), NodeState::Seen);
    trace.observe(
        1,
        1,
        Observation::Decided {
            verdict: Verdict::LocalDisk,
            text: "not adopted".into(),
        },
    );
    assert_eq!(trace.state(1), NodeState::Seen);
    trace.adopt(1, "lab-a[01-30]");
    assert_eq!(trace.state(1), NodeState::Known);
    trace.session(5, 1);
    trace.script(6, 1);
    assert_eq!((trace.state(1), trace.failed_boots(1)), (NodeState::Booting, 1));
    trace.hello(20, 1, 7, "boot-1");
    assert_eq!((trace.state(1), trace.failed_boots(1)), (NodeState::Up, 0));
    let (connection, message) = trace.sent.last().unwrap();
    assert_eq!(*connection, ConnectionId(7));
    assert!(
        matches!(message, ToNode::Welcome(welcome) if welcome.name == "lab-a01" && welcome.group == "lab-a")
    );

    trace.registry.release(at(30), "lab-a01").unwrap();
    trace.drain();
    assert!(trace.disk[&mac(1)].hold.is_some());
    assert_eq!(trace.state(1), NodeState::Draining);
    assert!(matches!(
        trace.sent.last().unwrap().1,
        ToNode::Release {
            patience_secs: 60,
            ..
        }
    ));
    trace.registry.handle_disconnect(ConnectionId(7));
    trace.session(40, 1);
    assert_eq!(trace.state(1), NodeState::GoingHome);
    trace.observe(
        41,
        1,
        Observation::Decided {
            verdict: Verdict::LocalDisk,
            text: "released".into(),
        },
    );
    assert_eq!(trace.state(1), NodeState::Home);
    trace.pass(5_000);
    assert_eq!(trace.state(1), NodeState::Home);
    trace.registry.wake(at(5_001), "lab-a01").unwrap();
    trace.drain();
    assert_eq!(
        (trace.state(1), trace.woken.clone()),
        (NodeState::Known, vec![mac(1)])
    );
    assert!(trace.disk[&mac(1)].hold.is_none());
}

#[test]
fn what_is_sent_stands_behind_what_is_written() {
    let mut trace = Trace::up(1, "n1");
    trace.registry.release(at(30), "n1").unwrap();
    let mut written = false;
    while let Some(output) = trace.registry.poll_output() {
        match output {
            Output::Persist(record) => written = record.hold.is_some(),
            Output::Send { .. } => assert!(written, "the node was told before the hold was on disk"),
            _ => {}
        }
    }
    assert!(written);
}

#[test]
fn a_script_counts_once_per_boot_session_even_across_restarts() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    trace.adopt(1, "n1");
    for second in [2, 3, 4] {
        // DISCOVER repeats before the first script are the same session.
        trace.session(second, 1);
    }
    trace.script(5, 1);
    trace.script(6, 1);
    trace.restart(7);
    trace.script(8, 1);
    assert_eq!(trace.failed_boots(1), 1);
    trace.session(60, 1);
    trace.restart(61);
    trace.script(62, 1);
    assert_eq!(trace.failed_boots(1), MAX_FAILED_BOOTS);
    trace.observe(
        120,
        1,
        Observation::Decided {
            verdict: Verdict::LocalDisk,
            text: "two failed boots".into(),
        },
    );
    assert_eq!(trace.state(1), NodeState::Home);
    trace.restart(121);
    assert_eq!((trace.state(1), trace.failed_boots(1)), (NodeState::Home, 2));
    trace.registry.wake(at(130), "n1").unwrap();
    assert_eq!(trace.failed_boots(1), 0);
}

#[test]
fn silence_makes_lost_and_a_word_restores() {
    let mut trace = Trace::up(1, "n1");
    trace.pulse(30, 1);
    trace.registry.handle_disconnect(ConnectionId(1));
    trace.pass(44);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.pass(45);
    assert_eq!(trace.state(1), NodeState::Lost);
    trace.hello(50, 1, 2, "boot-1");
    assert_eq!(trace.state(1), NodeState::Up);
    assert_eq!(
        trace.registry.record(mac(1)).unwrap().reason,
        "joined; found its head again"
    );
}

#[test]
fn a_restarted_head_keeps_its_nodes_up_without_a_flap() {
    let mut trace = Trace::up(1, "n1");
    let events = trace.events.len();
    trace.restart(100);
    trace.pass(115);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.hello(120, 1, 1, "boot-1");
    assert_eq!((trace.state(1), trace.events.len()), (NodeState::Up, events));
    // One that does not come back is lost after the grace.
    trace.restart(200);
    trace.pass(259);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.pass(260);
    assert_eq!(trace.state(1), NodeState::Lost);
}

#[test]
fn whoever_leaves_by_itself_is_not_booted_again_until_woken() {
    let mut trace = Trace::up(1, "n1");
    trace.registry.handle_going_home(
        at(30),
        ConnectionId(1),
        "key pressed\x1b[2J",
        Leaving::LocalBoot,
        &[],
    );
    trace.drain();
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(trace.disk[&mac(1)].hold.as_deref(), Some("key pressed [2J"));
    // Its firmware boots from the disk without asking.
    trace.pass(29 + 360);
    assert_eq!(trace.state(1), NodeState::GoingHome);
    trace.pass(30 + 360);
    assert_eq!(trace.state(1), NodeState::Home);
}

#[test]
fn a_release_reaches_a_node_that_joins_later() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    trace.adopt(1, "n1");
    trace.script(6, 1);
    trace.registry.release(at(7), "n1").unwrap();
    trace.drain();
    assert_eq!(trace.state(1), NodeState::GoingHome);
    trace.hello(20, 1, 3, "boot-1");
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert!(
        matches!(trace.sent[0].1, ToNode::Welcome(_)) && matches!(trace.sent[1].1, ToNode::Release { .. })
    );
}

#[test]
fn strangers_and_other_versions_are_refused() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    trace.hello(2, 1, 1, "b");
    assert!(matches!(&trace.sent[0].1, ToNode::Refused { reason } if reason.contains("cidctl adopt")));
    assert_eq!(trace.state(1), NodeState::Seen);
    trace.hello(2, 9, 2, "b");
    assert!(
        trace.registry.record(mac(9)).is_none(),
        "a stranger's hello must not make a row"
    );
}

#[test]
fn whoever_leaves_without_a_word_is_sent_to_its_own_disk() {
    for lost_first in [false, true] {
        let mut trace = Trace::up(1, "n1");
        if lost_first {
            trace.registry.handle_disconnect(ConnectionId(1));
            trace.pass(40);
            assert_eq!(trace.state(1), NodeState::Lost);
        }
        trace.session(50, 1);
        assert_eq!(trace.state(1), NodeState::Known);
        assert!(trace.disk[&mac(1)].hold.is_some());
        trace.observe(
            51,
            1,
            Observation::Decided {
                verdict: Verdict::LocalDisk,
                text: "held".into(),
            },
        );
        assert_eq!(trace.state(1), NodeState::Home);
        // Its next boots too, until somebody says otherwise.
        trace.session(500, 1);
        assert!(trace.disk[&mac(1)].hold.is_some());
        trace.registry.wake(at(600), "n1").unwrap();
        trace.session(700, 1);
        assert!(trace.registry.record(mac(1)).unwrap().hold.is_none());
        trace.script(701, 1);
        trace.hello(730, 1, 2, "boot-2");
        // The first connection's end comes late and must not touch the second.
        trace.registry.handle_disconnect(ConnectionId(1));
        trace.pulse(740, 2);
        trace.pass(750);
        assert_eq!(trace.state(1), NodeState::Up);
    }
}

#[test]
fn a_boot_that_never_joined_is_a_failed_boot_and_no_hold() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    trace.adopt(1, "n1");
    trace.script(6, 1);
    trace.pass(6 + 600);
    assert_eq!(trace.state(1), NodeState::Lost);
    trace.session(700, 1);
    assert_eq!(
        (
            trace.failed_boots(1),
            trace.registry.record(mac(1)).unwrap().hold.clone()
        ),
        (1, None)
    );
}

#[test]
fn somebody_elses_packet_in_a_nodes_name_is_undone_by_its_next_pulse() {
    let mut trace = Trace::up(1, "n1");
    trace.session(30, 1);
    trace.observe(
        31,
        1,
        Observation::Decided {
            verdict: Verdict::LocalDisk,
            text: "held".into(),
        },
    );
    assert_eq!(trace.state(1), NodeState::Home);
    trace.pulse(33, 1);
    assert_eq!(trace.state(1), NodeState::Up);
    assert!(trace.disk[&mac(1)].hold.is_none());
}
