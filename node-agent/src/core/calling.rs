//! Which link calls the head, and when; what a person is told while none can.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cid_discovery::NodeState;

use super::{BOOT_LINK_HEAD_START, CONNECT_BOUND, Link, Node, Output, Standing, State};

impl Node {
    /// Calls the head over the next link, if there is one and it is time.
    pub(super) fn search(&mut self, now: Duration, retry_at: Duration) {
        self.say_what_is_missing();
        if self.next_attempt(retry_at).is_none_or(|moment| now < moment) {
            return;
        }
        let (Some((index, from)), Some(head)) = (self.candidate(), self.config.head) else {
            return;
        };
        self.call(now, index, from, head);
    }

    pub(super) fn call(&mut self, now: Duration, index: u32, from: Ipv4Addr, head: SocketAddrV4) {
        self.last_tried = Some(index);
        self.state = State::Connecting {
            index,
            until: now + CONNECT_BOUND,
        };
        self.say(&format!("calling the head at {}", head.ip()));
        self.outputs.push_back(Output::Connect { index, from, head });
        self.announce(NodeState::Joining);
    }

    /// When the next attempt may be made; `None` while no link could make it.
    pub(super) fn next_attempt(&self, retry_at: Duration) -> Option<Duration> {
        self.candidate()?;
        self.config.head?;
        if matches!(self.config.standing, Standing::Nobody(_)) {
            return None;
        }
        let boot_link_is_late = self.last_tried.is_none()
            && self
                .links
                .values()
                .any(|s| self.is_boot_link(&s.link) && s.link.carrier && s.address.is_none());
        let head_start = if boot_link_is_late {
            self.first_address_at? + BOOT_LINK_HEAD_START
        } else {
            retry_at
        };
        Some(retry_at.max(head_start))
    }

    /// The link to call over: the boot link if none was tried yet, else the next in turn.
    fn candidate(&self) -> Option<(u32, Ipv4Addr)> {
        let mut usable: Vec<(bool, u32, Ipv4Addr)> = Vec::new();
        for (index, state) in &self.links {
            if let (true, Some(address)) = (state.link.carrier, state.address) {
                usable.push((!self.is_boot_link(&state.link), *index, address));
            }
        }
        usable.sort_unstable();
        let last = self
            .last_tried
            .and_then(|last| usable.iter().position(|(_, index, _)| *index == last));
        let next = last.map_or(0, |position| (position + 1) % usable.len().max(1));
        usable.get(next).map(|(_, index, address)| (*index, *address))
    }

    fn is_boot_link(&self, link: &Link) -> bool {
        self.config.boot_mac == Some(link.mac)
    }

    /// The link in use lost its carrier or vanished: the others are tried at once.
    pub(super) fn check_link_in_use(&mut self, now: Duration) {
        let Some(index) = self.index_in_use() else { return };
        if !self.links.get(&index).is_some_and(|state| state.link.carrier) {
            self.lost(now, "the network cable is out");
            self.state = State::Searching { retry_at: now };
        }
    }

    pub(super) fn say_what_is_missing(&mut self) {
        if !self.looked || self.refused.is_some() || self.last_tried.is_some() && self.candidate().is_some() {
            return;
        }
        let names = |carrier: bool| {
            let links = self.links.values().filter(|s| s.link.carrier == carrier);
            links
                .map(|s| s.link.name.as_str())
                .collect::<Vec<_>>()
                .join(" and ")
        };
        let text = if self.links.is_empty() {
            "no wired network card that Linux has a driver for".to_owned()
        } else if self.links.values().any(|s| s.address.is_some() && s.link.carrier) {
            return;
        } else if self.links.values().any(|s| s.link.carrier) {
            format!("asking for an address on {}", names(true))
        } else {
            format!("waiting for a network cable in {}", names(false))
        };
        self.say(&text);
    }
}
