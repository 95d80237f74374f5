//! What the node software says: hello, pulse, going home. Must trust nothing in it beyond the machine's
//! own row.

use std::net::Ipv4Addr;

use cid_protocol::api::NodeState;
use cid_protocol::node::{
    Ending, Hello, Leaving, Load, MAX_STEPS, NODE_PROTOCOL_VERSION, ToNode, WayHome, Welcome,
};
use cid_protocol::trace::What;

use super::boot::WITHOUT_A_WORD;
use super::{ConnectionId, LOST_AFTER, Now, Output, Registry, judging, tame};
use crate::mac::Mac;
use crate::time::ClockOffset;

impl Registry {
    /// A node asks to join over `connection` from `address`. Who it is was said by its certificate. The answer is a [`Output::Send`].
    pub fn handle_hello(&mut self, now: Now, connection: ConnectionId, address: Ipv4Addr, hello: Hello) {
        let Some(mac) = self.certified(connection) else {
            let text = "its certificate was revoked a moment ago; restart the PC".to_owned();
            return self.refuse(connection, text);
        };
        if self
            .record(mac)
            .and_then(|record| self.group_of(record))
            .is_none()
        {
            let text = "this machine is not adopted; `cidctl adopt` takes it in".to_owned();
            return self.refuse(connection, text);
        }
        if hello.version != NODE_PROTOCOL_VERSION {
            let text = format!(
                "its node software speaks version {} of the messages, this head {NODE_PROTOCOL_VERSION}; rebuild the image with this head's cidbuild",
                hello.version
            );
            self.change_state(now, mac, NodeState::Refused, text.clone());
            let reason = text.clone();
            self.trace(now, Some(mac), What::Refused { reason });
            self.persist(mac);
            return self.refuse(connection, text);
        }
        let claimed = hello.incarnation;
        let uptime_ms = millis(hello.hardware.uptime_secs);
        let phases = hello.phases.clone();
        let same_boot = self.take_report(now, mac, connection, address, hello);
        let state = self.machines.get(&mac).map(|machine| machine.record.state);
        let welcomed = same_boot
            && matches!(
                state,
                Some(
                    NodeState::Up
                        | NodeState::Suspect
                        | NodeState::Draining
                        | NodeState::Lost
                        | NodeState::GoingHome
                )
            );
        // One that asks again after a refusal has told its beginning already.
        if !same_boot {
            self.trace(now, Some(mac), What::Init { uptime_ms, phases });
        }
        if !self.admit(now, mac, connection, welcomed) {
            return;
        }
        let member = self.assign_boot(now, mac, connection, same_boot, claimed);
        let same_boot = welcomed;
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        let machine_hold = machine.record.hold.clone();
        let root = match self.promise_root(mac, welcomed) {
            Ok(root) => root,
            Err(text) => {
                self.root_refused(now, mac, "template", text.clone());
                return self.refuse(connection, text);
            }
        };
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        let again = machine.record.boot_again.clone().filter(|_| same_boot);
        let hold = machine_hold.clone().or(again);
        let Some((group, settings)) = self.group_of(&machine.record) else {
            return;
        };
        let (patience, bail_out) = (settings.patience.as_secs(), settings.bail_out.as_secs());
        let (at_close, way_home) = (settings.at_close, settings.way_home);
        let group = group.to_owned();
        let knows_windows = machine.record.hardware.as_ref();
        let knows_windows = knows_windows.is_some_and(|hardware| hardware.windows_entry.is_some());
        match &hold {
            // It is back from a boot that was under way when it was released, or the release did not reach it.
            Some(reason) => self.enter_going_home(now, mac, reason.clone()),
            // The same member on a new connection: whether it answers is for its peers to say.
            None if member.again && self.is_doubted(mac) => {}
            None if same_boot => self.come_up(now, mac, "joined; found its head again".to_owned()),
            None => self.come_up(now, mac, "joined".to_owned()),
        }
        self.persist(mac);
        let name = self.machines[&mac].record.label();
        let joined = What::Joined {
            name: name.clone(),
            again: same_boot,
        };
        self.trace(now, Some(mac), joined);
        if way_home == WayHome::BootNext && !knows_windows && !same_boot {
            let text = "its firmware lists no entry for Windows, so way_home = \"boot-next\" cannot be had: it goes home by local boot";
            self.event(now, mac, "way-home", text.to_owned());
        }
        let (until, home_at_unix_ms) = (self.open_until(now, &group), self.closes_at(now, &group));
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.told = home_at_unix_ms;
        }
        let welcome = Welcome {
            name,
            group,
            time_unix_ms: now.unix_ms,
            bail_out_secs: bail_out,
            patience_secs: patience,
            site: self.site.clone(),
            until,
            home_at_unix_ms,
            at_close,
            way_home,
            member: member.ticket,
            root,
        };
        self.outputs.push_back(Output::Send {
            connection,
            message: ToNode::Welcome(welcome),
        });
        if let (Some(reason), None) = (&hold, &machine_hold) {
            self.tell_to_come_again(mac, connection, reason.clone());
        } else if let Some(reason) = hold {
            let message = ToNode::Release {
                patience_secs: patience,
                reason,
                // Somebody may stand before it: what held it is not told apart here.
                ending: Ending::Reboot,
                again: false,
            };
            self.outputs.push_back(Output::Send { connection, message });
        }
    }

    /// Takes over what a node says of itself; whether it is the boot that was known already.
    fn take_report(
        &mut self,
        now: Now,
        mac: Mac,
        connection: ConnectionId,
        address: Ipv4Addr,
        hello: Hello,
    ) -> bool {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return false;
        };
        if let Some(old) = machine.connection.replace(connection)
            && old != connection
        {
            self.connections.remove(&old);
            self.outputs.push_back(Output::Close { connection: old });
        }
        self.connections.insert(connection, mac);
        machine.heard = now.monotonic;
        machine.grace = LOST_AFTER;
        machine.way_out = Leaving::LocalBoot;
        machine.left_unsaid = false;
        machine.fetches = None;
        machine.calls.clear();
        let record = &mut machine.record;
        let boot_id = tame(&hello.boot_id, 64);
        let same_boot = record.boot_id.as_ref() == Some(&boot_id);
        record.boot_id = Some(boot_id);
        record.image = Some(tame(&hello.image, 64));
        record.door = Some(tame(&hello.door, 32))
            .filter(|door| !door.is_empty())
            .or(record.door.take());
        record.address = Some(address);
        record.last_seen = now.unix_secs();
        record.failed_boots = 0;
        if !same_boot {
            record.boot_again = None;
        }
        if !hello.hardware.uuid.is_empty() {
            record.uuid = Some(tame(&hello.hardware.uuid.to_ascii_lowercase(), 36));
        }
        record.product = Some(tame(&hello.hardware.product, 128)).filter(|product| !product.is_empty());
        let mut hardware = tame_hardware(hello.hardware);
        if same_boot {
            judging::carry_over(record.hardware.as_deref(), &mut hardware);
        }
        record.hardware = Some(Box::new(hardware));
        same_boot
    }

    pub(crate) fn refuse(&mut self, connection: ConnectionId, reason: String) {
        self.outputs.push_back(Output::Send {
            connection,
            message: ToNode::Refused { reason },
        });
        self.outputs.push_back(Output::Close { connection });
    }

    /// A heartbeat; it is answered with the time.
    pub fn handle_pulse(&mut self, now: Now, connection: ConnectionId, load: Load) {
        let Some(mac) = self.connections.get(&connection).copied() else {
            return;
        };
        let finite = load.load1.is_finite() && load.load1 >= 0.0;
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.load = finite.then_some(load);
        }
        self.hear(now, mac);
        self.revive(now, mac, connection);
        let message = ToNode::Pulse {
            time_unix_ms: now.unix_ms,
            plan: None,
        };
        self.outputs.push_back(Output::Send { connection, message });
    }

    /// The clock of the node at this connection was measured.
    pub fn handle_clock(&mut self, connection: ConnectionId, clock: ClockOffset) {
        let mac = self.connections.get(&connection);
        if let Some(machine) = mac.and_then(|mac| self.machines.get_mut(mac)) {
            machine.clock = Some(clock);
        }
    }

    /// A pulse over its own connection proves that a node still runs, whatever was heard in its name.
    fn revive(&mut self, now: Now, mac: Mac, connection: ConnectionId) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let record = &mut machine.record;
        let doubted = matches!(
            record.state,
            NodeState::Known | NodeState::Booting | NodeState::Home
        );
        let held = record.hold.as_deref().is_some_and(|hold| hold != WITHOUT_A_WORD);
        if machine.connection != Some(connection) || !doubted || held {
            return;
        }
        record.set_hold(None, None);
        record.failed_boots = 0;
        self.come_up(now, mac, "it still speaks".to_owned());
        self.persist(mac);
    }

    fn hear(&mut self, now: Now, mac: Mac) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        machine.heard = now.monotonic;
        machine.grace = LOST_AFTER;
        machine.record.last_seen = now.unix_secs();
        machine.stale = true;
        if machine.record.state == NodeState::Lost && machine.member.is_none() {
            self.come_up(now, mac, "heard again".to_owned());
            self.persist(mac);
        }
    }

    /// The node leaves by itself: a person, its own clock, an alarm. It is not booted again before its group opens the next time,
    /// or `wake`: the one who sat down at the PC has not finished when its own system has started.
    pub fn handle_going_home(
        &mut self,
        now: Now,
        connection: ConnectionId,
        reason: &str,
        leaving: Leaving,
        steps: &[String],
    ) {
        let Some(mac) = self.connections.get(&connection).copied() else {
            return;
        };
        let reason = tame(reason, 200);
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        // One that was sent home at the end of the hours is nobody's in particular: it comes again when they begin.
        let again = machine.record.boot_again.as_ref() == Some(&reason);
        let sent = again
            || machine.record.state == NodeState::GoingHome && !machine.left_unsaid
            || machine.leaving.is_some();
        let record = &machine.record;
        let open = self
            .group_of(record)
            .is_some_and(|(group, _)| self.is_open(now, group));
        let ends = self.hold_ends(now, record);
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        machine.way_out = leaving;
        machine.left_unsaid = false;
        // Told to come again, and then a person wanted it.
        let taken = machine.record.boot_again.is_some() && !again;
        if taken {
            machine.record.boot_again = None;
        }
        if machine.record.hold.is_none() && open && (taken || !sent) {
            machine.record.set_hold(Some(reason.clone()), ends);
        }
        self.enter_going_home(now, mac, reason.clone());
        let steps: Vec<String> = steps.iter().take(MAX_STEPS).map(|step| tame(step, 120)).collect();
        if !steps.is_empty() {
            self.event(now, mac, "leaving", steps.join("; "));
        }
        let reason = match leaving {
            Leaving::LocalBoot => reason,
            Leaving::BootNext => {
                format!("{reason}; its firmware starts its own system without asking (BootNext)")
            }
            Leaving::PowerOff => format!("{reason}; it switches itself off"),
        };
        self.trace(now, Some(mac), What::Left { reason });
        self.persist(mac);
    }

    /// The connection is gone. The machine has [`LOST_AFTER`] from its last sign of life to come back.
    pub fn handle_disconnect(&mut self, connection: ConnectionId) {
        self.vouched.remove(&connection);
        if let Some(mac) = self.connections.remove(&connection)
            && let Some(machine) = self.machines.get_mut(&mac)
            && machine.connection == Some(connection)
        {
            machine.connection = None;
            machine.load = None;
            machine.clock = None;
        }
    }
}

/// What a node says of its uptime; nonsense counts as nothing.
fn millis(secs: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(secs)
        .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(0))
}

/// Bounds every text and list of a report.
fn tame_hardware(mut hardware: cid_protocol::node::Hardware) -> cid_protocol::node::Hardware {
    let short = |text: &mut String| *text = tame(text, 128);
    short(&mut hardware.uuid);
    short(&mut hardware.product);
    short(&mut hardware.cpu_model);
    if let Some(entry) = &mut hardware.windows_entry {
        short(entry);
    }
    hardware.block_devices.truncate(64);
    hardware.block_devices.iter_mut().for_each(short);
    hardware.links.truncate(32);
    for link in &mut hardware.links {
        short(&mut link.name);
        short(&mut link.mac);
        short(&mut link.driver);
        short(&mut link.id);
        short(&mut link.address);
        short(&mut link.wake_on_lan);
    }
    if let Some(measured) = &mut hardware.measured {
        measured.peers.truncate(cid_protocol::measure::PEERS);
        short(&mut measured.head.skipped);
        for peer in &mut measured.peers {
            short(&mut peer.address);
            short(&mut peer.path.skipped);
        }
        measured.cpu_speed = measured.cpu_speed.filter(|speed| speed.is_finite());
    }
    if !hardware.uptime_secs.is_finite() {
        hardware.uptime_secs = 0.0;
    }
    hardware
}
