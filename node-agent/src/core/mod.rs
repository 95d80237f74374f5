//! The node's life as a state machine: links -> address -> join -> up -> home. No socket, no clock, no file.
//!
//! One link at a time calls the head: the one the firmware booted from first, then the others in turn. The first
//! over which the head welcomes the node is used until it fails.

mod calling;
mod leaving;
mod rooted;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cid_discovery::NodeState;
use cid_discovery::random::Random;
use cid_protocol::node::{
    Certificate, Ending, GroupKey, Leaving, MEMBER_PULSE_SECS, MemberTicket, PULSE_SECS, ToNode, WayHome,
};
use cid_protocol::root::{RootOrder, RootPromise};
use cid_protocol::supervision::{FromAgent, FromInit, HEARTBEAT_SECS};

use leaving::in_words;

/// How long a TCP connection may take to come up.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
/// How long the head may take to answer a hello.
const WELCOME_BOUND: Duration = Duration::from_secs(10);
/// A head that answers no pulse for this long is unreachable.
const PULSE_BOUND: Duration = Duration::from_secs(10);
/// Between pulses; of a node that hears its head as a member, too.
const PULSE: Duration = Duration::from_secs(PULSE_SECS);
const MEMBER_PULSE: Duration = Duration::from_secs(MEMBER_PULSE_SECS);
/// A member that did not hear its head for this long asks over the connection: by datagrams it asks every 10 s, give or take an eighth.
const MEMBER_BOUND: Duration = Duration::from_secs(13);
/// Between attempts, at the most; doubles from the first to the last. Each wait is drawn from its second half: a room that loses its head
/// loses it in one moment, and a thousand handshakes at once are more than a head can do in one. A head that is back has ten seconds to
/// hear all of them; the last wait leaves it six.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(4);
/// How long other links wait for the one the firmware booted from to get its address.
const BOOT_LINK_HEAD_START: Duration = Duration::from_secs(3);
/// A head that refuses this node is asked again this often, ...
const REFUSED_RETRY: Duration = Duration::from_secs(20);
/// ... and the PC goes home when it was refused for this long (the going-home table allows a minute).
const REFUSED_BOUND: Duration = Duration::from_secs(50);
/// After the end of the hours the head has this long to say so itself.
const CLOSING_GRACE: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_SECS);

/// From the kernel command line.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `cid.head`.
    pub(crate) head: Option<SocketAddrV4>,
    /// `BOOTIF`.
    pub(crate) boot_mac: Option<[u8; 6]>,
    /// `cid.bail_out`; the head's welcome may change it.
    pub(crate) bail_out: Duration,
    /// When the agent before this one last heard the head: the PC goes home in time however often its agent ends.
    pub(crate) heard: Option<Duration>,
    /// What the node can show its head.
    pub(crate) standing: Standing,
    /// By which attempts of a room are spread; differs between machines.
    pub(crate) seed: u64,
}

/// What this boot can show a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing, for this reason: it does not even know by what to trust a head.
    Nobody(String),
    /// At the most a boot token, for which the head gives a certificate.
    Stranger,
    /// A certificate.
    Certified,
}

/// A wired link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Interface index.
    pub(crate) index: u32,
    /// Interface name.
    pub(crate) name: String,
    /// MAC.
    pub(crate) mac: [u8; 6],
    /// Carrier.
    pub(crate) carrier: bool,
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Dial the head over this link, from this address.
    Connect {
        index: u32,
        from: Ipv4Addr,
        head: SocketAddrV4,
    },
    /// Close the connection, whatever its state.
    Disconnect,
    /// Collect the hardware and send a hello; `index` is the link in use.
    SendHello { index: u32 },
    /// Ask the head for a certificate; `index` is the link in use.
    SendEnroll { index: u32 },
    /// The head gave it; the answer is [`Node::handle_enrolled`].
    Enroll { certificate: Certificate },
    /// The node is a member of the head's group, by this ticket, on the link in use.
    Join {
        index: u32,
        address: Ipv4Addr,
        name: String,
        ticket: Box<MemberTicket>,
    },
    /// The group's key was rotated.
    Rotate { key: GroupKey },
    /// The head promises this root image: fetch it, mount it, and tell [`Node::handle_root`].
    Promise { promise: Box<RootPromise> },
    /// The head's word to the one who fetches it.
    Order { order: RootOrder },
    /// Tell the members that this node goes.
    Leave,
    /// Send a pulse with the load.
    SendPulse,
    /// Get the PC ready for its next start.
    Prepare { leaving: Leaving },
    /// Tell the head that this node leaves, and what was prepared.
    SendGoingHome { reason: String },
    /// The head's clock, Unix time in milliseconds.
    SetClock { unix_ms: u64 },
    /// Speak to PID 1.
    Tell(FromAgent),
    /// What beacons say from now on; `None` for the link silences them.
    Announce {
        link: Option<(u32, Ipv4Addr)>,
        state: NodeState,
        name: String,
    },
}

#[derive(Debug, Clone)]
enum State {
    /// No connection; the next attempt is not before `retry_at`.
    Searching {
        retry_at: Duration,
    },
    Connecting {
        index: u32,
        until: Duration,
    },
    Joining {
        index: u32,
        until: Duration,
    },
    Up {
        index: u32,
        /// When the last pulse left, and the first of those that were not answered.
        pulsed: Option<Duration>,
        unanswered: Option<Duration>,
        heard: Duration,
    },
    Over,
}

#[derive(Debug)]
struct LinkState {
    link: Link,
    address: Option<Ipv4Addr>,
}

/// The node.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    links: BTreeMap<u32, LinkState>,
    /// Whether the shell has told of links at all yet.
    looked: bool,
    state: State,
    /// When the head was last heard; bail-out counts from here.
    heard: Duration,
    /// The same of the membership's datagrams alone.
    member_heard: Option<Duration>,
    retry: Duration,
    random: Random,
    first_address_at: Option<Duration>,
    last_tried: Option<u32>,
    refused: Option<(Duration, String)>,
    /// A root image is mounted.
    mounted: bool,
    /// The head promised one, and none is mounted yet.
    awaits_root: bool,
    /// When the hours of its group end by the head's clock, Unix time in milliseconds: what the head said last.
    closes_unix_ms: Option<u64>,
    /// The same by our own clock, with the head's grace.
    home_at: Option<Duration>,
    /// What it does then.
    at_close: Ending,
    way_home: WayHome,
    name: String,
    alive_at: Duration,
    status: String,
    outputs: VecDeque<Output>,
}

impl Node {
    /// A node that has seen nothing yet. `now` is the beginning of the bail-out time, unless an agent before this one heard the head.
    pub(crate) fn new(now: Duration, config: Config) -> Self {
        let heard = config.heard.map_or(now, |at| at.min(now));
        let seed = config.seed;
        let mut node = Self {
            config,
            links: BTreeMap::new(),
            looked: false,
            state: State::Searching { retry_at: now },
            heard,
            member_heard: None,
            retry: FIRST_RETRY,
            random: Random::new(seed),
            first_address_at: None,
            last_tried: None,
            refused: None,
            mounted: false,
            awaits_root: false,
            closes_unix_ms: None,
            home_at: None,
            at_close: Ending::default(),
            way_home: WayHome::default(),
            name: String::new(),
            alive_at: now,
            status: String::new(),
            outputs: VecDeque::new(),
        };
        if let Standing::Nobody(why) = node.config.standing.clone() {
            node.refuse(now, why);
        }
        node.handle_deadline(now);
        node
    }

    /// All wired links as they are now.
    pub(crate) fn handle_links(&mut self, now: Duration, links: Vec<Link>) {
        self.looked = true;
        self.links
            .retain(|index, _| links.iter().any(|link| link.index == *index));
        for link in links {
            match self.links.get_mut(&link.index) {
                Some(state) => state.link = link,
                None => drop(self.links.insert(link.index, LinkState { link, address: None })),
            }
        }
        self.check_link_in_use(now);
        self.handle_deadline(now);
    }

    /// A link got, changed or lost its address.
    pub(crate) fn handle_address(&mut self, now: Duration, index: u32, address: Option<Ipv4Addr>) {
        let Some(state) = self.links.get_mut(&index) else {
            return;
        };
        let changed = state.address != address;
        state.address = address;
        if address.is_some() {
            self.first_address_at.get_or_insert(now);
        }
        if changed && self.index_in_use() == Some(index) {
            self.lost(now, "its address changed");
        }
        self.handle_deadline(now);
    }

    /// The connection is up.
    pub(crate) fn handle_connected(&mut self, now: Duration) {
        if let State::Connecting { index, .. } = self.state {
            self.state = State::Joining {
                index,
                until: now + WELCOME_BOUND,
            };
            self.outputs.push_back(match self.config.standing {
                Standing::Certified => Output::SendHello { index },
                Standing::Stranger | Standing::Nobody(_) => Output::SendEnroll { index },
            });
        }
    }

    /// The certificate was taken, or could not be. The head is called again over the same link: it closes behind its answer.
    pub(crate) fn handle_enrolled(&mut self, now: Duration, taken: Result<(), String>) {
        let State::Joining { index, .. } = self.state else {
            return;
        };
        match taken {
            Ok(()) => {
                self.config.standing = Standing::Certified;
                self.disconnect();
                let address = self.links.get(&index).and_then(|state| state.address);
                if let (Some(from), Some(head)) = (address, self.config.head) {
                    self.call(now, index, from, head);
                }
            }
            Err(why) => self.refuse(now, why),
        }
    }

    /// The head was heard then, by a datagram of the membership.
    pub(crate) fn handle_head_heard(&mut self, at: Duration) {
        self.heard = self.heard.max(at);
        self.member_heard = Some(at);
    }

    /// The connection did not come up, or ended.
    pub(crate) fn handle_closed(&mut self, now: Duration, why: &str) {
        if self.index_in_use().is_some() {
            self.lost(now, why);
            self.handle_deadline(now);
        }
    }

    /// The head said something.
    pub(crate) fn handle_message(&mut self, now: Duration, message: ToNode) {
        if self.index_in_use().is_none() {
            return;
        }
        self.heard = now;
        match (&mut self.state, message) {
            (State::Joining { index, .. }, ToNode::Welcome(welcome)) => {
                let index = *index;
                self.state = State::Up {
                    index,
                    pulsed: None,
                    unanswered: None,
                    heard: now,
                };
                // Below it, one lost pulse would be the end.
                self.config.bail_out = Duration::from_secs(welcome.bail_out_secs).max(PULSE_BOUND);
                self.closes_unix_ms = welcome.home_at_unix_ms;
                self.plan_to_go(now, welcome.time_unix_ms);
                self.at_close = welcome.at_close;
                self.way_home = welcome.way_home;
                self.retry = FIRST_RETRY;
                self.refused = None;
                self.name.clone_from(&welcome.name);
                self.status.clear();
                self.outputs.push_back(Output::SetClock {
                    unix_ms: welcome.time_unix_ms,
                });
                for (key, text) in [
                    ("site", welcome.site),
                    ("group", welcome.group),
                    ("until", welcome.until),
                ] {
                    self.tell_fact(key, text);
                }
                let address = self.links.get(&index).and_then(|state| state.address);
                if let (Some(ticket), Some(address)) = (welcome.member, address) {
                    self.outputs.push_back(Output::Join {
                        index,
                        address,
                        name: welcome.name.clone(),
                        ticket: Box::new(ticket),
                    });
                }
                self.awaits_root = welcome.root.is_some() && !self.mounted;
                if let Some(promise) = welcome.root {
                    self.outputs.push_back(Output::Promise { promise });
                }
                self.show_up();
                self.handle_deadline(now);
            }
            (
                State::Up {
                    heard, unanswered, ..
                },
                ToNode::Pulse { time_unix_ms, plan },
            ) => {
                *heard = now;
                *unanswered = None;
                if let Some(plan) = plan {
                    self.closes_unix_ms = plan.home_at_unix_ms;
                    self.tell_fact("until", plan.until);
                }
                self.plan_to_go(now, time_unix_ms);
                self.outputs.push_back(Output::SetClock {
                    unix_ms: time_unix_ms,
                });
            }
            (_, ToNode::Refused { reason }) => self.refuse(now, format!("refused by the head: {reason}")),
            (State::Joining { .. }, ToNode::Certificate(certificate)) => {
                self.outputs.push_back(Output::Enroll { certificate });
            }
            (State::Up { .. }, ToNode::Key(key)) => self.outputs.push_back(Output::Rotate { key }),
            (State::Up { .. }, ToNode::Root(order)) => self.outputs.push_back(Output::Order { order }),
            (
                _,
                ToNode::Release {
                    reason,
                    ending,
                    again,
                    ..
                },
            ) => {
                if again {
                    self.way_home = WayHome::LocalBoot;
                }
                self.go_home(&reason, if again { &reason } else { "released" }, ending);
            }
            // Late answers to measurements among them.
            (
                _,
                ToNode::Welcome(_)
                | ToNode::Pulse { .. }
                | ToNode::Certificate(_)
                | ToNode::Key(_)
                | ToNode::Time { .. }
                | ToNode::Root(_)
                | ToNode::Measure(_),
            ) => {}
        }
    }

    /// PID 1 said something: a person wants the PC. There is nothing to drain yet.
    pub(crate) fn handle_init(&mut self, message: FromInit) {
        match message {
            FromInit::Drain { reason, .. } => self.go_home(&reason.clone(), &reason, Ending::Reboot),
            // The shell keeps them for the hello.
            FromInit::Phase { .. } => {}
        }
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let bail_out = self.heard + self.config.bail_out;
        let refused = self.refused.as_ref().map(|(since, _)| *since + REFUSED_BOUND);
        let state = match &self.state {
            State::Searching { retry_at } => self.next_attempt(*retry_at),
            State::Connecting { until, .. } | State::Joining { until, .. } => Some(*until),
            State::Up { .. } => self.pulse_due().into_iter().chain(self.silent_at()).min(),
            State::Over => return Some(self.alive_at),
        };
        [Some(self.alive_at), Some(bail_out), self.home_at, refused, state]
            .into_iter()
            .flatten()
            .min()
    }

    /// Acts on what is due; an early call does nothing.
    pub(crate) fn handle_deadline(&mut self, now: Duration) {
        if now >= self.alive_at {
            self.alive_at = now + HEARTBEAT;
            self.outputs.push_back(Output::Tell(FromAgent::Alive));
        }
        if matches!(self.state, State::Over) {
            return;
        }
        if now >= self.heard + self.config.bail_out {
            let reason = match self.config.head {
                Some(_) => format!("head unreachable for {}", in_words(self.config.bail_out)),
                None => "no head is named on the kernel command line (cid.head)".to_owned(),
            };
            return self.go_home(&reason.clone(), &reason, Ending::Reboot);
        }
        if self.home_at.is_some_and(|at| now >= at) {
            let reason = "the hours of its group have ended";
            return self.go_home(reason, reason, self.at_close);
        }
        if let Some((since, reason)) = self.refused.clone()
            && now >= since + REFUSED_BOUND
        {
            return self.go_home(&reason.clone(), &reason, Ending::Reboot);
        }
        match self.state.clone() {
            State::Searching { retry_at } => self.search(now, retry_at),
            State::Connecting { until, .. } if now >= until => self.lost(now, "the head does not answer"),
            State::Joining { until, .. } if now >= until => {
                self.lost(now, "the head does not welcome this node")
            }
            State::Up { .. } if self.silent_at().is_some_and(|at| now >= at) => {
                self.lost(now, "the head is silent");
            }
            State::Up {
                index,
                unanswered,
                heard,
                ..
            } if self.pulse_due().is_some_and(|at| now >= at) => {
                self.state = State::Up {
                    index,
                    pulsed: Some(now),
                    unanswered: unanswered.or(Some(now)),
                    heard,
                };
                self.outputs.push_back(Output::SendPulse);
            }
            _ => {}
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the head was last heard; bail-out counts from here.
    pub(crate) fn heard(&self) -> Duration {
        self.heard
    }

    /// Without the head for so long the PC goes home.
    pub(crate) fn bail_out(&self) -> Duration {
        self.config.bail_out
    }

    /// Whether the head has welcomed it.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Its name, once the head has given it one.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The link over which the head welcomed this node, with its address.
    pub(crate) fn link_in_use(&self) -> Option<(u32, Ipv4Addr)> {
        let State::Up { index, .. } = self.state else {
            return None;
        };
        Some((index, self.links.get(&index)?.address?))
    }

    /// The link that carries, or tries to carry, the connection.
    pub(crate) fn index_in_use(&self) -> Option<u32> {
        match self.state {
            State::Connecting { index, .. } | State::Joining { index, .. } | State::Up { index, .. } => {
                Some(index)
            }
            State::Searching { .. } | State::Over => None,
        }
    }

    fn announce(&mut self, state: NodeState) {
        let index = self.index_in_use();
        let link = index.and_then(|index| Some((index, self.links.get(&index)?.address?)));
        self.outputs.push_back(Output::Announce {
            link,
            state,
            name: self.name.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
