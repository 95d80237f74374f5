//! Encoding and strict decoding of [`Message`]. Must never panic, whatever the bytes.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use super::{
    BUCKETS, Digest, Kind, Liveness, MAX_BODY, MAX_LOADS, MAX_RUMORS, MAX_TEXT, Message, Mode, Refusal,
};
use super::{Role, Rumor};
use crate::history::{Change, State};
use crate::identity::{Boot, NodeId};
use crate::load::{LoadEntry, LoadVector};

const BUSY: u8 = 1;
const HEAD: u8 = 2;
const TO_GROUP: u8 = 4;
/// In a rumour's tag; bits 0 and 1 are the liveness.
const RUMOR_HEAD: u8 = 4;
const RUMOR_HEADLESS: u8 = 8;

impl Message {
    /// The body of a datagram. Who builds a message keeps to the counts of this module, so it fits [`MAX_BODY`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let (code, _) = self.kind.code();
        out.push(code);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.push(
            flag(self.mode == Mode::Busy, BUSY)
                | flag(self.role == Role::Head, HEAD)
                | flag(self.to_group, TO_GROUP),
        );
        put(&mut out, &self.history.epoch.to_be_bytes());
        put(&mut out, &self.history.length.to_be_bytes());
        put(&mut out, &self.roster.to_be_bytes());
        put_kind(&mut out, &self.kind);
        out.push(count(self.rumors.len()));
        self.rumors.iter().for_each(|rumor| put_rumor(&mut out, rumor));
        out.push(count(self.loads.len()));
        self.loads.iter().for_each(|entry| put_load(&mut out, entry));
        debug_assert!(out.len() <= MAX_BODY, "{} bytes", out.len());
        out
    }

    /// Reads a body.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_BODY {
            return Err(Refusal::TooLong);
        }
        let mut r = Reader(bytes);
        let (code, flags) = (r.u8()?, r.u8()?);
        if flags & !(BUSY | HEAD | TO_GROUP) != 0 {
            return Err(Refusal::Value);
        }
        let history = Digest {
            epoch: r.u32()?,
            length: r.u32()?,
        };
        let roster = r.u32()?;
        let kind = r.kind(code)?;
        let rumors = r.list(MAX_RUMORS, Reader::rumor)?;
        let loads = r.list(MAX_LOADS, Reader::load)?;
        if !r.0.is_empty() {
            return Err(Refusal::Trailing);
        }
        Ok(Self {
            mode: if flags & BUSY != 0 {
                Mode::Busy
            } else {
                Mode::Quiet
            },
            role: if flags & HEAD != 0 { Role::Head } else { Role::Node },
            to_group: flags & TO_GROUP != 0,
            history,
            roster,
            kind,
            rumors,
            loads,
        })
    }
}

impl Kind {
    /// The byte on the wire, and the name in logs.
    pub fn code(&self) -> (u8, &'static str) {
        match self {
            Self::Hello { .. } => (1, "hello"),
            Self::Ping { .. } => (2, "ping"),
            Self::Ack { .. } => (3, "ack"),
            Self::Ask { .. } => (4, "ask"),
            Self::Answer { .. } => (5, "answer"),
            Self::Gossip => (6, "gossip"),
            Self::Compare(_) => (7, "compare"),
            Self::Roster => (8, "roster"),
            Self::Pull { .. } => (9, "pull"),
            Self::PullPart { .. } => (10, "pull-part"),
            Self::Tail { .. } => (11, "tail"),
            Self::Part { .. } => (12, "part"),
        }
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

fn count(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn put_boot(out: &mut Vec<u8>, boot: Boot) {
    put(out, &boot.id.0);
    put(out, &boot.incarnation.to_be_bytes());
}

fn put_address(out: &mut Vec<u8>, address: SocketAddrV4) {
    put(out, &address.ip().octets());
    put(out, &address.port().to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = super::clean(text);
    out.push(count(text.len()));
    put(out, text.as_bytes());
}

fn put_kind(out: &mut Vec<u8>, kind: &Kind) {
    match kind {
        Kind::Hello { address } => put_address(out, *address),
        Kind::Ping { probe } | Kind::Ack { probe } => put(out, &probe.to_be_bytes()),
        Kind::Ask {
            probe,
            target,
            address,
        } => {
            put(out, &probe.to_be_bytes());
            put_boot(out, *target);
            put_address(out, *address);
        }
        Kind::Answer { probe, reached } => {
            put(out, &probe.to_be_bytes());
            out.push(u8::from(*reached));
        }
        Kind::Gossip | Kind::Roster => {}
        Kind::Compare(hashes) => hashes.iter().for_each(|hash| put(out, &hash.to_be_bytes())),
        Kind::Pull { from } => put(out, &from.to_be_bytes()),
        Kind::PullPart { at, part } => {
            put(out, &at.to_be_bytes());
            put(out, &part.to_be_bytes());
        }
        Kind::Tail { first, changes } => {
            put(out, &first.to_be_bytes());
            put_changes(out, changes);
        }
        Kind::Part {
            at,
            chain,
            part,
            parts,
            changes,
        } => {
            put(out, &at.to_be_bytes());
            put(out, &chain.to_be_bytes());
            put(out, &part.to_be_bytes());
            put(out, &parts.to_be_bytes());
            put_changes(out, changes);
        }
    }
}

fn put_changes(out: &mut Vec<u8>, changes: &[Change]) {
    out.push(count(changes.len()));
    changes.iter().for_each(|change| put_change(out, change));
}

/// One change of the history, as it travels and as its chain hash covers it.
pub(crate) fn put_change(out: &mut Vec<u8>, change: &Change) {
    put_boot(out, change.boot);
    out.push(change.state as u8);
    put(out, &change.at_unix_ms.to_be_bytes());
    put_text(out, &change.name);
    put_text(out, &change.reason);
}

fn put_rumor(out: &mut Vec<u8>, rumor: &Rumor) {
    put_boot(out, rumor.boot);
    put(out, &rumor.refutation.to_be_bytes());
    let mut tag = rumor.liveness as u8;
    if rumor.role == Role::Head {
        tag |= RUMOR_HEAD;
    }
    if rumor.headless {
        tag |= RUMOR_HEADLESS;
    }
    out.push(tag);
    put_address(out, rumor.address);
    if rumor.liveness == Liveness::Suspect {
        put(out, &rumor.by.unwrap_or(rumor.boot.id).0);
    }
}

fn put_load(out: &mut Vec<u8>, entry: &LoadEntry) {
    put(out, &entry.short);
    put(out, &entry.age_tenths.to_be_bytes());
    let LoadVector {
        runnable_tenths,
        pressure_percent,
        memory_available_16mib,
        speed,
        link_log2_mbit,
    } = entry.vector;
    put(out, &runnable_tenths.to_be_bytes());
    out.push(pressure_percent);
    put(out, &memory_available_16mib.to_be_bytes());
    put(out, &speed.to_be_bytes());
    out.push(link_log2_mbit);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Refusal::TooShort)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.take().map(u64::from_be_bytes)
    }

    fn list<T>(
        &mut self,
        most: usize,
        mut one: impl FnMut(&mut Self) -> Result<T, Refusal>,
    ) -> Result<Vec<T>, Refusal> {
        let length = usize::from(self.u8()?);
        if length > most {
            return Err(Refusal::Count);
        }
        let mut list = Vec::with_capacity(length);
        for _ in 0..length {
            list.push(one(self)?);
        }
        Ok(list)
    }

    fn id(&mut self) -> Result<NodeId, Refusal> {
        let id = NodeId(self.take()?);
        if id.0 == [0; 16] {
            return Err(Refusal::Id);
        }
        Ok(id)
    }

    fn boot(&mut self) -> Result<Boot, Refusal> {
        Ok(Boot {
            id: self.id()?,
            incarnation: self.u64()?,
        })
    }

    fn address(&mut self) -> Result<SocketAddrV4, Refusal> {
        let ip = Ipv4Addr::from(self.take::<4>()?);
        let port = self.u16()?;
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback() || port == 0 {
            return Err(Refusal::Address);
        }
        Ok(SocketAddrV4::new(ip, port))
    }

    fn text(&mut self) -> Result<String, Refusal> {
        let length = usize::from(self.u8()?);
        if length > MAX_TEXT {
            return Err(Refusal::Text);
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(Refusal::TooShort)?;
        self.0 = rest;
        let text = core::str::from_utf8(text).map_err(|_| Refusal::Text)?;
        if text.chars().any(char::is_control) {
            return Err(Refusal::Text);
        }
        Ok(String::from(text))
    }

    fn kind(&mut self, code: u8) -> Result<Kind, Refusal> {
        Ok(match code {
            1 => Kind::Hello {
                address: self.address()?,
            },
            2 => Kind::Ping { probe: self.u32()? },
            3 => Kind::Ack { probe: self.u32()? },
            4 => Kind::Ask {
                probe: self.u32()?,
                target: self.boot()?,
                address: self.address()?,
            },
            5 => Kind::Answer {
                probe: self.u32()?,
                reached: match self.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(Refusal::Value),
                },
            },
            6 => Kind::Gossip,
            7 => {
                let mut hashes = [0; BUCKETS];
                for hash in &mut hashes {
                    *hash = self.u32()?;
                }
                Kind::Compare(hashes)
            }
            8 => Kind::Roster,
            9 => Kind::Pull { from: self.u32()? },
            10 => Kind::PullPart {
                at: self.u32()?,
                part: self.u16()?,
            },
            11 => Kind::Tail {
                first: self.u32()?,
                changes: self.list(usize::from(u8::MAX), Self::change)?,
            },
            12 => {
                let (at, chain, part, parts) = (self.u32()?, self.u64()?, self.u16()?, self.u16()?);
                if part >= parts {
                    return Err(Refusal::Value);
                }
                Kind::Part {
                    at,
                    chain,
                    part,
                    parts,
                    changes: self.list(usize::from(u8::MAX), Self::change)?,
                }
            }
            _ => return Err(Refusal::Kind),
        })
    }

    fn change(&mut self) -> Result<Change, Refusal> {
        Ok(Change {
            boot: self.boot()?,
            state: State::from_byte(self.u8()?).ok_or(Refusal::Value)?,
            at_unix_ms: self.u64()?,
            name: self.text()?,
            reason: self.text()?,
        })
    }

    fn rumor(&mut self) -> Result<Rumor, Refusal> {
        let boot = self.boot()?;
        let refutation = self.u16()?;
        let tag = self.u8()?;
        let liveness = match tag & 3 {
            0 => Liveness::Alive,
            1 => Liveness::Suspect,
            2 => Liveness::Dead,
            _ => Liveness::Left,
        };
        let headless = tag & RUMOR_HEADLESS != 0;
        if tag & !(3 | RUMOR_HEAD | RUMOR_HEADLESS) != 0 {
            return Err(Refusal::Value);
        }
        Ok(Rumor {
            boot,
            refutation,
            liveness,
            role: if tag & RUMOR_HEAD != 0 {
                Role::Head
            } else {
                Role::Node
            },
            headless,
            address: self.address()?,
            by: match liveness {
                Liveness::Suspect => Some(self.id()?),
                _ => None,
            },
        })
    }

    fn load(&mut self) -> Result<LoadEntry, Refusal> {
        Ok(LoadEntry {
            short: self.take()?,
            age_tenths: self.u16()?,
            vector: LoadVector {
                runnable_tenths: self.u16()?,
                pressure_percent: self.u8()?,
                memory_available_16mib: self.u16()?,
                speed: self.u16()?,
                link_log2_mbit: self.u8()?,
            },
        })
    }
}
