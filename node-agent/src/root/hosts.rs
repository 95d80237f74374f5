//! The texts by which programs of a root find other machines. Names come from the head; must never let one forge a line.

use std::net::Ipv4Addr;

/// Names of one `/etc/hosts`.
pub(crate) const MAX_NAMES: usize = 10_000;

/// `/etc/hosts`: this node, the head as `head`, and every other node by its name.
pub(crate) fn hosts<'a>(
    own: (&str, Option<Ipv4Addr>),
    head: Option<Ipv4Addr>,
    others: impl Iterator<Item = (&'a str, Ipv4Addr)>,
) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let mut add = |address: Ipv4Addr, name: &str| {
        if let Some(name) = host_name(name) {
            text.push_str(&format!("{address} {name}\n"));
        }
    };
    if let Some(head) = head {
        add(head, "head");
    }
    // A name that stands for this node must be its address on the network: MPI hands it to others.
    let (name, address) = own;
    add(address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1)), name);
    for (other, address) in others.take(MAX_NAMES).filter(|(other, _)| *other != name) {
        add(address, other);
    }
    text
}

/// What a node with this name calls itself: a PC that nobody named has its MAC address, whose colons no host name may have.
pub(crate) fn host_name(name: &str) -> Option<String> {
    let name = name.replace(':', "-");
    is_name(&name).then_some(name)
}

/// A host name (RFC 952, RFC 1123).
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_line_and_none_forges_one() {
        let address = |last| Ipv4Addr::new(10, 77, 0, last);
        let others = [
            ("lab-a02", address(131)),
            ("lab-a01", address(9)),
            ("evil\n6.6.6.6 head", address(132)),
            ("", address(133)),
        ];
        let text = hosts(
            ("lab-a01", Some(address(130))),
            Some(address(1)),
            others.into_iter(),
        );
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.77.0.1 head\n10.77.0.130 lab-a01\n\
             10.77.0.131 lab-a02\n"
        );
    }
}
