//! What survives the head: leases, machines, events, in one SQLite file. Must never acknowledge what is not on disk.
//!
//! One thread writes. It takes whatever is queued, puts it into one transaction, and completes everybody who waits
//! once that is committed (WAL, `synchronous=FULL`: the log is synchronised before the commit returns). While the
//! disk works the queue fills, so under load a commit carries many; one write alone waits for nobody.

mod members;
mod schema;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use cid_bootserver::dhcp::leases::LeaseRecord as Lease;
use cid_discovery::history::Change;
use cid_protocol::api::Event;
use cid_protocol::trace::Step;
pub use members::Cluster;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::mac::Mac;
use crate::registry::{Credential, GroupRecord, ImagesRecord, Record};

/// File in the state folder.
pub const FILE: &str = "cid.db";
/// Requests that may wait for the disk.
const QUEUE: usize = 8_192;
/// Most requests in one transaction.
const BATCH: usize = 1_024;
/// How long what nobody waits for may stay in memory.
const LAZY: Duration = Duration::from_secs(5);

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Insert or replace a machine.
    Machine(Box<Record>),
    /// Remove a machine.
    ForgetMachine(Mac),
    /// Insert or replace a machine's lease; another machine's lease of the same address goes.
    Lease(Lease),
    /// Append an event; its `seq` is given by the database.
    Event(Event),
    /// Append a step to a machine's timeline, or to everybody's.
    Step(Option<Mac>, Box<Step>),
    /// Replace what is kept of a group.
    Group(String, GroupRecord),
    /// Replace what is kept of images.
    Images(Box<ImagesRecord>),
    /// Insert or replace a machine's credential.
    Credential(Mac, Box<Credential>),
    /// Replace what makes this head the same head to its members.
    Cluster(Box<Cluster>),
    /// Put a change at its place in the history.
    Change(u32, Box<Change>),
    /// Drop the history from this place on.
    CutHistory(u32),
}

/// Why the database cannot be used; each is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or lock file cannot be made.
    #[error(
        "cannot use the state folder {path}: {source}; check `state_dir` in head.toml and its permissions"
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another head holds it.
    #[error("another cidhead runs on {0}; stop it first (`systemctl stop cidhead`)")]
    Held(PathBuf),
    /// A newer version wrote it.
    #[error(
        "{0} was written by a newer cidhead; install that version, or restore the copy made before the upgrade"
    )]
    Newer(PathBuf),
    /// It is damaged.
    #[error("{path} is damaged ({detail}); move it away to start empty, or restore a copy")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// It cannot be opened or read.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Too much waits for the disk. Nothing was written.
    #[error("the disk does not keep up: {QUEUE} writes are waiting")]
    Overloaded,
    /// A commit failed, or the writer is gone. Nothing of it was written.
    #[error("cannot write the database: {0}")]
    Commit(String),
}

/// What was on disk when it was opened.
#[derive(Debug, Default)]
pub struct Contents {
    /// Every machine.
    pub machines: Vec<Record>,
    /// Every lease, expired ones too.
    pub leases: Vec<Lease>,
    /// Steps of timelines, oldest first.
    pub steps: Vec<(Option<Mac>, Step)>,
    /// What is kept of groups.
    pub groups: Vec<(String, GroupRecord)>,
    /// What is kept of images.
    pub images: ImagesRecord,
    /// The certificates in force, and what is kept of those that were.
    pub credentials: Vec<(Mac, Credential)>,
    /// Who this head is to its members; `None` until it was one.
    pub cluster: Option<Cluster>,
    /// The history since its epoch began, in order.
    pub history: Vec<Change>,
}

/// A write that is on its way. Dropping it does not undo the write.
#[must_use = "nothing may be acknowledged before this says so"]
pub struct Commit(oneshot::Receiver<Result<(), String>>);

impl Commit {
    /// Waits until the write is on disk.
    ///
    /// # Errors
    /// [`StoreError::Commit`]: it is not, and the caller must not acknowledge it.
    pub async fn done(self) -> Result<(), StoreError> {
        self.0
            .await
            .unwrap_or_else(|_| Err("the writer has stopped".to_owned()))
            .map_err(StoreError::Commit)
    }

    /// The same from a thread without a runtime.
    ///
    /// # Errors
    /// As [`Commit::done`].
    pub fn wait(self) -> Result<(), StoreError> {
        self.0
            .blocking_recv()
            .unwrap_or_else(|_| Err("the writer has stopped".to_owned()))
            .map_err(StoreError::Commit)
    }
}

struct Request {
    writes: Vec<Write>,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// The open database. Clones share it; it closes when the last is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
    reader: Mutex<Connection>,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Closing the queue ends the writer once it has written everything.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store {
    /// Opens or makes `cid.db` in `folder`, alone.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing was changed but for a finished migration.
    pub fn open(folder: &Path) -> Result<(Self, Contents), StoreError> {
        let in_folder = |source| StoreError::Folder {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(in_folder)?;
        let lock_file = File::create(folder.join("cid.lock")).map_err(in_folder)?;
        let lock = match Flock::lock(lock_file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(StoreError::Held(folder.to_owned())),
            Err((_, errno)) => return Err(in_folder(errno.into())),
        };
        let path = folder.join(FILE);
        private(&path).map_err(in_folder)?;
        let mut writer = connect(&path)?;
        prepare(&path, &mut writer)?;
        let read = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let contents = Contents {
            machines: schema::machines(&writer).map_err(read)?,
            leases: schema::leases(&writer).map_err(read)?,
            steps: schema::steps(&writer).map_err(read)?,
            groups: schema::groups(&writer).map_err(read)?,
            images: schema::images(&writer).map_err(read)?,
            credentials: schema::credentials(&writer).map_err(read)?,
            cluster: members::cluster(&writer).map_err(read)?,
            history: members::history(&writer).map_err(read)?,
        };
        let reader = connect(&path)?;
        let (queue, requests) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("store".to_owned());
        let writer = thread
            .spawn(move || write_loop(writer, &requests))
            .map_err(in_folder)?;
        let inner = Inner {
            queue: Some(queue),
            writer: Some(writer),
            reader: Mutex::new(reader),
            path,
            _lock: lock,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            contents,
        ))
    }

    /// Queues changes as one unit, in order with all others, and says when they are on disk. Never blocks.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`]: nothing was queued.
    pub fn submit(&self, writes: Vec<Write>) -> Result<Commit, StoreError> {
        let (done, receiver) = oneshot::channel();
        self.send(Request {
            writes,
            done: Some(done),
        })?;
        Ok(Commit(receiver))
    }

    /// Queues changes that nobody waits for; machines written again in the meantime are written once.
    pub fn submit_lazily(&self, writes: Vec<Write>) {
        // Lost on overload: that is what "lazily" allows.
        let _ = self.send(Request { writes, done: None });
    }

    fn send(&self, request: Request) -> Result<(), StoreError> {
        let Some(queue) = &self.inner.queue else {
            return Err(StoreError::Overloaded);
        };
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => StoreError::Commit("the writer has stopped".to_owned()),
        })
    }

    /// Looks for damage. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or [`StoreError::Open`] when the file cannot be read.
    pub fn check(&self) -> Result<(), StoreError> {
        let reader = self
            .inner
            .reader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        check(&self.inner.path, &reader)
    }

    /// Events behind `after`, oldest first; with `after` absent the newest ones. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Open`]: the file cannot be read.
    pub fn events(&self, after: Option<u64>, limit: u32) -> Result<Vec<Event>, StoreError> {
        let reader = self
            .inner
            .reader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = match after {
            Some(after) => schema::events(&reader, after, limit),
            None => schema::last_events(&reader, limit),
        };
        found.map_err(|source| StoreError::Open {
            path: self.inner.path.clone(),
            source,
        })
    }
}

/// The group key is in it: nobody else reads it. SQLite gives the files beside it the same mode.
fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |source| classify(path, source);
    let connection = Connection::open_with_flags(path, flags).map_err(open)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(open)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(open)?;
    // FULL: the write-ahead log is synchronised at every commit, so a commit outlives a power cut.
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(open)?;
    Ok(connection)
}

fn classify(path: &Path, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged {
                path: path.to_owned(),
                detail: source.to_string(),
            }
        }
        _ => StoreError::Open {
            path: path.to_owned(),
            source,
        },
    }
}

/// Looks for damage.
fn check(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| classify(path, error))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: verdict,
        });
    }
    Ok(())
}

/// Checks for damage and brings the tables up to this version.
fn prepare(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    check(path, connection)?;
    schema::migrations()
        .to_latest(connection)
        .map_err(|error| match error {
            rusqlite_migration::Error::MigrationDefinition(
                rusqlite_migration::MigrationDefinitionError::DatabaseTooFarAhead,
            ) => StoreError::Newer(path.to_owned()),
            rusqlite_migration::Error::RusqliteError { err, .. } => classify(path, err),
            other => StoreError::Damaged {
                path: path.to_owned(),
                detail: other.to_string(),
            },
        })
}

/// Changes of machines that nobody waits for, and when they must be written.
#[derive(Default)]
struct Lazy {
    records: BTreeMap<Mac, Box<Record>>,
    due: Option<Instant>,
}

impl Lazy {
    /// Sorts requests: changes to be written now, and who waits for them.
    fn sort(&mut self, batch: Vec<Request>) -> (Vec<Write>, Vec<oneshot::Sender<Result<(), String>>>) {
        let mut writes = Vec::new();
        let mut waiting = Vec::new();
        for Request { writes: asked, done } in batch {
            for write in asked {
                match write {
                    Write::Machine(record) if done.is_none() => {
                        self.records.insert(record.mac, record);
                        self.due.get_or_insert_with(|| Instant::now() + LAZY);
                        continue;
                    }
                    // What is written now is newer than what waits in memory.
                    Write::Machine(ref record) => drop(self.records.remove(&record.mac)),
                    Write::ForgetMachine(mac) => drop(self.records.remove(&mac)),
                    Write::Lease(_)
                    | Write::Event(_)
                    | Write::Step(..)
                    | Write::Group(..)
                    | Write::Images(_)
                    | Write::Credential(..)
                    | Write::Cluster(_)
                    | Write::Change(..)
                    | Write::CutHistory(_) => {}
                }
                writes.push(write);
            }
            waiting.extend(done);
        }
        (writes, waiting)
    }
}

fn write_loop(mut connection: Connection, requests: &Receiver<Request>) {
    let mut lazy = Lazy::default();
    loop {
        let wait = lazy.due.map_or(Duration::from_secs(3_600), |due| {
            due.saturating_duration_since(Instant::now())
        });
        let mut batch = Vec::new();
        let closed = match requests.recv_timeout(wait) {
            Ok(request) => {
                batch.push(request);
                batch.extend(requests.try_iter().take(BATCH - 1));
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        let (mut writes, waiting) = lazy.sort(batch);
        if closed || !waiting.is_empty() || lazy.due.is_some_and(|due| due <= Instant::now()) {
            lazy.due = None;
            writes.extend(
                std::mem::take(&mut lazy.records)
                    .into_values()
                    .map(Write::Machine),
            );
        }
        if !writes.is_empty() || !waiting.is_empty() {
            let result = commit(&mut connection, &writes).map_err(|error| error.to_string());
            if let Err(error) = &result {
                tracing::error!(%error, writes = writes.len(), "nothing of this batch is on disk");
            }
            for done in waiting {
                let _ = done.send(result.clone());
            }
        }
        if closed {
            return;
        }
    }
}

fn commit(connection: &mut Connection, writes: &[Write]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for write in writes {
        match write {
            Write::Machine(record) => schema::put_machine(&transaction, record)?,
            Write::ForgetMachine(mac) => schema::forget_machine(&transaction, *mac)?,
            Write::Lease(lease) => schema::put_lease(&transaction, lease)?,
            Write::Event(event) => schema::put_event(&transaction, event)?,
            Write::Step(about, step) => schema::put_step(&transaction, *about, step)?,
            Write::Group(name, group) => schema::put_group(&transaction, name, group)?,
            Write::Images(images) => schema::put_images(&transaction, images)?,
            Write::Credential(mac, credential) => schema::put_credential(&transaction, *mac, credential)?,
            Write::Cluster(cluster) => members::put_cluster(&transaction, cluster)?,
            Write::Change(place, change) => members::put_change(&transaction, *place, change)?,
            Write::CutHistory(place) => members::cut_history(&transaction, *place)?,
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests;
