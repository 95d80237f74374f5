//! What an agent keeps in the PC's memory, so that the one PID 1 starts after it is the same member of the same boot. Must never
//! write anywhere but below `/run`, nor let anybody but root read it.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cid_protocol::node::MemberTicket;
use serde::{Deserialize, Serialize};

use crate::dhcp::Held;

/// In memory on every node: the root file system is a tmpfs, and so is `/run`.
pub(crate) const FOLDER: &str = "/run/cid";
/// A file of ours is never longer.
const MAX_FILE: u64 = 2 * 1024 * 1024;
/// Addresses kept: enough to find all the others by.
pub(crate) const MAX_PEERS: usize = 64;

/// The place of this boot among the members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// The head's last ticket, with the newest key.
    pub(crate) ticket: MemberTicket,
    /// The highest incarnation that was ever used here.
    pub(crate) incarnation: u64,
    /// The node's name.
    pub(crate) name: String,
    /// `bail_out`, in seconds.
    pub(crate) bail_out_secs: u64,
    /// Where others were last.
    pub(crate) peers: Vec<SocketAddrV4>,
}

/// A folder with files of ours.
#[derive(Debug, Clone)]
pub(crate) struct Keep {
    folder: PathBuf,
}

impl Keep {
    /// Files are in `folder`, which is made with the first of them.
    pub(crate) fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// What the agent before this one kept; `None` when there was none or it cannot be read.
    pub(crate) fn seat(&self) -> Option<Seat> {
        serde_json::from_str(&self.read("member.json")?).ok()
    }

    /// For the next agent. `false` when it could not be kept.
    pub(crate) fn keep_seat(&self, seat: &Seat) -> bool {
        let kept = serde_json::to_string(seat)
            .map_err(io::Error::from)
            .and_then(|text| self.write("member.json", &text));
        if let Err(error) = &kept {
            log!("cid-agent: {}/member.json: {error}", self.folder.display());
        }
        kept.is_ok()
    }

    /// The lease that the agent before this one held on the link with this address.
    pub(crate) fn lease(&self, mac: [u8; 6]) -> Option<Held> {
        serde_json::from_str(&self.read(&lease_file(mac))?).ok()
    }

    /// For the next agent; `None` takes it away.
    pub(crate) fn keep_lease(&self, mac: [u8; 6], held: Option<&Held>) {
        let name = lease_file(mac);
        let kept = match held {
            Some(held) => serde_json::to_string(held)
                .map_err(io::Error::from)
                .and_then(|text| self.write(&name, &text)),
            None => remove(&self.folder.join(&name)),
        };
        if let Err(error) = kept {
            log!("cid-agent: {}/{name}: {error}", self.folder.display());
        }
    }

    /// When the agent before this one last heard the head, since the kernel began.
    pub(crate) fn head_heard(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.read("head-heard")?.parse().ok()?))
    }

    /// For the next agent.
    pub(crate) fn keep_head_heard(&self, at: Duration) {
        if let Err(error) = self.write("head-heard", &at.as_millis().to_string()) {
            log!("cid-agent: {}/head-heard: {error}", self.folder.display());
        }
    }

    /// A file's text; `None` when there is none, or it is too long.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        let path = self.folder.join(name);
        let length = fs::metadata(&path).ok()?.len();
        if length > MAX_FILE {
            return None;
        }
        fs::read_to_string(path).ok()
    }

    /// Writes a file whole or not at all, for root alone.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        remove(&new)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(new, path)
    }
}

fn lease_file(mac: [u8; 6]) -> String {
    format!("lease-{}.json", mac.map(|byte| format!("{byte:02x}")).concat())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use cid_protocol::node::GroupKey;

    use super::*;

    #[test]
    fn a_seat_comes_back_and_is_for_root_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let keep = Keep::new(folder.path().join("cid"));
        assert_eq!(keep.seat(), None);
        let key = GroupKey {
            epoch: 3,
            secret: "c2VjcmV0".into(),
            revoked: false,
            thrown_out: Vec::new(),
        };
        let ticket = MemberTicket {
            id: "11".repeat(16),
            incarnation: 7,
            head_id: "22".repeat(16),
            head_incarnation: 1,
            key,
        };
        let mut seat = Seat {
            ticket,
            incarnation: 7,
            name: "lab-a01".into(),
            bail_out_secs: 600,
            peers: vec!["10.77.0.9:3101".parse().expect("address")],
        };
        assert!(keep.keep_seat(&seat));
        seat.incarnation = 8;
        assert!(keep.keep_seat(&seat));
        assert_eq!(keep.seat(), Some(seat));
        let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        keep.keep_head_heard(Duration::from_millis(1_234));
        assert_eq!(keep.head_heard(), Some(Duration::from_millis(1_234)));
        assert_eq!(mode(folder.path().join("cid/head-heard")), 0o600);
        assert_eq!(mode(folder.path().join("cid")), 0o700);
        assert_eq!(mode(folder.path().join("cid/member.json")), 0o600);
        fs::write(folder.path().join("cid/member.json"), "{").expect("written");
        assert_eq!(keep.seat(), None, "half a file is no seat");
    }
}
