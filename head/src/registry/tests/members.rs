//! Machines as members: whose boot is whose, who judges whom, what the history is told.

use cid_discovery::seal::GroupKey;

use super::*;
use crate::registry::members::STEP;

fn key(epoch: u32) -> GroupKey {
    GroupKey {
        epoch,
        secret: [7; 32],
    }
}

const HEAD: Boot = Boot {
    id: NodeId([9; 16]),
    incarnation: 5,
};

impl Trace {
    fn begin(&mut self, second: u64, table: &BTreeMap<NodeId, Change>) {
        self.certified = true;
        self.registry.begin_membership(at(second), HEAD, &key(1), table);
        self.drain();
    }

    /// A node that joined at second 20 and was heard among the members at 21.
    fn member() -> (Self, Boot) {
        let mut trace = Self::new();
        trace.begin(0, &BTreeMap::new());
        trace.session(1, 1);
        trace.adopt(1, "n1");
        trace.session(5, 1);
        trace.script(6, 1);
        trace.hello(20, 1, 1, "boot-1");
        let boot = trace.ticket();
        trace.heard(21, boot);
        (trace, boot)
    }

    /// Of the last welcome.
    fn ticket(&self) -> Boot {
        let ticket = self.sent.iter().rev().find_map(|(_, message)| match message {
            ToNode::Welcome(welcome) => welcome.member.clone(),
            _ => None,
        });
        let ticket = ticket.expect("a ticket");
        let id = u128::from_str_radix(&ticket.id, 16).expect("32 digits");
        Boot {
            id: NodeId(id.to_be_bytes()),
            incarnation: ticket.incarnation,
        }
    }

    fn heard(&mut self, second: u64, boot: Boot) {
        self.registry.handle_member(at(second), boot);
        self.drain();
    }

    /// The history decides by itself.
    fn judge(&mut self, second: u64, boot: Boot, state: State, reason: &str) {
        let change = Change {
            boot,
            state,
            at_unix_ms: at(second).unix_ms,
            name: "n1".into(),
            reason: reason.into(),
        };
        self.registry.handle_history(at(second), &change);
        self.drain();
    }

    fn again(&mut self, second: u64, connection: u64, boot_id: &str, incarnation: Option<u64>) {
        self.hello_as(second, 1, connection, boot_id, incarnation);
    }
}

#[test]
fn before_a_node_is_heard_as_a_member_its_connection_speaks_for_it() {
    let mut trace = Trace::new();
    trace.begin(0, &BTreeMap::new());
    trace.session(1, 1);
    trace.adopt(1, "n1");
    trace.hello(20, 1, 1, "boot-1");
    assert!(trace.history.is_empty(), "{:?}", trace.history);
    // The history knows nothing of it, so it has nothing to say.
    let boot = trace.ticket();
    trace.judge(30, boot, State::Lost, "silent");
    assert_eq!(trace.state(1), NodeState::Up);
    trace.pulse(40, 1);
    trace.registry.handle_disconnect(ConnectionId(1));
    trace.pass(55);
    assert_eq!(trace.state(1), NodeState::Lost);
}

#[test]
fn a_members_silence_is_for_its_peers_to_judge() {
    let (mut trace, boot) = Trace::member();
    assert_eq!(trace.history.last(), Some(&(boot, State::Up)));
    let events = trace.events.len();
    // Neither a lost connection nor an hour says anything.
    trace.registry.handle_disconnect(ConnectionId(1));
    trace.pass(3_600);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.judge(3_601, boot, State::Suspect, "does not answer its peers");
    assert_eq!(trace.state(1), NodeState::Suspect);
    assert!(!trace.registry.takes_work(mac(1)));
    // It comes over TCP, and its peers do not hear it: that is no news, however often.
    for number in 2..6 {
        trace.again(3_602 + number, number, "boot-1", Some(boot.incarnation));
        trace.pulse(3_603 + number, number);
        assert_eq!((trace.ticket(), trace.state(1)), (boot, NodeState::Suspect));
    }
    trace.judge(3_700, boot, State::Lost, "silent");
    trace.pulse(3_701, 5);
    assert_eq!(trace.state(1), NodeState::Lost);
    trace.judge(3_702, boot, State::Up, "answers again");
    let record = trace.registry.record(mac(1)).unwrap();
    assert_eq!(
        (record.state, record.reason.as_str()),
        (NodeState::Up, "answers again")
    );
    assert_eq!(record.since, at(3_702).unix_ms / 1_000);
    assert_eq!(trace.events.len() - events, 3);
}

#[test]
fn a_new_boot_beats_its_ghost_and_the_same_boot_keeps_its_incarnation() {
    let (mut trace, first) = Trace::member();
    trace.again(30, 2, "boot-1", Some(first.incarnation));
    assert_eq!(trace.ticket(), first);
    // Its agent started again while there was no head, and says so.
    trace.again(40, 3, "boot-1", Some(first.incarnation + 1));
    let restarted = trace.ticket();
    assert_eq!(restarted.incarnation, first.incarnation + 1);
    // One that says nothing, or what cannot be, gets a new one.
    for (number, claim) in [(4, None), (5, Some(3)), (6, Some(u64::MAX))] {
        let before = trace.ticket();
        trace.again(40 + number, number, "boot-1", claim);
        assert!(
            trace.ticket().incarnation >= before.incarnation + STEP,
            "{claim:?}"
        );
    }
    let last = trace.ticket();
    trace.again(60, 7, "boot-2", Some(last.incarnation));
    let rebooted = trace.ticket();
    assert!(
        rebooted.incarnation >= last.incarnation + STEP,
        "another boot is another member, whatever it says"
    );
    trace.judge(61, last, State::Lost, "silent");
    trace.heard(62, last);
    assert_eq!((trace.state(1), trace.ticket()), (NodeState::Up, rebooted));
    assert_eq!(trace.history.last(), Some(&(rebooted, State::Up)));
    // What was given is on disk.
    assert_eq!(trace.disk[&mac(1)].incarnation, rebooted.incarnation);
}

#[test]
fn a_draining_node_that_comes_back_drains_and_a_released_one_that_vanishes_went_home() {
    let (mut trace, boot) = Trace::member();
    trace.registry.drain(at(30), "n1", Some("its fan")).unwrap();
    trace.judge(31, boot, State::Suspect, "does not answer its peers");
    trace.registry.handle_hours(at(32));
    trace.drain();
    assert_eq!(
        trace.state(1),
        NodeState::Suspect,
        "no flapping between two reasons"
    );
    trace.judge(33, boot, State::Up, "answers again");
    assert_eq!(trace.state(1), NodeState::Draining);
    assert_eq!(trace.history.last(), Some(&(boot, State::Draining)));
    trace.registry.undrain(at(34), "n1").unwrap();
    trace.drain();

    trace.registry.release(at(40), "n1").unwrap();
    trace.judge(41, boot, State::Suspect, "does not answer its peers");
    trace.judge(44, boot, State::Up, "answers again");
    assert_eq!(trace.state(1), NodeState::Draining);
    trace.judge(45, boot, State::Suspect, "does not answer its peers");
    trace.judge(48, boot, State::Lost, "silent");
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(trace.history.last(), Some(&(boot, State::GoingHome)));
}

#[test]
fn a_goodbye_among_the_members_does_not_hide_the_person_who_took_the_pc() {
    let (mut trace, boot) = Trace::member();
    trace.judge(30, boot, State::GoingHome, "said so");
    assert_eq!(trace.state(1), NodeState::GoingHome);
    // Were its own words lost, firmware that asks again would be sent to the PC's own disk all the same.
    let record = trace.registry.record(mac(1)).expect("a machine");
    assert!(record.hold_when_asking().is_some());
    trace
        .registry
        .handle_going_home(at(30), ConnectionId(1), "key pressed", Leaving::LocalBoot, &[]);
    trace.drain();
    assert_eq!(trace.disk[&mac(1)].hold.as_deref(), Some("key pressed"));
}

#[test]
fn a_restarted_head_finds_its_members_and_leaves_them_to_the_history() {
    let (mut trace, boot) = Trace::member();
    let up = Change {
        boot,
        state: State::Up,
        at_unix_ms: 0,
        name: "n1".into(),
        reason: "joined".into(),
    };
    let events = trace.events.len();
    trace.restart(100);
    trace.begin(100, &BTreeMap::from([(boot.id, up)]));
    trace.pass(10_000);
    assert_eq!((trace.state(1), trace.events.len()), (NodeState::Up, events));
    // It dials again: nothing has changed, so nobody's history grows. A room of two hundred got a line for each before.
    let reason = trace.registry.record(mac(1)).unwrap().reason.clone();
    trace.again(101, 7, "boot-1", Some(boot.incarnation));
    let record = trace.registry.record(mac(1)).unwrap();
    assert_eq!((record.state, &record.reason), (NodeState::Up, &reason));
    // Its agent came back before its connection, and started again meanwhile.
    let later = Boot {
        incarnation: boot.incarnation + 2,
        ..boot
    };
    trace.heard(10_001, later);
    assert_eq!(trace.disk[&mac(1)].incarnation, later.incarnation);
    trace.judge(10_002, later, State::Suspect, "does not answer its peers");
    assert_eq!(trace.state(1), NodeState::Suspect);
}

#[test]
fn whoever_is_thrown_out_loses_connection_and_key_and_the_others_get_another() {
    let (mut trace, boot) = Trace::member();
    trace.registry.revoke(at(30), mac(1), "its token was used twice");
    trace.drain();
    assert_eq!(trace.state(1), NodeState::Refused);
    assert_eq!(trace.history.last(), Some(&(boot, State::Refused)));
    assert_eq!(trace.rotations, [Some(Some(boot.id))]);
    trace.registry.issue_key(&key(2), true);
    trace.drain();
    let told = |(_, message): &&(ConnectionId, ToNode)| matches!(message, ToNode::Key(_));
    assert_eq!(trace.sent.iter().filter(told).count(), 0, "it is not told");
    trace.registry.wake(at(39), "n1").unwrap();
    trace.hello(40, 1, 9, "boot-1");
    // Who comes without a certificate gets neither ticket nor key.
    trace.certified = false;
    let tickets = |trace: &Trace| {
        let with_ticket = |(_, message): &&(ConnectionId, ToNode)| matches!(message, ToNode::Welcome(welcome) if welcome.member.is_some());
        trace.sent.iter().filter(with_ticket).count()
    };
    let before = tickets(&trace);
    trace.session(40, 2);
    trace.adopt(2, "n2");
    trace.hello(41, 2, 10, "boot-1");
    trace.registry.issue_key(&key(3), false);
    trace.drain();
    assert_eq!(trace.sent.iter().filter(told).count(), 1);
    assert_eq!(tickets(&trace), before);
}

#[test]
fn two_boards_with_one_uuid_are_two_members() {
    let (mut trace, first) = Trace::member();
    let uuid = "4c4c4544-0000-2010-8020-80c04f202020";
    for number in [2, 3] {
        trace.session(50, number);
        trace.adopt(number, &format!("n{number}"));
        trace.registry.machines.get_mut(&mac(number)).unwrap().record.uuid = Some(uuid.into());
        trace.hello(60, number, u64::from(number) + 10, "b");
    }
    let ids: std::collections::BTreeSet<_> = (1..=3)
        .map(|number| trace.registry.record(mac(number)).unwrap().node_id.unwrap())
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.contains(&first.id));
}
