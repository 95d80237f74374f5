//! Which certificate is in force: when it comes onto the list, what takes it off.

use cid_discovery::NodeId;
use cid_trust::{BootToken, Fingerprint};

use super::*;

/// A certificate to the registry: any bytes that differ.
fn enrolment(second: u64, number: u8, key: u8) -> Enrolment {
    Enrolment {
        mac: mac(number),
        token: BootToken {
            issued_unix_ms: at(second).unix_ms,
            nonce: [second as u8; 12],
        },
        key: [key; 32],
        node: NodeId([number; 16]),
        leaf: vec![number, key, second as u8],
        authority: Vec::new(),
    }
}

impl Trace {
    fn enroll(&mut self, second: u64, enrolment: &Enrolment) -> Enrolled {
        let outcome = self
            .registry
            .handle_enroll(at(second), ConnectionId(900 + second), enrolment.clone());
        self.drain();
        outcome
    }

    fn is_listed(&mut self, enrolment: &Enrolment) -> bool {
        let fingerprint = Fingerprint::of(&enrolment.leaf);
        let listed = self.registry.handle_certified(ConnectionId(999), fingerprint);
        self.registry.handle_disconnect(ConnectionId(999));
        listed
    }

    /// Adopted, with its script in hand.
    fn booting(number: u8) -> Self {
        let mut trace = Self::new();
        trace.session(1, number);
        trace.adopt(number, "n1");
        trace.session(5, number);
        trace.script(6, number);
        trace
    }
}

#[test]
fn a_certificate_is_on_disk_before_it_leaves() {
    let mut trace = Trace::booting(1);
    let first = enrolment(6, 1, 1);
    assert_eq!(
        trace
            .registry
            .handle_enroll(at(10), ConnectionId(1), first.clone()),
        Enrolled::Fresh
    );
    let mut written = false;
    while let Some(output) = trace.registry.poll_output() {
        match output {
            Output::PersistCredential { credential, .. } => written = credential.leaf == first.leaf,
            Output::Send { message, .. } => {
                assert!(matches!(message, ToNode::Certificate(_)));
                assert!(written, "the certificate left before it was on disk");
            }
            _ => {}
        }
    }
    assert!(written && trace.is_listed(&first));
}

#[test]
fn who_a_node_is_comes_from_its_certificate_and_not_from_what_it_says() {
    let mut trace = Trace::booting(1);
    trace.session(1, 2);
    trace.adopt(2, "n2");
    let first = enrolment(6, 1, 1);
    trace.enroll(10, &first);
    assert!(
        trace
            .registry
            .handle_certified(ConnectionId(7), Fingerprint::of(&first.leaf))
    );
    // It claims the other machine's MAC.
    trace.certified = false;
    trace.hello(11, 2, 7, "boot-1");
    assert_eq!(
        (trace.state(1), trace.state(2)),
        (NodeState::Up, NodeState::Known)
    );
}

#[test]
fn going_home_ends_the_certificate_and_the_next_boot_needs_a_token_of_its_own() {
    let mut trace = Trace::booting(1);
    let first = enrolment(6, 1, 1);
    trace.enroll(10, &first);
    trace
        .registry
        .handle_certified(ConnectionId(1), Fingerprint::of(&first.leaf));
    trace.hello(11, 1, 1, "boot-1");
    trace.registry.release(at(20), "n1").unwrap();
    trace.registry.handle_going_home(
        at(21),
        ConnectionId(1),
        "released",
        cid_protocol::node::Leaving::LocalBoot,
        &[],
    );
    trace.drain();
    // It may lose its connection and come back while it goes.
    assert!(trace.is_listed(&first));
    let verdict = Verdict::LocalDisk;
    let text = "released".to_owned();
    trace.observe(60, 1, Observation::Decided { verdict, text });
    assert_eq!(trace.state(1), NodeState::Home);
    assert!(!trace.is_listed(&first));
    assert_eq!(trace.enroll(61, &first), Enrolled::Spent);
    trace.registry.wake(at(70), "n1").unwrap();
    trace.drain();
    trace.session(71, 1);
    trace.script(72, 1);
    let next = enrolment(72, 1, 2);
    assert_eq!(trace.enroll(80, &next), Enrolled::Fresh);
    assert!(trace.is_listed(&next) && !trace.is_listed(&first));
    // Another token of the same boot, by the key that has a certificate.
    assert_eq!(trace.enroll(81, &enrolment(71, 1, 2)), Enrolled::Again);
}

#[test]
fn a_crash_keeps_the_certificate_until_the_next_boot_has_one() {
    let mut trace = Trace::booting(1);
    let first = enrolment(6, 1, 1);
    trace.enroll(10, &first);
    trace
        .registry
        .handle_certified(ConnectionId(1), Fingerprint::of(&first.leaf));
    trace.hello(11, 1, 1, "boot-1");
    // Somebody's DHCP packet in its name takes nothing from it.
    trace.session(20, 1);
    let (verdict, text) = (Verdict::LocalDisk, "held".to_owned());
    trace.observe(21, 1, Observation::Decided { verdict, text });
    assert!(trace.is_listed(&first));
    trace.pulse(22, 1);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.registry.wake(at(30), "n1").unwrap();
    assert_eq!(trace.enroll(40, &enrolment(31, 1, 2)), Enrolled::Fresh);
    assert!(!trace.is_listed(&first));
}

#[test]
fn two_keys_of_one_boot_are_both_out_whichever_of_its_tokens_they_hold() {
    for stolen in [6, 7] {
        let mut trace = Trace::booting(1);
        let first = enrolment(6, 1, 1);
        assert_eq!(trace.enroll(10, &first), Enrolled::Fresh);
        trace
            .registry
            .handle_certified(ConnectionId(1), Fingerprint::of(&first.leaf));
        trace.hello(11, 1, 1, "boot-1");
        assert_eq!(trace.enroll(12, &enrolment(stolen, 1, 9)), Enrolled::Twice);
        assert!(!trace.is_listed(&first));
        // The nodes' own doors are told.
        let thrown_out: Vec<_> = trace.registry.thrown_out.iter().copied().collect();
        assert_eq!(thrown_out, [Fingerprint::of(&first.leaf)]);
        assert_eq!(trace.state(1), NodeState::Refused);
        assert!(trace.disk[&mac(1)].hold.is_some());
        let alarms = trace.events.iter().filter(|text| text.contains("used twice"));
        assert!(alarms.count() >= 1);
        // Its connection is closed: what it says now is nobody's.
        trace.pulse(13, 1);
        assert_eq!(trace.state(1), NodeState::Refused);
        trace.adopt(1, "n1");
        assert_eq!(trace.state(1), NodeState::Known);
        assert_eq!(trace.enroll(20, &enrolment(15, 1, 3)), Enrolled::Fresh);
    }
}

#[test]
fn strangers_get_none_and_two_boards_with_one_uuid_are_two_nodes() {
    let mut trace = Trace::booting(1);
    trace.session(1, 2);
    assert_eq!(trace.enroll(9, &enrolment(6, 2, 1)), Enrolled::NotAdopted);
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let mut first = enrolment(6, 1, 1);
    first.node = trace.registry.id_for(mac(1), uuid);
    assert_eq!(trace.enroll(10, &first), Enrolled::Fresh);
    trace.adopt(2, "n2");
    let other = trace.registry.id_for(mac(2), uuid);
    assert_ne!(other, first.node);
    let mut second = enrolment(6, 2, 2);
    second.node = first.node;
    assert_eq!(trace.enroll(11, &second), Enrolled::Collision);
    second.node = other;
    assert_eq!(trace.enroll(12, &second), Enrolled::Fresh);
}

#[test]
fn a_head_whose_clock_was_set_back_still_lets_its_machines_in() {
    let mut trace = Trace::booting(1);
    let late = enrolment(5_000, 1, 1);
    assert_eq!(trace.enroll(5_001, &late), Enrolled::Fresh);
    assert_eq!(trace.enroll(100, &enrolment(99, 1, 2)), Enrolled::Fresh);
    // The control: in the order of time it is void.
    let mut trace = Trace::booting(1);
    trace.enroll(5_001, &late);
    assert_eq!(trace.enroll(5_002, &enrolment(99, 1, 2)), Enrolled::Twice);
}

#[test]
fn the_list_survives_the_head() {
    let mut trace = Trace::booting(1);
    let (first, gone) = (enrolment(6, 1, 1), enrolment(3, 1, 9));
    trace.enroll(10, &first);
    let kept = trace.registry.credentials.clone().into_iter().collect();
    trace.restart(20);
    assert!(!trace.is_listed(&first));
    trace.registry.restore_credentials(kept);
    assert!(trace.is_listed(&first) && !trace.is_listed(&gone));
}
