//! gzip, zstd and xz with fixed settings, so that the same archive gives the same bytes on any machine; decoders for
//! whatever an image or a module file turns out to be. Never chooses settings from the host (cores, memory).

use std::io::{self, BufRead, Read, Write};

use zstd::zstd_safe::CParameter;

use crate::archive::Archive;
use crate::xz::{self, Shelf};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, level 1 to 9.
    Gzip(u32),
    /// zstd, level 1 to 19.
    Zstd(i32),
    /// xz, level 1 to 9 for our own programs; what packages bring is always packed hard, see [`crate::xz`].
    Xz(u32),
}

impl Compression {
    /// gzip with a level that exists.
    pub fn gzip(level: u32) -> Option<Self> {
        (1..=9).contains(&level).then_some(Compression::Gzip(level))
    }

    /// xz with a level that exists.
    pub fn xz(level: u32) -> Option<Self> {
        (1..=9).contains(&level).then_some(Compression::Xz(level))
    }

    /// zstd with a level that exists and that the kernel can unpack (above 19 the window outgrows its limit).
    pub fn zstd(level: i32) -> Option<Self> {
        (1..=19).contains(&level).then_some(Compression::Zstd(level))
    }
}

/// The compressor failed: out of memory, or the sink refused the bytes (no space).
#[derive(Debug, thiserror::Error)]
#[error("compressing: {0}")]
pub struct CompressError(#[from] io::Error);

/// Compresses `archive` into `output`, telling `progress` how many bytes of it are done. Only xz uses the `shelf`.
pub fn compress(
    archive: &Archive,
    compression: Compression,
    shelf: &dyn Shelf,
    mut output: impl Write,
    mut progress: impl FnMut(u64) + Send,
) -> Result<(), CompressError> {
    let mut done = 0;
    match compression {
        Compression::Gzip(level) => {
            // `GzBuilder` without a time or a name; the operating system byte is fixed too (255, unknown).
            let mut encoder = flate2::GzBuilder::new()
                .mtime(0)
                .operating_system(255)
                .write(output, flate2::Compression::new(level));
            feed(&archive.bytes, &mut encoder, &mut done, &mut progress)?;
            encoder.finish()?.flush()?;
        }
        Compression::Zstd(level) => {
            let mut encoder = zstd_encoder(output, level, WORKERS)?;
            encoder.set_pledged_src_size(Some(archive.bytes.len() as u64))?;
            let (before, rest) = archive.bytes.split_at(archive.packed.start);
            let (packed, after) = rest.split_at(archive.packed.len());
            feed(before, &mut encoder, &mut done, &mut progress)?;
            if !packed.is_empty() {
                // Level 19 needs 0.2 s per megabyte to find that xz data does not shrink; level 1 needs nothing. One
                // frame: the level may change between jobs, and a flush ends the job.
                encoder.flush()?;
                encoder.set_parameter(CParameter::CompressionLevel(1))?;
                feed(packed, &mut encoder, &mut done, &mut progress)?;
            }
            feed(after, &mut encoder, &mut done, &mut progress)?;
            encoder.finish()?.flush()?;
        }
        Compression::Xz(level) => {
            output.write_all(&xz::pack(archive, level, shelf, &mut progress)?)?;
            output.flush()?;
        }
    }
    Ok(())
}

/// The output depends on "no worker" against "some workers" and on the job size, never on how many workers there
/// are: so workers are always used, and their job size is always the same.
fn zstd_encoder<W: Write>(output: W, level: i32, workers: u32) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(output, level)?;
    encoder.multithread(workers)?;
    encoder.set_parameter(CParameter::JobSize(JOB_SIZE))?;
    encoder.set_parameter(CParameter::OverlapSizeLog(OVERLAP_LOG))?;
    encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG))?;
    encoder.include_checksum(true)?;
    encoder.include_contentsize(true)?;
    Ok(encoder)
}

const WORKERS: u32 = 2;
/// Bytes per job: the compressible part of an image is about two of them, so that two cores have work.
const JOB_SIZE: u32 = 4 << 20;
/// How much of the window is carried over from the job before: 9 is all, each step below halves it.
const OVERLAP_LOG: u32 = 6;

fn feed(
    input: &[u8],
    encoder: &mut impl Write,
    done: &mut u64,
    progress: &mut impl FnMut(u64),
) -> io::Result<()> {
    for chunk in input.chunks(1 << 20) {
        encoder.write_all(chunk)?;
        *done += chunk.len() as u64;
        progress(*done);
    }
    Ok(())
}

/// A reader of the plain bytes of `input`, whichever of gzip, zstd, xz or nothing it is packed with.
/// Memory is bounded: a zstd window up to 8 MiB (as the kernel's), xz up to 128 MiB.
pub fn decompressor<'a, R: BufRead + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let start = input.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        _ => Box::new(input),
    })
}

/// 8 MiB at every level: what level 19 uses, and what a node needs of memory to unpack it.
const ZSTD_WINDOW_LOG: u32 = 23;
const XZ_MEMORY_LIMIT: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Group;

    /// Compressible and longer than several jobs, with a run in the middle that is not compressible.
    fn sample() -> Archive {
        let text = |count: u32| (0..count).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_le_bytes());
        let noise =
            (0..700_000_u64).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 13).to_le_bytes());
        let bytes: Vec<u8> = text(1_500_000).chain(noise).chain(text(100)).collect();
        let length = bytes.len();
        Archive {
            bytes,
            packed: 6_000_000..11_600_000,
            parts: vec![(Group::Plain, 0..length)],
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut input = sample();
        for packed in [input.packed.clone(), 0..0, 0..input.bytes.len()] {
            input.packed = packed;
            for compression in [
                Compression::Gzip(6),
                Compression::Zstd(3),
                Compression::Zstd(19),
                Compression::Xz(1),
            ] {
                let mut packed = Vec::new();
                let mut last = 0;
                compress(&input, compression, &(), &mut packed, |done| last = done).unwrap();
                assert_eq!(last, input.bytes.len() as u64);
                assert!(packed.len() < input.bytes.len());
                let mut plain = Vec::new();
                decompressor(packed.as_slice())
                    .unwrap()
                    .read_to_end(&mut plain)
                    .unwrap();
                assert!(plain == input.bytes, "{compression:?}");
            }
        }
    }

    #[test]
    fn the_number_of_workers_does_not_show() {
        let input = sample();
        let pack = |workers| {
            let mut encoder = zstd_encoder(Vec::new(), 9, workers).unwrap();
            encoder.write_all(&input.bytes[..6_000_000]).unwrap();
            encoder.flush().unwrap();
            encoder.set_parameter(CParameter::CompressionLevel(1)).unwrap();
            encoder.write_all(&input.bytes[6_000_000..]).unwrap();
            encoder.finish().unwrap()
        };
        assert!(pack(1) == pack(2));
        assert!(pack(1) == pack(4));
    }

    #[test]
    fn the_level_really_changes_inside_the_frame() {
        // If zstd ignored the change, the run marked as packed would shrink just as well as the rest.
        let bytes: Vec<u8> = (0_u32..1_000_000)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 22).to_le_bytes())
            .collect();
        let size = |packed| {
            let mut output = Vec::new();
            compress(
                &Archive {
                    bytes: bytes.clone(),
                    packed,
                    parts: Vec::new(),
                },
                Compression::Zstd(19),
                &(),
                &mut output,
                |_| (),
            )
            .unwrap();
            output.len()
        };
        assert_ne!(size(0..bytes.len()), size(bytes.len()..bytes.len()));
    }

    #[test]
    fn levels_that_do_not_exist() {
        assert_eq!(Compression::gzip(0), None);
        assert_eq!(Compression::gzip(10), None);
        assert_eq!(Compression::xz(0), None);
        assert_eq!(Compression::xz(10), None);
        assert_eq!(Compression::zstd(0), None);
        assert_eq!(Compression::zstd(20), None);
    }

    #[test]
    fn a_cut_stream_is_an_error_not_a_short_file() {
        for compression in [Compression::Gzip(6), Compression::Zstd(3), Compression::Xz(1)] {
            let mut packed = Vec::new();
            compress(&sample(), compression, &(), &mut packed, |_| ()).unwrap();
            let cut = &packed[..packed.len() / 2];
            let error = decompressor(cut).and_then(|mut plain| io::copy(&mut plain, &mut io::sink()));
            assert!(error.is_err(), "{compression:?}");
        }
    }
}
