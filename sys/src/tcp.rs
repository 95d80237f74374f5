//! What the kernel counts of a TCP connection, by `TCP_INFO` (linux/tcp.h). Must not draw conclusions from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Counts of one connection since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// Smoothed round-trip time, in microseconds.
    pub round_trip_us: u32,
    /// Segments sent again (`tcpi_total_retrans`).
    pub retransmitted: u32,
    /// Segments with data that were sent, repeated ones included (`tcpi_data_segs_out`).
    pub data_segments: u32,
}

/// The first 160 bytes of `struct tcp_info` as words; it only ever grows at its end. libc's own type ends before the counts
/// of segments.
const WORDS: usize = 40;
/// Behind eight bytes of small fields come `tcpi_rto` and fourteen other words of 32 bits.
const RTT: usize = 2 + 15;
const TOTAL_RETRANS: usize = 2 + 23;
/// Four counts of 64 bits (`tcpi_pacing_rate` …) and `segs_out`, `segs_in`, `notsent_bytes`, `min_rtt`, `data_segs_in` stand between.
const DATA_SEGS_OUT: usize = TOTAL_RETRANS + 1 + 8 + 5;

/// Asks the kernel.
///
/// # Errors
/// `ENOTSUP`/`ENOPROTOOPT` for what is no TCP socket; `InvalidData` from a kernel before 4.6, which counts less.
pub fn info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut words = [0_u32; WORDS];
    let mut length = libc::socklen_t::try_from(size_of_val(&words)).unwrap_or(0);
    // SAFETY: the descriptor is borrowed and open; the kernel writes at most `length` bytes, the size of `words`, and says in
    // `length` how many. Every bit pattern is a valid u32. nix and rustix have no TCP_INFO.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    super::check(result.into())?;
    if (length as usize) < (DATA_SEGS_OUT + 1) * size_of::<u32>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(TcpInfo {
        round_trip_us: words[RTT],
        retransmitted: words[TOTAL_RETRANS],
        data_segments: words[DATA_SEGS_OUT],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn segments_are_counted_and_other_sockets_have_none() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut near = TcpStream::connect(listener.local_addr()?)?;
        let (mut far, _) = listener.accept()?;
        near.set_nodelay(true)?;
        let before = info(&near)?;
        let mut byte = [0];
        for _ in 0..7 {
            near.write_all(&[1])?;
            far.read_exact(&mut byte)?;
        }
        let after = info(&near)?;
        assert_eq!(after.data_segments - before.data_segments, 7);
        assert_eq!(after.retransmitted, 0);
        // Loopback: more than nothing, less than a second.
        assert!((1..1_000_000).contains(&after.round_trip_us), "{after:?}");
        assert_eq!(info(&far)?.data_segments, 0);
        assert!(info(&UdpSocket::bind("127.0.0.1:0")?).is_err());
        Ok(())
    }
}
