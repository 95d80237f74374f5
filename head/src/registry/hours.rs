//! What opening hours do to machines. Must not hold anybody: outside the hours it is the policy that sends a PC home, so
//! nothing needs to be undone when they begin.

use std::time::Duration;

use cid_bootserver::policy;
use cid_protocol::api::NodeState;
use jiff::{SignedDuration, Timestamp};

use super::{Now, Registry};
use crate::config::Group;
use crate::hours::{State, for_people};
use crate::mac::Mac;

/// What a boot takes; one that begins later than this and `patience` before closing would only turn round.
const BOOT_TIME: Duration = Duration::from_secs(300);

impl Registry {
    /// Whether a boot of `group` may begin now. Of a group that is not in head.toml the policy says more.
    pub fn hours(&self, now: Now, group: &str) -> policy::Hours {
        let Some(group) = self.groups.get(group) else {
            return policy::Hours::Never;
        };
        if group.hours.is_never() {
            return policy::Hours::Never;
        }
        let opens = |at: Option<Timestamp>| policy::Hours::Closed {
            opens: at.map(|at| for_people(&self.zone, at)),
        };
        match self.state(now, group) {
            State::Closed { opens: at } => opens(at),
            State::Open { until: Some(until) } if until < later(moment(now), group.patience + BOOT_TIME) => {
                opens(group.hours.state(&self.zone, until).changes())
            }
            State::Open { .. } => policy::Hours::Open,
        }
    }

    /// Sends home whoever is up outside its hours. Call it every second; a second call finds nobody.
    pub fn handle_closing(&mut self, now: Now) {
        let closed: Vec<&str> = self
            .groups
            .iter()
            .filter(|(_, group)| !group.hours.is_open(&self.zone, moment(now)))
            .map(|(name, _)| name.as_str())
            .collect();
        if closed.is_empty() {
            return;
        }
        let up = self.machines.values().filter(|machine| {
            let group = self.group_of(&machine.record).map(|(name, _)| name);
            machine.record.state == NodeState::Up && group.is_some_and(|group| closed.contains(&group))
        });
        let macs: Vec<Mac> = up.map(|machine| machine.record.mac).collect();
        for mac in macs {
            self.send_home(now, mac, "closing", "its group's hours have ended".to_owned());
        }
    }

    /// Until when `group` computes, for the PC's screen: the time of day, `Mon 06:30` when it is more than a day away, or nothing.
    pub(super) fn open_until(&self, now: Now, group: &str) -> String {
        let state = self.groups.get(group).map(|group| self.state(now, group));
        let Some(State::Open { until: Some(until) }) = state else {
            return String::new();
        };
        let text = for_people(&self.zone, until);
        let far = until > later(moment(now), Duration::from_secs(24 * 3600));
        let (day, time) = (
            text.get(..3).unwrap_or_default(),
            text.get(15..).unwrap_or_default(),
        );
        if far {
            format!("{day} {time}")
        } else {
            time.to_owned()
        }
    }

    fn state(&self, now: Now, group: &Group) -> State {
        group.hours.state(&self.zone, moment(now))
    }
}

fn moment(now: Now) -> Timestamp {
    let milliseconds = i64::try_from(now.unix_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}
