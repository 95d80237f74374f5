//! The part of a service manager that the head counts on: it keeps the head's sockets while the head is dead, as systemd's
//! file descriptor store does (sd_notify(3) `FDSTORE=1`), and hands them to the next one (`LISTEN_FDS`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// First descriptor that a service manager hands over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// What this manager tells itself, to know that everything said before it has been heard.
const HEARD: &[u8] = b"HEARD=1";
/// As in the unit (`FileDescriptorStoreMax=`).
const MOST: usize = 32;

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// Keeps sockets for one head.
#[derive(Debug)]
pub(crate) struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    store: Store,
    heard: Mutex<Receiver<()>>,
    reader: Option<JoinHandle<()>>,
}

impl Manager {
    /// Listens for notifications in `folder`.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let path = folder.join("notify.sock");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        let store = Store::default();
        let (theirs, into) = (socket.try_clone()?, Arc::clone(&store));
        let (tell, heard) = channel();
        let reader = std::thread::spawn(move || while receive(&theirs, &into, &tell).is_some() {});
        Ok(Self {
            path,
            socket,
            store,
            heard: Mutex::new(heard),
            reader: Some(reader),
        })
    }

    /// Makes `command`, which must end in a program and its arguments, find this manager and what it keeps.
    /// `command` is built anew around the program: `LISTEN_PID` is the program's own number in its PID namespace.
    pub(crate) fn introduce(&self, command: &mut Command) -> Result<()> {
        self.hear_all()?;
        command.env("NOTIFY_SOCKET", &self.path);
        let kept = lock(&self.store);
        if kept.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        command
            .env("LISTEN_FDS", kept.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        // Away from the numbers that they are to have, or one could overwrite another that is yet to be copied.
        for (number, (_, descriptor)) in (FIRST..).zip(kept.iter()) {
            let copy = rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), 100)?;
            cid_sys::descriptors::hand_on(command, copy, number);
        }
        Ok(())
    }

    /// Lets go of everything, as systemd does when a service is stopped for good. To be called when the service is dead: what it said
    /// last may hold sockets, too.
    pub(crate) fn release(&self) -> Result<()> {
        self.hear_all()?;
        lock(&self.store).clear();
        Ok(())
    }

    /// Waits until all is heard that was said before now.
    fn hear_all(&self) -> Result<()> {
        UnixDatagram::unbound()?
            .send_to(HEARD, &self.path)
            .context("asking the service manager")?;
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.recv().context("the service manager has ended")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Wakes the reader.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn lock(store: &Store) -> std::sync::MutexGuard<'_, Vec<(String, OwnedFd)>> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one notification; `None` when the socket is shut down.
fn receive(socket: &UnixDatagram, store: &Store, heard: &Sender<()>) -> Option<()> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    if received.bytes == 0 {
        return None;
    }
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let text = text.get(..received.bytes)?;
    if text == HEARD {
        return heard.send(()).ok();
    }
    let text = String::from_utf8_lossy(text);
    let has = |word: &str| text.lines().any(|line| line == word);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut kept = lock(store);
    if has("FDSTOREREMOVE=1") {
        kept.retain(|(known, _)| Some(known.as_str()) != name);
    } else if has("FDSTORE=1") {
        let name = name.unwrap_or("stored");
        let room = MOST.saturating_sub(kept.len());
        kept.extend(
            descriptors
                .into_iter()
                .take(room)
                .map(|one| (name.to_owned(), one)),
        );
    }
    Some(())
}
