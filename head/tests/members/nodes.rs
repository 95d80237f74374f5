//! Nodes without an agent: a connection to the head for ticket and keys, a socket for the membership, and the state machine between
//! them, in the order that the contract gives. Must not know what the tests expect.

use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cid_discovery::history::State;
use cid_discovery::history::replica::Replica;
use cid_discovery::load::LoadVector;
use cid_discovery::member::{Config, Membership, Output, Records, To};
use cid_discovery::seal::{GroupKey, MAX_DATAGRAM, Opener, Sealer};
use cid_discovery::wire::Role;
use cid_discovery::{Boot, NodeId};
use cid_protocol::cmdline;
use cid_protocol::node::{self, Enroll, FromNode, Load, MemberTicket, NODE_PROTOCOL_VERSION, ToNode};
use cid_protocol::{BEACON_GROUP, NODE_PORT};
use cid_trust::{Expect, Identity, PrivateKey, client_config, server_name};
use cidhead::trust::Trust;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

const HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CAPACITY: usize = 100;

/// What a node says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) silent: bool,
    pub(crate) epoch: u32,
    pub(crate) length: u32,
    pub(crate) chain: u64,
    /// Machines that are up in its history.
    pub(crate) up: usize,
}

pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + number)
}

pub(crate) fn mac(number: u8) -> String {
    format!("52:54:00:00:01:{number:02x}")
}

/// Runs `count` nodes until standard input ends.
pub(crate) fn obey(count: u8, state_dir: &Path) {
    // The head's own authority, for the tokens that its boot scripts would carry.
    let trust = cidhead::trust::start(state_dir, Duration::from_secs(120)).expect("the head made it");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    (1..=count).for_each(|number| ask_for_an_address(number).expect("a broadcast"));
    let nodes: Vec<Arc<Node>> = (1..=count)
        .map(|number| {
            let node = Node::start(number);
            runtime.spawn(Arc::clone(&node).stay_connected(Arc::clone(&trust)));
            node
        })
        .collect();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let number: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
        match command {
            "silence" => nodes[number - 1].silent.store(true, Ordering::Relaxed),
            "speak" => nodes[number - 1].silent.store(false, Ordering::Relaxed),
            _ => {
                let reports: Vec<Report> = nodes.iter().map(|node| node.report()).collect();
                println!("report {}", serde_json::to_string(&reports).expect("JSON"));
            }
        }
    }
    std::process::exit(0);
}

/// What makes the head list a machine: a DHCPDISCOVER (RFC 2131) of nobody in particular.
fn ask_for_an_address(number: u8) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.bind_device(Some(b"pc0"))?;
    socket.set_broadcast(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into())?;
    let mut packet = vec![0; 300];
    // BOOTREQUEST over Ethernet; xid; broadcast flag; chaddr; magic cookie; option 53 = 1; end.
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4] = number;
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 1, number]);
    packet[236..244].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    socket.send_to(&packet, &SocketAddrV4::new(Ipv4Addr::BROADCAST, 67).into())?;
    Ok(())
}

struct Node {
    number: u8,
    started: Instant,
    silent: AtomicBool,
    member: Mutex<Option<Member>>,
}

struct Member {
    boot: Boot,
    membership: Membership,
    opener: Opener,
    sealer: Sealer,
}

fn parse_key(key: &node::GroupKey) -> GroupKey {
    let secret = cid_trust::decode(&key.secret).expect("base64");
    GroupKey {
        epoch: key.epoch,
        secret: secret.try_into().expect("32 bytes"),
    }
}

fn parse_id(text: &str) -> NodeId {
    NodeId(u128::from_str_radix(text, 16).expect("32 digits").to_be_bytes())
}

impl Node {
    fn start(number: u8) -> Arc<Self> {
        let node = Arc::new(Self {
            number,
            started: Instant::now(),
            silent: AtomicBool::new(false),
            member: Mutex::new(None),
        });
        let speaking = Arc::clone(&node);
        std::thread::spawn(move || speaking.speak());
        node
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn member(&self) -> MutexGuard<'_, Option<Member>> {
        self.member.lock().expect("nobody panics")
    }

    fn report(&self) -> Report {
        let silent = self.silent.load(Ordering::Relaxed);
        let member = self.member();
        let Some(Records::Node(replica)) = member.as_ref().map(|member| member.membership.records()) else {
            return Report {
                silent,
                epoch: 0,
                length: 0,
                chain: 0,
                up: 0,
            };
        };
        let up = replica
            .table()
            .values()
            .filter(|change| change.state == State::Up);
        Report {
            silent,
            epoch: replica.digest().epoch,
            length: replica.digest().length,
            chain: replica.chain(),
            up: up.count(),
        }
    }

    /// Dials again whenever the head is gone.
    async fn stay_connected(self: Arc<Self>, trust: Arc<Trust>) {
        let mut identity = None;
        loop {
            if let Err(error) = self.converse(&trust, &mut identity).await {
                eprintln!("node {}: {error}", self.number);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn dial(&self, trust: &Trust, identity: Option<&Identity>) -> std::io::Result<Stream> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(address(self.number), 0).into())?;
        let stream = socket.connect(SocketAddrV4::new(HEAD, NODE_PORT).into()).await?;
        let pin = trust
            .pin_word()
            .rsplit('=')
            .next()
            .and_then(|word| word.parse().ok());
        let config =
            client_config(pin.expect("a pin"), Expect::Head, identity).map_err(std::io::Error::other)?;
        TlsConnector::from(config).connect(server_name(), stream).await
    }

    /// The boot script's token for a certificate.
    async fn enrol(&self, trust: &Trust) -> std::io::Result<Identity> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let now = u64::try_from(now.as_millis()).expect("before the end of time");
        let words = trust.boot_words(now, mac(self.number).parse().expect("a MAC"), "");
        let token = cmdline::lookup(&words, cmdline::TOKEN).expect("a token");
        let key = PrivateKey::generate().map_err(std::io::Error::other)?;
        let mut stream = self.dial(trust, None).await?;
        let enroll = Enroll {
            version: NODE_PROTOCOL_VERSION,
            token: token.to_owned(),
            mac: mac(self.number),
            uuid: String::new(),
            boot_id: format!("boot-{}", self.number),
            public_key: cid_trust::encode(&key.public_key()),
        };
        write(&mut stream, &FromNode::Enroll(Box::new(enroll))).await?;
        match read(&mut stream).await? {
            ToNode::Certificate(given) => {
                Identity::from_message(key, &given.leaf, &given.authority).map_err(std::io::Error::other)
            }
            other => Err(std::io::Error::other(format!("{other:?}"))),
        }
    }

    async fn converse(&self, trust: &Trust, identity: &mut Option<Identity>) -> std::io::Result<()> {
        if identity.is_none() {
            *identity = Some(self.enrol(trust).await?);
        }
        let stream = self.dial(trust, identity.as_ref()).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let incarnation = self.member().as_ref().map(|member| member.boot.incarnation);
        let boot_id = format!("boot-{}", self.number);
        let hello = crate::room::hello(&mac(self.number), &boot_id, incarnation);
        write(&mut writer, &hello).await?;
        let pulses = async {
            loop {
                tokio::time::sleep(Duration::from_secs(node::PULSE_SECS)).await;
                write(&mut writer, &FromNode::Pulse(Load::default())).await?;
            }
        };
        let messages = async {
            loop {
                match read(&mut reader).await? {
                    ToNode::Welcome(welcome) => {
                        self.join(&welcome.member.expect("a ticket for who has a certificate"));
                    }
                    ToNode::Key(key) => {
                        let now = self.now();
                        if let Some(member) = &mut *self.member() {
                            member.opener.handle_key(now, parse_key(&key), key.revoked);
                            member.sealer.handle_key(&parse_key(&key));
                        }
                    }
                    ToNode::Refused { reason } => return Err(std::io::Error::other(reason)),
                    _ => {}
                }
            }
        };
        tokio::select! {
            ended = pulses => ended,
            ended = messages => ended,
        }
    }

    fn join(&self, ticket: &MemberTicket) {
        let boot = Boot {
            id: parse_id(&ticket.id),
            incarnation: ticket.incarnation,
        };
        let (now, key) = (self.now(), parse_key(&ticket.key));
        let mut place = self.member();
        if let Some(member) = place.as_mut().filter(|member| member.boot == boot) {
            member.opener.handle_key(now, key.clone(), false);
            return member.sealer.handle_key(&key);
        }
        let config = Config {
            me: boot,
            role: Role::Node,
            address: SocketAddrV4::new(address(self.number), NODE_PORT),
            head: Some((parse_id(&ticket.head_id), SocketAddrV4::new(HEAD, NODE_PORT))),
            seeds: Vec::new(),
            bail_out: Duration::from_secs(600),
            capacity: CAPACITY,
        };
        let mut membership = Membership::new(
            config,
            Records::Node(Replica::default()),
            u64::from(self.number),
            now,
        );
        let load = LoadVector {
            runnable_tenths: u16::from(self.number) * 10,
            ..LoadVector::default()
        };
        membership.handle_load(now, load);
        *place = Some(Member {
            boot,
            membership,
            opener: Opener::new(key.clone(), CAPACITY),
            sealer: Sealer::new(boot, &key),
        });
    }

    /// The loop of the contract: what waits, what is due, what is to be said.
    fn speak(&self) {
        let me = SocketAddrV4::new(address(self.number), NODE_PORT);
        let socket = UdpSocket::bind(me).expect("the port is free");
        let _ = socket2::SockRef::from(&socket).set_multicast_if_v4(me.ip());
        let mut buffer = [0; MAX_DATAGRAM + 1];
        loop {
            let deadline = self
                .member()
                .as_ref()
                .and_then(|member| member.membership.next_deadline(self.now()));
            let wait = deadline.map_or(Duration::from_millis(100), |at| at.saturating_sub(self.now()));
            let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(100));
            socket.set_read_timeout(Some(wait)).expect("a socket");
            let heard = socket.recv_from(&mut buffer).ok();
            let silent = self.silent.load(Ordering::Relaxed);
            let mut member = self.member();
            let Some(member) = &mut *member else { continue };
            let now = self.now();
            if let Some((length, SocketAddr::V4(source))) = heard.filter(|_| !silent)
                && let Ok((boot, body)) = member.opener.open(now, source, me, &buffer[..length])
            {
                let _ = member.membership.handle_datagram(now, boot, source, &body);
            }
            if member
                .membership
                .next_deadline(now)
                .is_some_and(|deadline| now >= deadline)
            {
                member.membership.handle_deadline(now);
            }
            while let Some(output) = member.membership.poll_output() {
                let Output::Transmit { to, body } = output else {
                    continue;
                };
                let (destination, target) = match to {
                    To::Member(address) => (Some(address), address),
                    To::Group => (None, SocketAddrV4::new(BEACON_GROUP, NODE_PORT)),
                };
                let datagram = member.sealer.seal(me, destination, &body).expect("it fits");
                if !silent {
                    let _ = socket.send_to(&datagram, target);
                }
            }
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &FromNode) -> std::io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).expect("short");
    let frame = [&length.to_be_bytes()[..], &body].concat();
    stream.write_all(&frame).await?;
    stream.flush().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<ToNode> {
    let mut body = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
