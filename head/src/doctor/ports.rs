//! Who holds the ports a head needs, from the kernel's own tables. Must not open any of them.

use std::collections::BTreeSet;
use std::fs;

use cid_bootserver::dhcp::proxy::BOOT_SERVER_PORT;
use cid_bootserver::dhcp::server::SERVER_PORT;
use cid_bootserver::{http, tftp};
use cid_protocol::NODE_PORT;
use cid_protocol::doctor::Finding;

use crate::config::DhcpMode;

/// State `LISTEN` of `/proc/net/tcp` (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// One needed port.
struct Need {
    what: &'static str,
    table: &'static str,
    port: u16,
}

pub(super) fn examine(mode: DhcpMode) -> Vec<Finding> {
    let own = own_sockets();
    let needs = [
        ("DHCP", "udp", SERVER_PORT),
        ("PXE", "udp", BOOT_SERVER_PORT),
        ("TFTP", "udp", tftp::PORT),
        ("HTTP", "tcp", http::PORT),
        ("nodes", "tcp", NODE_PORT),
        ("beacons", "udp", NODE_PORT),
    ];
    let needs = needs.map(|(what, table, port)| Need { what, table, port });
    let needed = |need: &&Need| match need.port {
        SERVER_PORT => mode != DhcpMode::Off,
        BOOT_SERVER_PORT => mode == DhcpMode::Proxy,
        _ => true,
    };
    needs
        .iter()
        .filter(needed)
        .map(|need| {
            let table = fs::read_to_string(format!("/proc/net/{}", need.table)).unwrap_or_default();
            judge(need, &holders(&table, need.port), &own)
        })
        .collect()
}

/// Socket numbers (inodes) that hold `port` in a table of `/proc/net`.
fn holders(table: &str, port: u16) -> BTreeSet<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, hex) = fields.get(1)?.rsplit_once(':')?;
        let bound = u16::from_str_radix(hex, 16).ok()? == port;
        // Datagram sockets are in state 07; of stream sockets only those that listen count.
        let state = *fields.get(3)?;
        (bound && (state == LISTEN || state == "07")).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn own_sockets() -> BTreeSet<u64> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let inode = |link: std::path::PathBuf| {
        let text = link
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse();
        text.ok()
    };
    entries
        .filter_map(|entry| inode(fs::read_link(entry.path()).ok()?))
        .collect()
}

fn judge(need: &Need, holders: &BTreeSet<u64>, own: &BTreeSet<u64>) -> Finding {
    let Need { what, table, port } = need;
    let name = format!("{what}: {} port {port}", table.to_uppercase());
    let look = format!(
        "`ss -l{}np 'sport = :{port}'` shows who it is; stop it",
        if *table == "udp" { "u" } else { "t" }
    );
    if holders.is_disjoint(own) {
        return match holders.is_empty() {
            true => Finding::fail(
                "ports",
                format!("{name} is not open"),
                "restart cidhead (`systemctl restart cidhead`) and read what it says",
            ),
            false => Finding::fail("ports", format!("{name} belongs to another program"), look),
        };
    }
    if holders.is_subset(own) {
        Finding::ok("ports", format!("{name} is ours"))
    } else {
        let text = format!("{name} is ours, and another program listens there too");
        Finding::warn("ports", text, look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cid_protocol::doctor::Level;

    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                       12: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n\
                       13: 0100007F:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0 0\n";

    #[test]
    fn ports_are_read_from_the_kernels_table() {
        assert_eq!(holders(UDP, 67), BTreeSet::from([4711]));
        assert_eq!(holders(UDP, 69), BTreeSet::from([4712]));
        assert_eq!(holders(UDP, 68), BTreeSet::new());
        assert_eq!(holders("noise\nnoise 1 2\n", 67), BTreeSet::new());
    }

    #[test]
    fn a_port_is_ours_shared_anothers_or_closed() {
        let need = Need {
            what: "TFTP",
            table: "udp",
            port: 69,
        };
        let set = |numbers: &[u64]| numbers.iter().copied().collect::<BTreeSet<u64>>();
        for (holders, level) in [
            (&[1_u64][..], Level::Ok),
            (&[1, 9], Level::Warn),
            (&[9], Level::Fail),
            (&[], Level::Fail),
        ] {
            assert_eq!(
                judge(&need, &set(holders), &set(&[1, 2])).level,
                level,
                "{holders:?}"
            );
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let table = fs::read_to_string("/proc/net/udp").expect("Linux");
        assert!(!holders(&table, port).is_disjoint(&own_sockets()));
    }
}
