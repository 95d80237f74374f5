//! Jobs between clients and nodes: a core. Every hop has credit of its own, and gives it on one side when bytes have left on the other, so
//! that what waits here is bounded by a job's windows, and who does not read stops nobody else. Must not own a socket or a clock, nor
//! choose nodes ([`super::place`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cid_protocol::work::{FromClient, Order, Outcome, Place, Program, Report, Start, ToClient, is_forwarded};
use cid_streams::{Channel, Frame, Kind, Mux, Overrun, Received, StreamId, window};
use serde::Serialize;
use tokio::sync::Notify;

use super::place::Share;
use crate::registry::ConnectionId;

/// Messages that may wait for a node of one job; signals beyond them are dropped.
const MOST_MESSAGES: usize = 1_024;

/// What is known of a job when it is started.
#[derive(Debug)]
pub struct Beginning {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What ranks become.
    pub program: Program,
    /// Where they are; all ranks from 0 on.
    pub shares: Vec<Share<ConnectionId>>,
}

/// All jobs, and the connections of nodes that have some.
#[derive(Debug, Default)]
pub struct Relay {
    last: u32,
    jobs: BTreeMap<u32, Job>,
    legs: BTreeMap<ConnectionId, Leg>,
}

#[derive(Debug, Default)]
struct Leg {
    wake: Arc<Notify>,
    /// Takes part in this version of work.
    able: bool,
    /// Ranks it has.
    used: u32,
    /// Jobs that have ranks there, in turn.
    round: VecDeque<u32>,
}

#[derive(Debug)]
struct Job {
    size: u32,
    /// `None`: it is gone, and what comes for it is dropped.
    client: Option<Mux>,
    wake: Arc<Notify>,
    parts: BTreeMap<ConnectionId, Part>,
    /// Where ranks are, by the first of them.
    by_rank: BTreeMap<u32, ConnectionId>,
}

#[derive(Debug)]
struct Part {
    name: String,
    mux: Mux,
    /// Ranks that have not ended.
    running: std::collections::BTreeSet<u32>,
    over: bool,
}

fn text(message: &impl Serialize) -> Vec<u8> {
    // Types of ours: no map with keys that are no text, the only thing that could fail.
    serde_json::to_vec(message).unwrap_or_default()
}

impl Relay {
    /// A connection of a node; what it is woken by.
    pub fn connect(&mut self, id: ConnectionId) -> Arc<Notify> {
        let leg = self.legs.entry(id).or_default();
        Arc::clone(&leg.wake)
    }

    /// Its node runs programs.
    pub fn enable(&mut self, id: ConnectionId) {
        if let Some(leg) = self.legs.get_mut(&id) {
            leg.able = true;
        }
    }

    /// Ranks that a node has; `None` when it runs none.
    #[must_use]
    pub fn used(&self, id: ConnectionId) -> Option<u32> {
        let leg = self.legs.get(&id).filter(|leg| leg.able)?;
        Some(leg.used)
    }

    /// How many jobs there are, and ranks in all.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        let used = self.legs.values().map(|leg| u64::from(leg.used)).sum();
        (self.jobs.len(), used)
    }

    /// Bytes that wait here of all streams.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let of = |job: &Job| {
            let parts: usize = job.parts.values().map(|part| part.mux.waiting()).sum();
            parts + job.client.as_ref().map_or(0, Mux::waiting)
        };
        self.jobs.values().map(of).sum()
    }

    /// A connection ended: its ranks are lost to their jobs.
    pub fn disconnect(&mut self, id: ConnectionId) {
        self.legs.remove(&id);
        for job in self.jobs.values_mut() {
            job.lose(id);
        }
        self.jobs.retain(|_, job| !job.is_over());
    }

    /// Tells the nodes; returns the job's number, and what its client is woken by.
    pub fn start(&mut self, beginning: Beginning) -> (u32, Arc<Notify>) {
        let Beginning {
            uid,
            gid,
            program,
            shares,
        } = beginning;
        self.last = match self.last.wrapping_add(1) {
            0 => 1,
            next => next,
        };
        let number = self.last;
        let size = shares.iter().map(|share| share.count).sum();
        let names: Vec<&str> = shares.iter().map(|share| share.name.as_str()).collect();
        let nodes = names.join(",");
        let mut job = Job {
            size,
            client: Some(Mux::new(0..size, window(size))),
            wake: Arc::new(Notify::new()),
            parts: BTreeMap::new(),
            by_rank: BTreeMap::new(),
        };
        let places = shares.iter().map(|share| Place {
            node: share.name.clone(),
            first: share.first,
            count: share.count,
        });
        job.tell(&ToClient::Started {
            job: number,
            places: places.collect(),
        });
        for share in shares {
            let ranks = share.first..share.first + share.count;
            let mut part = Part {
                name: share.name,
                mux: Mux::new(ranks.clone(), window(size)),
                running: ranks.collect(),
                over: false,
            };
            let start = Start {
                job: number,
                size,
                first: share.first,
                count: share.count,
                nodes: nodes.clone(),
                uid,
                gid,
                program: program.clone(),
            };
            part.mux.control(text(&Order::Start(Box::new(start))));
            job.by_rank.insert(share.first, share.id);
            job.parts.insert(share.id, part);
        }
        for id in job.parts.keys().copied().collect::<Vec<_>>() {
            match (self.legs.get_mut(&id), job.parts.get(&id)) {
                (Some(leg), Some(part)) => {
                    leg.used += u32::try_from(part.running.len()).unwrap_or(u32::MAX);
                    leg.round.push_back(number);
                    leg.wake.notify_one();
                }
                // It went a moment ago.
                _ => job.lose(id),
            }
        }
        let wake = Arc::clone(&job.wake);
        self.jobs.insert(number, job);
        (number, wake)
    }

    /// A frame from a node.
    ///
    /// # Errors
    /// It breaks the rules: its connection is to be ended.
    pub fn handle_node(&mut self, id: ConnectionId, frame: Frame) -> Result<(), Overrun> {
        let Some(leg) = self.legs.get_mut(&id) else {
            return Ok(());
        };
        let Some(job) = self.jobs.get_mut(&frame.job) else {
            return Ok(());
        };
        let Some(part) = job.parts.get_mut(&id) else {
            return Ok(());
        };
        let Some(received) = part.mux.handle(frame.kind)? else {
            return Ok(());
        };
        match (received, &mut job.client) {
            (Received::Data(stream, data), Some(client)) => client.queue(stream, &data),
            (Received::Data(stream, data), None) => part.mux.consumed(stream, data.len()),
            (Received::End(stream), Some(client)) => client.end(stream),
            (Received::Stop(stream), Some(client)) => client.stop(stream),
            (Received::End(_) | Received::Stop(_) | Received::Credit(_), _) => {}
            (Received::Control(text), _) => match serde_json::from_slice(&text) {
                Ok(Report::Ended { rank, outcome }) if part.running.remove(&rank) => {
                    leg.used = leg.used.saturating_sub(1);
                    job.tell(&ToClient::Ended { rank, outcome });
                }
                Ok(Report::Over) => {
                    part.over = true;
                    leg.round.retain(|number| *number != frame.job);
                    leg.used = leg
                        .used
                        .saturating_sub(u32::try_from(part.running.len()).unwrap_or(u32::MAX));
                    job.lose(id);
                }
                Ok(Report::Ended { .. }) | Err(_) => {}
            },
        }
        leg.wake.notify_one();
        job.wake.notify_one();
        if job.is_over() {
            self.jobs.remove(&frame.job);
        }
        Ok(())
    }

    /// What is to be sent to a node next: its jobs take turns.
    pub fn poll_node(&mut self, id: ConnectionId) -> Option<Frame> {
        let leg = self.legs.get_mut(&id)?;
        for _ in 0..leg.round.len() {
            let number = leg.round.pop_front()?;
            leg.round.push_back(number);
            let Some(job) = self.jobs.get_mut(&number) else {
                continue;
            };
            let Some(kind) = job.parts.get_mut(&id).and_then(|part| part.mux.poll_frame()) else {
                continue;
            };
            if let (Kind::Data(stream, data), Some(client)) = (&kind, &mut job.client) {
                client.consumed(*stream, data.len());
                job.wake.notify_one();
            }
            return Some(Frame { job: number, kind });
        }
        None
    }

    /// A frame from a job's client.
    ///
    /// # Errors
    /// It breaks the rules: its connection is to be ended.
    pub fn handle_client(&mut self, number: u32, kind: Kind) -> Result<(), Overrun> {
        let Some(job) = self.jobs.get_mut(&number) else {
            return Ok(());
        };
        let Some(received) = job
            .client
            .as_mut()
            .map(|client| client.handle(kind))
            .transpose()?
            .flatten()
        else {
            return Ok(());
        };
        match received {
            Received::Credit(_) => job.wake.notify_one(),
            Received::Control(text) => {
                let order = match serde_json::from_slice(&text) {
                    Ok(FromClient::Signal { signal }) if is_forwarded(signal) => Order::Signal { signal },
                    Ok(FromClient::Kill) => Order::Kill,
                    Ok(_) | Err(_) => return Ok(()),
                };
                self.order(number, &order);
            }
            Received::Data(stream, data) => {
                let taken = self.with_part(number, stream, |mux| {
                    let takes = mux.room(stream) >= data.len();
                    mux.queue(stream, &data);
                    takes
                });
                if taken != Some(true)
                    && let Some(client) = self.jobs.get_mut(&number).and_then(|job| job.client.as_mut())
                {
                    client.consumed(stream, data.len());
                }
            }
            Received::End(stream) => drop(self.with_part(number, stream, |mux| mux.end(stream))),
            Received::Stop(stream) => drop(self.with_part(number, stream, |mux| mux.stop(stream))),
        }
        Ok(())
    }

    fn with_part<T>(&mut self, number: u32, stream: StreamId, act: impl FnOnce(&mut Mux) -> T) -> Option<T> {
        let job = self.jobs.get_mut(&number)?;
        let (_, id) = job.by_rank.range(..=stream.rank).next_back()?;
        let part = job.parts.get_mut(id).filter(|part| !part.over)?;
        let result = act(&mut part.mux);
        if let Some(leg) = self.legs.get(id) {
            leg.wake.notify_one();
        }
        Some(result)
    }

    /// What is to be sent to a job's client next.
    pub fn poll_client(&mut self, number: u32) -> Option<Kind> {
        let job = self.jobs.get_mut(&number)?;
        let kind = job.client.as_mut()?.poll_frame()?;
        if let Kind::Data(stream, data) = &kind {
            let (stream, length) = (*stream, data.len());
            self.with_part(number, stream, |mux| mux.consumed(stream, length));
        }
        Some(kind)
    }

    /// A client's connection ended: its job ends with it.
    pub fn client_gone(&mut self, number: u32) {
        self.order(number, &Order::End);
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.client = None;
        if job.is_over() {
            self.jobs.remove(&number);
        }
    }

    fn order(&mut self, number: u32, order: &Order) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let text = text(order);
        for (id, part) in &mut job.parts {
            if part.over || part.mux.waiting_first() > MOST_MESSAGES {
                continue;
            }
            part.mux.control(text.clone());
            if let Some(leg) = self.legs.get(id) {
                leg.wake.notify_one();
            }
        }
    }
}

impl Job {
    fn tell(&mut self, message: &ToClient) {
        if let Some(client) = &mut self.client {
            client.control(text(message));
        }
        self.wake.notify_one();
    }

    /// Ranks of a node that have not said how they ended never will.
    fn lose(&mut self, id: ConnectionId) {
        let Some(part) = self.parts.get_mut(&id) else {
            return;
        };
        part.over = true;
        let why = format!("{} is lost", part.name);
        let lost = std::mem::take(&mut part.running);
        for rank in lost {
            let outcome = Outcome::Lost { why: why.clone() };
            self.tell(&ToClient::Ended { rank, outcome });
        }
        let Some(client) = &mut self.client else { return };
        let next = self
            .by_rank
            .iter()
            .find(|(_, other)| **other == id)
            .map(|(first, _)| *first);
        let first = next.unwrap_or(self.size);
        let behind = self
            .by_rank
            .range(first + 1..)
            .next()
            .map_or(self.size, |(rank, _)| *rank);
        for rank in first..behind {
            for channel in [Channel::Stdout, Channel::Stderr] {
                client.end(StreamId { rank, channel });
            }
            client.stop(StreamId {
                rank,
                channel: Channel::Stdin,
            });
        }
        self.wake.notify_one();
    }

    /// Nothing of it is left anywhere.
    fn is_over(&self) -> bool {
        self.client.is_none() && self.parts.values().all(|part| part.over)
    }
}

#[cfg(test)]
mod tests;
