use super::*;

fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.add("/init", Node::program(*b"program")).unwrap();
    plan.add(
        "/dev/console",
        Node::CharacterDevice {
            permissions: 0o600,
            major: 5,
            minor: 1,
        },
    )
    .unwrap();
    plan.add(
        "/bin/sh",
        Node::Symlink {
            target: "busybox".into(),
        },
    )
    .unwrap();
    plan.add("/empty", Node::file(*b"")).unwrap();
    for length in 1..9 {
        // Every padding of name and content.
        plan.add(
            &format!("/pad/{}", "n".repeat(length)),
            Node::file(vec![b'x'; length]),
        )
        .unwrap();
    }
    plan.seal().unwrap();
    plan
}

fn bytes(plan: &Plan) -> Vec<u8> {
    write_archive(plan).unwrap().bytes
}

fn list(archive: &[u8]) -> Result<Vec<(String, u32, Vec<u8>)>, ArchiveError> {
    let mut entries = Vec::new();
    read_archive(&mut { archive }, |header, content| {
        let mut data = Vec::new();
        content.read_to_end(&mut data)?;
        entries.push((header.path.clone(), header.mode, data));
        Ok(())
    })?;
    Ok(entries)
}

#[test]
fn what_goes_in_comes_out() {
    let plan = plan();
    let expected: Vec<_> = plan
        .nodes()
        .map(|(path, node)| (path.to_owned(), node.mode(), node.content().to_vec()))
        .collect();
    assert_eq!(list(&bytes(&plan)).unwrap(), expected);
    assert_eq!(expected.last().unwrap().0, crate::plan::COMPLETE);
}

#[test]
fn inodes_start_at_one_and_differ() {
    // The crate's `write_cpio` numbers from 0; two names with one inode would be taken for hard links.
    let archive = bytes(&plan());
    let mut seen = std::collections::BTreeSet::new();
    let mut rest = archive.as_slice();
    loop {
        let reader = cpio::newc::Reader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            break;
        }
        assert!(reader.entry().ino() > 0);
        assert!(seen.insert(reader.entry().ino()), "{}", reader.entry().name());
        assert_eq!(
            (reader.entry().mtime(), reader.entry().uid(), reader.entry().gid()),
            (0, 0, 0)
        );
        rest = reader.finish().unwrap();
    }
}

#[test]
fn the_crate_still_forgives_a_short_write() {
    // The trap that `write_archive` closes by writing the whole content in one call. If this changes, so may we.
    let entry = cpio::newc::Builder::new("a")
        .mode(0o100_644)
        .write(Vec::new(), 100);
    assert!(entry.finish().is_ok(), "the trap is gone: simplify write_archive");
}

#[test]
fn the_packed_run_is_known() {
    let mut plan = plan();
    let archive = write_archive(&plan).unwrap();
    assert_eq!(archive.packed, archive.bytes.len()..archive.bytes.len());
    plan.add("/m/b.ko.xz", Node::file(vec![b'#'; 700])).unwrap();
    plan.add("/m/a.ko.xz", Node::file(vec![b'#'; 900])).unwrap();
    let archive = write_archive(&plan).unwrap();
    let (run, all) = (&archive.bytes[archive.packed.clone()], archive.bytes.iter());
    let marks = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'#').count();
    assert_eq!(marks(run), 1600);
    assert_eq!(all.filter(|byte| **byte == b'#').count(), 1600);
    assert!(run.starts_with(b"070701") && archive.bytes[archive.packed.end..].starts_with(b"070701"));
}

#[test]
fn every_truncation_is_an_error() {
    let archive = bytes(&plan());
    for length in 0..archive.len() - 4 {
        assert!(
            list(&archive[..length]).is_err(),
            "cut at {length} was not noticed"
        );
    }
}

#[test]
fn a_name_of_four_gigabytes_costs_nothing() {
    let mut archive = bytes(&plan());
    archive[6 + 8 * NAME_SIZE_FIELD..][..8].copy_from_slice(b"ffffffff");
    let error = list(&archive).expect_err("hostile name size");
    assert!(error.to_string().contains("beyond a path's"), "{error}");
}

#[test]
fn gnu_cpio_agrees() {
    use std::process::{Command, Stdio};
    let archive = bytes(&plan());
    let mut child = Command::new("cpio")
        .args(["--list", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("GNU cpio is installed (ci/prepare)");
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let listed: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| format!("/{line}"))
        .collect();
    let expected: Vec<String> = plan().nodes().map(|(path, _)| path.to_owned()).collect();
    assert_eq!(listed, expected);
}

#[test]
fn reads_what_gnu_cpio_writes() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/file"), b"content").unwrap();
    let mut child = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("GNU cpio is installed (ci/prepare)");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"./sub\n./sub/file\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let entries = list(&output.stdout).unwrap();
    assert_eq!(entries[0].0, "/sub");
    assert_eq!(
        (entries[1].0.as_str(), entries[1].2.as_slice()),
        ("/sub/file", b"content".as_slice())
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(0_u8.., 0..2000)) {
        let _ = list(&bytes);
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0_usize..2000, value in 0_u8..) {
        let mut archive = bytes(&plan());
        let at = at % archive.len();
        archive[at] = value;
        let _ = list(&archive);
    }

    #[test]
    fn any_plan_survives_the_round_trip(
        files in proptest::collection::btree_map("[a-z]{1,8}(/[a-zäöü .]{1,8}x){0,3}", proptest::collection::vec(0_u8.., 0..300), 0..20)
    ) {
        let mut plan = Plan::new();
        for (path, data) in &files {
            // A file may stand where another needs a directory: refused, as it must be.
            let _ = plan.add(&format!("/{path}"), Node::file(data.clone()));
        }
        let expected: Vec<_> = plan.nodes().map(|(p, n)| (p.to_owned(), n.mode(), n.content().to_vec())).collect();
        proptest::prop_assert_eq!(list(&bytes(&plan)).unwrap(), expected);
    }
}
