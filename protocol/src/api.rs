//! The control API: HTTP/1.1 with JSON over a local Unix socket. Stable: fields are added, never renamed.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/nodes?nodeset=…` | - | [`NodeList`] |
//! | `POST /v1/adopt` | [`AdoptRequest`] | [`NodeList`] |
//! | `GET /v1/top?nodeset=…` | - | [`TopList`] |
//! | `GET /v1/run`, `Upgrade: cid-run` | - | frames of jobs ([`crate::work`]), no JSON body |
//! | `GET /v1/explain/{mac}` | - | [`Explanation`] |
//! | `GET /v1/doctor` | - | [`crate::doctor::Checkup`] |
//! | `GET /v1/trace/{machine}` | - | [`crate::trace::Trace`] |
//! | `POST /v1/drain` | [`DrainRequest`] | [`NodeList`] |
//! | `POST /v1/undrain` | [`UndrainRequest`] | [`NodeList`] |
//! | `POST /v1/release` | [`ReleaseRequest`] | [`NodeList`] |
//! | `POST /v1/wake` | [`WakeRequest`] | [`NodeList`] |
//! | `GET /v1/hours?group=…` | - | [`HoursList`] |
//! | `POST /v1/hours` | [`HoursRequest`] | [`HoursList`] with that group |
//! | `GET /v1/images` | - | [`crate::images::ImageList`] |
//! | `POST /v1/images/import` | [`crate::images::ImportImageRequest`] | [`crate::images::ImageList`] with that version |
//! | `POST /v1/images/set` | [`crate::images::SetImageRequest`] | [`crate::images::ImageList`] |
//! | `POST /v1/images/rollback` | [`crate::images::RollbackRequest`] | [`crate::images::ImageList`] |
//! | `POST /v1/images/gc` | [`crate::images::CollectRequest`] | [`crate::images::Collected`] |
//! | `POST /v1/images/roll` | [`crate::images::RollRequest`] | [`crate::images::ImageList`] |
//! | `POST /v1/images/roll/stop` | [`crate::images::StopRollRequest`] | [`crate::images::ImageList`] |
//! | `GET /v1/events?after=SEQ&limit=N` | - | [`EventList`] |
//! | `GET /v1/status` | - | [`Status`] |
//! | `GET /metrics` | - | Prometheus text |
//!
//! A failure has a 4xx or 5xx status and [`Problem`] as its body.

use serde::{Deserialize, Serialize};

/// What a machine is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Heard of, not adopted: gets an address, no boot answer.
    Seen,
    /// Adopted; not in the cluster at the moment.
    Known,
    /// Was handed a loader script; has not joined yet.
    Booting,
    /// Its agent speaks; it is not judged yet.
    Joining,
    /// Joined.
    Up,
    /// Joined, and does not answer its peers at the moment: nothing new for it, nothing taken away.
    Suspect,
    /// Joined, and takes no new work: its group closes soon, it was released, or an administrator drained it.
    Draining,
    /// Rebooting into its own system.
    GoingHome,
    /// Was sent to its own disk.
    Home,
    /// Was up, fell silent, and did not say that it goes.
    Lost,
    /// Asked to join and was refused.
    Refused,
}

/// `GET /v1/nodes`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeList {
    /// Sorted by name, unnamed ones by MAC after them.
    pub nodes: Vec<NodeRow>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Name; the MAC while it has none.
    pub name: String,
    /// Group; empty while it has none.
    pub group: String,
    /// State.
    pub state: NodeState,
    /// Why it is in that state, in plain words.
    pub reason: String,
    /// Since when, Unix time in seconds.
    pub since_unix: u64,
    /// Until when this step lasts at the most, Unix time in seconds; absent when nothing follows by itself.
    #[serde(default)]
    pub deadline_unix: Option<u64>,
    /// IPv4 address it holds, if any.
    pub address: Option<String>,
    /// Boot NIC's MAC, lower-case with colons.
    pub mac: String,
    /// SMBIOS UUID if known.
    pub uuid: Option<String>,
    /// Vendor and product if known.
    pub product: Option<String>,
    /// Firmware as it announced itself (`bios`, `uefi-x64`, …) if known.
    pub firmware: Option<String>,
    /// Logical CPUs; 0 until it joined once.
    pub cpus: u32,
    /// Memory in KiB; 0 until it joined once.
    pub memory_kib: u64,
    /// The most memory that was in use until its root was mounted, in KiB; absent without a root. docs/recipes.md says what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_kib: Option<u64>,
    /// Load while up: the one-minute load average of its last pulse or, where the membership has heard of it since, the tasks that run
    /// or want to, smoothed over ten seconds.
    pub load1: Option<f32>,
    /// By how much its clock is ahead of the head's, in microseconds, as the head measures it while it is up.
    #[serde(default)]
    pub clock_ahead_us: Option<i64>,
    /// `clock_ahead_us` is off by this much at the most.
    #[serde(default)]
    pub clock_error_us: Option<u64>,
    /// Image it runs or would run.
    pub image: Option<String>,
    /// Door of the last boot (`pxe-bios`, `pxe-uefi`, …).
    pub door: Option<String>,
    /// When it was last heard, by its connection or as a member, Unix time in seconds.
    pub last_seen_unix: u64,
    /// Whether its connection to the head stands.
    #[serde(default)]
    pub connected: bool,
    /// Last boot decision, in plain words with its reason.
    pub last_decision: Option<String>,
    /// What it reported when it joined last; absent until then.
    pub hardware: Option<crate::node::Hardware>,
}

/// `GET /v1/top`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopList {
    /// Nodes in the cluster, sorted by name.
    pub nodes: Vec<TopRow>,
}

/// A node's load as the head knows it. What was not measured, or is not known yet, is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TopRow {
    /// Name.
    pub name: String,
    /// Boot NIC's MAC.
    pub mac: String,
    /// State's word (`up`, `suspect`, `draining`, …).
    pub state: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Tasks that run or want to; without a load from the membership, the one-minute load average.
    pub runnable: Option<f32>,
    /// Share of time in which some task waited for a CPU (10 s), in per cent.
    pub pressure_percent: Option<u8>,
    /// `MemAvailable`, in KiB.
    pub memory_available_kib: Option<u64>,
    /// `MemTotal`, in KiB.
    pub memory_kib: u64,
    /// Speed of one CPU against the reference machine; 1 is equal.
    pub speed: Option<f32>,
    /// Link speed in Mbit/s, a power of two near it.
    pub link_mbit: Option<u64>,
    /// Milliseconds since this was measured.
    pub age_ms: Option<u64>,
    /// By how much its clock is ahead of the head's, in microseconds.
    #[serde(default)]
    pub clock_ahead_us: Option<i64>,
    /// `clock_ahead_us` is off by this much at the most.
    #[serde(default)]
    pub clock_error_us: Option<u64>,
}

/// `POST /v1/adopt`: accept seen PCs. With one machine and one name, or a node set of names that are given in
/// order of MAC to all machines named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// MACs of seen machines, or the single word `seen` for all of them.
    pub machines: Vec<String>,
    /// A group of `head.toml`.
    pub group: String,
    /// Node set to take names from (`lab-a[01-30]`); names in use are passed over.
    pub name: String,
}

/// `POST /v1/drain`: nodes take no more work and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Node set.
    pub nodeset: String,
    /// Why, in plain words, for whoever lists the nodes.
    #[serde(default)]
    pub reason: Option<String>,
}

/// `POST /v1/undrain`: they take work again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndrainRequest {
    /// Node set.
    pub nodeset: String,
}

/// `POST /v1/release`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Node set.
    pub nodeset: String,
}

/// `POST /v1/wake`: undo of release and of "two failed boots": the next network boot joins again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeRequest {
    /// Node set.
    pub nodeset: String,
}

/// `GET /v1/hours`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoursList {
    /// The head's clock, Unix time in seconds.
    pub now_unix: u64,
    /// Sorted by name.
    pub groups: Vec<GroupHours>,
}

/// When a group computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHours {
    /// Its name.
    pub group: String,
    /// Whether it may compute now.
    pub open: bool,
    /// When that changes, Unix time in seconds; absent for good (nothing changes within 400 days).
    pub changes_unix: Option<u64>,
    /// The same on the group's wall clock, `Mon 2026-11-23 20:00`; empty for good.
    pub changes: String,
    /// The change behind that.
    pub then_unix: Option<u64>,
    /// The same on the group's wall clock.
    pub then: String,
    /// Its hours in head.toml.
    pub hours: Vec<String>,
    /// What an administrator put in their place for a while.
    pub exception: Option<HoursException>,
    /// Time zone that all of these are read in.
    pub time_zone: String,
}

/// A group is open or closed for a while, whatever its hours say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoursException {
    /// Open or closed.
    pub open: bool,
    /// Since when, Unix time in seconds.
    pub from_unix: u64,
    /// The same on the group's wall clock.
    pub from: String,
    /// Until when, Unix time in seconds; it ends by itself.
    pub until_unix: u64,
    /// The same on the group's wall clock.
    pub until: String,
}

/// `POST /v1/hours`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoursRequest {
    /// A group of `head.toml`.
    pub group: String,
    /// What it is to be.
    pub change: HoursChange,
    /// Until when, for `open` and `closed`: `23:00` (the next time the clock shows it), `Mon 06:30` or `2026-11-24 06:30`, in the
    /// time zone of the hours.
    #[serde(default)]
    pub until: Option<String>,
}

/// What an administrator wants of a group's hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoursChange {
    /// Open until then.
    Open,
    /// Closed until then.
    Closed,
    /// As its hours say, from now on.
    Clear,
}

/// What `cidctl wake --wait --json` prints: who was up at some moment of the wait, and who was not. Both sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeReport {
    /// These came.
    pub came: Vec<Came>,
    /// These did not.
    pub missing: Vec<Missing>,
    /// How long was waited, in seconds.
    pub waited_secs: u64,
}

/// A machine that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Came {
    /// Name; the MAC while it has none.
    pub name: String,
    /// Boot NIC's MAC.
    pub mac: String,
    /// Seconds from the call until it was seen up; 0 for one that was up before.
    pub after_secs: u64,
}

/// A machine that did not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Name; the MAC while it has none.
    pub name: String,
    /// Boot NIC's MAC.
    pub mac: String,
    /// What it was in the end.
    pub state: NodeState,
    /// Why, in plain words.
    pub reason: String,
}

/// `GET /v1/explain/{mac}`: what this machine would be answered now, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// MAC asked for.
    pub mac: String,
    /// `boot`, `local-disk` or `no-boot-answer`.
    pub action: String,
    /// Typed reason, kebab-case (`not-adopted`, `released`, `two-failed-boots`, …).
    pub reason: String,
    /// One line in plain words with the remedy where there is one.
    pub text: String,
    /// Image, loader and kernel command line if it would boot.
    pub boot: Option<BootAnswer>,
    /// What it measured when it asked to join last, beside what its group requires; empty until then.
    #[serde(default)]
    pub judged: Vec<Judged>,
}

/// One figure of a node beside what its group requires (`[groups.NAME.requires]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The key in `head.toml`: `cpu_speed`, `memory`, `link`, `round_trip`, `loss`, `bandwidth`.
    pub what: String,
    /// Of which link, or to whom; empty for the machine itself.
    pub to: String,
    /// In words with its unit; empty when it was not measured.
    pub measured: String,
    /// The same; empty when nothing is required.
    pub required: String,
    /// What came of it.
    pub standing: Standing,
}

/// How a figure stands beside what is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// As required.
    Met,
    /// Less than that; the node is refused.
    Short,
    /// Nothing is required.
    NotRequired,
    /// Not measured, or not enough of it to judge by: not held against the node.
    NotMeasured,
}

/// What a machine would be given to boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootAnswer {
    /// Image name.
    pub image: String,
    /// Loader named in the DHCP answer, by door.
    pub loader: String,
    /// Kernel command line in full.
    pub cmdline: String,
}

/// `GET /v1/events`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<Event>,
}

/// Something that happened, numbered by the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one; never reused.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub time_unix_ms: u64,
    /// MAC of the machine it is about; empty when about the head itself.
    pub mac: String,
    /// Name at that time; empty when it had none.
    pub name: String,
    /// Kind, kebab-case (`state`, `lease`, `decision`, `adopted`, `rival-dhcp`, …).
    pub kind: String,
    /// Plain words.
    pub text: String,
}

/// `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of `cidhead`.
    pub version: String,
    /// Interface it serves.
    pub interface: String,
    /// Its own address there.
    pub address: String,
    /// Whether DHCP is being answered, or why not (a rival server's address).
    pub dhcp: DhcpStatus,
    /// Others who answer DHCP or PXE on the head's wires.
    #[serde(default)]
    pub rivals: Vec<RivalRow>,
    /// Drops by reason since start, sorted by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
}

/// Somebody else who answers DHCP or PXE on a wire of the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RivalRow {
    /// Its server identifier.
    pub server: String,
    /// `dhcp` (it gives addresses) or `proxy` (boot answers only).
    pub role: String,
    /// The address it offered last, to whomever; empty for none.
    pub address: String,
    /// The boot server it named last; empty for none.
    pub boot_server: String,
    /// The boot file it named last; empty for none.
    pub boot_file: String,
    /// Unix seconds.
    pub first_seen_unix: u64,
    /// Unix seconds.
    pub last_seen_unix: u64,
}

/// Whether DHCP answers leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum DhcpStatus {
    /// Answers are sent.
    Serving,
    /// Boot answers are sent beside somebody else's DHCP server.
    Proxy,
    /// This head has no DHCP socket.
    Off,
    /// Another DHCP server was heard; nothing is sent until it is gone.
    Suspended {
        /// Its server identifier.
        rival: String,
    },
}

/// Body of every failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One line: what, where, why.
    pub error: String,
    /// One line: what to do; may be empty.
    #[serde(default)]
    pub remedy: String,
}
