//! The rig's bridge: what it lets through, and what went over it. Faults are rules of nftables in the room (there is no netem on many
//! kernels); counts are the ports' own, with Ethernet headers. Must not touch a packet it lets through.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use cid_protocol::NODE_PORT;
use serde_json::Value;

use crate::room::Room;
use crate::run::run;

/// Ethernet header, which the bridge's hooks do not see.
const ETHERNET: u64 = 14;

/// Port of the bridge that the agent with this number hangs on.
#[must_use]
pub fn port(number: usize) -> String {
    format!("a{number}")
}

/// The bridge of a room.
#[derive(Debug)]
pub struct Wire {
    room: Arc<Room>,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default, Clone)]
struct Faults {
    /// Ports on the other side of the partition.
    apart: Vec<String>,
    multicast: Multicast,
    /// Of a thousand frames forwarded.
    lost: u32,
    /// No node reaches another's door.
    doors_shut: bool,
}

/// Whether multicast reaches anybody.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Multicast {
    /// As a plain switch has it.
    #[default]
    Flooded,
    /// As a switch with IGMP snooping and no querier has it.
    Dropped,
}

/// What kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Who has this address?
    Arp,
    /// DHCP.
    Dhcp,
    /// TCP to and from the nodes' port: TLS.
    Connection,
    /// Datagrams to one member.
    Unicast,
    /// Datagrams to the group.
    Multicast,
    /// Everything else.
    Other,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Arp,
        Self::Dhcp,
        Self::Connection,
        Self::Unicast,
        Self::Multicast,
        Self::Other,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::Dhcp => "dhcp",
            Self::Connection => "connection",
            Self::Unicast => "unicast",
            Self::Multicast => "multicast",
            Self::Other => "other",
        }
    }
}

/// Frames and bytes, Ethernet headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What has entered the bridge since the rig began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// By the ports' counters.
    pub all: Share,
    /// By the rules' counters; their sum is `all`.
    pub kinds: BTreeMap<Kind, Share>,
}

impl Traffic {
    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: Share, then: Share| Share {
            frames: now.frames.saturating_sub(then.frames),
            bytes: now.bytes.saturating_sub(then.bytes),
        };
        let then = |kind: &Kind| before.kinds.get(kind).copied().unwrap_or_default();
        Self {
            all: less(self.all, before.all),
            kinds: self
                .kinds
                .iter()
                .map(|(kind, share)| (*kind, less(*share, then(kind))))
                .collect(),
        }
    }

    /// As one line of a table, in kbit/s over this time.
    #[must_use]
    pub fn line(&self, seconds: f64) -> String {
        let rate = |share: &Share| share.bytes as f64 * 8.0 / 1000.0 / seconds;
        let mut line = format!(
            "{:8.1} kbit/s, {:.1} frames/s:",
            rate(&self.all),
            self.all.frames as f64 / seconds
        );
        for (kind, share) in &self.kinds {
            let _ = write!(line, "  {} {:.2}", kind.word(), rate(share));
        }
        line
    }

    /// Over this time, in kbit/s.
    #[must_use]
    pub fn kbit_per_second(&self, seconds: f64) -> f64 {
        self.all.bytes as f64 * 8.0 / 1000.0 / seconds
    }
}

impl Wire {
    /// Begins to count on the bridge of this room, once for each room; everything goes through.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn new(room: Arc<Room>) -> Result<Self> {
        let this = Self {
            room,
            faults: Mutex::default(),
        };
        this.nft("count", &counting())?;
        Ok(this)
    }

    /// Cuts the bridge in two: these ports on one side, the head and everybody else on the other.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn partition(&self, apart: &[String]) -> Result<()> {
        self.change(|faults| faults.apart = apart.to_vec())
    }

    /// Lets multicast through, or drops it. Broadcast, which ARP and DHCP need, is another thing.
    ///
    /// # Errors
    /// As [`Wire::partition`].
    pub fn multicast(&self, multicast: Multicast) -> Result<()> {
        self.change(|faults| faults.multicast = multicast)
    }

    /// Loses so many of a thousand frames at each port they leave by, at random.
    ///
    /// # Errors
    /// As [`Wire::partition`].
    pub fn lose(&self, of_a_thousand: u32) -> Result<()> {
        ensure!(of_a_thousand <= 1000, "{of_a_thousand} of a thousand");
        self.change(|faults| faults.lost = of_a_thousand)
    }

    /// Lets no node call another at its door; the head's is open, and so are their datagrams.
    ///
    /// # Errors
    /// As [`Wire::partition`].
    pub fn shut_doors(&self, shut: bool) -> Result<()> {
        self.change(|faults| faults.doors_shut = shut)
    }

    /// Gives the head's link this rate, in Mbit/s each way, with a switch's quarter of a megabyte of queue.
    ///
    /// # Errors
    /// When the kernel has no token bucket (`sch_tbf`).
    pub fn shape_head(&self, megabits: u32) -> Result<()> {
        for card in ["head0", "head0br"] {
            let rate = format!("{megabits}mbit");
            let mut command = self.room.command("tc");
            command.args(["qdisc", "replace", "dev", card, "root", "tbf"]);
            command.args(["rate", &rate, "burst", "32kb", "limit", "256kb"]);
            run(&mut command).context("shaping the head's link")?;
        }
        Ok(())
    }

    /// No partition, no loss, multicast everywhere.
    ///
    /// # Errors
    /// As [`Wire::partition`].
    pub fn heal(&self) -> Result<()> {
        self.change(|faults| *faults = Faults::default())
    }

    /// What has entered the bridge so far.
    ///
    /// # Errors
    /// When `ip` or `nft` fails or prints something else.
    pub fn traffic(&self) -> Result<Traffic> {
        let links = run(self
            .room
            .command("ip")
            .args(["-j", "-s", "link", "show", "master", "br0"]))?;
        let links: Vec<Value> = serde_json::from_str(&links).context("reading what ip prints")?;
        let mut all = Share::default();
        for link in &links {
            let rx = &link["stats64"]["rx"];
            all.frames += rx["packets"].as_u64().context("a port's frames")?;
            all.bytes += rx["bytes"].as_u64().context("a port's bytes")?;
        }
        let counters = run(self
            .room
            .command("nft")
            .args(["-j", "list", "counters", "table", "bridge", "count"]))?;
        let counters: Value = serde_json::from_str(&counters).context("reading what nft prints")?;
        let mut kinds = BTreeMap::new();
        for entry in counters["nftables"].as_array().into_iter().flatten() {
            let counter = &entry["counter"];
            let Some(kind) = Kind::ALL
                .into_iter()
                .find(|kind| counter["name"] == format!("of_{}", kind.word()))
            else {
                continue;
            };
            let frames = counter["packets"].as_u64().unwrap_or(0);
            let bytes = counter["bytes"].as_u64().unwrap_or(0) + frames * ETHERNET;
            kinds.insert(kind, Share { frames, bytes });
        }
        Ok(Traffic { all, kinds })
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        self.nft("faults", &faults.rules())
    }

    fn nft(&self, name: &str, rules: &str) -> Result<()> {
        let file = self.room.dir().join(format!("{name}.nft"));
        fs::write(&file, rules)?;
        run(self.room.command("nft").arg("-f").arg(&file)).map(drop)
    }
}

impl Faults {
    /// All of them, in the place of those before, at one moment.
    fn rules(&self) -> String {
        let mut rules = String::from(
            "table bridge faults\ndelete table bridge faults\ntable bridge faults {\n chain forward {\n  type filter hook forward priority 0\n",
        );
        if !self.apart.is_empty() {
            let apart = self
                .apart
                .iter()
                .map(|port| format!("{port:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            let _ = writeln!(rules, "  iifname {{ {apart} }} oifname != {{ {apart} }} drop");
            let _ = writeln!(rules, "  iifname != {{ {apart} }} oifname {{ {apart} }} drop");
        }
        if self.multicast == Multicast::Dropped {
            rules.push_str("  ip daddr 224.0.0.0/4 drop\n");
        }
        if self.doors_shut {
            let _ = writeln!(
                rules,
                "  iifname \"a*\" oifname \"a*\" tcp dport {NODE_PORT} drop"
            );
        }
        if self.lost > 0 {
            let _ = writeln!(rules, "  numgen random mod 1000 < {} drop", self.lost);
        }
        rules.push_str(" }\n}\n");
        rules
    }
}

fn counting() -> String {
    let mut rules = String::from("table bridge count {\n");
    for kind in Kind::ALL {
        let _ = writeln!(rules, " counter of_{} {{ }}", kind.word());
    }
    let port = NODE_PORT;
    let _ = write!(
        rules,
        " chain entered {{\n  type filter hook prerouting priority -400\n  ether type arp counter name of_arp accept\n  \
         udp dport {{ 67, 68 }} counter name of_dhcp accept\n  tcp dport {port} counter name of_connection accept\n  \
         tcp sport {port} counter name of_connection accept\n  udp dport {port} ip daddr 224.0.0.0/4 counter name of_multicast accept\n  \
         udp dport {port} counter name of_unicast accept\n  counter name of_other accept\n }}\n}}\n"
    );
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_independent_of_one_another() {
        let faults = Faults {
            apart: vec!["a1".into(), "a2".into()],
            multicast: Multicast::Dropped,
            lost: 100,
            doors_shut: true,
        };
        let rules = faults.rules();
        for wanted in [
            "oifname != { \"a1\", \"a2\" } drop",
            "224.0.0.0/4 drop",
            "mod 1000 < 100 drop",
            "tcp dport 3101 drop",
        ] {
            assert!(rules.contains(wanted), "{rules}");
        }
        assert!(!Faults::default().rules().contains("drop"));
    }
}
