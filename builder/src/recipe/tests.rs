use super::*;

const GOOD: &str = "[modules]\nnic = [\"virtio_net\"]\n";

fn check_refused(text: &str, expected: &str) {
    let error = Recipe::parse(Path::new("images/try.toml"), text).expect_err(expected);
    assert_eq!(error.to_string(), format!("images/try.toml:{expected}"));
}

#[test]
fn defaults() {
    let recipe = Recipe::parse(Path::new("images/try.toml"), GOOD).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.suite.as_str()), ("try", "trixie"));
    assert_eq!(
        recipe.kernel,
        KernelChoice::Package(Located {
            value: "linux-image-amd64".into(),
            line: 1
        })
    );
    assert_eq!(recipe.compression, Compression::Zstd(9));
    assert_eq!(
        recipe.nic,
        [Located {
            value: "virtio_net".into(),
            line: 2
        }]
    );
}

#[test]
fn unknown_keys_name_the_nearest() {
    check_refused(
        &format!("siute = \"trixie\"\n{GOOD}"),
        "1: unknown key \"siute\"; the nearest known key is \"suite\"",
    );
    check_refused(
        "[modules]\nnic = []\nothers = []\n",
        "3: unknown key \"others\"; the nearest known key is \"other\"",
    );
    check_refused(
        &format!("{GOOD}[[file]]\npath = \"/a\"\nsource = \"a\"\npermissions = \"0644\"\n"),
        "6: unknown key \"permissions\"; the nearest known key is \"mode\"",
    );
}

#[test]
fn values_that_cannot_be() {
    check_refused(
        &format!("name = \"../up\"\n{GOOD}"),
        "1: \"../up\" cannot be an image's name: use a-z, 0-9, '.', '-' and '_', starting with a letter or digit",
    );
    check_refused(
        &format!("cmdline = \"a\\nb\"\n{GOOD}"),
        "1: cmdline has a control character or a line break: remove it",
    );
    check_refused(
        &format!("{GOOD}[kernel]\n"),
        "3: [kernel] needs either package = \"NAME\" or installed = true",
    );
    check_refused(
        &format!("{GOOD}[compression]\nformat = \"lz4\"\n"),
        "3: compression format \"lz4\": use \"xz\", \"zstd\" or \"gzip\"",
    );
    check_refused(
        &format!("{GOOD}[compression]\nformat = \"zstd\"\nlevel = 22\n"),
        "3: compression level: zstd takes 1 to 19",
    );
    check_refused(
        &format!("{GOOD}[[file]]\npath = \"/a\"\nsource = \"a\"\nmode = \"rw\"\n"),
        "6: mode \"rw\": give octal text such as \"0644\"",
    );
}

#[test]
fn paths_that_leave_the_root() {
    check_refused(
        &format!("{GOOD}[[file]]\npath = \"/etc/../../x\"\nsource = \"a\"\n"),
        "4: \"/etc/../../x\": leaves the root with '..'; give a path inside the image, such as /etc/motd",
    );
    check_refused(
        &format!("{GOOD}[[link]]\npath = \"motd\"\ntarget = \"a\"\n"),
        "4: \"motd\": must start with /; give a path inside the image, such as /etc/motd",
    );
}

#[test]
fn broken_toml_is_one_line() {
    let error = Recipe::parse(Path::new("x.toml"), "[modules\n")
        .expect_err("broken")
        .to_string();
    assert!(
        error.starts_with("x.toml:1: ") && !error.contains('\n'),
        "{error}"
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "[\\[\\]a-z =\"\\n{}.,0-9]{0,200}") {
        let _ = Recipe::parse(Path::new("x.toml"), &text);
    }
}

/// A researcher's recipe on a shipped one: lists go on from its lists, and without packages of its own it has its lock.
#[test]
fn a_root_goes_on_from_the_included_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let lab = format!(
        "{GOOD}[root]\nbase = \"debian:trixie\"\npackages = [\"gcc\"]\n[[root.services]]\nname = \"sshd\"\ncommand = [\"/sshd\"]\n"
    );
    write("lab.toml", &lab);
    let mine = "include = \"lab\"\n[root]\noverlays = [\"mine\"]\n[[root.services]]\nname = \"work\"\ncommand = [\"/work\"]\n";
    let path = write("mine.toml", mine);
    let root = Recipe::load(&path).unwrap().root.unwrap();
    assert_eq!(root.base.value, root::Base::Debian("trixie".into()));
    assert_eq!(root.packages.len() + root.overlays.len(), 2);
    let services: Vec<&str> = root
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(services, ["sshd", "work"]);
    assert_eq!(root.lock, folder.path().join("lab.lock"));
    assert!(!root.drop.is_empty());

    let path = write("more.toml", "include = \"lab\"\n[root]\npackages = [\"gdb\"]\n");
    let root = Recipe::load(&path).unwrap().root.unwrap();
    assert_eq!(
        (root.packages.len(), root.lock),
        (2, folder.path().join("more.lock"))
    );

    for (text, words) in [
        (
            "[root]\nbase = \"oci:here\"\n",
            "packages want base = \"debian:SUITE\"",
        ),
        (
            "[[root.services]]\nname = \"sshd\"\ncommand = [\"/other\"]\n",
            "service \"sshd\" is there twice",
        ),
    ] {
        let path = write("bad.toml", &format!("include = \"lab\"\n{text}"));
        let error = Recipe::load(&path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    check_refused(
        &format!("{GOOD}[root]\npackages = [\"gcc\"]\n"),
        "3: [root] has no base: say base = \"debian:trixie\", or include a recipe that has one",
    );
}
