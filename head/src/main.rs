//! `cidhead`: the daemon. Reads what was typed, starts the parts in order, stops them cleanly. Must hold no logic.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cidhead::config::{Config, DEFAULT_PATH, Product, STARTER, render, snippet};
use cidhead::kept::Kept;
use cidhead::{interface, offers, service, trust};
use clap::{Parser, Subcommand};

/// What a person types.
#[derive(Debug, Parser)]
#[command(
    name = "cidhead",
    version,
    about = "The head of a CID cluster: boots PCs over the network, keeps their addresses, knows who is in",
    after_help = "First time: `cidhead init`, read the file it wrote, `cidhead check`, then `cidhead`.\n\
                  Exit codes: 0 stopped when asked to, 1 failed, 2 usage. Logs: RUST_LOG=debug shows every decision."
)]
struct Cli {
    /// The configuration.
    #[arg(long, global = true, env = "CID_HEAD_CONFIG", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented head.toml, make the state folder and the certificate authority in it. Never overwrites.
    Init {
        /// Interface that faces the lab; without it, the first one with an address.
        #[arg(long)]
        interface: Option<String>,
        /// State folder, if not /var/lib/cid.
        #[arg(long)]
        state_dir: Option<PathBuf>,
    },
    /// Print the lines that somebody else's DHCP server needs to send PCs to this head (mode = "off" in [dhcp]). The head's
    /// address is that of the interface in head.toml; the lines go where the comment at their top says.
    DhcpSnippet {
        /// Whose configuration.
        product: Product,
        /// Our address, if not the interface's.
        #[arg(long)]
        address: Option<std::net::Ipv4Addr>,
    },
    /// Print the configuration with every default filled in; look at interface, images and templates.
    Check,
    /// Print the JSON schema of head.toml.
    Schema,
    #[command(flatten)]
    Documents(cid_manual::Documents),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Init { interface, state_dir }) => init(&cli.config, interface, state_dir),
        Some(Command::Check) => check(&cli.config),
        Some(Command::Schema) => schema(),
        Some(Command::Documents(documents)) => document(&documents),
        Some(Command::DhcpSnippet { product, address }) => dhcp_snippet(&cli.config, product, address),
        None => run(&cli.config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cidhead: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
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

fn init(file: &Path, named: Option<String>, state_dir: Option<PathBuf>) -> Result<()> {
    let chosen = match named {
        Some(name) => name,
        None => interface::candidates()?
            .into_iter()
            .next()
            .unwrap_or_else(|| "head0".to_owned()),
    };
    let mut text = STARTER.replace("@INTERFACE@", &chosen);
    if let Some(folder) = &state_dir {
        let folder = std::path::absolute(folder)?;
        let line = |key: &str, path: &Path| {
            format!("{key} = {}", toml::Value::from(path.to_string_lossy().as_ref()))
        };
        text = text.replace("# state_dir = \"/var/lib/cid\"", &line("state_dir", &folder));
        text = text.replace(
            "# images_dir = \"/var/lib/cid/images\"",
            &line("images_dir", &folder.join("images")),
        );
    }
    let config = Config::parse(file, &text)?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    use std::io::Write as _;
    let mut out = match std::fs::File::create_new(file) {
        Ok(out) => out,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(
                "{} is there already and stays as it is; `cidhead check` looks at it",
                file.display()
            )
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", file.display())),
    };
    out.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    for folder in [&config.state_dir, &config.images_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // The authority with the folders: the first start finds it, and its pin can be noted before.
    let (authority, _) = trust::open(&config.state_dir)?;
    let unit = "/lib/systemd/system/cidhead.service";
    let start = if file == Path::new(DEFAULT_PATH) && Path::new(unit).exists() {
        "systemctl start cidhead"
    } else {
        "cidhead"
    };
    eprintln!(
        "cidhead: this head's certificate authority is {}",
        authority.pin()
    );
    eprintln!(
        "cidhead: wrote {} for interface {chosen}; next: `cidbuild image minimal --out {}`, `cidhead check`, `{start}`",
        file.display(),
        config.images_dir.display()
    );
    Ok(())
}

fn schema() -> Result<()> {
    use std::io::Write as _;
    let text = serde_json::to_string_pretty(&cidhead::config::schema())?;
    // A reader that closed the pipe has what it wanted.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn document(documents: &cid_manual::Documents) -> Result<()> {
    documents.write::<Cli>("8")?;
    if let cid_manual::Documents::Man { folder } = documents {
        let mut page = Vec::new();
        cidhead::config::manual_page().render(env!("CARGO_PKG_VERSION"), &mut page)?;
        std::fs::write(folder.join("head.toml.5"), page)?;
    }
    Ok(())
}

fn dhcp_snippet(file: &Path, product: Product, address: Option<std::net::Ipv4Addr>) -> Result<()> {
    let address = match address {
        Some(address) => address,
        None => interface::read(&Config::read(file)?.interface)?.subnet.address,
    };
    use std::io::Write as _;
    // A reader that closed the pipe has what it wanted.
    let _ = std::io::stdout().write_all(snippet(product, address).as_bytes());
    Ok(())
}

fn check(file: &Path) -> Result<()> {
    let config = Config::read(file)?;
    let mut findings = Vec::new();
    let resolved = match interface::read(&config.interface) {
        Ok(interface) => config
            .clone()
            .resolve(&interface.subnet)
            .map_err(|error| findings.push(error.to_string()))
            .ok(),
        Err(error) => {
            findings.push(error.to_string());
            None
        }
    };
    let config = resolved.unwrap_or(config);
    if config.groups.is_empty() {
        findings.push(format!(
            "{}: no group; nothing can be adopted; add [groups.lab-a]",
            file.display()
        ));
    }
    findings.extend(offers::check(&config));
    use std::io::Write as _;
    // A reader that closed the pipe has what it wanted.
    let _ = std::io::stdout().write_all(render(&config).as_bytes());
    for finding in &findings {
        eprintln!("cidhead: {finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("one thing to mend"),
        count => bail!("{count} things to mend"),
    }
}

fn run(file: &Path) -> Result<()> {
    // Before anything opens a file.
    let kept = Kept::inherit().context("the service manager's sockets cannot be taken")?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    // Before there are threads: a wake command is somebody else's program, and has no business with raw sockets.
    if let Err(error) = cid_sys::capabilities::clear_ambient() {
        tracing::warn!(%error, "wake commands inherit the head's capabilities");
    }
    let config = Config::read(file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(service::run(config, kept))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_commands_is_sound() {
        Cli::command().debug_assert();
    }
}
