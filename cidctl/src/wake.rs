//! `cidctl wake --wait`: watches who comes. Must not decide what a machine is; that is the head's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cid_protocol::api::{Came, Missing, NodeList, NodeRow, NodeState, WakeReport, WakeRequest};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::{Client, ClientError};
use crate::print::{plain, state};

/// How often the head is asked.
const LOOK: Duration = Duration::from_secs(1);
/// Names in the message of the bar.
const MOST_NAMED: usize = 4;

/// Wakes, waits until all are up or the time is over, and reports.
///
/// # Errors
/// The head refuses, or somebody did not come.
pub(crate) async fn wake_and_wait(client: &Client, nodeset: String, limit: Duration) -> Result<WakeReport> {
    let nodeset = WakeRequest { nodeset };
    let begun = Instant::now();
    let list: NodeList = client.post("/v1/wake", &nodeset).await?;
    let query = [("nodeset", nodeset.nodeset)];
    let mut roll = Roll::new(&list.nodes);
    let mut progress = Progress::new(roll.all());
    progress.tell(roll.look(begun.elapsed(), &list.nodes), &roll);
    while !roll.is_complete() && begun.elapsed() < limit {
        tokio::time::sleep(LOOK.min(limit.saturating_sub(begun.elapsed()))).await;
        match client.get::<NodeList>("/v1/nodes", &query).await {
            Ok(list) => progress.tell(roll.look(begun.elapsed(), &list.nodes), &roll),
            // It is being restarted: PCs boot on meanwhile.
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    progress.end();
    Ok(roll.report(begun.elapsed()))
}

/// Exit status 1 when somebody is missing.
///
/// # Errors
/// Somebody is.
pub(crate) fn verdict(report: &WakeReport) -> Result<()> {
    let all = report.came.len() + report.missing.len();
    match report.missing.len() {
        0 => Ok(()),
        missing => bail!("{missing} of {all} did not come"),
    }
}

/// The report for people.
pub(crate) fn text(report: &WakeReport) -> String {
    let all = report.came.len() + report.missing.len();
    let mut out = format!("{} of {all} came", report.came.len());
    if let Some(last) = report.came.iter().max_by_key(|came| came.after_secs) {
        let _ = write!(
            out,
            ", the last {} after {} s",
            plain(&last.name),
            last.after_secs
        );
    }
    out.push('\n');
    for missing in &report.missing {
        let _ = writeln!(
            out,
            "{} did not come: {}: {}",
            plain(&missing.name),
            state(missing.state),
            plain(&missing.reason)
        );
    }
    out
}

/// Who was called, by MAC, and when they came.
struct Roll {
    called: BTreeMap<String, (Missing, Option<u64>)>,
}

impl Roll {
    fn new(nodes: &[NodeRow]) -> Self {
        let entry = |node: &NodeRow| (node.mac.clone(), (missing(node), None));
        Self {
            called: nodes.iter().map(entry).collect(),
        }
    }

    fn all(&self) -> usize {
        self.called.len()
    }

    fn came(&self) -> usize {
        self.called.values().filter(|(_, came)| came.is_some()).count()
    }

    fn is_complete(&self) -> bool {
        self.came() == self.all()
    }

    /// Takes in what the head says; returns a line for each change. Who was up once has come.
    fn look(&mut self, elapsed: Duration, nodes: &[NodeRow]) -> Vec<String> {
        let mut lines = Vec::new();
        for node in nodes {
            let Some((known, came)) = self.called.get_mut(&node.mac) else {
                continue;
            };
            if came.is_some() {
                continue;
            }
            let seen = missing(node);
            // A node that drains has come, too: its group closes soon, or it was told to take no work.
            if matches!(
                node.state,
                NodeState::Up | NodeState::Suspect | NodeState::Draining
            ) {
                let after_secs = elapsed.as_secs();
                *came = Some(after_secs);
                lines.push(format!("{} is up after {after_secs} s", plain(&node.name)));
            } else if seen.state != known.state || seen.reason != known.reason {
                let (name, reason) = (plain(&node.name), plain(&node.reason));
                lines.push(format!("{name} is {}: {reason}", state(node.state)));
            }
            *known = seen;
        }
        lines
    }

    fn report(&self, elapsed: Duration) -> WakeReport {
        let mut came = Vec::new();
        let mut missing = Vec::new();
        for (row, after) in self.called.values() {
            match after {
                Some(after_secs) => came.push(Came {
                    name: row.name.clone(),
                    mac: row.mac.clone(),
                    after_secs: *after_secs,
                }),
                None => missing.push(row.clone()),
            }
        }
        came.sort_by(|one, other| one.name.cmp(&other.name));
        missing.sort_by(|one, other| one.name.cmp(&other.name));
        WakeReport {
            came,
            missing,
            waited_secs: elapsed.as_secs(),
        }
    }

    /// Some of those that are not up.
    fn awaited(&self) -> String {
        let rows = self.called.values().filter(|(_, came)| came.is_none());
        let mut names: Vec<String> = rows.map(|(row, _)| plain(&row.name)).collect();
        names.sort();
        let more = names.len().saturating_sub(MOST_NAMED);
        names.truncate(MOST_NAMED);
        let mut text = names.join(", ");
        if more > 0 {
            let _ = write!(text, " and {more} more");
        }
        text
    }
}

fn missing(node: &NodeRow) -> Missing {
    Missing {
        name: node.name.clone(),
        mac: node.mac.clone(),
        state: node.state,
        reason: node.reason.clone(),
    }
}

/// A bar on a terminal, lines elsewhere; on standard error in both cases.
enum Progress {
    Bar(ProgressBar),
    Lines,
}

impl Progress {
    fn new(all: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let all = u64::try_from(all).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} up, {elapsed}  {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(LOOK);
        Self::Bar(bar)
    }

    fn tell(&mut self, lines: Vec<String>, roll: &Roll) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(u64::try_from(roll.came()).unwrap_or(u64::MAX));
                bar.set_message(format!("waiting for {}", roll.awaited()));
            }
            Self::Lines => lines.iter().for_each(|line| eprintln!("{line}")),
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `90s`, `10m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write 90s, 10m or 2h");
    let units = [('s', 1), ('m', 60), ('h', 3_600)];
    let found = units
        .iter()
        .find_map(|(unit, secs)| Some((text.strip_suffix(*unit)?, *secs)));
    let (digits, secs) = found.ok_or_else(wrong)?;
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    // A day: whoever waits longer does not look any more.
    let time = count.checked_mul(secs).filter(|secs| (1..=86_400).contains(secs));
    time.map(Duration::from_secs)
        .ok_or_else(|| "from 1s to 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8, state: NodeState, reason: &str) -> NodeRow {
        let row = serde_json::json!({
            "name": format!("lab-a0{number}"), "group": "lab-a", "state": state, "reason": reason, "since_unix": 0,
            "mac": format!("52:54:00:00:00:0{number}"), "cpus": 0, "memory_kib": 0, "last_seen_unix": 0
        });
        serde_json::from_value(row).expect("a row")
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn who_came_and_who_did_not() {
        let woken = [
            node(1, NodeState::Up, "joined"),
            node(2, NodeState::Known, "woken"),
            node(3, NodeState::Known, "woken"),
        ];
        let mut roll = Roll::new(&woken);
        assert_eq!(roll.look(secs(0), &woken), ["lab-a01 is up after 0 s"]);
        assert_eq!(roll.awaited(), "lab-a02, lab-a03");
        let later = [
            node(1, NodeState::GoingHome, "key pressed"),
            node(2, NodeState::Up, "joined"),
            node(3, NodeState::Home, "closed\x1b[2J"),
            node(9, NodeState::Up, "a stranger"),
        ];
        let lines = roll.look(secs(70), &later);
        assert_eq!(lines, ["lab-a02 is up after 70 s", "lab-a03 is home: closed?[2J"]);
        assert_eq!(
            roll.look(secs(71), &later),
            [""; 0],
            "what is known is not told again"
        );
        assert!(!roll.is_complete());
        let report = roll.report(secs(90));
        assert_eq!(
            (report.came.len(), report.missing.len(), report.waited_secs),
            (2, 1, 90)
        );
        assert_eq!(
            text(&report),
            "2 of 3 came, the last lab-a02 after 70 s\nlab-a03 did not come: home: closed?[2J\n"
        );
        let verdict = verdict(&report).map_err(|error| error.to_string());
        assert_eq!(verdict, Err("1 of 3 did not come".to_owned()));
    }

    #[test]
    fn when_all_are_up_it_is_over() {
        let all = [node(1, NodeState::Up, "joined")];
        let mut roll = Roll::new(&all);
        roll.look(secs(3), &all);
        assert!(roll.is_complete() && verdict(&roll.report(secs(3))).is_ok());
    }

    #[test]
    fn times_are_whole_numbers_with_a_unit() {
        assert_eq!(duration("90s"), Ok(secs(90)));
        assert_eq!(duration("10m"), Ok(secs(600)));
        for wrong in ["", "s", "10", "1d", "-1s", "0s", "25h", "1.5h", "é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
