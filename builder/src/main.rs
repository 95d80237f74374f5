//! `cidbuild`: builds images and looks inside them. Parsing only validates; exit codes come out of [`main`] alone.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use cidbuild::apt::Freshness;
use cidbuild::cache::{Cache, write_atomically};
use cidbuild::device;
use cidbuild::image::{Options, build};
use cidbuild::inspect::{self, Format, Part};
use cidbuild::progress::Progress;
use cidbuild::recipe::Recipe;
use cidbuild::root;
use clap::{Args, Parser, Subcommand};

/// Builds boot images for PCs that lend themselves to a cluster, and looks inside them.
#[derive(Debug, Parser)]
#[command(name = "cidbuild", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a recipe into DIR/NAME/.
    Image(ImageArguments),
    /// Make one USB stick for BIOS, UEFI and Secure Boot; what a PC may do from it, the head decides at each boot.
    ///
    /// With --device, it is written to a stick, after a look whether it is one, and read back. Needs the package mtools.
    Usb(UsbArguments),
    /// List what an image holds: its initrd, or with --root its root image.
    Ls {
        /// An image's folder, an initrd file, or a root.img.
        image: PathBuf,
        #[command(flatten)]
        part: PartArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Print one file of an image's initrd, or with --root of its root image.
    Cat {
        /// An image's folder, an initrd file, or a root.img.
        image: PathBuf,
        /// Path of the file in the image.
        path: String,
        #[command(flatten)]
        part: PartArguments,
    },
    /// Say what takes the space: the entries of one folder of an image, the largest first, all of them together last.
    #[command(
        after_help = "Bytes, entries and path in each line. Sizes are those of the files unpacked: compressed, an image is \
        a third of it."
    )]
    Du {
        /// An image's folder, an initrd file, or a root.img.
        image: PathBuf,
        /// Folder in the image.
        #[arg(default_value = "/")]
        path: String,
        #[command(flatten)]
        part: PartArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Write everything that an image holds as files below DIR; needs no root, keeps no owners, leaves devices out.
    Unpack {
        /// An image's folder, an initrd file, or a root.img.
        image: PathBuf,
        /// A folder that is not there yet, or is empty.
        dir: PathBuf,
        #[command(flatten)]
        part: PartArguments,
    },
    /// Show what differs between two images: entries of stage 1, files of root images, packages; exits 1 when anything does.
    Diff {
        /// An image's folder, an initrd file, or a root.img.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Check every digest of an image against its manifest, or look for secrets in it; exits 1 when something is wrong.
    Verify {
        /// An image's folder.
        image: PathBuf,
        /// Look for private keys, boot tokens and password hashes instead.
        #[arg(long)]
        no_secrets: bool,
        /// Look for the secrets in this file, too: one per line, as text, hex or base64.
        #[arg(long, value_name = "FILE", requires = "no_secrets")]
        known: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputArguments,
    },
    #[command(flatten)]
    Documents(cid_manual::Documents),
}

#[derive(Debug, Args)]
struct OutputArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl OutputArguments {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

#[derive(Debug, Args)]
struct PartArguments {
    /// Look at the root image (stage 2) instead of the initrd (stage 1).
    #[arg(long)]
    root: bool,
}

impl PartArguments {
    fn part(&self) -> Part {
        if self.root { Part::Root } else { Part::Stage1 }
    }
}

#[derive(Debug, Args)]
struct ImageArguments {
    /// Name of a recipe in images/, or a recipe file (with '/' or '.toml').
    #[arg(default_value = "minimal")]
    recipe: String,
    /// Folder in which the image's own folder appears [default: build/images in a source tree, else /var/lib/cid/images].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Kernel file (bzImage), in place of the recipe's.
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Folder with that kernel's modules.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Signed shim, in place of the recipe's package.
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// Signed GRUB with network support, in place of the recipe's package.
    #[arg(long, value_name = "FILE")]
    grub: Option<PathBuf>,
    /// Signed MokManager, in place of the recipe's package.
    #[arg(long, value_name = "FILE")]
    mok: Option<PathBuf>,
    /// undionly.kpxe of iPXE, in place of the recipe's package.
    #[arg(long, value_name = "FILE")]
    ipxe: Option<PathBuf>,
    /// Folder with cid-init and cid-agent.
    #[arg(long, value_name = "DIR")]
    node_programs: Option<PathBuf>,
    /// Ask the archive for newer packages instead of using those fetched before.
    #[arg(long)]
    refresh: bool,
    /// Make the recipe's lock file anew: the newest packages of its suite, instead of those the lock names.
    #[arg(long)]
    update: bool,
    /// Prove that every network card in FILE, which `cidctl nodes --json` wrote, has its driver and firmware in the image.
    #[arg(long = "for", value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Say nothing but the image's folder, or what is wrong.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct UsbArguments {
    /// Name of a built image: the signed loaders come from it.
    #[arg(default_value = "minimal")]
    name: String,
    /// File to write.
    #[arg(long, value_name = "FILE", required_unless_present = "device")]
    out: Option<PathBuf>,
    /// Stick to write, such as /dev/sdX: everything on it is erased. Asks before it does.
    #[arg(long, value_name = "DEVICE", conflicts_with = "out")]
    device: Option<PathBuf>,
    /// Write to the device without asking.
    #[arg(long, requires = "device")]
    yes: bool,
    /// Write to a device all the same, although this speaks against its being a spare stick.
    #[arg(long, value_name = "WHAT", requires = "device")]
    allow: Vec<cidbuild::device::Objection>,
    /// Address of the head, written on the stick [default: the next server that DHCP names].
    #[arg(long, value_name = "ADDRESS")]
    head: Option<std::net::Ipv4Addr>,
    /// Put kernel and initrd on the stick, too, for networks where fetching 20 MB at each boot is slow. The head is asked all
    /// the same, and its image is fetched when the stick's is another. UEFI only: a BIOS PC fetches them from the head.
    #[arg(long)]
    with_image: bool,
    /// Folder of the built images [default: build/images in a source tree, else /var/lib/cid/images].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Suite that iPXE and SYSLINUX come from.
    #[arg(long, default_value = "trixie")]
    suite: String,
    /// Ask the archive for newer packages instead of using those fetched before.
    #[arg(long)]
    refresh: bool,
    /// Say nothing but the file, or what is wrong.
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage and 0 on --help.
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // `cidbuild ls IMAGE | head` is no failure.
        Err(error) if io_kind(&error) == Some(ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            let remedy = match io_kind(&error) {
                Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    "; free space there and run again (the previous image is untouched)"
                }
                _ => "",
            };
            eprintln!("cidbuild: {error:#}{remedy}");
            ExitCode::from(1)
        }
    }
}

fn io_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error
        .chain()
        .find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()))
}

/// False when something was found that is not as it should be, and has been said.
fn run(command: Command) -> anyhow::Result<bool> {
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    let fine = match command {
        Command::Image(arguments) => image(arguments, &mut output)?,
        Command::Usb(arguments) => usb(arguments, &mut output)?,
        Command::Ls {
            image,
            part,
            output: arguments,
        } => {
            inspect::ls(&image, part.part(), arguments.format(), &mut output)?;
            true
        }
        Command::Cat { image, path, part } => {
            inspect::cat(&image, part.part(), &path, &mut output)?;
            true
        }
        Command::Du {
            image,
            path,
            part,
            output: arguments,
        } => {
            inspect::du(&image, part.part(), &path, arguments.format(), &mut output)?;
            true
        }
        Command::Unpack { image, dir, part } => {
            let done = inspect::unpack(&image, part.part(), &dir)?;
            let left_out = match done.left_out {
                0 => String::new(),
                count => format!(", {count} devices and pipes left out"),
            };
            if done.entries > 0 {
                eprintln!("unpacked     {} entries{left_out}", done.entries);
            }
            writeln!(output, "{}", dir.display())?;
            true
        }
        Command::Diff {
            first,
            second,
            output: arguments,
        } => inspect::diff(&first, &second, arguments.format(), &mut output)?,
        Command::Verify {
            image,
            no_secrets: true,
            known,
            output: arguments,
        } => {
            let mut forms = Vec::new();
            for file in &known {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                forms.extend(cidbuild::secrets::known(&text));
            }
            inspect::no_secrets(&image, &forms, arguments.format(), &mut output)?
        }
        Command::Verify {
            image,
            output: arguments,
            ..
        } => inspect::verify(&image, arguments.format(), &mut output)?,
        Command::Documents(documents) => {
            documents.write::<Arguments>("1")?;
            true
        }
    };
    output.flush()?;
    Ok(fine)
}

fn image(arguments: ImageArguments, output: &mut dyn Write) -> anyhow::Result<bool> {
    let recipe = Recipe::load(&recipe_file(&arguments.recipe)?)?;
    let options = Options {
        out: arguments.out.unwrap_or_else(default_out),
        kernel: arguments.kernel.zip(arguments.modules),
        shim: arguments.shim,
        grub: arguments.grub,
        mok: arguments.mok,
        ipxe: arguments.ipxe,
        node_programs: node_programs(arguments.node_programs)?,
        freshness: freshness(arguments.refresh),
        cards: arguments
            .nodes
            .as_deref()
            .map(cidbuild::cards::read)
            .transpose()?,
    };
    if !arguments.quiet {
        eprintln!("{recipe}");
    }
    let progress = if arguments.quiet {
        Progress::silent()
    } else {
        Progress::for_people()
    };
    let cache = Cache::open()?;
    let tools = root::Tools {
        cache: &cache,
        freshness: freshness(arguments.update),
        progress: &progress,
    };
    let tree = root::build(&recipe, tools)?;
    if let Some(tree) = &tree
        && !arguments.quiet
    {
        for layer in &tree.layers {
            eprintln!(
                "root {:<7} {} bytes, SHA-256 {}",
                layer.name, layer.bytes, layer.sha256
            );
        }
        eprintln!("packages     {} with what they depend on", tree.packages.len());
    }
    let built = build(&recipe, tree.as_ref(), &options, &cache, &progress)?;
    if !arguments.quiet {
        let modules = built
            .manifest
            .files
            .keys()
            .filter(|path| path.contains(".ko"))
            .count();
        let packed = built
            .manifest
            .artifacts
            .get("initrd.img")
            .map_or(0, |initrd| initrd.size);
        let (release, nic) = (&built.manifest.kernel_release, built.manifest.nic_drivers.len());
        eprintln!("built        kernel {release}, {modules} modules, {nic} of them of NICs");
        eprintln!("initrd       {packed} bytes, {} unpacked", built.unpacked_size);
        if let Some(root) = &built.manifest.root {
            eprintln!(
                "root         {} bytes, {} unpacked, {} entries",
                root.bytes, root.content_bytes, root.entries
            );
        }
        eprintln!("{}", built.ram);
        if let Some(seen) = &options.cards {
            eprintln!("cards        {} kinds, each with its driver", seen.cards.len());
            if !seen.silent.is_empty() {
                eprintln!("             not known of {}", seen.silent.join(", "));
            }
        }
    }
    writeln!(output, "{}", built.folder.display())?;
    Ok(true)
}

fn usb(arguments: UsbArguments, output: &mut dyn Write) -> anyhow::Result<bool> {
    let image = arguments.images.unwrap_or_else(default_out).join(&arguments.name);
    if !image.join("manifest.json").is_file() {
        bail!(
            "{}: no image there; build it first with cidbuild image {}, or give --images DIR",
            image.display(),
            arguments.name
        );
    }
    let options = cidbuild::usb::Options {
        image,
        head: arguments.head,
        payload: if arguments.with_image {
            cidbuild::usb::Payload::OnStick
        } else {
            cidbuild::usb::Payload::FromHead
        },
        suite: arguments.suite,
        freshness: freshness(arguments.refresh),
    };
    let progress = if arguments.quiet {
        Progress::silent()
    } else {
        Progress::for_people()
    };
    let target = match &arguments.device {
        Some(path) => {
            let device = device::examine(&device::number(path)?, &device::Places::default())?;
            device.check(&arguments.allow)?;
            if !arguments.yes {
                confirm(&device)?;
            }
            Some((path, device))
        }
        None => None,
    };
    let stick = cidbuild::usb::build(&options, &Cache::open()?, &progress)?;
    if let Some((path, device)) = target {
        device::write(path, &device, &stick, &progress)?;
        if !arguments.quiet {
            eprintln!("stick        {} bytes, written and read back", stick.len());
        }
        writeln!(output, "{}", path.display())?;
    } else if let Some(file) = arguments.out {
        write_atomically(&file, &stick)?;
        if !arguments.quiet {
            eprintln!("stick        {} bytes", stick.len());
        }
        writeln!(output, "{}", file.display())?;
    }
    Ok(true)
}

/// Asks a person whether this is the stick they mean.
fn confirm(device: &device::Device) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{device}: nobody is there to ask; say --yes to erase it");
    }
    eprint!("Erase everything on {device}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("reading the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("{device}: left alone");
    }
    Ok(())
}

fn freshness(refresh: bool) -> Freshness {
    if refresh {
        Freshness::Refresh
    } else {
        Freshness::Pinned
    }
}

/// Where the head looks, unless this is a developer's tree.
fn default_out() -> PathBuf {
    let in_tree = beside_executable(3).is_some_and(|tree| tree.join("images").is_dir());
    if in_tree || Path::new("images").is_dir() {
        PathBuf::from("build/images")
    } else {
        PathBuf::from("/var/lib/cid/images")
    }
}

/// A file when it looks like one, else a recipe by name: here, beside the source tree, or installed.
fn recipe_file(name: &str) -> anyhow::Result<PathBuf> {
    if name.contains('/') || name.ends_with(".toml") {
        return Ok(PathBuf::from(name));
    }
    let file = format!("{name}.toml");
    let mut places = vec![PathBuf::from("images").join(&file)];
    // target/release/cidbuild -> the tree it was built in.
    places.extend(beside_executable(3).map(|tree| tree.join("images").join(&file)));
    places.push(Path::new("/usr/share/cid/images").join(&file));
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.with_context(|| {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!("no recipe {name:?}: looked for {}", places.join(", "))
    })
}

fn node_programs(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder);
    }
    let mut places: Vec<PathBuf> = beside_executable(2)
        .map(|folder| folder.join("node-programs"))
        .into_iter()
        .collect();
    places.push("/usr/lib/cid/node".into());
    match places.iter().find(|place| place.join("cid-init").is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            bail!(
                "no cid-init in {}: run ci/node-programs, or give --node-programs DIR",
                places.join(" or ")
            )
        }
    }
}

/// The folder `levels` above the executable.
fn beside_executable(levels: usize) -> Option<PathBuf> {
    std::env::current_exe()
        .ok()?
        .ancestors()
        .nth(levels)
        .map(Path::to_owned)
}
