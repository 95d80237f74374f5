//! Whether a node is fit for its group: what `[groups.NAME.requires]` wants beside what the node measured. One pure function; it
//! must never look at anything but its arguments.
//!
//! What a node could not measure is not held against it: the head tells nodes to go without when many boot at once.

use std::fmt;
use std::time::Duration;

use cid_protocol::api::{Judged, Standing};
use cid_protocol::measure::{Measured, Path, Segments};
use cid_protocol::node::Hardware;

/// What a group asks of its nodes; what is absent is not asked. Whole numbers, so that a configuration can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Speed of one CPU, in hundredths of [`Measured::cpu_speed`]; at least.
    pub cpu_speed_hundredths: Option<u32>,
    /// Memory in KiB; at least.
    pub memory_kib: Option<u64>,
    /// Speed that the link in use was negotiated at, in kbit/s; at least.
    pub link_kbit: Option<u64>,
    /// Median round-trip time; at most.
    pub round_trip: Option<Duration>,
    /// Segments that were lost, in hundredths of a percent; at most.
    pub loss_hundredths: Option<u32>,
    /// Bandwidth each way in kbit/s; at least.
    pub bandwidth_kbit: Option<u64>,
}

impl Default for Requirements {
    /// Refuses only what is plainly broken: today's cables and switches run at 100 Mbit/s or more, a LAN answers within
    /// milliseconds however busy its head is, and loses next to nothing. Speed, memory and bandwidth are the administrator's to
    /// say: slow is not broken, and bandwidth depends on who else is booting.
    fn default() -> Self {
        Self {
            cpu_speed_hundredths: None,
            memory_kib: None,
            link_kbit: Some(100_000),
            round_trip: Some(Duration::from_millis(250)),
            loss_hundredths: Some(1_000),
            bandwidth_kbit: None,
        }
    }
}

/// Fewer segments than this say nothing about loss, ...
const MIN_SEGMENTS: u32 = 50;
/// ... nor do fewer repeats: the kernel repeats the last segment of a burst on suspicion.
const MIN_AGAIN: u32 = 3;
/// Fewer echoes than this say nothing about the round trip.
const MIN_ECHOES: u32 = 3;

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What fell short.
    pub figure: Figure,
    /// The way it is about; empty for the machine itself.
    pub to: String,
    /// As measured, in words.
    pub measured: String,
    /// As required, in words.
    pub required: String,
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// `cpu_speed`
    CpuSpeed,
    /// `memory`
    Memory,
    /// `link`
    Link,
    /// `round_trip`
    RoundTrip,
    /// `loss`
    Loss,
    /// `bandwidth`
    Bandwidth,
}

impl Figure {
    /// Its key in `head.toml`.
    pub fn key(self) -> &'static str {
        match self {
            Self::CpuSpeed => "cpu_speed",
            Self::Memory => "memory",
            Self::Link => "link",
            Self::RoundTrip => "round_trip",
            Self::Loss => "loss",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// The word that refusals are counted by.
    pub fn word(self) -> &'static str {
        match self {
            Self::CpuSpeed => "cpu-speed",
            Self::Memory => "memory",
            Self::Link => "link",
            Self::RoundTrip => "round-trip",
            Self::Loss => "loss",
            Self::Bandwidth => "bandwidth",
        }
    }
}

impl fmt::Display for Reason {
    /// One line: figure, limit, remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            to,
            measured,
            required,
            ..
        } = self;
        match self.figure {
            Figure::CpuSpeed => write!(
                f,
                "its CPU runs at {measured}, {required} is wanted: look for power saving in its firmware, or lower `cpu_speed`"
            ),
            Figure::Memory => write!(
                f,
                "it has {measured} of memory, {required} are wanted: look at its memory modules, or lower `memory`"
            ),
            Figure::Link => write!(
                f,
                "link of {to} runs at {measured}, {required} are wanted: look at its cable and switch port"
            ),
            Figure::RoundTrip => write!(
                f,
                "{to} is {measured} away, {required} are allowed: look for a loop or an overloaded switch on the way"
            ),
            Figure::Loss => write!(
                f,
                "the way to {to} loses {measured}, {required} are allowed: look at its cable, and at duplex on both ends"
            ),
            Figure::Bandwidth => write!(
                f,
                "it has {measured} to {to}, {required} are wanted: look at its cable and the switches on the way"
            ),
        }
    }
}

/// The verdict.
///
/// # Errors
/// The first thing that falls short, in the order of `head.toml`.
pub fn judge(requirements: &Requirements, hardware: &Hardware) -> Result<(), Reason> {
    let rows = rows(requirements, hardware);
    // One bad way to a peer may be that peer's fault, or its lie; two are not.
    let peers_bad = |figure: Figure| {
        let ways = rows
            .iter()
            .filter(|row| row.way == Way::Peer && row.figure == figure && row.known());
        let (bad, good): (Vec<&Row>, Vec<&Row>) = ways.partition(|row| row.short);
        bad.len() >= 2 && good.is_empty()
    };
    let short = rows
        .iter()
        .find(|row| row.short && (row.way != Way::Peer || peers_bad(row.figure)));
    match short {
        None => Ok(()),
        Some(row) => Err(Reason {
            figure: row.figure,
            to: row.to.clone(),
            measured: row.measured.clone().unwrap_or_default(),
            required: row.limit.clone().unwrap_or_default(),
        }),
    }
}

/// Everything measured beside what is required, for people.
pub fn table(requirements: &Requirements, hardware: &Hardware) -> Vec<Judged> {
    let rows = rows(requirements, hardware).into_iter();
    rows.map(|row| {
        let standing = match (row.measured.is_some() && row.judged, &row.limit) {
            (false, _) => Standing::NotMeasured,
            (true, None) => Standing::NotRequired,
            (true, Some(_)) if row.short => Standing::Short,
            (true, Some(_)) => Standing::Met,
        };
        Judged {
            what: row.figure.key().to_owned(),
            to: row.to,
            measured: row.measured.unwrap_or_default(),
            required: row.limit.unwrap_or_default(),
            standing,
        }
    })
    .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Machine,
    Head,
    Peer,
}

struct Row {
    figure: Figure,
    way: Way,
    to: String,
    measured: Option<String>,
    limit: Option<String>,
    /// There was enough of it to judge by.
    judged: bool,
    short: bool,
}

impl Row {
    fn known(&self) -> bool {
        self.measured.is_some() && self.judged
    }
}

fn rows(requirements: &Requirements, hardware: &Hardware) -> Vec<Row> {
    let nothing = Measured::default();
    let measured = hardware.measured.as_ref().unwrap_or(&nothing);
    let mut rows = vec![
        cpu_row(requirements, measured),
        memory_row(requirements, hardware),
    ];
    rows.extend(link_row(requirements, hardware));
    rows.extend(way_rows(requirements, &measured.head, Way::Head, "the head"));
    for peer in &measured.peers {
        rows.extend(way_rows(requirements, &peer.path, Way::Peer, &peer.address));
    }
    rows
}

fn cpu_row(requirements: &Requirements, measured: &Measured) -> Row {
    // Two decimals, as it was measured; nonsense is nothing.
    let speed = measured
        .cpu_speed
        .filter(|speed| speed.is_finite() && *speed > 0.0);
    let limit = requirements.cpu_speed_hundredths;
    let hundredths = speed.map(|speed| (f64::from(speed) * 100.0).round());
    Row {
        figure: Figure::CpuSpeed,
        way: Way::Machine,
        to: String::new(),
        measured: speed.map(|speed| format!("{speed:.2}")),
        limit: limit.map(|limit| format!("{:.2}", f64::from(limit) / 100.0)),
        judged: true,
        short: matches!((hundredths, limit), (Some(speed), Some(limit)) if speed < f64::from(limit)),
    }
}

fn memory_row(requirements: &Requirements, hardware: &Hardware) -> Row {
    let memory = Some(hardware.memory_kib).filter(|kib| *kib > 0);
    let limit = requirements.memory_kib;
    Row {
        figure: Figure::Memory,
        way: Way::Machine,
        to: String::new(),
        measured: memory.map(memory_text),
        limit: limit.map(memory_text),
        judged: true,
        // The kernel keeps some of what is plugged in (`MemTotal` of a PC with 16 GiB is 15.4): an eighth is allowed for that.
        short: matches!((memory, limit), (Some(memory), Some(limit)) if memory < limit - limit / 8),
    }
}

fn link_row(requirements: &Requirements, hardware: &Hardware) -> Option<Row> {
    let link = hardware.links.iter().find(|link| link.in_use)?;
    // Virtual cards know no speed.
    let kbit = Some(u64::from(link.speed_mbit) * 1_000).filter(|kbit| *kbit > 0);
    let limit = requirements.link_kbit;
    Some(Row {
        figure: Figure::Link,
        way: Way::Machine,
        to: link.name.clone(),
        measured: kbit.map(rate_text),
        limit: limit.map(rate_text),
        judged: true,
        short: matches!((kbit, limit), (Some(kbit), Some(limit)) if kbit < limit),
    })
}

fn way_rows(requirements: &Requirements, path: &Path, way: Way, to: &str) -> [Row; 3] {
    let row = |figure, measured: Option<String>, limit: Option<String>, judged, short| Row {
        figure,
        way,
        to: to.to_owned(),
        measured,
        limit,
        judged,
        short: short && judged,
    };
    let trip = path
        .round_trip_us
        .map(|micros| Duration::from_micros(micros.into()));
    let limit = requirements.round_trip;
    let late = matches!((trip, limit), (Some(trip), Some(limit)) if trip > limit);
    let round_trip = row(
        Figure::RoundTrip,
        trip.map(time_text),
        limit.map(time_text),
        path.echoes >= MIN_ECHOES,
        late,
    );
    let (segments, lost) = worse(path.sent, path.received);
    let limit = requirements.loss_hundredths;
    let loss = row(
        Figure::Loss,
        (segments.all > 0).then(|| percent_text(lost)),
        limit.map(percent_text),
        segments.all >= MIN_SEGMENTS,
        segments.again >= MIN_AGAIN && limit.is_some_and(|limit| lost > limit),
    );
    let slower = [path.to_node_kbit, path.from_node_kbit]
        .into_iter()
        .flatten()
        .min();
    let slower = slower.map(u64::from);
    let limit = requirements.bandwidth_kbit;
    let bandwidth = row(
        Figure::Bandwidth,
        slower.map(rate_text),
        limit.map(rate_text),
        true,
        matches!((slower, limit), (Some(kbit), Some(limit)) if kbit < limit),
    );
    [round_trip, loss, bandwidth]
}

/// The direction that loses more, among those that say anything, and how much in hundredths of a percent.
fn worse(sent: Segments, received: Segments) -> (Segments, u32) {
    let lost = |segments: Segments| {
        let share = u64::from(segments.again) * 10_000 / u64::from(segments.all.max(1));
        u32::try_from(share.min(10_000)).unwrap_or(10_000)
    };
    let key = |segments: &Segments| (segments.all >= MIN_SEGMENTS, lost(*segments), segments.all);
    let segments = if key(&received) > key(&sent) {
        received
    } else {
        sent
    };
    (segments, lost(segments))
}

/// `100 Mbit/s`
pub(crate) fn rate_text(kbit: u64) -> String {
    match kbit {
        1_000_000.. => format!("{} Gbit/s", decimals(kbit, 1_000_000)),
        1_000.. => format!("{} Mbit/s", decimals(kbit, 1_000)),
        _ => format!("{kbit} kbit/s"),
    }
}

/// `4 GiB`
pub(crate) fn memory_text(kib: u64) -> String {
    match kib {
        1_048_576.. => format!("{} GiB", decimals(kib, 1_048_576)),
        1_024.. => format!("{} MiB", decimals(kib, 1_024)),
        _ => format!("{kib} KiB"),
    }
}

/// `5 ms`
pub(crate) fn time_text(time: Duration) -> String {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    match micros {
        1_000_000.. => format!("{} s", decimals(micros, 1_000_000)),
        1_000.. => format!("{} ms", decimals(micros, 1_000)),
        _ => format!("{micros} us"),
    }
}

/// `2 %`
pub(crate) fn percent_text(hundredths: u32) -> String {
    format!("{} %", decimals(hundredths.into(), 100))
}

/// At most two decimals, no idle zeros; cut, not rounded: 99.999 is not 100.
fn decimals(value: u64, unit: u64) -> String {
    let hundredths = (value % unit) * 100 / unit;
    let text = format!("{}.{hundredths:02}", value / unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
