//! Fetching with real sockets in a namespace of its own: a head that serves a folder by HTTP, nodes with doors, one of them a liar.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cid_content::manifest::Format;
use cid_content::{Bitmap, Digest, RootManifest, Tree};
use cid_protocol::NODE_PORT;
use cid_protocol::root::{RootOrder, RootPeer, RootReport};
use cid_trust::{Authority, Clients, Expect, Peer};
use tokio::sync::{mpsc, watch};

use super::fetch::{Fetch, Fetched};
use super::peer::Caller;
use super::serve::Offer;
use super::store::Store;
use super::task::{Command, News, Way};
use crate::door::{Door, ThrownOut};
use crate::member::Place;

const HEAD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const GOOD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const LIAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
const ME: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 4);
const BOUND: Duration = Duration::from_secs(60);

fn image() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// The head's HTTP, as much as matters: a part of the image for each question. While it is not `up` it hangs up.
fn serve(image: &Arc<Mutex<Vec<u8>>>, up: &Arc<AtomicBool>) {
    let listener = TcpListener::bind((HEAD, super::HEAD_HTTP_PORT)).expect("a port");
    for stream in listener.incoming() {
        let (mut stream, image, up) = (stream.expect("a connection"), image.clone(), up.clone());
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
            while let Some(Ok(line)) = lines.next() {
                let Some(range) = line.strip_prefix("Range: bytes=") else {
                    continue;
                };
                if !up.load(Ordering::SeqCst) {
                    return;
                }
                let (first, last) = range.split_once('-').expect("a range");
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let image = image.lock().expect("whole").clone();
                let part = &image[first..=last];
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {range}/{}\r\n\r\n",
                    part.len(),
                    image.len()
                );
                if stream.write_all(&[head.as_bytes(), part].concat()).is_err() {
                    return;
                }
            }
        });
    }
}

struct Room {
    manifest: RootManifest,
    tree: Tree,
    image: Vec<u8>,
    authority: Authority,
    folder: tempfile::TempDir,
    doors: Vec<(Door, watch::Sender<Option<Arc<Offer>>>)>,
    peers: Vec<RootPeer>,
}

impl Room {
    fn new() -> Self {
        let image = image();
        let tree = Tree::of(&image).expect("a tree");
        let manifest = RootManifest {
            image: "compute@3".into(),
            sequence: 7,
            format: Format::Erofs,
            shape: tree.shape(),
            tree_root: tree.root(),
            kernel: Digest([1; 32]),
            initrd: Digest([2; 32]),
            needed_ram_bytes: 1,
        };
        Self {
            manifest,
            tree,
            image,
            authority: Authority::generate().expect("an authority"),
            folder: tempfile::tempdir().expect("a folder"),
            doors: Vec::new(),
            peers: Vec::new(),
        }
    }

    /// A file with these bytes, whatever the tree says of them.
    fn store(&self, name: &str, bytes: &[u8]) -> Arc<Store> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).expect("made");
        let store = Store::open(&folder, self.tree.clone()).expect("a file");
        let mut rest = bytes;
        for chunk in 0..self.tree.shape().chunks() {
            let (_, length) = self.tree.shape().range(chunk).expect("a chunk");
            let Some((part, behind)) = rest.split_at_checked(length as usize) else {
                break;
            };
            store.write(chunk, part).expect("written");
            rest = behind;
        }
        Arc::new(store)
    }

    /// A node at `address` that says it has everything.
    fn node(&mut self, name: &str, id: &str, address: Ipv4Addr, bytes: &[u8]) {
        let id = id.repeat(16);
        let store = self.store(name, bytes);
        let offer = Offer::new(store, Bitmap::all(self.tree.shape().chunks()));
        let (sender, offered) = watch::channel(Some(offer));
        let identity = self.authority.issue(&Peer::node(&id).expect("an id"));
        let identity = identity.expect("issued");
        let config = cid_trust::server_config(&identity, Clients::MustBeKnown).expect("TLS");
        let place = Place {
            link: "lo".into(),
            address,
            head: SocketAddrV4::new(HEAD, NODE_PORT),
            shared: false,
        };
        let door =
            Door::open(&place, config, mpsc::channel(1).0, ThrownOut::default(), offered).expect("a door");
        self.doors.push((door, sender));
        let name = name.to_owned();
        self.peers.push(RootPeer { name, id, address });
    }

    fn way(&self) -> Way {
        let me = Peer::node(&"0f".repeat(16)).expect("an id");
        let identity = self.authority.issue(&me).expect("issued");
        let pin = identity.pin().expect("an authority");
        let config = cid_trust::client_config(pin, Expect::HeadOrNode, Some(&identity)).expect("TLS");
        let caller = Caller {
            link: "lo".into(),
            from: ME,
            config,
        };
        Way { caller, head: HEAD }
    }

    /// Fetches into folder `name`; the head gives tickets, names peers, or does nothing. What was reported, and the file.
    async fn fetch(&self, name: &str, gives: &[Gives]) -> (Fetched, Vec<RootReport>, Vec<u8>) {
        let store = self.store(name, &[]);
        let shape = self.tree.shape();
        let have = Bitmap::none(shape.chunks());
        let offer = Offer::new(Arc::clone(&store), have.clone());
        let (sender, mut inbox) = mpsc::channel(64);
        let reports = Arc::new(Mutex::new(Vec::new()));
        let (kept, peers, gives) = (reports.clone(), self.peers.clone(), gives.to_vec());
        let head = move |report: RootReport| {
            if let RootReport::Wish(wish) = &report {
                let have = super::decode_set(&wish.have, shape).expect("base64");
                let have = Bitmap::decode(&have, shape.chunks()).expect("a set");
                for gives in &gives {
                    let tree = wish.tree.clone();
                    let order = match gives {
                        Gives::Peers => RootOrder::Peers {
                            tree,
                            peers: peers.clone(),
                        },
                        Gives::Tickets => RootOrder::Tickets {
                            tree,
                            chunks: have.missing().take(wish.tickets as usize).collect(),
                            valid_ms: 5_000,
                        },
                    };
                    let _ = sender.try_send(Command::Order(order));
                }
            }
            kept.lock().expect("whole").push(report);
        };
        let news: Arc<dyn Fn(News) + Send + Sync> = Arc::new(move |news| {
            if let News::Report(report) = news {
                head(report);
            }
        });
        let (_way, ways) = watch::channel(Some(self.way()));
        let fetch = Fetch::new(&self.manifest, &store, have, &offer);
        let fetched = tokio::time::timeout(BOUND, fetch.run(&mut inbox, &ways, &news)).await;
        let fetched = fetched.expect("an end in time");
        let reports = std::mem::take(&mut *reports.lock().expect("whole"));
        (fetched, reports, fs::read(store.path()).expect("a file"))
    }
}

#[derive(Clone, Copy)]
enum Gives {
    Tickets,
    Peers,
}

#[test]
fn an_image_comes_from_the_head_and_from_peers_and_a_liar_is_named() {
    if !crate::room::enter("root::tests::an_image_comes_from_the_head_and_from_peers_and_a_liar_is_named") {
        return;
    }
    for address in [HEAD, GOOD, LIAR, ME] {
        let added = std::process::Command::new("ip")
            .args(["address", "add", &format!("{address}/24"), "dev", "lo"])
            .status();
        assert!(added.expect("ip runs").success());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut room = Room::new();
        let (up, served) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(Mutex::new(room.image.clone())),
        );
        let (server_up, server_image) = (up.clone(), served.clone());
        std::thread::spawn(move || serve(&server_image, &server_up));

        let (fetched, _, file) = room.fetch("from-head", &[Gives::Tickets]).await;
        assert!(matches!(fetched, Fetched::Whole(_)) && file == room.image);

        // A head that does not serve yet: the node waits, says so, and goes on.
        up.store(false, Ordering::SeqCst);
        let later = up.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(5));
            later.store(true, Ordering::SeqCst);
        });
        let (fetched, reports, file) = room.fetch("patient", &[Gives::Tickets]).await;
        assert!(matches!(fetched, Fetched::Whole(_)) && file == room.image);
        let waited =
            |report: &RootReport| matches!(report, RootReport::Fetching { waits, .. } if !waits.is_empty());
        assert!(reports.iter().any(waited), "{reports:?}");

        // Peers alone: what one of them says is worth nothing.
        let image = room.image.clone();
        let mut wrong = image.clone();
        wrong.iter_mut().for_each(|byte| *byte = !*byte);
        room.node("good", "0a", GOOD, &image);
        room.node("liar", "0b", LIAR, &wrong);
        let (fetched, reports, file) = room.fetch("from-peers", &[Gives::Peers]).await;
        assert!(matches!(fetched, Fetched::Whole(_)) && file == image);
        let named: Vec<&str> = reports
            .iter()
            .filter_map(|report| match report {
                RootReport::BadPeer { peer, .. } => Some(peer.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(named, ["liar"], "once, and nobody else");

        // One byte of the head's copy: no other node is there to help, so this one says no.
        served.lock().expect("whole")[1_000_000] ^= 1;
        let (fetched, reports, _) = room.fetch("flipped", &[Gives::Tickets]).await;
        let told = |report: &&RootReport| matches!(report, RootReport::WrongChunk { chunk: 3, .. });
        assert!(reports.iter().filter(told).count() >= 3, "each time: {reports:?}");
        assert!(matches!(fetched, Fetched::Wrong(why) if why.contains("not what it signed")));
        // Others have it right.
        let (fetched, _, file) = room.fetch("helped", &[Gives::Tickets, Gives::Peers]).await;
        assert!(matches!(fetched, Fetched::Whole(_)) && file == image);
    });
}
