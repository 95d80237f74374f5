//! Services as processes: started inside the root, their words in this node's log, ended with all that they started. When they
//! are started is decided in [`super::services`].

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use cid_protocol::services::{SERVICES_PATH, SERVICES_VERSION, Service};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::mount::ROOT;
use super::services::{End, MAX_SERVICES, Services};
use super::users;

/// Control groups of services, below that of everything.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup/cid-services";
/// Longest list of services, in bytes.
const MAX_LIST: u64 = 256 * 1024;
/// Longest line of a service that is written down, in bytes.
const MAX_LINE: usize = 400;
/// Lines of one service in a minute; the rest is counted.
const LINES_A_MINUTE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

/// What root may do inside: what containers commonly leave it. Without SYS_ADMIN it mounts nothing, without SYS_MODULE it loads
/// nothing, without SYS_RAWIO, MKNOD and SYS_BOOT it gets at no device and does not restart the PC, without SYS_PTRACE and
/// DAC_READ_SEARCH it looks at no file or process outside.
const CAPABILITIES: [u32; 16] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    13, // NET_RAW
    14, // IPC_LOCK: registered memory of fast networks
    18, // SYS_CHROOT: sshd
    23, // SYS_NICE
    24, // SYS_RESOURCE: limits of sessions
    29, // AUDIT_WRITE: sshd
    31, // SETFCAP
];

/// What a program of the root is started with.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Absolute path in the root, and arguments.
    pub(crate) command: Vec<String>,
    pub(crate) user: String,
    pub(crate) environment: Vec<(String, String)>,
    /// Of [`control_group`].
    pub(crate) control_group: Option<PathBuf>,
}

/// A command that lives inside the root: services are started so, and so will jobs be.
///
/// # Errors
/// When there is no such user in the root, or the command is empty.
pub(crate) fn inside(program: Program) -> Result<Command> {
    let read = |name: &str| fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_default();
    let user = users::find(&program.user, &read("etc/passwd"), &read("etc/group"))
        .with_context(|| format!("the image has no user {:?}", program.user))?;
    let (name, arguments) = program.command.split_first().context("no command")?;
    let control_group = program.control_group.map(|folder| join_control_group(&folder));
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", &user.home)
        .env("USER", &program.user)
        .env("LANG", "C.UTF-8")
        .envs(program.environment)
        .process_group(0);
    let entry = cid_sys::root::Entry {
        root: CString::new(ROOT)?,
        folder: CString::new("/")?,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        capabilities: CAPABILITIES.iter().fold(0, |all, number| all | 1 << number),
        control_group: control_group.transpose()?,
    };
    cid_sys::root::enter(&mut command, entry);
    Ok(command)
}

fn join_control_group(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

/// Ends every process of a control group, if there is one.
pub(super) fn end_all(folder: &Path) {
    let _ = fs::write(folder.join("cgroup.kill"), "1");
}

/// What the image lists.
///
/// # Errors
/// When the list cannot be read, or is of a newer kind than this node knows.
pub(crate) fn list() -> Result<cid_protocol::services::Services> {
    use std::io::Read;
    let path = Path::new(ROOT).join(SERVICES_PATH.trim_start_matches('/'));
    let empty = cid_protocol::services::Services {
        version: SERVICES_VERSION,
        services: Vec::new(),
        mounts: Vec::new(),
        health: Vec::new(),
        process: None,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(empty),
        Err(error) => return Err(error).with_context(|| format!("open {SERVICES_PATH} of the image")),
    };
    let mut text = String::new();
    file.take(MAX_LIST)
        .read_to_string(&mut text)
        .with_context(|| format!("read {SERVICES_PATH} of the image"))?;
    let list: cid_protocol::services::Services =
        serde_json::from_str(&text).with_context(|| format!("{SERVICES_PATH} of the image"))?;
    anyhow::ensure!(
        list.version <= SERVICES_VERSION,
        "{SERVICES_PATH} of the image is of version {}, and this node knows {SERVICES_VERSION}: build the image anew",
        list.version
    );
    Ok(list)
}

/// Starts the services and keeps them running, without an end. `started` is what deadlines count from.
pub(crate) async fn keep(services: Vec<Service>, started: Instant) {
    // An agent before this one may have left some.
    for entry in fs::read_dir(CONTROL_GROUPS).into_iter().flatten().flatten() {
        end_all(&entry.path());
    }
    if services.len() > MAX_SERVICES {
        log!(
            "cid-agent: the image lists {} services; {MAX_SERVICES} are started",
            services.len()
        );
    }
    let (ends, mut ended) = mpsc::channel(MAX_SERVICES);
    let mut core = Services::new(started.elapsed(), services);
    loop {
        while let Some(service) = core.poll_start(started.elapsed()) {
            start(&service, ends.clone());
        }
        let next = core
            .next_deadline()
            .map_or_else(|| Instant::now() + MINUTE, |deadline| started + deadline);
        tokio::select! {
            Some((name, end, how)) = ended.recv() => {
                let again = core.handle_end(started.elapsed(), &name, end);
                let again = again.map_or_else(
                    || "it stays down".to_owned(),
                    |delay| format!("started again in {} s", delay.as_secs()),
                );
                log!("cid-agent: service {name} {how}; {again}");
            }
            () = sleep_until(next) => {}
        }
    }
}

type Ended = (String, End, String);

fn start(service: &Service, ends: mpsc::Sender<Ended>) {
    let name = service.name.clone();
    let group = Path::new(CONTROL_GROUPS).join(&name);
    end_all(&group);
    let program = Program {
        command: service.command.clone(),
        user: service.user.clone(),
        environment: service.environment.clone().into_iter().collect(),
        control_group: Some(group.clone()),
    };
    match spawn(program) {
        Ok((mut child, output)) => {
            tokio::spawn(listen(name.clone(), output));
            // A thread that sleeps in the kernel; PID 1 reaps only what is its own child.
            tokio::task::spawn_blocking(move || {
                let (end, how) = match child.wait() {
                    Ok(status) if status.success() => (End::Well, "ended".to_owned()),
                    Ok(status) => (End::Badly, format!("ended with {status}")),
                    Err(error) => (End::Badly, format!("is lost: {error}")),
                };
                // What it started must not outlive it.
                end_all(&group);
                let _ = ends.blocking_send((name, end, how));
            });
        }
        Err(error) => {
            let how = format!("does not start: {error:#}");
            let _ = ends.try_send((name, End::Badly, how));
        }
    }
}

/// Starts a program in the root; its words come out of the pipe.
///
/// # Errors
/// It does not start.
pub(super) fn spawn(program: Program) -> Result<(std::process::Child, pipe::Receiver)> {
    let name = program.command.first().cloned().unwrap_or_default();
    let mut command = inside(program)?;
    let (reader, writer) = std::io::pipe().context("a pipe for its words")?;
    let reader = OwnedFd::from(reader);
    let reader = pipe::Receiver::from_owned_fd(reader).context("a pipe for its words")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("a pipe for its words")?)
        .stderr(writer);
    let child = command.spawn().with_context(|| name)?;
    Ok((child, reader))
}

/// Writes a service's words down, line by line, as many as a person could read.
async fn listen(name: String, mut output: pipe::Receiver) {
    let (mut line, mut buffer) = (Vec::new(), [0_u8; 1024]);
    let (mut minute, mut lines, mut dropped) = (Instant::now(), 0, 0_u32);
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        for byte in buffer.get(..length).unwrap_or_default() {
            if *byte != b'\n' {
                if line.len() < MAX_LINE {
                    line.push(*byte);
                }
                continue;
            }
            if minute.elapsed() >= MINUTE {
                if dropped > 0 {
                    log!("cid-agent: service {name}: {dropped} lines left out");
                }
                (minute, lines, dropped) = (Instant::now(), 0, 0);
            }
            let text = String::from_utf8_lossy(&line)
                .replace(|letter: char| letter.is_control(), " ")
                .trim()
                .to_owned();
            line.clear();
            if lines < LINES_A_MINUTE {
                lines += 1;
                log!("cid-agent: service {name}: {text}");
            } else {
                dropped += 1;
            }
        }
    }
}
