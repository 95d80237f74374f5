//! The connection to the head: dialled when the core says so, one at a time.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use cid_protocol::cmdline;
use cid_protocol::node::{Certificate, FromNode, Hardware, Hello, NODE_PROTOCOL_VERSION, ToNode};
use cid_protocol::work::MAX_CONTROL;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Connection, Event, Shell, WRITE_BOUND, Writer};
use crate::frames::Either;
use crate::identity::Credentials;
use crate::measure::peers::Caller;
use crate::{frames, measure};

/// Bytes that may wait in the kernel before they are under way.
const UNSENT: u32 = 128 * 1024;

/// For a connection over which this node measures before its hello: the CPU's figure, and how peers are called.
type Measuring = (JoinHandle<f32>, Option<Caller>);

impl Shell {
    pub(super) fn connect(&mut self, index: u32, from: Ipv4Addr, head: SocketAddrV4) {
        self.connections += 1;
        let (number, sender) = (self.connections, self.sender.clone());
        let name = self
            .wires
            .get(&index)
            .map(|wire| wire.name.clone())
            .unwrap_or_default();
        // Without a pin there is nobody to call; the core does not ask for it.
        let config = self.credentials.as_ref().map(Credentials::client_config);
        let config = config.unwrap_or_else(|| Err(anyhow::anyhow!("this boot knows no authority")));
        // A stranger is heard for its enrolment alone.
        let measuring = match &self.credentials {
            Some(credentials) if !credentials.is_certified() => None,
            _ => self.measurements.for_connection(),
        };
        let peers = self.credentials.as_ref().and_then(Credentials::peer_config);
        let caller = peers.map(|config| Caller {
            link: name.clone(),
            from,
            config,
        });
        let measuring = measuring.map(|cpu| (cpu, caller));
        let task = tokio::spawn(async move {
            let talk = async {
                let tls = TlsConnector::from(config.map_err(std::io::Error::other)?);
                converse(number, &name, from, head, (tls, measuring), &sender).await
            };
            let why = match talk.await {
                Ok(()) => "the head closed the connection".to_owned(),
                Err(error) => format!("the head at {}: {}", head.ip(), cid_trust::in_words(&error)),
            };
            let _ = sender.send(Event::Closed { number, why }).await;
        });
        self.connection = Some(Connection {
            number,
            task: task.abort_handle(),
            writer: None,
        });
    }

    pub(super) async fn send(&mut self, message: FromNode) {
        let now = self.now();
        let Some(writer) = self
            .connection
            .as_ref()
            .and_then(|connection| connection.writer.as_ref())
        else {
            return;
        };
        let why = match timeout(WRITE_BOUND, writer.send(&message)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("the connection to the head broke: {error}"),
            Err(_) => "the head takes no data".to_owned(),
        };
        self.node.handle_closed(now, &why);
    }

    pub(super) fn hello(&self, index: u32) -> Hello {
        let word = |key| cmdline::lookup(&self.cmdline, key).unwrap_or_default().to_owned();
        Hello {
            version: NODE_PROTOCOL_VERSION,
            boot_id: self.ground.boot_id(),
            image: word(cmdline::IMAGE),
            door: word(cmdline::DOOR),
            hardware: Hardware {
                measured: self.measurements.last(),
                ..self.ground.hardware(index, &self.addresses())
            },
            phases: self.phases.clone(),
            incarnation: self.incarnation(),
            work: self.ground.work(),
        }
    }

    /// Asks for a certificate. What cannot be asked is a refusal: nothing will change by trying at once again.
    pub(super) async fn enroll(&mut self, index: u32) {
        let link = self.ground.wired().into_iter().find(|link| link.index == index);
        let mac = self.boot_mac.or(link.map(|link| link.mac)).unwrap_or_default();
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let (uuid, boot_id) = (self.ground.uuid().to_lowercase(), self.ground.boot_id());
        let question = match &mut self.credentials {
            Some(credentials) => credentials.enroll(mac, uuid, boot_id),
            None => return,
        };
        match question {
            Ok(question) => self.send(FromNode::Enroll(Box::new(question))).await,
            Err(error) => {
                let now = self.now();
                self.node.handle_enrolled(now, Err(format!("{error:#}")));
            }
        }
    }

    /// Takes the certificate that the head gave.
    pub(super) fn enrolled(&mut self, certificate: &Certificate) {
        let taken = match &mut self.credentials {
            Some(credentials) => credentials
                .accept(certificate)
                .map_err(|error| format!("{error:#}")),
            None => Ok(()),
        };
        let now = self.now();
        self.node.handle_enrolled(now, taken);
    }
}

/// One connection from dial to end.
async fn converse(
    number: u64,
    link: &str,
    from: Ipv4Addr,
    head: SocketAddrV4,
    (tls, measuring): (TlsConnector, Option<Measuring>),
    sender: &Sender<Event>,
) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // The link decides the way, not the routing table: two links may be in one subnet.
    socket.bind_device(Some(link.as_bytes()))?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(head.into()).await?;
    stream.set_nodelay(true)?;
    // What programs say must not wait in the kernel in front of a heartbeat. A kernel that does not know it lets it wait.
    let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    let socket = stream.as_fd().try_clone_to_owned()?;
    let stream = tls.connect(cid_trust::server_name(), stream).await?;
    cid_trust::peer_of(stream.get_ref().1).map_err(std::io::Error::other)?;
    exchange(number, stream, socket, measuring, sender).await
}

/// Frames of a connection that is up; `socket` is what carries it.
async fn exchange(
    number: u64,
    stream: impl AsyncRead + AsyncWrite + Send + Sync + 'static,
    socket: OwnedFd,
    measuring: Option<Measuring>,
    sender: &Sender<Event>,
) -> std::io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = frames::Reader::with_limit(reader, MAX_CONTROL);
    let mut measured = None;
    if let Some((cpu, caller)) = measuring {
        let mut found = measure::run(&mut reader, &mut writer, cpu, caller.as_ref()).await?;
        found.head.sent = measure::segments(&socket);
        measured = Some(found);
    }
    let writer = Writer::start(writer);
    let connected = Event::Connected {
        number,
        writer,
        measured,
    };
    let _ = sender.send(connected).await;
    while let Some(received) = reader.next_of::<ToNode>().await? {
        let event = match received {
            Either::Message(message) => Event::Frame {
                number,
                message: Box::new(message),
            },
            Either::Work(frame) => Event::Work { number, frame },
        };
        let _ = sender.send(event).await;
    }
    Ok(())
}
