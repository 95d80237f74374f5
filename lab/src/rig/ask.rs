//! Asks agents themselves who is in the cluster, as `cidctl --node ADDRESS nodes` does (the administrator's certificate, the node's own port), but
//! hundreds of them a second. Must not ask the head, which may be down.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::NODE_PORT;
use cid_trust::rustls::{ClientConfig, ClientConnection, StreamOwned};
use cid_trust::{Expect, Identity};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::Rig;
use crate::head::Control;
use crate::room::Room;

/// A node that does not answer in this time counts as one that did not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Two processors are asked by more than that many hands no faster.
const HANDS: usize = 4;
/// A frame's length, at most, as nodes have it.
const MAX_FRAME: usize = 64 * 1024;

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// What one node says: machines by name, with the state it gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// By the machine's name, which is its MAC address unless a test gave it another.
    pub states: BTreeMap<String, String>,
    /// Which history of the head's it holds.
    pub history_epoch: u64,
    /// Changes of it.
    pub history_length: u64,
    /// Datagrams that came to its port.
    pub received: u64,
    /// Those of them that it did not take, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl View {
    /// Machines it takes as being in the cluster and well.
    #[must_use]
    pub fn up(&self) -> usize {
        self.states.values().filter(|state| *state == "up").count()
    }
}

/// Who asks, and the connections that are open.
#[derive(Debug)]
pub struct Asker {
    config: Arc<ClientConfig>,
    /// A file of the room's network namespace.
    space: fs::File,
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    address: Option<Ipv4Addr>,
    connection: Mutex<Option<Connection>>,
}

impl Asker {
    /// Learns the agents' addresses from the head, which must be up this once.
    ///
    /// # Errors
    /// Without the head, without its administrator's certificate, or where namespaces cannot be entered.
    pub fn new(rig: &Rig) -> Result<Self> {
        let macs: Vec<String> = rig.agents().iter().map(super::Agent::mac).collect();
        Self::among(rig.room(), rig.head.control(), &macs)
    }

    /// The same among any machines of a room, virtual PCs for example; they are numbered as their MAC addresses come.
    ///
    /// # Errors
    /// As [`Asker::new`].
    pub fn among(room: &Room, head: &Control, macs: &[String]) -> Result<Self> {
        let pem = room.dir().join("state/ca/admin.pem");
        let text = fs::read_to_string(&pem).with_context(|| format!("reading {}", pem.display()))?;
        let identity = Identity::from_pem(&text)?;
        let pin = identity
            .pin()
            .context("no authority in the administrator's certificate")?;
        let config = cid_trust::client_config(pin, Expect::HeadOrNode, Some(&identity))?;
        let nodes = head.nodes()?;
        let address = |mac: &String| {
            let node = nodes.iter().find(|node| node.mac == *mac)?;
            node.address.as_ref()?.parse().ok()
        };
        let places = macs.iter().map(|mac| Place {
            address: address(mac),
            connection: Mutex::new(None),
        });
        let space = fs::File::open(format!("/proc/{}/ns/net", room.target()))?;
        Ok(Self {
            config,
            space,
            places: places.collect(),
        })
    }

    /// What each of these agents says, in their order.
    ///
    /// # Errors
    /// When the room's network cannot be entered; an agent that does not answer is an error of its own.
    pub fn ask(&self, agents: &[usize]) -> Result<Vec<Result<View>>> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            let work = || -> Result<()> {
                setns(&self.space, CloneFlags::CLONE_NEWNET).context("entering the room's network")?;
                while let Some(agent) = agents.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let view = self.ask_one(*agent);
                    found
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(*agent, view);
                }
                Ok(())
            };
            let hands: Vec<_> = (0..HANDS.min(agents.len())).map(|_| scope.spawn(work)).collect();
            for hand in hands {
                match hand.join() {
                    Ok(done) => done?,
                    Err(_) => bail!("a hand of the asker panicked"),
                }
            }
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let answer = |agent: &usize| found.remove(agent).context("not asked").flatten();
        Ok(agents.iter().map(answer).collect())
    }

    fn ask_one(&self, agent: usize) -> Result<View> {
        let place = self.places.get(agent).context("no such agent")?;
        let mut connection = place.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // A node answers a number of questions, and an agent that was started again has forgotten us.
        if let Some(open) = connection.as_mut()
            && let Ok(view) = question(open)
        {
            return Ok(view);
        }
        *connection = None;
        let address = place.address.context("the head told no address of it")?;
        let socket = TcpStream::connect_timeout(&SocketAddr::from((address, NODE_PORT)), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let session = ClientConnection::new(Arc::clone(&self.config), cid_trust::server_name())?;
        let mut open = StreamOwned::new(session, socket);
        let view = question(&mut open)?;
        *connection = Some(open);
        Ok(view)
    }
}

fn question(connection: &mut Connection) -> Result<View> {
    let words = br#"{"type":"nodes"}"#;
    let mut frame = u32::try_from(words.len())?.to_be_bytes().to_vec();
    frame.extend(words);
    connection.write_all(&frame)?;
    let mut view = View::default();
    loop {
        let mut length = [0; 4];
        connection.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
        let mut bytes = vec![0; length];
        connection.read_exact(&mut bytes)?;
        let part: Value = serde_json::from_slice(&bytes)?;
        ensure!(part["type"] == "nodes", "refused: {part}");
        let number = |key: &str| part["from"][key].as_u64().unwrap_or(0);
        (view.history_epoch, view.history_length) = (number("history_epoch"), number("history_length"));
        view.received = number("received");
        for (reason, count) in part["from"]["drops"].as_object().into_iter().flatten() {
            view.drops.insert(reason.clone(), count.as_u64().unwrap_or(0));
        }
        for row in part["nodes"].as_array().context("no rows")? {
            let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let name = if word("name").is_empty() {
                word("id")
            } else {
                word("name")
            };
            view.states.insert(name, word("state"));
        }
        if part["more"] != true {
            return Ok(view);
        }
    }
}
