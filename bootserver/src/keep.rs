//! Sockets that outlive the process that bound them: while a killed head starts again its clients' packets wait in the
//! sockets, instead of being answered with "port unreachable", which firmware takes for the end of its boot.
//! Must not know who keeps them.

use std::io;

use socket2::Socket;

/// Who may have a socket from an earlier life of this process.
pub trait SocketKeeper {
    /// The kept socket of this name, else the one that `bind` makes, which is kept from now on. A name holds everything that
    /// the socket is bound to: another address or interface is another name.
    ///
    /// # Errors
    /// What `bind` says.
    fn socket(&self, name: &str, bind: &dyn Fn() -> io::Result<Socket>) -> io::Result<Socket>;
}

/// Keeps nothing: each socket is bound anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKeeper;

impl SocketKeeper for NoKeeper {
    fn socket(&self, _name: &str, bind: &dyn Fn() -> io::Result<Socket>) -> io::Result<Socket> {
        bind()
    }
}
