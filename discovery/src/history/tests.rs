use alloc::vec::Vec;
use core::time::Duration;

use super::chronicle::{Chronicle, RESTART_GRACE, Stale};
use super::damping::Pulse;
use super::replica::Replica;
use super::*;
use crate::identity::NodeId;
use crate::wire::{Liveness, Refusal};

const SECOND: Duration = Duration::from_secs(1);

fn boot(id: u16, incarnation: u64) -> Boot {
    let [high, low] = id.to_be_bytes();
    let mut bytes = [1; 16];
    (bytes[0], bytes[1]) = (high, low);
    Boot {
        id: NodeId(bytes),
        incarnation,
    }
}

/// Commits what was decided, as the head's shell does.
fn commit(chronicle: &mut Chronicle) -> Vec<Change> {
    let changes = core::iter::from_fn(|| chronicle.poll_persist()).collect();
    chronicle.handle_persisted();
    changes
}

fn chronicle_of(changes: u16) -> Chronicle {
    let mut chronicle = Chronicle::new(7, SECOND, 1_795_000_000_000);
    for id in 0..changes {
        chronicle
            .record(
                SECOND,
                boot(id % 100, u64::from(id)),
                State::Up,
                "lab",
                "welcomed",
            )
            .expect("news");
    }
    commit(&mut chronicle);
    chronicle
}

#[test]
fn nothing_unwritten_is_known() {
    let mut chronicle = Chronicle::new(7, SECOND, 1_795_000_000_000);
    chronicle
        .record(3 * SECOND, boot(1, 1), State::Joining, "lab-a01", "said hello")
        .expect("news");
    assert_eq!(chronicle.digest().length, 0);
    let change = chronicle.poll_persist().expect("to disk");
    assert_eq!(
        (change.at_unix_ms, change.state.to_string().as_str()),
        (1_795_000_002_000, "joining")
    );
    assert_eq!(chronicle.poll_persist(), None);
    assert_eq!(chronicle.tail(0), Some(Vec::new()));
    chronicle.handle_persisted();
    assert_eq!(
        (chronicle.digest().length, chronicle.tail(0)),
        (1, Some(alloc::vec![change]))
    );
}

#[test]
fn a_ghost_writes_no_history() {
    let mut chronicle = Chronicle::new(7, SECOND, 0);
    chronicle
        .record(SECOND, boot(1, 2), State::Up, "a", "")
        .expect("news");
    assert_eq!(
        chronicle.record(SECOND, boot(1, 1), State::GoingHome, "a", ""),
        Err(Stale::Ghost)
    );
    assert_eq!(
        chronicle.record(SECOND, boot(1, 2), State::Up, "a", ""),
        Err(Stale::Same)
    );
}

#[test]
fn a_replica_follows_by_tail_and_by_snapshot_to_the_same_chain() {
    let chronicle = chronicle_of(1_500);
    let digest = chronicle.digest();
    assert_eq!(
        (chronicle.tail(0), digest.length),
        (None, 1_500),
        "the beginning is in the snapshot only"
    );
    let mut replica = Replica::default();
    replica.handle_epoch(7, true);
    let (at, chain, parts) = chronicle.snapshot();
    assert!(at > 0 && parts > 1);
    for part in (0..parts).rev() {
        let changes = chronicle.part(part).expect("a part").to_vec();
        let done = replica
            .handle_part((7, at, chain), (part, parts), changes)
            .expect("taken");
        assert_eq!(done, part == 0);
    }
    while replica.digest().length < digest.length {
        let first = replica.digest().length;
        let changes = chronicle.tail(first).expect("kept");
        assert_eq!(replica.handle_tail(7, first, changes), Ok(true));
    }
    assert_eq!(
        (replica.chain(), replica.table()),
        (chronicle.chain(), chronicle.table())
    );
}

#[test]
fn a_replica_takes_no_gap_and_nothing_twice() {
    let chronicle = chronicle_of(20);
    let mut replica = Replica::default();
    replica.handle_epoch(7, false);
    let late = chronicle.tail(10).expect("kept");
    assert_eq!(replica.handle_tail(7, 10, late.clone()), Err(Refusal::History));
    let all = chronicle.tail(0).expect("kept");
    assert_eq!(replica.handle_tail(7, 0, all.clone()), Ok(true));
    assert_eq!(replica.handle_tail(7, 0, all), Ok(false));
    assert_eq!(
        replica.handle_tail(8, 20, late),
        Err(Refusal::History),
        "another epoch"
    );
    assert_eq!(replica.chain(), chronicle.chain());
    replica.handle_epoch(8, false);
    assert_eq!(replica.digest().epoch, 7, "only the head begins another history");
    replica.handle_epoch(8, true);
    assert_eq!((replica.digest().length, replica.table().len()), (0, 0));
}

#[test]
fn a_restarted_head_gives_everybody_time_to_be_heard() {
    let mut chronicle = chronicle_of(3);
    let disk = chronicle.tail(0).expect("kept");
    chronicle = Chronicle::restore(7, 10 * SECOND, 1_795_000_100_000, disk);
    chronicle.handle_liveness(11 * SECOND, boot(1, 1), Liveness::Alive);
    chronicle.handle_deadline(10 * SECOND + RESTART_GRACE - SECOND);
    assert_eq!(commit(&mut chronicle), []);
    let at = chronicle.next_deadline(11 * SECOND).expect("two are silent");
    assert_eq!(at, 10 * SECOND + RESTART_GRACE);
    chronicle.handle_deadline(at);
    let lost: Vec<_> = commit(&mut chronicle)
        .iter()
        .map(|change| (change.boot, change.state))
        .collect();
    assert_eq!(lost, [(boot(0, 0), State::Lost), (boot(2, 2), State::Lost)]);
}

#[test]
fn a_node_that_is_never_heard_is_lost() {
    let mut chronicle = chronicle_of(1);
    chronicle.expect(2 * SECOND, boot(0, 0));
    assert_eq!(
        chronicle.next_deadline(2 * SECOND),
        Some(2 * SECOND + RESTART_GRACE)
    );
    chronicle.handle_deadline(2 * SECOND + RESTART_GRACE);
    let states: Vec<State> = commit(&mut chronicle).iter().map(|change| change.state).collect();
    assert_eq!(states, [State::Lost]);
}

/// What the history shows of a node whose liveness follows `script`, up to `end`.
fn shown(script: &[(f64, Liveness)], end: u64) -> Vec<(f64, State)> {
    let mut chronicle = chronicle_of(1);
    let mut shown = Vec::new();
    let mut script = script.iter();
    let mut next = script.next();
    for tenth in 10..end * 10 {
        let now = Duration::from_millis(tenth * 100);
        while let Some((_, liveness)) = next.filter(|(at, _)| *at <= now.as_secs_f64()) {
            chronicle.handle_liveness(now, boot(0, 0), *liveness);
            next = script.next();
        }
        chronicle.handle_deadline(now);
        shown.extend(
            commit(&mut chronicle)
                .iter()
                .map(|change| (now.as_secs_f64(), change.state)),
        );
    }
    shown
}

#[test]
fn a_crash_is_told_at_once_and_a_moment_of_doubt_never() {
    use Liveness::{Alive, Dead, Suspect};
    assert_eq!(shown(&[(5.0, Suspect), (6.0, Alive)], 60), []);
    assert_eq!(
        shown(&[(5.0, Suspect), (8.0, Dead)], 60),
        [(6.5, State::Suspect), (8.0, State::Lost)]
    );
    assert_eq!(
        shown(&[(5.0, Dead), (20.0, Alive)], 60),
        [(5.0, State::Lost), (25.0, State::Up)]
    );
}

#[test]
fn a_wire_that_flaps_for_two_minutes_makes_two_changes() {
    for away in [Liveness::Suspect, Liveness::Dead] {
        let mut script = Vec::new();
        for round in 0..30 {
            script.push((10.0 + 4.0 * f64::from(round), away));
            script.push((12.0 + 4.0 * f64::from(round), Liveness::Alive));
        }
        let shown = shown(&script, 400);
        println!("{away:?}: {shown:?}");
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert_eq!(shown[1].1, State::Up);
    }
}

#[test]
fn flaps_are_forgiven() {
    let mut pulse = Pulse::new(SECOND);
    for round in 0..4 {
        pulse.handle((2 + 2 * round) * SECOND, Liveness::Suspect);
        pulse.handle((3 + 2 * round) * SECOND, Liveness::Alive);
    }
    assert_eq!(pulse.flaps(10 * SECOND), 4);
    assert_eq!(pulse.flaps(200 * SECOND), 1);
    assert_eq!(pulse.flaps(400 * SECOND), 0);
}

#[test]
fn a_node_can_hand_on_all_it_has() {
    let mut replica = Replica::default();
    replica.handle_epoch(7, true);
    let changes = (0..400).map(|id| Change {
        boot: boot(id % 90, u64::from(id)),
        state: State::Up,
        at_unix_ms: 5,
        name: "lab".into(),
        reason: "welcomed".into(),
    });
    replica.handle_tail(7, 0, changes.collect()).expect("taken");
    assert_eq!(replica.tail(0), None, "more than is kept");
    let parts = replica.parts();
    assert!(parts.len() > 1);
    let mut other = Replica::default();
    other.handle_epoch(7, false);
    let (at, chain, of) = (replica.digest().length, replica.chain(), parts.len() as u16);
    for (part, changes) in (0..).zip(parts) {
        other
            .handle_part((7, at, chain), (part, of), changes)
            .expect("taken");
    }
    assert_eq!(other.table(), replica.table());
    assert_eq!(
        (other.digest(), other.chain()),
        (replica.digest(), replica.chain())
    );
}
