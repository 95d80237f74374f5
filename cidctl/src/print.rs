//! Answers as text for people. Must not print a control character that came from the network, and uses no colour.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use cid_protocol::api::{DhcpStatus, Event, Explanation, NodeRow, NodeState, RivalRow, Standing, Status};

/// Unix time in seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The table of `nodes`.
pub(crate) fn table(nodes: &[NodeRow], now: u64) -> String {
    let header = [
        "NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "LOAD", "IMAGE", "DOOR", "SEEN",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().map(|node| row(node, now).to_vec()));
    // Only while somebody leaves, is missing or is kept from work: a room at work has nothing to explain.
    if nodes.iter().any(is_explained) {
        let why = nodes.iter().map(|node| match is_explained(node) {
            true => step(node, now),
            false => String::new(),
        });
        let why = std::iter::once("WHY".to_owned()).chain(why);
        rows.iter_mut().zip(why).for_each(|(row, why)| row.push(why));
    }
    columns(&rows)
}

fn is_explained(node: &NodeRow) -> bool {
    matches!(
        node.state,
        NodeState::Joining
            | NodeState::Suspect
            | NodeState::Draining
            | NodeState::GoingHome
            | NodeState::Lost
            | NodeState::Refused
    )
}

/// The table of `nodes --why`: since when each is what it is, and why.
pub(crate) fn reasons(nodes: &[NodeRow], now: u64) -> String {
    let mut rows = vec![["NAME", "STATE", "SINCE", "REASON"].map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        let since = match now {
            // The comparison of `--watch` asks without a clock.
            0 => node.since_unix.to_string(),
            now => age(now.saturating_sub(node.since_unix)),
        };
        [
            plain(&node.name),
            state(node.state).to_owned(),
            since,
            step(node, now),
        ]
    }));
    columns(&rows)
}

/// Why it leaves, and how long this step may still take.
fn step(node: &NodeRow, now: u64) -> String {
    let left = match node.deadline_unix {
        // The comparison of `--watch` asks without a clock.
        Some(deadline) if now > 0 => format!(" ({} left)", age(deadline.saturating_sub(now))),
        _ => String::new(),
    };
    format!("{}{left}", plain(&node.reason))
}

/// Rows of cells as lines; columns are as wide as their widest cell, two spaces apart.
pub(crate) fn columns<R: AsRef<[String]>>(rows: &[R]) -> String {
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.as_ref().iter().enumerate() {
            let width = rows
                .iter()
                .filter_map(|row| Some(row.as_ref().get(column)?.chars().count()))
                .max()
                .unwrap_or(0);
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn row(node: &NodeRow, now: u64) -> [String; 9] {
    let dash = || "-".to_owned();
    [
        plain(&node.name),
        state(node.state).to_owned(),
        node.address.as_deref().map_or_else(dash, plain),
        if node.cpus == 0 {
            dash()
        } else {
            node.cpus.to_string()
        },
        if node.memory_kib == 0 {
            dash()
        } else {
            memory(node.memory_kib)
        },
        node.load1.map_or_else(dash, |load| format!("{load:.2}")),
        node.image.as_deref().map_or_else(dash, plain),
        node.door.as_deref().map_or_else(dash, plain),
        age(now.saturating_sub(node.last_seen_unix)),
    ]
}

pub(crate) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Seen => "seen",
        NodeState::Known => "known",
        NodeState::Booting => "booting",
        NodeState::Joining => "joining",
        NodeState::Up => "up",
        NodeState::Suspect => "suspect",
        NodeState::Draining => "draining",
        NodeState::GoingHome => "going-home",
        NodeState::Home => "home",
        NodeState::Lost => "lost",
        NodeState::Refused => "refused",
    }
}

pub(crate) fn memory(kib: u64) -> String {
    if kib >= 10 * 1024 * 1024 {
        format!("{} GiB", kib / (1024 * 1024))
    } else {
        format!("{} MiB", kib / 1024)
    }
}

pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// One line of `events`: number, UTC time, kind, text.
pub(crate) fn event(event: &Event) -> String {
    format!(
        "{:>6}  {}  {:<10}  {}\n",
        event.seq,
        utc(event.time_unix_ms / 1_000),
        plain(&event.kind),
        plain(&event.text)
    )
}

/// `2026-11-21 02:20:02Z`, by the days-from-civil method of the proleptic Gregorian calendar.
pub(crate) fn utc(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Years start in March here, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// The answer of `explain`.
pub(crate) fn explanation(explanation: &Explanation) -> String {
    let mut out = format!(
        "{}: {} ({})\n{}\n",
        plain(&explanation.mac),
        plain(&explanation.action),
        plain(&explanation.reason),
        plain(&explanation.text)
    );
    if let Some(boot) = &explanation.boot {
        let _ = writeln!(out, "image    {}", plain(&boot.image));
        let _ = writeln!(out, "loader   {}", plain(&boot.loader));
        let _ = writeln!(out, "cmdline  {}", plain(&boot.cmdline));
    }
    if !explanation.judged.is_empty() {
        out.push_str("measured when it asked to join last:\n");
    }
    for judged in &explanation.judged {
        let what = match judged.to.as_str() {
            "" => judged.what.clone(),
            to => format!("{} ({to})", judged.what),
        };
        let measured = match judged.measured.as_str() {
            "" => "not measured",
            measured => measured,
        };
        let beside = match judged.standing {
            Standing::Met => format!("required {}", judged.required),
            Standing::Short => format!("required {}: refused", judged.required),
            Standing::NotRequired => "nothing required".to_owned(),
            Standing::NotMeasured if judged.required.is_empty() => "nothing required".to_owned(),
            Standing::NotMeasured => format!("required {}: not judged", judged.required),
        };
        let _ = writeln!(
            out,
            "  {:<24} {:<16} {}",
            plain(&what),
            plain(measured),
            plain(&beside)
        );
    }
    out
}

/// One other server in words.
pub(crate) fn rival_line(rival: &RivalRow) -> String {
    let role = match rival.role.as_str() {
        "dhcp" => "DHCP server",
        _ => "proxy or PXE server",
    };
    let mut line = format!("{role} {}", plain(&rival.server));
    for (what, value) in [
        ("offered", &rival.address),
        ("boot server", &rival.boot_server),
        ("boot file", &rival.boot_file),
    ] {
        if !value.is_empty() {
            let _ = write!(line, ", {what} {}", plain(value));
        }
    }
    line
}

/// The answer of `status`.
pub(crate) fn status(status: &Status) -> String {
    let dhcp = match &status.dhcp {
        DhcpStatus::Serving => "serving".to_owned(),
        DhcpStatus::Proxy => "boot answers only, beside another DHCP server".to_owned(),
        DhcpStatus::Off => "off: another DHCP server names this head".to_owned(),
        DhcpStatus::Suspended { rival } => {
            format!(
                "suspended: another DHCP server answers at {}; switch it off on this segment",
                plain(rival)
            )
        }
    };
    let mut out = format!(
        "version    {}\ninterface  {}\naddress    {}\ndhcp       {dhcp}\n",
        plain(&status.version),
        plain(&status.interface),
        plain(&status.address)
    );
    for rival in &status.rivals {
        let _ = writeln!(out, "beside us  {}", rival_line(rival));
    }
    for (reason, count) in &status.drops {
        let _ = writeln!(out, "dropped    {count} {}", plain(reason));
    }
    out
}

/// A text that came over the network, without what would steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_date_1() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_795_227_602), "2026-11-21 02:20:02Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28 23:59:59Z");
    }

    #[test]
    fn a_table_lines_up_and_a_name_cannot_steer_the_terminal() {
        let node = NodeRow {
            name: "lab-a01\x1b[2J".into(),
            group: "lab-a".into(),
            state: NodeState::Up,
            reason: "joined".into(),
            since_unix: 0,
            deadline_unix: None,
            address: Some("10.77.0.128".into()),
            mac: "52:54:00:00:00:01".into(),
            uuid: None,
            product: None,
            firmware: None,
            cpus: 2,
            memory_kib: 498_000,
            memory_peak_kib: None,
            load1: Some(0.251),
            clock_ahead_us: None,
            clock_error_us: None,
            image: Some("minimal".into()),
            door: Some("pxe-bios".into()),
            last_seen_unix: 100,
            connected: true,
            last_decision: None,
            hardware: None,
        };
        let mut leaving = node.clone();
        leaving.name = "n2".into();
        leaving.state = NodeState::Draining;
        leaving.reason = "its group lab-a closes at 06:30".into();
        leaving.deadline_unix = Some(145);
        let text = table(&[node.clone(), leaving], 103);
        assert!(
            text.lines().nth(2).is_some_and(|line| {
                line.starts_with("n2           draining")
                    && line.ends_with("3s    its group lab-a closes at 06:30 (42s left)")
            }),
            "{text}"
        );
        assert!(
            text.lines()
                .next()
                .is_some_and(|header| header.ends_with("SEEN  WHY"))
        );
        let text = reasons(
            &[NodeRow {
                since_unix: 43,
                ..node.clone()
            }],
            103,
        );
        assert_eq!(
            text,
            "NAME         STATE  SINCE  REASON\nlab-a01?[2J  up     60s    joined\n"
        );
        let text = table(&[node], 103);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NAME         STATE  ADDRESS      CPUS  MEMORY   LOAD  IMAGE    DOOR      SEEN"
        );
        assert_eq!(
            lines[1],
            "lab-a01?[2J  up     10.77.0.128  2     486 MiB  0.25  minimal  pxe-bios  3s"
        );
    }
}
