//! How long each stage of a PC's night took: from the head's events, the power switch, and the verdict of its Windows.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use cid_protocol::api::Event;

/// Moments of one PC's night, as Unix time in milliseconds where they are known.
#[derive(Debug, Clone)]
pub struct Stages {
    power_on: SystemTime,
    asked: Option<u64>,
    script: Option<u64>,
    up: Option<u64>,
    released: Option<u64>,
    asked_again: Option<u64>,
    /// When its Windows was started.
    pub windows: Option<SystemTime>,
}

impl Stages {
    /// Of a night that began with this power-on.
    #[must_use]
    pub fn new(power_on: SystemTime) -> Self {
        Self {
            power_on,
            asked: None,
            script: None,
            up: None,
            released: None,
            asked_again: None,
            windows: None,
        }
    }

    /// Takes the moments from the head's events about this MAC.
    pub fn read_events(&mut self, events: &[Event], mac: &str) {
        let start = millis(self.power_on);
        let own: Vec<&Event> = events
            .iter()
            .filter(|event| event.mac == mac && event.time_unix_ms >= start)
            .collect();
        let first = |after: u64, test: &dyn Fn(&Event) -> bool| {
            own.iter()
                .find(|event| event.time_unix_ms >= after && test(event))
                .map(|event| event.time_unix_ms)
        };
        let state = |word: &str| {
            let middle = format!(" is {word}: ");
            move |event: &Event| event.kind == "state" && event.text.contains(&middle)
        };
        self.asked = first(start, &|event| event.kind == "decision");
        self.script = first(start, &state("booting"));
        self.up = first(start, &state("up"));
        self.released = first(start, &|event| event.kind == "released");
        self.asked_again = self
            .released
            .and_then(|released| first(released, &|event| event.kind == "decision"));
    }

    /// A table for people, in seconds.
    #[must_use]
    pub fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a Self)>) -> String {
        let mut table = "seconds from one stage to the next\n\
            PC     power-on>asks  >script  >up    | release>asks  >Windows | power-on>up  release>Windows\n"
            .to_owned();
        for (name, this) in rows {
            let start = Some(millis(this.power_on));
            let windows = this.windows.map(millis);
            let _ = writeln!(
                table,
                "{name:<6} {:>13}  {:>7}  {:>5}  | {:>12}  {:>8} | {:>11}  {:>15}",
                between(start, this.asked),
                between(this.asked, this.script),
                between(this.script, this.up),
                between(this.released, this.asked_again),
                between(this.asked_again, windows),
                between(start, this.up),
                between(this.released, windows),
            );
        }
        table
    }
}

fn between(from: Option<u64>, to: Option<u64>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => {
            let tenths = (to.saturating_sub(from) + 50) / 100;
            format!("{}.{}", tenths / 10, tenths % 10)
        }
        _ => "?".to_owned(),
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_come_from_the_events_of_this_night_and_this_pc() {
        let event = |seconds: u64, mac: &str, kind: &str, text: &str| Event {
            seq: seconds,
            time_unix_ms: seconds * 1000,
            mac: mac.into(),
            name: "lab1".into(),
            kind: kind.into(),
            text: text.into(),
        };
        let events = [
            event(5, "a", "decision", "its own disk: not adopted"),
            event(12, "b", "decision", "image minimal"),
            event(13, "a", "decision", "image minimal"),
            event(20, "a", "state", "lab1 is booting: was given a script"),
            event(31, "a", "state", "lab1 is up: joined"),
            event(40, "a", "released", "by somebody"),
            event(52, "a", "decision", "its own disk: released"),
        ];
        let mut stages = Stages::new(UNIX_EPOCH + Duration::from_secs(10));
        stages.windows = Some(UNIX_EPOCH + Duration::from_millis(54_500));
        stages.read_events(&events, "a");
        let row = Stages::table([("pc1", &stages)].into_iter());
        let numbers: Vec<&str> = row
            .lines()
            .last()
            .unwrap()
            .split_whitespace()
            .filter(|word| *word != "|")
            .collect();
        assert_eq!(
            numbers,
            ["pc1", "3.0", "7.0", "11.0", "12.0", "2.5", "21.0", "14.5"]
        );
    }
}
