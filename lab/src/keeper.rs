//! A room that stays: a process in the background holds it and does what the other commands ask over a socket in
//! the room's folder. When it ends, however it ends, the room is gone.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cidlab::{Adoption, HeadOptions, Lab, Machine, Pc, Room};
use serde::{Deserialize, Serialize};

use crate::Power;

/// Disks, keys and a head: this takes seconds.
const OPENING_LIMIT: Duration = Duration::from_secs(120);

/// What the other commands need to know of the room; `room.json` in its folder, written when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Process whose namespaces are the room's.
    target: u32,
    /// Whether a user namespace has to be entered too.
    user_namespace: bool,
}

/// One room per user.
fn folder() -> PathBuf {
    let base = std::env::var_os("CID_LAB_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    base.join(format!("cidlab-{}", rustix::process::geteuid().as_raw()))
}

fn state() -> Result<State> {
    let path = folder().join("room.json");
    let text = std::fs::read(&path).context("there is no room; `cidlab up` opens one")?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// Starts the keeper in the background and waits until the room is ready.
pub(crate) fn up(pcs: u8, images: &Path, image: &str) -> Result<()> {
    let folder = folder();
    if folder.exists() {
        ensure!(
            ask("status").is_err(),
            "a room is open already; `cidlab status` shows it, `cidlab down` closes it"
        );
        std::fs::remove_dir_all(&folder).context("removing what a dead room left")?;
    }
    let log_path = folder.with_extension("log");
    std::fs::create_dir_all(folder.parent().unwrap_or(Path::new("/")))?;
    let log = std::fs::File::create(&log_path).with_context(|| format!("making {}", log_path.display()))?;
    let images =
        std::fs::canonicalize(images).with_context(|| format!("no images in {}", images.display()))?;
    let mut keeper = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .arg("keep")
        .arg(pcs.to_string())
        .args([images.as_os_str(), image.as_ref()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the keeper")?;
    let deadline = Instant::now() + OPENING_LIMIT;
    while state().is_err() {
        if keeper.try_wait()?.is_some() || Instant::now() > deadline {
            bail!(
                "the room did not open: {}",
                std::fs::read_to_string(&log_path)?.trim()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    status()
}

/// The keeper itself: builds the room and serves requests until `down`.
pub(crate) fn keep(count: u8, images_dir: PathBuf, image: &str) -> Result<()> {
    let room = Room::start_in(folder())?;
    let options = HeadOptions {
        adoption: Adoption::ByHand,
        ..HeadOptions::new(images_dir, image)
    };
    let lab = Lab::start_in(room, &options)?;
    let kinds = [Machine::bios, Machine::uefi, Machine::uefi_secure_boot];
    let mut pcs = (0..count)
        .map(|n| lab.build(kinds[usize::from(n) % 3]()))
        .collect::<Result<Vec<Pc>>>()?;
    let dir = lab.room().dir();
    let listener = UnixListener::bind(dir.join("keeper.sock")).context("binding the keeper's socket")?;
    let state = State {
        target: lab.room().target(),
        user_namespace: !rustix::process::geteuid().is_root(),
    };
    std::fs::write(dir.join("room.json.new"), serde_json::to_vec(&state)?)?;
    std::fs::rename(dir.join("room.json.new"), dir.join("room.json"))?;
    for stream in listener.incoming() {
        let mut stream = BufReader::new(stream?);
        let mut request = String::new();
        stream.read_line(&mut request)?;
        let words: Vec<&str> = request.split_whitespace().collect();
        if words == ["down"] {
            drop(pcs);
            lab.succeeded();
            return writeln!(stream.get_mut(), "ok the room is closed").context("answering");
        }
        let answer = match serve(dir, &mut pcs, &words) {
            Ok(text) => format!("ok {text}"),
            Err(error) => format!("no {error:#}"),
        };
        // The asker may be gone; that is its business.
        let _ = writeln!(stream.get_mut(), "{answer}");
    }
    Ok(())
}

fn serve(dir: &Path, pcs: &mut [Pc], words: &[&str]) -> Result<String> {
    match words {
        ["status"] => {
            let mut text = format!("room in {}\n", dir.display());
            for pc in pcs {
                let power = if pc.is_on() { "on" } else { "off" };
                let line = format!(
                    "{:<5} {power:<3}  {}  {}\n",
                    pc.name(),
                    pc.mac(),
                    pc.machine().describe()
                );
                text.push_str(&line);
            }
            Ok(text)
        }
        ["power", name, action] => {
            let pc = pcs
                .iter_mut()
                .find(|pc| pc.name() == *name)
                .with_context(|| format!("no PC {name}"))?;
            match *action {
                "on" => pc.power_on()?,
                "off" => pc.power_off()?,
                _ => pc.reset()?,
            }
            Ok(format!(
                "{name} {action}; its screen: {}",
                pc.files().serial_log().display()
            ))
        }
        _ => bail!("not understood"),
    }
}

/// Sends a request to the keeper; returns its answer.
fn ask(request: &str) -> Result<String> {
    let path = folder().join("keeper.sock");
    let mut stream = UnixStream::connect(path).context("there is no room; `cidlab up` opens one")?;
    writeln!(stream, "{request}")?;
    let answer = std::io::read_to_string(stream)?;
    match answer.split_once(' ') {
        Some(("ok", text)) => Ok(text.trim_end().to_owned()),
        Some(("no", text)) => bail!("{}", text.trim_end()),
        _ => bail!(
            "the keeper ended; see {}",
            folder().with_extension("log").display()
        ),
    }
}

pub(crate) fn down() -> Result<()> {
    eprintln!("{}", ask("down")?);
    Ok(())
}

pub(crate) fn status() -> Result<()> {
    println!("{}", ask("status")?);
    Ok(())
}

pub(crate) fn power(name: &str, action: Power) -> Result<()> {
    let action = match action {
        Power::On => "on",
        Power::Off => "off",
        Power::Reset => "reset",
    };
    eprintln!("{}", ask(&format!("power {name} {action}"))?);
    Ok(())
}

/// Runs a command in the room's namespaces; its status is ours.
pub(crate) fn exec(words: &[String]) -> Result<ExitCode> {
    let state = state()?;
    let mut command = cidlab::room::enter(state.target, state.user_namespace);
    let own = std::env::current_exe()?;
    let programs = own.parent().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(["sh", "-c", "cd \"$0\" && exec \"$@\""])
        .arg(std::env::current_dir()?)
        .args(words)
        .env("CID_SOCKET", folder().join("head.sock"))
        .env("PATH", format!("{}:{path}", programs.display()));
    let status = command.status().context("starting nsenter")?;
    // Ended by a signal: 128 and its number, as shells report it; clap and we never use those.
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(128),
    ))
}
