//! What runs inside a root image without a job: `/etc/cid/services.json` in the root, written by `cidbuild` from the
//! recipe's `[[root.services]]` and `[[root.mounts]]`, read by `cid-agent` after it has mounted the root. JSON because
//! the agent has a reader for it already.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where it lies in the root.
pub const SERVICES_PATH: &str = "/etc/cid/services.json";

/// Version of this document's shape. A reader refuses a larger one.
pub const SERVICES_VERSION: u32 = 1;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// [`SERVICES_VERSION`] of the writer.
    pub version: u32,
    /// Started in this order, none waits for another.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Mounted in this order before any service starts.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Run as root once the services are started, again and again for a minute at most: its status 0 says that the image works on
    /// this PC, which is not `up` before. Program (absolute path in the root) and its arguments; none when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// What an OCI image said of its process; absent for other bases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `[a-z0-9][a-z0-9-]*`, unique.
    pub name: String,
    /// Program (absolute path in the root) and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Whose name it runs under, found in the root's `/etc/passwd`.
    pub user: String,
    /// When it is started again.
    pub restart: Restart,
    /// Added to its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// When an ended service is started again, never sooner than one second after its last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    Always,
    /// When its status was not 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// A file system mounted in the root. Never a local disk: the node has no driver for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What: `HEAD:/srv/home` for NFS, the word `tmpfs` for memory.
    pub source: String,
    /// Absolute path in the root; the folder exists in the image.
    pub target: String,
    /// File system type as mount(8) has it.
    pub kind: String,
    /// Options, comma-separated; may be empty.
    #[serde(default)]
    pub options: String,
}

/// Defaults for a process in the root, from an OCI image's `config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// `NAME=value`, in the image's order.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Put before a command.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// The command when nobody gives one.
    #[serde(default)]
    pub command: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    #[serde(default)]
    pub user: String,
    /// Folder it starts in; empty is `/`.
    #[serde(default)]
    pub folder: String,
}
