//! Timed traces: at this time this happens, at that time the node wants that.

use cid_protocol::node::{Plan, Welcome};

use super::*;

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
    let boot_mac = boot_index.map(|last| [0x52, 0x54, 0, 0, 0, last]);
    Node::new(
        at(0),
        Config {
            head: Some(HEAD),
            boot_mac,
            bail_out: at(600),
            heard: None,
            standing: Standing::Certified,
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
    let release = |ending| {
        move |n: &mut Node| {
            let reason = "released".into();
            let patience_secs = 60;
            n.handle_message(
                at(9),
                ToNode::Release {
                    patience_secs,
                    reason,
                    ending,
                },
            );
        }
    };
    let off = prepared(release(Ending::PowerOff));
    // Not by BootNext: a PC that is woken at night must ask the head.
    assert_eq!(off, (Leaving::PowerOff, FromAgent::Off("released".into())));
    let restart = prepared(release(Ending::Reboot));
    assert_eq!(restart, (Leaving::BootNext, FromAgent::Home("released".into())));
    let person = prepared(|n| {
        n.handle_init(FromInit::Drain {
            secs: 5,
            reason: "key pressed".into(),
        });
    });
    assert_eq!(person, (Leaving::BootNext, FromAgent::Home("key pressed".into())));
}

fn with_standing(standing: Standing) -> Node {
    let config = Config {
        head: Some(HEAD),
        boot_mac: None,
        bail_out: at(600),
        heard: None,
        standing,
    };
    Node::new(at(0), config)
}

fn certificate() -> Certificate {
    Certificate {
        leaf: "bGVhZg==".into(),
        authority: "Y2E=".into(),
    }
}

#[test]
fn a_stranger_asks_for_a_certificate_and_calls_again_with_it() {
    let mut n = with_standing(Standing::Stranger);
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_address(at(1), 2, Some(SECOND));
    assert_eq!(drain(&mut n), [connect(1, FIRST)]);
    n.handle_connected(at(1));
    assert_eq!(drain(&mut n), [Output::SendEnroll { index: 1 }]);
    n.handle_message(at(2), ToNode::Certificate(certificate()));
    let enroll = Output::Enroll {
        certificate: certificate(),
    };
    assert_eq!(drain(&mut n), [enroll]);
    n.handle_enrolled(at(2), Ok(()));
    // At once, and over the same link, though there is another.
    assert_eq!(drain(&mut n), [Output::Disconnect, connect(1, FIRST)]);
    n.handle_connected(at(2));
    assert_eq!(drain(&mut n), [Output::SendHello { index: 1 }]);
}

#[test]
fn a_certificate_that_is_none_leads_home_like_a_refusal() {
    let mut n = with_standing(Standing::Stranger);
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_connected(at(1));
    n.handle_message(at(1), ToNode::Certificate(certificate()));
    drain(&mut n);
    n.handle_enrolled(
        at(1),
        Err("the head's certificate for this node: not X.509".into()),
    );
    assert_eq!(drain(&mut n), [Output::Disconnect]);
    let wanted = pass(&mut n, 1, 60, false);
    let (second, home) = wanted.last().expect("it goes home");
    assert!((50..=52).contains(second), "{wanted:?}");
    assert!(format!("{home:?}").contains("not X.509"), "{home:?}");
}

#[test]
fn without_an_authority_no_head_is_called_and_the_pc_goes_home() {
    let mut n = with_standing(Standing::Nobody(
        "the boot script names no authority (cid.ca)".into(),
    ));
    let said: Vec<String> = n.outputs.iter().map(|output| format!("{output:?}")).collect();
    assert!(said.iter().any(|line| line.contains("cid.ca")), "{said:?}");
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    let wanted = pass(&mut n, 1, 70, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, output)| matches!(output, Output::Connect { .. })),
        "{wanted:?}"
    );
    let (second, home) = wanted.last().expect("it goes home");
    assert!(
        *second <= 51 && format!("{home:?}").contains("cid.ca"),
        "{wanted:?}"
    );
}

#[test]
fn a_head_that_is_heard_by_datagrams_alone_keeps_the_node() {
    let mut n = up();
    let wanted = pass(&mut n, 1, 300, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))))
    );
    n.handle_head_heard(at(300));
    let wanted = pass(&mut n, 300, 880, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))))
    );
    let wanted = pass(&mut n, 880, 1_000, false);
    let home = wanted
        .iter()
        .find(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))));
    assert_eq!(home.map(|(second, _)| *second), Some(900), "{wanted:?}");
}

#[test]
fn a_ticket_makes_a_member_which_leaves_before_it_goes_home() {
    let mut n = up();
    n.handle_closed(at(2), "the head closed the connection");
    drain(&mut n);
    n.handle_deadline(at(3));
    n.handle_connected(at(3));
    drain(&mut n);
    let ToNode::Welcome(mut welcome) = welcome() else {
        panic!("a welcome")
    };
    let key = GroupKey {
        epoch: 1,
        secret: String::new(),
        revoked: false,
    };
    let ticket = MemberTicket {
        id: "11".repeat(16),
        incarnation: 4,
        head_id: "22".repeat(16),
        head_incarnation: 1,
        key,
    };
    welcome.member = Some(ticket.clone());
    n.handle_message(at(3), ToNode::Welcome(welcome));
    let outputs = drain(&mut n);
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Join { ticket: joined, .. } if **joined == ticket)),
        "{outputs:?}"
    );
    n.handle_message(at(4), ToNode::Key(ticket.key.clone()));
    assert_eq!(drain(&mut n), [Output::Rotate { key: ticket.key }]);
    n.handle_init(FromInit::Drain {
        secs: 10,
        reason: "key pressed".into(),
    });
    let order: Vec<Output> = std::iter::from_fn(|| n.poll_output()).collect();
    let place = |wanted: fn(&Output) -> bool| order.iter().position(wanted).expect("said");
    let told = place(|output| matches!(output, Output::SendGoingHome { .. }));
    let left = place(|output| matches!(output, Output::Leave));
    let home = place(|output| matches!(output, Output::Tell(FromAgent::Home(_))));
    assert!(told < left && left < home, "{order:?}");
}
