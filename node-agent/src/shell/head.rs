//! The connection to the head: dialled when the core says so, one at a time.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use cid_protocol::cmdline;
use cid_protocol::node::{FromNode, Hardware, Hello, NODE_PROTOCOL_VERSION};
use tokio::net::TcpSocket;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Connection, Event, Shell, WRITE_BOUND};
use crate::{frames, hardware, measure};

impl Shell {
    pub(super) fn connect(&mut self, index: u32, from: Ipv4Addr, head: SocketAddrV4) {
        self.connections += 1;
        let (number, sender) = (self.connections, self.sender.clone());
        let name = self
            .wires
            .get(&index)
            .map(|wire| wire.name.clone())
            .unwrap_or_default();
        let measuring = self.measurements.for_connection();
        let task = tokio::spawn(async move {
            let why = match converse(number, &name, from, head, measuring, &sender).await {
                Ok(()) => "the head closed the connection".to_owned(),
                Err(error) => format!("the head at {}: {error}", head.ip()),
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
            .as_mut()
            .and_then(|connection| connection.writer.as_mut())
        else {
            return;
        };
        let why = match timeout(WRITE_BOUND, frames::write(writer, &message)).await {
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
            boot_id: hardware::read("/proc/sys/kernel/random/boot_id"),
            image: word(cmdline::IMAGE),
            door: word(cmdline::DOOR),
            hardware: Hardware {
                measured: self.measurements.last(),
                ..hardware::report(index, &self.addresses())
            },
            phases: self.phases.clone(),
            incarnation: None,
        }
    }
}

/// One connection from dial to end.
async fn converse(
    number: u64,
    link: &str,
    from: Ipv4Addr,
    head: SocketAddrV4,
    measuring: Option<JoinHandle<f32>>,
    sender: &Sender<Event>,
) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // The link decides the way, not the routing table: two links may be in one subnet.
    socket.bind_device(Some(link.as_bytes()))?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(head.into()).await?;
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = frames::Reader::new(reader);
    let mut measured = None;
    if let Some(cpu) = measuring {
        let mut found = measure::run(&mut reader, &mut writer, cpu).await?;
        found.head.sent = measure::segments(writer.as_ref());
        measured = Some(found);
    }
    let connected = Event::Connected {
        number,
        writer,
        measured,
    };
    let _ = sender.send(connected).await;
    while let Some(message) = reader.next().await? {
        let _ = sender
            .send(Event::Frame {
                number,
                message: Box::new(message),
            })
            .await;
    }
    Ok(())
}
