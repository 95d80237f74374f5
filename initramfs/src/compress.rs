//! gzip and zstd with fixed settings, so that the same archive gives the same bytes on any machine; decoders for
//! whatever an image or a module file turns out to be. Never chooses settings from the host (cores, memory).

use std::io::{self, BufRead, Read, Write};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, level 1 to 9.
    Gzip(u32),
    /// zstd, level 1 to 19.
    Zstd(i32),
}

impl Compression {
    /// gzip with a level that exists.
    pub fn gzip(level: u32) -> Option<Self> {
        (1..=9).contains(&level).then_some(Compression::Gzip(level))
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

/// Compresses `input` into `output`, telling `progress` how many bytes of input are done.
pub fn compress(
    input: &[u8],
    compression: Compression,
    output: impl Write,
    mut progress: impl FnMut(u64),
) -> Result<(), CompressError> {
    match compression {
        Compression::Gzip(level) => {
            // `GzBuilder` without a time or a name; the operating system byte is fixed too (255, unknown).
            let mut encoder = flate2::GzBuilder::new()
                .mtime(0)
                .operating_system(255)
                .write(output, flate2::Compression::new(level));
            feed(input, &mut encoder, &mut progress)?;
            encoder.finish()?.flush()?;
        }
        Compression::Zstd(level) => {
            let mut encoder = zstd::Encoder::new(output, level)?;
            // The output depends on "no worker" against "some workers" and on the job size, never on how many
            // workers there are: so workers are always used, and their job size is always the same.
            encoder.multithread(WORKERS)?;
            encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(JOB_SIZE))?;
            encoder.set_parameter(zstd::zstd_safe::CParameter::OverlapSizeLog(OVERLAP_LOG))?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(input.len() as u64))?;
            encoder.include_contentsize(true)?;
            feed(input, &mut encoder, &mut progress)?;
            encoder.finish()?.flush()?;
        }
    }
    Ok(())
}

const WORKERS: u32 = 2;
/// Bytes per job: small enough that two cores have work, large enough to lose under 1 % of size.
const JOB_SIZE: u32 = 2 << 20;
/// 1/8 of the window is carried over from the job before.
const OVERLAP_LOG: u32 = 6;

fn feed(input: &[u8], encoder: &mut impl Write, progress: &mut impl FnMut(u64)) -> io::Result<()> {
    let mut done = 0;
    for chunk in input.chunks(1 << 20) {
        encoder.write_all(chunk)?;
        done += chunk.len() as u64;
        progress(done);
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
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        _ => Box::new(input),
    })
}

/// 8 MiB, the most that level 19 uses.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const XZ_MEMORY_LIMIT: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        // Compressible and longer than several jobs.
        (0_u32..2_000_000)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_le_bytes())
            .collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let input = sample();
        for compression in [Compression::Gzip(6), Compression::Zstd(3), Compression::Zstd(19)] {
            let mut packed = Vec::new();
            let mut last = 0;
            compress(&input, compression, &mut packed, |done| last = done).unwrap();
            assert_eq!(last, input.len() as u64);
            assert!(packed.len() < input.len());
            let mut plain = Vec::new();
            decompressor(packed.as_slice())
                .unwrap()
                .read_to_end(&mut plain)
                .unwrap();
            assert!(plain == input, "{compression:?}");
        }
    }

    #[test]
    fn the_number_of_workers_does_not_show() {
        let input = sample();
        let pack = |workers| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 9).unwrap();
            encoder.multithread(workers).unwrap();
            encoder
                .set_parameter(zstd::zstd_safe::CParameter::JobSize(JOB_SIZE))
                .unwrap();
            encoder
                .set_parameter(zstd::zstd_safe::CParameter::OverlapSizeLog(OVERLAP_LOG))
                .unwrap();
            encoder.write_all(&input).unwrap();
            encoder.finish().unwrap()
        };
        assert!(pack(1) == pack(2));
        assert!(pack(1) == pack(4));
    }

    #[test]
    fn levels_that_do_not_exist() {
        assert_eq!(Compression::gzip(0), None);
        assert_eq!(Compression::gzip(10), None);
        assert_eq!(Compression::zstd(0), None);
        assert_eq!(Compression::zstd(20), None);
    }

    #[test]
    fn a_cut_stream_is_an_error_not_a_short_file() {
        for compression in [Compression::Gzip(6), Compression::Zstd(3)] {
            let mut packed = Vec::new();
            compress(&sample(), compression, &mut packed, |_| ()).unwrap();
            let cut = &packed[..packed.len() / 2];
            let error = decompressor(cut).and_then(|mut plain| io::copy(&mut plain, &mut io::sink()));
            assert!(error.is_err(), "{compression:?}");
        }
    }
}
