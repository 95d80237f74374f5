//! `head.toml` as it is written: serde types only, every value still text with its place in the file.
//! Must not judge anything; that is the validated type's work.
//!
//! The JSON schema and the manual page head.toml(5) are made from these types and the comments on their fields: the
//! comment is what an administrator reads, so it says what the key does, what it may hold, and its default.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A value with its place in the file; to the schema it is the value alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub(super) struct Spanned<T>(toml::Spanned<T>);

impl<T> Spanned<T> {
    pub(super) fn into_inner(self) -> T {
        self.0.into_inner()
    }

    pub(super) fn span(&self) -> std::ops::Range<usize> {
        self.0.span()
    }
}

impl<T> AsRef<T> for Spanned<T> {
    fn as_ref(&self) -> &T {
        self.0.get_ref()
    }
}

impl std::borrow::Borrow<str> for Spanned<String> {
    fn borrow(&self) -> &str {
        self.0.get_ref()
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// The configuration of cidhead.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    /// Network interface that faces the lab, for example "eth1". It must have an IPv4 address. The one key without a
    /// default, unless `interfaces` stands in its place.
    pub(super) interface: Option<Spanned<String>>,
    /// Several interfaces in place of `interface`, for `mode` "proxy" or "off" in [dhcp].
    #[serde(default)]
    pub(super) interfaces: Vec<Spanned<String>>,
    /// What this room is called on the screens of its PCs, at most 48 characters. Default: none.
    pub(super) site: Option<Spanned<String>>,
    /// Folder of cid.db (leases, machines, events) and of template overrides (templates/). Absolute. Default:
    /// "/var/lib/cid".
    pub(super) state_dir: Option<Spanned<String>>,
    /// Folder in which `cidbuild image --out` puts images. Absolute. Default: "/var/lib/cid/images".
    pub(super) images_dir: Option<Spanned<String>>,
    /// Control socket for cidctl. Whoever may write to it may do everything. Absolute. Default: "/run/cid/head.sock".
    pub(super) socket: Option<Spanned<String>>,
    /// What a PC gets that nobody adopted: "wait" lists it as seen and sends it to its own disk, "boot" boots it in
    /// `default_group` without asking. Default: "wait".
    pub(super) unknown: Option<Spanned<String>>,
    /// Group that strangers boot in when `unknown` is "boot".
    pub(super) default_group: Option<Spanned<String>>,
    /// What the head does as a DHCP server.
    #[serde(default)]
    pub(super) dhcp: Dhcp,
    /// How nodes prove that they are the boots that this head answered.
    #[serde(default)]
    pub(super) trust: Trust,
    /// Time zone of `hours` and `holidays`, "Europe/Berlin". Default: the head's own.
    pub(super) time_zone: Option<Spanned<String>>,
    /// Groups of PCs, by a name of your choice: [groups.lab-a].
    #[serde(default)]
    pub(super) groups: BTreeMap<Spanned<String>, Group>,
    /// What is special about single PCs, by MAC address: [machines."52:54:00:12:34:56"].
    #[serde(default)]
    pub(super) machines: BTreeMap<Spanned<String>, Machine>,
}

/// What is special about one PC.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    /// Name of the quirk that its firmware needs; a wrong name lists them. Default: what the table of quirks matches.
    pub(super) quirk: Option<Spanned<String>>,
    /// What templates of its image (`NAME.node.tera`) name as `values.NAME`, before those of its group. Default: none.
    #[serde(default)]
    pub(super) values: BTreeMap<String, Value>,
}

/// A text, a whole number, or yes and no.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Value {
    /// `rack = true`
    Flag(bool),
    /// `rack = 7`
    Number(i64),
    /// `rack = "7"`
    Text(String),
}

/// What the head does as a DHCP server.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dhcp {
    /// "full": this head gives out the addresses, alone on its wire. "proxy": boot answers beside another DHCP server. "off": that
    /// server names this head as boot server. Default: "full".
    pub(super) mode: Option<Spanned<String>>,
    /// First and last address that the head gives out, "10.77.0.128-10.77.0.254". Default: the upper half of the
    /// interface's subnet.
    pub(super) range: Option<Spanned<String>>,
    /// Lease time: 60s to 30d. Default: "1h".
    pub(super) lease: Option<Spanned<String>>,
    /// Default gateway for clients. Default: none.
    pub(super) router: Option<Spanned<String>>,
    /// Name servers for clients, at most five. Default: none.
    #[serde(default)]
    pub(super) dns: Vec<Spanned<String>>,
    /// Domain name for clients. Default: none.
    pub(super) domain: Option<Spanned<String>>,
}

/// How nodes prove that they are the boots that this head answered.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Trust {
    /// How long the token in a boot script is good: from the script to the node's first word. Raise it for PCs whose kernel
    /// and drivers take longer than that; whoever reads the wire has as long to use the token first. 30s to 10m. Default: "120s".
    pub(super) token: Option<Spanned<String>>,
}

/// A group of PCs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    /// Name of the image that the group boots: a folder in `images_dir`. The head keeps a version of each build, and the group boots the
    /// newest, or the one that `cidctl image set`, `roll` or `rollback` named last; "minimal@2" is that version for good. Default:
    /// "minimal".
    pub(super) image: Option<Spanned<String>>,
    /// Words put behind the image's and the head's own on the kernel command line. Default: none.
    pub(super) kernel_args: Option<Spanned<String>>,
    /// A node that has not heard of the head for this long goes home. Default: "10m".
    pub(super) bail_out: Option<Spanned<String>>,
    /// Time that draining may take before the reboot. Default: "60s".
    pub(super) patience: Option<Spanned<String>>,
    /// When the group may compute: ["Mon-Fri 20:00-06:30", "Sat-Sun"] or ["always"]. A span begins on the days it
    /// names and may end on the day after. Default: none, which is never.
    #[serde(default)]
    pub(super) hours: Vec<Spanned<String>>,
    /// Days without lessons, both ends included: ["2026-10-03", "2026-12-24..2027-01-06"]. Default: none.
    #[serde(default)]
    pub(super) holidays: Vec<Spanned<String>>,
    /// What a holiday does from midnight to midnight: "open" computes besides the hours, "closed" does not whatever
    /// they are. Default: "open".
    pub(super) on_holiday: Option<Spanned<String>>,
    /// Whether PCs that are switched off are woken when the hours begin. Default: true.
    pub(super) wake: Option<bool>,
    /// Program that switches a PC on, in place of Wake-on-LAN: "/usr/local/sbin/power-on {name} {mac}". Split at blanks and run without
    /// a shell; {name}, {mac}, {address} and {group} are filled in, and CID_NAME, CID_MAC, CID_ADDRESS and CID_GROUP are its
    /// environment. It has 30 seconds. Default: none, which is Wake-on-LAN.
    pub(super) wake_command: Option<Spanned<String>>,
    /// What a node does when its hours end or it is released: "reboot" or "power-off". A person at the PC always gets a
    /// reboot. Default: "reboot".
    pub(super) at_close: Option<Spanned<String>>,
    /// How a node that restarts gets to its own system: "local-boot" (its firmware asks the head, which says "your own disk") or "boot-next"
    /// (UEFI's BootNext names the firmware's own entry for Windows: faster, but it changes what a TPM measures in PCR 4). Default:
    /// "local-boot".
    pub(super) way_home: Option<Spanned<String>>,
    /// PCs that belong to this group without being adopted one by one: MAC globs ("52:54:00:*"), SMBIOS UUIDs, IPv4
    /// addresses or name globs. Default: none.
    #[serde(default, rename = "match")]
    pub(super) matches: Vec<Spanned<String>>,
    /// What a node must measure of itself to join. One that falls short says so on its screen and in `cidctl nodes`, tries again for a
    /// minute, goes home, and is not booted again before the group opens the next time or `cidctl wake`. `cidctl explain NAME`
    /// shows what a node measured; what it could not measure is not held against it.
    #[serde(default)]
    pub(super) requires: Requires,
    /// What templates of its image (`NAME.node.tera`) name as `values.NAME`: texts, whole numbers, true and false; before those of the
    /// recipe. Default: none.
    #[serde(default)]
    pub(super) values: BTreeMap<String, Value>,
}

/// What a node must measure of itself to join.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Requires {
    /// Speed of one CPU: 1.0 is 100 million steps a second of a fixed loop, about a core of 2 GHz. Default: none.
    pub(super) cpu_speed: Option<Spanned<f64>>,
    /// Memory, "4 GiB"; an eighth less is enough, for what the firmware keeps. Default: "none".
    pub(super) memory: Option<Spanned<String>>,
    /// What the link in use was negotiated at, "1 Gbit/s". A virtual card that does not say is let in. Default: "100 Mbit/s"; "none" asks
    /// nothing.
    pub(super) link: Option<Spanned<String>>,
    /// Median of the round trips to the head, and to the peers it measured, "5 ms"; at most. Default: "250 ms"; "none" asks nothing.
    pub(super) round_trip: Option<Spanned<String>>,
    /// TCP segments that had to be sent again, in the worse direction, "2 %"; at most. Default: "10 %"; "none" asks nothing.
    pub(super) loss: Option<Spanned<String>>,
    /// Bandwidth in each direction, "50 Mbit/s". Measured when the head is not busy with another node's. Default: "none".
    pub(super) bandwidth: Option<Spanned<String>>,
}
