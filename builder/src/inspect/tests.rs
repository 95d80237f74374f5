use super::*;
use cid_initramfs::{Compression, Node, Plan, compress, write_archive};

/// An image folder made of one small plan, as the builder would write it.
fn image(compression: Compression, change: impl FnOnce(&mut Plan)) -> tempfile::TempDir {
    let mut plan = Plan::new();
    plan.add("/init", Node::program(*b"program")).unwrap();
    plan.add(
        "/bin/sh",
        Node::Symlink {
            target: "busybox".into(),
        },
    )
    .unwrap();
    plan.add(
        "/dev/null",
        Node::CharacterDevice {
            permissions: 0o666,
            major: 1,
            minor: 3,
        },
    )
    .unwrap();
    change(&mut plan);
    plan.seal().unwrap();
    let mut initrd = Vec::new();
    compress(
        &write_archive(&plan).unwrap(),
        compression,
        &(),
        &mut initrd,
        |_| (),
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("initrd.img"), &initrd).unwrap();
    let files = plan.nodes().map(|(path, node)| {
        let size = if matches!(node, Node::Directory { .. }) {
            0
        } else {
            node.content().len() as u64
        };
        (
            path.to_owned(),
            FileEntry {
                mode: format!("{:06o}", node.mode()),
                size,
                sha256: node.sha256(),
            },
        )
    });
    let artifact = Artifact {
        sha256: cid_initramfs::digest::sha256_hex(&initrd),
        size: initrd.len() as u64,
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        name: "try".into(),
        kernel_release: "6.12".into(),
        cmdline: String::new(),
        recipe_sha256: String::new(),
        artifacts: [("initrd.img".to_owned(), artifact)].into(),
        files: files.collect(),
        nic_drivers: vec![],
        nic_ids: vec![],
        firmware: BTreeMap::new(),
        needed_ram_bytes: 0,
        root: None,
    };
    std::fs::write(
        folder.path().join("manifest.json"),
        serde_json::to_vec(&manifest).unwrap(),
    )
    .unwrap();
    folder
}

fn text(run: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut output = Vec::new();
    run(&mut output);
    String::from_utf8(output).unwrap()
}

#[test]
fn list_and_read() {
    for compression in [Compression::Gzip(6), Compression::Zstd(3), Compression::Xz(3)] {
        let image = image(compression, |_| ());
        let listing = text(|output| ls(image.path(), Part::Stage1, Format::Text, output).unwrap());
        assert!(listing.contains("100755          7 /init\n"), "{listing}");
        assert_eq!(
            text(|output| cat(image.path(), Part::Stage1, "/init", output).unwrap()),
            "program"
        );
        assert_eq!(
            text(|output| cat(&image.path().join("initrd.img"), Part::Stage1, "init", output).unwrap()),
            "program"
        );
        let error = cat(image.path(), Part::Stage1, "/none", &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no /none in it"), "{error}");
        let error = format!(
            "{:#}",
            cat(image.path(), Part::Stage1, "/dev", &mut Vec::new()).unwrap_err()
        );
        assert!(error.contains("is a directory"), "{error}");
    }
}

#[test]
fn differences() {
    let one = image(Compression::Zstd(3), |_| ());
    let other = image(Compression::Gzip(1), |plan| {
        plan.add("/etc/motd", Node::file(*b"hello")).unwrap()
    });
    assert!(diff(one.path(), one.path(), Format::Text, &mut Vec::new()).unwrap());
    let listing = text(|output| assert!(!diff(one.path(), other.path(), Format::Text, output).unwrap()));
    assert!(
        listing.contains("+          -          5 /etc/motd\n"),
        "{listing}"
    );
    assert!(listing.contains("* "), "the closing mark differs: {listing}");
    let document = text(|output| assert!(!diff(one.path(), other.path(), Format::Json, output).unwrap()));
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert!(
        document
            .as_array()
            .unwrap()
            .iter()
            .any(|item| item["path"] == "/etc/motd" && item["first"].is_null())
    );
}

#[test]
fn verify_finds_every_changed_byte() {
    let image = image(Compression::Zstd(3), |_| ());
    assert!(verify(image.path(), Format::Text, &mut Vec::new()).unwrap());
    let file = image.path().join("initrd.img");
    let good = std::fs::read(&file).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, &bad).unwrap();
        assert!(
            !verify(image.path(), Format::Json, &mut Vec::new()).unwrap(),
            "byte {at}"
        );
    }
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..length]).unwrap();
        assert!(
            !verify(image.path(), Format::Text, &mut Vec::new()).unwrap(),
            "cut at {length}"
        );
        assert!(
            ls(image.path(), Part::Stage1, Format::Text, &mut Vec::new()).is_err()
                || length == good.len() - 1
        );
    }
}

#[test]
fn a_manifest_cannot_lead_out() {
    let image = image(Compression::Zstd(3), |_| ());
    let file = image.path().join("manifest.json");
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("\"initrd.img\"", "\"../../etc/passwd\"");
    std::fs::write(&file, text).unwrap();
    let mut output = Vec::new();
    assert!(!verify(image.path(), Format::Text, &mut output).unwrap());
    assert!(
        String::from_utf8(output)
            .unwrap()
            .contains("is no name of a file beside it")
    );
}

#[test]
fn no_control_character_reaches_the_terminal() {
    assert_eq!(shown("a\x1b[2Jb"), "a\\u{1b}[2Jb");
    assert_eq!(shown("ä b"), "ä b");
}

#[test]
fn a_bomb_costs_no_memory() {
    // An entry of 1 GiB that ends after 64 MiB of zeros, in a few kilobytes: read through, nothing kept, refused.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bomb");
    let mut encoder = zstd::Encoder::new(std::fs::File::create(&file).unwrap(), 1).unwrap();
    let header = "07070100000001000081a4000000000000000000000001000000004000000000000000000000000000000000000000000000020000000061000000";
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..64 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    let error = format!(
        "{:#}",
        ls(&file, Part::Stage1, Format::Json, &mut Vec::new()).unwrap_err()
    );
    assert!(!error.contains('\n'), "{error}");
}

proptest::proptest! {
    #[test]
    fn arbitrary_files_never_panic(bytes in proptest::collection::vec(0_u8.., 0..400), kind in 0..4) {
        let start: &[u8] = match kind {
            0 => b"\x1f\x8b\x08", 1 => b"\x28\xb5\x2f\xfd", 2 => b"\xfd7zXZ\0", _ => b"070701",
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        std::fs::write(&file, [start, &bytes].concat()).unwrap();
        let error = ls(&file, Part::Stage1, Format::Text, &mut Vec::new());
        proptest::prop_assert!(error.is_err());
        let line = format!("{:#}", error.unwrap_err());
        proptest::prop_assert!(!line.contains('\n'));
    }
}
