//! `cidctl run`: a program on the cluster as if it ran here. One connection to the head, however many ranks there are. Must never wait
//! for one stream while another could go on, nor change a byte on the way.

mod output;
mod port;
mod signals;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cid_protocol::work::{FromClient, Outcome, Program, RunRequest, ToClient, WORK_VERSION, Words};
use cid_streams::{Channel, StreamId, window};
use clap::Args;
use tokio::io::AsyncReadExt;

use crate::client::Client;
use output::Sink;
use port::{Heard, Port};
use signals::Signals;

/// Names in the environment that mean something on this machine only.
const LOCAL: [&str; 14] = [
    "TMPDIR",
    "TMP",
    "TEMP",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "HOSTNAME",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "DBUS_SESSION_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
    "SSH_AUTH_SOCK",
];
/// And those that begin so.
const LOCAL_BEGINNINGS: [&str; 3] = ["SSH_", "CID_", "XDG_SESSION"];
/// What is read of stdin at once.
const CHUNK: usize = 64 * 1024;

/// What a person types behind `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// How many of it; each gets its number in CID_RANK.
    #[arg(short = 'n', long = "ranks", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(cid_protocol::work::MAX_RANKS)))]
    ranks: u32,
    /// At most so many on one node.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    per_node: Option<u32>,
    /// Only on these nodes.
    #[arg(long, value_name = "NODESET")]
    nodes: Option<String>,
    /// Let ranks share CPUs when there are not enough.
    #[arg(long)]
    oversubscribe: bool,
    /// Begin each line with its rank.
    #[arg(long, short = 'l')]
    label: bool,
    /// Who gets stdin: a rank, `all`, or `none`.
    #[arg(long, value_name = "WHO", default_value = "0", value_parser = stdin_to)]
    stdin: StdinTo,
    /// Root only: run it as this user, by numbers; nobody (65534) otherwise.
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, u32)>,
    /// The command and its arguments, looked for on the node.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StdinTo {
    Rank(u32),
    All,
    None,
}

fn stdin_to(text: &str) -> Result<StdinTo, String> {
    match text {
        "all" => Ok(StdinTo::All),
        "none" => Ok(StdinTo::None),
        rank => rank
            .parse()
            .map(StdinTo::Rank)
            .map_err(|_| "write a rank, `all` or `none`".to_owned()),
    }
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let wrong = |_| "write numbers, like 1000 or 1000:100".to_owned();
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Ok((uid.parse().map_err(wrong)?, gid.parse().map_err(wrong)?))
}

/// Runs it. The status is the program's; failures of ours are errors, and 125.
///
/// # Errors
/// What kept it from running, or took it away.
pub(crate) async fn run(client: &Client, run: Run) -> Result<u8> {
    // From here on a signal is the program's.
    let mut signals = Signals::listen()?;
    let stream = client.upgrade("/v1/run", cid_protocol::work::UPGRADE).await?;
    let port = Port::open(stream, run.ranks);
    let (stdin, label) = (run.stdin, run.label);
    port.tell(&FromClient::Run(Box::new(request(run)?)));
    let mut job = Job::default();
    match port.hear().await.context("the head is gone")? {
        Heard::Told(ToClient::Started { job: number, places }) => {
            job.number = number;
            for place in places {
                job.size = job.size.max(place.first + place.count);
                job.nodes.insert(place.first, place.node);
            }
        }
        Heard::Told(ToClient::Refused { error, remedy }) => bail!("{error}; {remedy}"),
        other => bail!("the head says {other:?} before anything was started"),
    }
    let sinks = [
        Sink::start(Channel::Stdout, &port, job.size, label),
        Sink::start(Channel::Stderr, &port, job.size, label),
    ];
    let reading = tokio::spawn(read_stdin(port.clone(), stdin, job.size));
    let result = job.live(&port, &mut signals, &sinks).await;
    reading.abort();
    for sink in sinks {
        sink.finish().await;
    }
    result?;
    Ok(job.status())
}

#[derive(Default)]
struct Job {
    number: u32,
    size: u32,
    /// By the first rank on each.
    nodes: BTreeMap<u32, String>,
    outcomes: BTreeMap<u32, Outcome>,
    ends: u32,
}

impl Job {
    /// Until every rank has ended and all that they said has come.
    async fn live(&mut self, port: &Port, signals: &mut Signals, sinks: &[Sink; 2]) -> Result<()> {
        while self.outcomes.len() < self.size as usize || self.ends < 2 * self.size {
            tokio::select! {
                heard = port.hear() => match heard {
                    Some(heard) => self.handle(heard, sinks),
                    None => bail!("the head is gone, and job {} with it; start it again when the head is back", self.number),
                },
                signal = signals.next() => self.forward(port, signal).await,
            }
        }
        Ok(())
    }

    fn handle(&mut self, heard: Heard, [out, err]: &[Sink; 2]) {
        match heard {
            Heard::Told(ToClient::Ended { rank, outcome }) => {
                if let Some(text) = self.complaint(rank, &outcome) {
                    eprintln!("cidctl run: {text}");
                }
                self.outcomes.insert(rank, outcome);
            }
            Heard::Told(_) => {}
            Heard::Data(stream, data) => match stream.channel {
                Channel::Stdout => out.give(stream.rank, Some(data)),
                _ => err.give(stream.rank, Some(data)),
            },
            Heard::End(stream) => {
                self.ends += 1;
                match stream.channel {
                    Channel::Stdout => out.give(stream.rank, None),
                    _ => err.give(stream.rank, None),
                }
            }
        }
    }

    /// What a shell would say itself, or what has nothing to do with the program.
    fn complaint(&self, rank: u32, outcome: &Outcome) -> Option<String> {
        let node = self.nodes.range(..=rank).next_back().map_or("", |(_, node)| node);
        let rank = match self.size {
            1 => String::new(),
            _ => format!("rank {rank}: "),
        };
        match outcome {
            Outcome::NotFound => Some(format!(
                "{rank}there is no such command on {node}; it must be in the node's image (`cidctl image list`)"
            )),
            Outcome::NotRun { why } => Some(format!("{rank}the command cannot be run on {node}: {why}")),
            Outcome::Lost { why } => Some(format!("{rank}lost on {node}: {why}; start it again")),
            Outcome::Exited { .. } | Outcome::Signaled { .. } => None,
        }
    }

    async fn forward(&self, port: &Port, signal: i32) {
        match signals::meaning(signal) {
            signals::Meaning::Forward => port.tell(&FromClient::Signal { signal }),
            signals::Meaning::Kill => port.tell(&FromClient::Kill),
            signals::Meaning::Stop => {
                port.tell(&FromClient::Signal { signal });
                // Stopped, we send nothing.
                port.flushed(Duration::from_secs(1)).await;
                signals::stop_here();
            }
        }
    }

    /// The program's status; the largest of several. One that died by a signal is died after.
    fn status(&self) -> u8 {
        if let (1, Some(Outcome::Signaled { signal })) = (self.size, self.outcomes.get(&0)) {
            signals::die(*signal);
        }
        let largest = self.outcomes.values().map(Outcome::status).max();
        largest.unwrap_or(125)
    }
}

fn request(run: Run) -> Result<RunRequest> {
    let folder = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let environment = std::env::vars_os()
        .filter(|(name, _)| travels(name))
        .map(|(name, value)| {
            let mut pair = name;
            pair.push("=");
            pair.push(value);
            pair
        });
    let program = Program {
        command: words(run.command),
        environment: words(environment),
        folder: words([folder.into_os_string()]),
        umask: umask(Path::new("/proc/self/status")),
    };
    let size = program.command.len() + program.environment.len() + program.folder.len();
    // The head's word to a node has room for it.
    if size > cid_protocol::work::MAX_CONTROL - 16 * 1024 {
        bail!(
            "the command and its environment are {} KiB, and {} fit; start it with `env -i` or a shorter command",
            size / 1024,
            cid_protocol::work::MAX_CONTROL / 1024 - 16
        );
    }
    Ok(RunRequest {
        version: WORK_VERSION,
        ranks: run.ranks,
        per_node: run.per_node,
        nodes: run.nodes,
        oversubscribe: run.oversubscribe,
        user: run.user,
        program,
    })
}

fn travels(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return true };
    !LOCAL.contains(&name)
        && !LOCAL_BEGINNINGS
            .iter()
            .any(|beginning| name.starts_with(beginning))
}

fn words(words: impl IntoIterator<Item = OsString>) -> Words {
    let words: Vec<OsString> = words.into_iter().collect();
    let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    STANDARD.encode(bytes.join(&0))
}

/// The kernel's own word for it: asking by `umask(2)` would change it.
fn umask(status: &Path) -> u32 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or(0o022)
}

/// From our stdin to those who get it, as fast as the slowest of them reads.
async fn read_stdin(port: Port, to: StdinTo, size: u32) {
    let stream = |rank| StreamId {
        rank,
        channel: Channel::Stdin,
    };
    let takers: Vec<StreamId> = match to {
        StdinTo::All => (0..size).map(stream).collect(),
        StdinTo::Rank(rank) if rank < size => vec![stream(rank)],
        StdinTo::Rank(_) | StdinTo::None => Vec::new(),
    };
    let others = (0..size).map(stream).filter(|stream| !takers.contains(stream));
    if takers.len() < size as usize {
        others.for_each(|stream| port.end(stream));
    }
    if takers.is_empty() {
        return;
    }
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK.min(window(size) as usize)];
    loop {
        let Some(room) = port.room(&takers).await else {
            // Nobody reads it any more.
            return;
        };
        let Some(place) = buffer.get_mut(..room.min(CHUNK)) else {
            return;
        };
        match stdin.read(place).await {
            Ok(length @ 1..) => {
                let data = place.get(..length).unwrap_or_default();
                takers.iter().for_each(|stream| port.queue(*stream, data));
            }
            Ok(0) | Err(_) => break,
        }
    }
    takers.iter().for_each(|stream| port.end(*stream));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed() {
        assert_eq!(stdin_to("3"), Ok(StdinTo::Rank(3)));
        assert_eq!(stdin_to("all"), Ok(StdinTo::All));
        assert!(stdin_to("some").is_err());
        assert_eq!(user("1000"), Ok((1000, 1000)));
        assert_eq!(user("1000:100"), Ok((1000, 100)));
        assert!(user("alice").is_err());
    }

    #[test]
    fn what_travels_is_what_means_the_same_there() {
        for name in ["PATH", "HOME", "LANG", "OMP_NUM_THREADS"] {
            assert!(travels(OsStr::new(name)), "{name}");
        }
        for name in ["TMPDIR", "SSH_CONNECTION", "CID_SOCKET", "DISPLAY"] {
            assert!(!travels(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn several_ranks_give_the_largest_status() {
        let mut job = Job {
            size: 3,
            ..Job::default()
        };
        for (rank, status) in [(0, 0), (1, 7), (2, 3)] {
            job.outcomes.insert(rank, Outcome::Exited { status });
        }
        assert_eq!(job.status(), 7);
        job.outcomes.insert(1, Outcome::Signaled { signal: 9 });
        assert_eq!(job.status(), 137);
    }
}
