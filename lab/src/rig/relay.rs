//! A stretch of wire between one PC of the rig and the head's HTTP server that damages bytes as a bad cable or switch would if it
//! mended the checksums behind it: of a chunk of a root image one bit is another. Must not touch anything else that it carries.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cell::KERNEL_RULES;
use super::{Agent, PREFIX, Rig};
use crate::head::program;
use crate::room::{HEAD_ADDRESS, Host};

/// Its own address; none that the head gives out.
const ADDRESS: &str = "10.77.0.8";
const HTTP: u16 = 80;
/// The answer's head is shorter than this, and a chunk longer.
const INTO_THE_CHUNK: usize = 8192;
/// What it says when it listens.
const READY: &str = "relay ready";

/// The relay, from outside. Dropped, it is gone, and the PC's way to the head's HTTP server with it.
#[derive(Debug)]
pub struct Relay {
    _host: Host,
    child: Child,
    log: std::path::PathBuf,
}

impl Relay {
    /// Puts it between this PC, which is off, and the head's HTTP server; it damages so many chunks, the first that come.
    ///
    /// # Errors
    /// When the room, nftables or the relay itself refuse.
    pub fn between(rig: &Rig, agent: &Agent, flips: u32) -> Result<Self> {
        let host = rig.room().host(Some(&format!("{ADDRESS}/{PREFIX}")))?;
        let log = agent.dir().join("relay.log");
        let file = fs::File::create(&log)?;
        let mut command = host.command(program("cidlab")?);
        command.args(["relay", "--flips", &flips.to_string()]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("starting the relay")?;
        let this = Self {
            _host: host,
            child,
            log,
        };
        let ready = || this.says(READY).is_ok_and(|count| count > 0);
        for _ in 0..100 {
            if ready() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(ready(), "the relay does not listen");
        // Its firmware goes around: the head gives a boot script only to the address that it gave to the machine.
        fs::write(
            agent.dir().join(KERNEL_RULES),
            format!(
                "table ip relay {{\n chain out {{\n  type nat hook output priority -100\n  \
                 ip daddr {HEAD_ADDRESS} tcp dport {HTTP} dnat to {ADDRESS}:{HTTP}\n }}\n}}\n"
            ),
        )?;
        Ok(this)
    }

    /// How many chunks it has damaged.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn flipped(&self) -> Result<usize> {
        self.says("flipped")
    }

    fn says(&self, word: &str) -> Result<usize> {
        let log = fs::read_to_string(&self.log)?;
        Ok(log.lines().filter(|line| line.starts_with(word)).count())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `cidlab relay` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Damage {
    /// How many chunks it damages.
    #[arg(long)]
    pub flips: u32,
}

/// Carries connections until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run(damage: &Damage) -> Result<()> {
    let listener = TcpListener::bind((ADDRESS, HTTP))?;
    let head: SocketAddr = format!("{HEAD_ADDRESS}:{HTTP}").parse()?;
    let flips = Arc::new(AtomicU32::new(damage.flips));
    eprintln!("{READY}");
    for near in listener.incoming() {
        let near = near?;
        let flips = Arc::clone(&flips);
        std::thread::spawn(move || {
            if let Err(error) = carry(near, head, &flips) {
                eprintln!("a connection ended: {error}");
            }
        });
    }
    Ok(())
}

/// One connection, both ways.
fn carry(mut near: TcpStream, head: SocketAddr, flips: &AtomicU32) -> std::io::Result<()> {
    let mut far = TcpStream::connect(head)?;
    // Bytes of the answer that go by until one is damaged; 0: none.
    let damage = Arc::new(AtomicUsize::new(0));
    let (mut asks, mut answers) = (near.try_clone()?, far.try_clone()?);
    let armed = Arc::clone(&damage);
    let there = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = vec![0; 4096];
        loop {
            let count = asks.read(&mut buffer)?;
            if count == 0 {
                return answers.shutdown(Shutdown::Write);
            }
            if buffer[..count].windows(7).any(|word| word == b"/chunks") {
                armed.store(INTO_THE_CHUNK, Ordering::SeqCst);
            }
            answers.write_all(&buffer[..count])?;
        }
    });
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = far.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let left = damage.load(Ordering::SeqCst);
        if left > 0 && left <= count {
            damage.store(0, Ordering::SeqCst);
            let one_less = |flips: u32| flips.checked_sub(1);
            if flips
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_ok()
            {
                buffer[left - 1] ^= 1;
                eprintln!("flipped a bit, {INTO_THE_CHUNK} bytes into an answer");
            }
        } else if left > 0 {
            damage.store(left - count, Ordering::SeqCst);
        }
        near.write_all(&buffer[..count])?;
    }
    near.shutdown(Shutdown::Both)?;
    let _ = there.join();
    Ok(())
}
