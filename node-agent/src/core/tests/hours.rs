//! When a node goes by its own clock and by the head's word, and how it leaves.

use super::*;

#[test]
fn at_the_end_of_the_hours_a_node_without_a_head_goes_home_by_its_own_clock() {
    let mut n = up();
    let ToNode::Welcome(mut again) = welcome() else {
        unreachable!("made above")
    };
    n.handle_closed(at(10), "the head was restarted");
    n.handle_deadline(at(12));
    assert_eq!(drain(&mut n).last(), Some(&connect(2, SECOND)));
    n.handle_connected(at(12));
    again.time_unix_ms = 1_000_000;
    again.home_at_unix_ms = Some(1_000_000 + 60_000);
    n.handle_message(at(12), ToNode::Welcome(again));
    drain(&mut n);
    n.handle_closed(at(20), "the head has died");
    drain(&mut n);
    // A minute after the welcome, and the grace that the head has to say so itself.
    assert_eq!(home(&pass(&mut n, 20, 200, false)), Some(12 + 60 + 5));
}

/// The second at which the node leaves, with the head silent from second 30 on.
fn leaves_after(plans: &[(u64, Option<u64>)]) -> Option<u64> {
    let mut n = up();
    for (second, closes) in plans {
        let closes = closes.map(|second| second * 1_000);
        let plan = Plan {
            until: String::new(),
            home_at_unix_ms: closes,
        };
        n.handle_message(at(*second), pulse(second * 1_000, Some(plan)));
        drain(&mut n);
    }
    n.handle_closed(at(30), "the head has died");
    drain(&mut n);
    home(&pass(&mut n, 30, 500, false))
}

fn home(outputs: &[(u64, Output)]) -> Option<u64> {
    let home = |(second, output): &(u64, Output)| {
        // As the group wants it at closing.
        matches!(output, Output::Tell(FromAgent::Off(_))).then_some(*second)
    };
    outputs.iter().find_map(home)
}

#[test]
fn the_newest_word_on_the_hours_counts_whichever_way_it_moves_them() {
    assert_eq!(leaves_after(&[(10, Some(100))]), Some(105));
    assert_eq!(
        leaves_after(&[(10, Some(100)), (20, Some(200))]),
        Some(205),
        "later"
    );
    assert_eq!(
        leaves_after(&[(10, Some(200)), (20, Some(100))]),
        Some(105),
        "earlier"
    );
    assert_eq!(
        leaves_after(&[(10, Some(200)), (29, Some(5))]),
        Some(34),
        "over already"
    );
    // Control: taken back, or never said.
    assert_eq!(leaves_after(&[(10, Some(100)), (20, None)]), None);
    assert_eq!(leaves_after(&[]), None);
}

#[test]
fn a_pulse_without_a_plan_keeps_it_and_follows_the_heads_clock() {
    let mut n = up();
    let plan = Plan {
        until: "06:30".into(),
        home_at_unix_ms: Some(1_000_000),
    };
    n.handle_message(at(10), pulse(900_000, Some(plan)));
    let told: Vec<_> = std::iter::from_fn(|| n.poll_output()).collect();
    let until = Output::Tell(FromAgent::Fact {
        key: "until".into(),
        text: "06:30".into(),
    });
    assert!(told.contains(&until), "{told:?}");
    // The head's clock was a minute behind and was put right.
    n.handle_message(at(20), pulse(970_000, None));
    n.handle_closed(at(21), "the head has died");
    drain(&mut n);
    assert_eq!(home(&pass(&mut n, 21, 500, false)), Some(20 + 30 + 5));
}

/// What a node that was welcomed by a group with both keys prepares, and what it asks PID 1 for.
fn prepared(leave: impl FnOnce(&mut Node)) -> (Leaving, FromAgent) {
    let mut n = up();
    leave(&mut n);
    let outputs: Vec<Output> = std::iter::from_fn(|| n.poll_output()).collect();
    let [
        ..,
        Output::Prepare { leaving },
        Output::SendGoingHome { .. },
        Output::Leave,
        Output::Tell(told),
    ] = outputs.as_slice()
    else {
        panic!("not in this order: {outputs:?}")
    };
    (*leaving, told.clone())
}

#[test]
fn it_goes_off_when_the_head_says_so_and_restarts_for_a_person() {
    let release = |ending, again| {
        move |n: &mut Node| {
            let reason = "released".into();
            let patience_secs = 60;
            n.handle_message(
                at(9),
                ToNode::Release {
                    patience_secs,
                    reason,
                    ending,
                    again,
                },
            );
        }
    };
    let off = prepared(release(Ending::PowerOff, false));
    // Not by BootNext: a PC that is woken at night must ask the head.
    assert_eq!(off, (Leaving::PowerOff, FromAgent::Off("released".into())));
    let restart = prepared(release(Ending::Reboot, false));
    assert_eq!(restart, (Leaving::BootNext, FromAgent::Home("released".into())));
    // Into another image: BootNext would start Windows.
    let again = prepared(release(Ending::Reboot, true));
    assert_eq!(again, (Leaving::LocalBoot, FromAgent::Home("released".into())));
    let person = prepared(|n| {
        n.handle_init(FromInit::Drain {
            secs: 5,
            reason: "key pressed".into(),
        });
    });
    assert_eq!(person, (Leaving::BootNext, FromAgent::Home("key pressed".into())));
}
