//! Timed traces: at this second this comes in, these things go out, this is the state.

use cid_protocol::node::{Hardware, Hello, Link, Load, NODE_PROTOCOL_VERSION};

use cid_discovery::history::Change;

use super::*;

mod adoption;
mod draining;
mod exceptions;
mod hours;
mod judging;
mod life;
mod members;
mod roll;
mod trust;
mod walk;

const CONFIG: &str = "interface = \"e0\"\n[groups.lab-a]\nimage = \"minimal\"\nhours = [\"always\"]\n[groups.usb]\nhours = [\"always\"]\nmatch = [\"02:00:00:*\"]\n";

pub(super) fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

pub(super) fn at(second: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(second),
        unix_ms: 1_700_000_000_000 + second * 1_000,
    }
}

fn config(text: &str) -> Config {
    Config::parse(std::path::Path::new("head.toml"), text).unwrap()
}

/// A registry, its database, and everything it sent.
pub(super) struct Trace {
    pub(super) registry: Registry,
    disk: BTreeMap<Mac, Record>,
    groups: BTreeMap<String, GroupRecord>,
    images: ImagesRecord,
    pub(super) sent: Vec<(ConnectionId, ToNode)>,
    woken: Vec<Mac>,
    events: Vec<String>,
    /// What the registry put into the history, repetitions included.
    history: Vec<(Boot, State)>,
    rotations: Vec<Option<Option<NodeId>>>,
    /// Nodes come with a certificate.
    certified: bool,
    /// What nodes run that say hello.
    image: String,
}

impl Trace {
    pub(super) fn new() -> Self {
        let registry = Registry::new(&config(CONFIG), Vec::new(), at(0));
        Self {
            registry,
            disk: BTreeMap::new(),
            groups: BTreeMap::new(),
            images: ImagesRecord::default(),
            sent: Vec::new(),
            woken: Vec::new(),
            events: Vec::new(),
            history: Vec::new(),
            rotations: Vec::new(),
            certified: true,
            image: "minimal".into(),
        }
    }

    /// Drains the outputs as the shell would; the database is always as new as what was sent.
    pub(super) fn drain(&mut self) {
        while let Some(output) = self.registry.poll_output() {
            match output {
                Output::Persist(record) | Output::PersistLazily(record) => {
                    drop(self.disk.insert(record.mac, *record))
                }
                Output::Forget(mac) => drop(self.disk.remove(&mac)),
                Output::Event { text, .. } => self.events.push(text),
                Output::Send { connection, message } => self.sent.push((connection, message)),
                Output::PersistImages(record) => self.images = *record,
                Output::PersistGroup { group, record } => drop(self.groups.insert(group, record)),
                Output::Close { .. } | Output::Step { .. } | Output::PersistCredential { .. } => {}
                Output::Wake(target) => self.woken.push(target.mac),
                Output::Record { boot, state, .. } => self.history.push((boot, state)),
                Output::Rotate { thrown_out } => self.rotations.push(thrown_out),
            }
        }
        self.check_invariants();
    }

    fn check_invariants(&self) {
        let strangers = self
            .registry
            .machines
            .values()
            .filter(|machine| machine.is_stranger())
            .count();
        assert_eq!(strangers, self.registry.strangers);
        assert!(strangers <= MAX_STRANGERS);
        let mut names: Vec<_> = self
            .registry
            .records()
            .filter_map(|record| record.name.clone())
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name is given twice");
        for record in self.registry.records() {
            let held = record.hold.is_some();
            assert!(
                !(held && record.state == NodeState::Up),
                "{record:?} is up and held"
            );
        }
    }

    /// A crash: everything but the database is gone.
    pub(super) fn restart(&mut self, second: u64) {
        self.restart_with(second, CONFIG);
    }

    /// The same with another head.toml.
    fn restart_with(&mut self, second: u64, text: &str) {
        let machines = self.disk.values().cloned().collect();
        self.registry = Registry::new(&config(text), machines, at(second));
        self.registry
            .restore_groups(self.groups.clone().into_iter().collect());
        self.registry.restore_images(self.images.clone());
    }

    fn observe(&mut self, second: u64, number: u8, observation: Observation) {
        self.registry
            .handle_observation(at(second), mac(number), observation);
        self.drain();
    }

    pub(super) fn session(&mut self, second: u64, number: u8) {
        let firmware = Firmware {
            door: Some("pxe-bios".into()),
            ..Firmware::default()
        };
        self.observe(
            second,
            number,
            Observation::SessionStarted {
                firmware,
                client: "pxe",
            },
        );
    }

    pub(super) fn script(&mut self, second: u64, number: u8) {
        self.observe(
            second,
            number,
            Observation::ScriptHandedOut {
                image: "minimal".into(),
            },
        );
    }

    pub(super) fn hello(&mut self, second: u64, number: u8, connection: u64, boot_id: &str) {
        self.hello_as(second, number, connection, boot_id, None);
    }

    fn hello_as(
        &mut self,
        second: u64,
        number: u8,
        connection: u64,
        boot_id: &str,
        incarnation: Option<u64>,
    ) {
        if self.certified {
            self.registry.vouch(ConnectionId(connection), mac(number));
        }
        let link = Link {
            mac: mac(number).to_string(),
            in_use: true,
            ..Link::default()
        };
        let hello = Hello {
            version: NODE_PROTOCOL_VERSION,
            boot_id: boot_id.into(),
            image: self.image.clone(),
            door: "pxe-bios".into(),
            hardware: Hardware {
                links: vec![link],
                cpus: 2,
                ..Hardware::default()
            },
            phases: Vec::new(),
            incarnation,
            work: 0,
        };
        let address = Ipv4Addr::new(10, 77, 0, 100 + number);
        self.registry
            .handle_hello(at(second), ConnectionId(connection), address, hello);
        self.drain();
    }

    pub(super) fn pulse(&mut self, second: u64, connection: u64) {
        self.registry
            .handle_pulse(at(second), ConnectionId(connection), Load::default());
        self.drain();
    }

    fn pass(&mut self, second: u64) {
        self.registry.handle_deadline(at(second));
        self.drain();
    }

    pub(super) fn adopt(&mut self, number: u8, name: &str) {
        self.registry
            .adopt(at(1), &[mac(number).to_string()], "lab-a", name)
            .unwrap();
        self.drain();
    }

    /// Whether a node was told to go home.
    fn told_to_go(&self) -> bool {
        let told = |(_, message): &(ConnectionId, ToNode)| matches!(message, ToNode::Release { .. });
        self.sent.iter().any(told)
    }

    pub(super) fn state(&self, number: u8) -> NodeState {
        self.registry.record(mac(number)).unwrap().state
    }

    fn failed_boots(&self, number: u8) -> u32 {
        self.registry.record(mac(number)).unwrap().failed_boots
    }

    fn up(number: u8, name: &str) -> Self {
        let mut trace = Self::new();
        trace.session(1, number);
        trace.adopt(number, name);
        trace.session(5, number);
        trace.script(6, number);
        trace.hello(20, number, 1, "boot-1");
        trace
    }
}
