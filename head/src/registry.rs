//! Every machine ever seen and what it is at this moment: a pure state machine. Inputs are observations of the boot
//! server, messages of nodes, beacons, commands of the administrator and the passing of time; outputs are drained.
//! Must never own a socket, a clock or the database.
//!
//! Outputs keep their order: a `Send` that stands behind a `Persist` may leave only when that is on disk.

mod boot;
mod calendar;
mod commands;
mod drain;
mod groups;
mod hours;
mod images;
mod judging;
mod machine;
mod members;
mod node;
mod promise;
mod roll;
mod root;
mod rows;
mod strangers;
mod trust;
mod wake;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use cid_discovery::history::State;
use cid_discovery::{Boot, NodeId};
use cid_protocol::api::NodeState;
use cid_protocol::node::{Leaving, ToNode};
use cid_protocol::trace::{Step, What};

use cid_trust::Fingerprint;
use jiff::tz::TimeZone;

use crate::config::{Config, Group, Unknown, Value};
use crate::mac::Mac;
use crate::node_files::Promised;
use crate::timeline::{self, Timelines};
use crate::versions::Version;
use crate::wake::Target;

pub use boot::{Firmware, Observation, Verdict};
pub use calendar::{GroupRecord, Opened};
pub use commands::CommandError;
pub use images::{GroupImage, ImageError, ImagesRecord};
use machine::Machine;
pub use machine::{Record, STATES, state_word};
pub use roll::{Roll, RollNode};
pub use trust::{Credential, Enrolled, Enrolment};

/// A node that was up is lost after this long without message or beacon.
pub const LOST_AFTER: Duration = Duration::from_secs(15);
/// The same right after the head started: nodes must find it again first.
pub const RESTART_GRACE: Duration = Duration::from_secs(60);
/// From the loader script to the first message; slow firmware and 4 MB over TFTP are in it.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// What a PC has, behind its `patience`, for the reboot until its firmware asks again.
pub const REBOOT_PATIENCE: Duration = Duration::from_secs(300);
/// From the last word of a node to its reset or its end, when its firmware will not ask: PID 1 needs 5 s.
pub const LEAVING_TIME: Duration = Duration::from_secs(20);
/// Failed boots in a row that send a machine to its own disk.
pub const MAX_FAILED_BOOTS: u32 = 2;
/// Machines that nobody adopted; the one not heard for longest makes room.
pub const MAX_STRANGERS: usize = 4_096;
/// Events about strangers in one minute; a flood of made-up MACs must not wash the log away.
pub const STRANGER_EVENTS_PER_MINUTE: u32 = 120;

/// The two clocks at one moment, read by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from any fixed start.
    pub monotonic: Duration,
    /// Unix time in milliseconds, for people.
    pub unix_ms: u64,
}

impl Now {
    fn unix_secs(self) -> u64 {
        self.unix_ms / 1_000
    }
}

/// One accepted TCP connection; never reused while the head runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What the registry wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write this record; what follows waits for it.
    Persist(Box<Record>),
    /// Write this record when convenient; losing it loses no promise.
    PersistLazily(Box<Record>),
    /// Write what is kept of a group; what follows waits for it.
    PersistGroup {
        /// Its name.
        group: String,
        /// What.
        record: GroupRecord,
    },
    /// Write what is kept of images; what follows waits for it.
    PersistImages(Box<ImagesRecord>),
    /// Write what is kept of a machine's enrolment; what follows waits for it.
    PersistCredential {
        /// Whose.
        mac: Mac,
        /// What.
        credential: Box<Credential>,
    },
    /// Remove a machine.
    Forget(Mac),
    /// Add to the event log.
    Event {
        /// About whom; `None` for the head itself.
        mac: Option<Mac>,
        /// Name or MAC at that time.
        name: String,
        /// Kind, kebab-case.
        kind: &'static str,
        /// Plain words.
        text: String,
    },
    /// Keep a step of a timeline; `None` for one that concerns all machines.
    Step {
        /// About whom.
        about: Option<Mac>,
        /// What.
        step: Box<Step>,
    },
    /// Put this into the history.
    Record {
        /// Which boot of which machine.
        boot: Boot,
        /// Its state from here on.
        state: State,
        /// Name, or MAC.
        name: String,
        /// Why.
        reason: String,
    },
    /// Change the group key, and give it to [`Registry::issue_key`]; `thrown_out`: because of this member, so that the old one ends
    /// at once.
    Rotate {
        /// Its id if it has one.
        thrown_out: Option<Option<NodeId>>,
    },
    /// Send over a node's connection.
    Send {
        /// Which.
        connection: ConnectionId,
        /// What.
        message: ToNode,
    },
    /// Close a connection behind everything sent.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// Switch a PC on; what comes of it is told to [`Registry::handle_wake_outcome`].
    Wake(Box<Target>),
}

/// The state machine.
pub struct Registry {
    groups: BTreeMap<String, Group>,
    unknown: Unknown,
    site: String,
    zone: TimeZone,
    calendar: BTreeMap<String, calendar::Calendar>,
    machines: BTreeMap<Mac, Machine>,
    connections: BTreeMap<ConnectionId, Mac>,
    outputs: VecDeque<Output>,
    strangers: usize,
    /// Strangers at the last look, the one not heard for longest first: who makes room next.
    quiet: VecDeque<(u64, Mac)>,
    stranger_minute: u64,
    stranger_events: u32,
    timelines: Timelines,
    credentials: BTreeMap<Mac, Credential>,
    /// Certificates in force.
    listed: BTreeMap<Fingerprint, Mac>,
    /// Revoked since this head started, the latest last.
    thrown_out: VecDeque<Fingerprint>,
    /// Connections with such a certificate.
    vouched: BTreeMap<ConnectionId, Mac>,
    /// Nodes that were unfit, by reason.
    refusals: BTreeMap<&'static str, u64>,
    /// Whose id is whose.
    ids: BTreeMap<NodeId, Mac>,
    ticket: Option<members::Ticket>,
    images: ImagesRecord,
    /// What versions of images there are.
    versions: Vec<Version>,
    /// By image.
    promises: BTreeMap<String, Promised>,
    /// What head.toml has of single machines for templates.
    machine_values: BTreeMap<Mac, BTreeMap<String, Value>>,
}

impl Registry {
    /// Starts from what the database held. Machines that were `up` or `booting` stay so for a grace time.
    pub fn new(config: &Config, records: Vec<Record>, now: Now) -> Self {
        let grace = |state| match state {
            NodeState::Booting => BOOT_PATIENCE,
            _ => RESTART_GRACE,
        };
        let machines: BTreeMap<Mac, Machine> = records
            .into_iter()
            .map(|mut record| {
                // It was told to go, and has had its time to drain while there was no head.
                let told = record.hold.is_some() || record.boot_again.is_some();
                if record.state == NodeState::Draining && told {
                    record.state = NodeState::GoingHome;
                }
                let grace = grace(record.state);
                (record.mac, Machine::new(record, now.monotonic, grace))
            })
            .collect();
        let strangers = machines.values().filter(|machine| machine.is_stranger()).count();
        let id_of = |machine: &Machine| Some((machine.record.node_id?, machine.record.mac));
        let ids = machines.values().filter_map(id_of).collect();
        Self {
            groups: config.groups.clone(),
            unknown: config.unknown.clone(),
            site: config.site.clone(),
            zone: config.zone(),
            calendar: BTreeMap::new(),
            machines,
            connections: BTreeMap::new(),
            outputs: VecDeque::new(),
            strangers,
            quiet: VecDeque::new(),
            stranger_minute: 0,
            stranger_events: 0,
            timelines: Timelines::default(),
            credentials: BTreeMap::new(),
            listed: BTreeMap::new(),
            thrown_out: VecDeque::new(),
            vouched: BTreeMap::new(),
            refusals: BTreeMap::new(),
            ids,
            ticket: None,
            images: ImagesRecord::default(),
            versions: Vec::new(),
            promises: BTreeMap::new(),
            machine_values: config
                .machines
                .iter()
                .map(|(mac, machine)| (*mac, machine.values.clone()))
                .collect(),
        }
    }

    /// Takes over what the database kept of timelines.
    pub fn restore_timelines(&mut self, kept: Vec<(Option<Mac>, Step)>) {
        self.timelines = Timelines::new(kept);
    }

    /// Adds to a machine's timeline; to everybody's when `about` is absent. The one way in, for every part of the head.
    pub fn trace(&mut self, now: Now, about: Option<Mac>, what: What) {
        let keep = timeline::matters(&what)
            && about.is_none_or(|mac| {
                self.machines
                    .get(&mac)
                    .is_some_and(|machine| !machine.is_stranger())
            });
        if let Some(step) = self.timelines.add(now.unix_ms, about, what)
            && keep
        {
            let step = Box::new(step);
            self.outputs.push_back(Output::Step { about, step });
        }
    }

    /// The timelines.
    pub fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    /// A loader named the PCI vendor and device of the card it asks over.
    pub fn set_card(&mut self, mac: Mac, card: String) {
        self.timelines.set_card(mac, card);
    }

    /// Next thing to do, in order; `None` when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Registry::handle_deadline`] has something to do; computed from the state.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.machines
            .values()
            .filter_map(|machine| self.deadline(machine))
            .min()
    }

    /// Acts on every deadline that has passed. Late and early calls are harmless.
    pub fn handle_deadline(&mut self, now: Now) {
        let due: Vec<Mac> = self
            .machines
            .iter()
            .filter(|(_, machine)| {
                self.deadline(machine)
                    .is_some_and(|deadline| deadline <= now.monotonic)
            })
            .map(|(mac, _)| *mac)
            .collect();
        for mac in due {
            let Some(machine) = self.machines.get(&mac) else {
                continue;
            };
            let silent = now.monotonic.saturating_sub(machine.heard).as_secs();
            if machine.leaving.is_some()
                && matches!(machine.record.state, NodeState::Draining | NodeState::Suspect)
            {
                let reason = machine.record.reason.clone();
                self.enter_going_home(now, mac, reason);
                self.persist(mac);
                continue;
            }
            let (state, reason) = match machine.record.state {
                NodeState::GoingHome => (NodeState::Home, home_because(machine.way_out).to_owned()),
                NodeState::Booting => (
                    NodeState::Lost,
                    format!("did not join within {silent} s of its boot"),
                ),
                _ => (NodeState::Lost, format!("nothing heard of it for {silent} s")),
            };
            self.change_state(now, mac, state, reason);
            self.persist(mac);
        }
    }

    fn deadline(&self, machine: &Machine) -> Option<Duration> {
        let base = machine.heard;
        match machine.record.state {
            NodeState::Draining | NodeState::Suspect if machine.leaving.is_some() => machine.leaving,
            // Of members the history says who is silent.
            NodeState::Joining | NodeState::Up | NodeState::Draining | NodeState::Suspect => {
                machine.member.is_none().then_some(base + machine.grace)
            }
            NodeState::Booting => Some(base + machine.grace),
            NodeState::GoingHome if machine.way_out != Leaving::LocalBoot => Some(base + LEAVING_TIME),
            NodeState::GoingHome => Some(base + self.patience(machine) + REBOOT_PATIENCE),
            _ => None,
        }
    }

    /// The record of a machine.
    pub fn record(&self, mac: Mac) -> Option<&Record> {
        self.machines.get(&mac).map(|machine| &machine.record)
    }

    fn patience(&self, machine: &Machine) -> Duration {
        self.group_of(&machine.record)
            .map_or(Duration::from_secs(60), |(_, group)| group.patience)
    }

    fn patience_of(&self, mac: Mac) -> Duration {
        self.machines
            .get(&mac)
            .map_or(Duration::from_secs(60), |machine| self.patience(machine))
    }

    /// Says something about the head itself.
    pub fn note(&mut self, kind: &'static str, text: String) {
        self.outputs.push_back(Output::Event {
            mac: None,
            name: String::new(),
            kind,
            text,
        });
    }

    /// Says something about a machine; strangers have a budget.
    fn event(&mut self, now: Now, mac: Mac, kind: &'static str, text: String) {
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        let name = machine.record.name.clone().unwrap_or_default();
        let stranger = machine.record.group.is_none();
        // These have steps of their own kind.
        if !matches!(kind, "state" | "decision" | "file" | "seen") {
            let text = text.clone();
            self.trace(now, Some(mac), What::Command { text });
        }
        if stranger {
            let minute = now.unix_secs() / 60;
            if minute != self.stranger_minute {
                (self.stranger_minute, self.stranger_events) = (minute, 0);
            }
            self.stranger_events += 1;
            if self.stranger_events > STRANGER_EVENTS_PER_MINUTE {
                return;
            }
        }
        self.outputs.push_back(Output::Event {
            mac: Some(mac),
            name,
            kind,
            text,
        });
    }

    /// Enters a state. The same state again only changes the reason; nothing is written here.
    fn change_state(&mut self, now: Now, mac: Mac, state: NodeState, reason: String) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let record = &mut machine.record;
        let before = record.state;
        let changed = before != state;
        // It has gone: whoever speaks in its name from here on has to prove a boot.
        let gone = before == NodeState::GoingHome
            && matches!(state, NodeState::Home | NodeState::Known | NodeState::Booting);
        if changed {
            record.state = state;
            record.since = now.unix_secs();
        }
        if !changed && record.reason == reason {
            return;
        }
        record.reason.clone_from(&reason);
        if changed {
            // A node that does not answer for a moment has not finished what it was about.
            if before != NodeState::Suspect && state != NodeState::Suspect {
                (machine.leaving, machine.step_until) = (None, None);
            }
            let record = &machine.record;
            let text = format!("{} is {}: {reason}", record.label(), state_word(state));
            // The others are told by the steps that lead to them.
            if matches!(
                state,
                NodeState::Known | NodeState::Draining | NodeState::Home | NodeState::Lost
            ) {
                self.trace(now, Some(mac), What::State { state, reason });
            }
            self.event(now, mac, "state", text);
        }
        if gone {
            self.take_off_list(mac);
        }
    }

    /// It is on its way: what it has until its firmware asks again begins now.
    fn enter_going_home(&mut self, now: Now, mac: Mac, reason: String) {
        self.change_state(now, mac, NodeState::GoingHome, reason);
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.heard = now.monotonic;
        }
        let patience = self.patience_of(mac);
        if let Some(machine) = self.machines.get_mut(&mac) {
            let time = match machine.way_out {
                Leaving::LocalBoot => patience + REBOOT_PATIENCE,
                Leaving::BootNext | Leaving::PowerOff => LEAVING_TIME,
            };
            machine.step_until = Some(now.unix_secs() + time.as_secs());
        }
    }

    fn persist(&mut self, mac: Mac) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.stale = false;
            self.outputs
                .push_back(Output::Persist(Box::new(machine.record.clone())));
            self.record_in_history(mac);
        }
    }

    /// Queues what may be written late: records in which only the last sighting changed. Called now and then.
    pub fn flush_lazily(&mut self) {
        for machine in self.machines.values_mut().filter(|machine| machine.stale) {
            machine.stale = false;
            self.outputs
                .push_back(Output::PersistLazily(Box::new(machine.record.clone())));
        }
    }
}

/// Why a machine that left is at home though its firmware has not asked.
fn home_because(leaving: Leaving) -> &'static str {
    match leaving {
        Leaving::LocalBoot => "left the cluster; its firmware has not asked this head for a boot",
        Leaving::BootNext => "left the cluster; its firmware starts its own system without asking (BootNext)",
        Leaving::PowerOff => "left the cluster and switched itself off",
    }
}

/// Bounds a text that a stranger chose, and takes control characters out of it.
pub(crate) fn tame(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > limit {
            break;
        }
        out.push(c);
    }
    out.trim().to_owned()
}

/// The address as text, or nothing.
fn address_text(address: Option<Ipv4Addr>) -> Option<String> {
    address.map(|address| address.to_string())
}

#[cfg(test)]
mod tests;
