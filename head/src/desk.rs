//! Between the boot server and the registry: what the head knows goes to the policy, what was seen comes back. Must
//! not decide: every decision is `cid_bootserver::policy`'s.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cid_bootserver::counters::Counters;
use cid_bootserver::dhcp::leases::LeaseRecord;
use cid_bootserver::dhcp::rival::{Rival, Sighting};
use cid_bootserver::dhcp::server::Observation as Seen;
use cid_bootserver::directory::{CommitError, Directory};
use cid_bootserver::machine::{Client, Platform};
use cid_bootserver::policy::{self, Action, Decision, Facts, Hours, Loader, Stage, Standing};
use cid_bootserver::quirks;
use cid_bootserver::site::{Offers, full_cmdline};
use cid_protocol::api::{BootAnswer, DhcpStatus, Explanation, NodeState, RivalRow};
use cid_protocol::trace::What;

use crate::api::{BootView, Drivers};
use crate::config::{Config, DhcpMode, Machine};
use crate::core::Core;
use crate::mac::Mac;
use crate::registry::{Firmware, Now, Observation, Record, Registry, Verdict};
use crate::rivals::Rivals;
use crate::store::{StoreError, Write};
use crate::trust::Trust;

/// What the boot server asks and tells.
pub struct Desk {
    core: Arc<Core>,
    offers: Arc<Offers>,
    counters: Arc<Counters>,
    /// End of each machine's lease, Unix seconds.
    leases: Mutex<BTreeMap<Mac, u64>>,
    decisions: Mutex<BTreeMap<String, u64>>,
    rival: Mutex<Option<Rival>>,
    mode: DhcpMode,
    quirks: BTreeMap<Mac, String>,
    rivals: Mutex<Rivals>,
    trust: Option<Arc<Trust>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Starts with what is offered and what was promised.
    pub fn new(
        core: Arc<Core>,
        offers: Arc<Offers>,
        counters: Arc<Counters>,
        leases: &[LeaseRecord],
    ) -> Self {
        let leases = leases
            .iter()
            .map(|lease| (lease.mac, lease.expires_unix))
            .collect();
        Self {
            core,
            offers,
            counters,
            leases: Mutex::new(leases),
            decisions: Mutex::default(),
            rival: Mutex::default(),
            mode: DhcpMode::Full,
            quirks: BTreeMap::new(),
            rivals: Mutex::default(),
            trust: None,
        }
    }

    /// Boots carry this authority's pin and tokens.
    #[must_use]
    pub fn trusting(mut self, trust: Arc<Trust>) -> Self {
        self.trust = Some(trust);
        self
    }

    /// What the configuration says of DHCP and of single machines.
    #[must_use]
    pub fn configured(mut self, config: &Config) -> Self {
        self.mode = config.dhcp.mode;
        let quirk = |(mac, machine): (&Mac, &Machine)| Some((*mac, machine.quirk.clone()?));
        self.quirks = config.machines.iter().filter_map(quirk).collect();
        self
    }

    fn note(&self, mac: Mac, seen: Observation) {
        self.core
            .tell(|registry, now| registry.handle_observation(now, mac, seen));
    }
}

impl Directory for Desk {
    fn standing(&self, facts: &Facts) -> Standing {
        let now = self.core.now();
        let mut standing = self.core.read(|registry| standing(registry, now, facts));
        standing.quirk = self.quirks.get(&facts.mac).cloned();
        standing
    }

    fn observe(&self, mac: Mac, observation: Seen) {
        self.note(mac, translate(observation));
    }

    async fn commit_leases(&self, records: Vec<LeaseRecord>) -> Result<(), CommitError> {
        let writes = records.iter().copied().map(Write::Lease).collect();
        let failed = |error: StoreError| CommitError(error.to_string());
        self.core
            .store()
            .submit(writes)
            .map_err(failed)?
            .done()
            .await
            .map_err(failed)?;
        lock(&self.leases).extend(records.iter().map(|record| (record.mac, record.expires_unix)));
        Ok(())
    }

    async fn script_handed_out(&self, mac: Mac, image: String) -> Result<(), CommitError> {
        let seen = Observation::ScriptHandedOut { image };
        let (_, pending) = self
            .core
            .act(|registry, now| registry.handle_observation(now, mac, seen));
        pending
            .done()
            .await
            .map_err(|error| CommitError(error.to_string()))
    }

    fn boot_words(&self, mac: Mac) -> String {
        let Some(trust) = &self.trust else {
            return String::new();
        };
        let uuid = self.core.read(|registry| registry.record(mac)?.uuid.clone());
        trust.boot_words(self.core.now().unix_ms, mac, &uuid.unwrap_or_default())
    }

    fn file_served(&self, _client: Ipv4Addr, mac: Option<Mac>, path: &str) {
        if let Some(mac) = mac {
            self.note(
                mac,
                Observation::FileServed {
                    path: path.to_owned(),
                },
            );
        }
    }

    fn rival(&self, rival: Rival, present: bool) {
        *lock(&self.rival) = present.then_some(rival);
        let text = if present {
            format!(
                "another DHCP server answers at {}; this head keeps silent until it has gone",
                rival.server
            )
        } else {
            format!(
                "the DHCP server at {} has gone; this head answers again",
                rival.server
            )
        };
        let step = What::Rival {
            server: rival.server.to_string(),
            text: text.clone(),
        };
        self.core
            .act(|registry, now| {
                registry.trace(now, None, step);
                registry.note("rival-dhcp", text);
            })
            .1
            .unacknowledged();
    }

    fn sighted(&self, sighting: Sighting) {
        let now = self.core.now().unix_ms / 1_000;
        let Some(news) = lock(&self.rivals).take(now, &sighting) else {
            return;
        };
        tracing::info!(server = %sighting.server, "{news}");
        let step = What::Rival {
            server: sighting.server.to_string(),
            text: news.clone(),
        };
        self.core
            .act(|registry, now| {
                // Of interest to the machine it spoke to, if that is one of ours; to all in any case.
                if registry.record(sighting.to).is_some() {
                    registry.trace(now, Some(sighting.to), step.clone());
                }
                registry.trace(now, None, step);
                registry.note("rival", news);
            })
            .1
            .unacknowledged();
    }

    fn decide(&self, facts: &Facts) -> Decision {
        let decision = policy::decide(facts, &self.standing(facts), &self.offers.current().site);
        let key = format!("{}/{}", action_word(&decision.action), decision.reason.counter());
        *lock(&self.decisions).entry(key).or_default() += 1;
        decision
    }
}

impl BootView for Desk {
    /// Goes by what the machine was when it last asked.
    fn explain(&self, mac: Mac) -> Explanation {
        let now = self.core.now();
        let (record, exception) = self.core.read(|registry| {
            let record = registry.record(mac).cloned();
            let group = record.as_ref().and_then(|record| registry.group_of(record));
            let exception = group.and_then(|(name, _)| registry.exception_text(now, name));
            (record, exception)
        });
        let facts = last_facts(mac, record.as_ref());
        let up = record.is_some_and(|record| {
            matches!(
                record.state,
                NodeState::Up | NodeState::Suspect | NodeState::Draining
            )
        });
        // Not through `decide`: nobody was answered, so nothing is counted.
        let decision = policy::decide(&facts, &self.standing(&facts), &self.offers.current().site);
        let boot = match &decision.action {
            Action::Boot(boot) => Some(BootAnswer {
                image: boot.image.clone(),
                loader: boot.loader.file().to_owned(),
                // Without a token: whoever asks here is not about to boot.
                cmdline: match &self.trust {
                    Some(trust) => {
                        format!(
                            "{} {}",
                            full_cmdline(boot, mac, self.offers.head()),
                            trust.pin_word()
                        )
                    }
                    None => full_cmdline(boot, mac, self.offers.head()),
                },
            }),
            Action::LocalDisk | Action::Restart | Action::NoBootAnswer => None,
        };
        let mut text = match &decision.reason {
            why if up => format!("it is up; if its firmware asked now: {why}"),
            why => why.to_string(),
        };
        if let Some(exception) = exception {
            text.push_str(&format!("; {exception}"));
        }
        for quirk in [decision.manner.by_table, decision.manner.forced]
            .into_iter()
            .flatten()
        {
            let why = quirks::named(quirk).map_or("", |quirk| quirk.reason);
            text.push_str(&format!("; quirk {quirk} is in force: {why}"));
        }
        Explanation {
            mac: mac.to_string(),
            action: action_word(&decision.action).to_owned(),
            reason: decision.reason.name().to_owned(),
            text,
            boot,
            judged: Vec::new(),
        }
    }

    fn dhcp(&self) -> DhcpStatus {
        match (self.mode, &*lock(&self.rival)) {
            (DhcpMode::Proxy, _) => DhcpStatus::Proxy,
            (DhcpMode::Off, _) => DhcpStatus::Off,
            (DhcpMode::Full, Some(rival)) => DhcpStatus::Suspended {
                rival: rival.server.to_string(),
            },
            (DhcpMode::Full, None) => DhcpStatus::Serving,
        }
    }

    fn rivals(&self) -> Vec<RivalRow> {
        lock(&self.rivals).rows()
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        self.counters.snapshot()
    }

    fn decisions(&self) -> BTreeMap<String, u64> {
        lock(&self.decisions).clone()
    }

    fn drivers(&self, image: &str) -> Option<Drivers> {
        let current = self.offers.current();
        let manifest = current.manifest(image)?;
        Some(Drivers {
            names: manifest.nic_drivers.clone(),
            ids: manifest.nic_ids.clone(),
        })
    }

    fn leases(&self) -> usize {
        let now = self.core.now().unix_ms / 1_000;
        lock(&self.leases)
            .values()
            .filter(|expires| **expires > now)
            .count()
    }
}

fn standing(registry: &Registry, now: Now, facts: &Facts) -> Standing {
    let Some(record) = registry.record(facts.mac) else {
        let mut record = Record::seen(facts.mac, 0);
        record.uuid = facts.uuid.map(|uuid| uuid.to_string());
        let group = registry.group_of(&record).map(|(name, _)| name.to_owned());
        return Standing {
            hours: group
                .as_deref()
                .map_or(Hours::Never, |group| registry.hours(now, group)),
            image: group
                .as_deref()
                .and_then(|group| registry.group_image(group))
                .map(str::to_owned),
            group,
            ..Standing::default()
        };
    };
    // A group that it was adopted into and that is gone from head.toml is the policy's to name.
    let group = registry
        .group_of(record)
        .map(|(name, _)| name.to_owned())
        .or_else(|| record.group.clone());
    Standing {
        hours: group
            .as_deref()
            .map_or(Hours::Never, |group| registry.hours(now, group)),
        group,
        name: record.name.clone(),
        hold: registry.hold_text(now, record),
        failed_boots: record.failed_boots,
        boot_in_progress: record.session_counted,
        loader_running: registry.loader_running(now, facts.mac),
        quirk: None,
        image: registry.image_for(record).map(str::to_owned),
    }
}

/// The word of the API for what is done.
fn action_word(action: &Action) -> &'static str {
    match action {
        Action::Boot(_) => "boot",
        Action::LocalDisk => "local-disk",
        Action::Restart => "restart",
        Action::NoBootAnswer => "no-boot-answer",
    }
}

fn translate(seen: Seen) -> Observation {
    match seen {
        Seen::Heard => Observation::Heard,
        Seen::Leased(address) => Observation::Leased(address),
        Seen::FirmwareAsked(facts) => Observation::SessionStarted {
            client: client_word(facts.client),
            firmware: Firmware {
                uuid: facts.uuid.map(|uuid| uuid.to_string()),
                firmware: Some(facts.platform.to_string()),
                door: Some(door(&facts).to_owned()),
            },
        },
        Seen::Offered { address, decision } => Observation::Offered {
            address,
            answer: format!("{}: {}", action_word(&decision.action), decision.reason),
            boot: matches!(decision.action, Action::Boot(_)),
        },
        Seen::CardNamed { vendor, device } => Observation::Card(format!("{vendor:04x}:{device:04x}")),
        Seen::Decided(decision) => {
            let verdict = match &decision.action {
                Action::Boot(_) => Verdict::Boot,
                Action::LocalDisk | Action::Restart => Verdict::LocalDisk,
                Action::NoBootAnswer => Verdict::Nothing,
            };
            Observation::Decided {
                verdict,
                text: format!("{}: {}", action_word(&decision.action), decision.reason),
            }
        }
    }
}

/// Word of a timeline for who asks.
fn client_word(client: Client) -> &'static str {
    match client {
        Client::Ipxe => "ipxe",
        Client::HttpFirmware => "http",
        Client::Stick => "usb",
        Client::PxeFirmware | Client::OperatingSystem => "pxe",
    }
}

/// Door by which a machine knocks, whether or not it is let in.
fn door(facts: &Facts) -> &'static str {
    match (facts.client, facts.platform) {
        (Client::Stick, Platform::Bios) => Loader::StickIpxe.door(),
        (Client::Stick, _) => Loader::StickGrub.door(),
        (Client::Ipxe, Platform::Bios) => Loader::IpxeScript.door(),
        (Client::HttpFirmware, _) | (_, Platform::UefiX64Http) => Loader::HttpShim.door(),
        (_, Platform::UefiX64 | Platform::Other(_)) => Loader::Shim.door(),
        (_, Platform::Bios) => Loader::Undionly.door(),
    }
}

/// The facts of a machine's last boot, read back from its record; of a machine without one, those of a PC with iPXE.
fn last_facts(mac: Mac, record: Option<&Record>) -> Facts {
    let door = record.and_then(|record| record.door.as_deref());
    let firmware = record.and_then(|record| record.firmware.as_deref());
    let (client, platform) = match (door, firmware) {
        (Some("pxe-bios-plain"), _) => (Client::PxeFirmware, Platform::Bios),
        (Some("usb-bios"), _) => (Client::Stick, Platform::Bios),
        (Some("usb-uefi"), _) => (Client::Stick, Platform::UefiX64),
        (Some("http-uefi"), _) => (Client::HttpFirmware, Platform::UefiX64Http),
        (_, Some("uefi-x64")) | (Some("pxe-uefi"), None) => (Client::PxeFirmware, Platform::UefiX64),
        (_, Some(other)) if other != "bios" => (Client::PxeFirmware, other_platform(other)),
        _ => (Client::Ipxe, Platform::Bios),
    };
    Facts {
        mac,
        uuid: None,
        client,
        platform,
        stage: Stage::Asking,
    }
}

/// Reads [`Platform`]'s text back.
fn other_platform(text: &str) -> Platform {
    (0..=u16::MAX)
        .map(Platform::Other)
        .find(|platform| platform.to_string() == text)
        .unwrap_or(Platform::Other(u16::MAX))
}
