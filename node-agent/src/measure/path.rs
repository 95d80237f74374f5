//! One way to another machine, measured over an open connection: which probe is next, and what the answers mean. No
//! socket, no clock. Bounded in bytes by the protocol's limits and in time by the constants here.

use std::collections::VecDeque;
use std::time::Duration;

use cid_protocol::measure::{Answer, Filler, MAX_BURST, Path, Probe};

/// Echoes, one after the other.
const ECHOES: usize = 20;
/// No more of them are begun after this long once there are [`FEW`].
const ECHO_TIME: Duration = Duration::from_millis(100);
/// So many make a median.
const FEW: usize = 3;
/// The end of the echoes, whatever came.
const ECHO_BOUND: Duration = Duration::from_millis(1_000);
/// How long a turn at the bandwidth may be waited for; the head says no long before, unless its word is lost and repeated.
const TURN_BOUND: Duration = Duration::from_millis(300);
/// For the bursts of one direction.
const BURSTS_BOUND: Duration = Duration::from_millis(130);
/// A burst that took this long is long enough to count; no longer one follows.
const LONG: Duration = Duration::from_millis(30);
/// Linux sends a lost segment again after 200 ms (`TCP_RTO_MIN`) when nothing that follows shows it missing: an echo that came
/// so late, or a first burst that is overdue, says that the line loses.
const REPEAT: Duration = Duration::from_millis(150);
/// For the bursts of one direction over such a line, ...
const LOSSY_BOUND: Duration = Duration::from_millis(400);
/// ... and what they are to move: about 110 segments, for the kernels' counts to say how much it loses.
const LOSSY_BYTES: u32 = 160 * 1024;
const FIRST_BURST: u32 = 16 * 1024;
/// Each burst is so much longer than the one before.
const GROWTH: u32 = 4;
/// Bursts this short of the round-trip time say nothing of the bandwidth.
const FAR: Duration = Duration::from_millis(20);

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The head: filler goes both ways.
    Head,
    /// Another node, which has its own work to do: it gives a little filler and takes none.
    Peer,
}

impl To {
    /// Longest burst in bytes. All bursts to a peer are within [`cid_protocol::measure::MAX_PEER_BULK`].
    fn longest(self) -> u32 {
        match self {
            Self::Head => MAX_BURST,
            Self::Peer => MAX_BURST / 4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToNode,
    FromNode,
}

#[derive(Debug)]
enum State {
    Echoing {
        number: u32,
        sent: Duration,
    },
    Waiting {
        until: Duration,
    },
    Bursting {
        direction: Direction,
        bytes: u32,
        sent: Duration,
        until: Duration,
    },
    Over,
}

/// Measures one way.
#[derive(Debug)]
pub(crate) struct Prober {
    began: Duration,
    state: State,
    times: Vec<Duration>,
    /// Best rate of each direction so far, kbit/s.
    to_node: Option<u32>,
    from_node: Option<u32>,
    skipped: &'static str,
    /// The line loses segments, it seems.
    lossy: bool,
    to: To,
    /// In this direction so far.
    moved: u32,
    outputs: VecDeque<Probe>,
    /// Filler still to be sent, behind `outputs`.
    filler: u32,
}

impl Prober {
    /// Begins with the first echo.
    pub(crate) fn new(now: Duration, to: To) -> Self {
        let mut prober = Self {
            began: now,
            state: State::Over,
            times: Vec::new(),
            to_node: None,
            from_node: None,
            skipped: "",
            lossy: false,
            to,
            moved: 0,
            outputs: VecDeque::new(),
            filler: 0,
        };
        prober.echo(now, 0);
        prober
    }

    /// The next thing to send.
    pub(crate) fn poll_output(&mut self) -> Option<Probe> {
        if let Some(probe) = self.outputs.pop_front() {
            return Some(probe);
        }
        if self.filler == 0 {
            return None;
        }
        let filler = Filler::of(self.filler);
        self.filler -= u32::try_from(filler.text.len()).unwrap_or(self.filler);
        Some(Probe::Filler(filler))
    }

    /// When it has waited long enough; `None` when it is done.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match self.state {
            State::Echoing { .. } => Some(self.began + ECHO_BOUND),
            State::Waiting { until } | State::Bursting { until, .. } => Some(until),
            State::Over => None,
        }
    }

    /// The other side answered; what is not due is passed over.
    pub(crate) fn handle_answer(&mut self, now: Duration, answer: &Answer) {
        match (&self.state, answer) {
            (State::Echoing { number, sent }, Answer::Echo { number: told }) if number == told => {
                let next = number + 1;
                self.times.push(now.saturating_sub(*sent));
                let late = now >= self.began + ECHO_TIME && self.times.len() >= FEW;
                if late || self.times.len() >= ECHOES {
                    self.ask(now);
                } else {
                    self.echo(now, next);
                }
            }
            (State::Waiting { .. }, Answer::Turn { granted: true }) => {
                let floor = self.floor();
                self.lossy = self.times.iter().any(|time| *time >= floor + REPEAT);
                self.direct(now, Direction::ToNode);
            }
            (State::Waiting { .. }, Answer::Turn { granted: false }) => self.skip("others were measuring"),
            (State::Bursting { direction, .. }, Answer::Filler(filler))
                if *direction == Direction::ToNode && filler.last =>
            {
                self.take_burst(now);
            }
            (State::Bursting { direction, .. }, Answer::Took { .. }) if *direction == Direction::FromNode => {
                self.take_burst(now);
            }
            _ => {}
        }
    }

    /// Acts on what is due; an early call does nothing.
    pub(crate) fn handle_deadline(&mut self, now: Duration) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.state {
            State::Echoing { .. } => self.skip("too few echoes came back"),
            State::Waiting { .. } => self.skip("no turn was given in time"),
            State::Bursting {
                bytes: FIRST_BURST,
                ref mut until,
                ..
            } if !self.lossy => {
                self.lossy = true;
                *until += LOSSY_BOUND;
            }
            State::Bursting { .. } => self.take_burst(now),
            State::Over => {}
        }
    }

    /// What is known now.
    pub(crate) fn finish(mut self) -> Path {
        self.times.sort_unstable();
        let micros = |time: &Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Path {
            echoes: u32::try_from(self.times.len()).unwrap_or(u32::MAX),
            round_trip_us: self.times.get(self.times.len() / 2).map(micros),
            worst_us: self.times.last().map(micros),
            to_node_kbit: self.to_node,
            from_node_kbit: self.from_node,
            skipped: self.skipped.to_owned(),
            ..Path::default()
        }
    }

    fn echo(&mut self, now: Duration, number: u32) {
        self.outputs.push_back(Probe::Echo { number });
        self.state = State::Echoing { number, sent: now };
    }

    fn ask(&mut self, now: Duration) {
        let floor = self.floor();
        if floor >= FAR {
            return self.skip("the round trip is too long for short bursts");
        }
        self.outputs.push_back(Probe::Ask);
        self.state = State::Waiting {
            until: now + TURN_BOUND,
        };
    }

    fn direct(&mut self, now: Duration, direction: Direction) {
        self.moved = 0;
        let bound = if self.lossy { LOSSY_BOUND } else { BURSTS_BOUND };
        self.burst(now, direction, FIRST_BURST, now + bound);
    }

    fn burst(&mut self, now: Duration, direction: Direction, bytes: u32, until: Duration) {
        match direction {
            Direction::ToNode => self.outputs.push_back(Probe::Give { bytes }),
            Direction::FromNode => self.filler = bytes,
        }
        self.state = State::Bursting {
            direction,
            bytes,
            sent: now,
            until,
        };
    }

    /// A burst has come, or its time is over: then it would have taken longer still, and the figure is too good.
    fn take_burst(&mut self, now: Duration) {
        let State::Bursting {
            direction,
            bytes,
            sent,
            until,
        } = self.state
        else {
            return;
        };
        // Only from the first byte's leaving to the last one's coming; the question or the receipt went the other way.
        let whole = now.saturating_sub(sent);
        let time = whole
            .saturating_sub(self.floor())
            .max(whole / 2)
            .max(Duration::from_micros(1));
        let kbit = u128::from(bytes) * 8_000 / time.as_micros();
        let kbit = u32::try_from(kbit).unwrap_or(u32::MAX);
        let best = match direction {
            Direction::ToNode => &mut self.to_node,
            Direction::FromNode => &mut self.from_node,
        };
        let late = now >= until;
        // One that was cut off must not beat one that came whole.
        if !late || best.is_none() {
            *best = Some(best.unwrap_or(0).max(kbit));
        }
        self.moved += bytes;
        let longer = bytes * GROWTH;
        // The next one takes about so much longer.
        let fits = now + whole * GROWTH <= until;
        match direction {
            _ if !late && whole < LONG && longer <= self.to.longest() && fits => {
                self.burst(now, direction, longer, until);
            }
            _ if !late && self.lossy && self.moved < LOSSY_BYTES => {
                self.burst(now, direction, FIRST_BURST * GROWTH, until);
            }
            Direction::ToNode if !late && self.to == To::Head => self.direct(now, Direction::FromNode),
            // A node that waited in vain sends nothing behind what is still on its way.
            Direction::ToNode | Direction::FromNode => self.done(),
        }
    }

    fn skip(&mut self, why: &'static str) {
        self.skipped = why;
        self.done();
    }

    fn done(&mut self) {
        self.outputs.push_back(Probe::Done);
        self.filler = 0;
        self.state = State::Over;
    }

    /// The shortest round trip seen.
    fn floor(&self) -> Duration {
        self.times.iter().min().copied().unwrap_or_default()
    }
}
