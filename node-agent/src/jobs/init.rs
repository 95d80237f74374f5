//! The first process of a job on a node: process 1 of the job's PID namespace. Makes the surroundings, starts the ranks, holds the other
//! ends of their pipes, reaps, and ends; when it ends, the kernel kills what is left. Must not outlive its agent.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cid_protocol::work::{MAX_CONTROL, Order, Outcome, Program, Report, Start, Words, is_forwarded};
use cid_streams::{CHUNK, Channel, Frame, Kind, Mux, Received, StreamId, window};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::{INIT_FD, confine};

/// From SIGHUP to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the job until all of its ranks have ended and their words have left, or the agent wants an end.
///
/// # Errors
/// What kept it from starting anything; the agent tells the head.
pub fn run() -> Result<()> {
    let socket = cid_sys::descriptors::take_inherited(INIT_FD, 1)
        .ok()
        .and_then(|mut taken| taken.pop())
        .context("no socket: the agent starts this program so, people do not")?;
    // The ranks' group is then in a session that has a process outside of it: SIGTSTP stops them as it would in a shell.
    nix::unistd::setsid().context("a session")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(async {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true).context("socket")?;
        let (mut reader, writer) = UnixStream::from_std(stream).context("socket")?.into_split();
        let start = match read_order(&mut reader).await? {
            Some(Order::Start(start)) => start,
            other => bail!("{other:?} before the start"),
        };
        confine::enter().context("the job's surroundings")?;
        live(*start, reader, writer).await
    })
}

/// What the tasks share.
struct Shared {
    mux: Mutex<Mux>,
    /// Something is to be sent.
    wake: Notify,
    /// Of streams from ranks: there may be room again.
    room: BTreeMap<StreamId, Notify>,
}

impl Shared {
    fn mux(&self) -> MutexGuard<'_, Mux> {
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, report: &Report) {
        if let Ok(text) = serde_json::to_vec(report) {
            self.mux().control(text);
            self.wake.notify_one();
        }
    }
}

struct Ranks {
    shared: Arc<Shared>,
    inputs: BTreeMap<u32, mpsc::UnboundedSender<bytes::Bytes>>,
    readers: BTreeMap<StreamId, AbortHandle>,
    /// By process; a rank's process is the leader of its group.
    running: BTreeMap<i32, u32>,
}

async fn live(start: Start, reader: OwnedReadHalf, writer: OwnedWriteHalf) -> Result<()> {
    ensure!(start.uid != 0 && start.gid != 0, "nothing runs as root");
    let ranks = start.first..start.first.checked_add(start.count).context("too many ranks")?;
    let streams = ranks
        .clone()
        .flat_map(|rank| Channel::ALL.map(|channel| StreamId { rank, channel }));
    let shared = Arc::new(Shared {
        mux: Mutex::new(Mux::new(ranks.clone(), window(start.size))),
        wake: Notify::new(),
        room: streams.map(|stream| (stream, Notify::new())).collect(),
    });
    let mut job = Ranks {
        shared: Arc::clone(&shared),
        inputs: BTreeMap::new(),
        readers: BTreeMap::new(),
        running: BTreeMap::new(),
    };
    for rank in ranks {
        job.begin(&start, rank);
    }
    let writing = tokio::spawn(send(Arc::clone(&shared), writer));
    let (ends, mut ended) = mpsc::unbounded_channel();
    // It sleeps in the kernel until nobody is left.
    std::thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || reap(&ends))
        .context("a thread")?;
    let mut frames = Frames::new(reader);
    while !job.running.is_empty() {
        tokio::select! {
            Some((process, outcome)) = ended.recv() => job.handle_end(process, outcome),
            frame = frames.next() => match frame {
                Some(frame) => if !job.handle(frame) { return Ok(()) },
                // The agent is gone.
                None => return Ok(()),
            },
        }
    }
    // What ranks left behind must not keep their pipes open.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    // What they said still leaves, however slowly it is read.
    let mut flushed = writing;
    shared.wake.notify_one();
    loop {
        if job.readers.values().all(AbortHandle::is_finished) && shared.mux().is_flushed() {
            break;
        }
        tokio::select! {
            _ = &mut flushed => return Ok(()),
            frame = frames.next() => match frame {
                Some(frame) => if !job.handle(frame) { return Ok(()) },
                None => return Ok(()),
            },
            () = tokio::time::sleep(Duration::from_millis(2)) => {}
        }
    }
    Ok(())
}

impl Ranks {
    fn begin(&mut self, start: &Start, rank: u32) {
        let spawned = command(start, rank).and_then(|mut command| Ok(command.spawn()?));
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return self.not_begun(rank, &error),
        };
        self.running
            .insert(i32::try_from(child.id()).unwrap_or(i32::MAX), rank);
        if let Some(stdin) = child.stdin.take() {
            let (input, bytes) = mpsc::unbounded_channel();
            self.inputs.insert(rank, input);
            tokio::spawn(give(Arc::clone(&self.shared), rank, stdin.into(), bytes));
        }
        let outputs = [
            (Channel::Stdout, child.stdout.take().map(OwnedFd::from)),
            (Channel::Stderr, child.stderr.take().map(OwnedFd::from)),
        ];
        for (channel, output) in outputs {
            let stream = StreamId { rank, channel };
            if let Some(output) = output {
                let task = tokio::spawn(collect(Arc::clone(&self.shared), stream, output));
                self.readers.insert(stream, task.abort_handle());
            }
        }
    }

    fn not_begun(&mut self, rank: u32, error: &anyhow::Error) {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let outcome = match kind {
            Some(std::io::ErrorKind::NotFound) => Outcome::NotFound,
            _ => Outcome::NotRun {
                why: format!("{error:#}"),
            },
        };
        for channel in [Channel::Stdout, Channel::Stderr] {
            self.shared.mux().end(StreamId { rank, channel });
        }
        self.stop_input(rank);
        self.shared.report(&Report::Ended { rank, outcome });
    }

    fn stop_input(&mut self, rank: u32) {
        self.inputs.remove(&rank);
        let stdin = StreamId {
            rank,
            channel: Channel::Stdin,
        };
        self.shared.mux().stop(stdin);
        self.shared.wake.notify_one();
    }

    fn handle_end(&mut self, process: i32, outcome: Outcome) {
        if let Some(rank) = self.running.remove(&process) {
            self.stop_input(rank);
            self.shared.report(&Report::Ended { rank, outcome });
        }
    }

    /// Whether the job goes on.
    fn handle(&mut self, frame: Frame) -> bool {
        let received = self.shared.mux().handle(frame.kind);
        // Credit may have come.
        self.shared.wake.notify_one();
        match received {
            Err(_) => return false,
            Ok(None) => {}
            Ok(Some(Received::Data(stream, data))) => match self.inputs.get(&stream.rank) {
                Some(input) => drop(input.send(data)),
                None => self.shared.mux().consumed(stream, data.len()),
            },
            Ok(Some(Received::End(stream))) => drop(self.inputs.remove(&stream.rank)),
            Ok(Some(Received::Stop(stream))) => {
                // Its pipe is closed: the rank gets SIGPIPE when it says more.
                if let Some(reader) = self.readers.get(&stream) {
                    reader.abort();
                }
                self.shared.mux().end(stream);
            }
            Ok(Some(Received::Credit(_))) => {}
            Ok(Some(Received::Control(text))) => match serde_json::from_slice(&text) {
                Ok(Order::Signal { signal }) => self.signal(signal),
                Ok(Order::End) => {
                    self.signal(Signal::SIGHUP as i32);
                    self.signal(Signal::SIGCONT as i32);
                    tokio::spawn(async {
                        tokio::time::sleep(GRACE).await;
                        std::process::exit(0);
                    });
                }
                Ok(Order::Kill) | Err(_) => return false,
                Ok(Order::Start(_)) => {}
            },
        }
        true
    }

    fn signal(&self, number: i32) {
        let Some(signal) = Signal::try_from(number).ok().filter(|_| is_forwarded(number)) else {
            return;
        };
        for process in self.running.keys() {
            let _ = killpg(Pid::from_raw(*process), signal);
        }
    }
}

/// Leaves data for the agent as fast as it takes it.
async fn send(shared: Arc<Shared>, mut writer: OwnedWriteHalf) {
    loop {
        let next = shared.mux().poll_frame();
        let Some(kind) = next else {
            shared.wake.notified().await;
            continue;
        };
        let stream = match &kind {
            Kind::Data(stream, _) => Some(*stream),
            _ => None,
        };
        if writer.write_all(&Frame { job: 0, kind }.encode()).await.is_err() {
            return;
        }
        if let Some(room) = stream.and_then(|stream| shared.room.get(&stream)) {
            room.notify_one();
        }
    }
}

/// From a rank's pipe into its stream, as far as there is room.
async fn collect(shared: Arc<Shared>, stream: StreamId, output: OwnedFd) {
    let mut buffer = vec![0; CHUNK];
    if let Ok(mut pipe) = pipe::Receiver::from_owned_fd(output) {
        loop {
            let room = shared.mux().room(stream).min(CHUNK);
            let (Some(notify), Some(place)) = (shared.room.get(&stream), buffer.get_mut(..room)) else {
                break;
            };
            if room == 0 {
                notify.notified().await;
                continue;
            }
            match pipe.read(place).await {
                Ok(length @ 1..) => {
                    let data = place.get(..length).unwrap_or_default();
                    shared.mux().queue(stream, data);
                    shared.wake.notify_one();
                }
                Ok(0) | Err(_) => break,
            }
        }
    }
    shared.mux().end(stream);
    shared.wake.notify_one();
}

/// From a stream into a rank's pipe.
async fn give(
    shared: Arc<Shared>,
    rank: u32,
    input: OwnedFd,
    mut bytes: mpsc::UnboundedReceiver<bytes::Bytes>,
) {
    let stream = StreamId {
        rank,
        channel: Channel::Stdin,
    };
    let Ok(mut pipe) = pipe::Sender::from_owned_fd(input) else {
        return;
    };
    while let Some(data) = bytes.recv().await {
        let written = pipe.write_all(&data).await;
        let mut mux = shared.mux();
        match written {
            Ok(()) => mux.consumed(stream, data.len()),
            // The rank reads no more: neither does this side.
            Err(_) => mux.stop(stream),
        }
        drop(mux);
        shared.wake.notify_one();
        if written.is_err() {
            return;
        }
    }
}

fn reap(ends: &mpsc::UnboundedSender<(i32, Outcome)>) {
    loop {
        let (process, outcome) = match waitpid(None, None) {
            Ok(WaitStatus::Exited(process, status)) => (process, Outcome::Exited { status }),
            Ok(WaitStatus::Signaled(process, signal, _)) => {
                let signal = signal as i32;
                (process, Outcome::Signaled { signal })
            }
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        let _ = ends.send((process.as_raw(), outcome));
    }
}

fn command(start: &Start, rank: u32) -> Result<Command> {
    let Program {
        command,
        environment,
        folder,
        umask,
    } = &start.program;
    let words = words(command)?;
    let (name, arguments) = words.split_first().context("no command")?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .arg0(name)
        .env_clear()
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for pair in self::words(environment)? {
        let pair = pair.into_vec();
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        if let (Some(key), Some(value)) = (halves.next(), halves.next())
            && !key.is_empty()
        {
            command.env(
                OsString::from_vec(key.to_vec()),
                OsString::from_vec(value.to_vec()),
            );
        }
    }
    command
        .env("TMPDIR", "/tmp")
        .env("CID_JOB", start.job.to_string())
        .env("CID_RANK", rank.to_string())
        .env("CID_SIZE", start.size.to_string())
        .env("CID_NODES", &start.nodes);
    let folder = self::words(folder)?.pop().unwrap_or_else(|| "/tmp".into());
    let user = cid_sys::jobs::User {
        uid: start.uid,
        gid: start.gid,
        umask: umask & 0o777,
        folder: CString::new(folder.into_vec()).context("the working folder")?,
    };
    cid_sys::jobs::become_user(&mut command, user);
    Ok(command)
}

/// Reads what is behind each other with NULs between.
fn words(text: &Words) -> Result<Vec<OsString>> {
    let bytes = STANDARD.decode(text).context("words of the job")?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let word = |word: &[u8]| OsString::from_vec(word.to_vec());
    Ok(bytes.split(|byte| *byte == 0).map(word).collect())
}

/// Frames of the agent. Giving up on the next one loses nothing.
struct Frames {
    reader: OwnedReadHalf,
    bytes: Vec<u8>,
}

impl Frames {
    fn new(reader: OwnedReadHalf) -> Self {
        Self {
            reader,
            bytes: Vec::new(),
        }
    }

    /// `None` at the end, and when the agent says what it must not.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((length, rest)) = self.bytes.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_CONTROL {
                    return None;
                }
                if let Some(body) = rest.get(..length) {
                    let frame = Frame::decode(body).ok();
                    self.bytes.drain(..4 + length);
                    return frame;
                }
            }
            self.bytes.reserve(CHUNK);
            if self.reader.read_buf(&mut self.bytes).await.ok()? == 0 {
                return None;
            }
        }
    }
}

async fn read_order(reader: &mut OwnedReadHalf) -> Result<Option<Order>> {
    let body = super::read_body(reader).await.context("the agent is gone")?;
    match Frame::decode(&body)?.kind {
        Kind::Control(text) => Ok(serde_json::from_slice(&text)?),
        _ => Ok(None),
    }
}
