//! Timed traces: at this time this happens, at that time the node wants that.

use cid_protocol::node::{Plan, Welcome};

use super::*;

mod hours;
mod root;
mod trust;

const HEAD: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 3101);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn link(index: u32, carrier: bool) -> Link {
    let last = u8::try_from(index).expect("small");
    Link {
        index,
        name: format!("eth{index}"),
        mac: [0x52, 0x54, 0, 0, 0, last],
        carrier,
    }
}

fn node(boot_index: Option<u8>) -> Node {
    seeded(boot_index, 1)
}

fn seeded(boot_index: Option<u8>, seed: u64) -> Node {
    let boot_mac = boot_index.map(|last| [0x52, 0x54, 0, 0, 0, last]);
    Node::new(
        at(0),
        Config {
            head: Some(HEAD),
            boot_mac,
            bail_out: at(600),
            heard: None,
            standing: Standing::Certified,
            seed,
        },
    )
}

/// What the node wants, without heartbeats, status lines and beacons.
fn drain(node: &mut Node) -> Vec<Output> {
    let all = std::iter::from_fn(|| node.poll_output());
    all.filter(|output| {
        !matches!(
            output,
            Output::Tell(FromAgent::Alive | FromAgent::Status(_) | FromAgent::Fact { .. })
                | Output::Announce { .. }
                | Output::Prepare { .. }
                | Output::Leave
        )
    })
    .collect()
}

fn connect(index: u32, from: Ipv4Addr) -> Output {
    Output::Connect {
        index,
        from,
        head: HEAD,
    }
}

fn welcome() -> ToNode {
    ToNode::Welcome(Welcome {
        name: "lab-a01".into(),
        group: "lab-a".into(),
        time_unix_ms: 5,
        bail_out_secs: 600,
        patience_secs: 60,
        site: "Computing centre".into(),
        until: "06:30".into(),
        home_at_unix_ms: None,
        at_close: Ending::PowerOff,
        way_home: WayHome::BootNext,
        member: None,
        root: None,
    })
}

fn pulse(time_unix_ms: u64, plan: Option<Plan>) -> ToNode {
    ToNode::Pulse { time_unix_ms, plan }
}

/// A node that is up over link 1 at second 1, with a second link that has an address.
fn up() -> Node {
    let mut n = node(Some(1));
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_address(at(1), 2, Some(SECOND));
    assert_eq!(drain(&mut n), [connect(1, FIRST)]);
    n.handle_connected(at(1));
    assert_eq!(drain(&mut n), [Output::SendHello { index: 1 }]);
    n.handle_message(at(1), welcome());
    let said: Vec<String> = n.outputs.iter().map(|output| format!("{output:?}")).collect();
    assert!(
        said.iter()
            .any(|line| line.contains("until") && line.contains("06:30")),
        "{said:?}"
    );
    let up = Output::Tell(FromAgent::Up("lab-a01".into()));
    assert_eq!(
        drain(&mut n),
        [Output::SetClock { unix_ms: 5 }, up, Output::SendPulse]
    );
    n
}

/// Lets time pass; every pulse is answered if `answers`. Returns what is wanted beside pulses, with its second.
fn pass(n: &mut Node, from: u64, to: u64, answers: bool) -> Vec<(u64, Output)> {
    let mut wanted = Vec::new();
    let mut now = at(from);
    while let Some(deadline) = n.next_deadline() {
        assert!(
            deadline > now || deadline <= at(from),
            "the deadline {deadline:?} is stuck at {now:?}"
        );
        now = deadline.max(now);
        if now > at(to) {
            break;
        }
        n.handle_deadline(now);
        for output in drain(n) {
            match output {
                Output::SendPulse if answers => n.handle_message(now, pulse(9, None)),
                Output::SendPulse | Output::SetClock { .. } => {}
                Output::Connect { .. } => {
                    wanted.push((now.as_secs(), output));
                    n.handle_closed(now, "connection refused");
                }
                Output::Disconnect => {}
                output => wanted.push((now.as_secs(), output)),
            }
        }
    }
    wanted
}

#[test]
fn links_address_join_up_and_a_quiet_hour() {
    let mut n = up();
    assert_eq!(pass(&mut n, 1, 3600, true), []);
    assert_eq!(n.index_in_use(), Some(1));
}

#[test]
fn the_heartbeat_never_pauses_longer_than_its_interval() {
    let mut n = node(None);
    let (mut last, mut now) = (at(0), at(0));
    while now < at(590) {
        now = n.next_deadline().expect("always something");
        n.handle_deadline(now);
        if std::iter::from_fn(|| n.poll_output()).any(|output| output == Output::Tell(FromAgent::Alive)) {
            assert!(now - last <= HEARTBEAT, "{last:?} to {now:?}");
            last = now;
        }
    }
}

#[test]
fn the_boot_link_has_a_head_start_of_three_seconds_and_no_more() {
    let mut n = node(Some(2));
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    assert_eq!(drain(&mut n), []);
    n.handle_deadline(at(3));
    assert_eq!(drain(&mut n), []);
    n.handle_deadline(at(4));
    assert_eq!(drain(&mut n), [connect(1, FIRST)]);

    let mut n = node(Some(2));
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_address(at(2), 2, Some(SECOND));
    assert_eq!(drain(&mut n), [connect(2, SECOND)]);
}

#[test]
fn a_boot_link_without_carrier_is_not_waited_for() {
    let mut n = node(Some(2));
    n.handle_links(at(0), vec![link(1, true), link(2, false)]);
    n.handle_address(at(1), 1, Some(FIRST));
    assert_eq!(drain(&mut n), [connect(1, FIRST)]);
}

#[test]
fn a_cut_link_is_left_for_the_other_at_once() {
    let mut n = up();
    n.handle_links(at(20), vec![link(1, false), link(2, true)]);
    assert_eq!(drain(&mut n), [Output::Disconnect, connect(2, SECOND)]);
    n.handle_connected(at(20));
    n.handle_message(at(20), welcome());
    assert_eq!(n.index_in_use(), Some(2));
}

#[test]
fn a_link_that_does_not_reach_the_head_gives_way_to_the_next() {
    let mut n = node(Some(1));
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_address(at(1), 2, Some(SECOND));
    let tried: Vec<u32> = pass(&mut n, 1, 20, true)
        .into_iter()
        .filter_map(|(_, output)| {
            if let Output::Connect { index, .. } = output {
                Some(index)
            } else {
                None
            }
        })
        .collect();
    assert!(
        tried.len() >= 3 && tried.windows(2).all(|pair| pair[0] != pair[1]),
        "{tried:?}"
    );
}

#[test]
fn a_silent_head_is_left_after_ten_seconds_and_the_pc_goes_home_after_bail_out() {
    let mut n = up();
    let wanted = pass(&mut n, 1, 700, false);
    let redials: Vec<u64> = wanted
        .iter()
        .filter(|(_, output)| matches!(output, Output::Connect { .. }))
        .map(|(second, _)| *second)
        .collect();
    assert!(
        redials.first().is_some_and(|second| (11..=13).contains(second)),
        "{redials:?}"
    );
    assert!(redials.len() > 60, "keeps trying");
    // Beyond the reply to the hello the head was never heard.
    let home = Output::Tell(FromAgent::Home("head unreachable for 10 min".into()));
    assert_eq!(wanted.last(), Some(&(601, home)));
}

/// When a node that lost its head at this second calls again, while nobody is there; in milliseconds.
fn redials(seed: u64, lost: u64, until: u64) -> Vec<u128> {
    let mut n = seeded(Some(1), seed);
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_connected(at(1));
    n.handle_message(at(1), welcome());
    n.handle_closed(at(lost), "connection reset");
    let mut dials = Vec::new();
    let mut now = at(lost);
    while now < at(until) {
        if drain(&mut n)
            .iter()
            .any(|output| matches!(output, Output::Connect { .. }))
            && now > at(lost)
        {
            dials.push((now - at(lost)).as_millis());
            n.handle_closed(now, "connection refused");
        }
        now = n.next_deadline().expect("running").max(now);
        n.handle_deadline(now);
    }
    dials
}

/// A room loses its head in one moment. Whenever a head is back, everybody calls within four seconds, and no tenth of a second brings much
/// more than its share of them.
#[test]
fn a_room_that_lost_its_head_does_not_call_in_step() {
    let room: Vec<Vec<u128>> = (0..1_000).map(|seed| redials(seed, 5, 95)).collect();
    for dials in &room {
        assert!((250..=500).contains(&dials[0]), "{dials:?}");
        let longest = dials.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(4_000), "{dials:?}");
        let last = dials.len() as u128;
        assert!(last >= 90_000 / 4_000, "{last}");
    }
    for back in (0..80_000).step_by(700) {
        let next = |dials: &Vec<u128>| dials.iter().find(|dial| **dial >= back).copied();
        let mut calls: Vec<u128> = room.iter().filter_map(next).map(|dial| dial - back).collect();
        assert_eq!(calls.len(), 1_000);
        calls.sort_unstable();
        let bound = if back > 10_000 { 90 } else { 500 };
        let most = (0..40).map(|tenth| calls.iter().filter(|call| **call / 100 == tenth).count());
        assert!(most.max() <= Some(bound), "back after {back} ms: {calls:?}");
    }
}

/// Seconds in which pulses leave while the membership hears the head in every second of `heard`.
fn pulses(n: &mut Node, heard: std::ops::Range<u64>, answers: bool) -> (Vec<u64>, Option<u64>) {
    let mut sent = Vec::new();
    for second in heard.start.. {
        if heard.contains(&second) && second % 10 == 0 {
            n.handle_head_heard(at(second));
        }
        n.handle_deadline(at(second));
        for output in drain(n) {
            match output {
                Output::SendPulse => {
                    sent.push(second);
                    if answers {
                        n.handle_message(at(second), pulse(5, None));
                    }
                }
                Output::Disconnect => return (sent, Some(second)),
                _ => {}
            }
        }
        if second > heard.end + 20 {
            return (sent, None);
        }
    }
    unreachable!("the range has an end")
}

#[test]
fn a_member_pulses_seldom_and_asks_soon_when_it_hears_its_head_no_more() {
    let mut n = up();
    n.handle_message(at(1), pulse(5, None));
    let (sent, lost) = pulses(&mut n, 10..101, true);
    assert_eq!(lost, None);
    // The last datagram was heard at 100: at 113 it asks, and goes on as one that is no member.
    assert_eq!(sent[..6], [31, 61, 91, 113, 116, 119], "{sent:?}");
    // A head without a word, not even a FIN.
    let mut n = up();
    n.handle_message(at(1), pulse(5, None));
    let (sent, lost) = pulses(&mut n, 10..11, false);
    assert_eq!((sent[0], lost), (23, Some(30)), "{sent:?}");
    // Datagrams alone do not keep a connection that does not answer.
    let mut n = up();
    n.handle_message(at(1), pulse(5, None));
    let (_, lost) = pulses(&mut n, 2..200, false);
    assert!(lost.is_some_and(|second| second < 15), "{lost:?}");
}

#[test]
fn an_agent_that_is_started_again_does_not_begin_to_wait_for_the_head_anew() {
    for (heard, home_at) in [(Some(at(100)), 700), (None, 1100), (Some(at(9000)), 1100)] {
        let mut config = node(None).config;
        config.heard = heard;
        let mut n = Node::new(at(500), config);
        let home = Output::Tell(FromAgent::Home("head unreachable for 10 min".into()));
        assert_eq!(pass(&mut n, 500, 2000, false), [(home_at, home)], "{heard:?}");
    }
}

#[test]
fn without_any_network_the_pc_goes_home_after_bail_out() {
    let mut n = node(None);
    n.handle_links(at(0), vec![link(1, false)]);
    let home = Output::Tell(FromAgent::Home("head unreachable for 10 min".into()));
    assert_eq!(pass(&mut n, 0, 700, false), [(600, home)]);
}

#[test]
fn a_release_tells_the_head_and_then_pid_1() {
    let mut n = up();
    n.handle_message(
        at(9),
        ToNode::Release {
            patience_secs: 60,
            reason: "the administrator asked".into(),
            ending: Ending::Reboot,
            again: false,
        },
    );
    let going = Output::SendGoingHome {
        reason: "the administrator asked".into(),
    };
    assert_eq!(
        drain(&mut n),
        [going, Output::Tell(FromAgent::Home("released".into()))]
    );
    n.handle_message(
        at(10),
        ToNode::Release {
            patience_secs: 60,
            reason: "again".into(),
            ending: Ending::Reboot,
            again: false,
        },
    );
    assert_eq!(drain(&mut n), []);
    assert_eq!(pass(&mut n, 10, 60, false), [], "only heartbeats until the reset");
}

#[test]
fn a_person_is_obeyed_in_every_state() {
    let drain_line = || FromInit::Drain {
        secs: 10,
        reason: "key pressed".into(),
    };
    let home = || Output::Tell(FromAgent::Home("key pressed".into()));
    let mut n = up();
    n.handle_init(drain_line());
    assert_eq!(
        drain(&mut n),
        [
            Output::SendGoingHome {
                reason: "key pressed".into()
            },
            home()
        ]
    );
    let mut n = node(None);
    n.handle_init(drain_line());
    assert_eq!(drain(&mut n), [home()]);
}

#[test]
fn a_refusal_is_asked_about_again_and_is_home_within_a_minute() {
    let mut n = node(None);
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    let mut dials = 0;
    let mut now = at(1);
    let home = loop {
        for output in drain(&mut n) {
            if let Output::Connect { .. } = output {
                dials += 1;
                n.handle_connected(now);
                n.handle_message(
                    now,
                    ToNode::Refused {
                        reason: "not adopted".into(),
                    },
                );
            }
        }
        now = n.next_deadline().expect("running").max(now);
        n.handle_deadline(now);
        let all: Vec<Output> = std::iter::from_fn(|| n.poll_output()).collect();
        if let Some(Output::Tell(FromAgent::Home(reason))) = all.last() {
            break (now, reason.clone());
        }
        for output in all {
            if let Output::Connect { .. } = output {
                dials += 1;
                n.handle_connected(now);
                n.handle_message(
                    now,
                    ToNode::Refused {
                        reason: "not adopted".into(),
                    },
                );
            }
        }
    };
    assert_eq!(home, (at(51), "refused by the head: not adopted".into()));
    assert_eq!(dials, 3);
}

#[test]
fn late_events_of_a_connection_that_is_gone_do_nothing() {
    let mut n = node(None);
    n.handle_connected(at(1));
    n.handle_message(at(1), welcome());
    n.handle_closed(at(1), "late");
    assert_eq!(drain(&mut n), []);
}

#[test]
fn beacons_follow_the_link_in_use() {
    let mut n = up();
    n.handle_links(at(20), vec![link(1, false), link(2, true)]);
    let announced: Vec<_> = std::iter::from_fn(|| n.poll_output())
        .filter_map(|output| {
            if let Output::Announce { link, state, .. } = output {
                Some((link, state))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(announced.last(), Some(&(Some((2, SECOND)), NodeState::Joining)));
}
