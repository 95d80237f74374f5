use std::io::{Seek, SeekFrom, Write};

use super::*;

/// A tar of `NAME -> Entry` members, hard links by `HARD`.
fn tar_of(members: &[(&str, u8, &str)]) -> File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for (name, kind, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(100);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_entry_type(tar::EntryType::new(*kind));
        // Written by hand: the library refuses names that lead out.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        match kind {
            b'0' => {
                header.set_size(text.len() as u64);
                header.set_cksum();
                builder.append(&header, text.as_bytes()).unwrap();
            }
            b'1' | b'2' => {
                header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            }
            _ => {
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.entries().map(|(name, _)| name).collect()
}

fn layers(layers: &[&[(&str, u8, &str)]]) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    for members in layers {
        tree.read_tar(tar_of(members), Whiteouts::Apply)?;
    }
    Ok(tree)
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let tree = layers(&[
        &[
            ("./a/", b'5', ""),
            ("a/one", b'0', "1"),
            ("a/two", b'0', "2"),
            ("b/", b'5', ""),
            ("b/old", b'0', "3"),
            ("b/deep/", b'5', ""),
            ("b/deep/x", b'0', "4"),
            ("bb", b'0', "5"),
        ],
        // The opaque mark comes after a file of its own layer, which stays.
        &[
            ("a/.wh.one", b'0', ""),
            ("b/new", b'0', "6"),
            ("b/.wh..wh..opq", b'0', ""),
        ],
    ])
    .unwrap();
    assert_eq!(names(&tree), ["a", "a/two", "b", "b/new", "bb"]);
}

#[test]
fn names_never_lead_out() {
    for bad in ["../x", "a/../../x", "/../x"] {
        let error = layers(&[&[(bad, b'0', "1")]]).expect_err(bad).to_string();
        assert!(error.contains("leads out of the tree"), "{error}");
    }
    // A link to above the root, and a file through it: it stays inside.
    let tree = layers(&[&[
        ("etc/", b'5', ""),
        ("up", b'2', "../../../etc"),
        ("up/passwd", b'0', "x"),
        ("abs", b'2', "/etc"),
        ("abs/group", b'0', "y"),
    ]])
    .unwrap();
    assert_eq!(names(&tree), ["abs", "etc", "etc/group", "etc/passwd", "up"]);
    let error = layers(&[&[("a", b'2', "b"), ("b", b'2', "a"), ("a/x", b'0', "1")]]).expect_err("circle");
    assert!(error.to_string().contains("lead in a circle"), "{error}");
    // An absolute name is one inside.
    assert_eq!(
        names(&layers(&[&[("/etc/x", b'0', "1")]]).unwrap()),
        ["etc", "etc/x"]
    );
}

#[test]
fn links_files_and_folders_replace_one_another() {
    let tree = layers(&[
        &[
            ("a/", b'5', ""),
            ("a/x", b'0', "1"),
            ("f", b'0', "2"),
            ("hard", b'1', "f"),
        ],
        &[("a", b'0', "now a file"), ("f", b'0', "3")],
    ])
    .unwrap();
    assert_eq!(names(&tree), ["a", "f", "hard"]);
    assert_eq!(tree.read("hard").unwrap().unwrap(), b"2");
    assert_eq!(tree.read("f").unwrap().unwrap(), b"3");
    let error = layers(&[&[("f", b'0', "1"), ("f/x", b'0', "2")]]).expect_err("file as folder");
    assert_eq!(error.to_string(), "/f/x: /f is no folder");
    let error = layers(&[&[("h", b'1', "nowhere")]]).expect_err("hard link");
    assert!(error.to_string().contains("hard link to /nowhere"), "{error}");
}

#[test]
fn a_cut_archive_is_refused() {
    let file = tar_of(&[("f", b'0', &"x".repeat(5000))]);
    file.set_len(2048).unwrap();
    let error = Tree::default().read_tar(file, Whiteouts::Keep).expect_err("cut");
    assert!(format!("{error:#}").contains("not all there"), "{error:#}");
}

#[test]
fn what_is_written_is_what_is_read() {
    let mut tree = Tree::default();
    let long = format!("usr/{}/file", "long-name/".repeat(30));
    let mut capable = Entry::text("program", 0o4755);
    capable
        .attributes
        .insert("security.capability".into(), vec![1, 0, 0, 2, 0]);
    (capable.uid, capable.gid, capable.mtime) = (3_000_000, 7, 500);
    tree.put(&long, Entry::text("deep", 0o600)).unwrap();
    tree.put("usr/bin/ping", capable).unwrap();
    let shared = tree.get("usr/bin/ping").unwrap().clone();
    tree.put("usr/bin/aaa", shared).unwrap();
    tree.put("bin", Entry::new(Kind::Link("usr/bin".into()), 0o777))
        .unwrap();
    tree.put("dev/null", Entry::new(Kind::Device(1, 3), 0o666))
        .unwrap();
    tree.put("bin/sh", Entry::text("through the link", 0o755))
        .unwrap();
    let mut bytes = Vec::new();
    tree.write_tar(&mut bytes, 400, |_| {}).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let mut again = Tree::default();
    again.read_tar(file, Whiteouts::Keep).unwrap();
    assert_eq!(again.facts().unwrap(), tree.facts().unwrap());
    let ping = again.get("usr/bin/ping").unwrap();
    assert_eq!((ping.mtime, ping.attributes.len()), (400, 1));
    let (Kind::File(one), Kind::File(two)) = (&ping.kind, &again.get("usr/bin/aaa").unwrap().kind) else {
        panic!("files");
    };
    assert!(Arc::ptr_eq(one, two), "still one file");
    assert!(again.get("usr/bin/sh").is_some());
    let mut twice = Vec::new();
    again.write_tar(&mut twice, 400, |_| {}).unwrap();
    assert_eq!(bytes, twice);
}

#[test]
fn patterns() {
    for (pattern, text, expected) in [
        ("/usr/share/man/*", "/usr/share/man/man1/ls.1", true),
        ("/usr/share/man/*", "/usr/share/man", false),
        ("/usr/share/doc/*/copyright", "/usr/share/doc/a/copyright", true),
        ("*.pyc", "/usr/lib/a.pyc", true),
        ("/a", "/a", true),
        ("/a", "/ab", false),
        ("/a*b*c", "/a1b2c", true),
        ("/a*b*c", "/a1c2b", false),
    ] {
        assert_eq!(covers(pattern, text), expected, "{pattern} {text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(noise: Vec<u8>, start in 0_usize..512, kind in proptest::char::range('0', '7')) {
        let mut bytes = Vec::new();
        let mut source = tar_of(&[("a/b", b'0', "text"), ("a/.wh.b", kind as u8, "a/b"), ("x", b'x', "")]);
        source.seek(SeekFrom::Start(0)).unwrap();
        source.read_to_end(&mut bytes).unwrap();
        for (at, byte) in noise.iter().enumerate() {
            let at = (start + at * 7) % bytes.len();
            bytes[at] ^= byte;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut tree = Tree::default();
        // Refused or read, never out of the tree.
        let _ = tree.read_tar(file, Whiteouts::Apply);
        for (name, _) in tree.entries() {
            proptest::prop_assert!(!name.split('/').any(|part| part == ".." || part.is_empty()));
        }
    }
}
