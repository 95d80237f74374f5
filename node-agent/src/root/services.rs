//! Services of a root: when each is started and started again. A core: no process, no clock.

use std::time::Duration;

use cid_protocol::services::{Restart, Service};

/// Before a service is started again; doubles with each end that came too soon, ...
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// ... up to this.
const LAST_DELAY: Duration = Duration::from_secs(60);
/// A service that ran this long ended for a new reason.
const HEALTHY: Duration = Duration::from_secs(60);
/// Services of one root. What an image lists beyond them is left out, and said.
pub(crate) const MAX_SERVICES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Duration },
    Running { since: Duration },
    Over,
}

#[derive(Debug)]
struct Entry {
    service: Service,
    state: State,
    delay: Duration,
}

/// All services of a root.
#[derive(Debug, Default)]
pub(crate) struct Services {
    entries: Vec<Entry>,
}

/// How a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Status 0.
    Well,
    /// Another status, a signal, or it did not start.
    Badly,
}

impl Services {
    /// All of them start at once.
    pub(crate) fn new(now: Duration, services: Vec<Service>) -> Self {
        let entry = |service| Entry {
            service,
            state: State::Waiting { until: now },
            delay: FIRST_DELAY,
        };
        Self {
            entries: services.into_iter().take(MAX_SERVICES).map(entry).collect(),
        }
    }

    /// A service that is to be started now; it counts as running from now on.
    pub(crate) fn poll_start(&mut self, now: Duration) -> Option<Service> {
        let due = |entry: &&mut Entry| matches!(entry.state, State::Waiting { until } if now >= until);
        let entry = self.entries.iter_mut().find(due)?;
        entry.state = State::Running { since: now };
        Some(entry.service.clone())
    }

    /// A service ended. Returns after how long it is started again, if it is.
    pub(crate) fn handle_end(&mut self, now: Duration, name: &str, end: End) -> Option<Duration> {
        let entry = self.entries.iter_mut().find(|entry| entry.service.name == name)?;
        let State::Running { since } = entry.state else {
            return None;
        };
        let again = match entry.service.restart {
            Restart::Always => true,
            Restart::OnFailure => end == End::Badly,
            Restart::Never => false,
        };
        if !again {
            entry.state = State::Over;
            return None;
        }
        if now >= since + HEALTHY {
            entry.delay = FIRST_DELAY;
        }
        let delay = entry.delay;
        entry.delay = (delay * 2).min(LAST_DELAY);
        entry.state = State::Waiting { until: now + delay };
        Some(delay)
    }

    /// When [`Self::poll_start`] has something.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let waiting = self.entries.iter().filter_map(|entry| match entry.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } | State::Over => None,
        });
        waiting.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn service(restart: Restart) -> Services {
        let service = Service {
            name: "sshd".into(),
            command: vec!["/usr/sbin/sshd".into(), "-D".into()],
            user: "root".into(),
            restart,
            environment: std::collections::BTreeMap::new(),
        };
        let mut services = Services::new(at(0), vec![service]);
        assert!(services.poll_start(at(0)).is_some());
        assert!(services.poll_start(at(0)).is_none());
        assert_eq!(services.next_deadline(), None);
        services
    }

    #[test]
    fn a_service_that_falls_over_is_started_again_ever_more_seldom() {
        let mut services = service(Restart::Always);
        let mut now = at(1);
        for wanted in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(services.handle_end(now, "sshd", End::Badly), Some(at(wanted)));
            // Told twice, counted once.
            assert_eq!(services.handle_end(now, "sshd", End::Badly), None);
            assert!(services.poll_start(now).is_none());
            now += at(wanted);
            assert_eq!(services.next_deadline(), Some(now));
            assert!(services.poll_start(now).is_some());
        }
        // It held: a new count.
        assert_eq!(
            services.handle_end(now + HEALTHY, "sshd", End::Well),
            Some(FIRST_DELAY)
        );
    }

    #[test]
    fn the_recipe_says_when_a_service_stays_down() {
        for (restart, end, again) in [
            (Restart::Always, End::Well, true),
            (Restart::OnFailure, End::Well, false),
            (Restart::OnFailure, End::Badly, true),
            (Restart::Never, End::Badly, false),
        ] {
            let mut services = service(restart);
            assert_eq!(
                services.handle_end(at(5), "sshd", end).is_some(),
                again,
                "{restart:?} {end:?}"
            );
            assert_eq!(services.next_deadline().is_some(), again);
        }
        assert_eq!(
            service(Restart::Always).handle_end(at(1), "munged", End::Badly),
            None
        );
    }
}
