//! What went through the membership's door, counted so that it adds up: every datagram that our sockets gave us ended in exactly one
//! of the counters, and those that found a socket's queue full are the kernel's count. Must never count by guess.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock;

/// Counters of the door, and which sockets it has.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    opened: AtomicU64,
    beacons: AtomicU64,
    beacons_again: AtomicU64,
    datagrams_in: AtomicU64,
    bytes_in: AtomicU64,
    datagrams_out: AtomicU64,
    bytes_out: AtomicU64,
    /// Their inodes, by which the kernel's table names them.
    sockets: Mutex<BTreeSet<u64>>,
}

/// What one read of a socket came to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Datagrams, of any kind.
    pub(super) received: u64,
    /// Sealed ones and their bytes, opened or not.
    pub(super) sealed: (u64, u64),
    /// Those of them that a member sealed, which went on to the membership.
    pub(super) opened: u64,
    /// Beacons with something new.
    pub(super) beacons: u64,
    /// Beacons that were heard before: each comes twice, by group and by unicast.
    pub(super) beacons_again: u64,
}

impl Traffic {
    pub(super) fn count_in(&self, tally: &Tally) {
        let counts = [
            (&self.received, tally.received),
            (&self.opened, tally.opened),
            (&self.beacons, tally.beacons),
            (&self.beacons_again, tally.beacons_again),
            (&self.datagrams_in, tally.sealed.0),
            (&self.bytes_in, tally.sealed.1),
        ];
        for (counter, count) in counts {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn count_out(&self, bytes: usize) {
        self.datagrams_out.fetch_add(1, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// This socket is one of the door's.
    pub(super) fn watch(&self, inode: u64) {
        lock(&self.sockets).insert(inode);
    }

    /// Name and count of what is sealed, bytes without IP and UDP.
    pub fn all(&self) -> [(&'static str, u64); 4] {
        [
            ("datagrams-in", &self.datagrams_in),
            ("bytes-in", &self.bytes_in),
            ("datagrams-out", &self.datagrams_out),
            ("bytes-out", &self.bytes_out),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// What became of every datagram that came: `received` is the sum of the other three and of those that were dropped for a
    /// reason of ours; `socket-full` never came so far.
    pub fn door(&self) -> Vec<(&'static str, u64)> {
        let counts = [
            ("received", &self.received),
            ("opened", &self.opened),
            ("beacons", &self.beacons),
            ("beacons-again", &self.beacons_again),
        ];
        let counts = counts.map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        // Not known is not the same as none.
        let full = self.socket_full().map(|count| ("socket-full", count));
        counts.into_iter().chain(full).collect()
    }

    fn socket_full(&self) -> Option<u64> {
        let table = std::fs::read_to_string("/proc/net/udp").ok()?;
        Some(drops_of(&table, &lock(&self.sockets)))
    }
}

/// Datagrams that found these sockets' queues full, in the text of `/proc/net/udp`: the last column, the socket's inode being the tenth.
fn drops_of(table: &str, sockets: &BTreeSet<u64>) -> u64 {
    let drops = |line: &str| -> Option<u64> {
        let mut columns = line.split_ascii_whitespace().skip(9);
        let inode = columns.next()?.parse().ok()?;
        let drops = columns.last()?.parse().ok()?;
        sockets.contains(&inode).then_some(drops)
    };
    table.lines().filter_map(drops).sum()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_finds_a_queue_full_is_counted_by_the_kernel_for_our_sockets_alone() {
        let [ours, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        socket2::SockRef::from(&ours).set_recv_buffer_size(1).unwrap();
        let inode = |socket: &UdpSocket| {
            let file = std::fs::File::from(OwnedFd::from(socket.try_clone().unwrap()));
            file.metadata().unwrap().ino()
        };
        let traffic = Traffic::default();
        traffic.watch(inode(&ours));
        assert_eq!(traffic.socket_full(), Some(0));
        for _ in 0..100 {
            other.send_to(&[0; 1000], ours.local_addr().unwrap()).unwrap();
        }
        let mut taken = 0;
        ours.set_nonblocking(true).unwrap();
        while ours.recv(&mut [0; 1000]).is_ok() {
            taken += 1;
        }
        assert_eq!(traffic.socket_full(), Some(100 - taken));
        assert!(taken < 100, "the queue was never full");
        let of_other = Traffic::default();
        of_other.watch(inode(&other));
        assert_eq!(of_other.socket_full(), Some(0));
    }
}
