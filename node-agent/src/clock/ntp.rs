//! Questions and answers of NTP (RFC 5905, client mode) over any channel: the packets travel in the node's connection to its head, so
//! that nobody else can set a node's clock. Must not touch the clock.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_lite::future::block_on;
use sntpc::{NtpContext, NtpTimestampGenerator, NtpUdpSocket, SendRequestResult};

use super::discipline::Sample;

/// The library wants a peer; there is one at the other end of the connection.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 123);

/// A question that was asked.
#[derive(Debug)]
pub(crate) struct Question(SendRequestResult);

/// The packet that asks at this time of this clock (since 1970).
pub(crate) fn ask(clock: Duration) -> Option<(Question, Vec<u8>)> {
    let channel = Channel::default();
    let asked = block_on(sntpc::sntp_send_request(
        PEER,
        &channel,
        NtpContext::new(At(clock)),
    ))
    .ok()?;
    Some((Question(asked), channel.0.into_inner()))
}

/// What an answer says that came at this time of this clock.
///
/// # Errors
/// It is no answer to this question.
pub(crate) fn read(question: Question, answer: Vec<u8>, clock: Duration) -> Result<Sample, String> {
    let channel = Channel(RefCell::new(answer));
    let context = NtpContext::new(At(clock));
    let result = block_on(sntpc::sntp_process_response(PEER, &channel, context, question.0))
        .map_err(|error| format!("{error:?}"))?;
    Ok(Sample {
        ahead_us: result.offset(),
        round_trip_us: result.roundtrip(),
    })
}

/// One packet on its way.
#[derive(Default)]
struct Channel(RefCell<Vec<u8>>);

impl NtpUdpSocket for Channel {
    async fn send_to(&self, bytes: &[u8], _: SocketAddr) -> sntpc::Result<usize> {
        self.0.replace(bytes.to_vec());
        Ok(bytes.len())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> sntpc::Result<(usize, SocketAddr)> {
        let bytes = self.0.take();
        let room = buffer
            .get_mut(..bytes.len())
            .ok_or(sntpc::Error::IncorrectPayload)?;
        room.copy_from_slice(&bytes);
        Ok((bytes.len(), PEER))
    }
}

/// A moment, for a library that asks for a clock.
#[derive(Clone, Copy)]
struct At(Duration);

impl NtpTimestampGenerator for At {
    fn init(&mut self) {}

    fn timestamp_sec(&self) -> u64 {
        self.0.as_secs()
    }

    fn timestamp_subsec_micros(&self) -> u32 {
        self.0.subsec_micros()
    }
}
