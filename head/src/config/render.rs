//! A configuration back as TOML, every default filled in, and the commented file that `cidhead init` writes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cid_protocol::node::{Ending, WayHome};

use crate::hours::OnHoliday;

use super::{Config, DhcpMode, Pattern, Unknown, Value, requires};

/// What `cidhead init` writes; `@INTERFACE@` and `@STATE@` are replaced.
pub const STARTER: &str = r#"# cidhead's configuration. `cidhead check` prints it with every default filled in.
# Only `interface` has no default.

# The interface that faces the lab. It needs an IPv4 address; `ip -brief address` lists them.
interface = "@INTERFACE@"

# Who runs this, in a few words: people at the PCs read it on the screen.
# site = "Computing centre, room 101"

# cid.db lives here: leases, machines, events.
# state_dir = "/var/lib/cid"
# images_dir = "/var/lib/cid/images"
# socket = "/run/cid/head.sock"

# What a PC gets that nobody adopted: "wait" lists it in `cidctl nodes` as seen and sends it to its own disk;
# "boot" boots it in default_group without asking.
unknown = "wait"
# default_group = "lab-a"

# "full": this head gives out the addresses, alone on its wire. "proxy": boot answers beside another DHCP server (then
# `interfaces = ["a", "b"]` may stand in place of `interface`). "off": that server names this head as boot server;
# `cidhead dhcp-snippet` prints what it needs. Lines below `mode` are for "full".
# Time zone of the hours below. Default: this machine's own.
# time_zone = "Europe/Berlin"

[dhcp]
# mode = "full"
# range = "10.77.0.128-10.77.0.254"     # default: the upper half of the interface's subnet
lease = "1h"
# router = "10.77.0.1"
# dns = ["10.77.0.1"]
# domain = "lab.example"

[trust]
# token = "120s"        # how long a PC may take from its boot script to its first word; 30s to 10m

[groups.lab-a]
image = "minimal"
# When these PCs may compute; without `hours` they never do. ["always"] is for PCs that nobody sits at.
hours = ["Mon-Fri 20:00-06:30", "Sat-Sun"]
# holidays = ["2026-12-24..2027-01-06"]   # open all day; on_holiday = "closed" closes them instead
# kernel_args = "console=ttyS0,115200"
# bail_out = "10m"      # a node that has not heard of the head for this long goes home
# patience = "60s"      # time that draining may take before the reboot
# at_close = "power-off"   # when the hours end; default: "reboot"
# wake_command = "/usr/local/sbin/power-on {name} {mac}"   # in place of Wake-on-LAN
# match = ["52:54:00:*"]   # MAC globs, UUIDs, addresses or names that belong to this group by themselves

# What a node must measure of itself to join; `cidctl explain NAME` shows what it did. docs/judging.md explains each.
# [groups.lab-a.requires]
# link = "1 Gbit/s"         # default: "100 Mbit/s"
# cpu_speed = 0.5           # 1.0 is about a core of 2 GHz
# memory = "4 GiB"
# bandwidth = "50 Mbit/s"
# round_trip = "5 ms"       # default: "250 ms"
# loss = "2 %"              # default: "10 %"

# A PC whose firmware needs another manner of answer (`cidctl explain` names the one in force):
# [machines."52:54:00:12:34:56"]
# quirk = "no-menu"

# What templates of an image (NAME.node.tera in an overlay) name as values.rack: for a group, and for one PC of it.
# [groups.lab-a.values]
# rack = "north"
# [machines."52:54:00:12:34:56".values]
# rack = "south"
"#;

/// `head.toml` with every default filled in; it parses back to the same configuration.
pub fn render(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_head(&mut out, config);
    for (name, group) in &config.groups {
        let matches: Vec<String> = group.matches.iter().map(pattern_text).collect();
        let _ = writeln!(out, "\n[groups.{}]\nimage = {:?}", quote_key(name), group.image);
        let _ = writeln!(out, "kernel_args = {}", string(&group.kernel_args));
        let _ = writeln!(
            out,
            "bail_out = \"{}\"\npatience = \"{}\"",
            seconds(group.bail_out),
            seconds(group.patience)
        );
        let _ = writeln!(out, "hours = {:?}", group.hours.lines());
        let _ = writeln!(out, "holidays = {:?}", group.hours.holiday_lines());
        let on_holiday = match group.hours.on_holiday() {
            OnHoliday::Open => "open",
            OnHoliday::Closed => "closed",
        };
        let _ = writeln!(out, "on_holiday = \"{on_holiday}\"");
        let _ = writeln!(out, "wake = {}", group.wake);
        if let Some(command) = &group.wake_command {
            let _ = writeln!(out, "wake_command = {}", string(&command.to_string()));
        }
        let at_close = match group.at_close {
            Ending::Reboot => "reboot",
            Ending::PowerOff => "power-off",
        };
        let way_home = match group.way_home {
            WayHome::LocalBoot => "local-boot",
            WayHome::BootNext => "boot-next",
        };
        let _ = writeln!(out, "at_close = \"{at_close}\"\nway_home = \"{way_home}\"");
        let _ = writeln!(out, "match = {matches:?}");
        requires::render(&mut out, &quote_key(name), &group.requires);
        render_values(&mut out, &format!("groups.{}", quote_key(name)), &group.values);
    }
    for (mac, machine) in &config.machines {
        if let Some(quirk) = &machine.quirk {
            let _ = writeln!(out, "\n[machines.\"{mac}\"]\nquirk = {}", string(quirk));
        }
        render_values(&mut out, &format!("machines.\"{mac}\""), &machine.values);
    }
    out
}

fn render_values(out: &mut String, table: &str, values: &BTreeMap<String, Value>) {
    if values.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n[{table}.values]");
    for (name, value) in values {
        let value = match value {
            Value::Flag(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => string(text),
        };
        let _ = writeln!(out, "{} = {value}", string(name));
    }
}

fn write_head(out: &mut String, config: &Config) -> std::fmt::Result {
    match config.interfaces.as_slice() {
        [_, _, ..] => writeln!(out, "interfaces = {:?}", config.interfaces)?,
        _ => writeln!(out, "interface = {}", string(&config.interface))?,
    }
    writeln!(out, "site = {}", string(&config.site))?;
    writeln!(out, "state_dir = {}", string(&config.state_dir.to_string_lossy()))?;
    writeln!(
        out,
        "images_dir = {}",
        string(&config.images_dir.to_string_lossy())
    )?;
    writeln!(out, "socket = {}", string(&config.socket.to_string_lossy()))?;
    match &config.unknown {
        Unknown::Wait => writeln!(out, "unknown = \"wait\"")?,
        Unknown::Boot { group } => writeln!(out, "unknown = \"boot\"\ndefault_group = {}", string(group))?,
    }
    if let Some(zone) = &config.time_zone {
        writeln!(out, "time_zone = {}", string(zone))?;
    }
    writeln!(out, "\n[trust]\ntoken = \"{}\"", seconds(config.token_valid))?;
    writeln!(out, "\n[dhcp]\nmode = \"{}\"", config.dhcp.mode.word())?;
    if config.dhcp.mode != DhcpMode::Full {
        return Ok(());
    }
    if let Some((low, high)) = config.dhcp.range {
        writeln!(out, "range = \"{low}-{high}\"")?;
    }
    writeln!(out, "lease = \"{}\"", seconds(config.dhcp.lease))?;
    if let Some(router) = config.dhcp.router {
        writeln!(out, "router = \"{router}\"")?;
    }
    let dns: Vec<String> = config.dhcp.dns.iter().map(ToString::to_string).collect();
    writeln!(out, "dns = {dns:?}")?;
    if let Some(domain) = &config.dhcp.domain {
        writeln!(out, "domain = {}", string(domain))?;
    }
    Ok(())
}

fn pattern_text(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Mac(text) | Pattern::Uuid(text) | Pattern::Name(text) => text.clone(),
        Pattern::Address(address) => address.to_string(),
    }
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn quote_key(name: &str) -> String {
    if name.contains('.') {
        format!("\"{name}\"")
    } else {
        name.to_owned()
    }
}

/// The largest unit that divides it.
fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds > 0 && seconds.is_multiple_of(size) {
            return format!("{}{unit}", seconds / size);
        }
    }
    format!("{seconds}s")
}
