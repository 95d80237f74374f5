//! Programs on nodes: what `cidctl run`, the head, a node's agent and the first process of a job say to each other. Each message is the
//! text of a control frame of `cid-streams`; bytes of the programs travel in that crate's other frames.

use serde::{Deserialize, Serialize};

/// Version of these messages and of the frames.
pub const WORK_VERSION: u32 = 1;

/// Longest control frame, in bytes: a command with its environment.
pub const MAX_CONTROL: usize = 256 * 1024;

/// Most ranks of one job.
pub const MAX_RANKS: u32 = 10_000;

/// The protocol that `GET /v1/run` is upgraded to.
pub const UPGRADE: &str = "cid-run";

/// Who a root client's programs run as, unless it names somebody: nobody, as most systems number it.
pub const NOBODY: u32 = 65_534;

/// Bytes that need be no UTF-8, each behind the other with a NUL between, in base64: arguments, an environment, a path.
pub type Words = String;

/// From `cidctl run` to the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromClient {
    /// The first message.
    Run(Box<RunRequest>),
    /// To every rank's process group.
    Signal {
        /// Its number (Linux, x86-64).
        signal: i32,
    },
    /// End the job at once.
    Kill,
}

/// What is to be run, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// [`WORK_VERSION`].
    pub version: u32,
    /// How many.
    pub ranks: u32,
    /// At most so many on one node.
    pub per_node: Option<u32>,
    /// Node set to choose from; any node that is up otherwise.
    pub nodes: Option<String>,
    /// More ranks than CPUs, if need be.
    pub oversubscribe: bool,
    /// User and group to run as; only root may name one.
    pub user: Option<(u32, u32)>,
    /// What each rank becomes.
    pub program: Program,
}

/// A command with its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Command and arguments.
    pub command: Words,
    /// `NAME=value` each.
    pub environment: Words,
    /// Working folder, taken where the node has it.
    pub folder: Words,
    /// File mode creation mask.
    pub umask: u32,
}

/// From the head to `cidctl run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToClient {
    /// Nothing was started.
    Refused {
        /// What and why.
        error: String,
        /// What to do.
        remedy: String,
    },
    /// Ranks were placed, and their nodes told.
    Started {
        /// The job's number.
        job: u32,
        /// Where ranks are, in their order.
        places: Vec<Place>,
    },
    /// A rank ended. Its output may still be under way.
    Ended {
        /// Which.
        rank: u32,
        /// How.
        outcome: Outcome,
    },
}

/// Ranks on one node, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// First of its ranks.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// From the head to an agent, and from there to the job's first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Order {
    /// Start these ranks.
    Start(Box<Start>),
    /// To every rank's process group.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// End the job: SIGHUP, and SIGKILL after a moment.
    End,
    /// End it at once.
    Kill,
}

/// The ranks of one job on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The job's number, for `CID_JOB`.
    pub job: u32,
    /// All ranks of the job, for `CID_SIZE`; it decides the windows of its streams, too.
    pub size: u32,
    /// First rank here.
    pub first: u32,
    /// How many here.
    pub count: u32,
    /// Names of all its nodes, for `CID_NODES`, as a node set.
    pub nodes: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What each becomes.
    pub program: Program,
}

/// From the job's first process to the agent, and from there to the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Report {
    /// A rank ended, or did not begin.
    Ended {
        /// Which.
        rank: u32,
        /// How.
        outcome: Outcome,
    },
    /// Nothing of the job is left on the node.
    Over,
}

/// How a rank ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Outcome {
    /// With this status.
    Exited {
        /// 0 to 255.
        status: i32,
    },
    /// By a signal.
    Signaled {
        /// Its number.
        signal: i32,
    },
    /// There is no such command on the node.
    NotFound,
    /// The command is there, and cannot be run; why.
    NotRun {
        /// What the system said.
        why: String,
    },
    /// Not the program's doing: the node is gone, or could not make the surroundings.
    Lost {
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// The status that a shell would show for it.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited { status } => u8::try_from(*status & 0xff).unwrap_or(u8::MAX),
            Self::Signaled { signal } => u8::try_from(128 + (*signal & 0x7f)).unwrap_or(u8::MAX),
            Self::NotFound => 127,
            Self::NotRun { .. } => 126,
            Self::Lost { .. } => 125,
        }
    }
}

/// Whether a signal may be sent to programs: those that ask something of them, or end or stop them, and no others.
#[must_use]
pub fn is_forwarded(signal: i32) -> bool {
    // HUP INT QUIT KILL USR1 USR2 ALRM TERM CONT STOP TSTP TTIN TTOU URG WINCH
    matches!(signal, 1 | 2 | 3 | 9 | 10 | 12 | 14 | 15 | 18..=23 | 28)
}
