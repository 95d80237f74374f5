//! Node connections on TCP 3101: TLS 1.3, inside it frames of a length and a JSON message. Bounds what a stranger can hold: frame size,
//! time to the first message, silence, connections in all and per address. Must not decide who is accepted.
//!
//! Who has no certificate may send one message, its enrolment. Who has one is that machine, whatever it says of itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD as BASE64, Engine as _};
use cid_protocol::node::{Enroll, FromNode, MAX_FRAME, TimeQuestion, ToNode};
use cid_protocol::work::WORK_VERSION;
use cid_streams::{BadFrame, Frame, Overrun};
use cid_trust::{Fingerprint, Peer, TokenError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::core::{Core, Outgoing};
use crate::measuring::{self, Transport};
use crate::registry::{ConnectionId, Enrolment, Registry};
use crate::time::{self, Observer};
use crate::trust::{BadEnrolment, Trust};

/// Connections in all.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Connections from one address: one, and one that is not known to be dead yet, and room for a second program.
pub const MAX_PER_ADDRESS: usize = 4;
/// From the connection to the first whole message.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may wait in the kernel before they are under way.
const UNSENT: u32 = 128 * 1024;
/// Five pulses.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(cid_protocol::node::MEMBER_PULSE_SECS * 5 / 2);
/// For what a node said before it was gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For one frame to leave.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection was ended by the head. Each is counted by its word.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// More than [`MAX_FRAME`] announced.
    #[error("a frame of {0} bytes")]
    FrameTooLong(u32),
    /// Not a message of this version.
    #[error("no message: {0}")]
    NotAMessage(serde_json::Error),
    /// No TLS, or the other side's certificate is not believed; the word says which.
    #[error("TLS: {1}")]
    Handshake(&'static str, String),
    /// The other side hung up before TLS was there: a scanner of ports, or garbage shorter than it said.
    #[error("it hung up before TLS began")]
    CutShort,
    /// TLS was not there in time.
    #[error("no TLS in time")]
    NoTls,
    /// A certificate of this cluster that is not in force (any more).
    #[error("its certificate is revoked, or of a boot that is over")]
    NotListed,
    /// A certificate of somebody who has no business at this door.
    #[error("{0} has no business here")]
    NotANode(Peer),
    /// Something else than `enroll` came from somebody without a certificate.
    #[error("no certificate, and no enrolment")]
    NotEnrolled,
    /// Something else came before `hello`.
    #[error("a message before hello")]
    NoHello,
    /// A second `hello`.
    #[error("hello twice")]
    HelloTwice,
    /// A measurement beyond its bounds, or behind the hello.
    #[error("it measures too much")]
    MeasuresTooMuch,
    /// No frame of a job.
    #[error("{0}")]
    BadWork(#[from] BadFrame),
    /// More of a job's streams than it may send.
    #[error("{0}")]
    Overrun(#[from] Overrun),
    /// Silence.
    #[error("nothing came in time")]
    Silent,
    /// The peer closed it.
    #[error("closed by the node")]
    Closed,
    /// The registry wants it closed.
    #[error("closed by the head")]
    ClosedByHead,
    /// The transport failed.
    #[error("transport: {0}")]
    Transport(#[from] std::io::Error),
}

impl Ended {
    /// The word it is counted by; `None` for the two ordinary ends, which only TLS that was there can come to.
    pub fn drop_reason(&self) -> Option<&'static str> {
        match self {
            Self::FrameTooLong(_) => Some("node-frame-too-long"),
            Self::NotAMessage(_) => Some("node-not-a-message"),
            Self::Handshake(word, _) => Some(word),
            Self::CutShort => Some("tls-cut-short"),
            Self::NoTls => Some("tls-late"),
            Self::NotListed => Some("node-not-listed"),
            Self::NotANode(_) => Some("node-not-a-node"),
            Self::NotEnrolled => Some("node-not-enrolled"),
            Self::NoHello => Some("node-no-hello"),
            Self::HelloTwice => Some("node-hello-twice"),
            Self::MeasuresTooMuch => Some("node-measures-too-much"),
            Self::BadWork(_) => Some("node-bad-work"),
            Self::Overrun(_) => Some("node-work-overrun"),
            Self::Silent => Some("node-silent"),
            Self::Transport(_) => Some("node-transport"),
            Self::Closed | Self::ClosedByHead => None,
        }
    }
}

/// Accepts connections for ever.
pub async fn serve(core: Arc<Core>, trust: Arc<Trust>, listener: TcpListener) {
    let counts = Arc::new(PerAddress::default());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting lets others close.
                tracing::warn!(%error, "no node connection can be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        core.drops.count_connection();
        let IpAddr::V4(address) = peer.ip() else {
            core.drops.count("node-not-ipv4");
            continue;
        };
        let Some(place) = PerAddress::take(&counts, address) else {
            core.drops.count("node-too-many-connections");
            continue;
        };
        let _ = stream.set_nodelay(true);
        // What goes to programs must not wait in the kernel in front of a message.
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        let (core, trust) = (Arc::clone(&core), Arc::clone(&trust));
        tokio::spawn(async move {
            let ended = greet(&core, &trust, stream, address).await;
            if let Some(reason) = ended.drop_reason() {
                core.drops.count(reason);
                tracing::debug!(%address, %ended, "node connection ended");
            }
            drop(place);
        });
    }
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Nobody yet: may enrol, and nothing else.
    New,
    /// Whoever has this certificate of our authority; whether it is in force is the registry's to say.
    Certified(Fingerprint),
}

/// Speaks TLS with whoever called until the end of the connection, and says how it ended.
pub async fn greet<S: Transport>(core: &Arc<Core>, trust: &Trust, stream: S, address: Ipv4Addr) -> Ended {
    let stream = match timeout(HELLO_TIMEOUT, trust.acceptor().accept(stream)).await {
        Err(_) => return Ended::NoTls,
        Ok(Err(error)) => return refused_handshake(error),
        Ok(Ok(stream)) => stream,
    };
    let connection = stream.get_ref().1;
    let caller = match cid_trust::peer_of(connection) {
        Err(distrust) => return Ended::Handshake("tls-other-protocol", distrust.to_string()),
        Ok(None) => Caller::New,
        Ok(Some(Peer::Node(_))) => {
            let leaf = connection.peer_certificates().and_then(<[_]>::first);
            Caller::Certified(Fingerprint::of(leaf.map_or(&[], |leaf| leaf)))
        }
        Ok(Some(other)) => return Ended::NotANode(other),
    };
    converse(core, trust, stream, address, caller).await
}

/// A handshake that failed: by the word of what went wrong, where TLS got as far as that.
fn refused_handshake(error: std::io::Error) -> Ended {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    match tls.map(cid_trust::word) {
        Some(word) => Ended::Handshake(word, error.to_string()),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => Ended::CutShort,
        None => Ended::Handshake("tls-transport", error.to_string()),
    }
}

/// Speaks with one node until the end of the connection, and says how it ended.
async fn converse<S: Transport>(
    core: &Arc<Core>,
    trust: &Trust,
    mut stream: S,
    address: Ipv4Addr,
    caller: Caller,
) -> Ended {
    let (id, outgoing) = core.connect();
    if let Caller::Certified(fingerprint) = caller {
        let (listed, pending) = core.act(|registry, _| registry.handle_certified(id, fingerprint));
        pending.unacknowledged();
        if !listed {
            core.disconnect(id);
            return tell_revoked(stream).await;
        }
    }
    let first = match caller {
        Caller::New => None,
        Caller::Certified(_) => match first_message(core, &mut stream).await {
            Ok(first) => Some(first),
            Err(ended) => {
                core.disconnect(id);
                return ended;
            }
        },
    };
    let (mut reader, writer) = tokio::io::split(stream);
    let wake = core.work.relay().connect(id);
    let sender = tokio::spawn(send_loop(writer, outgoing, Arc::clone(core), id, wake));
    let mut writer_gone = sender;
    let received = async {
        match first {
            None => enroll(core, trust, &mut reader, id).await,
            Some(first) => receive_loop(core, first, &mut reader, id, address).await,
        }
    };
    tokio::pin!(received);
    let ended = tokio::select! {
        // What was said comes before what cannot be said any more.
        biased;
        ended = &mut received => ended,
        // A node that goes home says why and is gone: our next word to it fails while its own waits to be read.
        _ = &mut writer_gone => timeout(LAST_WORDS, received).await.unwrap_or(Ended::ClosedByHead),
    };
    core.disconnect(id);
    // Its queue is closed now; what was sent before (a refusal) still leaves, within the write's bound.
    if !writer_gone.is_finished() {
        let _ = timeout(WRITE_TIMEOUT, writer_gone).await;
    }
    ended
}

/// The message behind the node's measurements, most likely its hello, with what the head's own kernel counted.
async fn first_message<S: Transport>(core: &Arc<Core>, stream: &mut S) -> Result<FromNode, Ended> {
    let mut first = measuring::answer(stream, &core.turns, || core.read(Registry::addresses_up)).await?;
    if let FromNode::Hello(hello) = &mut first
        && let Some(measured) = &mut hello.hardware.measured
    {
        measured.head.received = stream.segments();
    }
    Ok(first)
}

/// The node learns why, so that the person before it does.
async fn tell_revoked<W: AsyncWrite + Unpin>(mut writer: W) -> Ended {
    let ended = Ended::NotListed;
    let message = ToNode::Refused {
        reason: format!("{ended}; restart the PC"),
    };
    if let Some(frame) = frame(&message) {
        let _ = timeout(WRITE_TIMEOUT, writer.write_all(&frame)).await;
    }
    let _ = timeout(WRITE_TIMEOUT, writer.shutdown()).await;
    ended
}

/// The one message of somebody without a certificate, and its answer.
async fn enroll<R: AsyncRead + Unpin>(
    core: &Arc<Core>,
    trust: &Trust,
    reader: &mut R,
    id: ConnectionId,
) -> Ended {
    let message = match timeout(HELLO_TIMEOUT, read_message(reader)).await {
        Err(_) => return Ended::Silent,
        Ok(Err(ended)) => return ended,
        Ok(Ok(message)) => message,
    };
    let FromNode::Enroll(asked) = message else {
        return Ended::NotEnrolled;
    };
    let pending = match judge(core, trust, &asked) {
        Ok(enrolment) => {
            let (enrolled, pending) = core.act(|registry, now| registry.handle_enroll(now, id, enrolment));
            if let Some(word) = enrolled.drop_reason() {
                core.drops.count(word);
            }
            pending
        }
        Err(bad) => {
            core.drops.count(bad.drop_reason());
            let reason = bad.to_string();
            tracing::debug!(mac = ?asked.mac, %reason, "enrolment refused");
            // Only who holds a token of ours for this machine may say anything of it.
            let of_ours = matches!(bad, BadEnrolment::Token(TokenError::Expired | TokenError::Future));
            let refused = |registry: &mut Registry, now| {
                if let (true, Ok(mac)) = (of_ours, asked.mac.parse()) {
                    registry.handle_token_refused(now, mac, &reason);
                }
                registry.refuse(id, reason.clone());
            };
            core.act(refused).1
        }
    };
    if let Err(error) = pending.done().await {
        tracing::warn!(%error, "an enrolment is not on disk");
    }
    Ended::ClosedByHead
}

fn judge(core: &Core, trust: &Trust, asked: &Enroll) -> Result<Enrolment, BadEnrolment> {
    let honest = trust.check(core.now().unix_ms, asked)?;
    let node = core.read(|registry| registry.id_for(honest.mac, &honest.uuid));
    let leaf = trust.sign(node, &honest.public_key)?;
    Ok(Enrolment {
        mac: honest.mac,
        token: honest.token,
        key: honest.key,
        node,
        leaf,
        authority: trust.certificate().to_vec(),
    })
}

async fn receive_loop<R>(
    core: &Arc<Core>,
    first: FromNode,
    reader: &mut R,
    id: ConnectionId,
    address: Ipv4Addr,
) -> Ended
where
    R: AsyncRead + Unpin,
{
    let mut joined = false;
    let mut clock = Observer::default();
    let mut first = Some(first);
    loop {
        let message = match first.take() {
            Some(first) => first,
            None => match timeout(IDLE_TIMEOUT, read_frame(reader)).await {
                Err(_) => return Ended::Silent,
                Ok(Err(ended)) => return ended,
                Ok(Ok(frame)) if Frame::is_one(&frame) => {
                    if let Err(ended) = relay(core, id, &frame) {
                        return ended;
                    }
                    continue;
                }
                Ok(Ok(frame)) => match serde_json::from_slice(&frame) {
                    Ok(message) => message,
                    Err(error) => return Ended::NotAMessage(error),
                },
            },
        };
        let received = crate::wall::unix_now();
        let pending = match (message, joined) {
            (FromNode::Time(question), true) => {
                tell_time(core, id, &mut clock, &question, received);
                continue;
            }
            (FromNode::Hello(_), true) => return Ended::HelloTwice,
            (FromNode::Measure(_), true) => return Ended::MeasuresTooMuch,
            (FromNode::Root(report), true) => {
                core.tell(|registry, now| registry.handle_root_report(now, id, &report));
                crate::content::handle_report(core, id, address, &report).await;
                continue;
            }
            (FromNode::Hello(hello), false) => {
                joined = true;
                if hello.work == WORK_VERSION {
                    core.work.relay().enable(id);
                }
                core.act(|registry, now| registry.handle_hello(now, id, address, *hello))
                    .1
            }
            (_, false) | (FromNode::Enroll(_), true) => return Ended::NoHello,
            (FromNode::Pulse(load), true) => core.act(|registry, now| registry.handle_pulse(now, id, load)).1,
            (
                FromNode::GoingHome {
                    reason,
                    leaving,
                    steps,
                },
                true,
            ) => {
                core.act(|registry, now| registry.handle_going_home(now, id, &reason, leaving, &steps))
                    .1
            }
        };
        // The next message of this node waits for this one's commit: a node cannot run ahead of the disk.
        if let Err(error) = pending.done().await {
            tracing::warn!(%address, %error, "a node's message is not on disk");
            return Ended::ClosedByHead;
        }
    }
}

/// Answers at once: what waits here is measured as the network's.
fn tell_time(core: &Core, id: ConnectionId, clock: &mut Observer, asked: &TimeQuestion, received: Duration) {
    let packet = BASE64.decode(&asked.packet).ok();
    let packet: Option<[u8; time::PACKET]> = packet.and_then(|packet| packet.try_into().ok());
    let Some(packet) = packet else {
        return core.drops.count("node-bad-time-question");
    };
    let measured = clock.handle_question(&packet, asked.heard_unix_us, received);
    let sent = crate::wall::unix_now();
    let Some(answer) = time::answer(&packet, received, sent) else {
        return core.drops.count("node-bad-time-question");
    };
    let packet = BASE64.encode(answer);
    core.send_now(id, ToNode::Time { packet });
    clock.handle_sent(sent);
    if let Some(measured) = measured {
        core.tell(|registry, _| registry.handle_clock(id, measured));
    }
}

/// Reads one frame.
///
/// # Errors
/// See [`Ended`]; never reads more than a frame's announced length.
pub async fn read_message<R: AsyncRead + Unpin>(reader: &mut R) -> Result<FromNode, Ended> {
    let frame = read_frame(reader).await?;
    serde_json::from_slice(&frame).map_err(Ended::NotAMessage)
}

/// A frame of a job's.
fn relay(core: &Core, id: ConnectionId, frame: &[u8]) -> Result<(), Ended> {
    let frame = Frame::decode(frame)?;
    core.work.relay().handle_node(id, frame)?;
    Ok(())
}

async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Vec<u8>, Ended> {
    let length = match reader.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Ended::Closed),
        Err(error) => return Err(error.into()),
    };
    if length as usize > MAX_FRAME {
        return Err(Ended::FrameTooLong(length));
    }
    let mut frame = vec![0; length as usize];
    reader.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send_loop<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut outgoing: mpsc::Receiver<Outgoing>,
    core: Arc<Core>,
    id: ConnectionId,
    wake: Arc<Notify>,
) {
    loop {
        // Messages go first: what jobs say waits for them, and they for one frame at the most.
        let message = match outgoing.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => None,
        };
        let bytes = match message {
            Some(Outgoing::Message(message)) => frame(&message),
            Some(Outgoing::Close) => break,
            None => core.work.relay().poll_node(id).map(|frame| frame.encode()),
        };
        let bytes = match bytes {
            Some(bytes) => Some(bytes),
            None => tokio::select! {
                message = outgoing.recv() => match message {
                    Some(Outgoing::Message(message)) => frame(&message),
                    Some(Outgoing::Close) | None => break,
                },
                () = wake.notified() => continue,
            },
        };
        let Some(bytes) = bytes else { break };
        match timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    let _ = timeout(WRITE_TIMEOUT, writer.shutdown()).await;
}

/// Length and JSON; `None` for what would not fit (no message of ours comes near).
pub fn frame(message: &ToNode) -> Option<Vec<u8>> {
    let body = serde_json::to_vec(message)
        .ok()
        .filter(|body| body.len() <= MAX_FRAME)?;
    let mut frame = u32::try_from(body.len()).ok()?.to_be_bytes().to_vec();
    frame.extend(body);
    Some(frame)
}

#[derive(Default)]
struct PerAddress(Mutex<BTreeMap<Ipv4Addr, usize>>);

struct Place {
    counts: Arc<PerAddress>,
    address: Ipv4Addr,
}

impl PerAddress {
    fn take(counts: &Arc<Self>, address: Ipv4Addr) -> Option<Place> {
        let mut map = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = map.values().sum();
        let held = map.get(&address).copied().unwrap_or(0);
        if total >= MAX_CONNECTIONS || held >= MAX_PER_ADDRESS {
            return None;
        }
        map.insert(address, held + 1);
        Some(Place {
            counts: Arc::clone(counts),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut map = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = map.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                map.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
