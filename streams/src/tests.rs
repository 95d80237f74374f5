//! Two ends over a wire that delays and cuts as it likes: nothing lost or reordered, memory bounded, nobody stopped by another.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn stream(rank: u32, channel: Channel) -> StreamId {
    StreamId { rank, channel }
}

/// Sends frames of `from` to `to`, through the codec.
fn carry(from: &mut Mux, to: &mut Mux, most: usize) -> Vec<Received> {
    let mut received = Vec::new();
    for _ in 0..most {
        let Some(kind) = from.poll_frame() else { break };
        let bytes = Frame { job: 7, kind }.encode();
        let frame = Frame::decode(&bytes[4..]).expect("ours");
        assert_eq!(frame.job, 7);
        received.extend(to.handle(frame.kind).expect("within the rules"));
    }
    received
}

#[derive(Debug, Clone)]
enum Step {
    Write(u32, bool, usize),
    Carry(usize),
    Read(u32, bool, usize),
    Back(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        (0..3_u32, any::<bool>(), 1..40_000_usize)
            .prop_map(|(rank, err, length)| Step::Write(rank, err, length)),
        (1..8_usize).prop_map(Step::Carry),
        (0..3_u32, any::<bool>(), 1..40_000_usize)
            .prop_map(|(rank, err, length)| Step::Read(rank, err, length)),
        (1..8_usize).prop_map(Step::Back),
    ];
    proptest::collection::vec(one, 1..200)
}

fn channel(err: bool) -> Channel {
    if err { Channel::Stderr } else { Channel::Stdout }
}

/// The reader's side of one stream.
#[derive(Default)]
struct Tape {
    written: Vec<u8>,
    read: Vec<u8>,
    unread: usize,
    ended: bool,
}

fn take(tapes: &mut BTreeMap<StreamId, Tape>, received: Vec<Received>) {
    for received in received {
        match received {
            Received::Data(id, data) => {
                let tape = tapes.entry(id).or_default();
                assert!(!tape.ended);
                tape.read.extend(&data);
                tape.unread += data.len();
            }
            Received::End(id) => tapes.entry(id).or_default().ended = true,
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_reordered_or_unbounded(steps in steps()) {
        let window = 20_000;
        let (mut near, mut far) = (Mux::new(0..3, window), Mux::new(0..3, window));
        let mut tapes: BTreeMap<StreamId, Tape> = BTreeMap::new();
        let mut next = 0_u8;
        for step in steps {
            match step {
                Step::Write(rank, err, length) => {
                    let id = stream(rank, channel(err));
                    let length = length.min(near.room(id));
                    let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_mul(31).wrapping_add(7); next }).collect();
                    near.queue(id, &bytes);
                    tapes.entry(id).or_default().written.extend(bytes);
                }
                Step::Carry(most) => { let got = carry(&mut near, &mut far, most); take(&mut tapes, got); }
                Step::Read(rank, err, length) => {
                    let id = stream(rank, channel(err));
                    let tape = tapes.entry(id).or_default();
                    let length = length.min(tape.unread);
                    tape.unread -= length;
                    far.consumed(id, length);
                }
                Step::Back(most) => { carry(&mut far, &mut near, most); }
            }
            prop_assert!(near.waiting() <= 6 * window as usize);
            for tape in tapes.values() {
                prop_assert!(tape.unread <= window as usize);
            }
        }
        for id in tapes.keys() { near.end(*id); }
        // Whoever reads on gets the rest.
        while !near.is_flushed() {
            let got = carry(&mut near, &mut far, 100);
            take(&mut tapes, got);
            for (id, tape) in &mut tapes { far.consumed(*id, std::mem::take(&mut tape.unread)); }
            carry(&mut far, &mut near, 100);
        }
        for tape in tapes.values() {
            prop_assert!(tape.ended && tape.read == tape.written);
        }
        prop_assert!(near.is_flushed());
    }

    #[test]
    fn a_frame_is_read_back_and_garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert!(Frame::is_one(&bytes));
            prop_assert_eq!(&frame.encode()[4..], &bytes[..]);
        }
    }

    #[test]
    fn whatever_a_peer_sends_is_bounded(kinds in proptest::collection::vec((1..5_u8, 0..4_u32, 0..4_u8, 0..30_000_u32), 0..100)) {
        let mut mux = Mux::new(0..3, 10_000);
        let mut got = 0;
        for (kind, rank, channel, number) in kinds {
            let mut body = vec![kind, 0, 0, 0, 0];
            body.extend(rank.to_be_bytes());
            body.push(channel);
            match kind {
                1 => body.extend(vec![0; number as usize]),
                3 => body.extend(number.to_be_bytes()),
                _ => {}
            }
            let Ok(frame) = Frame::decode(&body) else { continue };
            match mux.handle(frame.kind) {
                Ok(Some(Received::Data(_, data))) => got += data.len(),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // Three ranks, three channels, a window each, and nothing was read.
        prop_assert!(got <= 9 * 10_000);
    }
}

#[test]
fn a_stream_that_nobody_reads_stops_nobody() {
    let (mut near, mut far) = (Mux::new(0..2, 64_000), Mux::new(0..2, 64_000));
    let (stalled, quick) = (stream(0, Channel::Stdout), stream(1, Channel::Stdout));
    let mut through = 0;
    for _ in 0..1000 {
        near.queue(stalled, &vec![1; near.room(stalled)]);
        near.queue(quick, &vec![2; near.room(quick)]);
        for received in carry(&mut near, &mut far, 100) {
            if let Received::Data(id, data) = received
                && id == quick
            {
                through += data.len();
                far.consumed(quick, data.len());
            }
        }
        carry(&mut far, &mut near, 100);
    }
    assert!(through > 30_000_000, "{through}");
    assert_eq!(near.waiting(), 2 * 64_000 - near.room(quick));
}

#[test]
fn those_that_can_send_take_turns_behind_control() {
    let mut mux = Mux::new(0..3, 100_000);
    for rank in 0..3 {
        mux.queue(stream(rank, Channel::Stdout), &[0; 50_000]);
    }
    mux.control(Bytes::from_static(b"{}"));
    assert!(matches!(mux.poll_frame(), Some(Kind::Control(_))));
    let turns: Vec<u32> = (0..6)
        .filter_map(|_| match mux.poll_frame() {
            Some(Kind::Data(id, _)) => Some(id.rank),
            _ => None,
        })
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn who_breaks_the_rules_is_known() {
    let id = stream(0, Channel::Stdin);
    let data = |length| Kind::Data(id, Bytes::from(vec![0; length]));
    let mut mux = Mux::new(0..1, 1000);
    assert_eq!(mux.handle(data(1001)), Err(Overrun::Data));
    assert_eq!(mux.handle(Kind::Credit(id, 1)), Err(Overrun::Credit));
    let other = stream(1, Channel::Stdin);
    assert_eq!(mux.handle(Kind::End(other)), Err(Overrun::Rank));
    assert!(mux.handle(Kind::End(id)).is_ok());
    assert_eq!(mux.handle(data(1)), Err(Overrun::AfterEnd));
}

#[test]
fn a_stopped_stream_is_dropped_on_both_sides() {
    let (mut near, mut far) = (Mux::new(0..1, 1000), Mux::new(0..1, 1000));
    let id = stream(0, Channel::Stdout);
    near.queue(id, &[0; 500]);
    far.stop(id);
    assert_eq!(carry(&mut far, &mut near, 9), [Received::Stop(id)]);
    assert_eq!((near.room(id), near.waiting(), near.is_flushed()), (0, 0, true));
    near.queue(id, b"more");
    assert_eq!(near.poll_frame(), None);
    near.end(id);
    assert_eq!(carry(&mut near, &mut far, 9), [Received::End(id)]);
}

#[test]
fn windows_shrink_with_the_number_of_ranks() {
    assert_eq!(window(0), LARGEST_WINDOW);
    assert_eq!(window(1), LARGEST_WINDOW);
    assert_eq!(window(1000), BUDGET / 1000);
    assert_eq!(window(10_000), SMALLEST_WINDOW);
}
