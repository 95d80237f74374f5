//! Who gets what when there is not enough for all.

use super::*;

const T0: Duration = Duration::ZERO;

fn outputs(uploads: &mut Uploads) -> Vec<Output> {
    std::iter::from_fn(|| uploads.poll_output()).collect()
}

#[test]
fn slots_go_to_whoever_got_least() {
    let mut uploads = Uploads::new(Bitmap::all(8), 4096, None, 1);
    // Visitor 1 takes everything it can get ...
    for chunk in 0..3 {
        uploads.handle_question(T0, 1, chunk);
        uploads.handle_sent(T0, 1);
    }
    (10..10 + SLOTS as u64).for_each(|visitor| uploads.handle_question(T0, visitor, 0));
    uploads.handle_question(T0, 1, 4);
    uploads.handle_question(T0, 2, 5);
    outputs(&mut uploads);
    // ... so the newcomer is first, though it asked later.
    uploads.handle_sent(T0, 10);
    assert_eq!(outputs(&mut uploads), [Output::Give { visitor: 2, chunk: 5 }]);
    uploads.handle_gone(T0, 11);
    assert_eq!(outputs(&mut uploads), [Output::Give { visitor: 1, chunk: 4 }]);
}

#[test]
fn too_many_are_told_to_come_again_and_what_is_not_here_is_not_given() {
    let mut have = Bitmap::all(8);
    have.remove(3);
    let mut uploads = Uploads::new(have, 4096, None, 1);
    uploads.handle_question(T0, 1, 3);
    uploads.handle_question(T0, 1, 99);
    assert_eq!(outputs(&mut uploads), [Output::Missing(1), Output::Missing(1)]);
    (0..1_000).for_each(|visitor| uploads.handle_question(T0, visitor, 0));
    assert_eq!(uploads.waiting.len(), MAX_WAITING);
    assert_eq!(uploads.counters().busy as usize, 1_000 - MAX_WAITING - SLOTS);
}

#[test]
fn a_limit_spreads_chunks_over_time() {
    let mut uploads = Uploads::new(Bitmap::all(8), 4096, Some(4096), 1);
    (0..3).for_each(|visitor| uploads.handle_question(T0, visitor, 0));
    assert_eq!(outputs(&mut uploads).len(), 1);
    for second in 1..3 {
        let now = Duration::from_secs(second);
        assert_eq!(uploads.next_deadline(), Some(now));
        uploads.handle_deadline(now);
        assert_eq!(outputs(&mut uploads).len(), 1);
    }
}

#[test]
fn news_are_told_when_there_are_any() {
    let mut uploads = Uploads::new(Bitmap::none(8), 4096, None, 1);
    uploads.handle_have(T0, 1, Duration::from_secs(60));
    assert_eq!(outputs(&mut uploads), [Output::Have(1)], "the first time at once");
    uploads.handle_have(T0, 1, Duration::from_secs(60));
    assert_eq!(outputs(&mut uploads), []);
    uploads.handle_chunk(2);
    assert_eq!(outputs(&mut uploads), [Output::Have(1)]);
    uploads.handle_have(T0, 1, Duration::from_secs(60));
    assert_eq!(uploads.next_deadline(), Some(MAX_WAIT));
    uploads.handle_deadline(MAX_WAIT);
    assert_eq!(outputs(&mut uploads), [Output::Have(1)]);
}
