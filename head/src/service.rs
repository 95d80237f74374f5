//! The daemon: starts the parts in order, joins them, stops them. Must hold no logic of its own.
//!
//! Order of start: interface and address, database, is there a rival, sockets, images, readiness. Nothing is bound
//! before the database is ours, and nothing is answered before everything is bound.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use cid_bootserver::addresses::Addresses;
use cid_bootserver::counters::Counters;
use cid_bootserver::dhcp::proxy::{BOOT_SERVER_PORT, Proxy};
use cid_bootserver::dhcp::proxy_socket::{ProxyShell, bind_boot_server};
use cid_bootserver::dhcp::rival::Watch;
use cid_bootserver::dhcp::server::{Server, Settings};
use cid_bootserver::dhcp::socket::{Shell, Sockets};
use cid_bootserver::files::{BootBegins, Files};
use cid_bootserver::keep::SocketKeeper;
use cid_bootserver::neighbours::KernelTable;
use cid_bootserver::policy::Transport;
use cid_bootserver::roots::RootDoor;
use cid_bootserver::{http, tftp};
use cid_protocol::NODE_PORT;
use cid_protocol::api::Event;
use cid_protocol::trace::What;
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::api::{self, Api};
use crate::config::{Config, DhcpMode};
use crate::content::store::RootStore;
use crate::core::Core;
use crate::desk::Desk;
use crate::interface::{self, Interface};
use crate::kept::Kept;
use crate::library::{self, Library};
use crate::membership::Members;
use crate::membership::door;
use crate::promises::Sign;
use crate::registry::Registry;
use crate::store::{Contents, Store};
use crate::trust::{self, Trust};
use crate::wake::Power;
use crate::{nodes, offers};

/// Callers that may wait to be accepted: a room of PCs.
const BACKLOG: i32 = 1024;
/// Event of a clean stop.
const STOPS: &str = "cidhead stops";
/// A head that is back within this time of its last event was restarted, not switched on.
const RESTART_TIME: Duration = Duration::from_secs(60);

/// Everything bound, nothing answered yet.
struct Bound {
    wires: Vec<Wire>,
    api: tokio::net::UnixListener,
}

/// What is bound on one interface.
struct Wire {
    address: Ipv4Addr,
    dhcp: Dhcp,
    tftp: tftp::Server,
    http: TcpListener,
    nodes: TcpListener,
    members: door::Wire,
}

/// What there is of DHCP on one interface.
enum Dhcp {
    Full(Sockets, Watch),
    Proxy {
        sockets: Sockets,
        boot_server: UdpSocket,
        watch: Watch,
    },
    Off,
}

/// Runs until it is told to stop. `kept`: sockets from before a restart.
///
/// # Errors
/// It cannot start, or a part failed; one chain with the remedy.
pub async fn run(config: Config, kept: Kept) -> Result<()> {
    run_signing(config, kept, |trust| {
        Arc::new(move |manifest| trust.sign_root(manifest))
    })
    .await
}

/// The same with another hand that signs root images: for a head that does it wrong (`examples/crooked_head.rs`).
///
/// # Errors
/// As [`run`].
pub async fn run_signing(config: Config, kept: Kept, hand: impl FnOnce(Arc<Trust>) -> Sign) -> Result<()> {
    crate::wall::take_lab_clock(&config.state_dir)?;
    // First of all: a signal during the start must stop us cleanly too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let interfaces: Vec<Interface> = config
        .interfaces
        .iter()
        .map(|name| interface::read(name))
        .collect::<Result<_, _>>()?;
    let interface = interfaces.first().context("head.toml names no interface")?;
    let config = config.resolve(&interface.subnet)?;
    let (store, mut contents) = Store::open(&config.state_dir)?;
    let cut_short = was_cut_short(&store, !kept.is_empty())?;
    if !cut_short {
        kept.discard();
    }
    let bound = tokio::select! {
        bound = bind(&config, &interfaces, cut_short, &kept) => bound?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let trust = trust::start(&config.state_dir, config.token_valid)?;
    let socket = config.socket.clone();
    let (steps, groups) = (
        std::mem::take(&mut contents.steps),
        std::mem::take(&mut contents.groups),
    );
    let credentials = std::mem::take(&mut contents.credentials);
    let images = std::mem::take(&mut contents.images);
    let machines = contents.machines.clone();
    tracing::info!(
        machines = machines.len(),
        leases = contents.leases.len(),
        changes = contents.history.len(),
        "state read"
    );
    let core = Core::start(store, Power::new(interfaces.clone()), |now| {
        let mut registry = Registry::new(&config, machines, now);
        registry.restore_timelines(steps);
        registry.restore_groups(groups);
        registry.restore_credentials(credentials);
        registry.restore_images(images);
        registry
    });
    begin_membership(&core, &mut contents, interface).await?;
    let leases = contents.leases;
    // Of versions alone: what is promised is one, and cidbuild replaces the folders of built images.
    let versions = config.state_dir.join(crate::versions::FOLDER);
    let store = Arc::new(RootStore::new(vec![versions]));
    core.content.begin(store);
    library::begin(&config, &core)
        .await
        .context("the versions of images cannot be kept")?;
    let assigned = core.read(Registry::assigned);
    let offers = offers::load(&config, interface.subnet.address, assigned).await?;
    let library = Library::new(
        &config,
        Arc::clone(&core),
        Arc::clone(&offers),
        hand(Arc::clone(&trust)),
    );
    library.settle().await;
    let mut tasks = start(&config, interface, bound, &core, &library, &leases, &trust)?;
    let text = format!(
        "cidhead {} serves {}",
        env!("CARGO_PKG_VERSION"),
        config.interface
    );
    core.act(|registry, now| {
        registry.trace(now, None, What::Head { text: text.clone() });
        registry.note("head", text);
    })
    .1
    .unacknowledged();
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = tasks.join_next() => Err(match ended {
            Ok(error) => error,
            Err(error) => anyhow!("a part of the head failed: {error}"),
        }),
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tasks.shutdown().await;
    let input = |registry: &mut Registry, _| {
        registry.flush_lazily();
        registry.note("head", STOPS.to_owned());
    };
    core.act(input).1.unacknowledged();
    // An empty write waited for stands behind everything queued before it.
    core.store().submit(Vec::new())?.done().await?;
    let _ = std::fs::remove_file(&socket);
    ended
}

/// The head's next incarnation is on disk before a member hears of it.
async fn begin_membership(core: &Core, contents: &mut Contents, interface: &Interface) -> Result<()> {
    let address = SocketAddrV4::new(interface.subnet.address, NODE_PORT);
    let (members, writes) =
        Members::begin(contents, address, core.now()).context("cannot draw a group key")?;
    core.store().submit(writes)?.done().await?;
    core.begin_membership(members);
    Ok(())
}

/// Whether this head was serving a moment ago and was killed. Then nobody has had the time to put another DHCP server on
/// the wire, and PCs in the middle of their boot are waiting: the first look for a rival is made while serving.
fn was_cut_short(store: &Store, kept: bool) -> Result<bool> {
    let events = store.events(None, 64)?;
    let now = crate::wall::unix_now();
    Ok(cut_short(&events, now, kept))
}

/// The newest event is recent, and it is neither a clean stop nor about a rival. A service manager that hands over sockets says
/// the same of a head that had nothing to tell for a while, or was restarted on purpose: it lets go of them when the service stops.
fn cut_short(events: &[Event], now: Duration, kept: bool) -> bool {
    let quiet = events
        .iter()
        .rev()
        .take_while(|event| event.kind != "head")
        .all(|event| event.kind != "rival-dhcp");
    events.last().is_some_and(|last| {
        let age = now.checked_sub(Duration::from_millis(last.time_unix_ms));
        quiet
            && last.kind != "rival-dhcp"
            && (kept || last.text != STOPS && age.is_some_and(|age| age < RESTART_TIME))
    })
}

async fn bind(config: &Config, interfaces: &[Interface], cut_short: bool, keeper: &Kept) -> Result<Bound> {
    let mut wires = Vec::new();
    for interface in interfaces {
        wires.push(bind_wire(config, interface, cut_short, keeper).await?);
    }
    // Last: whoever finds the socket finds a head that has started.
    let api = api::listen(&config.socket).await?;
    Ok(Bound { wires, api })
}

async fn bind_wire(config: &Config, interface: &Interface, cut_short: bool, keeper: &Kept) -> Result<Wire> {
    let address = interface.subnet.address;
    let occupied = |what: &'static str, port: u16| {
        let remedy = format!(
            "as root or with CAP_NET_BIND_SERVICE and CAP_NET_RAW; `ss -lnp | grep ':{port} '` shows who has it"
        );
        move || format!("cannot listen for {what} on {address} port {port} ({remedy})")
    };
    let sockets = || Sockets::bind(&interface.name, keeper).with_context(occupied("DHCP", 67));
    let watch = || Watch::new(address, seed(), Duration::ZERO);
    let dhcp = match config.dhcp.mode {
        DhcpMode::Off => Dhcp::Off,
        DhcpMode::Proxy => Dhcp::Proxy {
            sockets: sockets()?,
            boot_server: bind_boot_server(address, keeper)
                .with_context(occupied("PXE boot servers", BOOT_SERVER_PORT))?,
            watch: watch(),
        },
        DhcpMode::Full => {
            let (sockets, mut watch) = (sockets()?, watch());
            refuse_rival(&interface.name, &sockets, &mut watch, cut_short).await?;
            Dhcp::Full(sockets, watch)
        }
    };
    let tcp = |port| listen(SocketAddrV4::new(address, port), keeper);
    let journal = match interface.name == config.interface {
        true => "tftp.journal".to_owned(),
        false => format!("tftp-{address}.journal"),
    };
    Ok(Wire {
        address,
        dhcp,
        tftp: tftp::Server::bind(address, keeper)
            .with_context(occupied("TFTP", tftp::PORT))?
            .journal(config.state_dir.join(journal)),
        http: tcp(http::PORT).with_context(occupied("HTTP", http::PORT))?,
        nodes: listen_for_nodes(address).with_context(occupied("nodes", NODE_PORT))?,
        members: door::Wire::bind(interface, keeper).with_context(occupied("members", NODE_PORT))?,
    })
}

/// Full mode does not start beside another DHCP server.
async fn refuse_rival(interface: &str, sockets: &Sockets, watch: &mut Watch, cut_short: bool) -> Result<()> {
    if cut_short {
        tracing::warn!(interface, "killed a moment ago: serving again at once");
        return Ok(());
    }
    tracing::info!(interface, "looking for another DHCP server");
    let found = sockets.find_rival(watch).await;
    let Some(rival) = found.context("cannot look for another DHCP server")? else {
        return Ok(());
    };
    let offered = rival
        .offered
        .map(|offered| format!(" and offered {offered}"))
        .unwrap_or_default();
    bail!(
        "another DHCP server answers on {interface}: {}{offered}; two would give out each other's addresses: switch it off there, serve another interface, or set mode = \"proxy\" in [dhcp] to boot PCs beside it",
        rival.server
    );
}

/// Callers wait in the queue of a kept socket until somebody accepts them.
fn listen(address: SocketAddrV4, keeper: &dyn SocketKeeper) -> std::io::Result<TcpListener> {
    let name = format!("tcp.{}.{}", address.port(), address.ip());
    let socket = keeper.socket(&name, &|| listening(address, BACKLOG))?;
    TcpListener::from_std(socket.into())
}

/// Kept by nobody: a node that calls a head which is not there must be told so, and calls again within seconds. In a kept socket's queue
/// it waits until it gives up; after a minute that queue is full of those who gave up, and the kernel takes nobody's call any more: at a
/// thousand nodes the last was heard 12 to 15 s behind such a head's return.
fn listen_for_nodes(address: Ipv4Addr) -> std::io::Result<TcpListener> {
    let backlog = i32::try_from(nodes::MAX_CONNECTIONS).unwrap_or(i32::MAX);
    let socket = listening(SocketAddrV4::new(address, NODE_PORT), backlog)?;
    TcpListener::from_std(socket.into())
}

fn listening(address: SocketAddrV4, backlog: i32) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

fn start(
    config: &Config,
    interface: &Interface,
    bound: Bound,
    core: &Arc<Core>,
    library: &Arc<Library>,
    leases: &[crate::store::Lease],
    trust: &Arc<Trust>,
) -> Result<JoinSet<anyhow::Error>> {
    let offers = library.offers();
    let counters = Arc::new(Counters::default());
    // Where others give out the addresses, a lease of ours from former times is no word to go by.
    let leases = if config.dhcp.mode == DhcpMode::Full {
        leases
    } else {
        &[]
    };
    let addresses = Arc::new(Addresses::new(leases).with_neighbours(KernelTable));
    let desk = Desk::new(
        Arc::clone(core),
        Arc::clone(offers),
        Arc::clone(&counters),
        leases,
    );
    let desk = Arc::new(desk.configured(config).trusting(Arc::clone(trust)));
    let files = Files::new(
        Arc::clone(&desk),
        Arc::clone(offers),
        Arc::clone(&addresses),
        Arc::clone(&counters),
    )
    .beginning(match config.dhcp.mode {
        DhcpMode::Full | DhcpMode::Proxy => BootBegins::WithDhcp,
        DhcpMode::Off => BootBegins::WithFirstFile,
    });
    let files = match core.content.store() {
        Some(store) => files.with_roots(RootDoor::new(store)),
        None => files,
    };
    let api = Api {
        core: Arc::clone(core),
        boot: Arc::clone(&desk) as Arc<dyn api::BootView>,
        interface: config.interfaces.join(", "),
        address: interface.subnet.address.to_string(),
        config: config.clone(),
        library: Some(Arc::clone(library)),
    };
    let mut tasks = JoinSet::new();
    let mut wires = Vec::new();
    for wire in bound.wires {
        let address = wire.address;
        match wire.dhcp {
            Dhcp::Full(sockets, watch) => {
                let shell = Shell {
                    sockets,
                    server: Server::new(dhcp_settings(config, interface)?, leases),
                    watch,
                    directory: Arc::clone(&desk),
                    addresses: Arc::clone(&addresses),
                    counters: Arc::clone(&counters),
                };
                tasks.spawn(async move { failed("DHCP", shell.serve().await) });
            }
            Dhcp::Proxy {
                sockets,
                boot_server,
                watch,
            } => {
                let shell = ProxyShell {
                    sockets,
                    boot_server,
                    proxy: Proxy::new(address),
                    watch,
                    directory: Arc::clone(&desk),
                    addresses: Arc::clone(&addresses),
                    counters: Arc::clone(&counters),
                };
                tasks.spawn(async move { failed("proxy DHCP", shell.serve().await) });
            }
            Dhcp::Off => {}
        }
        let (by_tftp, by_http) = (
            files.at(address, Transport::Tftp),
            files.at(address, Transport::Http),
        );
        tasks.spawn(async move { failed("TFTP", wire.tftp.serve(by_tftp).await) });
        tasks.spawn(async move {
            http::serve(wire.http, by_http).await;
            stopped("HTTP")
        });
        let (nodes_core, trust) = (Arc::clone(core), Arc::clone(trust));
        tasks.spawn(async move {
            nodes::serve(nodes_core, trust, wire.nodes).await;
            stopped("the door for nodes")
        });
        wires.push(wire.members);
    }
    let members_core = Arc::clone(core);
    tasks.spawn(async move {
        door::serve(members_core, wires)
            .await
            .context("the membership ended")
    });
    tasks.spawn(async move { failed("the control API", api::serve(Arc::new(api), bound.api).await) });
    let library = Arc::clone(library);
    tasks.spawn(async move {
        library.watch().await;
        stopped("watching images")
    });
    Ok(tasks)
}

/// No part ends by itself; one that did is the failure.
fn failed<E: Into<anyhow::Error>>(part: &'static str, ended: Result<(), E>) -> anyhow::Error {
    match ended {
        Ok(()) => stopped(part),
        Err(error) => error.into().context(format!("{part} failed")),
    }
}

fn stopped(part: &'static str) -> anyhow::Error {
    anyhow!("{part} stopped by itself")
}

fn dhcp_settings(config: &Config, interface: &Interface) -> Result<Settings> {
    let (first, last) = config.dhcp.range.context("the DHCP range is not resolved")?;
    Ok(Settings {
        address: interface.subnet.address,
        prefix: interface.subnet.prefix,
        first,
        last,
        lease_secs: u32::try_from(config.dhcp.lease.as_secs()).unwrap_or(u32::MAX),
        router: config.dhcp.router,
        dns: config.dhcp.dns.clone(),
        domain: config.dhcp.domain.clone(),
    })
}

/// Probes of two heads on one wire must differ.
fn seed() -> u64 {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    (clock as u64) ^ (u64::from(std::process::id()) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_head_that_was_killed_while_serving_skips_the_wait_for_a_rival() {
        let event = |secs: u64, kind: &str, text: &str| Event {
            seq: 1,
            time_unix_ms: secs * 1000,
            mac: String::new(),
            name: String::new(),
            kind: kind.to_owned(),
            text: text.to_owned(),
        };
        let serves = || event(900, "head", "cidhead serves");
        let now = Duration::from_secs(1000);
        for (events, expected) in [
            (vec![], false),
            (vec![serves()], false),
            (vec![serves(), event(990, "lease", "x")], true),
            (vec![event(980, "head", "cidhead serves")], true),
            (
                vec![serves(), event(990, "lease", "x"), event(991, "head", STOPS)],
                false,
            ),
            (
                vec![
                    serves(),
                    event(990, "rival-dhcp", "there"),
                    event(995, "lease", "x"),
                ],
                false,
            ),
            (
                vec![serves(), event(1990, "lease", "a clock that was set back")],
                false,
            ),
        ] {
            assert_eq!(cut_short(&events, now, false), expected, "{events:?}");
            let rival = events.iter().any(|event| event.kind == "rival-dhcp");
            assert_eq!(
                cut_short(&events, now, true),
                !events.is_empty() && !rival,
                "{events:?}"
            );
        }
    }
}
