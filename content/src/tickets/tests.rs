//! What the head gives to whom.

use super::*;

const T0: Duration = Duration::ZERO;

fn outputs(tickets: &mut Tickets<u32>) -> Vec<Output<u32>> {
    std::iter::from_fn(|| tickets.poll_output()).collect()
}

fn wish(have: &[u32]) -> Wish {
    let mut set = Bitmap::none(8);
    have.iter().for_each(|chunk| assert!(set.insert(*chunk)));
    Wish {
        have: set,
        tickets: 2,
        peers: 0,
        starving: false,
        using: vec![],
    }
}

fn given(outputs: &[Output<u32>]) -> Vec<(u32, u32)> {
    let each = |output: &Output<u32>| match output {
        Output::Tickets { node, chunks, .. } => chunks.iter().map(|chunk| (*node, *chunk)).collect(),
        Output::Peers { .. } => vec![],
    };
    outputs.iter().flat_map(each).collect()
}

#[test]
fn every_chunk_is_given_once_and_then_only_to_the_starving() {
    let mut tickets = Tickets::new(8, 4, 1);
    let mut seen = BTreeSet::new();
    let mut have: BTreeMap<u32, Vec<u32>> = (0..3).map(|node| (node, vec![])).collect();
    for round in 0..12 {
        for node in 0..3 {
            tickets.handle_wish(T0, node, wish(&have[&node]));
            for (node, chunk) in given(&outputs(&mut tickets)) {
                assert!(tickets.allows(node, chunk) && !tickets.allows(node + 1, chunk));
                assert!(seen.insert(chunk), "round {round}: {chunk} a second time");
                have.get_mut(&node).unwrap().push(chunk);
            }
            assert!(tickets.in_flight <= 4);
        }
    }
    assert_eq!(
        (seen.len(), tickets.counters().first, tickets.counters().again),
        (8, 8, 0)
    );
    let starving = Wish {
        starving: true,
        ..wish(&have[&0])
    };
    tickets.handle_wish(T0, 0, starving);
    assert!(
        given(&outputs(&mut tickets))
            .iter()
            .all(|(node, chunk)| *node == 0 && !have[&0].contains(chunk))
    );
    assert!(tickets.counters().again > 0);
}

#[test]
fn tickets_of_who_vanishes_or_is_slow_go_to_others() {
    let mut tickets = Tickets::new(8, 2, 1);
    tickets.handle_wish(T0, 0, wish(&[]));
    let first = given(&outputs(&mut tickets));
    tickets.handle_wish(T0, 1, wish(&[]));
    assert_eq!(given(&outputs(&mut tickets)), [], "no place");
    tickets.handle_gone(T0, 0);
    let second = given(&outputs(&mut tickets));
    assert!(!second.is_empty() && second.iter().all(|(node, _)| *node == 1));
    tickets.handle_wish(T0, 2, wish(&[]));
    assert_eq!(tickets.next_deadline(), Some(VALID));
    tickets.handle_deadline(VALID);
    assert!(given(&outputs(&mut tickets)).iter().any(|(node, _)| *node == 2));
    assert_eq!(tickets.counters().expired as usize, second.len());
    assert!(!first.is_empty());
}

#[test]
fn what_only_a_vanished_node_had_is_given_again() {
    let mut tickets = Tickets::new(8, 8, 1);
    tickets.handle_whole(T0, 7);
    tickets.handle_wish(T0, 1, wish(&[0]));
    assert_eq!(given(&outputs(&mut tickets)), [], "somebody has everything");
    assert_eq!(tickets.nodes(), (2, 1));
    tickets.handle_gone(T0, 7);
    let chunks = given(&outputs(&mut tickets));
    assert!(chunks.len() == 2 && chunks.iter().all(|(_, chunk)| *chunk != 0));
}

#[test]
fn peers_are_others_and_not_those_who_lie() {
    let mut tickets = Tickets::new(8, 8, 1);
    (0..20).for_each(|node| tickets.handle_whole(T0, node));
    let asks = |tickets: &mut Tickets<u32>, node| {
        tickets.handle_wish(
            T0,
            node,
            Wish {
                peers: 99,
                tickets: 0,
                ..wish(&[])
            },
        );
        match outputs(tickets).pop() {
            Some(Output::Peers { peers, .. }) => peers,
            other => panic!("{other:?}"),
        }
    };
    let (some, rest) = (asks(&mut tickets, 0), asks(&mut tickets, 0));
    assert_eq!((some.len(), rest.len()), (16, 3));
    assert!(!some.contains(&0) && rest.iter().all(|peer| !some.contains(peer)));
    assert_eq!(tickets.handle_accusation(T0, 0, 5), Accused::Noted);
    assert_eq!(
        tickets.handle_accusation(T0, 0, 5),
        Accused::Known,
        "the same accuser again"
    );
    assert_eq!(tickets.handle_accusation(T0, 1, 5), Accused::Shunned);
    assert_eq!(tickets.handle_accusation(T0, 1, 1), Accused::Ignored);
    assert_eq!(tickets.handle_accusation(T0, 1, 77), Accused::Ignored);
    let all: BTreeSet<u32> = [asks(&mut tickets, 9), asks(&mut tickets, 9)]
        .concat()
        .into_iter()
        .collect();
    assert!(!all.contains(&5) && all.len() == 18);
    // Who accuses everybody is not believed for ever.
    let ignored = (0..20)
        .filter(|peer| tickets.handle_accusation(T0, 9, *peer) == Accused::Ignored)
        .count();
    assert!(ignored >= 20 - MAX_ACCUSED - 1);
}

#[test]
fn sets_of_another_image_and_too_many_nodes_are_not_taken() {
    let mut tickets = Tickets::new(8, 8, 1);
    tickets.handle_wish(
        T0,
        1,
        Wish {
            have: Bitmap::none(9),
            ..wish(&[])
        },
    );
    assert_eq!(tickets.nodes(), (0, 0));
    (0..MAX_NODES as u32 + 5).for_each(|node| tickets.handle_whole(T0, node));
    assert_eq!(
        (tickets.nodes().0, tickets.counters().nodes_refused),
        (MAX_NODES, 5)
    );
}

#[test]
fn who_has_all_in_the_meantime_does_not_stand_in_the_way() {
    let mut tickets = Tickets::new(8, 1, 1);
    tickets.handle_wish(T0, 0, wish(&[]));
    let first = given(&outputs(&mut tickets));
    // Both wait, and the first of them gets everything from its peers.
    tickets.handle_wish(T0, 1, wish(&[]));
    tickets.handle_wish(T0, 2, wish(&[]));
    tickets.handle_wish(
        T0,
        1,
        Wish {
            have: Bitmap::all(8),
            tickets: 0,
            ..wish(&[])
        },
    );
    assert_eq!(tickets.waiting(), 1);
    tickets.handle_gone(T0, 1);
    tickets.handle_gone(T0, 0);
    assert!(given(&outputs(&mut tickets)).iter().all(|(node, _)| *node == 2));
    assert_eq!(first.len(), 1);
}

#[test]
fn what_only_a_liar_has_or_fetches_is_given_to_somebody_else() {
    let mut tickets = Tickets::new(8, 8, 1);
    // The liar has half of it, and two more chunks are on their way to it.
    tickets.handle_wish(T0, 5, wish(&[0, 1, 2, 3]));
    let on_their_way = given(&outputs(&mut tickets));
    assert_eq!(on_their_way.len(), 2);
    let mut all = Vec::new();
    for node in [0, 1] {
        tickets.handle_wish(T0, node, wish(&[]));
        all.extend(given(&outputs(&mut tickets)));
    }
    assert_eq!(all.len(), 2, "the rest, and nobody is starving");
    assert_eq!(tickets.handle_accusation(T0, 0, 5), Accused::Noted);
    assert_eq!(given(&outputs(&mut tickets)), []);
    tickets.handle_wish(
        T0,
        1,
        Wish {
            tickets: 16,
            ..wish(&[])
        },
    );
    assert_eq!(tickets.handle_accusation(T0, 1, 5), Accused::Shunned);
    for node in [0, 1] {
        tickets.handle_wish(
            T0,
            node,
            Wish {
                tickets: 16,
                ..wish(&[])
            },
        );
        all.extend(given(&outputs(&mut tickets)));
    }
    let chunks: BTreeSet<u32> = all.iter().map(|(_, chunk)| *chunk).collect();
    assert_eq!(chunks.len(), 8, "{all:?}");
    // The liar gets its image, too, once it is starving; and leaves nothing behind.
    let starving = Wish {
        starving: true,
        ..wish(&[0, 1, 2, 3])
    };
    tickets.handle_wish(T0, 5, starving);
    tickets.handle_gone(T0, 0);
    tickets.handle_gone(T0, 1);
    tickets.handle_wish(
        T0,
        5,
        Wish {
            starving: true,
            ..wish(&[0, 1, 2, 3])
        },
    );
    assert!(
        given(&outputs(&mut tickets))
            .iter()
            .all(|(node, chunk)| *node == 5 && *chunk > 3)
    );
    tickets.handle_gone(T0, 5);
    assert!(
        tickets.in_flight == 0
            && tickets
                .open
                .iter()
                .chain(&tickets.holders)
                .all(|count| *count == 0)
    );
}
