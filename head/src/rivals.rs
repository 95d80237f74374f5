//! Others who answer DHCP or PXE on our wires: a bounded list for people. Must not judge whether they may.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cid_bootserver::dhcp::rival::{Role, Sighting};
use cid_protocol::api::RivalRow;

/// Servers kept; the one that was silent for longest makes room.
pub const MAX_RIVALS: usize = 32;
/// Silence after which a server that speaks again is news, in seconds.
const FORGOTTEN_SECS: u64 = 600;

/// The list.
#[derive(Debug, Default)]
pub struct Rivals(BTreeMap<(Ipv4Addr, Role), Seen>);

#[derive(Debug, Clone)]
struct Seen {
    first: u64,
    last: u64,
    address: Option<Ipv4Addr>,
    boot_server: Option<Ipv4Addr>,
    boot_file: Option<String>,
}

impl Rivals {
    /// Takes in one answer, heard at `now` (Unix seconds). A line for people when it is news: a server that was not there, or
    /// another boot file than before.
    pub fn take(&mut self, now: u64, sighting: &Sighting) -> Option<String> {
        let key = (sighting.server, sighting.role);
        let before = self.0.get(&key).cloned();
        if before.is_none() && self.0.len() >= MAX_RIVALS {
            let quietest = self
                .0
                .iter()
                .min_by_key(|(_, seen)| seen.last)
                .map(|(key, _)| *key);
            self.0.remove(&quietest?);
        }
        let seen = Seen {
            first: before.as_ref().map_or(now, |seen| seen.first),
            last: now,
            address: sighting.address.or(before.as_ref().and_then(|seen| seen.address)),
            boot_server: sighting
                .boot_server
                .or(before.as_ref().and_then(|seen| seen.boot_server)),
            boot_file: sighting
                .boot_file
                .clone()
                .or(before.as_ref().and_then(|seen| seen.boot_file.clone())),
        };
        let news = before.is_none_or(|before| {
            before.boot_file != seen.boot_file || now.saturating_sub(before.last) > FORGOTTEN_SECS
        });
        let line = news.then(|| line(sighting.server, sighting.role, &seen));
        self.0.insert(key, seen);
        line
    }

    /// As the API tells them.
    pub fn rows(&self) -> Vec<RivalRow> {
        let text = |address: Option<Ipv4Addr>| address.map(|address| address.to_string()).unwrap_or_default();
        let row = |((server, role), seen): (&(Ipv4Addr, Role), &Seen)| RivalRow {
            server: server.to_string(),
            role: role_word(*role).to_owned(),
            address: text(seen.address),
            boot_server: text(seen.boot_server),
            boot_file: seen.boot_file.clone().unwrap_or_default(),
            first_seen_unix: seen.first,
            last_seen_unix: seen.last,
        };
        self.0.iter().map(row).collect()
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Dhcp => "dhcp",
        Role::Proxy => "proxy",
    }
}

fn line(server: Ipv4Addr, role: Role, seen: &Seen) -> String {
    let what = match (role, seen.boot_file.as_deref()) {
        (Role::Dhcp, None) => "another DHCP server answers".to_owned(),
        (Role::Dhcp, Some(file)) => format!("another DHCP server answers with the boot file {file}"),
        (Role::Proxy, None) => "a PXE server answers".to_owned(),
        (Role::Proxy, Some(file)) if is_wds(file) => {
            format!("a Windows Deployment Server answers with the boot file {file}")
        }
        (Role::Proxy, Some(file)) => format!("a PXE server answers with the boot file {file}"),
    };
    format!("{what} at {server}; this head does not go by it, but a PC may")
}

/// The names of Microsoft's network boot programs.
fn is_wds(file: &str) -> bool {
    let file = file.to_ascii_lowercase();
    ["wdsnbp", "wdsmgfw", "pxeboot", "bootmgfw"]
        .iter()
        .any(|name| file.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cid_bootserver::machine::MacAddress;

    fn sighting(last: u8, boot_file: Option<&str>) -> Sighting {
        Sighting {
            server: Ipv4Addr::new(10, 77, 0, last),
            role: Role::Proxy,
            to: MacAddress([2, 0, 0, 0, 0, 1]),
            address: None,
            boot_server: None,
            boot_file: boot_file.map(str::to_owned),
        }
    }

    #[test]
    fn a_server_is_news_once_and_again_when_it_changes_or_comes_back() {
        let mut rivals = Rivals::default();
        let first = rivals
            .take(100, &sighting(9, Some("boot\\x64\\wdsnbp.com")))
            .unwrap();
        assert!(
            first.contains("Windows Deployment Server") && first.contains("10.77.0.9"),
            "{first}"
        );
        assert_eq!(
            rivals.take(101, &sighting(9, Some("boot\\x64\\wdsnbp.com"))),
            None
        );
        assert_eq!(rivals.take(102, &sighting(9, None)), None);
        assert!(rivals.take(103, &sighting(9, Some("pxelinux.0"))).is_some());
        assert!(rivals.take(104 + FORGOTTEN_SECS, &sighting(9, None)).is_some());
        let row = rivals.rows().pop().unwrap();
        assert_eq!(
            (row.first_seen_unix, row.last_seen_unix),
            (100, 104 + FORGOTTEN_SECS)
        );
    }

    #[test]
    fn the_list_is_bounded() {
        let mut rivals = Rivals::default();
        for last in 0..=u8::MAX {
            rivals.take(u64::from(last), &sighting(last, None));
        }
        assert_eq!(rivals.rows().len(), MAX_RIVALS);
        assert!(rivals.rows().iter().any(|row| row.server == "10.77.0.255"));
    }
}
