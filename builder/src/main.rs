//! `cidbuild`: builds images and looks inside them. Parsing only validates; exit codes come out of [`main`] alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use cidbuild::apt::Freshness;
use cidbuild::cache::Cache;
use cidbuild::image::{Options, build};
use cidbuild::progress::Progress;
use cidbuild::recipe::Recipe;
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
}

#[derive(Debug, Args)]
struct ImageArguments {
    /// Name of a recipe in images/, or a recipe file (with '/' or '.toml').
    #[arg(default_value = "minimal")]
    recipe: String,
    /// Folder in which the image's own folder appears.
    #[arg(long, value_name = "DIR", default_value = "build/images")]
    out: PathBuf,
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
    /// Folder with cid-init and cid-agent.
    #[arg(long, value_name = "DIR")]
    node_programs: Option<PathBuf>,
    /// Ask the archive for newer packages instead of using those fetched before.
    #[arg(long)]
    refresh: bool,
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage and 0 on --help.
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Image(arguments) => image(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cidbuild: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn image(arguments: ImageArguments) -> anyhow::Result<()> {
    let recipe = Recipe::load(&recipe_file(&arguments.recipe)?)?;
    let options = Options {
        out: arguments.out,
        kernel: arguments.kernel.zip(arguments.modules),
        shim: arguments.shim,
        grub: arguments.grub,
        mok: arguments.mok,
        node_programs: node_programs(arguments.node_programs)?,
        freshness: if arguments.refresh {
            Freshness::Refresh
        } else {
            Freshness::Pinned
        },
    };
    let built = build(&recipe, &options, &Cache::open()?, &Progress::for_people())?;
    println!("{}", built.folder.display());
    Ok(())
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
