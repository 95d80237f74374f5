//! The node as a member: sockets and clock around discovery's membership, in a task of its own, so that a head that takes no data
//! does not make this node look dead to its peers. Must never act for the cluster, nor send this node home: it tells the core what
//! it hears, and the core decides.

pub(crate) mod keep;
mod prefix;
#[cfg(test)]
mod tests;
mod view;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cid_discovery::load::LoadVector;
use cid_discovery::member::{Config, Event, Membership, Output, Records, To};
use cid_discovery::seal::{GroupKey, MAX_DATAGRAM, Opener, Sealer};
use cid_discovery::wire::{Mode, Role};
use cid_discovery::{Boot, NodeId};
use cid_protocol::peer::{PeerRow, Teller};
use cid_protocol::{BEACON_GROUP, NODE_PORT, node};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::sockets::udp_socket;
use keep::{Keep, MAX_PEERS, Seat};

/// Most members and machines that are told apart.
const CAPACITY: usize = 4_096;
/// Datagrams read from each socket before deadlines are looked at again.
const BATCH: usize = 256;
/// Where the others are is kept this often, when it changed.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The history is kept when it changed, but not again within so long, times the machines in it: a room that starts does not write it
/// all the time.
const KEEP_HISTORY: Duration = Duration::from_millis(5);
/// The same of one among a thousand on one machine, which would write, all of them together, a gigabyte a minute while the room starts.
const KEEP_HISTORY_SHARED: Duration = Duration::from_secs(60);
/// The core hears of the head's datagrams this often.
const HEAD_NEWS: Duration = Duration::from_secs(1);
/// A member that leaves says so once more after this long.
const LAST_WORDS: Duration = Duration::from_millis(60);

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// The load, every second.
    Load(LoadVector),
    /// How closely this node is to be watched.
    Mode(Mode),
    /// The group's key was rotated.
    Key(node::GroupKey),
    /// We go; answered when it was said.
    Leave(oneshot::Sender<()>),
    /// Who is there?
    List(oneshot::Sender<(Teller, Vec<PeerRow>)>),
}

/// What the loop tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The head was last heard then, by a datagram.
    HeadHeard(Duration),
    /// A later boot of this machine is a member.
    Superseded,
}

/// Where a member sits: the link in use, its address there, its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Interface name.
    pub(crate) link: String,
    /// This node's address on it.
    pub(crate) address: Ipv4Addr,
    /// The head's datagrams go there.
    pub(crate) head: SocketAddrV4,
    /// Other members of this kernel use the link, too, and hear the group there.
    pub(crate) shared: bool,
}

/// A running member; dropping it ends it without a word.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Its place.
    pub(crate) place: Place,
    /// The boot it is.
    pub(crate) incarnation: u64,
    /// Its head's id, as in the ticket.
    pub(crate) head_id: String,
    commands: mpsc::Sender<Command>,
    task: tokio::task::AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handle {
    /// Starts a member with `seat`'s incarnation, which was kept before and must never have been used. `news` gets the incarnation
    /// beside each piece, and why it ended.
    pub(crate) fn start(
        place: Place,
        seat: Seat,
        keep: Keep,
        started: Instant,
        seed: u64,
        news: impl Fn(Result<News, String>) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let (commands, inbox) = mpsc::channel(32);
        let (incarnation, head_id) = (seat.incarnation, seat.ticket.head_id.clone());
        let mut member = Member::new(place.clone(), seat, keep, started, seed)?;
        let task = tokio::spawn(async move {
            let error = member.forever(inbox, &news).await;
            news(Err(format!("{error:#}")));
        });
        Ok(Self {
            place,
            incarnation,
            head_id,
            commands,
            task: task.abort_handle(),
        })
    }

    /// Whether its task has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// A full queue drops it: the next load is a second away.
    pub(crate) fn load(&self, load: LoadVector) {
        let _ = self.commands.try_send(Command::Load(load));
    }

    /// A full queue drops it: whoever wants it says so again.
    pub(crate) fn mode(&self, mode: Mode) {
        let _ = self.commands.try_send(Command::Mode(mode));
    }

    /// The key that seals from now on.
    pub(crate) async fn key(&self, key: node::GroupKey) {
        let _ = self.commands.send(Command::Key(key)).await;
    }

    /// Says that this node goes.
    pub(crate) async fn leave(&self) {
        let (done, said) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = said.await;
        }
    }

    /// For whoever asks who is there.
    pub(crate) fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }
}

struct Member {
    place: Place,
    me: SocketAddrV4,
    boot: Boot,
    seat: Seat,
    keep: Keep,
    started: Instant,
    core: Membership,
    sealer: Sealer,
    opener: Opener,
    unicast: UdpSocket,
    group: UdpSocket,
    kept_at: Duration,
    /// When the history, which has grown, is kept.
    history_due: Option<Duration>,
    history_kept: Duration,
    head_told: Duration,
    received: u64,
}

impl Member {
    fn new(place: Place, seat: Seat, keep: Keep, started: Instant, seed: u64) -> anyhow::Result<Self> {
        let me = SocketAddrV4::new(place.address, NODE_PORT);
        let boot = Boot {
            id: id(&seat.ticket.id)?,
            incarnation: seat.incarnation,
        };
        let key = group_key(&seat.ticket.key)?;
        let (unicast, group) = sockets(&place).with_context(|| format!("membership on {}", place.link))?;
        let config = Config {
            me: boot,
            role: Role::Node,
            address: me,
            head: Some((id(&seat.ticket.head_id)?, place.head)),
            seeds: seat.peers.clone(),
            bail_out: Duration::from_secs(seat.bail_out_secs),
            capacity: CAPACITY,
        };
        let now = started.elapsed();
        let replica = prefix::kept(&keep, &seat.ticket.head_id);
        Ok(Self {
            core: Membership::new(config, Records::Node(replica), seed, now),
            sealer: Sealer::new(boot, &key),
            opener: Opener::new(key, CAPACITY),
            place,
            me,
            boot,
            seat,
            keep,
            started,
            unicast,
            group,
            kept_at: now,
            history_due: None,
            history_kept: Duration::ZERO,
            head_told: now,
            received: 0,
        })
    }

    async fn forever(
        &mut self,
        mut inbox: mpsc::Receiver<Command>,
        news: &(impl Fn(Result<News, String>) + Send + Sync),
    ) -> anyhow::Error {
        loop {
            let now = self.started.elapsed();
            if let Err(error) = self.obey(news).await {
                return error;
            }
            self.keep_history(now);
            let deadline = self.core.next_deadline(now).unwrap_or(now + KEEP_INTERVAL);
            let wake = self
                .history_due
                .unwrap_or(deadline)
                .min(deadline)
                .min(now + KEEP_INTERVAL);
            let command = tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => Some(command),
                    None => return anyhow::anyhow!("nobody listens"),
                },
                _ = self.unicast.readable() => None,
                _ = self.group.readable() => None,
                () = sleep_until(self.started + wake) => None,
            };
            // What waits is read before anybody is judged for his silence.
            let now = self.started.elapsed();
            self.receive(now);
            self.core.handle_deadline(now);
            self.keep_peers(now);
            let heard = self.core.head_heard();
            if heard >= self.head_told + HEAD_NEWS {
                self.head_told = heard;
                news(Ok(News::HeadHeard(heard)));
            }
            if let Some(command) = command
                && let Err(error) = self.handle(command, news).await
            {
                return error;
            }
        }
    }

    fn receive(&mut self, now: Duration) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for socket in [&self.unicast, &self.group] {
            for _ in 0..BATCH {
                let (length, SocketAddr::V4(source)) = (match socket.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(_) => break,
                }) else {
                    continue;
                };
                self.received += 1;
                let datagram = buffer.get(..length).unwrap_or_default();
                // Beacons of nodes that are no members yet come here too; they fail at the magic, and are counted there.
                if let Ok((boot, body)) = self.opener.open(now, source, self.me, datagram) {
                    // Refusals are counted inside.
                    let _ = self.core.handle_datagram(now, boot, source, &body);
                }
            }
        }
    }

    /// Does what the core wants until it wants nothing more.
    async fn obey(&mut self, news: &(impl Fn(Result<News, String>) + Send + Sync)) -> anyhow::Result<()> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Transmit { to, body } => {
                    let (to, address) = match to {
                        To::Group => (None, SocketAddrV4::new(BEACON_GROUP, NODE_PORT)),
                        To::Member(address) => (Some(address), address),
                    };
                    let datagram = self
                        .sealer
                        .seal(self.me, to, &body)
                        .map_err(|why| anyhow::anyhow!("a datagram cannot be sealed: {why:?}"))?;
                    // Lost here is lost on the wire: the membership lives with that.
                    let _ = self.unicast.send_to(&datagram, address).await;
                }
                Output::Event(event) => self.tell(event, news),
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event, news: &(impl Fn(Result<News, String>) + Send + Sync)) {
        match event {
            Event::Superseded => news(Ok(News::Superseded)),
            Event::HeadLost => log!("cid-agent: the head is silent among the members"),
            Event::HeadBack => log!("cid-agent: the head is back among the members"),
            // Who goes home decides the core, which knows of the connection too.
            Event::GoHome => {}
            Event::History(_) => {
                let machines = u32::try_from(self.core.table().len()).unwrap_or(u32::MAX);
                let interval = match self.place.shared {
                    true => KEEP_HISTORY_SHARED,
                    false => KEEP_HISTORY.saturating_mul(machines),
                };
                let due = self.history_kept + interval;
                self.history_due.get_or_insert(due);
            }
            Event::Appeared(_) | Event::Cleared(_) | Event::Returned(_) => {}
            Event::Suspected(_) | Event::Lost(_) | Event::Left(_) => {}
        }
    }

    async fn handle(
        &mut self,
        command: Command,
        news: &(impl Fn(Result<News, String>) + Send + Sync),
    ) -> anyhow::Result<()> {
        let now = self.started.elapsed();
        match command {
            Command::Load(load) => self.core.handle_load(now, load),
            Command::Mode(mode) => self.core.handle_mode(now, mode),
            Command::Key(key) => {
                let newer = group_key(&key)?;
                self.opener.handle_key(now, newer.clone(), key.revoked);
                self.sealer.handle_key(&newer);
                if key.epoch > self.seat.ticket.key.epoch {
                    self.seat.ticket.key = key;
                    self.keep.keep_seat(&self.seat);
                }
            }
            Command::Leave(done) => {
                self.core.handle_leave(now);
                self.obey(news).await?;
                tokio::time::sleep(LAST_WORDS).await;
                self.core.handle_deadline(self.started.elapsed());
                self.obey(news).await?;
                let _ = done.send(());
            }
            Command::List(answer) => {
                let _ = answer.send(self.list(now));
            }
        }
        Ok(())
    }

    fn list(&self, now: Duration) -> (Teller, Vec<PeerRow>) {
        let unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let unix_ms = u64::try_from(unix_ms).unwrap_or(u64::MAX);
        let digest = match self.core.records() {
            Records::Node(replica) => replica.digest(),
            Records::Head(chronicle) => chronicle.digest(),
        };
        let silence = now.saturating_sub(self.core.head_heard());
        let drops = self.opener.drops().chain(self.core.refusals().iter());
        let drops = drops.filter(|(_, count)| *count > 0);
        let teller = Teller {
            name: self.seat.name.clone(),
            address: self.place.address.to_string(),
            head: self.place.head.ip().to_string(),
            head_heard_ms: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
            history_epoch: digest.epoch,
            history_length: digest.length,
            received: self.received,
            drops: drops.map(|(reason, count)| (reason.to_owned(), count)).collect(),
        };
        let address = self.place.address.to_string();
        let mut rows = view::rows(&self.core, self.boot, address, now, unix_ms);
        if let Some(mine) = rows.iter_mut().find(|row| row.id == self.boot.id.to_string())
            && mine.name.is_empty()
        {
            mine.name.clone_from(&self.seat.name);
        }
        (teller, rows)
    }

    /// For the agent after this one, which must know what everybody was with the head down.
    fn keep_history(&mut self, now: Duration) {
        if self.history_due.is_none_or(|due| now < due) {
            return;
        }
        self.history_due = None;
        self.history_kept = now;
        if let Records::Node(replica) = self.core.records() {
            prefix::keep(&self.keep, &self.seat.ticket.head_id, replica);
        }
    }

    /// For the agent after this one, in a network without multicast and without a head.
    fn keep_peers(&mut self, now: Duration) {
        if now < self.kept_at + KEEP_INTERVAL {
            return;
        }
        self.kept_at = now;
        let present = self.core.roster().members().filter(|member| member.is_present());
        let peers: Vec<SocketAddrV4> = present
            .filter(|member| member.role == Role::Node)
            .map(|member| member.address)
            .take(MAX_PEERS)
            .collect();
        // Nobody left is no news: they may be back when the next agent starts.
        if !peers.is_empty() && peers != self.seat.peers {
            self.seat.peers = peers;
            self.keep.keep_seat(&self.seat);
        }
    }
}

/// One that sends and hears what is sent to us, one that hears the group.
fn sockets(place: &Place) -> std::io::Result<(UdpSocket, UdpSocket)> {
    let unicast = udp_socket(&place.link, SocketAddrV4::new(place.address, NODE_PORT))?;
    unicast.set_multicast_if_v4(&place.address)?;
    // One subnet: 239.192/14 never crosses a router here.
    unicast.set_multicast_ttl_v4(1)?;
    unicast.set_multicast_loop_v4(place.shared)?;
    let group = udp_socket(&place.link, SocketAddrV4::new(BEACON_GROUP, NODE_PORT))?;
    group.join_multicast_v4(&BEACON_GROUP, &place.address)?;
    Ok((
        UdpSocket::from_std(unicast.into())?,
        UdpSocket::from_std(group.into())?,
    ))
}

/// An id as messages spell it.
fn id(text: &str) -> anyhow::Result<NodeId> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    let number = number.with_context(|| format!("{text:?} is no id of a member"))?;
    Ok(NodeId(number.to_be_bytes()))
}

/// The key of a message.
fn group_key(key: &node::GroupKey) -> anyhow::Result<GroupKey> {
    let secret = cid_trust::decode(&key.secret).and_then(|bytes| bytes.try_into().ok());
    Ok(GroupKey {
        epoch: key.epoch,
        secret: secret.context("the head's group key is not 32 bytes of base64")?,
    })
}
