//! Sockets kept over a restart by the service manager (systemd's file descriptor store, sd_notify(3) `FDSTORE=1`,
//! `FileDescriptorStoreMax=` in the unit). Must not know what travels through them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cid_bootserver::keep::SocketKeeper;
use sd_notify::NotifyState;
use socket2::Socket;

/// First descriptor that a service manager hands over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// What an earlier life of this process left with the service manager.
#[derive(Debug, Default)]
pub struct Kept(RefCell<BTreeMap<String, OwnedFd>>);

impl Kept {
    /// Takes what the service manager handed over. Call it once, before this process opens any file.
    ///
    /// # Errors
    /// The environment announces descriptors that are not there.
    pub fn inherit() -> io::Result<Self> {
        let names: Vec<String> = sd_notify::listen_fds_with_names()?
            .map(|(_, name)| name)
            .collect();
        if names.is_empty() {
            return Ok(Self::default());
        }
        let count = u16::try_from(names.len()).map_err(io::Error::other)?;
        let descriptors = cid_sys::descriptors::take_inherited(FIRST, count)?;
        Ok(Self(RefCell::new(names.into_iter().zip(descriptors).collect())))
    }

    /// Closes all of them: what waits in a socket after a long time is of no use to anybody.
    pub fn discard(&self) {
        let names: Vec<String> = self.0.borrow_mut().split_off("").into_keys().collect();
        for name in names {
            forget(&name);
        }
    }

    /// How many have not been asked for.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SocketKeeper for Kept {
    fn socket(&self, name: &str, bind: &dyn Fn() -> io::Result<Socket>) -> io::Result<Socket> {
        let kept = self.0.borrow_mut().remove(name).map(Socket::from);
        if let Some(socket) = kept {
            if usable(&socket) {
                tracing::info!(name, "socket kept from before");
                return Ok(socket);
            }
            forget(name);
        }
        let socket = bind()?;
        let words = [NotifyState::FdStore, NotifyState::FdName(name)];
        if let Err(error) = sd_notify::notify_with_fds(&words, &[socket.as_fd()]) {
            // The head works without; only a restart is then noticed by its clients.
            tracing::warn!(name, %error, "the service manager does not keep this socket over a restart");
        }
        Ok(socket)
    }
}

/// A socket whose interface has gone and come back is bound to one that is no more.
fn usable(socket: &Socket) -> bool {
    socket.local_addr().is_ok() && socket.device().is_ok() && socket.set_nonblocking(true).is_ok()
}

fn forget(name: &str) {
    let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn bound() -> io::Result<Socket> {
        UdpSocket::bind("127.0.0.1:0").map(Socket::from)
    }

    #[test]
    fn a_kept_socket_is_given_out_once_and_only_under_its_name() {
        let first = bound().expect("binds");
        let address = first.local_addr().expect("bound");
        let kept = Kept(RefCell::new(BTreeMap::from([(
            "tftp.a".to_owned(),
            first.into(),
        )])));
        let other = kept.socket("tftp.b", &bound).expect("binds");
        assert_ne!(other.local_addr().expect("bound"), address);
        let same = kept.socket("tftp.a", &bound).expect("kept");
        assert_eq!(same.local_addr().expect("bound"), address);
        let again = kept.socket("tftp.a", &bound).expect("binds");
        assert_ne!(again.local_addr().expect("bound"), address);
        assert!(kept.is_empty());
    }

    #[test]
    fn what_was_discarded_is_bound_anew() {
        let first = bound().expect("binds");
        let address = first.local_addr().expect("bound");
        let kept = Kept(RefCell::new(BTreeMap::from([(
            "tftp.a".to_owned(),
            first.into(),
        )])));
        kept.discard();
        let anew = kept.socket("tftp.a", &bound).expect("binds");
        assert_ne!(anew.local_addr().expect("bound"), address);
    }
}
