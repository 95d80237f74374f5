//! A DHCP client for one link (RFC 2131), as a state machine: no socket, no clock.
//!
//! The node must get the address that its firmware got: `chaddr` is the MAC and there is no client identifier
//! (option 61), so a server that goes by MAC sees one client. The broadcast flag is set, since the link has no
//! address yet. It never gives up: switches with spanning tree swallow the first half minute. What it holds it uses until it ends,
//! over restarts of the agent too: the DHCP server may be the head, and the head may be down.

mod packet;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

pub(crate) use packet::Reject;
use packet::{Reply, ReplyKind, Request};
use serde::{Deserialize, Serialize};

/// First retransmission; doubles up to [`LAST_INTERVAL`]. RFC 2131 section 4.1 starts at 4 s, which a person
/// would wait for at every boot behind a switch that drops the first packet.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(16);
/// REQUESTs for one offer (or one remembered address) before starting over.
const REQUEST_TRIES: u32 = 3;
/// RFC 2131 section 4.4.5: renewals are not repeated faster than this.
const RENEW_INTERVAL: Duration = Duration::from_secs(60);
/// A shorter lease is a server's mistake; it is taken for this long.
const SHORTEST_LEASE: Duration = Duration::from_secs(30);

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Ours.
    pub(crate) address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub(crate) prefix: u8,
    /// Default router.
    pub(crate) router: Option<Ipv4Addr>,
    /// Name servers.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// Domain to search.
    pub(crate) domain: Option<String>,
    /// Server identifier (option 54).
    pub(crate) server: Ipv4Addr,
    /// Lease time.
    pub(crate) time: Duration,
    /// When to renew, from the acknowledgement on.
    renew: Duration,
    /// When to ask any server, from the acknowledgement on.
    rebind: Duration,
}

/// A lease in force, for the agent after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    lease: Lease,
    /// When it was acknowledged, since the kernel began.
    since: Duration,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send from port 68 of the link to port 67 of `to` (the limited broadcast address, or the server's).
    Transmit { to: Ipv4Addr, bytes: Vec<u8> },
    /// Put the lease's address on the link.
    Configure(Lease),
    /// Take the address off the link.
    Deconfigure,
}

#[derive(Debug, Clone)]
enum State {
    /// No carrier, nothing known, or a lease that waits for the carrier.
    Idle,
    Selecting {
        retry: Retry,
    },
    Requesting {
        server: Ipv4Addr,
        address: Ipv4Addr,
        retry: Retry,
    },
    /// Asking whether the old address is still ours (INIT-REBOOT).
    Rebooting {
        address: Ipv4Addr,
        retry: Retry,
    },
    /// `renew_at` <= `rebind_at` <= `ends`; `next` is the next request on the way.
    Bound {
        since: Duration,
        next: Duration,
    },
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Duration,
    tries: u32,
}

/// The client of one link.
#[derive(Debug)]
pub(crate) struct Client {
    mac: [u8; 6],
    state: State,
    lease: Option<Lease>,
    bound_at: Duration,
    started: Duration,
    xid: u32,
    random: u64,
    outputs: VecDeque<Output>,
}

impl Client {
    /// A client that waits for the carrier. The seed must differ between links and boots.
    pub(crate) fn new(mac: [u8; 6], seed: u64) -> Self {
        Self {
            mac,
            state: State::Idle,
            lease: None,
            bound_at: Duration::ZERO,
            started: Duration::ZERO,
            xid: 0,
            random: seed,
            outputs: VecDeque::new(),
        }
    }

    /// A client that holds what the agent before it held, unless that has ended.
    pub(crate) fn restore(mac: [u8; 6], seed: u64, now: Duration, held: Option<Held>) -> Self {
        let mut client = Self::new(mac, seed);
        let valid = |held: &Held| held.since <= now && now < held.since.saturating_add(held.lease.time);
        if let Some(held) = held.filter(valid) {
            client.bound_at = held.since;
            client.lease = Some(held.lease);
        }
        client
    }

    /// What the agent after this one may go on with.
    pub(crate) fn held(&self) -> Option<Held> {
        let lease = self.lease.clone()?;
        Some(Held {
            lease,
            since: self.bound_at,
        })
    }

    /// The carrier came or went. A lease outlives the carrier, but is asked for again when it is back.
    pub(crate) fn handle_carrier(&mut self, now: Duration, carrier: bool) {
        if !carrier {
            self.state = State::Idle;
            return;
        }
        self.started = now;
        match &self.lease {
            Some(lease) if now < self.bound_at + lease.time => {
                let address = lease.address;
                // Used while it is asked for: its server may be down. What is on the link already stays there.
                self.outputs.push_back(Output::Configure(lease.clone()));
                self.new_xid();
                self.state = State::Rebooting {
                    address,
                    retry: Retry { at: now, tries: 0 },
                };
            }
            _ => self.discover(now),
        }
        self.handle_deadline(now);
    }

    /// A datagram came to port 68 of the link.
    pub(crate) fn handle_datagram(&mut self, now: Duration, bytes: &[u8]) -> Result<(), Reject> {
        let reply = packet::parse(bytes, self.xid, self.mac)?;
        match (&self.state, reply.kind) {
            (State::Selecting { .. }, ReplyKind::Offer) => {
                let (Some(server), false) = (reply.server, reply.address.is_unspecified()) else {
                    // A proxyDHCP offer: a boot server without addresses.
                    return Err(Reject::NoAddress);
                };
                let retry = Retry { at: now, tries: 0 };
                self.state = State::Requesting {
                    server,
                    address: reply.address,
                    retry,
                };
                self.handle_deadline(now);
                Ok(())
            }
            (State::Requesting { address, .. } | State::Rebooting { address, .. }, ReplyKind::Ack)
                if reply.address == *address =>
            {
                self.bind(now, reply)
            }
            (State::Bound { .. }, ReplyKind::Ack) if self.is_renewing(now) => self.bind(now, reply),
            (State::Requesting { .. } | State::Rebooting { .. }, ReplyKind::Nak) => self.refused(now),
            (State::Bound { .. }, ReplyKind::Nak) if self.is_renewing(now) => self.refused(now),
            _ => Err(Reject::Unexpected),
        }
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Idle => self.lease.as_ref().map(|lease| self.bound_at + lease.time),
            State::Selecting { retry } | State::Requesting { retry, .. } | State::Rebooting { retry, .. } => {
                Some(retry.at)
            }
            State::Bound { next, .. } => Some(*next),
        }
    }

    /// Sends what is due; an early call does nothing.
    pub(crate) fn handle_deadline(&mut self, now: Duration) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.state.clone() {
            State::Idle => self.expire(),
            State::Selecting { retry } => {
                // Asking for the address of before keeps it where the server can choose.
                let wanted = self.lease.as_ref().map(|lease| lease.address);
                self.transmit(now, Ipv4Addr::BROADCAST, Request::Discover { wanted });
                self.state = State::Selecting {
                    retry: self.backoff(now, retry),
                };
            }
            // RFC 2131 section 3.2 (4): nobody answers, the lease has not ended, so it is used for the rest of its time.
            State::Rebooting { retry, .. } if retry.tries >= REQUEST_TRIES => self.hold(now),
            State::Requesting { retry, .. } if retry.tries >= REQUEST_TRIES => {
                self.discover(now);
                self.handle_deadline(now);
            }
            State::Requesting {
                server,
                address,
                retry,
            } => {
                self.transmit(now, Ipv4Addr::BROADCAST, Request::Select { server, address });
                self.state = State::Requesting {
                    server,
                    address,
                    retry: self.backoff(now, retry),
                };
            }
            State::Rebooting { address, retry } => {
                self.transmit(now, Ipv4Addr::BROADCAST, Request::Verify { address });
                self.state = State::Rebooting {
                    address,
                    retry: self.backoff(now, retry),
                };
            }
            State::Bound { since, .. } => self.renew(now, since),
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The lease in force.
    #[cfg(test)]
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    fn discover(&mut self, now: Duration) {
        self.new_xid();
        self.started = now;
        self.state = State::Selecting {
            retry: Retry { at: now, tries: 0 },
        };
    }

    fn bind(&mut self, now: Duration, reply: Reply) -> Result<(), Reject> {
        let lease = reply.into_lease()?;
        if self
            .lease
            .as_ref()
            .is_some_and(|old| old.address != lease.address)
        {
            self.outputs.push_back(Output::Deconfigure);
        }
        self.bound_at = now;
        self.state = State::Bound {
            since: now,
            next: now + lease.renew,
        };
        self.lease = Some(lease.clone());
        self.outputs.push_back(Output::Configure(lease));
        Ok(())
    }

    fn hold(&mut self, now: Duration) {
        match &self.lease {
            Some(lease) => {
                self.state = State::Bound {
                    since: self.bound_at,
                    next: (self.bound_at + lease.renew).max(now),
                }
            }
            None => self.discover(now),
        }
        self.handle_deadline(now);
    }

    /// RFC 2131 section 3.1 (6): the address is not ours; start over, a little later so that a server that always
    /// refuses is not flooded.
    fn refused(&mut self, now: Duration) -> Result<(), Reject> {
        self.expire();
        self.discover(now);
        self.state = State::Selecting {
            retry: Retry {
                at: now + FIRST_INTERVAL,
                tries: 0,
            },
        };
        Ok(())
    }

    fn expire(&mut self) {
        if self.lease.take().is_some() {
            self.outputs.push_back(Output::Deconfigure);
        }
    }

    fn is_renewing(&self, now: Duration) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| now >= self.bound_at + lease.renew)
    }

    /// RENEWING asks the server that gave the lease, REBINDING anyone; each again after half of what is left.
    fn renew(&mut self, now: Duration, since: Duration) {
        let Some(lease) = self.lease.clone() else {
            return self.discover(now);
        };
        let (rebind_at, ends) = (since + lease.rebind, since + lease.time);
        if now >= ends {
            self.expire();
            self.discover(now);
            return self.handle_deadline(now);
        }
        let (to, limit) = if now < rebind_at {
            (lease.server, rebind_at)
        } else {
            (Ipv4Addr::BROADCAST, ends)
        };
        self.new_xid();
        self.transmit(
            now,
            to,
            Request::Renew {
                address: lease.address,
            },
        );
        let wait = ((limit - now) / 2).max(RENEW_INTERVAL);
        self.state = State::Bound {
            since,
            next: (now + wait).min(limit),
        };
    }

    fn transmit(&mut self, now: Duration, to: Ipv4Addr, request: Request) {
        let secs = u16::try_from(now.saturating_sub(self.started).as_secs()).unwrap_or(u16::MAX);
        let bytes = packet::encode(request, self.xid, secs, self.mac);
        self.outputs.push_back(Output::Transmit { to, bytes });
    }

    /// The interval doubles; a tenth of it at random keeps a room from asking in chorus.
    fn backoff(&mut self, now: Duration, retry: Retry) -> Retry {
        let interval = (FIRST_INTERVAL * (1 << retry.tries.min(4))).min(LAST_INTERVAL);
        let share = u32::try_from(self.draw() % 205).unwrap_or(0) + 922;
        Retry {
            at: now + interval * share / 1024,
            tries: retry.tries + 1,
        }
    }

    fn new_xid(&mut self) {
        self.xid = (self.draw() >> 32) as u32;
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests;
