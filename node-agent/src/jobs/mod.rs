//! Programs that run on this node for others: jobs are started and ended, and their frames carried between the head and the first process
//! of each. Must never run anything as root, nor outside the job's own namespaces; what it cannot confine it does not start.
//!
//! | module | holds |
//! |---|---|
//! | [`init`] | the first process of a job: this program again, as process 1 of the job's PID namespace |
//! | [`confine`] | the file systems that the job sees |
//! | [`group`] | its control group |

pub(crate) mod confine;
pub(crate) mod group;
pub(crate) mod init;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use cid_protocol::work::{MAX_CONTROL, Order, Outcome, Report, Start};
use cid_streams::{Frame, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

/// By this name the program knows that it is the first process of a job.
pub const INIT_NAME: &str = "cid-job";
/// Under this number the first process finds its socket.
pub(crate) const INIT_FD: i32 = 3;
/// Jobs on one node at a time.
const MAX_JOBS: usize = 256;
/// Bytes that may wait for one job's first process: far more than its windows allow, so that only a head that errs reaches it.
const MAX_WAITING: usize = 64 << 20;

/// Where frames for the head go; closed with the connection.
pub(crate) type ToHead = mpsc::Sender<Vec<u8>>;

/// The jobs of this node.
#[derive(Default)]
pub(crate) struct Work {
    started: u64,
    jobs: BTreeMap<u32, Job>,
}

struct Job {
    frames: UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    /// Dropped, everything of the job is killed.
    _end: oneshot::Sender<()>,
}

impl Work {
    /// Ends every job: the head is gone, or this node goes.
    pub(crate) fn end_all(&mut self) {
        self.jobs.clear();
    }

    /// Takes a frame from the head.
    pub(crate) fn handle(&mut self, frame: &Frame, head: &ToHead) {
        self.jobs.retain(|_, job| !job.frames.is_closed());
        if let Kind::Control(text) = &frame.kind
            && let Ok(Order::Start(start)) = serde_json::from_slice(text)
        {
            return self.start(frame.job, &start, text, head);
        }
        let Some(job) = self.jobs.get(&frame.job) else {
            return;
        };
        let bytes = Frame {
            job: 0,
            kind: frame.kind.clone(),
        }
        .encode();
        let waiting = job.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        if waiting > MAX_WAITING || job.frames.send(bytes).is_err() {
            self.jobs.remove(&frame.job);
        }
    }

    fn start(&mut self, number: u32, start: &Start, text: &[u8], head: &ToHead) {
        // Of a head before this one, which numbered from the beginning, too.
        self.jobs.remove(&number);
        self.started += 1;
        let folder = group::folder(number, self.started);
        let attempt = || -> Result<Begun> {
            ensure!(self.jobs.len() < MAX_JOBS, "the node has {MAX_JOBS} jobs already");
            ensure!(start.uid != 0 && start.gid != 0, "nothing runs as root");
            begin(&folder)
        };
        match attempt() {
            Ok(begun) => {
                let (end, ended) = oneshot::channel();
                let (frames, queue) = mpsc::unbounded_channel();
                let waiting = Arc::new(AtomicUsize::new(0));
                let order = Kind::Control(text.to_vec().into());
                let _ = frames.send(Frame { job: 0, kind: order }.encode());
                let (reader, writer) = begun.socket.into_split();
                tokio::spawn(feed(writer, queue, Arc::clone(&waiting)));
                let (first, count) = (start.first, start.count);
                tokio::spawn(look_after(
                    Running {
                        number,
                        folder: folder.clone(),
                        child: begun.child,
                        ranks: first..first.saturating_add(count),
                    },
                    reader,
                    head.clone(),
                    ended,
                ));
                let job = Job {
                    frames,
                    waiting,
                    _end: end,
                };
                self.jobs.insert(number, job);
            }
            Err(error) => {
                let why = format!("{error:#}");
                log!("cid-agent: job {number} is not started: {why}");
                let (head, ranks) = (head.clone(), start.first..start.first.saturating_add(start.count));
                tokio::spawn(async move { lose(number, ranks, &why, &head).await });
            }
        }
    }
}

struct Begun {
    child: Child,
    socket: UnixStream,
}

/// Starts the first process of a job.
fn begin(folder: &Path) -> Result<Begun> {
    let (ours, theirs) = StdStream::pair().context("a socket pair")?;
    ours.set_nonblocking(true).context("a socket pair")?;
    // The lab's cells have none.
    let group = match group::make(folder) {
        true => Some(group::entrance(folder)?),
        false => None,
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(INIT_NAME)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    cid_sys::descriptors::hand_on(&mut command, theirs.into(), INIT_FD);
    cid_sys::jobs::isolate(&mut command, group);
    // The thread's children, and nobody else's, are in the new namespace; its first is process 1.
    let spawn = move || -> Result<Child> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).context("a PID namespace")?;
        command.spawn().context("the job's first process")
    };
    let thread = std::thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(spawn)
        .context("a thread")?;
    let child = thread.join().map_err(|_| anyhow::anyhow!("a thread ended"))??;
    let socket = UnixStream::from_std(ours).context("a socket pair")?;
    Ok(Begun { child, socket })
}

/// Carries frames to the first process.
async fn feed(mut writer: OwnedWriteHalf, mut queue: UnboundedReceiver<Vec<u8>>, waiting: Arc<AtomicUsize>) {
    while let Some(bytes) = queue.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
        // The order that starts it was not counted.
        let _ = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            Some(waiting.saturating_sub(bytes.len()))
        });
    }
}

struct Running {
    number: u32,
    folder: PathBuf,
    child: Child,
    ranks: std::ops::Range<u32>,
}

/// Carries frames from the first process to the head, until it ends or is to end; then nothing of the job is left.
async fn look_after(
    mut job: Running,
    mut reader: OwnedReadHalf,
    head: ToHead,
    mut ended: oneshot::Receiver<()>,
) {
    let mut missing: Vec<u32> = job.ranks.clone().collect();
    loop {
        let body = tokio::select! {
            body = read_body(&mut reader) => body,
            _ = &mut ended => break,
        };
        let Some(frame) = body.and_then(|body| Frame::decode(&body).ok()) else {
            break;
        };
        if let Kind::Control(text) = &frame.kind
            && let Ok(Report::Ended { rank, .. }) = serde_json::from_slice(text)
        {
            missing.retain(|other| *other != rank);
        }
        let frame = Frame {
            job: job.number,
            kind: frame.kind,
        };
        // A head that does not listen stops the job's output, and nothing else of this node.
        let sent = tokio::select! {
            sent = head.send(frame.encode()) => sent.is_ok(),
            _ = &mut ended => false,
        };
        if !sent {
            break;
        }
    }
    let folder = job.folder;
    group::kill(&folder);
    let _ = job.child.kill();
    // It may take its time: a process in the middle of a system call.
    let _ = tokio::task::spawn_blocking(move || job.child.wait()).await;
    group::remove(&folder).await;
    let why = "its first process ended before it";
    for rank in missing {
        report(job.number, &lost(rank, why), &head).await;
    }
    report(job.number, &Report::Over, &head).await;
}

async fn lose(number: u32, ranks: std::ops::Range<u32>, why: &str, head: &ToHead) {
    for rank in ranks {
        report(number, &lost(rank, why), head).await;
    }
    report(number, &Report::Over, head).await;
}

fn lost(rank: u32, why: &str) -> Report {
    let outcome = Outcome::Lost { why: why.to_owned() };
    Report::Ended { rank, outcome }
}

async fn report(number: u32, report: &Report, head: &ToHead) {
    let Ok(text) = serde_json::to_vec(report) else {
        return;
    };
    let frame = Frame {
        job: number,
        kind: Kind::Control(text.into()),
    };
    let _ = head.send(frame.encode()).await;
}

/// One frame's body; `None` at the end.
async fn read_body(reader: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = reader.read_u32().await.ok()? as usize;
    if length > MAX_CONTROL {
        return None;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Whether this agent can confine programs: in the lab's plain cells it cannot, and says so to the head.
pub(crate) fn is_possible() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const SETUID: u64 = 1 << 7;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let wanted = SYS_ADMIN | SETUID;
    Path::new("/proc/self/ns/pid").exists() && effective.is_some_and(|all| all & wanted == wanted)
}
