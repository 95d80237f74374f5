use std::path::{Path, PathBuf};

use super::*;
use crate::apt::Freshness;

/// One line of a tree for [`tar_of`]: path, permissions, what it is.
enum What<'a> {
    Folder,
    File(&'a [u8]),
    Link(&'a str),
    Hard(&'a str),
}

fn tar_of(file: &Path, entries: &[(&str, u32, What<'_>)]) -> (PathBuf, String) {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, what) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_mtime(1_000_000);
        header.set_uid(if path.contains("home") { 1000 } else { 0 });
        header.set_gid(0);
        header.set_size(0);
        match what {
            What::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, path, std::io::empty()).unwrap();
            }
            What::File(bytes) => {
                // mkfs.erofs takes no notice of an old header's NUL in this place.
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, *bytes).unwrap();
            }
            What::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            }
            What::Hard(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    let bytes = builder.into_inner().unwrap();
    fs::write(file, &bytes).unwrap();
    (file.to_owned(), sha256_hex(&bytes))
}

/// Text that a compressor can do something with, different for each seed.
fn lines(seed: u64, count: u64) -> Vec<u8> {
    (0..count)
        .flat_map(|n| format!("{} of {seed}\n", n * seed % 9973).into_bytes())
        .collect()
}

/// The bottom and the top layer that the tests pack.
fn layers(folder: &Path) -> [(PathBuf, String); 2] {
    let (program, numbers) = (lines(7, 200_000), lines(3, 5_000));
    let bottom = tar_of(
        &folder.join("bottom.tar"),
        &[
            ("etc", 0o750, What::Folder),
            ("etc/motd", 0o644, What::File(b"below\n")),
            ("home", 0o755, What::Folder),
            ("home/user", 0o700, What::Folder),
            ("usr", 0o755, What::Folder),
            ("usr/bin", 0o755, What::Folder),
            ("usr/bin/program", 0o755, What::File(&program)),
            ("usr/bin/same", 0o755, What::Hard("usr/bin/program")),
            ("usr/numbers", 0o644, What::File(&numbers)),
            ("usr/sym", 0o777, What::Link("numbers")),
        ],
    );
    let top = tar_of(
        &folder.join("top.tar"),
        &[
            ("etc", 0o755, What::Folder),
            ("etc/motd", 0o644, What::File(b"above, and longer\n")),
            ("opt", 0o755, What::Folder),
            ("opt/new", 0o600, What::File(b"new\n")),
            ("usr/bin/late", 0o755, What::File(b"#!/bin/sh\n")),
        ],
    );
    [bottom, top]
}

fn pack_in(cache: &Cache, layers: &[(PathBuf, String)]) -> Packed {
    let layers = layers
        .iter()
        .zip(["base", "top"])
        .map(|((tar, sha256), name)| Layer {
            name,
            tar: tar.clone(),
            sha256: sha256.clone(),
            bytes: fs::metadata(tar).unwrap().len(),
        });
    let tree = RootTree {
        layers: layers.collect(),
        packages: vec![],
        epoch: 1_000_000,
        process: None,
        templates: Vec::new(),
        values: BTreeMap::new(),
    };
    let mut apt = Apt::new(cache, "trixie", Freshness::Pinned);
    pack(&tree, &mut apt, cache, &Progress::silent()).unwrap()
}

/// A cache of its own that has the machine's packages: they are fetched once for all tests.
fn cache(folder: &Path) -> Cache {
    let root = crate::cache::root().unwrap();
    // Filled through the machine's cache, then borrowed: two tests must not wait for each other's builds.
    {
        let shared = Cache::at(&root).unwrap();
        let mut apt = Apt::new(&shared, "trixie", Freshness::Pinned);
        Tool::of_suite(&mut apt, &shared, &Progress::silent()).unwrap();
    }
    fs::create_dir_all(folder).unwrap();
    for part in ["packages", "pins", "unpacked"] {
        std::os::unix::fs::symlink(root.join(part), folder.join(part)).unwrap();
    }
    Cache::at(folder).unwrap()
}

#[test]
fn two_layers_are_one_tree_whose_bytes_depend_on_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let layers = layers(folder.path());
    let one = cache(&folder.path().join("one"));
    let other = cache(&folder.path().join("somewhere/else"));
    let first = pack_in(&one, &layers);
    let second = pack_in(&other, &layers);
    assert_eq!((&first.sha256, &first.tree), (&second.sha256, &second.tree));
    assert_eq!(first.list, second.list);
    // From the cache: the same again.
    assert_eq!(pack_in(&one, &layers).sha256, first.sha256);

    let listed = |path: &str| first.list.entries.get(path).unwrap();
    assert_eq!(listed("/etc").mode, "040750", "the layer below decides");
    assert_eq!(listed("/etc/motd").size, 18);
    assert_eq!(
        listed("/usr/bin/same").same_as.as_deref(),
        Some("/usr/bin/program")
    );
    assert_eq!(listed("/home/user").uid, 1000);
    assert_eq!(
        List::decode(&String::from_utf8(first.list.encode().unwrap()).unwrap()).unwrap(),
        first.list
    );
}

#[test]
fn what_is_no_root_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let check = |entries: &[(&str, u32, What<'_>)], part: &str| {
        let (file, _) = tar_of(&folder.path().join("bad.tar"), entries);
        let error = List::of_tar(File::open(file).unwrap()).unwrap_err();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    };
    check(&[("usr/a", 0o644, What::Hard("usr/b"))], "not before it");
    let mut old = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    old.append_data(&mut header, "etc/lost", &b"x"[..]).unwrap();
    let error = List::of_tar(old.into_inner().unwrap().as_slice()).unwrap_err();
    assert!(error.to_string().starts_with("/etc/lost: its header"), "{error}");
    let below = List::of_tar(File::open(&layers(folder.path())[0].0).unwrap()).unwrap();
    let (top, _) = tar_of(&folder.path().join("t.tar"), &[("etc", 0o644, What::File(b"x"))]);
    let error = top::fit(&top, &below, &folder.path().join("fitted.tar")).unwrap_err();
    assert!(
        format!("{error:#}").contains("/etc: a folder in one layer"),
        "{error:#}"
    );
}

proptest::proptest! {
    #[test]
    fn a_list_of_any_text_is_an_error_or_a_list(text in "(\\{\"path\":\"/[a-z]{1,3}\",\"mode\":\"100644\",\"time\":[0-9]{1,3},\"size\":[0-9]{1,3}\\}\n){0,3}|\\PC*") {
        if let Ok(list) = List::decode(&text) {
            let again = List::decode(&String::from_utf8(list.encode().unwrap()).unwrap()).unwrap();
            assert_eq!(again, list);
        }
    }
}
