//! `cidlab`: a virtual PC room to play with, and the demonstration. Exit codes: 0 done, 1 failed (`demo`: a check
//! failed), 2 usage, 4 (`demo`) it did not come to the checks.

mod agents;
mod boot_one;
mod keeper;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cidlab::demo::{self, DemoOptions, Night, Outcome};
use clap::{Parser, Subcommand, ValueEnum};

/// Needed by `ci/test` to tell a check that failed from a demonstration that broke down.
const NOT_CHECKED: u8 = 4;

/// A virtual PC room: a network of its own, PCs with real firmware, a stand-in for Windows on each disk.
#[derive(Debug, Parser)]
#[command(name = "cidlab", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open a room: a head and some PCs, switched off, until `cidlab down`.
    #[command(
        after_help = "Then: cidlab power pc1 on; cidlab exec cidctl nodes; cidlab exec cidctl adopt seen \
        --group lab --name 'lab[1-3]'"
    )]
    Up {
        /// How many PCs: BIOS, UEFI and UEFI with Secure Boot in turn.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=30))]
        pcs: u8,
        /// Folder of built images.
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// Image that the group `lab` boots.
        #[arg(long, default_value = "minimal")]
        image: String,
    },
    /// Close the room.
    Down,
    /// What is on, and where its files are.
    Status,
    /// Press a PC's power switch or reset button.
    Power {
        /// The PC: pc1, pc2, ...
        name: String,
        /// What to do.
        action: Power,
    },
    /// Run a command in the room, with the room's network; `cidctl` talks to the room's head.
    Exec {
        /// The command.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Boot one image in a virtual PC, its serial console on this terminal, until it is back in its Windows.
    #[command(
        after_help = "Enter presses a key at the PC, which sends it home; q and Enter pull the plug. Without a terminal it \
        ends when the PC is up.\n\nExample: cidlab run build/images/minimal --firmware secure-boot"
    )]
    Run {
        /// Folder of a built image, or the name of one below --images.
        image: PathBuf,
        /// What starts the PC.
        #[arg(long, value_enum, default_value_t = boot_one::Firmware::Bios)]
        firmware: boot_one::Firmware,
        /// Its memory in MiB [default: a quarter more than the build reckoned that it takes, 512 at least].
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=65536))]
        memory: Option<u32>,
        /// Folder of built images.
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// Play a whole night with three PCs, and prove that nothing of theirs changed.
    Demo {
        /// Show that the proof can fail: an image that writes one byte. Exits with 1.
        #[arg(long, alias = "control-write-byte")]
        control: bool,
        /// Folder of built images.
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// Image to boot; it is built if it is not there.
        #[arg(long, default_value = "minimal")]
        image: String,
    },
    /// Compare the variables in two copies of a firmware's flash.
    Variables {
        /// Before.
        before: PathBuf,
        /// After.
        after: PathBuf,
    },
    #[command(flatten)]
    Documents(cid_manual::Documents),
    /// Boot one UEFI PC and save what the person at it sees, as PNG.
    #[command(after_help = "The README's picture: cidlab screenshot docs/images/screen.png")]
    Screenshot {
        /// Where to.
        out: PathBuf,
        /// Folder of built images.
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// Real agents and a real head in network namespaces, without QEMU, until you press Enter.
    #[command(
        after_help = "For looking at hundreds of members on one machine: cidlab agents 50, and in another window what it prints. \
        Needs nftables and iproute2, and cid-agent beside cidlab (or CID_BIN_DIR)."
    )]
    Agents {
        /// How many.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
        /// How many are switched on in a second.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
        per_second: u32,
        /// They are watched as nodes that run jobs are: a crash is known to all within 3 s.
        #[arg(long)]
        busy: bool,
    },
    /// Becomes an agent of the rig.
    #[command(hide = true)]
    Cell(cidlab::rig::cell::Cell),
    /// Becomes a crowd of agents.
    #[command(hide = true)]
    Crowd(cidlab::rig::crowd::Members),
    /// Becomes a bad stretch of wire.
    #[command(hide = true)]
    Relay(cidlab::rig::relay::Damage),
    /// Holds the room that `up` opened.
    #[command(hide = true)]
    Keep { pcs: u8, images: PathBuf, image: String },
}

/// A hand at the PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Power {
    /// Switch it on.
    On,
    /// Pull the plug.
    Off,
    /// Press the reset button.
    Reset,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let is_demo = matches!(command, Command::Demo { .. });
    match execute(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cidlab: {error:#}");
            ExitCode::from(if is_demo { NOT_CHECKED } else { 1 })
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    let or_default = |images: Option<PathBuf>| images.unwrap_or_else(cidlab::lab::images_dir);
    match command {
        Command::Up { pcs, images, image } => keeper::up(pcs, &or_default(images), &image)?,
        Command::Run {
            image,
            firmware,
            memory,
            images,
        } => {
            let below = or_default(images).join(&image);
            let folder = if image.is_dir() { image } else { below };
            boot_one::boot(&folder, firmware, memory)?;
        }
        Command::Down => keeper::down()?,
        Command::Status => keeper::status()?,
        Command::Power { name, action } => keeper::power(&name, action)?,
        Command::Exec { command } => return keeper::exec(&command),
        Command::Keep { pcs, images, image } => keeper::keep(pcs, images, &image)?,
        Command::Agents {
            count,
            per_second,
            busy,
        } => agents::hold(count.into(), per_second, busy)?,
        Command::Crowd(members) => cidlab::rig::crowd::run(&members)?,
        Command::Relay(damage) => cidlab::rig::relay::run(&damage)?,
        Command::Cell(cell) => cidlab::rig::cell::enter(&cell)?,
        Command::Documents(documents) => documents.write::<Arguments>("1")?,
        Command::Screenshot { out, images } => cidlab::screen::portrait(&or_default(images), &out)?,
        Command::Variables { before, after } => return variables(&before, &after),
        Command::Demo {
            control,
            images,
            image,
        } => {
            let night = if control {
                Night::WritesOneByte
            } else {
                Night::Ordinary
            };
            let outcome = demo::play(&DemoOptions {
                images_dir: or_default(images),
                image,
                night,
            })?;
            let held = outcome == Outcome::Held;
            println!(
                "{}",
                if held {
                    "Everything held."
                } else {
                    "A check failed."
                }
            );
            return Ok(ExitCode::from(u8::from(!held)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one line per variable that differs; status 1 if one of them may not.
fn variables(before: &std::path::Path, after: &std::path::Path) -> Result<ExitCode> {
    use cidlab::firmware_variables::{FirmwareVariables, guid_text};
    let (before, after) = (FirmwareVariables::read(before)?, FirmwareVariables::read(after)?);
    println!("boot order: {}", after.boot_entries().join(", "));
    let differences = before.differences(&after);
    for difference in &differences {
        let length = |data: &Option<Vec<u8>>| {
            data.as_ref()
                .map_or("none".to_owned(), |data| format!("{} bytes", data.len()))
        };
        println!(
            "{}{} {}: {} -> {}",
            if difference.is_allowed() {
                ""
            } else {
                "NOT ALLOWED "
            },
            difference.key.name,
            guid_text(&difference.key.guid),
            length(&difference.before),
            length(&difference.after)
        );
    }
    Ok(ExitCode::from(u8::from(
        !differences.iter().all(|difference| difference.is_allowed()),
    )))
}
