//! Issue 5, Shows 1, 2, 6 and 9: the shipped recipes on virtual PCs, from power-on to the results of programs in them, and home. What
//! each program must say is computed here, from figures that are drawn anew for each run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use cidlab::rooted::{peak_is_as_predicted, sees_no_disk, told};
use cidlab::run::run;
use cidlab::shipped::{Values, build_on_base, build_with_programs};
use cidlab::{HeadOptions, Lab, Machine, Room, UP_LIMIT, WINDOWS_LIMIT};

/// Deadline from power-on to `up` with hundreds of megabytes, and for programs under emulation.
const LIMIT: Duration = UP_LIMIT.saturating_mul(4);
/// A figure that nobody knew before.
fn drawn(from: u64, below: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    from + u64::from(now.subsec_nanos()) / 1000 % (below - from)
}

/// The sum that `sum.c` and `sum.f90` compute.
fn series(seed: u64) -> u64 {
    (0..1_000_000).map(|i| i * seed % 1009).sum()
}

/// Boots `name` on a PC with `memory` MiB, waits until its programs are through, lets `check` look, and sends the PC home.
fn runs(
    room: Room,
    images: &Path,
    (name, memory): (&str, u32),
    check: impl FnOnce(&dyn Fn(&str) -> Result<String>, &str) -> Result<()>,
) -> Result<()> {
    let mut options = HeadOptions::new(images.to_owned(), name);
    // The machine that emulates may have other work.
    options.tables = "[trust]\ntoken = \"10m\"\n".to_owned();
    let lab = Lab::start_in(room, &options)?;
    let mut pc = lab.power_on(Machine::bios().memory(memory))?;
    let begun = Instant::now();
    let node = pc.wait_up(LIMIT)?;
    println!("{name}: up {:.0?} after power-on", begun.elapsed());
    pc.wait_serial("service probe: probe done", 0, LIMIT)?;
    pc.wait_serial("service programs: done", 0, LIMIT)?;
    println!(
        "{name}: its programs are through {:.0?} after power-on",
        begun.elapsed()
    );
    let said = |word: &str| told(&pc, "programs", word).with_context(|| format!("{word:?} was not said"));
    for line in pc
        .serial()
        .lines()
        .filter(|line| line.contains("service programs: "))
    {
        println!("{name}: {line}");
    }
    check(&said, &pc.serial())?;
    ensure!(said("user")? == "ada", "its programs are an ordinary user's");
    let hardware = node.hardware.context("no hardware reported")?;
    ensure!(hardware.block_devices.is_empty(), "{:?}", hardware.block_devices);
    let image = images.join(name);
    sees_no_disk(&pc, &image)?;
    peak_is_as_predicted(&pc, &image)?;
    lab.release(&pc)?;
    lab.back_in_windows(pc, WINDOWS_LIMIT)
}

#[test]
fn compute_runs_numpy_and_what_its_compilers_make() -> Result<()> {
    let room = Room::start("compute")?;
    let (size, seed) = (drawn(150, 250), drawn(1000, 10_000));
    let values = Values::from([("size", size.to_string()), ("seed", seed.to_string())]);
    let images = build_with_programs(room.dir(), "compute", &values)?;
    runs(room, &images, ("compute-programs", 1280), |said, serial| {
        let left = |i: u64, j: u64| (i * size + j) * seed % 97;
        // The sum of M times its transpose is the sum of the squares of M's column sums.
        let columns = (0..size).map(|j| (0..size).map(|i| left(i, j)).sum::<u64>());
        let sum: u64 = columns.map(|column| column * column).sum();
        let corner: u64 = (0..size).map(|j| left(0, j) * left(size - 1, j)).sum();
        ensure!(said("numpy sum")? == sum.to_string(), "not {sum}");
        ensure!(said("numpy corner")? == corner.to_string(), "not {corner}");
        ensure!(said("numpy solves")? == "well", "{}", said("numpy solves")?);
        for compiler in ["c", "cpp", "fortran"] {
            ensure!(
                said(compiler)? == series(seed).to_string(),
                "{compiler}: not {}",
                series(seed)
            );
        }
        ensure!(serial.contains("service sshd: Server listening on"), "no sshd");
        Ok(())
    })
}

#[test]
fn mpi_adds_on_four_ranks_and_writes_hdf5() -> Result<()> {
    let room = Room::start("mpi")?;
    let seed = drawn(1000, 10_000);
    let images = build_with_programs(room.dir(), "mpi", &Values::from([("seed", seed.to_string())]))?;
    runs(room, &images, ("mpi-programs", 1536), |said, _| {
        let wanted = format!("{} of 4 ranks", series(seed));
        ensure!(said("sum")? == wanted, "not {wanted}");
        ensure!(said("ranks")? == "4", "hello-mpi has {}", said("ranks")?);
        let join = |numbers: &mut dyn Iterator<Item = u64>| {
            numbers
                .map(|number| number.to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        let squares = join(&mut (990..1000).map(|number| number * number));
        ensure!(said("squares")? == squares, "not {squares}");
        let table = join(&mut (0..12).map(|number| number * seed));
        ensure!(said("table")?.trim_end_matches(',') == table, "not {table}");
        Ok(())
    })
}

#[test]
fn render_draws_a_scene() -> Result<()> {
    let room = Room::start("render")?;
    let radius = drawn(500, 1400) as f64 / 1000.0;
    let images = build_with_programs(
        room.dir(),
        "render",
        &Values::from([("radius", radius.to_string())]),
    )?;
    runs(room, &images, ("render-programs", 1024), |said, _| {
        ensure!(
            said("png")? == "0 0 1 64 0 0 0 240",
            "the PNG is {}",
            said("png")?
        );
        ensure!(said("name")? == "PNG", "{}", said("name")?);
        ensure!(
            said("header")? == "P6 320 240 255",
            "the PPM is {}",
            said("header")?
        );
        let count =
            |colour: &str| said(&format!("pixels {colour}:")).and_then(|count| Ok(count.parse::<f64>()?));
        let (ball, wall) = (count("255 0 0")?, count("0 0 255")?);
        ensure!(ball + wall == 320.0 * 240.0, "there are other colours");
        // 80 pixels are a unit.
        let area = std::f64::consts::PI * (radius * 80.0).powi(2);
        println!("render: the ball has {ball} pixels, its circle {area:.0}");
        ensure!(
            (ball - area).abs() < area * 0.01,
            "the ball has {ball} pixels, not {area:.0}"
        );
        Ok(())
    })
}

/// Show 2. The layout is made by umoci, and what is in it by mmdebstrap: another system than the one that the kernel is from.
#[test]
fn a_layout_of_another_tool_boots_and_runs() -> Result<()> {
    let room = Room::start("oci")?;
    let layout = room.dir().join("layout");
    umoci(room.dir(), &layout)?;
    let seed = drawn(1000, 10_000);
    let base = format!("oci:{}:lab", layout.display());
    let images = build_on_base(
        room.dir(),
        "oci",
        &base,
        &Values::from([("seed", seed.to_string())]),
    )?;
    runs(room, &images, ("oci-programs", 1024), |said, _| {
        ensure!(said("sum")? == series(seed).to_string(), "not {}", series(seed));
        ensure!(said("system")? == "bookworm", "it is {}", said("system")?);
        ensure!(said("layer")? == "second", "the second layer is missing");
        Ok(())
    })
}

/// Makes an OCI layout of two layers with the tag `lab`: a Debian 12 with Python, and a file that replaces one of it.
fn umoci(dir: &Path, layout: &Path) -> Result<()> {
    let (tree, bundle) = (dir.join("tree.tar"), dir.join("bundle"));
    run(Command::new("mmdebstrap")
        .args([
            "--quiet",
            "--variant=essential",
            "--include=python3-minimal",
            "bookworm",
        ])
        .arg(&tree))
    .context("mmdebstrap (ci/prepare installs it)")?;
    let image = format!("{}:lab", layout.display());
    let umoci = |arguments: &[&str]| {
        run(Command::new("umoci").args(arguments)).context("umoci (ci/prepare installs it)")
    };
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image])?;
    umoci(&["raw", "add-layer", "--image", &image, &tree.display().to_string()])?;
    umoci(&["unpack", "--image", &image, &bundle.display().to_string()])?;
    fs::write(bundle.join("rootfs/etc/issue"), "second\n")?;
    umoci(&["repack", "--image", &image, &bundle.display().to_string()])?;
    umoci(&[
        "config",
        "--image",
        &image,
        "--config.entrypoint",
        "/usr/bin/python3",
    ])?;
    fs::remove_file(&tree)?;
    fs::remove_dir_all(&bundle)?;
    Ok(())
}
