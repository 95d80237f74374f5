//! All transfers of one port: datagrams and answers of the name space go in, datagrams and journal entries come out.
//! Must own no socket, clock or file.
//!
//! Every answer leaves from the well-known port (clients take the port of the first answer for the server's transfer
//! identifier, RFC 1350 section 4): a firewall needs to know one port, and a restarted server hears the transfers of the one before it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddrV4;
use std::time::Duration;

use bytes::Bytes;

use super::journal::Entry;
use super::packet::{self, ErrorCode, Malformed, Options, Packet, Request};
use super::transfer::{DEFAULT_BLOCK_SIZE, Next, Transfer};
use crate::files::Refusal;

/// An Ethernet frame's worth (what EDK2 asks for); larger blocks would fragment.
pub const MAX_BLOCK_SIZE: u16 = 1468;
/// Some clients fail on large windows (u-root pull request 1966).
pub const MAX_WINDOW_SIZE: u16 = 16;
/// Longest retransmission time that a client may choose, seconds.
const MAX_TIMEOUT: u8 = 10;
/// Transfers at a time, each a few hundred octets beside the file, which all share. A room of 200 PCs fits twice.
pub const MAX_TRANSFERS: usize = 512;
/// Transfers of one address at a time: one stranger cannot take all places.
pub const MAX_TRANSFERS_PER_CLIENT: usize = 256;
/// The journal hears of progress each time this many blocks are done: less than the half of what an ACK can tell apart.
pub const PROGRESS: u64 = 16_384;

/// Why a datagram led to nothing. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Dropped {
    /// It cannot be read, or is none of a client's.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An ACK for no transfer.
    #[error("tftp-unknown-transfer")]
    UnknownTransfer,
    /// An ACK of what is acknowledged already, or was never sent.
    #[error("tftp-stale-acknowledgement")]
    Stale,
    /// The same request again while its answer is being made.
    #[error("tftp-repeated-request")]
    Repeated,
    /// As many transfers are under way as may be.
    #[error("tftp-too-many-transfers")]
    TooManyTransfers,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the name space; the answer goes to [`Server::handle_opened`].
    Open {
        /// Who asks.
        client: SocketAddrV4,
        /// For what.
        path: String,
    },
    /// Send: the head, then the content of a block, if it has one.
    Transmit {
        /// To whom.
        client: SocketAddrV4,
        /// Operation code and what follows.
        head: Vec<u8>,
        /// Content of a block.
        content: Bytes,
    },
    /// Write to the journal.
    Journal(Entry),
    /// A transfer ended without the client's last ACK; counted.
    Lost(SocketAddrV4),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Server {
    opening: BTreeMap<SocketAddrV4, Request>,
    transfers: BTreeMap<SocketAddrV4, Running>,
    deadlines: BTreeSet<(Duration, SocketAddrV4)>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Running {
    transfer: Transfer,
    request: Option<Request>,
    deadline: Duration,
}

impl Server {
    /// Nothing under way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on with a transfer of an earlier life of this process; `content` is what was served then.
    pub fn resume(
        &mut self,
        now: Duration,
        client: SocketAddrV4,
        content: Bytes,
        sizes: (u16, u16),
        acknowledged: u64,
    ) {
        if self.transfers.len() >= MAX_TRANSFERS {
            return;
        }
        let transfer = Transfer::resume(now, content, sizes, acknowledged);
        self.insert(client, transfer, None);
    }

    /// Transfers under way, and requests that are looked up.
    pub fn sizes(&self) -> (usize, usize) {
        (self.transfers.len(), self.opening.len())
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A datagram has come.
    ///
    /// # Errors
    /// It led to nothing; to be counted.
    pub fn handle_datagram(
        &mut self,
        now: Duration,
        client: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Dropped> {
        match packet::decode(bytes) {
            Ok(Packet::Read(request)) => self.handle_request(now, client, request),
            Ok(Packet::Acknowledgement(block)) => self.handle_acknowledgement(now, client, block),
            Ok(Packet::Error) => {
                // The usual end of a question for the size (EDK2) and of GRUB's closing a file early: no failure.
                self.opening.remove(&client);
                match self.end(client) {
                    Some(_) => Ok(()),
                    None => Err(Dropped::UnknownTransfer),
                }
            }
            Err(malformed) => {
                let refusal = match malformed {
                    Malformed::WriteRequest => Some((ErrorCode::AccessViolation, "read only")),
                    Malformed::Mode => Some((ErrorCode::IllegalOperation, "only mode octet is served")),
                    Malformed::Packet | Malformed::Direction => None,
                };
                if let Some((code, message)) = refusal {
                    self.refuse(client, code, message);
                }
                Err(malformed.into())
            }
        }
    }

    fn handle_request(
        &mut self,
        now: Duration,
        client: SocketAddrV4,
        request: Request,
    ) -> Result<(), Dropped> {
        if self.opening.get(&client) == Some(&request) {
            return Err(Dropped::Repeated);
        }
        if let Some(running) = self.transfers.get_mut(&client)
            && running.transfer.is_fresh()
            && running.request.as_ref() == Some(&request)
        {
            // Our first answer was lost.
            let next = running.transfer.begin(now);
            self.follow(now, client, next);
            return Ok(());
        }
        self.end(client);
        let whole = self.transfers.len() + self.opening.len();
        let of_client = |address: &&SocketAddrV4| address.ip() == client.ip();
        let own =
            self.transfers.keys().filter(of_client).count() + self.opening.keys().filter(of_client).count();
        if whole >= MAX_TRANSFERS || own >= MAX_TRANSFERS_PER_CLIENT {
            self.refuse(client, ErrorCode::Undefined, "too many transfers; try again");
            return Err(Dropped::TooManyTransfers);
        }
        let path = request.path.clone();
        self.opening.insert(client, request);
        self.outputs.push_back(Output::Open { client, path });
        Ok(())
    }

    /// The name space has answered.
    pub fn handle_opened(&mut self, now: Duration, client: SocketAddrV4, answer: Result<Bytes, Refusal>) {
        let Some(request) = self.opening.remove(&client) else {
            // The client broke off in the meantime.
            return;
        };
        let content = match answer {
            Ok(content) => content,
            Err(Refusal::NotCommitted) => return self.refuse(client, ErrorCode::Undefined, "try again"),
            // shim takes every other error for fatal and GRUB takes silence for a lost packet: ERROR 1, at once.
            Err(_) => return self.refuse(client, ErrorCode::FileNotFound, "file not found"),
        };
        let granted = grant(&request.options);
        let sizes = (
            granted.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
            granted.window_size.unwrap_or(1),
        );
        let options =
            (!granted.is_empty()).then(|| packet::option_acknowledgement(&granted, content.len() as u64));
        let timeout = granted.timeout.map(|secs| Duration::from_secs(secs.into()));
        let begun = Entry::begun(client, &request.path, sizes, &content);
        self.outputs.push_back(Output::Journal(begun));
        let mut transfer = Transfer::new(now, content, sizes, options, timeout);
        let next = transfer.begin(now);
        self.insert(client, transfer, Some(request));
        self.follow(now, client, next);
    }

    fn handle_acknowledgement(
        &mut self,
        now: Duration,
        client: SocketAddrV4,
        block: u16,
    ) -> Result<(), Dropped> {
        let Some(running) = self.transfers.get_mut(&client) else {
            if self.opening.contains_key(&client) {
                return Err(Dropped::Stale);
            }
            // So that a client whose transfer nobody knows gives up at once, not after its time-outs.
            self.refuse(client, ErrorCode::UnknownTransfer, "unknown transfer");
            return Err(Dropped::UnknownTransfer);
        };
        let before = running.transfer.acknowledged() / PROGRESS;
        let next = running.transfer.handle_acknowledgement(now, block);
        let acknowledged = running.transfer.acknowledged();
        if acknowledged / PROGRESS > before {
            let block = acknowledged - acknowledged % PROGRESS;
            self.outputs
                .push_back(Output::Journal(Entry::Progress { client, block }));
        }
        if next == Next::Ignore {
            return Err(Dropped::Stale);
        }
        self.follow(now, client, next);
        Ok(())
    }

    /// Retransmits what is due.
    pub fn handle_deadline(&mut self, now: Duration) {
        while let Some((deadline, client)) = self.deadlines.first().copied() {
            if deadline > now {
                return;
            }
            let Some(running) = self.transfers.get_mut(&client) else {
                self.deadlines.remove(&(deadline, client));
                continue;
            };
            let next = running.transfer.handle_deadline(now);
            self.follow(now, client, next);
        }
    }

    fn insert(&mut self, client: SocketAddrV4, transfer: Transfer, request: Option<Request>) {
        let deadline = transfer.deadline();
        self.deadlines.insert((deadline, client));
        let running = Running {
            transfer,
            request,
            deadline,
        };
        self.transfers.insert(client, running);
    }

    fn end(&mut self, client: SocketAddrV4) -> Option<Running> {
        let running = self.transfers.remove(&client)?;
        self.deadlines.remove(&(running.deadline, client));
        self.outputs.push_back(Output::Journal(Entry::Ended { client }));
        Some(running)
    }

    fn refuse(&mut self, client: SocketAddrV4, code: ErrorCode, message: &str) {
        self.outputs.push_back(Output::Transmit {
            client,
            head: packet::error(code, message),
            content: Bytes::new(),
        });
    }

    fn follow(&mut self, now: Duration, client: SocketAddrV4, next: Next) {
        let Some(running) = self.transfers.get_mut(&client) else {
            return;
        };
        match next {
            Next::SendOptions => {
                let head = running.transfer.options().unwrap_or_default().to_vec();
                let content = Bytes::new();
                self.outputs.push_back(Output::Transmit {
                    client,
                    head,
                    content,
                });
            }
            Next::Send(blocks) => {
                for number in blocks {
                    let head = packet::data_header(super::transfer::low(number)).to_vec();
                    let content = running.transfer.block(number);
                    self.outputs.push_back(Output::Transmit {
                        client,
                        head,
                        content,
                    });
                }
            }
            Next::Finished => {
                self.end(client);
                return;
            }
            Next::GivenUp => {
                self.end(client);
                self.outputs.push_back(Output::Lost(client));
                return;
            }
            Next::Ignore => {}
        }
        // A deadline that stands still would be met for ever.
        let deadline = running.transfer.deadline().max(now + Duration::from_millis(1));
        self.deadlines.remove(&(running.deadline, client));
        self.deadlines.insert((deadline, client));
        running.deadline = deadline;
    }
}

/// What is granted of what was asked: never more than asked, never an option that was not asked for (RFC 2347).
fn grant(asked: &Options) -> Options {
    Options {
        block_size: asked.block_size.map(|size| size.min(MAX_BLOCK_SIZE)),
        // RFC 2349: the same value or none.
        timeout: asked.timeout.filter(|secs| *secs <= MAX_TIMEOUT),
        transfer_size: asked.transfer_size,
        window_size: asked.window_size.map(|size| size.min(MAX_WINDOW_SIZE)),
    }
}

#[cfg(test)]
mod tests;
