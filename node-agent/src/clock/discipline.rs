//! Decides from measured offsets what is done to the clock. No clock, no socket: `now` is an argument, corrections are
//! results.
//!
//! A burst after the join, of which the sample with the shortest round trip counts (the rest of its error is at most
//! half of that); then one sample every 16 s while the kernel learns how fast the oscillator runs, then every 64 s
//! (RFC 5905, section 10 and 13, in small: one server, one hop).

use std::collections::VecDeque;
use std::time::Duration;

/// Samples of a burst, and the time between them.
const BURST: usize = 4;
const BURST_SPACING: Duration = Duration::from_millis(200);
/// Behind the join nothing depends on the clock yet: it is set when it is off by more.
const FIRST_STEP_US: u64 = 2_000;
/// Later it is slewed up to this much (the step threshold of RFC 5905).
const STEP_US: u64 = 128_000;
/// Between samples at first, and how many of those.
const SHORT_POLL: Duration = Duration::from_secs(16);
const SHORT_POLLS: u32 = 8;
/// Between samples afterwards.
const LONG_POLL: Duration = Duration::from_secs(64);
/// No answer for this long: the question is lost.
const ANSWER_BOUND: Duration = Duration::from_secs(5);
/// Round trips that are remembered to tell a long one.
const REMEMBERED: usize = 8;

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// By how much the head's clock is ahead of this one, in microseconds.
    pub(crate) ahead_us: i64,
    /// Round trip without the head's part of it, in microseconds; the error of `ahead_us` is at most half of it.
    pub(crate) round_trip_us: u64,
}

/// What to do to the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Correction {
    /// Set it on by so many microseconds.
    Step(i64),
    /// Let the kernel work it off.
    Slew {
        /// In microseconds.
        ahead_us: i64,
        /// As the kernel's loop wants it: logarithm to base 2 of the seconds between samples, less 4.
        constant: u8,
    },
}

/// The samples and what comes next.
#[derive(Debug, Default)]
pub(crate) struct Discipline {
    burst: Vec<Sample>,
    bursting: bool,
    round_trips: VecDeque<u64>,
    polls: u32,
    ask_at: Option<Duration>,
    asked_at: Option<Duration>,
}

impl Discipline {
    /// The head welcomed this node: its time can be asked for.
    pub(crate) fn handle_up(&mut self, now: Duration) {
        *self = Self {
            bursting: true,
            // Not at once: the clock may be about to be set roughly.
            ask_at: Some(now + BURST_SPACING),
            ..Self::default()
        };
    }

    /// When [`Self::asks`] is to be called.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.ask_at
    }

    /// Whether the head is to be asked now.
    pub(crate) fn asks(&mut self, now: Duration) -> bool {
        if self.ask_at.is_none_or(|at| now < at) {
            return false;
        }
        self.asked_at = Some(now);
        self.ask_at = Some(now + ANSWER_BOUND);
        true
    }

    /// An answer came.
    pub(crate) fn handle_sample(&mut self, now: Duration, sample: Sample) -> Option<Correction> {
        self.asked_at.take()?;
        if self.bursting {
            return self.handle_burst(now, sample);
        }
        let usual = self.round_trips.iter().copied().min();
        if self.round_trips.len() == REMEMBERED {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(sample.round_trip_us);
        self.polls += 1;
        let short = self.polls < SHORT_POLLS;
        self.ask_at = Some(now + if short { SHORT_POLL } else { LONG_POLL });
        // A long round trip says little; but when all are long, that is what the network is like now.
        if usual.is_some_and(|usual| sample.round_trip_us > 3 * usual + 1_000) {
            return None;
        }
        Some(self.correction(sample, STEP_US))
    }

    fn handle_burst(&mut self, now: Duration, sample: Sample) -> Option<Correction> {
        self.burst.push(sample);
        if self.burst.len() < BURST {
            self.ask_at = Some(now + BURST_SPACING);
            return None;
        }
        let best = std::mem::take(&mut self.burst)
            .into_iter()
            .min_by_key(|sample| sample.round_trip_us)?;
        let correction = self.correction(best, FIRST_STEP_US);
        // A step is looked at again, by another burst.
        self.bursting = matches!(correction, Correction::Step(_));
        self.round_trips.push_back(best.round_trip_us);
        self.ask_at = Some(now + if self.bursting { BURST_SPACING } else { SHORT_POLL });
        Some(correction)
    }

    fn correction(&mut self, sample: Sample, step_above: u64) -> Correction {
        if sample.ahead_us.unsigned_abs() > step_above.max(sample.round_trip_us) {
            return Correction::Step(sample.ahead_us);
        }
        Correction::Slew {
            ahead_us: sample.ahead_us,
            constant: if self.polls < SHORT_POLLS { 0 } else { 2 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ahead_us: i64, round_trip_us: u64) -> Sample {
        Sample {
            ahead_us,
            round_trip_us,
        }
    }

    /// Answers the next question at its time.
    fn answer(discipline: &mut Discipline, now: &mut Duration, sample: Sample) -> Option<Correction> {
        *now = discipline.next_deadline().expect("a question is planned");
        assert!(discipline.asks(*now));
        discipline.handle_sample(*now, sample)
    }

    #[test]
    fn the_shortest_round_trip_of_a_burst_sets_the_clock_and_a_second_burst_looks_again() {
        let (mut discipline, mut now) = (Discipline::default(), Duration::from_secs(7));
        discipline.handle_up(now);
        for round_trip in [900, 400, 700] {
            let ahead = 3_600_000_000 + round_trip;
            assert_eq!(
                answer(
                    &mut discipline,
                    &mut now,
                    sample(ahead, ahead.unsigned_abs() - 3_600_000_000)
                ),
                None
            );
        }
        let step = answer(&mut discipline, &mut now, sample(3_600_000_600, 600));
        assert_eq!(step, Some(Correction::Step(3_600_000_400)));
        for _ in 0..3 {
            assert_eq!(answer(&mut discipline, &mut now, sample(30, 400)), None);
        }
        let slew = Correction::Slew {
            ahead_us: 30,
            constant: 0,
        };
        assert_eq!(answer(&mut discipline, &mut now, sample(30, 400)), Some(slew));
        assert!(now < Duration::from_secs(10), "done in two seconds: {now:?}");
    }

    #[test]
    fn polls_grow_longer_and_a_slow_answer_moves_nothing() {
        let (mut discipline, mut now) = (Discipline::default(), Duration::ZERO);
        discipline.handle_up(now);
        for _ in 0..BURST {
            answer(&mut discipline, &mut now, sample(10, 300));
        }
        let before = now;
        assert_eq!(answer(&mut discipline, &mut now, sample(40_000, 90_000)), None);
        assert_eq!(now - before, SHORT_POLL);
        for _ in 0..SHORT_POLLS {
            assert!(answer(&mut discipline, &mut now, sample(10, 300)).is_some());
        }
        let before = now;
        assert_eq!(
            answer(&mut discipline, &mut now, sample(10, 300)),
            Some(Correction::Slew {
                ahead_us: 10,
                constant: 2
            })
        );
        assert_eq!(now - before, LONG_POLL);
        // Somebody set the head's clock.
        let step = answer(&mut discipline, &mut now, sample(-400_000, 300));
        assert_eq!(step, Some(Correction::Step(-400_000)));
    }

    #[test]
    fn a_network_that_became_slow_counts_as_the_usual_one_in_the_end() {
        let (mut discipline, mut now) = (Discipline::default(), Duration::ZERO);
        discipline.handle_up(now);
        for _ in 0..BURST {
            answer(&mut discipline, &mut now, sample(0, 100));
        }
        let taken = (0..20).position(|_| answer(&mut discipline, &mut now, sample(50, 20_000)).is_some());
        assert_eq!(taken, Some(REMEMBERED));
    }

    #[test]
    fn a_lost_question_is_asked_again_and_nothing_is_asked_without_a_head() {
        let mut discipline = Discipline::default();
        discipline.handle_up(Duration::ZERO);
        assert!(!discipline.asks(Duration::ZERO));
        assert!(discipline.asks(BURST_SPACING));
        assert!(!discipline.asks(Duration::from_secs(1)));
        assert!(discipline.asks(BURST_SPACING + ANSWER_BOUND));
        let mut unasked = Discipline::default();
        assert_eq!(unasked.next_deadline(), None);
        assert_eq!(
            unasked.handle_sample(ANSWER_BOUND, sample(5, 5)),
            None,
            "nobody asked"
        );
    }
}
