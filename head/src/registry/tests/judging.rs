//! A node that is unfit: refused, held, judged anew, let in.

use cid_protocol::measure::{Measured, Path};

use super::*;

const WANTS: &str = "interface = \"e0\"\n[groups.lab-a]\nhours = [\"always\"]\n[groups.lab-a.requires]\ncpu_speed = 1.0\nbandwidth = \"50 Mbit/s\"\n";

fn hello(boot: &str, cpu_speed: f32, kbit: Option<u32>) -> Hello {
    Hello {
        version: NODE_PROTOCOL_VERSION,
        boot_id: boot.to_owned(),
        image: "minimal".into(),
        door: "pxe-bios".into(),
        hardware: Hardware {
            links: vec![Link {
                name: "eth0".into(),
                mac: mac(1).to_string(),
                in_use: true,
                ..Link::default()
            }],
            measured: Some(Measured {
                cpu_speed: Some(cpu_speed),
                head: Path {
                    to_node_kbit: kbit,
                    from_node_kbit: kbit,
                    ..Path::default()
                },
                ..Measured::default()
            }),
            ..Hardware::default()
        },
        phases: Vec::new(),
        incarnation: None,
        work: 0,
    }
}

/// Adopted, and asks to join at that second; the head's answer.
fn asks(trace: &mut Trace, second: u64, connection: u64, hello: Hello) -> ToNode {
    let id = ConnectionId(connection);
    trace.sent.clear();
    trace.registry.vouch(id, mac(1));
    trace
        .registry
        .handle_hello(at(second), id, Ipv4Addr::new(10, 77, 0, 101), hello);
    trace.drain();
    let answers = trace.sent.iter().filter(|(to, _)| *to == id);
    let answers: Vec<_> = answers.map(|(_, message)| message.clone()).collect();
    if matches!(answers.first(), Some(ToNode::Refused { .. })) {
        trace.registry.handle_disconnect(id);
        trace.drain();
    }
    answers.into_iter().next().expect("an answer")
}

fn room() -> Trace {
    let mut trace = Trace::new();
    trace.restart_with(0, WANTS);
    trace
        .registry
        .handle_observation(at(1), mac(1), Observation::Heard);
    let machines = [mac(1).to_string()];
    trace
        .registry
        .adopt(at(2), &machines, "lab-a", "lab-a01")
        .expect("adopted");
    trace.drain();
    trace
}

fn refused(answer: &ToNode, wanted: &str) {
    assert!(
        matches!(answer, ToNode::Refused { reason } if reason.contains(wanted)),
        "{answer:?}"
    );
}

fn hold(trace: &Trace) -> Option<&str> {
    trace.registry.record(mac(1)).unwrap().hold.as_deref()
}

#[test]
fn the_unfit_is_told_why_and_kept_at_home_until_somebody_says_otherwise() {
    let mut trace = room();
    refused(
        &asks(&mut trace, 10, 1, hello("b1", 0.4, None)),
        "its CPU runs at 0.40, 1.00 is wanted",
    );
    assert_eq!(trace.state(1), NodeState::Refused);
    assert!(hold(&trace).unwrap().starts_with("it was refused: its CPU"));
    assert_eq!(trace.registry.refusals().collect::<Vec<_>>(), [("cpu-speed", 1)]);
    let judged = trace.registry.judged(mac(1));
    assert!(
        judged
            .iter()
            .any(|row| row.what == "cpu_speed" && row.measured == "0.40")
    );
    // It tries again, to no avail; then it is at home, and its firmware asks: its own disk.
    refused(&asks(&mut trace, 30, 2, hello("b1", 0.5, None)), "0.50");
    assert_eq!(trace.registry.refusals().collect::<Vec<_>>(), [("cpu-speed", 2)]);
    assert!(
        trace
            .registry
            .hold_text(at(60), trace.registry.record(mac(1)).unwrap())
            .is_some()
    );
    // The head forgets none of it.
    trace.restart_with(70, WANTS);
    assert!(hold(&trace).is_some());
    // The administrator lets it boot again; that is no verdict.
    trace.registry.wake(at(80), "lab-a01").expect("woken");
    trace.drain();
    assert_eq!(hold(&trace), None);
    refused(&asks(&mut trace, 85, 3, hello("b1", 0.4, None)), "0.40");
    // A lower limit in head.toml is: the next boot joins.
    trace.restart_with(90, &WANTS.replace("cpu_speed = 1.0", "cpu_speed = 0.3"));
    trace.registry.wake(at(91), "lab-a01").expect("woken");
    assert!(matches!(
        asks(&mut trace, 95, 4, hello("b2", 0.4, None)),
        ToNode::Welcome(_)
    ));
}

#[test]
fn the_next_attempt_of_the_same_boot_may_be_good_enough() {
    let mut trace = room();
    refused(
        &asks(&mut trace, 10, 1, hello("b1", 2.0, Some(9_000))),
        "9 Mbit/s to the head",
    );
    // The head was too busy to measure it again: what was found before counts.
    refused(
        &asks(&mut trace, 30, 2, hello("b1", 2.0, None)),
        "9 Mbit/s to the head",
    );
    let answer = asks(&mut trace, 50, 3, hello("b1", 2.0, Some(90_000)));
    assert!(matches!(answer, ToNode::Welcome(_)), "{answer:?}");
    assert_eq!((trace.state(1), hold(&trace)), (NodeState::Up, None));
}

#[test]
fn who_is_in_is_not_judged_again_in_this_boot() {
    let mut trace = room();
    let answer = asks(&mut trace, 10, 1, hello("b1", 2.0, None));
    assert!(matches!(answer, ToNode::Welcome(_)));
    // It comes back slower, and to a head that wants more: still in, whatever the registry thought of it meanwhile.
    trace.registry.handle_disconnect(ConnectionId(1));
    let answer = asks(&mut trace, 15, 2, hello("b1", 0.1, None));
    assert!(matches!(answer, ToNode::Welcome(_)));
    trace.registry.handle_disconnect(ConnectionId(2));
    trace.registry.handle_deadline(at(60));
    trace.drain();
    assert_eq!(trace.state(1), NodeState::Lost);
    assert!(matches!(
        asks(&mut trace, 65, 3, hello("b1", 0.1, None)),
        ToNode::Welcome(_)
    ));
    // Its next boot is another matter.
    refused(&asks(&mut trace, 100, 4, hello("b2", 0.1, None)), "0.10");
}

#[test]
fn who_is_held_for_another_reason_is_sent_home_for_that_reason() {
    let mut trace = room();
    trace.registry.release(at(5), "lab-a01").expect("released");
    let answer = asks(&mut trace, 10, 1, hello("b1", 0.1, None));
    assert!(
        matches!(answer, ToNode::Welcome(_)),
        "and a release behind it: {answer:?}"
    );
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(hold(&trace), Some("released by the administrator"));
}
