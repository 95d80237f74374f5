//! What the boot server saw of a machine. Must not decide anything: it only keeps what was decided.

use std::net::Ipv4Addr;
use std::time::Duration;

use cid_discovery::history::damping::SAID_SO;
use cid_protocol::api::NodeState;
use cid_protocol::node::Leaving;
use cid_protocol::trace::What;

use super::{BOOT_PATIENCE, Now, Record, Registry, tame};
use crate::mac::Mac;

/// Why a node that was up and whose firmware suddenly asks for a boot is kept at home.
pub(super) const WITHOUT_A_WORD: &str = "it left the cluster without a word (reset, crash or power cut)";

/// What firmware said of its machine; empty fields were not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firmware {
    /// SMBIOS UUID from option 97, lower-case.
    pub uuid: Option<String>,
    /// `bios`, `uefi-x64`, …
    pub firmware: Option<String>,
    /// `pxe-bios`, `pxe-uefi`, …
    pub door: Option<String>,
}

/// What a machine was told, in three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Boot this image.
    Boot,
    /// Go to your own disk.
    LocalDisk,
    /// An address at most.
    Nothing,
}

/// Something the boot server saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A DHCP message of whatever runs on the machine (Windows, Linux): it is alive.
    Heard,
    /// Firmware or iPXE asks for a boot: a boot session begins. Repeats before the script are one session.
    SessionStarted {
        /// Who.
        firmware: Firmware,
        /// `pxe`, `ipxe` or `http`.
        client: &'static str,
    },
    /// It was given an address.
    Leased(Ipv4Addr),
    /// An offer leaves, or did.
    Offered {
        /// Address in it.
        address: Option<Ipv4Addr>,
        /// What it was told, with the reason.
        answer: String,
        /// Whether that was to boot.
        boot: bool,
    },
    /// Its loader named its card: PCI vendor and device as `8086:15f3`.
    Card(String),
    /// The policy answered.
    Decided {
        /// What.
        verdict: Verdict,
        /// In plain words with the reason.
        text: String,
    },
    /// A loader script is about to be handed out; fetched several times in one session it counts once.
    ScriptHandedOut {
        /// Image named in it.
        image: String,
    },
    /// It fetched a file.
    FileServed {
        /// As it asked for it.
        path: String,
    },
}

impl Record {
    /// Why it may not boot if its firmware asks now. A node that was up and that nobody released said nothing before it
    /// was restarted: a crash, or a person who wants the PC. Either way it is theirs.
    pub fn hold_when_asking(&self) -> Option<String> {
        let was_up = match self.state {
            NodeState::Up | NodeState::Draining | NodeState::Suspect => true,
            // The count is zero from the moment it was up: a machine lost before that never joined.
            NodeState::Lost => self.failed_boots == 0,
            // Its peers were told, and its own words, which say why, were lost: it may be a person's wish.
            NodeState::GoingHome => self.reason == SAID_SO,
            _ => false,
        };
        self.hold
            .clone()
            .or_else(|| (was_up && self.boot_again.is_none()).then(|| WITHOUT_A_WORD.to_owned()))
    }
}

/// How long our iPXE may run on a plain ROM's PC until it asks again; a switch with spanning tree keeps it waiting for 50 s.
const LOADER_RUNS: Duration = Duration::from_secs(120);
/// That iPXE's file.
const LOADER: &str = "undionly.kpxe";

impl Registry {
    /// Whether an iPXE that asks in the name of `mac` may be one that we served.
    pub fn loader_running(&self, now: Now, mac: Mac) -> bool {
        self.machines
            .get(&mac)
            .and_then(|machine| machine.loader_served)
            .is_some_and(|served| now.monotonic.saturating_sub(served) < LOADER_RUNS)
    }

    /// Takes in what the boot server saw of `mac`.
    pub fn handle_observation(&mut self, now: Now, mac: Mac, observation: Observation) {
        let new = self.meet(now, mac);
        if new {
            let text = format!("{mac} was heard for the first time");
            self.event(now, mac, "seen", text);
        }
        match observation {
            Observation::Heard => self.trace(now, Some(mac), What::System),
            Observation::SessionStarted { firmware, client } => {
                let discover = What::Discover {
                    client: client.to_owned(),
                    firmware: firmware.firmware.clone().unwrap_or_default(),
                };
                self.trace(now, Some(mac), discover);
                self.start_session(now, mac, firmware);
            }
            Observation::Leased(address) => {
                let taken = What::Ack {
                    address: Some(address.to_string()),
                };
                self.trace(now, Some(mac), taken);
                self.take_address(mac, address);
            }
            Observation::Offered {
                address,
                answer,
                boot,
            } => {
                let address = address.map(|address| address.to_string());
                let offer = What::Offer {
                    address,
                    answer,
                    boot,
                };
                self.trace(now, Some(mac), offer);
            }
            Observation::Card(card) => self.set_card(mac, card),
            Observation::Decided { verdict, text } => self.take_decision(now, mac, verdict, &text),
            Observation::ScriptHandedOut { image } => return self.count_script(now, mac, image),
            Observation::FileServed { path } => self.log_file(now, mac, &path),
        }
        if new {
            self.persist(mac);
        }
    }

    fn start_session(&mut self, now: Now, mac: Mac, firmware: Firmware) {
        self.roll_sees_boot(now, mac);
        let hold_ends = self.record(mac).and_then(|record| self.hold_ends(now, record));
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let before = machine.record.clone();
        let record = &mut machine.record;
        record.uuid = firmware.uuid.map(|text| tame(&text, 36)).or(record.uuid.take());
        record.firmware = firmware
            .firmware
            .map(|text| tame(&text, 32))
            .or(record.firmware.take());
        record.door = firmware.door.map(|text| tame(&text, 32)).or(record.door.take());
        record.session_counted = false;
        machine.decision_logged = false;
        machine.last_file = None;
        machine.way_out = Leaving::LocalBoot;
        // It is on.
        machine.calls.clear();
        let leaving =
            matches!(before.state, NodeState::Draining | NodeState::Suspect) && machine.leaving.is_some();
        if before.hold.is_none() {
            record.set_hold(before.hold_when_asking(), hold_ends);
        }
        // It has come again: the word is kept.
        let again = record.boot_again.take().is_some();
        if leaving && !again {
            self.enter_going_home(now, mac, before.reason.clone());
        } else if matches!(
            before.state,
            NodeState::Joining
                | NodeState::Up
                | NodeState::Suspect
                | NodeState::Draining
                | NodeState::Lost
                | NodeState::Booting
        ) || again && before.state == NodeState::GoingHome
        {
            // The node software is gone: firmware does not speak while Linux runs. Should it be somebody else's
            // packet with this MAC, the next pulse puts the row right.
            self.change_state(
                now,
                mac,
                NodeState::Known,
                "its firmware asks for a boot".to_owned(),
            );
        }
        let changed = self.machines.get(&mac).is_some_and(|machine| {
            let record = &machine.record;
            record.uuid != before.uuid
                || record.firmware != before.firmware
                || record.door != before.door
                || record.state != before.state
                || record.hold != before.hold
                || again
                || before.session_counted
        });
        if changed {
            self.persist(mac);
        }
    }

    fn take_address(&mut self, mac: Mac, address: Ipv4Addr) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if machine.record.address != Some(address) {
            machine.record.address = Some(address);
            self.persist(mac);
        }
    }

    fn take_decision(&mut self, now: Now, mac: Mac, verdict: Verdict, text: &str) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let text = tame(text, 300);
        let changed = machine.record.decision.as_deref() != Some(&text);
        let log = changed || !machine.decision_logged;
        machine.decision_logged = true;
        machine.record.decision = Some(text.clone());
        let state = machine.record.state;
        if log {
            self.event(now, mac, "decision", text.clone());
        }
        // A machine nobody adopted stays `seen` whatever it is told.
        let stays = matches!(
            state,
            NodeState::Seen | NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Draining
        );
        let sent_home = verdict == Verdict::LocalDisk && !stays;
        if sent_home {
            self.change_state(now, mac, NodeState::Home, text);
        }
        if changed || (sent_home && state != NodeState::Home) {
            self.persist(mac);
        }
    }

    /// Counts a loader script once per boot session. The record is written before the script leaves.
    fn count_script(&mut self, now: Now, mac: Mac, image: String) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if machine.record.session_counted {
            return;
        }
        machine.record.session_counted = true;
        let script = What::Script { image: image.clone() };
        machine.record.failed_boots = machine.record.failed_boots.saturating_add(1);
        machine.record.image = Some(tame(&image, 64));
        machine.heard = now.monotonic;
        machine.grace = BOOT_PATIENCE;
        let text = format!("was handed the loader script of image {}", tame(&image, 64));
        self.change_state(now, mac, NodeState::Booting, text);
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.step_until = Some(now.unix_secs() + BOOT_PATIENCE.as_secs());
        }
        self.trace(now, Some(mac), script);
        self.persist(mac);
    }

    /// One line per file and boot: firmware asks twice (for the size first), and HEAD comes before GET.
    fn log_file(&mut self, now: Now, mac: Mac, path: &str) {
        let name = tame(path.rsplit(['/', '\\']).next().unwrap_or(path), 64);
        self.trace(now, Some(mac), What::File { name: name.clone() });
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if name == LOADER {
            machine.loader_served = Some(now.monotonic);
        }
        if machine.last_file.as_ref() != Some(&name) {
            machine.last_file = Some(name.clone());
            self.event(now, mac, "file", format!("fetches {name}"));
        }
    }
}
