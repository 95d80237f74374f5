//! What a person reads on a PC's screen: the picture as QEMU shows it, read by a program that knows nothing of ours.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;

use crate::head::HeadOptions;
use crate::lab::{Lab, UP_LIMIT};
use crate::machine::Machine;
use crate::pc::Pc;
use crate::room::Room;
use crate::run::run;

/// Letters this high are read well; smaller ones are enlarged.
const SCALE: usize = 3;

impl Pc {
    /// Waits until a text is read on the screen.
    ///
    /// # Errors
    /// At the deadline, with what was read last.
    pub fn wait_screen(&mut self, text: &str, limit: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + limit;
        loop {
            let read = self.read_screen()?;
            if read.iter().any(|line| line.contains(text)) {
                return Ok(read);
            }
            ensure!(
                Instant::now() < deadline,
                "{}: no {text:?} on the screen: {read:?}",
                self.name()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// The lines on the screen, as Tesseract reads them, white space taken together.
    ///
    /// # Errors
    /// When there is no screen, or `tesseract` is missing.
    pub fn read_screen(&mut self) -> Result<Vec<String>> {
        let (picture, page) = (self.files().screen("ppm"), self.files().screen("pgm"));
        self.screenshot(&picture)?;
        let pixels = fs::read(&picture)?;
        fs::write(&page, as_page(&pixels)?)?;
        read_text(&page)
    }
}

/// Boots a PC whose head says who it is, and saves its screen once it is in the cluster.
///
/// # Errors
/// When it does not come up, or `out` cannot be written.
pub fn portrait(images_dir: &Path, out: &Path) -> Result<()> {
    let options = HeadOptions {
        more: "site = \"Computing centre, room 12\"".to_owned(),
        ..HeadOptions::new(images_dir.to_owned(), "minimal")
    };
    let lab = Lab::start_in(Room::start("portrait")?, &options)?;
    let mut pc = lab.power_on(Machine::uefi().screen())?;
    pc.wait_state(NodeState::Booting, UP_LIMIT)?;
    lab.ctl(&["adopt", &pc.mac(), "--group", "lab", "--name", "desk-12"])?;
    pc.wait_up(UP_LIMIT)?;
    pc.wait_screen("ready for jobs", Duration::from_secs(60))?;
    // QEMU writes where it may: into the room; the picture is brought from there.
    let picture = pc.files().screen("png");
    pc.screenshot(&picture)?;
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(&picture, out).with_context(|| format!("writing {}", out.display()))?;
    drop(pc);
    lab.succeeded();
    Ok(())
}

fn read_text(page: &Path) -> Result<Vec<String>> {
    // One block of text; English, which all our screens are.
    let text = run(Command::new("tesseract")
        .arg(page)
        .args(["stdout", "--psm", "6", "--dpi", "300", "-l", "eng"]))
    .context("reading the screen (ci/prepare installs tesseract-ocr)")?;
    Ok(normalised(&text))
}

/// Lines without white space at their ends, runs of it as one blank, empty ones left out.
#[must_use]
pub fn normalised(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

/// A binary PPM as a page: dark letters on white, enlarged, without the frame. A line of the picture in which light
/// pixels prevail is dark on light already.
fn as_page(ppm: &[u8]) -> Result<Vec<u8>> {
    let (width, height, pixels) = parse_ppm(ppm)?;
    let mut light: Vec<Vec<bool>> = pixels
        .chunks_exact(width * 3)
        .take(height)
        .map(|row| {
            row.chunks_exact(3)
                .map(|pixel| pixel.iter().map(|part| u32::from(*part)).sum::<u32>() > 300)
                .collect()
        })
        .collect();
    for row in &mut light {
        // The inverse title is wider than any text line is light; a rule of the frame is nothing but light.
        let count = row.iter().filter(|pixel| **pixel).count();
        if count * 3 > width {
            let (first, last) = ends(row);
            let inside = row.get_mut(first..=last).unwrap_or_default();
            inside.iter_mut().for_each(|pixel| *pixel = !*pixel);
        }
    }
    let mut page = format!("P5\n{} {}\n255\n", width * SCALE, height * SCALE).into_bytes();
    for row in &light {
        let line: Vec<u8> = row
            .iter()
            .flat_map(|pixel| [if *pixel { 0 } else { 255 }; SCALE])
            .collect();
        (0..SCALE).for_each(|_| page.extend(&line));
    }
    Ok(page)
}

/// The first and last light pixel of a row.
fn ends(row: &[bool]) -> (usize, usize) {
    let first = row.iter().position(|pixel| *pixel).unwrap_or(0);
    let last = row.iter().rposition(|pixel| *pixel).unwrap_or(0);
    (first, last)
}

fn parse_ppm(ppm: &[u8]) -> Result<(usize, usize, &[u8])> {
    let mut fields = Vec::new();
    let mut at = 0;
    while fields.len() < 4 {
        let end = ppm
            .get(at..)
            .and_then(|rest| rest.iter().position(u8::is_ascii_whitespace));
        let end = at + end.context("a picture without an end of its head")?;
        fields.push(String::from_utf8_lossy(&ppm[at..end]).into_owned());
        at = end + 1;
    }
    ensure!(
        fields[0] == "P6" && fields[3] == "255",
        "not the picture that QEMU makes: {fields:?}"
    );
    let (width, height): (usize, usize) = (fields[1].parse()?, fields[2].parse()?);
    let pixels = &ppm[at..];
    ensure!(
        width > 0 && pixels.len() == width * height * 3,
        "a picture of the wrong size"
    );
    Ok((width, height, pixels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_light_bar_becomes_dark_letters_on_white() {
        // A row of light with one dark pixel in it: a letter of the inverse title.
        let mut ppm = b"P6\n9 2\n255\n".to_vec();
        for x in 0..9 {
            ppm.extend([if x == 4 { 0 } else { 255 }; 3]);
        }
        ppm.extend([0; 27]);
        let page = as_page(&ppm).unwrap();
        let pixels = &page[page.len() - 27 * 6..];
        assert_eq!(pixels.iter().filter(|pixel| **pixel == 0).count(), 9);
        assert!(as_page(b"P6\n9 2\n255\n").is_err());
    }

    #[test]
    fn white_space_is_taken_together() {
        assert_eq!(normalised("  a   b \n\n c\t\n"), ["a b", "c"]);
    }
}
