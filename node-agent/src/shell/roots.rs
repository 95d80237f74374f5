//! The root image in the agent's loop: promises and orders go to its task, its news to the head, the core and the screen.

use std::net::Ipv4Addr;
use std::time::Duration;

use cid_protocol::node::FromNode;
use cid_protocol::peer::PeerRow;
use cid_protocol::root::{RootOrder, RootPromise};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Event, Shell};
use crate::member::Command as ToMember;
use crate::root::memory::{Memory, Peak};
use crate::root::peer::Caller;
use crate::root::serve::Offered;
use crate::root::task::{Command, Handle, News, Way};
use crate::root::{hosts, mount};
use crate::{hardware, links};

/// Between two looks at who is there, for `/etc/hosts` of the root.
const NAMES: Duration = Duration::from_secs(10);

/// The task, and what the loop does for it.
pub(super) struct Roots {
    handle: Handle,
    peak: Peak,
    promised: bool,
    mounted: bool,
    names_at: Duration,
    way: Option<(u32, Ipv4Addr)>,
}

impl Roots {
    pub(super) fn start(started: Instant, sender: Sender<Event>) -> Self {
        let news = move |news| {
            // A full queue drops it: progress comes again, and what is mounted or refused is said with every promise.
            let _ = sender.try_send(Event::Root(news));
        };
        let peak = Peak::default();
        Self {
            handle: Handle::start(started, peak.clone(), news),
            peak,
            promised: false,
            mounted: false,
            names_at: Duration::ZERO,
            way: None,
        }
    }

    /// For the door.
    pub(super) fn offered(&self) -> Offered {
        self.handle.offered.clone()
    }

    /// The connection to the head is gone.
    pub(super) fn head_gone(&self) {
        self.handle.tell(Command::HeadGone);
    }

    pub(super) fn order(&self, order: RootOrder) {
        self.handle.tell(Command::Order(order));
    }
}

impl Shell {
    /// The head promises a root image.
    pub(super) fn promise(&mut self, promise: RootPromise) {
        if !self.ground.takes_roots() {
            return;
        }
        self.roots.promised = true;
        // Before anything runs in the root: what starts a second later asks for it.
        if let Some(name) = hosts::host_name(self.node.name())
            && let Err(error) = nix::unistd::sethostname(&name)
        {
            log!("cid-agent: the host name {name}: {error}");
        }
        self.show_way();
        if let Some(credentials) = &self.credentials {
            let pin = credentials.pin();
            self.roots.handle.tell(Command::Promise { promise, pin });
        }
    }

    pub(super) async fn handle_root(&mut self, now: Duration, news: News) {
        match news {
            News::Report(report) => self.send(FromNode::Root(report)).await,
            News::Progress(text) => self.node.handle_root_progress(&text),
            News::Refused(why) => self.node.handle_root_refused(now, &why),
            News::Mounted => {
                if !self.roots.mounted {
                    log!(
                        "cid-agent: at most {} KiB of memory were in use until now",
                        self.roots.peak.used_kib()
                    );
                }
                self.roots.mounted = true;
                self.node.handle_root();
            }
        }
    }

    /// Every second: the link in use, the memory, the names.
    pub(super) fn look_after_root(&mut self, now: Duration) {
        // Who boots an image without a root pays nothing for it.
        if !self.roots.promised && !self.roots.mounted {
            return;
        }
        self.show_way();
        if self.roots.peak.is_due(now) {
            self.roots.peak.handle_look(now, Memory::look());
        }
        if self.roots.mounted && now >= self.roots.names_at {
            self.roots.names_at = now + NAMES;
            let own = self.roots.way.map(|(_, address)| address);
            let head = self.head.map(|head| *head.ip());
            let (name, members) = (self.node.name().to_owned(), self.member_commands());
            tokio::spawn(async move {
                let rows = match members {
                    Some(members) => list(members).await,
                    None => Vec::new(),
                };
                write_names(&name, own, head, &rows);
            });
        }
    }

    /// Tells the task over which link others are called, when that has changed.
    fn show_way(&mut self) {
        let link = self.node.link_in_use();
        if link == self.roots.way {
            return;
        }
        let way = link.and_then(|(index, from)| {
            Some(Way {
                caller: Caller {
                    link: self.wires.get(&index)?.name.clone(),
                    from,
                    config: self.credentials.as_ref()?.peer_config()?,
                },
                head: *self.head?.ip(),
            })
        });
        if way.is_some() || link.is_none() {
            self.roots.way = link;
        }
        self.roots.handle.way(way);
    }
}

/// Who is there; nobody when the member does not say.
async fn list(members: Sender<ToMember>) -> Vec<PeerRow> {
    let (sender, answer) = oneshot::channel();
    if members.try_send(ToMember::List(sender)).is_err() {
        return Vec::new();
    }
    answer.await.map(|(_, rows)| rows).unwrap_or_default()
}

fn write_names(name: &str, own: Option<Ipv4Addr>, head: Option<Ipv4Addr>, rows: &[PeerRow]) {
    let others = rows.iter().filter_map(|row| {
        let address = row.address.as_ref()?.split(':').next()?.parse().ok()?;
        Some((row.name.as_str(), address))
    });
    let mut texts = vec![("hosts", hosts::hosts((name, own), head, others))];
    if let Some(name) = hosts::host_name(name) {
        texts.push(("hostname", format!("{name}\n")));
    }
    let servers = hardware::read(links::RESOLV_CONF);
    if !servers.is_empty() {
        texts.push(("resolv.conf", format!("{servers}\n")));
    }
    for (file, text) in texts {
        if hardware::read(&format!("{}/etc/{file}", mount::ROOT)) != text.trim()
            && let Err(error) = mount::write_etc(file, &text)
        {
            log!("cid-agent: {error:#}");
        }
    }
}
