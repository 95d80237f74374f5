//! `/v1/images`: versions of images, who boots which, and rolling updates. Stable as [`crate::api`] is.

use serde::{Deserialize, Serialize};

/// `GET /v1/images`, and the answer to what changes them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ImageList {
    /// By name, then number.
    pub images: Vec<ImageRow>,
    /// What each group boots, by name of the group.
    pub groups: Vec<GroupImageRow>,
    /// The update under way, or the last one.
    #[serde(default)]
    pub roll: Option<RollReport>,
}

/// One version of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRow {
    /// `compute@3`.
    pub image: String,
    /// `compute`.
    pub name: String,
    /// 3.
    pub version: u32,
    /// Of all its files.
    pub bytes: u64,
    /// When the head took it in, Unix seconds.
    pub imported_unix: u64,
    /// SHA-256 of its manifest, lower-case hex.
    pub digest: String,
    /// Groups that boot it.
    pub groups: Vec<String>,
    /// How many nodes run it now.
    pub nodes: u32,
    /// Sequence under which nodes were promised it last; 0: they never were.
    pub sequence: u64,
    /// Why it is kept whatever `image gc` is told; empty when it may go.
    pub needed: String,
}

/// What a group boots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupImageRow {
    /// Name.
    pub group: String,
    /// `compute@3`, or `compute` while there is no version of it.
    pub image: String,
    /// What head.toml says.
    pub configured: String,
    /// It boots every newer version as soon as there is one.
    pub follows: bool,
    /// What `image rollback` goes back to.
    #[serde(default)]
    pub previous: Option<String>,
}

/// `POST /v1/images/set`: the group boots this from its next boot on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetImageRequest {
    /// Group of head.toml.
    pub group: String,
    /// `compute@3`, or `compute` for its newest version.
    pub image: String,
    /// Boot every newer version as soon as there is one.
    #[serde(default)]
    pub follow: bool,
}

/// `POST /v1/images/import`: a built image becomes a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportImageRequest {
    /// Folder of the image on the head.
    pub folder: String,
}

/// `POST /v1/images/rollback`: the group boots what it booted before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Group of head.toml.
    pub group: String,
}

/// `POST /v1/images/gc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Newest versions of each image that stay.
    pub keep: u32,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to [`CollectRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// What is gone, or would be.
    pub removed: Vec<String>,
    /// What stays, with the reason.
    pub kept: Vec<Kept>,
    /// Bytes of what is gone.
    pub bytes: u64,
    /// Nothing was removed.
    pub dry_run: bool,
}

/// A version that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// `compute@3`.
    pub image: String,
    /// Plain words.
    pub reason: String,
}

/// `POST /v1/images/roll`: nodes are restarted into an image, a few at a time; answered with [`ImageList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollRequest {
    /// Which nodes.
    pub nodeset: String,
    /// `compute@3`, or `compute` for its newest version; `None`: what the nodes' group boots.
    #[serde(default)]
    pub image: Option<String>,
    /// Nodes that may be on their way at once, from 1 on.
    pub at_a_time: u32,
    /// A node is only begun while so many of the set stay `up`.
    #[serde(default)]
    pub keep_up: u32,
    /// How long a node has to stay `up` until it counts as healthy, in seconds.
    pub healthy_secs: u64,
}

/// `POST /v1/images/roll/stop`: no further node is begun; those on their way are waited for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRollRequest {}

/// A rolling update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollReport {
    /// Image that nodes are restarted into.
    pub image: String,
    /// As it was asked for.
    pub nodeset: String,
    /// Unix seconds.
    pub begun_unix: u64,
    /// Unix seconds; `None` while it goes on.
    #[serde(default)]
    pub ended_unix: Option<u64>,
    /// How it stands.
    pub state: RollState,
    /// Why, or what it waits for; may be empty.
    pub reason: String,
    /// Nodes in their order.
    pub nodes: Vec<RollRow>,
}

/// How an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollState {
    /// It goes on.
    Running,
    /// An administrator stopped it; nodes on their way are waited for.
    Stopping,
    /// A node did not become healthy; it and those on their way go back.
    Failed,
    /// All nodes are through.
    Done,
    /// Stopped.
    Stopped,
}

/// One node of an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollRow {
    /// Name, or MAC.
    pub name: String,
    /// MAC.
    pub mac: String,
    /// Where it is.
    pub phase: RollPhase,
    /// Since when, Unix seconds.
    pub since_unix: u64,
    /// What it ran before; empty when that is not known.
    pub from: String,
    /// Why; may be empty.
    pub reason: String,
}

/// Where a node of an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollPhase {
    /// Its turn has not come.
    Waiting,
    /// It finishes its work and restarts.
    Leaving,
    /// It boots the new image.
    Booting,
    /// It is up, and has to stay so.
    Checking,
    /// It runs the new image.
    Done,
    /// It was left out; it boots the new image when it boots next.
    Skipped,
    /// It did not become healthy and boots what it had before.
    Returning,
    /// It is back on what it had before.
    Returned,
    /// It did not become healthy, and has not come back either.
    Failed,
}

impl RollPhase {
    /// It is not there for work, or not known to be worth it.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Leaving | Self::Booting | Self::Checking)
    }

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Leaving => "leaving",
            Self::Booting => "booting",
            Self::Checking => "checking",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Returning => "returning",
            Self::Returned => "returned",
            Self::Failed => "failed",
        }
    }
}
