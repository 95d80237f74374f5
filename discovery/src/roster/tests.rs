use core::net::Ipv4Addr;

use super::*;

const NOW: Duration = Duration::from_secs(1);

fn rumor(id: u8, incarnation: u64, refutation: u16, liveness: Liveness) -> Rumor {
    Rumor {
        boot: Boot {
            id: NodeId([id; 16]),
            incarnation,
        },
        refutation,
        liveness,
        role: Role::Node,
        headless: false,
        address: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, id), 3101),
        by: (liveness == Liveness::Suspect).then_some(NodeId([9; 16])),
    }
}

fn roster(me: u8) -> Roster {
    let boot = Boot {
        id: NodeId([me; 16]),
        incarnation: 1,
    };
    Roster::new(boot, Role::Node, 16)
}

#[test]
fn precedence_is_that_of_swim_with_boots_before_all() {
    use Liveness::{Alive, Dead, Left, Suspect};
    let mut roster = roster(1);
    let mut check = |incarnation, refutation, liveness, effect| {
        let got = roster.apply(NOW, &rumor(2, incarnation, refutation, liveness));
        assert_eq!(got, effect, "{incarnation} {refutation} {liveness:?}");
    };
    check(5, 0, Dead, Effect::Nothing);
    check(5, 0, Alive, Effect::Appeared);
    check(5, 0, Alive, Effect::Nothing);
    check(5, 0, Suspect, Effect::Suspected);
    check(5, 0, Suspect, Effect::Nothing);
    check(5, 0, Alive, Effect::Nothing);
    check(5, 1, Alive, Effect::Cleared);
    check(5, 0, Suspect, Effect::Nothing);
    check(5, 0, Dead, Effect::Nothing);
    check(5, 1, Dead, Effect::Died);
    check(5, 1, Suspect, Effect::Nothing);
    check(5, 2, Alive, Effect::Returned);
    check(4, 9, Dead, Effect::Nothing);
    check(6, 0, Alive, Effect::Appeared);
    check(5, 9, Alive, Effect::Nothing);
    check(6, 0, Left, Effect::Left);
    check(7, 0, Alive, Effect::Appeared);
}

#[test]
fn equal_rosters_have_equal_hashes_whoever_owns_them() {
    let (mut a, mut b) = (roster(1), roster(2));
    assert_ne!(a.hash(), b.hash());
    a.apply(NOW, &rumor(2, 1, 0, Liveness::Alive));
    b.apply(NOW, &rumor(1, 1, 0, Liveness::Alive));
    assert_eq!((a.hash(), a.buckets()), (b.hash(), b.buckets()));
    a.apply(NOW, &rumor(2, 1, 0, Liveness::Suspect));
    assert_eq!(a.hash(), b.hash(), "a suspect is there");
    b.apply(NOW, &rumor(1, 2, 0, Liveness::Alive));
    assert_ne!(a.hash(), b.hash(), "another boot is another member");
    let buckets: usize = (0..BUCKETS).map(|index| a.in_bucket(index).count()).sum();
    assert_eq!(buckets, 1, "every member is in one bucket");
}

#[test]
fn the_ring_skips_who_is_doubted() {
    let mut roster = roster(5);
    for id in [1, 3, 7, 9] {
        roster.apply(NOW, &rumor(id, 1, 0, Liveness::Alive));
    }
    let next = |roster: &Roster| {
        roster
            .watched_by(NodeId([5; 16]))
            .map(|member| member.boot.id.0[0])
    };
    assert_eq!(next(&roster), Some(7));
    roster.apply(NOW, &rumor(7, 1, 0, Liveness::Suspect));
    assert_eq!(next(&roster), Some(9));
    roster.apply(NOW, &rumor(9, 1, 0, Liveness::Alive));
    roster.apply(NOW, &rumor(9, 1, 0, Liveness::Dead));
    assert_eq!(next(&roster), Some(1), "round the end");
    // Before 7 stand 5 (we), 3, 1, and 9 is dead.
    let me = NodeId([5; 16]);
    assert!(roster.is_watcher(me, NodeId([7; 16]), 1));
    assert!(!roster.is_watcher(me, NodeId([3; 16]), 1));
    assert!(roster.is_watcher(me, NodeId([3; 16]), 2));
}

#[test]
fn deaths_declared_without_the_head_are_void_when_it_is_back() {
    let mut roster = roster(1);
    for id in [2, 3] {
        roster.apply(NOW, &rumor(id, 1, 0, Liveness::Alive));
        let mut death = rumor(id, 1, 0, Liveness::Dead);
        death.headless = id == 2;
        assert_eq!(roster.apply(NOW, &death), Effect::Died);
    }
    assert_eq!(roster.forget_dead(NOW, true), [NodeId([2; 16])]);
    assert_eq!(
        roster.apply(NOW, &rumor(2, 1, 0, Liveness::Alive)),
        Effect::Appeared
    );
    assert_eq!(
        roster.apply(NOW, &rumor(3, 1, 0, Liveness::Alive)),
        Effect::Nothing,
        "remembered"
    );
    assert_eq!(roster.forget_dead(NOW + REMEMBER_DEAD, false).len(), 1);
}

#[test]
fn strangers_cannot_grow_the_roster() {
    let mut roster = roster(1);
    for id in 2..100 {
        roster.apply(NOW, &rumor(id, 1, 0, Liveness::Alive));
    }
    assert_eq!((roster.members().count(), roster.present()), (16, 16));
}

#[test]
fn a_member_is_small_and_the_table_is_a_sorted_map() {
    use alloc::collections::BTreeMap;
    assert_eq!(size_of::<Member>(), 48);
    let mut random = Random::new(5);
    let mut roster = Roster::new(rumor(1, 1, 0, Liveness::Alive).boot, Role::Node, 10_000);
    let mut model: BTreeMap<NodeId, (u64, Liveness)> = BTreeMap::new();
    let all = [Liveness::Alive, Liveness::Suspect, Liveness::Dead, Liveness::Left];
    for step in 0..40_000_u64 {
        // Ids come in clumps, grow to thousands, and shrink again.
        let mut id = NodeId([random.below(64) as u8 + 2; 16]);
        id.0[3] = random.below(64) as u8;
        let mut told = rumor(0, 1 + step / 16, random.below(4) as u16, all[random.below(4)]);
        told.boot.id = id;
        let before = model.get(&id).copied();
        if roster.apply(NOW, &told) != Effect::Nothing {
            let member = roster.member(id).expect("applied");
            model.insert(id, (member.boot.incarnation, member.liveness));
        } else if before.is_none() {
            assert!(roster.member(id).is_none());
        }
        if step % 5_000 == 4_999 {
            let late = NOW + REMEMBER_DEAD + Duration::from_secs(1);
            let gone = roster.forget_dead(late, false);
            assert!(!gone.is_empty());
            model.retain(|_, (_, liveness)| !matches!(liveness, Liveness::Dead | Liveness::Left));
        }
        if step % 500 == 0 {
            let found: Vec<_> = roster
                .members()
                .map(|m| (m.boot.id, (m.boot.incarnation, m.liveness)))
                .collect();
            let expected: Vec<_> = model.iter().map(|(id, entry)| (*id, *entry)).collect();
            assert_eq!(found, expected, "step {step}");
            let present = |(_, (_, liveness)): &&(NodeId, (u64, Liveness))| {
                matches!(liveness, Liveness::Alive | Liveness::Suspect)
            };
            assert_eq!(roster.present(), expected.iter().filter(present).count());
            let me = NodeId([random.below(256) as u8; 16]);
            let alive = |(_, (_, liveness)): &(&NodeId, &(u64, Liveness))| *liveness == Liveness::Alive;
            let after = model.range((core::ops::Bound::Excluded(me), core::ops::Bound::Unbounded));
            let next = after.chain(model.range(..me)).find(alive).map(|(id, _)| *id);
            assert_eq!(roster.watched_by(me).map(|member| member.boot.id), next);
        }
    }
    assert!(model.len() > 1_000, "{}", model.len());
}

#[test]
fn a_roster_of_thousands_needs_little_more_than_its_members() {
    for (count, in_order) in [(1_000, false), (1_000, true), (10_000, false), (10_000, true)] {
        let mut roster = Roster::new(rumor(1, 1, 0, Liveness::Alive).boot, Role::Node, count);
        for number in 0..count as u32 {
            let mut told = rumor(0, 1, 0, Liveness::Alive);
            if in_order {
                told.boot.id.0[..4].copy_from_slice(&number.to_be_bytes());
            } else {
                told.boot.id = NodeId::of_machine(&number.to_string(), [0; 6]);
            }
            assert_eq!(roster.apply(NOW, &told), Effect::Appeared);
        }
        let each = roster.heap_bytes() / count;
        println!("{count} members, in order {in_order}: {each} bytes each");
        assert!(each <= 60, "{each} bytes a member");
    }
}
