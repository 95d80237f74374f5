//! The registry as the control API shows it. Reads only.

use std::collections::BTreeMap;

use cid_protocol::api::NodeRow;

use super::{ConnectionId, Registry, STATES, address_text, state_word};
use crate::jobs::place::Candidate;
use crate::mac::Mac;

impl Registry {
    /// Rows of the machines given, in the API's order: by name, unnamed ones by MAC behind them.
    pub fn rows(&self, macs: &[Mac]) -> Vec<NodeRow> {
        let mut rows: Vec<NodeRow> = macs.iter().filter_map(|mac| self.row(*mac)).collect();
        rows.sort_by(|a, b| (a.name == a.mac, &a.name).cmp(&(b.name == b.mac, &b.name)));
        rows
    }

    /// Those of the machines given that take work, with the load they told last. Ranks they have are for others to know.
    pub fn workers(&self, macs: &[Mac]) -> Vec<Candidate<ConnectionId>> {
        let worker = |mac: &Mac| {
            let machine = self.machines.get(mac).filter(|_| self.takes_work(*mac))?;
            Some(Candidate {
                id: machine.connection?,
                name: machine.record.label(),
                cpus: machine.record.hardware.as_ref()?.cpus,
                used: 0,
                load: machine.load.map_or(0.0, |load| load.load1),
            })
        };
        macs.iter().filter_map(worker).collect()
    }

    /// Every machine.
    pub fn everyone(&self) -> Vec<Mac> {
        self.machines.keys().copied().collect()
    }

    /// How many machines are in each state.
    pub fn count_by_state(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<&'static str, usize> =
            STATES.iter().map(|state| (state_word(*state), 0)).collect();
        for record in self.records() {
            *counts.entry(state_word(record.state)).or_default() += 1;
        }
        counts
    }

    fn row(&self, mac: Mac) -> Option<NodeRow> {
        let machine = self.machines.get(&mac)?;
        let record = &machine.record;
        let group = self.group_of(record);
        let up = machine.is_here();
        Some(NodeRow {
            name: record.label(),
            group: group.map(|(name, _)| name.to_owned()).unwrap_or_default(),
            state: record.state,
            reason: record.reason.clone(),
            since_unix: record.since,
            deadline_unix: machine.step_until,
            address: address_text(record.address),
            mac: mac.to_string(),
            uuid: record.uuid.clone(),
            product: record.product.clone(),
            firmware: record.firmware.clone(),
            cpus: record.hardware.as_ref().map_or(0, |hardware| hardware.cpus),
            memory_kib: record.hardware.as_ref().map_or(0, |hardware| hardware.memory_kib),
            memory_peak_kib: machine.peak_kib.filter(|_| up),
            clock_ahead_us: machine.clock.filter(|_| up).map(|clock| clock.ahead_us),
            clock_error_us: machine.clock.filter(|_| up).map(|clock| clock.error_us),
            load1: machine.load.filter(|_| up).map(|load| load.load1),
            image: record
                .image
                .clone()
                .filter(|_| up)
                .or_else(|| self.image_for(record).map(str::to_owned)),
            door: record.door.clone(),
            last_seen_unix: record.last_seen,
            connected: machine.connection.is_some(),
            last_decision: record.decision.clone(),
            hardware: record.hardware.as_deref().cloned(),
        })
    }
}
