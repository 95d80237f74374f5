//! A hostile host on the rig's bridge: says in others' names what it heard, what it made of it, and what nobody ever said. It has a wire
//! and a processor, no key. Must stay on the bridge.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::cmdline;
use cid_protocol::node::{Enroll, FromNode, NODE_PROTOCOL_VERSION};
use cid_protocol::{BEACON_GROUP, NODE_PORT};
use cid_trust::rustls::{ClientConnection, StreamOwned};
use cid_trust::{Expect, PrivateKey};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use super::Rig;
use crate::room::Host;

/// Its own address; none that the head gives out.
const ADDRESS: &str = "10.77.0.9";
/// Datagrams of one system call.
pub const VOLLEY: usize = 32;
/// Threads that make noise.
const HANDS: u64 = 4;
/// Longest datagram that members send.
const LONGEST: usize = 1400;
/// Headers before a datagram: Ethernet, IPv4 without options, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// A datagram that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who said it.
    pub from: SocketAddrV4,
    /// To whom.
    pub to: SocketAddrV4,
    /// What.
    pub bytes: Vec<u8>,
}

/// The host.
#[derive(Debug)]
pub struct Hostile {
    host: Host,
    space: fs::File,
    random: u64,
}

impl Hostile {
    /// Plugs it in. `seed` decides what its noise is.
    ///
    /// # Errors
    /// When the room refuses.
    pub fn plug_in(rig: &Rig, seed: u64) -> Result<Self> {
        let host = rig.room().host(Some(&format!("{ADDRESS}/{}", super::PREFIX)))?;
        let space = fs::File::open(format!("/proc/{}/ns/net", host.target()))?;
        Ok(Self {
            host,
            space,
            random: seed | 1,
        })
    }

    /// The host, to run programs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Every datagram to the nodes' port in this time, as a promiscuous port of the bridge hears it.
    ///
    /// # Errors
    /// When tcpdump does not run.
    pub fn listen(&self, rig: &Rig, time: Duration) -> Result<Vec<Heard>> {
        let file = rig.room().dir().join("heard.pcap");
        let mut command = rig.room().command("timeout");
        command.args(["--preserve-status", &time.as_secs_f64().to_string()]);
        command
            .args(["tcpdump", "-i", "br0", "-n", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(&file);
        command.arg(format!("udp dst port {NODE_PORT}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = command.status().context("starting tcpdump")?;
        ensure!(status.success(), "tcpdump: {status}");
        datagrams(&fs::read(&file)?)
    }

    /// Says a datagram again, in the name of whom it was heard from.
    ///
    /// # Errors
    /// When the room's network cannot be entered.
    pub fn say(&self, datagrams: &[Heard]) -> Result<usize> {
        self.on_the_wire(|| {
            let mut said = 0;
            for datagram in datagrams {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
                // An address that is not ours.
                socket.set_freebind_v4(true)?;
                socket.set_reuse_address(true)?;
                socket.bind(&datagram.from.into())?;
                let own: Ipv4Addr = ADDRESS.parse()?;
                socket.set_multicast_if_v4(&own)?;
                said += usize::from(
                    UdpSocket::from(socket)
                        .send_to(&datagram.bytes, datagram.to)
                        .is_ok(),
                );
            }
            Ok(said)
        })
    }

    /// The same datagrams with one to eight bits turned over in each.
    pub fn flipped(&mut self, datagrams: &[Heard]) -> Vec<Heard> {
        let mut flipped = datagrams.to_vec();
        for datagram in &mut flipped {
            for _ in 0..=self.below(8) {
                let place = self.below(datagram.bytes.len().max(1));
                let bit = self.below(8);
                if let Some(byte) = datagram.bytes.get_mut(place) {
                    *byte ^= 1 << bit;
                }
            }
        }
        flipped
    }

    /// The same datagrams in its own name.
    #[must_use]
    pub fn as_its_own(datagrams: &[Heard]) -> Vec<Heard> {
        let own = ADDRESS.parse().unwrap_or(Ipv4Addr::LOCALHOST);
        let mut own_words = datagrams.to_vec();
        for datagram in &mut own_words {
            datagram.from.set_ip(own);
        }
        own_words
    }

    /// Noise to these in turn, and a hundredth to the group: random bytes, half of it behind the first bytes of something that was heard.
    ///
    /// # Errors
    /// When the room's network cannot be entered.
    pub fn noise(
        &mut self,
        targets: &[Ipv4Addr],
        heard: &[Heard],
        per_second: u64,
        time: Duration,
    ) -> Result<Noise> {
        ensure!(!targets.is_empty(), "noise to nobody");
        let volleys: Vec<Volley> = (0..256).map(|number| self.volley(heard, number)).collect();
        let hands = per_second / HANDS;
        let said: Result<Vec<Noise>> = self.on_the_wire(|| {
            std::thread::scope(|scope| {
                // A thread stands in the network of the one that started it.
                let work = || make_noise(targets, &volleys, hands, time);
                let hands: Vec<_> = (0..HANDS).map(|_| scope.spawn(work)).collect();
                let said = hands.into_iter().map(|hand| match hand.join() {
                    Ok(said) => said,
                    Err(_) => bail!("a hand of the hostile host panicked"),
                });
                said.collect()
            })
        });
        let mut all = Noise {
            each: vec![0; targets.len()],
            ..Noise::default()
        };
        for said in said? {
            all.group += said.group;
            all.time = all.time.max(said.time);
            for (sum, more) in all.each.iter_mut().zip(said.each) {
                *sum += more;
            }
        }
        Ok(all)
    }

    /// Redeems a token that was read off the wire, with a key of its own, and returns the head's answer in its own words.
    ///
    /// # Errors
    /// When the head does not answer as a head does.
    pub fn redeem(&self, command_line: &str, mac: &str, uuid: &str) -> Result<String> {
        let word = |key| cmdline::lookup(command_line, key).context("the boot script has no token");
        let pin = word(cmdline::AUTHORITY)?.parse()?;
        let enroll = Enroll {
            version: NODE_PROTOCOL_VERSION,
            token: word(cmdline::TOKEN)?.to_owned(),
            mac: mac.to_owned(),
            uuid: uuid.to_owned(),
            boot_id: "thief".to_owned(),
            public_key: cid_trust::encode(&PrivateKey::generate()?.public_key()),
        };
        let body = serde_json::to_vec(&FromNode::Enroll(Box::new(enroll)))?;
        self.on_the_wire(|| {
            let socket = TcpStream::connect((crate::room::HEAD_ADDRESS, NODE_PORT))?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            let config = cid_trust::client_config(pin, Expect::Head, None)?;
            let session = ClientConnection::new(config, cid_trust::server_name())?;
            let mut stream = StreamOwned::new(session, socket);
            stream.write_all(&u32::try_from(body.len())?.to_be_bytes())?;
            stream.write_all(&body)?;
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = usize::try_from(u32::from_be_bytes(length))?;
            ensure!(length < 1 << 16, "an answer of {length} bytes");
            let mut answer = vec![0; length];
            stream.read_exact(&mut answer)?;
            Ok(String::from_utf8(answer)?)
        })
    }

    /// Calls TCP's node port of each target with garbage, many times; keeps every second connection open to the end. Returns how many each took.
    ///
    /// # Errors
    /// When the room's network cannot be entered.
    pub fn garbage(&mut self, targets: &[Ipv4Addr], each: usize) -> Result<Vec<u64>> {
        let words: Vec<Vec<u8>> = (0..each).map(|number| self.word(&[], number)).collect();
        self.on_the_wire(|| {
            let mut open = Vec::new();
            let mut taken = vec![0; targets.len()];
            for word in &words {
                for (target, taken) in targets.iter().zip(&mut taken) {
                    let to = SocketAddr::from((*target, NODE_PORT));
                    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(500)) else {
                        continue;
                    };
                    *taken += 1;
                    // A TLS record that promises a handshake, and what follows.
                    let _ = stream
                        .write_all(&[22, 3, 1, 4, 0])
                        .and_then(|()| stream.write_all(word));
                    if *taken % 2 == 0 {
                        open.push(stream);
                    }
                }
            }
            Ok(taken)
        })
    }

    fn word(&mut self, heard: &[Heard], number: usize) -> Vec<u8> {
        let length = self.below(LONGEST) + 1;
        let mut word: Vec<u8> = (0..length)
            .map(|_| u8::try_from(self.below(256)).unwrap_or(0))
            .collect();
        if number.is_multiple_of(2)
            && let Some(model) = heard.get(number % heard.len().max(1))
        {
            let start = model.bytes.len().min(word.len()).min(24);
            word[..start].copy_from_slice(&model.bytes[..start]);
        }
        word
    }

    /// Datagrams of one length for one system call.
    fn volley(&mut self, heard: &[Heard], number: usize) -> Volley {
        let first = self.word(heard, number);
        let length = first.len();
        let mut bytes = first;
        for more in 1..VOLLEY {
            let mut word = self.word(heard, number + 2 * more);
            word.resize(length, 0xa5);
            bytes.extend(word);
        }
        Volley {
            length: u16::try_from(length).unwrap_or(1),
            bytes,
        }
    }

    /// xorshift64: noise, not secrets.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 16).unwrap_or(0) % bound.max(1)
    }

    /// Does `work` on a thread that stands in this host's network.
    fn on_the_wire<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let hand = scope.spawn(|| {
                setns(&self.space, CloneFlags::CLONE_NEWNET)
                    .context("entering the hostile host's network")?;
                work()
            });
            match hand.join() {
                Ok(done) => done,
                Err(_) => bail!("the hostile host panicked"),
            }
        })
    }
}

/// What left the hostile host as noise.
#[derive(Debug, Clone, Default)]
pub struct Noise {
    /// Datagrams to each target.
    pub each: Vec<u64>,
    /// Datagrams to the group, which everybody hears.
    pub group: u64,
    /// How long it took.
    pub time: Duration,
}

impl Noise {
    /// All of them.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.group + self.each.iter().sum::<u64>()
    }
}

/// [`VOLLEY`] datagrams of one length, one behind the other.
struct Volley {
    length: u16,
    bytes: Vec<u8>,
}

/// One thread's noise, in volleys that the kernel takes apart (UDP_SEGMENT): one system call each.
fn make_noise(targets: &[Ipv4Addr], volleys: &[Volley], per_second: u64, time: Duration) -> Result<Noise> {
    let socket = UdpSocket::bind((ADDRESS, 0))?;
    socket2::SockRef::from(&socket).set_multicast_if_v4(&ADDRESS.parse()?)?;
    let mut noise = Noise {
        each: vec![0; targets.len()],
        ..Noise::default()
    };
    let (started, mut sent) = (Instant::now(), 0_u64);
    for number in 0.. {
        let elapsed = started.elapsed();
        if elapsed >= time {
            break;
        }
        if sent > per_second.saturating_mul(u64::try_from(elapsed.as_micros())?) / 1_000_000 {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let volley = &volleys[number % volleys.len()];
        let (to, counter) = match number % 100 {
            0 => (BEACON_GROUP, &mut noise.group),
            _ => (
                targets[number % targets.len()],
                &mut noise.each[number % targets.len()],
            ),
        };
        let to = SockaddrIn::from(SocketAddrV4::new(to, NODE_PORT));
        let parts = [ControlMessage::UdpGsoSegments(&volley.length)];
        let words = [IoSlice::new(&volley.bytes)];
        // A full queue takes the whole volley.
        if sendmsg(socket.as_raw_fd(), &words, &parts, MsgFlags::empty(), Some(&to)).is_ok() {
            *counter += VOLLEY as u64;
        }
        sent += VOLLEY as u64;
    }
    noise.time = started.elapsed();
    Ok(noise)
}

/// UDP datagrams of a capture of Ethernet frames (classic pcap, little-endian); others are passed over.
fn datagrams(capture: &[u8]) -> Result<Vec<Heard>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = capture.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    ensure!(number(0) == Some(0xa1b2_c3d4), "no capture of tcpdump's");
    let mut found = Vec::new();
    let mut at = 24;
    while let Some(length) = number(at + 8) {
        let frame = capture
            .get(at + 16..at + 16 + length)
            .context("a capture that ends early")?;
        at += 16 + length;
        if frame.len() >= HEADERS && frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 17 {
            let place = |address: usize, port: usize| {
                let ip = Ipv4Addr::new(
                    frame[address],
                    frame[address + 1],
                    frame[address + 2],
                    frame[address + 3],
                );
                SocketAddrV4::new(ip, u16::from_be_bytes([frame[port], frame[port + 1]]))
            };
            // Short frames are padded.
            let end = 34 + usize::from(u16::from_be_bytes([frame[38], frame[39]]));
            found.push(Heard {
                from: place(26, 34),
                to: place(30, 36),
                bytes: frame.get(HEADERS..end).unwrap_or_default().to_vec(),
            });
        }
    }
    Ok(found)
}
