//! The node connection: one TCP connection that the node dials to its head and keeps open, carrying frames of
//! a big-endian `u32` length and a JSON message inside mutual TLS 1.3 (`cid-trust`). A node's first connection has no certificate of its
//! own and says [`FromNode::Enroll`] alone.

use serde::{Deserialize, Serialize};

use crate::measure::{Answer, Measured, Probe};
use crate::root::{RootOrder, RootPromise, RootReport};

/// Version of the messages. Peers of another version refuse each other with a reason.
pub const NODE_PROTOCOL_VERSION: u32 = 1;

/// Longest frame either side accepts, in bytes of JSON.
pub const MAX_FRAME: usize = 64 * 1024;

/// The agent sends [`FromNode::Pulse`] this often, in seconds; the head answers with [`ToNode::Pulse`].
pub const PULSE_SECS: u64 = 3;

/// The same of a node that hears its head as a member: datagrams show that both are there.
pub const MEMBER_PULSE_SECS: u64 = 30;

/// The head gives a machine incarnations at least so far apart, boot by boot: an agent that starts again takes the next one itself.
pub const INCARNATION_STEP: u64 = 1 << 16;

/// From the node to the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromNode {
    /// The only message of a connection without a client certificate: the boot token for a certificate.
    Enroll(Box<Enroll>),
    /// Before the hello: what the connection is worth.
    Measure(Probe),
    /// First message of a connection with one, but for measurements. The node is `up` once the head has answered [`ToNode::Welcome`].
    Hello(Box<Hello>),
    /// Heartbeat with the load.
    Pulse(Load),
    /// What is the time?
    Time(TimeQuestion),
    /// Of the root image that the welcome promised.
    Root(RootReport),
    /// The node is going home for this reason (a person pressed a key, the head asked, an alarm).
    GoingHome {
        /// Plain words.
        reason: String,
        /// What its next start will be.
        #[serde(default)]
        leaving: Leaving,
        /// What was prepared for it, or could not be; plain words, at most [`MAX_STEPS`].
        #[serde(default)]
        steps: Vec<String>,
    },
}

/// A question for the head's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeQuestion {
    /// A packet of NTP in client mode (RFC 5905), base64.
    pub packet: String,
    /// The node's clock when it read the answer before, in microseconds since 1970. With it the head measures, too.
    #[serde(default)]
    pub heard_unix_us: Option<u64>,
}

/// Entries of `steps` in [`FromNode::GoingHome`].
pub const MAX_STEPS: usize = 16;

/// What a node does at the end of its time in the cluster when nobody stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It restarts into the PC's own system.
    #[default]
    Reboot,
    /// It switches the PC off.
    PowerOff,
}

/// How a node that restarts gets to the PC's own system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayHome {
    /// Firmware asks the head, which answers "your own disk": what is measured is what it always was.
    #[default]
    LocalBoot,
    /// The UEFI variable `BootNext` names the firmware's own entry for Windows: faster, and measured in PCR 4.
    BootNext,
}

/// What a node that leaves has prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    /// A restart whose firmware asks the head.
    #[default]
    LocalBoot,
    /// A restart in which firmware starts Windows without asking anybody.
    BootNext,
    /// It switches itself off.
    PowerOff,
}

/// From the head to the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "messages are read one at a time, and kept boxed"
)]
pub enum ToNode {
    /// Answer to [`FromNode::Enroll`]; the head closes behind it, and the node calls again with the certificate.
    Certificate(Certificate),
    /// Answer to [`FromNode::Measure`].
    Measure(Answer),
    /// The group key was rotated.
    Key(GroupKey),
    /// Accepted.
    Welcome(Welcome),
    /// Not accepted; the node shows the reason, closes, and tries again later.
    Refused {
        /// Plain words with the remedy.
        reason: String,
    },
    /// Answer to [`FromNode::Pulse`].
    Pulse {
        /// The head's clock, Unix time in milliseconds.
        time_unix_ms: u64,
        /// Given when it is not what the node was told last, with a pulse that nobody asked for. Nodes that do not know it go
        /// home when their welcome said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Plan>,
    },
    /// Answer to [`FromNode::Time`]: a packet of NTP in server mode, base64.
    Time {
        /// It.
        packet: String,
    },
    /// Of the root image that it fetches.
    Root(RootOrder),
    /// Drain and reboot into the PC's own system.
    Release {
        /// Time allowed for draining, in seconds.
        patience_secs: u64,
        /// Plain words, shown on the PC's screen.
        reason: String,
        /// Restart or switch off.
        #[serde(default)]
        ending: Ending,
        /// Its firmware is to ask the head, which lets it boot again: no other way is prepared.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        again: bool,
    },
}

/// When a node goes home: in the place of what [`Welcome`] said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// As [`Welcome::until`].
    pub until: String,
    /// As [`Welcome::home_at_unix_ms`].
    pub home_at_unix_ms: Option<u64>,
}

/// A boot asks for its certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enroll {
    /// [`NODE_PROTOCOL_VERSION`].
    pub version: u32,
    /// `cid.token` of the kernel command line.
    pub token: String,
    /// MAC address of the card it booted from (`BOOTIF`), lower-case with colons.
    pub mac: String,
    /// SMBIOS system UUID, lower-case; empty when the firmware has none.
    pub uuid: String,
    /// As [`Hello::boot_id`].
    pub boot_id: String,
    /// The node's public key: SubjectPublicKeyInfo (RFC 5280), DER in base64.
    pub public_key: String,
}

impl std::fmt::Debug for Enroll {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enroll")
            .field("mac", &self.mac)
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}

/// The answer to [`Enroll`]: X.509 (RFC 5280), DER in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The node's.
    pub leaf: String,
    /// The head's authority, which signed it.
    pub authority: String,
}

/// What a node needs to speak as a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTicket {
    /// The node's id, 32 hexadecimal digits.
    pub id: String,
    /// Its incarnation. A node that starts its membership again without the head adds one; the head's steps leave room for that.
    pub incarnation: u64,
    /// The head's id.
    pub head_id: String,
    /// The head's incarnation.
    pub head_incarnation: u64,
    /// The key in force.
    pub key: GroupKey,
}

/// Revoked certificates that a [`GroupKey`] names.
pub const MAX_THROWN_OUT: usize = 64;

/// The key that seals membership datagrams.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupKey {
    /// Rises with every rotation.
    pub epoch: u32,
    /// 32 bytes, base64.
    pub secret: String,
    /// Somebody was thrown out: the key before it must not open another datagram.
    #[serde(default)]
    pub revoked: bool,
    /// SHA-256 of certificates that were revoked, the latest last, as 64 hexadecimal digits: nodes do not open their doors to them.
    /// [`MAX_THROWN_OUT`] at the most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thrown_out: Vec<String>,
}

impl std::fmt::Debug for GroupKey {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupKey")
            .field("epoch", &self.epoch)
            .field("revoked", &self.revoked)
            .finish_non_exhaustive()
    }
}

/// What a node says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`NODE_PROTOCOL_VERSION`].
    pub version: u32,
    /// Drawn once per boot; tells this boot's connections from an earlier boot's.
    pub boot_id: String,
    /// Image name from the kernel command line.
    pub image: String,
    /// Door from the kernel command line.
    pub door: String,
    /// The machine.
    pub hardware: Hardware,
    /// What PID 1 did until the agent started.
    #[serde(default)]
    pub phases: Vec<crate::trace::Phase>,
    /// The incarnation it takes part in the membership with, if it does already: the welcome's ticket repeats it. `None` asks for
    /// a new one.
    #[serde(default)]
    pub incarnation: Option<u64>,
    /// [`crate::work::WORK_VERSION`] of a node that runs programs; 0 of one that does not.
    #[serde(default)]
    pub work: u32,
}

/// The machine as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Hardware {
    /// SMBIOS system UUID, lower-case; empty when the firmware has none.
    pub uuid: String,
    /// SMBIOS vendor and product, e.g. `QEMU Standard PC (Q35 + ICH9, 2009)`.
    pub product: String,
    /// Logical CPUs online.
    pub cpus: u32,
    /// Model name of the first CPU.
    pub cpu_model: String,
    /// `MemTotal`, in KiB.
    pub memory_kib: u64,
    /// `MemAvailable` when the agent joined, in KiB.
    pub memory_available_kib: u64,
    /// Memory the root tmpfs and the node programs hold after coldplug, in KiB.
    pub memory_held_kib: u64,
    /// Seconds from the kernel's start to this report.
    pub uptime_secs: f64,
    /// Whether the firmware enforces Secure Boot; `None` on BIOS.
    pub secure_boot: Option<bool>,
    /// The kernel's lockdown (`none`, `integrity`, `confidentiality`); empty where the kernel does not say.
    #[serde(default)]
    pub lockdown: String,
    /// Block devices the kernel shows, by name. Must be empty on a borrowed PC.
    pub block_devices: Vec<String>,
    /// The firmware's own entry for Windows, as `Boot0001 Windows Boot Manager`; `None` on BIOS and where there is none.
    #[serde(default)]
    pub windows_entry: Option<String>,
    /// Network interfaces, wired only.
    pub links: Vec<Link>,
    /// Ethernet cards that no driver took, by PCI vendor and device as `8086:15f3`.
    #[serde(default)]
    pub cards_without_driver: Vec<String>,
    /// What it measured before this report; `None` from a node that does not measure.
    #[serde(default)]
    pub measured: Option<Measured>,
}

/// One wired network interface.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Link {
    /// Kernel's name (`eth0`).
    pub name: String,
    /// MAC address, lower-case with colons.
    pub mac: String,
    /// Driver bound to it.
    pub driver: String,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether the connection to the head runs over it.
    pub in_use: bool,
    /// Negotiated speed in Mbit/s; 0 when unknown.
    pub speed_mbit: u32,
    /// PCI vendor and device as `8086:15f3`; empty when it is not on that bus.
    #[serde(default)]
    pub id: String,
    /// What the kernel calls the device, as drivers are found by (`pci:v00008086d000015F3sv…`, `usb:…`); empty where it does not say.
    #[serde(default)]
    pub modalias: String,
    /// Its IPv4 address and prefix as `10.77.0.130/24`; empty while it has none.
    #[serde(default)]
    pub address: String,
    /// Wake-on-LAN: `armed` (a magic packet wakes the PC as far as its card is asked), `not supported`, or what failed.
    #[serde(default)]
    pub wake_on_lan: String,
}

/// Load of a node.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Load {
    /// One-minute load average.
    pub load1: f32,
    /// `MemAvailable`, in KiB.
    pub memory_available_kib: u64,
}

/// The head's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node's name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The head's clock, Unix time in milliseconds.
    pub time_unix_ms: u64,
    /// Seconds without the head after which the node goes home.
    pub bail_out_secs: u64,
    /// Seconds that draining may take.
    pub patience_secs: u64,
    /// Who runs this cluster, for the person at the PC; may be empty.
    #[serde(default)]
    pub site: String,
    /// Local time at which the PC goes home, for the person at it (`06:30`); empty when it is not planned.
    #[serde(default)]
    pub until: String,
    /// The same moment for the node's own clock, Unix time in milliseconds: it goes home then even when no head says so.
    #[serde(default)]
    pub home_at_unix_ms: Option<u64>,
    /// What it does when that moment comes.
    #[serde(default)]
    pub at_close: Ending,
    /// How it gets home when it restarts.
    #[serde(default)]
    pub way_home: WayHome,
    /// Its place among the members; `None` from a head that takes no part in membership.
    #[serde(default)]
    pub member: Option<MemberTicket>,
    /// The root image it shall run: `joining` until it is mounted. `None`: the initramfs is all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Box<RootPromise>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pulse as nodes know it that are older than [`Plan`].
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "type", rename_all = "kebab-case")]
    enum OlderNode {
        Pulse { time_unix_ms: u64 },
    }

    #[test]
    fn a_plan_does_not_disturb_an_older_node_nor_its_absence_a_newer_one() {
        let plan = Some(Plan {
            until: "06:30".into(),
            home_at_unix_ms: Some(7),
        });
        let pulse = ToNode::Pulse {
            time_unix_ms: 5,
            plan,
        };
        let text = serde_json::to_string(&pulse).unwrap();
        let older: OlderNode = serde_json::from_str(&text).unwrap();
        assert_eq!(older, OlderNode::Pulse { time_unix_ms: 5 });
        assert_eq!(serde_json::from_str::<ToNode>(&text).unwrap(), pulse);
        let older_head = r#"{"type":"pulse","time_unix_ms":5}"#;
        let plain = ToNode::Pulse {
            time_unix_ms: 5,
            plan: None,
        };
        assert_eq!(serde_json::from_str::<ToNode>(older_head).unwrap(), plain);
        assert_eq!(serde_json::to_string(&plain).unwrap(), older_head);
    }
}
