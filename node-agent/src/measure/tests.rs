//! The prober over ways of known delay and rate, in virtual time.

use std::time::Duration;

use cid_protocol::measure::{Answer, FILLER, Filler, MAX_BULK, MAX_PEER_BULK, Path, Probe};

use super::path::{Prober, To};

/// A way between the prober and one who answers.
struct Way {
    /// There and back.
    round_trip: Duration,
    /// Bits a second, each way.
    rate: u64,
    granted: bool,
    /// Echoes from this one on are not answered.
    silent_from: u32,
    /// This echo, and what comes behind so many bursts, is lost and sent again after 200 ms.
    repeated_echo: u32,
    repeated_bursts: u32,
    to: To,
}

const MS: Duration = Duration::from_millis(1);

impl Default for Way {
    fn default() -> Self {
        Self {
            round_trip: MS / 2,
            rate: 1_000_000_000,
            granted: true,
            silent_from: u32::MAX,
            repeated_echo: u32::MAX,
            repeated_bursts: 0,
            to: To::Head,
        }
    }
}

impl Way {
    fn time_of(&self, bytes: u32) -> Duration {
        Duration::from_nanos(u64::from(bytes) * 8 * 1_000_000_000 / self.rate)
    }

    /// Runs it to its end: what it found, how long it took, and the filler it moved.
    fn walk(&self) -> (Path, Duration, u32) {
        let (mut now, mut bulk, mut taken, mut bursts) = (Duration::ZERO, 0, 0, 0);
        let mut prober = Prober::new(now, self.to);
        // On its way; a deadline does not stop it.
        let mut answer: Option<(Duration, Answer)> = None;
        while let Some(deadline) = prober.next_deadline() {
            while let Some(probe) = prober.poll_output() {
                answer = match probe {
                    Probe::Echo { number } => {
                        let late = if number == self.repeated_echo {
                            200 * MS
                        } else {
                            Duration::ZERO
                        };
                        (number < self.silent_from)
                            .then(|| (now + late + self.round_trip, Answer::Echo { number }))
                    }
                    Probe::Ask => Some((
                        now + self.round_trip,
                        Answer::Turn {
                            granted: self.granted,
                        },
                    )),
                    Probe::Give { bytes } => {
                        bulk += bytes;
                        let last = Filler {
                            text: String::new(),
                            last: true,
                        };
                        bursts += 1;
                        let late = if bursts <= self.repeated_bursts {
                            200 * MS
                        } else {
                            Duration::ZERO
                        };
                        Some((
                            now + late + self.round_trip + self.time_of(bytes),
                            Answer::Filler(last),
                        ))
                    }
                    Probe::Filler(filler) => {
                        let length = u32::try_from(filler.text.len()).unwrap();
                        assert!(length <= FILLER);
                        bulk += length;
                        taken += length;
                        let bytes = taken;
                        filler.last.then(|| {
                            taken = 0;
                            (
                                now + self.round_trip + self.time_of(bytes),
                                Answer::Took { bytes },
                            )
                        })
                    }
                    Probe::Done | Probe::Peers | Probe::Counts => None,
                };
            }
            match answer {
                Some((at, ref coming)) if at < deadline => {
                    now = at;
                    prober.handle_answer(now, coming);
                    answer = None;
                }
                _ => {
                    now = deadline;
                    prober.handle_deadline(now);
                }
            }
        }
        assert_eq!(prober.poll_output(), Some(Probe::Done));
        (prober.finish(), now, bulk)
    }
}

#[test]
fn rates_are_found_within_bounds_of_time_and_bytes() {
    for (rate, bound_ms) in [
        // Too slow for the first burst, or so lossy that it looks like it: the line gets the time in which that shows.
        (100_000, 700),
        (1_000_000, 1_200),
        (10_000_000, 320),
        (100_000_000, 320),
        (1_000_000_000, 150),
        (10_000_000_000, 50),
    ] {
        let way = Way {
            rate,
            ..Way::default()
        };
        let (path, took, bulk) = way.walk();
        assert!(took <= MS * bound_ms, "{rate}: {took:?}");
        assert!(bulk <= 2 * MAX_BULK, "{rate}: {bulk}");
        let found = f64::from(path.to_node_kbit.unwrap()) * 1_000.0 / rate as f64;
        if rate > 1_000_000 {
            assert!((0.8..1.3).contains(&found), "{rate}: {found}");
            let back = f64::from(path.from_node_kbit.unwrap()) * 1_000.0 / rate as f64;
            assert!((0.8..1.3).contains(&back), "{rate}: {back}");
        } else {
            // A burst that was cut off gives a figure that is too good, and still a bad one.
            assert!(path.to_node_kbit.unwrap() < 2_500, "{path:?}");
        }
        assert_eq!((path.echoes, path.round_trip_us), (20, Some(500)));
        assert_eq!(path.skipped, "");
    }
}

#[test]
fn a_long_way_is_told_from_three_echoes_and_its_bandwidth_is_left_alone() {
    let way = Way {
        round_trip: 200 * MS,
        ..Way::default()
    };
    let (path, took, bulk) = way.walk();
    assert_eq!((path.echoes, path.round_trip_us), (3, Some(200_000)));
    assert_eq!(
        (path.skipped.as_str(), bulk),
        ("the round trip is too long for short bursts", 0)
    );
    assert_eq!(took, 600 * MS);
}

#[test]
fn who_gets_no_turn_or_no_answer_goes_on_without() {
    let (path, took, bulk) = Way {
        granted: false,
        ..Way::default()
    }
    .walk();
    assert_eq!((path.skipped.as_str(), bulk), ("others were measuring", 0));
    assert!(took < 20 * MS);
    let (path, took, _) = Way {
        silent_from: 1,
        ..Way::default()
    }
    .walk();
    assert_eq!((path.echoes, took), (1, 1_000 * MS));
    let (path, _, _) = Way {
        silent_from: 0,
        ..Way::default()
    }
    .walk();
    assert_eq!((path.echoes, path.round_trip_us), (0, None));
}

#[test]
fn a_line_that_loses_gets_the_time_and_the_bytes_to_show_it() {
    let echo = Way {
        repeated_echo: 2,
        ..Way::default()
    };
    let bursts = Way {
        repeated_bursts: 2,
        ..Way::default()
    };
    for way in [echo, bursts] {
        let (path, took, bulk) = way.walk();
        // About 50 segments at the least, on the worse of the two.
        assert!(bulk >= 80 * 1024, "{path:?}: {bulk}");
        assert!(took <= 1_100 * MS, "{path:?}: {took:?}");
        assert_eq!(path.skipped, "");
    }
}

#[test]
fn a_peer_gives_little_and_takes_nothing() {
    for repeated_bursts in [0, 2] {
        let way = Way {
            repeated_bursts,
            to: To::Peer,
            ..Way::default()
        };
        let (path, _, bulk) = way.walk();
        assert!(bulk <= MAX_PEER_BULK, "{bulk}");
        assert!(path.to_node_kbit.is_some() && path.from_node_kbit.is_none());
    }
}
