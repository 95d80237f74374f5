//! A machine's timeline: what was seen of its boots, step by step, and what is wrong if something is.
//! `GET /v1/trace/{machine}`. Stable as [`crate::api`] is: kinds and fields are added, never renamed.

use serde::{Deserialize, Serialize};

use crate::api::NodeState;

/// `GET /v1/trace/{machine}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Boot NIC's MAC, lower-case with colons.
    pub mac: String,
    /// Name; the MAC while it has none.
    pub name: String,
    /// State now.
    pub state: NodeState,
    /// Why, in plain words.
    pub reason: String,
    /// The head's clock, Unix time in milliseconds.
    pub now_unix_ms: u64,
    /// What is known of the machine's network cards, and from where.
    pub cards: Vec<Card>,
    /// Oldest first.
    pub steps: Vec<Step>,
    /// Where in `steps` each boot begins, oldest first.
    pub boots: Vec<usize>,
    /// What the last boot came to.
    pub diagnosis: Diagnosis,
}

/// A network card of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// PCI vendor and device as `8086:15f3`; empty when not known.
    pub id: String,
    /// Linux driver that served it when the machine was in the cluster last; empty when it never was.
    pub driver: String,
}

/// Something that happened, once or several times in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When first, Unix time in milliseconds.
    pub at_unix_ms: u64,
    /// When last; the same as `at_unix_ms` for what happened once.
    pub last_unix_ms: u64,
    /// How many times in a row.
    pub times: u32,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// Firmware or a loader asked for an address and a boot.
    Discover {
        /// `pxe`, `ipxe` or `http`.
        client: String,
        /// `bios`, `uefi-x64`, …
        firmware: String,
    },
    /// The head answered with an offer.
    Offer {
        /// Address offered; none from a proxy.
        address: Option<String>,
        /// What it was told to do, with the reason.
        answer: String,
        /// Whether that was to boot.
        boot: bool,
    },
    /// It took the offer, and that is on disk.
    Ack {
        /// Address, if the head gives addresses.
        address: Option<String>,
    },
    /// It fetched a file.
    File {
        /// Last component of the name it asked for.
        name: String,
    },
    /// It was handed a loader script: the boot is granted.
    Script {
        /// Image named in it.
        image: String,
    },
    /// PID 1 of the node told, when the node joined, how its boot went.
    Init {
        /// Milliseconds from the kernel's start to the report.
        uptime_ms: u64,
        /// Phases of PID 1.
        phases: Vec<Phase>,
    },
    /// It joined.
    Joined {
        /// Under this name.
        name: String,
        /// Whether it is the boot that had joined before: its connection was lost in between.
        again: bool,
    },
    /// The head would not have it.
    Refused {
        /// Why.
        reason: String,
    },
    /// It said that it goes home.
    Left {
        /// Why.
        reason: String,
    },
    /// Its state in `cidctl nodes` changed.
    State {
        /// To this.
        state: NodeState,
        /// Why.
        reason: String,
    },
    /// An administrator, or the clock, did something with it.
    Command {
        /// In plain words.
        text: String,
    },
    /// An operating system on it asked for an address: its own system, or the node's.
    System,
    /// Another server answered boots or addresses.
    Rival {
        /// Its address.
        server: String,
        /// In plain words.
        text: String,
    },
    /// The head itself started or stopped.
    Head {
        /// In plain words.
        text: String,
    },
}

/// One phase of PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Name.
    pub name: String,
    /// Milliseconds from the kernel's start to the phase's end.
    pub done_ms: u64,
}

/// What the last boot came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Stable name, kebab-case (`up`, `offer-not-taken`, `loader-refused`, …).
    pub verdict: String,
    /// Whether something is wrong that a person should mend.
    pub fault: bool,
    /// One line in plain words.
    pub text: String,
    /// What to do; empty when there is nothing to do.
    #[serde(default)]
    pub remedy: String,
}
