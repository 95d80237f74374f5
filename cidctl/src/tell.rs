//! A machine's timeline, and what the doctor found, in plain words. Must not judge: the diagnosis is the head's.

use std::fmt::Write as _;

use cid_protocol::doctor::{Checkup, Level};
use cid_protocol::trace::{Phase, Step, Trace, What};

use crate::print::{plain, state, utc};

/// The whole answer of `trace`: the machine, one line for each step of its last boot (of all with `all`), the diagnosis.
pub(crate) fn trace(trace: &Trace, all: bool) -> String {
    let mut out = format!(
        "{} ({}): {}",
        plain(&trace.name),
        plain(&trace.mac),
        state(trace.state)
    );
    if !trace.reason.is_empty() {
        let _ = write!(out, ", {}", plain(&trace.reason));
    }
    out.push('\n');
    for card in &trace.cards {
        let text = match (card.id.as_str(), card.driver.as_str()) {
            ("", "") => continue,
            (id, "") => format!("{id}, never seen under Linux"),
            ("", driver) => format!("driver {driver}"),
            (id, driver) => format!("{id}, driver {driver}"),
        };
        let _ = writeln!(out, "network card {}", plain(&text));
    }
    let starts = &trace.boots;
    let from = if all {
        0
    } else {
        starts.last().copied().unwrap_or(0)
    };
    // What stands before the first boot is told from there.
    let first = starts.first().copied().unwrap_or(0);
    let mut zero = trace.steps.get(from.max(first)).map_or(0, |step| step.at_unix_ms);
    let mut lines = Vec::new();
    for (at, step) in trace.steps.iter().enumerate().skip(from) {
        if starts.contains(&at) {
            flush(&mut out, zero, &mut lines);
            zero = step.at_unix_ms;
            let _ = writeln!(out, "\nboot of {}", utc(zero / 1_000));
        }
        add(&mut lines, step);
    }
    flush(&mut out, zero, &mut lines);
    let diagnosis = &trace.diagnosis;
    let verdict = if diagnosis.fault { "FAULT" } else { "fine" };
    let _ = writeln!(
        out,
        "\n{verdict} ({}): {}",
        plain(&diagnosis.verdict),
        plain(&diagnosis.text)
    );
    if !diagnosis.remedy.is_empty() {
        let _ = writeln!(out, "what to do: {}", plain(&diagnosis.remedy));
    }
    out
}

/// The answer of `doctor`: a line for each finding, its remedy under it.
pub(crate) fn checkup(checkup: &Checkup) -> String {
    let mut out = String::new();
    for finding in &checkup.findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let _ = writeln!(
            out,
            "{level:<4}  {:<12}  {}",
            plain(&finding.check),
            plain(&finding.text)
        );
        if !finding.remedy.is_empty() {
            let _ = writeln!(out, "{:20}-> {}", "", plain(&finding.remedy));
        }
    }
    out
}

/// Prints what one boot collected, in order of time: a node tells of its kernel's start when it joins.
fn flush(out: &mut String, zero: u64, lines: &mut Vec<(u64, String)>) {
    lines.sort_by_key(|(at, _)| *at);
    for (at, text) in lines.drain(..) {
        let _ = writeln!(out, "{:>10}  {}", after(zero, at), plain(&text));
    }
}

fn add(lines: &mut Vec<(u64, String)>, step: &Step) {
    let mut put = |at: u64, text: &str| lines.push((at, text.to_owned()));
    if let What::Init { uptime_ms, phases } = &step.what {
        let kernel = step.at_unix_ms.saturating_sub(*uptime_ms);
        put(kernel, "its kernel starts");
        for (name, done_ms, took) in slow(phases) {
            put(
                kernel.saturating_add(done_ms),
                &format!("PID 1: {name}, {}", seconds(took)),
            );
        }
    }
    let mut text = words(&step.what);
    if step.times > 1 {
        let span = seconds(step.last_unix_ms.saturating_sub(step.at_unix_ms));
        let _ = write!(text, " ({} times in {span})", step.times);
    }
    put(step.at_unix_ms, &text);
}

/// Phases that took a tenth of a second or more: name, when done after the kernel's start, duration; in milliseconds.
fn slow(phases: &[Phase]) -> Vec<(&str, u64, u64)> {
    let starts = phases.iter().map(|phase| phase.done_ms);
    let starts: Vec<u64> = std::iter::once(phases.first().map_or(0, |phase| phase.done_ms))
        .chain(starts)
        .collect();
    let timed = phases.iter().zip(starts).map(|(phase, start)| {
        let took = phase.done_ms.saturating_sub(start);
        (phase.name.as_str(), phase.done_ms, took)
    });
    timed.filter(|(_, _, took)| *took >= 100).collect()
}

fn words(what: &What) -> String {
    match what {
        What::Discover { client, firmware } => {
            let who = match client.as_str() {
                "ipxe" => "iPXE",
                "http" => "its firmware (UEFI HTTP Boot)",
                "usb" => "the USB stick's loader",
                _ => "its firmware (PXE)",
            };
            format!("{who} asks what to boot ({firmware})")
        }
        What::Offer { address, answer, .. } => {
            let address = address
                .as_ref()
                .map(|address| format!("{address}, "))
                .unwrap_or_default();
            format!("is offered {address}{answer}")
        }
        What::Ack {
            address: Some(address),
        } => format!("takes the address {address}"),
        What::Ack { address: None } => "takes the offer".to_owned(),
        What::File { name } => format!("fetches {name}"),
        What::Script { image } => format!("is handed the loader script of image {image}"),
        What::Init { uptime_ms, .. } => {
            format!(
                "the node speaks, {} after its kernel started",
                seconds(*uptime_ms)
            )
        }
        What::Joined { name, again: false } => format!("joins as {name}"),
        What::Joined { name, again: true } => format!("finds its head again as {name}"),
        What::Refused { reason } => format!("is refused: {reason}"),
        What::Left { reason } => format!("goes home: {reason}"),
        What::State { state: now, reason } => format!("is {} now: {reason}", state(*now)),
        What::Command { text } => text.clone(),
        What::System => "an operating system on it asks for an address".to_owned(),
        What::Rival { server, text } => format!("{server}: {text}"),
        What::Head { text } => format!("(the head: {text})"),
    }
}

/// `+12.3 s`, `+4 min 5 s`; before the beginning with a minus.
fn after(zero: u64, at: u64) -> String {
    if at < zero {
        format!("-{}", seconds(zero - at))
    } else {
        format!("+{}", seconds(at - zero))
    }
}

fn seconds(millis: u64) -> String {
    match millis {
        0..=119_999 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        120_000..=7_199_999 => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_told_in_order_of_time_with_its_diagnosis() {
        let text = r#"{"mac":"52:54:00:00:00:01","name":"lab-a01","state":"up","reason":"joined","now_unix_ms":1795227660000,
            "cards":[{"id":"8086:100e","driver":"e1000"}],"boots":[0],"steps":[
            {"at_unix_ms":1795227602000,"last_unix_ms":1795227606000,"times":2,"kind":"discover","client":"ipxe","firmware":"bios"},
            {"at_unix_ms":1795227607000,"last_unix_ms":1795227607000,"times":1,"kind":"file","name":"initrd.img"},
            {"at_unix_ms":1795227619000,"last_unix_ms":1795227619000,"times":1,"kind":"system"},
            {"at_unix_ms":1795227620000,"last_unix_ms":1795227620000,"times":1,"kind":"init","uptime_ms":5000,
             "phases":[{"name":"mounts","done_ms":1900},{"name":"drivers","done_ms":2500}]},
            {"at_unix_ms":1795227620000,"last_unix_ms":1795227620000,"times":1,"kind":"joined","name":"lab-a01","again":false}],
            "diagnosis":{"verdict":"up","fault":false,"text":"it joined","remedy":""}}"#;
        let told = super::trace(&serde_json::from_str::<Trace>(text).unwrap(), false);
        let expected = "lab-a01 (52:54:00:00:00:01): up, joined\n\
            network card 8086:100e, driver e1000\n\
            \nboot of 2026-11-21 02:20:02Z\n    \
                +0.0 s  iPXE asks what to boot (bios) (2 times in 4.0 s)\n    \
                +5.0 s  fetches initrd.img\n   \
               +13.0 s  its kernel starts\n   \
               +15.5 s  PID 1: drivers, 0.6 s\n   \
               +17.0 s  an operating system on it asks for an address\n   \
               +18.0 s  the node speaks, 5.0 s after its kernel started\n   \
               +18.0 s  joins as lab-a01\n\
            \nfine (up): it joined\n";
        assert_eq!(told, expected);
    }
}
