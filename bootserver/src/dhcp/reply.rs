//! Answers as bytes. Must not decide what stands in them.
//!
//! dhcproto encodes the typed message; options it cannot express as we need them go in as raw ones.

use std::net::Ipv4Addr;

use dhcproto::v4::{self, DhcpOption, UnknownOption};
use dhcproto::{Encodable, Encoder};

use crate::dhcp::packet::{MessageType, Packet, option};

/// Smallest BOOTP message (RFC 1542 2.1); some ROMs drop shorter ones.
const MIN_LENGTH: usize = 300;
/// EDK2 ignores larger ones; also the largest that never fragments.
pub const MAX_LENGTH: usize = 1472;

/// What stands in an answer beside what every answer has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    /// Address for the client; 0.0.0.0 for none.
    pub yiaddr: Option<Ipv4Addr>,
    /// Boot server, in `siaddr` and `sname`.
    pub boot_server: Option<Ipv4Addr>,
    /// Boot file, in `file`: shim reads it only there.
    pub file: Option<String>,
    /// Options by code, in this order.
    pub options: Vec<(u8, Vec<u8>)>,
}

/// An answer cannot be put into bytes: a configured value is too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// `file` or an option does not fit.
    #[error("the answer to {mac} does not fit: {what} is too long")]
    TooLong {
        /// To whom.
        mac: String,
        /// What.
        what: &'static str,
    },
}

/// Builds the answer to `request`.
pub fn encode(
    request: &Packet,
    kind: MessageType,
    server: Ipv4Addr,
    body: &Body,
) -> Result<Vec<u8>, EncodeError> {
    let too_long = |what| EncodeError::TooLong {
        mac: request.mac.to_string(),
        what,
    };
    let mut message = v4::Message::default();
    message
        .set_opcode(v4::Opcode::BootReply)
        .set_xid(request.xid)
        .set_chaddr(&request.mac.0)
        .set_giaddr(request.giaddr)
        .set_yiaddr(body.yiaddr.unwrap_or(Ipv4Addr::UNSPECIFIED))
        .set_siaddr(body.boot_server.unwrap_or(Ipv4Addr::UNSPECIFIED));
    if request.broadcast {
        message.set_flags(v4::Flags::default().set_broadcast());
    }
    // RFC 2131 table 3: `ciaddr` is the client's in an ACK, zero otherwise.
    if kind == MessageType::Ack {
        message.set_ciaddr(request.ciaddr);
    }
    if let Some(boot_server) = body.boot_server {
        message.set_sname_str(boot_server.to_string());
    }
    if let Some(file) = &body.file {
        if file.len() > 127 {
            return Err(too_long("the boot file name"));
        }
        message.set_fname_str(file);
    }
    let mut raw = vec![
        (option::MESSAGE_TYPE, vec![kind.to_byte()]),
        (option::SERVER_IDENTIFIER, server.octets().to_vec()),
    ];
    raw.extend(body.options.iter().cloned());
    for (code, value) in raw {
        if value.len() > 255 {
            return Err(too_long("an option"));
        }
        message
            .opts_mut()
            .insert(DhcpOption::Unknown(UnknownOption::new(code.into(), value)));
    }
    let mut bytes = Vec::with_capacity(MIN_LENGTH);
    message
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(|_| too_long("the whole"))?;
    append_relay_option(&mut bytes, request).ok_or_else(|| too_long("the relay's option"))?;
    if bytes.len() > MAX_LENGTH {
        return Err(too_long("the whole"));
    }
    bytes.resize(bytes.len().max(MIN_LENGTH), 0);
    Ok(bytes)
}

/// RFC 3046 2.2: the relay's option goes back as it came, as the last one. By hand: dhcproto writes an option 82 that it
/// was given raw twice.
fn append_relay_option(bytes: &mut Vec<u8>, request: &Packet) -> Option<()> {
    const END: u8 = 255;
    let Some(relay) = request.option(option::RELAY_AGENT) else {
        return Some(());
    };
    let length = u8::try_from(relay.len()).ok()?;
    if bytes.last() == Some(&END) {
        bytes.pop();
    }
    bytes.extend([option::RELAY_AGENT, length]);
    bytes.extend(relay);
    bytes.push(END);
    Some(())
}

/// Option 43 with a PXE boot menu of one entry, "Local boot", taken at once (RFC 4578; PXE 2.1 section 2.4): EDK2
/// then prints PXE-E21 and goes on with its boot order within 4 s, and iPXE and plain ROMs return to the BIOS.
pub fn local_boot_menu() -> Vec<u8> {
    const DISCOVERY_CONTROL: u8 = 6;
    const BOOT_MENU: u8 = 9;
    const MENU_PROMPT: u8 = 10;
    const END: u8 = 255;
    /// No broadcast, no multicast discovery: the menu is all there is.
    const NO_DISCOVERY: u8 = 3;
    let text = b"Local boot";
    let mut bytes = vec![DISCOVERY_CONTROL, 1, NO_DISCOVERY];
    // Type 0 is "boot from the local disk"; then the length of the text.
    bytes.extend([BOOT_MENU, 13, 0, 0, 10]);
    bytes.extend(text);
    // Time-out 0: take the first entry without asking. The prompt may not be empty.
    bytes.extend([MENU_PROMPT, 2, 0, b'L', END]);
    bytes
}
