//! The membership as packet traces: at this time we get, at that time we say. Rooms of many are in `tests/`.

use core::net::Ipv4Addr;

use super::*;
use crate::history::replica::Replica;
use crate::wire::Message;

const SECOND: Duration = Duration::from_secs(1);

fn boot(id: u8) -> Boot {
    Boot {
        id: NodeId([id; 16]),
        incarnation: 100,
    }
}

fn address(id: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, id), 3101)
}

/// The head of these traces.
const HEAD: u8 = 200;

pub(crate) fn node(id: u8, now: Duration) -> Membership {
    let config = Config {
        me: boot(id),
        role: Role::Node,
        address: address(id),
        head: Some((NodeId([HEAD; 16]), address(HEAD))),
        seeds: Vec::new(),
        bail_out: 600 * SECOND,
        capacity: 64,
    };
    Membership::new(config, Records::Node(Replica::default()), 1, now)
}

fn says(kind: Kind) -> Message {
    Message {
        mode: Mode::Quiet,
        role: Role::Node,
        to_group: false,
        history: Digest::default(),
        roster: 0,
        kind,
        rumors: Vec::new(),
        loads: Vec::new(),
    }
}

fn hears(member: &mut Membership, now: Duration, from: u8, message: &Message) -> Result<(), Refusal> {
    member.handle_datagram(now, boot(from), address(from), &message.encode())
}

/// Everything said and all that happened since the last call.
fn drain(member: &mut Membership) -> (Vec<(To, Message)>, Vec<Event>) {
    let (mut said, mut events) = (Vec::new(), Vec::new());
    while let Some(output) = member.poll_output() {
        match output {
            Output::Transmit { to, body } => said.push((to, Message::decode(&body).expect("own words"))),
            Output::Event(event) => events.push(event),
        }
    }
    (said, events)
}

/// Runs the timers up to `end`; what was said, with its time.
fn run(member: &mut Membership, from: Duration, end: Duration) -> (Vec<(Duration, To, Message)>, Vec<Event>) {
    let (mut said, mut events) = (Vec::new(), Vec::new());
    let mut now = from;
    while let Some(at) = member.next_deadline(now).filter(|at| *at <= end) {
        now = now.max(at);
        member.handle_deadline(now);
        let (more, happened) = drain(member);
        said.extend(more.into_iter().map(|(to, message)| (now, to, message)));
        events.extend(happened);
    }
    (said, events)
}

#[test]
fn greets_the_group_and_the_head_until_somebody_answers() {
    let mut a = node(1, SECOND);
    let (said, _) = run(&mut a, SECOND, 4 * SECOND);
    let hellos: Vec<_> = said
        .iter()
        .filter(|(_, _, message)| matches!(message.kind, Kind::Hello { .. }))
        .collect();
    let to_head = hellos
        .iter()
        .filter(|(_, to, _)| *to == To::Member(address(HEAD)))
        .count();
    let to_group = hellos.iter().filter(|(_, to, _)| *to == To::Group).count();
    assert!(
        (3..8).contains(&to_head) && to_group == to_head,
        "{to_head} {to_group}"
    );
}

#[test]
fn a_silent_neighbour_is_asked_doubted_and_buried() {
    let mut a = node(1, SECOND);
    hears(&mut a, SECOND, 2, &says(Kind::Gossip)).expect("taken");
    let (said, events) = run(&mut a, SECOND, 20 * SECOND);
    assert_eq!(events.first(), Some(&Event::Appeared(boot(2))));
    assert!(
        events.contains(&Event::Suspected(boot(2))) && events.contains(&Event::Lost(boot(2))),
        "{events:?}"
    );
    let first_doubt = said
        .iter()
        .find_map(|(at, _, message)| {
            message
                .rumors
                .iter()
                .any(|r| r.liveness == Liveness::Suspect)
                .then_some(*at)
        })
        .expect("the doubt is said");
    let burial = said
        .iter()
        .flat_map(|(at, _, message)| message.rumors.iter().map(move |rumor| (at, rumor)))
        .find(|(_, rumor)| rumor.liveness == Liveness::Dead)
        .expect("the death is said");
    let doubted = *burial.0 - first_doubt;
    assert!(doubted > 5 * SECOND, "one voice alone waits: {doubted:?}");
    assert!(burial.1.headless, "without the head's voice it says so");
}

#[test]
fn a_doubt_about_us_is_contradicted_at_once_with_a_larger_number() {
    let mut a = node(1, SECOND);
    let mut gossip = says(Kind::Gossip);
    let mut doubt = a.as_rumor();
    doubt.liveness = Liveness::Suspect;
    doubt.refutation = 4;
    doubt.by = Some(NodeId([2; 16]));
    gossip.rumors.push(doubt);
    // The greeting to the group waits; it is not what we look for.
    drain(&mut a);
    let mut contradicts = |now| {
        hears(&mut a, now, 2, &gossip).expect("taken");
        let (said, _) = drain(&mut a);
        said.iter()
            .flat_map(|(to, message)| message.rumors.iter().map(move |rumor| (*to, rumor)))
            .find(|(_, rumor)| rumor.boot == boot(1))
            .map(|(to, rumor)| (to, rumor.liveness, rumor.refutation))
    };
    assert_eq!(contradicts(2 * SECOND), Some((To::Group, Liveness::Alive, 5)));
    let missed = Some((To::Member(address(2)), Liveness::Alive, 5));
    assert_eq!(
        contradicts(3 * SECOND),
        missed,
        "refuted already: only the sender is told again"
    );
}

#[test]
fn a_ghost_a_false_head_and_our_own_echo_are_refused() {
    let mut a = node(1, SECOND);
    let later = Boot {
        incarnation: 101,
        ..boot(2)
    };
    let body = says(Kind::Gossip).encode();
    assert_eq!(a.handle_datagram(SECOND, later, address(2), &body), Ok(()));
    assert_eq!(
        a.handle_datagram(SECOND, boot(2), address(2), &body),
        Err(Refusal::Ghost)
    );
    assert_eq!(hears(&mut a, SECOND, 1, &says(Kind::Gossip)), Err(Refusal::Own));
    let mut crown = says(Kind::Gossip);
    crown.role = Role::Head;
    assert_eq!(hears(&mut a, SECOND, 3, &crown), Err(Refusal::OtherHead));
    let ours = Boot {
        incarnation: 101,
        ..boot(1)
    };
    assert_eq!(
        a.handle_datagram(SECOND, ours, address(1), &body),
        Err(Refusal::Own)
    );
    let (_, events) = drain(&mut a);
    assert!(
        events.contains(&Event::Superseded),
        "a later boot of this machine speaks: {events:?}"
    );
}

#[test]
fn acts_for_the_cluster_only_near_the_heads_voice_and_goes_home_without() {
    let mut a = node(1, SECOND);
    let mut head = says(Kind::Gossip);
    head.role = Role::Head;
    hears(&mut a, 2 * SECOND, HEAD, &head).expect("taken");
    assert!(!a.may_act(2 * SECOND), "somebody may have played that back");
    a.handle_deadline(2 * SECOND);
    let (said, _) = drain(&mut a);
    let asked = said.iter().find_map(|(to, message)| match message.kind {
        Kind::Ping { probe } if *to == To::Member(address(HEAD)) => Some(probe),
        _ => None,
    });
    head.kind = Kind::Ack {
        probe: asked.expect("asked"),
    };
    hears(&mut a, 2 * SECOND, HEAD, &head).expect("taken");
    drain(&mut a);
    assert!(a.may_act(2 * SECOND + HEAD_LEASE - SECOND));
    let again = hears(&mut a, 9 * SECOND, HEAD, &head);
    assert_eq!(again, Err(Refusal::Unasked), "an old answer is none");
    assert!(!a.may_act(2 * SECOND + HEAD_LEASE));
    let (said, events) = run(&mut a, 2 * SECOND, 700 * SECOND);
    assert_eq!(events, [Event::HeadLost, Event::GoHome]);
    let asked = said
        .iter()
        .filter(|(at, to, _)| *at > 30 * SECOND && *to == To::Member(address(HEAD)))
        .count();
    assert!(asked > 100, "it keeps asking: {asked}");
}

#[test]
fn a_withheld_answer_counts_from_the_question() {
    let mut a = node(1, SECOND);
    let mut head = says(Kind::Gossip);
    head.role = Role::Head;
    hears(&mut a, 2 * SECOND, HEAD, &head).expect("taken");
    a.handle_deadline(2 * SECOND);
    let asked = drain(&mut a)
        .0
        .iter()
        .find_map(|(_, message)| match message.kind {
            Kind::Ping { probe } => Some(probe),
            _ => None,
        });
    // The process gets no CPU, and keeps its question open by that; the head dies meanwhile.
    for second in 3..20 {
        a.handle_deadline(second * SECOND);
    }
    head.kind = Kind::Ack {
        probe: asked.expect("asked"),
    };
    hears(&mut a, 20 * SECOND, HEAD, &head).expect("taken");
    assert!(a.may_act(20 * SECOND));
    assert!(
        !a.may_act(2 * SECOND + HEAD_LEASE),
        "it says that the head was there at 2 s"
    );
}

#[test]
fn who_asks_us_hears_at_once_how_closely_we_want_to_be_watched() {
    let mut a = node(5, SECOND);
    for id in [2, 4, 7, 9] {
        hears(&mut a, SECOND, id, &says(Kind::Gossip)).expect("taken");
    }
    drain(&mut a);
    a.handle_mode(2 * SECOND, Mode::Busy);
    let told = |member: &mut Membership| -> Vec<To> {
        let busy = |(to, message): (To, Message)| (message.mode == Mode::Busy).then_some(to);
        drain(member).0.into_iter().filter_map(busy).collect()
    };
    assert_eq!(told(&mut a), [To::Member(address(4)), To::Member(address(4))]);
    let mut first = node(1, SECOND);
    hears(&mut first, SECOND, 9, &says(Kind::Gossip)).expect("taken");
    hears(&mut first, SECOND, 3, &says(Kind::Gossip)).expect("taken");
    drain(&mut first);
    first.handle_mode(2 * SECOND, Mode::Busy);
    assert_eq!(
        told(&mut first).first(),
        Some(&To::Member(address(9))),
        "round the ring"
    );
}

#[test]
fn who_hears_the_head_does_not_believe_the_deaths_of_those_who_do_not() {
    let mut a = node(1, SECOND);
    let mut head = says(Kind::Gossip);
    head.role = Role::Head;
    hears(&mut a, SECOND, HEAD, &head).expect("taken");
    hears(&mut a, SECOND, 2, &says(Kind::Gossip)).expect("taken");
    let mut burial = a.roster().member(NodeId([2; 16])).expect("known").as_rumor();
    burial.liveness = Liveness::Dead;
    burial.headless = true;
    let mut gossip = says(Kind::Gossip);
    gossip.rumors.push(burial.clone());
    hears(&mut a, SECOND, 3, &gossip).expect("taken");
    assert!(a.roster().member(NodeId([2; 16])).expect("known").is_present());
    assert_eq!(a.refusals().count(Refusal::Headless), 1);
    gossip.rumors[0].headless = false;
    hears(&mut a, SECOND, 3, &gossip).expect("taken");
    assert!(
        !a.roster().member(NodeId([2; 16])).expect("known").is_present(),
        "with the head's voice it counts"
    );
}

#[test]
fn who_slept_judges_nobody() {
    let mut a = node(1, SECOND);
    hears(&mut a, SECOND, 2, &says(Kind::Gossip)).expect("taken");
    run(&mut a, SECOND, 4 * SECOND);
    // The process got no CPU for a minute.
    a.handle_deadline(64 * SECOND);
    let (_, events) = drain(&mut a);
    assert!(!events.contains(&Event::Lost(boot(2))), "{events:?}");
    assert!(a.health() > 0);
}

/// The room's others, and one answer to our comparison that tells of them.
fn answers(ids: core::ops::Range<u8>) -> Message {
    let alive = |id| Rumor {
        boot: boot(id),
        refutation: 0,
        liveness: Liveness::Alive,
        role: Role::Node,
        headless: false,
        address: address(id),
        by: None,
    };
    Message {
        roster: 7,
        rumors: ids.map(alive).collect(),
        ..says(Kind::Roster)
    }
}

#[test]
fn who_catches_up_asks_on_while_answers_bring_much_and_waits_when_they_do_not() {
    let asked = |said: &[(Duration, To, Message)]| {
        let compares = said
            .iter()
            .filter(|(.., message)| matches!(message.kind, Kind::Compare(_)));
        compares.map(|(at, ..)| *at).collect::<Vec<Duration>>()
    };
    let (began, millis) = (10 * SECOND, Duration::from_millis);
    let mut a = node(1, SECOND);
    run(&mut a, SECOND, began);
    // The first answer, in two datagrams: the next question goes out 20 ms after the second.
    hears(&mut a, began, 2, &says(Kind::Gossip)).expect("heard");
    assert!(
        drain(&mut a)
            .0
            .iter()
            .any(|(_, message)| matches!(message.kind, Kind::Compare(_)))
    );
    for (at, ids) in [(1, 10..20), (5, 20..30)] {
        hears(&mut a, began + millis(at), 2, &answers(ids)).expect("heard");
    }
    let (said, _) = run(&mut a, began + millis(5), began + millis(100));
    assert_eq!(asked(&said), [began + millis(25)]);
    // The same once more brings nothing: only after a fifth of a second.
    for (at, ids) in [(101, 10..20), (105, 20..30)] {
        hears(&mut a, began + millis(at), 2, &answers(ids)).expect("heard");
    }
    let (said, _) = run(&mut a, began + millis(105), began + millis(400));
    assert_eq!(asked(&said), [began + millis(225)]);
    // One of ten is not much either.
    hears(&mut a, began + millis(405), 2, &answers(21..31)).expect("heard");
    let (said, _) = run(&mut a, began + millis(405), began + millis(600));
    assert_eq!(asked(&said), [began + millis(425)]);
}
