//! What opening hours do to machines. The traces begin on Tuesday 2023-11-14 at 22:13:20 UTC.

use super::*;

#[test]
fn at_closing_a_node_goes_home_and_nothing_holds_it_there() {
    let mut trace = Trace::new();
    let text = "interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\nhours = [\"20:00-22:30\"]";
    // The traces begin on a Tuesday at 22:13:20.
    trace.registry = Registry::new(&config(text), Vec::new(), at(0));
    trace.session(1, 1);
    trace.adopt(1, "lab-a01");
    trace.session(5, 1);
    trace.script(6, 1);
    trace.hello(20, 1, 1, "boot-1");
    // A boot that begins six minutes before closing would only turn round.
    let hours = |trace: &Trace, second| trace.registry.hours(at(second), "lab-a");
    let opens = Some("Wed 2023-11-15 20:00".to_owned());
    assert_eq!(hours(&trace, 640), cid_bootserver::policy::Hours::Open);
    assert_eq!(
        hours(&trace, 641),
        cid_bootserver::policy::Hours::Closed { opens }
    );
    trace.drain();
    let welcome = trace.sent.iter().find_map(|(_, message)| match message {
        ToNode::Welcome(welcome) => Some(welcome.until.clone()),
        _ => None,
    });
    assert_eq!(welcome.as_deref(), Some("22:30"), "what the PC's screen says");
    trace.registry.handle_hours(at(999));
    trace.drain();
    assert_eq!(trace.state(1), NodeState::Draining);
    trace.registry.handle_hours(at(1_000));
    trace.registry.handle_hours(at(1_001));
    trace.drain();
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(trace.disk[&mac(1)].hold, None);
    let told = |(_, message): &&(ConnectionId, ToNode)| matches!(message, ToNode::Release { .. });
    assert_eq!(trace.sent.iter().filter(told).count(), 1);
    // The node says so too: that is no person's wish.
    trace
        .registry
        .handle_going_home(at(1_002), ConnectionId(1), "released", Leaving::LocalBoot, &[]);
    trace.drain();
    assert_eq!(trace.disk[&mac(1)].hold, None);
}

#[test]
fn when_the_hours_begin_the_group_is_woken_until_it_is_told_who_came() {
    let mut trace = Trace::new();
    let text = "interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\nhours = [\"22:30-23:00\"]";
    // The traces begin on a Tuesday at 22:13:20; 22:30 is second 1000.
    trace.registry = Registry::new(&config(text), Vec::new(), at(0));
    for number in 1..=3 {
        trace.session(1, number);
        trace.adopt(number, &format!("lab-a0{number}"));
    }
    trace.registry.release(at(2), "lab-a03").unwrap();
    let mut woken = Vec::new();
    for second in 3..1_700 {
        trace.registry.handle_hours(at(second));
        if second == 1_020 {
            trace.script(second, 1);
            trace.hello(second, 1, 1, "boot-1");
        }
        while let Some(output) = trace.registry.poll_output() {
            match output {
                Output::Wake(target) => woken.push((second, target.mac)),
                Output::Event {
                    kind: "opening",
                    text,
                    ..
                } => {
                    assert_eq!(text, "the hours of lab-a have begun, 1 came; silent: lab-a02");
                    woken.push((second, mac(0)));
                }
                _ => {}
            }
        }
    }
    let calls = [1_000, 1_000, 1_030, 1_090, 1_240].into_iter();
    let whom = [mac(1), mac(2), mac(2), mac(2), mac(2)];
    let expected: Vec<_> = calls.zip(whom).chain([(1_600, mac(0))]).collect();
    assert_eq!(woken, expected, "whoever was released is left alone");
}
