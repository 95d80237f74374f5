//! `cidctl`: the cluster's command line. Asks the head over its local socket and prints the answer. Must never look
//! into the head's database or guess what the head would say.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 head unreachable. Data on stdout, everything else on stderr.

mod client;
mod commands;
mod firewall;
mod hours;
mod image;
mod node;
mod print;
mod run;
mod tell;
mod top;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::client::{Client, ClientError};

/// What a person types.
#[derive(Debug, Parser)]
#[command(
    name = "cidctl",
    version,
    about = "See and steer the PCs of a CID cluster",
    after_help = "Node sets: lab-a[01-20,25] · @lab-a (a group) · @* (all) · 'lab-*' · a,b · a!b · 'a&b' · a^b\n\
                  Exit codes: 0 done, 1 failed, 2 usage, 3 head (or the node asked) unreachable"
)]
struct Cli {
    /// The head's control socket.
    #[arg(long, global = true, env = "CID_SOCKET", default_value = cid_protocol::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Ask this node, by its address, instead of the head: works while the head is down; `nodes` only.
    #[arg(long, global = true, value_name = "ADDRESS")]
    node: Option<String>,
    /// With --node: the administrator's certificate and key, PEM.
    #[arg(
        long,
        global = true,
        env = "CID_IDENTITY",
        value_name = "FILE",
        default_value = "/var/lib/cid/ca/admin.pem"
    )]
    identity: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List machines: who is up, seen, home.
    #[command(
        after_help = "Examples:\n  cidctl nodes 'lab-a[01-10]' --watch\n  cidctl --node 10.77.0.131 nodes\n\
                      With --node that node answers, from its copy of the head's history and what it sees itself; SAID BY tells which.\n\
                      States: seen (not adopted), known (adopted, not in the cluster), booting, joining, up, suspect (does not answer its\n\
                      peers at the moment: nothing new for it, nothing taken away), draining, going-home, home, lost (silent, and did not\n\
                      say that it goes), refused. docs/membership.md tells who decides each."
    )]
    Nodes {
        /// Only these.
        nodeset: Option<String>,
        /// Print since when each is what it is, and why.
        #[arg(long)]
        why: bool,
        #[command(flatten)]
        json: Json,
        /// Print again whenever something changes, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Show how busy nodes are, the busiest first: painted again every two seconds on a terminal, printed once elsewhere.
    #[command(after_help = "Example: cidctl top @lab-a\n\
                      RUN: tasks that run or want to. PRESSURE: share of time in which some task waited for a CPU. FREE: memory that\n\
                      programs can have. SPEED: one CPU against the reference machine, as it\n\
                      was judged. CLOCK: how far ahead of the head's, and how exactly that is known. AGE: since this was measured; nodes tell steps\n\
                      at once and repeat themselves every 30 s. Without AGE the head knows the load from the node's connection only.")]
    Top {
        /// Only these.
        nodeset: Option<String>,
        /// Print once, also on a terminal.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Accept seen PCs into a group and name them, in order of their MACs.
    #[command(
        after_help = "Examples:\n  cidctl adopt seen --group lab-a --name 'lab-a[01-30]'\n  \
                      cidctl adopt 52:54:00:12:34:56 --group lab-a --name lab-a07\n\
                      The PC joins at its next network boot. Names in use are passed over."
    )]
    Adopt {
        /// MACs as `cidctl nodes` shows them, or the word `seen` for all that wait.
        #[arg(required = true, value_parser = machine)]
        seen: Vec<String>,
        /// A group of head.toml.
        #[arg(long)]
        group: String,
        /// Node set to take names from.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        json: Json,
    },
    /// Say what a machine would be answered if it booted now, and why.
    Explain {
        /// Its MAC, or its name.
        machine: String,
        #[command(flatten)]
        json: Json,
    },
    /// Tell what happened to a machine at its last boot, step by step, and what is wrong.
    #[command(after_help = "Example: cidctl trace lab-a07\n\
                      Times count from the boot's first question to the head. docs/trace.md explains every diagnosis.\n\
                      Exit code 1 when the diagnosis is a fault.")]
    Trace {
        /// Its MAC, or its name.
        machine: String,
        /// Every boot that is remembered, not the last one only.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Let nodes finish what they have and take no more work; they stay in the cluster until `undrain`.
    #[command(after_help = "Example: cidctl drain lab-a07 --reason 'its fan is loud'\n\
                      `release` drains too, and then gives the PC back. A drain lasts over reboots of the node and of the head.")]
    Drain {
        /// Which.
        nodeset: String,
        /// Why, for whoever lists the nodes.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Undo `drain`: nodes take work again.
    Undrain {
        /// Which.
        nodeset: String,
        #[command(flatten)]
        json: Json,
    },
    /// Give PCs back to their own systems; they stay there until `wake`. Nodes finish what they have first, within `patience`.
    Release {
        /// Which.
        nodeset: String,
        #[command(flatten)]
        json: Json,
    },
    /// Undo `release` and "two failed boots", and switch PCs on by Wake-on-LAN or their group's `wake_command`.
    #[command(after_help = "Example: cidctl wake @lab-a --wait --timeout 5m\n\
                      Silent PCs are called again after 5, 20, 60 and 180 seconds. docs/power.md tells what a PC needs for it.\n\
                      With --wait, exit code 1 when somebody did not come; --json then prints one document: came (name, mac,\n\
                      after_secs), missing (name, mac, state, reason), waited_secs.")]
    Wake {
        /// Which.
        nodeset: String,
        /// Wait until they are up, and report who came and who did not.
        #[arg(long)]
        wait: bool,
        /// How long to wait at the most.
        #[arg(long, requires = "wait", default_value = "10m", value_parser = wake::duration)]
        timeout: std::time::Duration,
        #[command(flatten)]
        json: Json,
    },
    /// Run a program on the cluster as if it ran here: its streams, its status, your Ctrl-C.
    #[command(
        after_help = "Examples:\n  cidctl run hostname\n  sort big.txt | cidctl run gzip -9 >big.txt.gz\n  \
                      cidctl run -n 64 --per-node 4 --label ./simulate --seed 7\n  \
                      cidctl run -n 8 --nodes 'lab-a[01-08]' sh -c 'echo rank $CID_RANK of $CID_SIZE on $(hostname)'\n\
                      Ranks go to the idlest nodes that are up, never more than they have CPUs. Each finds CID_JOB, CID_RANK, CID_SIZE\n\
                      and CID_NODES in its environment, which is yours otherwise, without what means this machine only (DISPLAY, TMPDIR,\n\
                      SSH_...). It starts in this folder where the node has it, else in /tmp, which is the job's own and goes with it.\n\
                      Ctrl-C, Ctrl-Z and most signals go to all ranks; three Ctrl-C in two seconds kill them. A job ends with its client.\n\
                      Exit code: the program's, the largest of several, 128 + n for a signal; 125 when something of the cluster failed,\n\
                      126 when the command cannot be run, 127 when there is none. docs/run.md tells more."
    )]
    Run(run::Run),
    /// Show when groups compute, or open or close one for a while.
    #[command(
        after_help = "Examples:\n  cidctl hours\n  cidctl hours lab-a open until 23:00\n  \
                      cidctl hours lab-a closed until Mon 06:30\n  cidctl hours lab-a clear\n\
                      Times are read in the time zone of the hours. An exception ends by itself, or by `clear`; a second one\n\
                      takes the place of the first. PCs of a group that closes have its `patience` before they go home."
    )]
    Hours(hours::Hours),
    /// Versions of images: list them, set what a group boots, update nodes one after the other, go back.
    #[command(
        after_help = "Examples:\n  cidctl image list\n  cidctl image roll @lab-a compute@3 --keep-up 3\n  cidctl image rollback lab-a\n\
                      The head keeps each build as a version that never changes. docs/versions.md tells the whole story."
    )]
    Image {
        #[command(subcommand)]
        command: image::Image,
    },
    /// What happened, oldest first.
    Events {
        /// Print new ones as they come, until interrupted.
        #[arg(long, short)]
        follow: bool,
        /// Only those behind this number.
        #[arg(long)]
        after: Option<u64>,
        /// At most this many.
        #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        json: Json,
    },
    /// Look at the head itself: ports, firewall, interface, images, templates, hours, clock, disk, database, other servers.
    #[command(
        after_help = "Every line is ok, warn or FAIL, with what to do. Run it as root to see the firewall's rules.\n\
                      Exit code 1 when something failed."
    )]
    Doctor {
        #[command(flatten)]
        json: Json,
    },
    /// The head: version, interface, whether it answers DHCP, what it dropped.
    Status {
        #[command(flatten)]
        json: Json,
    },
    #[command(flatten)]
    Documents(cid_manual::Documents),
}

#[derive(Debug, Clone, Copy, Args)]
struct Json {
    /// Print the head's answer as JSON (stable; one document, or one line per event).
    #[arg(long)]
    json: bool,
}

/// `seen` or a MAC: a typing mistake is found here, before anything is asked.
fn machine(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text == "seen" || (parts.len() == 6 && parts.iter().all(is_byte)) {
        Ok(text.to_ascii_lowercase().replace('-', ":"))
    } else {
        Err("write a MAC address like 52:54:00:12:34:56, or the word `seen`".to_owned())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Hours(hours) = &cli.command
        && let Some(error) = hours.usage_error()
    {
        let mut cidctl = Cli::command();
        // Built, it knows its whole name for the line of usage.
        cidctl.build();
        let command = cidctl.find_subcommand_mut("hours");
        let refusal = command.map(|command| command.error(ErrorKind::ValueValidation, error));
        refusal
            .unwrap_or_else(|| clap::Error::raw(ErrorKind::ValueValidation, error))
            .exit();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match (runtime, cli.command) {
        (Ok(runtime), Command::Run(run)) if cli.node.is_none() => {
            run_program(&runtime, &Client::new(cli.socket), run)
        }
        (runtime, command) => runtime.map(|runtime| (runtime, command)),
    };
    let result = match runtime {
        Ok((runtime, command)) => match cli.node {
            Some(address) => commands::ask_node(&address, &cli.identity, command),
            None => runtime.block_on(commands::run(&Client::new(cli.socket), command)),
        },
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let unreachable = matches!(
                error.downcast_ref(),
                Some(ClientError::Unreachable { .. } | ClientError::NodeUnreachable { .. })
            );
            eprintln!("cidctl: {}", one_line(&error));
            ExitCode::from(if unreachable { 3 } else { 1 })
        }
    }
}

/// Its status is the program's; failures of ours are 125.
fn run_program(runtime: &tokio::runtime::Runtime, client: &Client, run: run::Run) -> ! {
    let code = runtime.block_on(run::run(client, run)).unwrap_or_else(|error| {
        eprintln!("cidctl run: {}", one_line(&error));
        125
    });
    // What reads our stdin waits in the kernel, and would be waited for.
    std::process::exit(code.into())
}

/// The whole chain on one line; a cause that its effect quotes already is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `cidctl nodes | head -1` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
    };
    error
        .chain()
        .any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_commands_is_sound_and_every_argument_is_explained() {
        let command = Cli::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{}", subcommand.get_name());
            for argument in subcommand.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    subcommand.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn machines_are_macs_or_seen() {
        assert_eq!(machine("52-54-00-AB-00-01").as_deref(), Ok("52:54:00:ab:00:01"));
        assert_eq!(machine("seen").as_deref(), Ok("seen"));
        for wrong in ["", "lab-a01", "52:54:00:ab:00", "52:54:00:ab:00:0g"] {
            assert!(machine(wrong).is_err(), "{wrong}");
        }
    }
}
