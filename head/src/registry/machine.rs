//! One machine: what is kept of it for ever, and what is known only while the head runs.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use cid_discovery::{Boot, NodeId};
use cid_protocol::api::NodeState;
use cid_protocol::node::{Hardware, Leaving, Load};

use crate::mac::Mac;
use crate::time::ClockOffset;

/// What is kept of a machine in the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Boot NIC's MAC: the machine's identity.
    pub mac: Mac,
    /// SMBIOS UUID, lower-case.
    pub uuid: Option<String>,
    /// Vendor and product.
    pub product: Option<String>,
    /// Firmware as it announced itself.
    pub firmware: Option<String>,
    /// Door of the last boot.
    pub door: Option<String>,
    /// Address it was last given.
    pub address: Option<Ipv4Addr>,
    /// Name given by adoption.
    pub name: Option<String>,
    /// Group given by adoption.
    pub group: Option<String>,
    /// Unix seconds.
    pub first_seen: u64,
    /// Unix seconds.
    pub last_seen: u64,
    /// Last boot decision with its reason, in plain words.
    pub decision: Option<String>,
    /// Why it must not be booted until `cidctl wake`; `None` when it may be.
    pub hold: Option<String>,
    /// When `hold` ends by itself, Unix seconds: a person's wish lasts until the group's next opening. `None` is for good.
    pub hold_until: Option<u64>,
    /// Why it takes no more work until `cidctl undrain`; `None` when it may.
    pub drain: Option<String>,
    /// It was told to restart and to boot again, for this reason; counts for its next boot alone.
    pub boot_again: Option<String>,
    /// Boot sessions that were handed a loader script since it was last up.
    pub failed_boots: u32,
    /// Whether the boot session under way has been counted in `failed_boots`.
    pub session_counted: bool,
    /// State.
    pub state: NodeState,
    /// Why, in plain words.
    pub reason: String,
    /// Unix seconds.
    pub since: u64,
    /// Drawn by the node once per boot.
    pub boot_id: Option<String>,
    /// Image of the last boot.
    pub image: Option<String>,
    /// Reported when it joined last.
    pub hardware: Option<Box<Hardware>>,
    /// Who it is among the members; given when it joins for the first time, for good.
    pub node_id: Option<NodeId>,
    /// Which boot of it took part in the membership last; 0: none. Rises for ever.
    pub incarnation: u64,
}

impl Record {
    /// A machine that was just heard for the first time.
    pub fn seen(mac: Mac, unix_secs: u64) -> Self {
        Self {
            mac,
            uuid: None,
            product: None,
            firmware: None,
            door: None,
            address: None,
            name: None,
            group: None,
            first_seen: unix_secs,
            last_seen: unix_secs,
            decision: None,
            hold: None,
            hold_until: None,
            drain: None,
            boot_again: None,
            failed_boots: 0,
            session_counted: false,
            state: NodeState::Seen,
            reason: "not adopted; `cidctl adopt` takes it in".to_owned(),
            since: unix_secs,
            boot_id: None,
            image: None,
            hardware: None,
            node_id: None,
            incarnation: 0,
        }
    }

    /// Holds it, or lets it go; `until` (Unix seconds) is when a hold ends by itself.
    pub(super) fn set_hold(&mut self, hold: Option<String>, until: Option<u64>) {
        self.hold_until = until.filter(|_| hold.is_some());
        self.hold = hold;
    }

    /// Its name, or its MAC while it has none.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.mac.to_string())
    }
}

/// A machine in memory.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) record: Record,
    /// Connection it speaks over.
    pub(super) connection: Option<super::ConnectionId>,
    /// Last sign of life of the node software (its messages), on the monotonic clock. While `Up`, the
    /// machine is `Lost` at `heard + grace`; while `Booting` or `GoingHome` the times below count from it.
    pub(super) heard: Duration,
    /// How long silence is borne from `heard` on.
    pub(super) grace: Duration,
    pub(super) load: Option<Load>,
    /// How far its clock is from ours.
    pub(super) clock: Option<ClockOffset>,
    /// The boot under which it stands in the history: whether it answers is judged there, not here.
    pub(super) member: Option<Boot>,
    /// That it left was heard from the membership only; its own words may still come.
    pub(super) left_unsaid: bool,
    /// When the node over this connection believes that it goes home, Unix time in milliseconds.
    pub(super) told: Option<u64>,
    /// It was told to go home and drains; at this moment, on the monotonic clock, it is taken to be on its way.
    pub(super) leaving: Option<Duration>,
    /// Until when the state lasts at the most, Unix seconds.
    pub(super) step_until: Option<u64>,
    /// The decision of this boot session is in the event log already.
    pub(super) decision_logged: bool,
    /// Last file fetched in this boot session.
    pub(super) last_file: Option<String>,
    /// When it was last served a loader that asks again by itself (iPXE for a plain ROM), on the monotonic clock.
    pub(super) loader_served: Option<Duration>,
    /// When it is called again, in order; it has not come yet.
    pub(super) calls: VecDeque<Duration>,
    /// When its wake command did its work last: it is not run again for a while, a PC that starts must not be switched again.
    pub(super) commanded: Option<Duration>,
    /// It was promised a root image and does not run it yet: what it does about that.
    pub(super) fetches: Option<String>,
    /// Under which sequence it was promised that in this connection: what it runs may not be older.
    pub(super) promised: u64,
    /// The most memory that was in use in this boot until the root was mounted, in KiB, where the node said so.
    pub(super) peak_kib: Option<u64>,
    /// What it prepared when it left last.
    pub(super) way_out: Leaving,
    /// `record` differs from what was last written, in what may be lost.
    pub(super) stale: bool,
}

impl Machine {
    pub(super) fn new(record: Record, heard: Duration, grace: Duration) -> Self {
        Self {
            record,
            connection: None,
            heard,
            grace,
            load: None,
            clock: None,
            member: None,
            left_unsaid: false,
            told: None,
            leaving: None,
            step_until: None,
            decision_logged: false,
            last_file: None,
            loader_served: None,
            calls: VecDeque::new(),
            commanded: None,
            fetches: None,
            peak_kib: None,
            promised: 0,
            way_out: Leaving::LocalBoot,
            stale: false,
        }
    }

    /// It is in the cluster, as far as anybody knows.
    pub(super) fn is_here(&self) -> bool {
        self.is_in() || self.record.state == NodeState::Suspect
    }

    /// It is in the cluster and answers, whether or not it takes work.
    pub(super) fn is_in(&self) -> bool {
        matches!(self.record.state, NodeState::Up | NodeState::Draining)
    }

    /// Nobody adopted it: it counts against the limit of strangers.
    pub(super) fn is_stranger(&self) -> bool {
        self.record.group.is_none()
    }
}

/// The word of a state, as in the API and the database.
pub fn state_word(state: NodeState) -> &'static str {
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

/// Every state, in the order of the API's documentation.
pub const STATES: [NodeState; 11] = [
    NodeState::Seen,
    NodeState::Known,
    NodeState::Booting,
    NodeState::Joining,
    NodeState::Up,
    NodeState::Suspect,
    NodeState::Draining,
    NodeState::GoingHome,
    NodeState::Home,
    NodeState::Lost,
    NodeState::Refused,
];
