//! Nodes as those who give each other chunks of a root image. Must not decide who fetches what (`cid_content::tickets` does).

use cid_content::tickets::Accused;

use super::{ConnectionId, Now, Record, Registry, tame};
use crate::mac::Mac;

/// Longest word of a node that is written down.
const MAX_REASON: usize = 200;

/// Its name, or its MAC address where head.toml took it in without one.
fn called(mac: Mac, record: &Record) -> String {
    record.name.clone().unwrap_or_else(|| mac.to_string())
}

impl Registry {
    /// Name and id of the node at this connection; none before it was welcomed.
    pub fn name_and_id(&self, connection: ConnectionId) -> Option<(String, String)> {
        let mac = self.connections.get(&connection)?;
        let record = &self.machines.get(mac)?.record;
        Some((called(*mac, record), record.node_id?.to_string()))
    }

    /// A node says that another gave it a wrong chunk: both timelines tell of it.
    pub fn handle_bad_peer(
        &mut self,
        now: Now,
        accuser: ConnectionId,
        peer: &str,
        chunk: u32,
        reason: &str,
        verdict: Accused,
    ) {
        let by = self.connections.get(&accuser).copied();
        let Some((by, (by_name, _))) = by.zip(self.name_and_id(accuser)) else {
            return;
        };
        let accused = self
            .machines
            .iter()
            .find(|(mac, machine)| called(**mac, &machine.record) == peer);
        let Some(accused) = accused.map(|(mac, _)| *mac) else {
            return;
        };
        let reason = tame(reason, MAX_REASON);
        let then = match verdict {
            Accused::Noted => format!("{by_name} does not ask it again"),
            Accused::Shunned => "no node is sent to it any more".to_owned(),
            Accused::Known | Accused::Ignored => return,
        };
        let text =
            format!("{peer} gave {by_name} a wrong chunk {chunk} of its root image ({reason}): {then}");
        self.event(now, by, "root-bad-peer", text.clone());
        self.event(now, accused, "root-bad-peer", text);
    }

    /// A chunk left the head right, and came to this node wrong.
    pub fn handle_wrong_chunk(&mut self, now: Now, connection: ConnectionId, chunk: u32, reason: &str) {
        let Some(mac) = self.connections.get(&connection).copied() else {
            return;
        };
        let reason = tame(reason, MAX_REASON);
        let text = format!(
            "chunk {chunk} of its root image came wrong over the wire ({reason}): it was thrown away and is fetched again"
        );
        self.event(now, mac, "root-wrong-chunk", text);
    }
}
