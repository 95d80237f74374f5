//! Names, groups and how many strangers there may be.

use super::*;

#[test]
fn adoption_names_in_order_and_passes_over_names_in_use() {
    let mut trace = Trace::new();
    for number in [3, 1, 2, 4] {
        trace.session(1, number);
    }
    trace.adopt(2, "lab-a01");
    let macs = trace
        .registry
        .adopt(at(2), &["seen".to_owned()], "lab-a", "lab-a[01-30]")
        .unwrap();
    trace.drain();
    assert_eq!(macs, [mac(1), mac(3), mac(4)]);
    let rows = trace.registry.rows(&trace.registry.everyone());
    let table: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row.name, &row.mac[15..]))
        .collect();
    assert_eq!(table, ["lab-a01 02", "lab-a02 01", "lab-a03 03", "lab-a04 04"]);
    let refused = |result: Result<Vec<Mac>, CommandError>| result.unwrap_err().to_string();
    let registry = &mut trace.registry;
    assert!(
        refused(registry.adopt(at(3), &["seen".into()], "lab-a", "x")).starts_with("no machine is waiting")
    );
    assert!(
        refused(registry.adopt(at(3), &[mac(1).to_string()], "lab-b", "x")).contains("there are: lab-a, usb")
    );
    assert!(refused(registry.adopt(at(3), &[mac(9).to_string()], "lab-a", "x")).contains("was ever seen"));
    assert!(
        refused(registry.adopt(at(3), &[mac(4).to_string()], "lab-a", "lab-a[01-03]"))
            .contains("0 free names")
    );
    assert!(refused(registry.adopt(at(3), &["lab".into()], "lab-a", "x")).contains("neither a MAC"));
    assert!(
        refused(registry.adopt(at(3), &[mac(1).to_string()], "lab-a", "-x")).contains("cannot be the name")
    );
    assert!(refused(registry.release(at(3), "lab-a09")).contains("there is no machine `lab-a09`"));
    assert!(
        registry.poll_output().is_none(),
        "a refused command changes nothing"
    );
    assert_eq!(registry.resolve("@lab-a!lab-a02").unwrap().len(), 3);
}

#[test]
fn a_match_in_head_toml_needs_no_adoption() {
    let mut trace = Trace::new();
    let usb = Mac([2, 0, 0, 0, 0, 5]);
    trace.registry.handle_observation(at(1), usb, Observation::Heard);
    trace.drain();
    let record = trace.registry.record(usb).unwrap();
    assert_eq!(
        (record.state, trace.registry.group_of(record).unwrap().0),
        (NodeState::Known, "usb")
    );
}

#[test]
fn strangers_are_bounded_and_the_log_survives_their_flood() {
    let mut trace = Trace::new();
    trace.session(1, 1);
    trace.adopt(1, "n1");
    for number in 0..(MAX_STRANGERS as u32 + 500) {
        let [_, _, a, b] = number.to_be_bytes();
        trace.registry.handle_observation(
            at(10 + u64::from(number) / 100),
            Mac([4, 0, 0, 0, a, b]),
            Observation::Heard,
        );
        while let Some(output) = trace.registry.poll_output() {
            match output {
                Output::Event { text, .. } => trace.events.push(text),
                Output::Forget(mac) => assert_ne!(mac, super::mac(1)),
                _ => {}
            }
        }
    }
    trace.check_invariants();
    assert_eq!(trace.registry.machines.len(), MAX_STRANGERS + 1);
    assert!(
        trace.registry.record(Mac([4, 0, 0, 0, 0, 0])).is_none(),
        "the oldest made room"
    );
    assert!(
        trace.events.len() <= 3 * STRANGER_EVENTS_PER_MINUTE as usize,
        "{} events",
        trace.events.len()
    );
}

#[test]
fn who_was_heard_again_stays_longer_than_who_was_not() {
    let mut trace = Trace::new();
    let stranger = |number: u32| {
        let [_, _, a, b] = number.to_be_bytes();
        Mac([4, 0, 0, 0, a, b])
    };
    let full = MAX_STRANGERS as u32;
    let mut hear = |second, number| {
        trace
            .registry
            .handle_observation(at(second), stranger(number), Observation::Heard);
        let forgotten = std::iter::from_fn(|| trace.registry.poll_output());
        forgotten
            .filter_map(|output| match output {
                Output::Forget(mac) => Some(mac),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    for number in 0..full {
        hear(10, number);
    }
    // The first eviction looks at everybody. Number 1 is heard behind that look, and is passed over.
    assert_eq!(hear(20, full), [stranger(0)]);
    assert_eq!(hear(21, 1), []);
    for number in 1..full - 1 {
        assert_eq!(hear(22, full + number), [stranger(number + 1)]);
    }
    // Everybody of the first look is gone but number 1: the next look finds the one of second 20 before it.
    assert_eq!(hear(23, 2 * full), [stranger(full)]);
    assert_eq!(hear(23, 2 * full + 1), [stranger(1)]);
}
