//! What users are told when a node comes and goes: a wire that flaps must not make the history flap. A state machine
//! per node; must never delay the first news of a death.

use core::time::Duration;

use crate::history::State;
use crate::wire::Liveness;

/// A doubt that lasts this long is shown as [`State::Suspect`].
pub const SUSPECT_SHOWN_AFTER: Duration = Duration::from_millis(1_500);
/// A node that was shown as suspect or lost must answer for this long before it is up again; doubled with each
/// flap.
pub const HOLD: Duration = Duration::from_secs(5);
/// A flapping node must be silent this long to be lost.
pub const FLAPPING_LOST_AFTER: Duration = Duration::from_secs(10);
/// After this long without a flap one is forgiven.
pub const FORGIVE: Duration = Duration::from_secs(60);
/// Reason of a node that told its peers that it goes, and nothing else.
pub const SAID_SO: &str = "said so";
/// More flaps do not lengthen the hold: 80 seconds.
const MAX_FLAPS: u32 = 5;

/// How often and since when a node answers or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    liveness: Liveness,
    since: Duration,
    /// Since when it has not been [`Liveness::Alive`], whatever it was instead.
    away_since: Duration,
    flaps: u32,
    flapped: Duration,
}

impl Pulse {
    /// A node that answers.
    pub fn new(now: Duration) -> Self {
        Self {
            liveness: Liveness::Alive,
            since: now,
            away_since: now,
            flaps: 0,
            flapped: now,
        }
    }

    /// What its peers say now.
    pub fn handle(&mut self, now: Duration, liveness: Liveness) {
        if liveness == self.liveness {
            return;
        }
        if self.liveness == Liveness::Alive {
            self.flaps = (self.flaps(now) + 1).min(MAX_FLAPS);
            self.flapped = now;
            self.away_since = now;
        }
        self.liveness = liveness;
        self.since = now;
    }

    /// Flaps that are not forgiven.
    pub fn flaps(&self, now: Duration) -> u32 {
        let forgiven = now.saturating_sub(self.flapped).as_secs() / FORGIVE.as_secs();
        self.flaps
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// The state to be shown next and when, given the one that is shown; `None` while they agree.
    pub fn due(&self, now: Duration, shown: State) -> Option<(Duration, State, &'static str)> {
        let flaps = self.flaps(now).max(1);
        let flapping = flaps > 1;
        match (self.liveness, shown) {
            (Liveness::Dead, State::Joining | State::Up | State::Draining | State::Suspect) if !flapping => {
                Some((self.since, State::Lost, "silent"))
            }
            (Liveness::Dead, State::Suspect) => Some((
                self.since.max(self.away_since + FLAPPING_LOST_AFTER),
                State::Lost,
                "silent after flapping",
            )),
            (Liveness::Suspect | Liveness::Dead, State::Joining | State::Up | State::Draining) => {
                let why = if flapping {
                    "comes and goes"
                } else {
                    "does not answer its peers"
                };
                Some((self.away_since + SUSPECT_SHOWN_AFTER, State::Suspect, why))
            }
            (Liveness::Alive, State::Suspect | State::Lost) => {
                let hold = HOLD * (1 << (flaps - 1));
                Some((self.since + hold, State::Up, "answers again"))
            }
            (Liveness::Left, State::Joining | State::Up | State::Draining | State::Suspect) => {
                Some((self.since, State::GoingHome, SAID_SO))
            }
            _ => None,
        }
    }
}
