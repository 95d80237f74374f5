//! `cidctl top`: everybody's load, again and again on a terminal, once elsewhere. Must not compute a load of its own.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use cid_protocol::api::{TopList, TopRow};

use crate::client::Client;
use crate::{commands, print};

/// How often a terminal is painted again.
const AGAIN: Duration = Duration::from_secs(2);
/// Cursor to the upper left, and everything behind it erased.
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

pub(crate) async fn run(client: &Client, nodeset: Option<String>, once: bool, json: bool) -> Result<()> {
    let query: Vec<(&str, String)> = nodeset.into_iter().map(|nodeset| ("nodeset", nodeset)).collect();
    let live = !once && !json && std::io::stdout().is_terminal();
    loop {
        let list: TopList = client.get("/v1/top", &query).await?;
        if json {
            return commands::document(&list);
        }
        let text = table(&list.nodes);
        if !live {
            return commands::write(&text);
        }
        commands::write(&format!("{HOME_AND_CLEAR}{text}"))?;
        tokio::time::sleep(AGAIN).await;
    }
}

/// The busiest first, per CPU; then by name.
fn table(nodes: &[TopRow]) -> String {
    let share = |row: &TopRow| {
        row.runnable
            .map_or(-1.0, |runnable| runnable / row.cpus.max(1) as f32)
    };
    let mut rows: Vec<&TopRow> = nodes.iter().collect();
    rows.sort_by(|a, b| share(b).total_cmp(&share(a)).then_with(|| a.name.cmp(&b.name)));
    let header = [
        "NAME", "STATE", "CPUS", "RUN", "PRESSURE", "FREE", "MEMORY", "SPEED", "LINK", "CLOCK", "AGE",
    ];
    let mut cells = vec![header.map(str::to_owned)];
    cells.extend(rows.into_iter().map(row));
    let mut text = summary(nodes);
    text.push_str(&print::columns(&cells));
    text
}

fn summary(nodes: &[TopRow]) -> String {
    let cpus: u32 = nodes.iter().map(|node| node.cpus).sum();
    let runnable: f32 = nodes.iter().filter_map(|node| node.runnable).sum();
    let free: u64 = nodes.iter().filter_map(|node| node.memory_available_kib).sum();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} nodes, {cpus} CPUs, {runnable:.1} tasks run or want to, {} free",
        nodes.len(),
        print::memory(free)
    );
    text
}

fn row(node: &TopRow) -> [String; 11] {
    let dash = || "-".to_owned();
    [
        print::plain(&node.name),
        print::plain(&node.state),
        node.cpus.to_string(),
        node.runnable
            .map_or_else(dash, |runnable| format!("{runnable:.1}")),
        node.pressure_percent
            .map_or_else(dash, |percent| format!("{percent}%")),
        node.memory_available_kib.map_or_else(dash, print::memory),
        print::memory(node.memory_kib),
        node.speed.map_or_else(dash, |speed| format!("{speed:.2}")),
        node.link_mbit.map_or_else(dash, link),
        node.clock_ahead_us
            .map_or_else(dash, |ahead| clock(ahead, node.clock_error_us)),
        node.age_ms
            .map_or_else(dash, |age| format!("{:.1}s", age as f64 / 1_000.0)),
    ]
}

/// By how much it is ahead of the head's, and how far the measurement may be off.
fn clock(ahead_us: i64, error_us: Option<u64>) -> String {
    let mut text = format!("{:+.1}", ahead_us as f64 / 1_000.0);
    if let Some(error) = error_us {
        let _ = write!(text, "\u{b1}{:.1}", error as f64 / 1_000.0);
    }
    text + "ms"
}

/// The nearest power of two is what travels; people say the round one.
fn link(mbit: u64) -> String {
    match mbit {
        0..=511 => format!("{mbit}M"),
        _ => format!("{:.1}G", mbit as f64 / 1_024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_stands_first_and_what_is_not_known_is_a_dash() {
        let node = |name: &str, runnable: Option<f32>| TopRow {
            name: name.into(),
            state: "up".into(),
            cpus: 2,
            runnable,
            memory_kib: 1_048_576,
            ..TopRow::default()
        };
        let busy = TopRow {
            pressure_percent: Some(31),
            memory_available_kib: Some(524_288),
            speed: Some(0.953),
            link_mbit: Some(1_024),
            age_ms: Some(2_340),
            clock_ahead_us: Some(-312),
            clock_error_us: Some(450),
            ..node("b\x1b[2J", Some(3.5))
        };
        let text = table(&[node("a", None), busy]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "2 nodes, 4 CPUs, 3.5 tasks run or want to, 512 MiB free",
                "NAME   STATE  CPUS  RUN  PRESSURE  FREE     MEMORY    SPEED  LINK  CLOCK       AGE",
                "b?[2J  up     2     3.5  31%       512 MiB  1024 MiB  0.95   1.0G  -0.3\u{b1}0.5ms  2.3s",
                "a      up     2     -    -         -        1024 MiB  -      -     -           -",
            ]
        );
    }
}
