//! Timed traces: at this second this comes in, these things go out, this is the state.

use cid_protocol::node::{Hardware, Hello, Link, Load, NODE_PROTOCOL_VERSION};

use super::*;

const CONFIG: &str = "interface = \"e0\"\n[groups.lab-a]\nimage = \"minimal\"\nhours = [\"always\"]\n[groups.usb]\nhours = [\"always\"]\nmatch = [\"02:00:00:*\"]\n";

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

fn at(second: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(second),
        unix_ms: 1_700_000_000_000 + second * 1_000,
    }
}

fn config(text: &str) -> Config {
    Config::parse(std::path::Path::new("head.toml"), text).unwrap()
}

/// A registry, its database, and everything it sent.
struct Trace {
    registry: Registry,
    disk: BTreeMap<Mac, Record>,
    sent: Vec<(ConnectionId, ToNode)>,
    woken: Vec<Mac>,
    events: Vec<String>,
}

impl Trace {
    fn new() -> Self {
        let registry = Registry::new(&config(CONFIG), Vec::new(), at(0));
        Self {
            registry,
            disk: BTreeMap::new(),
            sent: Vec::new(),
            woken: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Drains the outputs as the shell would; the database is always as new as what was sent.
    fn drain(&mut self) {
        while let Some(output) = self.registry.poll_output() {
            match output {
                Output::Persist(record) | Output::PersistLazily(record) => {
                    drop(self.disk.insert(record.mac, *record))
                }
                Output::Forget(mac) => drop(self.disk.remove(&mac)),
                Output::Event { text, .. } => self.events.push(text),
                Output::Send { connection, message } => self.sent.push((connection, message)),
                Output::Close { .. } | Output::Step { .. } => {}
                Output::Wake(mac) => self.woken.push(mac),
            }
        }
        self.check_invariants();
    }

    fn check_invariants(&self) {
        let strangers = self
            .registry
            .machines
            .values()
            .filter(|machine| machine.is_stranger())
            .count();
        assert_eq!(strangers, self.registry.strangers);
        assert!(strangers <= MAX_STRANGERS);
        let mut names: Vec<_> = self
            .registry
            .records()
            .filter_map(|record| record.name.clone())
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name is given twice");
        for record in self.registry.records() {
            let held = record.hold.is_some();
            assert!(
                !(held && record.state == NodeState::Up),
                "{record:?} is up and held"
            );
        }
    }

    /// A crash: everything but the database is gone.
    fn restart(&mut self, second: u64) {
        self.registry = Registry::new(&config(CONFIG), self.disk.values().cloned().collect(), at(second));
    }

    fn observe(&mut self, second: u64, number: u8, observation: Observation) {
        self.registry
            .handle_observation(at(second), mac(number), observation);
        self.drain();
    }

    fn session(&mut self, second: u64, number: u8) {
        let firmware = Firmware {
            door: Some("pxe-bios".into()),
            ..Firmware::default()
        };
        self.observe(
            second,
            number,
            Observation::SessionStarted {
                firmware,
                client: "pxe",
            },
        );
    }

    fn script(&mut self, second: u64, number: u8) {
        self.observe(
            second,
            number,
            Observation::ScriptHandedOut {
                image: "minimal".into(),
            },
        );
    }

    fn hello(&mut self, second: u64, number: u8, connection: u64, boot_id: &str) {
        let link = Link {
            mac: mac(number).to_string(),
            in_use: true,
            ..Link::default()
        };
        let hello = Hello {
            version: NODE_PROTOCOL_VERSION,
            boot_id: boot_id.into(),
            image: "minimal".into(),
            door: "pxe-bios".into(),
            hardware: Hardware {
                links: vec![link],
                cpus: 2,
                ..Hardware::default()
            },
            phases: Vec::new(),
        };
        let address = Ipv4Addr::new(10, 77, 0, 100 + number);
        self.registry
            .handle_hello(at(second), ConnectionId(connection), address, hello);
        self.drain();
    }

    fn pulse(&mut self, second: u64, connection: u64) {
        self.registry
            .handle_pulse(at(second), ConnectionId(connection), Load::default());
        self.drain();
    }

    fn pass(&mut self, second: u64) {
        self.registry.handle_deadline(at(second));
        self.drain();
    }

    fn adopt(&mut self, number: u8, name: &str) {
        self.registry
            .adopt(at(1), &[mac(number).to_string()], "lab-a", name)
            .unwrap();
        self.drain();
    }

    fn state(&self, number: u8) -> NodeState {
        self.registry.record(mac(number)).unwrap().state
    }

    fn failed_boots(&self, number: u8) -> u32 {
        self.registry.record(mac(number)).unwrap().failed_boots
    }

    fn up(number: u8, name: &str) -> Self {
        let mut trace = Self::new();
        trace.session(1, number);
        trace.adopt(number, name);
        trace.session(5, number);
        trace.script(6, number);
        trace.hello(20, number, 1, "boot-1");
        trace
    }
}

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
    assert_eq!(trace.state(1), NodeState::GoingHome);
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
    // Beacons alone keep it up, and bring it back.
    trace.registry.handle_disconnect(ConnectionId(2));
    trace
        .registry
        .handle_beacon(at(60), Ipv4Addr::new(10, 77, 0, 101), "n1");
    trace.pass(66);
    assert_eq!(trace.state(1), NodeState::Up);
    trace.pass(75);
    assert_eq!(trace.state(1), NodeState::Lost);
    trace
        .registry
        .handle_beacon(at(80), Ipv4Addr::new(10, 77, 0, 101), "n2");
    assert_eq!(trace.state(1), NodeState::Lost);
    trace
        .registry
        .handle_beacon(at(80), Ipv4Addr::new(10, 77, 0, 101), "n1");
    assert_eq!(trace.state(1), NodeState::Up);
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
    trace
        .registry
        .handle_going_home(at(30), ConnectionId(1), "key pressed\x1b[2J");
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
                Output::Forget(mac) => assert_ne!(mac, super::tests::mac(1)),
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
    trace.registry.handle_closing(at(999));
    trace.drain();
    assert_eq!(trace.state(1), NodeState::Up);
    trace.registry.handle_closing(at(1_000));
    trace.registry.handle_closing(at(1_001));
    trace.drain();
    assert_eq!(trace.state(1), NodeState::GoingHome);
    assert_eq!(trace.disk[&mac(1)].hold, None);
    let told = |(_, message): &&(ConnectionId, ToNode)| matches!(message, ToNode::Release { .. });
    assert_eq!(trace.sent.iter().filter(told).count(), 1);
    // The node says so too: that is no person's wish.
    trace
        .registry
        .handle_going_home(at(1_002), ConnectionId(1), "released");
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
        trace.registry.handle_opening(at(second));
        if second == 1_020 {
            trace.script(second, 1);
            trace.hello(second, 1, 1, "boot-1");
        }
        while let Some(output) = trace.registry.poll_output() {
            match output {
                Output::Wake(mac) => woken.push((second, mac)),
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
