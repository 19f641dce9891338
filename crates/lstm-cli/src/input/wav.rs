//! Audio in .wav files: each channel is a sequence of its own, with one feature, the sample in -1..1.

use std::{
    f64::consts::PI,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use hound::{SampleFormat, WavSpec};
use lstm::ndarray::Array3;

use super::{SequenceShape, array_from_values};

/// Frames that the resampler reads at once.
const RESAMPLER_FRAMES: usize = 1024;

/// Half the length of the resampler's filter, in samples of the lower rate.
const FILTER_HALF_LEN: usize = 128;

/// Largest number of coefficients that are computed in advance.
const MAX_FILTER_TABLE: usize = 1 << 21;

/// Largest factor between two sample rates that can be resampled.
const MAX_RATE_RATIO: u32 = 64;

/// Reader of the frames of a .wav file. A frame is one sample of each channel.
pub(super) struct FrameReader<R> {
    samples: SampleReader<R>,
    resampling: Option<Resampling>,
}

/// Reads the samples in the order of the file.
struct SampleReader<R> {
    r: BufReader<R>,
    spec: WavSpec,
}

/// A resampler by a windowed sinc. Output frame `k` is the signal at the time of input frame `k * step`, without delay;
/// before and after the file is silence.
struct Resampling {
    /// Input frames for each output frame: a fraction in lowest terms.
    step: (usize, usize),
    /// The filter's coefficients for each fraction of an input frame. Empty if they are too many to keep.
    filters: Vec<Vec<f64>>,
    /// Interleaved samples of the file, with silence before them.
    samples: Vec<f32>,
    /// The frame in `samples` at which the filter for the next output frame begins.
    start: usize,
    /// The numerator of the next output frame's fraction of an input frame.
    phase: usize,
    /// Number of frames of the file that were not read.
    frames_left: usize,
}

/// Opens a .wav file. With `rate`, samples are resampled to that rate.
pub(super) fn open<R: Read + Seek>(
    r: R,
    rate: Option<u32>,
) -> Result<(FrameReader<R>, SequenceShape, WavSpec), String> {
    let mut r = BufReader::new(r);
    let (format, frames) = read_header(&mut r)?;
    let spec = format.spec;
    let samples = SampleReader { r, spec };
    let channels = usize::from(spec.channels);
    let mut steps = frames;
    let resampling = match rate.filter(|&rate| rate != spec.sample_rate) {
        Some(rate) => {
            let (low, high) = (rate.min(spec.sample_rate), rate.max(spec.sample_rate));
            if high / low.max(1) >= MAX_RATE_RATIO {
                return Err(format!("can't resample from {} Hz to {rate} Hz", spec.sample_rate));
            }
            steps = (frames as u64 * u64::from(rate)).div_ceil(u64::from(spec.sample_rate)) as usize;
            Some(Resampling::new(spec.sample_rate, rate, channels, frames))
        }
        None => None,
    };
    let shape = SequenceShape { batch: channels, steps, features: 1, is_single_sequence: false, time_major: false };
    Ok((FrameReader { samples, resampling }, shape, spec))
}

/// What the header of a file says about its samples.
struct SampleFormatFields {
    spec: WavSpec,
    /// Bytes of a frame.
    frame_bytes: u16,
}

/// Parses the content of the chunk `fmt `.
fn parse_format(fields: &[u8]) -> Result<SampleFormatFields, String> {
    let field = |at: usize| fields.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let (Some(tag), Some(channels), Some(frame_bytes), Some(bits)) = (field(0), field(2), field(12), field(14)) else {
        return Err(format!("the chunk `fmt ` has {} bytes, too few", fields.len()));
    };
    let sample_rate = u32::from(field(4).unwrap_or(0)) | u32::from(field(6).unwrap_or(0)) << 16;
    // 1 is integers, 3 is floats, and 0xfffe has the kind further on.
    let is_extensible = tag == 0xfffe;
    let kind = if is_extensible { field(24) } else { Some(tag) };
    let valid_bits = if is_extensible { field(18).filter(|bits| *bits > 0) } else { None };
    let valid_bits = valid_bits.unwrap_or(bits);
    let sample_format = match kind {
        Some(1) => SampleFormat::Int,
        Some(3) => SampleFormat::Float,
        _ => {
            return Err(format!(
                "expected samples without compression, got the kind {:#06x}; `ffmpeg -i in.wav -c:a pcm_f32le out.wav` \
                 converts them",
                kind.unwrap_or(tag)
            ));
        }
    };
    if sample_format == SampleFormat::Float && valid_bits == 64 {
        return Err("expected integers of 8, 16, 24 or 32 bits or floats of 32 bits, got floats of 64 bits; \
                    `ffmpeg -i in.wav -c:a pcm_f32le out.wav` converts them"
            .into());
    }
    let bytes = frame_bytes.checked_div(channels).unwrap_or(0);
    if bytes != valid_bits.div_ceil(8) || u32::from(bytes) * u32::from(channels) != u32::from(frame_bytes) {
        return Err(format!(
            "expected samples that take as many bytes as their bits need, got {valid_bits} bits in {bytes} bytes; \
             Python's `soundfile` converts them: `soundfile.write(\"out.wav\", *soundfile.read(\"in.wav\"), \
             subtype=\"FLOAT\")`"
        ));
    }
    let is_supported = match sample_format {
        SampleFormat::Int => [8, 16, 24, 32].contains(&valid_bits),
        SampleFormat::Float => valid_bits == 32,
    };
    if !is_supported || channels == 0 || sample_rate == 0 {
        return Err(format!(
            "expected integers of 8, 16, 24 or 32 bits or floats of 32 bits, got {channels} channels of \
             {sample_format:?} with {valid_bits} bits at {sample_rate} Hz"
        ));
    }
    let spec = WavSpec { channels, sample_rate, bits_per_sample: valid_bits, sample_format };
    Ok(SampleFormatFields { spec, frame_bytes })
}

/// Lengths of the data that programs write when they do not know it, into a pipe for example.
const UNKNOWN_LENGTHS: [u32; 2] = [u32::MAX, 0x7fff_f000];

/// Reads the header, up to the first sample. Returns the format of the samples and the number of frames.
fn read_header<R: Read + Seek>(r: &mut R) -> Result<(SampleFormatFields, usize), String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "not a .wav file that can be read: it ends in its header".to_owned(),
        _ => error.to_string(),
    };
    let file_len = r.seek(SeekFrom::End(0)).and_then(|len| r.rewind().map(|()| len)).map_err(failed)?;
    let mut start = [0; 12];
    r.read_exact(&mut start).map_err(failed)?;
    let is_long = start.starts_with(b"RF64") || start.starts_with(b"BW64");
    if !(is_long || start.starts_with(b"RIFF")) || !start.ends_with(b"WAVE") {
        return Err("not a .wav file that can be read: expected RIFF, RF64 or BW64, and WAVE".into());
    }
    let riff_len = u32::from_le_bytes([start[4], start[5], start[6], start[7]]);
    let (mut format, mut long_len, mut at) = (None, None, 12u64);
    let data_len = loop {
        let mut chunk = [0; 8];
        r.read_exact(&mut chunk).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "not a .wav file that can be read: it has no samples".to_owned(),
            _ => error.to_string(),
        })?;
        let len = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
        at += 8;
        let kind = &chunk[..4];
        if kind == b"data" {
            let rest = file_len.saturating_sub(at);
            // A program that was not able to complete the header leaves 0 as the length of the data, and that of the
            // header alone, or 0, as that of the file.
            let is_incomplete = len == 0 && [0, at as u32 - 8, u32::MAX].contains(&riff_len);
            break match long_len {
                Some(long_len) if is_long && len == u32::MAX => long_len,
                _ if UNKNOWN_LENGTHS.contains(&len) && u64::from(len) > rest || is_incomplete => {
                    let frame_bytes = format.as_ref().map_or(1, |format: &SampleFormatFields| format.frame_bytes);
                    rest - rest % u64::from(frame_bytes)
                }
                _ => u64::from(len),
            };
        }
        if kind == b"fmt " || kind == b"ds64" {
            let mut fields = Vec::new();
            r.by_ref().take(len.min(40).into()).read_to_end(&mut fields).map_err(failed)?;
            match kind {
                b"fmt " => format = Some(parse_format(&fields)?),
                _ => long_len = fields.get(8..16).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)),
            }
        }
        // Chunks have an even length, with a byte of padding that does not count.
        at += u64::from(len) + u64::from(len % 2);
        r.seek(SeekFrom::Start(at)).map_err(failed)?;
    };
    let format = format.ok_or("not a .wav file that can be read: the chunk `fmt ` is missing")?;
    let frame_bytes = u64::from(format.frame_bytes);
    if data_len > file_len.saturating_sub(at) {
        return Err(format!(
            "the file has fewer samples than its header says: expected {data_len} bytes, got {}",
            file_len.saturating_sub(at)
        ));
    }
    if data_len % frame_bytes != 0 {
        return Err(format!("expected samples of {frame_bytes} bytes for all channels, got {data_len} bytes"));
    }
    match usize::try_from(data_len / frame_bytes) {
        Ok(0) => Err("expected samples, found none".into()),
        Ok(frames) => Ok((format, frames)),
        Err(_) => Err(format!("{data_len} bytes of samples are too many")),
    }
}

impl<R: Read> FrameReader<R> {
    /// Reads the next `n` frames as an array of shape `(channels, n, 1)`.
    pub(super) fn read(&mut self, sequence_shape: &SequenceShape, n: usize) -> Result<Array3<f32>, String> {
        let channels = sequence_shape.batch;
        let samples = match &mut self.resampling {
            None => self.samples.read(n * channels)?,
            Some(resampling) => resampling.read(&mut self.samples, channels, n)?,
        };
        let mut frames = array_from_values((n, channels, 1), samples)?;
        frames.swap_axes(0, 1);
        Ok(frames)
    }
}

impl<R: Read> SampleReader<R> {
    /// Reads the next `n` samples, interleaved, scaled to -1..1.
    fn read(&mut self, n: usize) -> Result<Vec<f32>, String> {
        let WavSpec { bits_per_sample, sample_format, .. } = self.spec;
        let sample_bytes = usize::from(bits_per_sample / 8);
        let mut bytes = vec![0; n * sample_bytes];
        self.r.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the file has fewer samples than its header says".to_owned(),
            _ => error.to_string(),
        })?;
        let full_scale = full_scale(bits_per_sample);
        let decode = |bytes: &[u8]| match (sample_format, bytes) {
            (SampleFormat::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            // Samples of 8 bits have no sign.
            (_, &[sample]) => ((f64::from(sample) - 128.0) / full_scale) as f32,
            (_, bytes) => {
                // The sample in the highest bytes, then shifted down with its sign.
                let mut word = [0; 4];
                word[4 - bytes.len()..].copy_from_slice(bytes);
                let sample = i32::from_le_bytes(word) >> (32 - 8 * bytes.len());
                (f64::from(sample) / full_scale) as f32
            }
        };
        Ok(bytes.chunks_exact(sample_bytes).map(decode).collect())
    }
}

/// The integer that stands for 1.0, which is one more than the largest sample.
pub(crate) fn full_scale(bits_per_sample: u16) -> f64 {
    f64::from(bits_per_sample - 1).exp2()
}

/// The greatest common divisor.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Half the length of the filter in input frames, for a step of `step.0 / step.1` input frames.
fn half_len((input, output): (usize, usize)) -> usize {
    (FILTER_HALF_LEN * input.max(output)).div_ceil(output)
}

/// The coefficients of the filter for an output frame `phase / step.1` after an input frame. The first one belongs to the
/// input frame `half_len - 1` before it. They add up to 1.
fn filter(step: (usize, usize), phase: usize) -> Vec<f64> {
    let (half, denominator) = (half_len(step), step.1 as f64);
    // The part of the input's frequencies that is kept: the band in which the filter falls off ends where the lower
    // rate's frequencies do.
    let stretch = step.0.max(step.1) as f64 / denominator;
    let cutoff = (1.0 - 4.0 / FILTER_HALF_LEN as f64) / stretch;
    let coefficient = |k: usize| {
        let t = k as f64 - (half - 1) as f64 - phase as f64 / denominator;
        let sinc = if t == 0.0 { 1.0 } else { (PI * cutoff * t).sin() / (PI * cutoff * t) };
        // Blackman and Harris's window with four terms.
        let angle = PI * (t / half as f64).clamp(-1.0, 1.0);
        sinc * (0.35875 + 0.48829 * angle.cos() + 0.14128 * (2.0 * angle).cos() + 0.01168 * (3.0 * angle).cos())
    };
    let coefficients: Vec<f64> = (0..2 * half).map(coefficient).collect();
    let sum: f64 = coefficients.iter().sum();
    coefficients.iter().map(|value| value / sum).collect()
}

impl Resampling {
    fn new(from: u32, to: u32, channels: usize, frames: usize) -> Self {
        let divisor = gcd(from, to);
        let step = ((from / divisor) as usize, (to / divisor) as usize);
        let is_small = step.1.saturating_mul(2 * half_len(step)) <= MAX_FILTER_TABLE;
        let filters = (0..if is_small { step.1 } else { 0 }).map(|phase| filter(step, phase)).collect();
        let samples = vec![0.0; (half_len(step) - 1) * channels];
        Resampling { step, filters, samples, start: 0, phase: 0, frames_left: frames }
    }

    /// Computes the next `n` frames, interleaved.
    fn read<R: Read>(&mut self, file: &mut SampleReader<R>, channels: usize, n: usize) -> Result<Vec<f32>, String> {
        let len = 2 * half_len(self.step) * channels;
        let mut output = Vec::with_capacity(n * channels);
        for _ in 0..n {
            while self.samples.len() < self.start * channels + len {
                let done = (self.start * channels).min(self.samples.len());
                self.samples.drain(..done);
                self.start -= done / channels;
                let frames = self.frames_left.min(RESAMPLER_FRAMES);
                self.frames_left -= frames;
                self.samples.extend(file.read(frames * channels)?);
                self.samples.resize(self.samples.len() + (RESAMPLER_FRAMES - frames) * channels, 0.0);
            }
            let computed;
            let filter = match self.filters.get(self.phase) {
                Some(filter) => filter,
                None => {
                    computed = filter(self.step, self.phase);
                    &computed
                }
            };
            let window = &self.samples[self.start * channels..][..len];
            for channel in 0..channels {
                let samples = window[channel..].iter().step_by(channels);
                output.push(filter.iter().zip(samples).map(|(f, &v)| f * f64::from(v)).sum::<f64>() as f32);
            }
            self.phase += self.step.0;
            self.start += self.phase / self.step.1;
            self.phase %= self.step.1;
        }
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use hound::WavWriter;
    use lstm::ndarray::Axis;

    use super::*;

    fn wav(spec: WavSpec, samples: &[i32]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        for &sample in samples {
            match spec.sample_format {
                SampleFormat::Int => writer.write_sample(sample).unwrap(),
                SampleFormat::Float => writer.write_sample(sample as f32).unwrap(),
            }
        }
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    fn spec(channels: u16, sample_rate: u32, bits_per_sample: u16, sample_format: SampleFormat) -> WavSpec {
        WavSpec { channels, sample_rate, bits_per_sample, sample_format }
    }

    #[test]
    fn scales_every_sample_format_and_separates_channels() {
        for (bits, format) in [
            (8, SampleFormat::Int),
            (16, SampleFormat::Int),
            (24, SampleFormat::Int),
            (32, SampleFormat::Int),
            (32, SampleFormat::Float),
        ] {
            let one = if format == SampleFormat::Float { 4 } else { 1i64 << (bits - 1) };
            let samples = [one / 2, -one, 0, one / 4, -one / 4, one - 1].map(|v| i32::try_from(v).unwrap());
            let bytes = wav(spec(2, 8000, bits, format), &samples);
            let (mut frames, shape, _) = open(Cursor::new(bytes), None).unwrap();
            assert_eq!((shape.batch, shape.steps, shape.features), (2, 3, 1));
            let x = frames.read(&shape, 3).unwrap();
            let unit = if format == SampleFormat::Float { one as f32 } else { 1.0 };
            let want = [0.5, 0.0, -0.25, -1.0, 0.25, (one - 1) as f32 / one as f32].map(|v| v * unit);
            assert_eq!(x.iter().copied().collect::<Vec<_>>(), want, "{bits} {format:?}");
        }
    }

    #[test]
    fn resamples_a_sine_without_delay() {
        for (from, to) in [(44100, 48000), (48000, 44100), (48000, 16000), (8000, 44100), (44100, 44099)] {
            let sine = |rate: u32, n: usize| {
                (0..n).map(move |k| (k as f64 * 440.0 * std::f64::consts::TAU / f64::from(rate)).sin())
            };
            // The second channel is the first one, half as loud.
            let samples = sine(from, 4 * RESAMPLER_FRAMES).flat_map(|v| [(v * 1e9) as i32, (v * 5e8) as i32]);
            let samples: Vec<i32> = samples.collect();
            let file = wav(spec(2, from, 32, SampleFormat::Int), &samples);
            let (mut frames, shape, _) = open(Cursor::new(file), Some(to)).unwrap();
            let steps = (4 * RESAMPLER_FRAMES as u64 * u64::from(to)).div_ceil(u64::from(from)) as usize;
            assert_eq!((shape.batch, shape.steps), (2, steps));
            let parts = [1, 700, steps - 701].map(|n| frames.read(&shape, n).unwrap());
            // Away from both ends, where the filter sees silence.
            let margin = (128 * to.max(from)).div_ceil(from) as usize;
            for (channel, scale) in [1e9, 5e8].into_iter().enumerate() {
                let y: Vec<f32> = parts.iter().flat_map(|part| part.index_axis(Axis(0), channel).to_owned()).collect();
                let scale = scale / full_scale(32);
                let inside = y.iter().zip(sine(to, steps)).enumerate().skip(margin).take(steps - 2 * margin);
                for (k, (got, want)) in inside {
                    let error = (f64::from(*got) - want * scale).abs();
                    assert!(error < 1e-4 * scale, "{from} to {to}, {k}: {got} {}", want * scale);
                }
            }
        }
    }

    /// A file of one channel with the header `WAVE_FORMAT_EXTENSIBLE`, after another chunk.
    fn extensible(kind: u16, bits: u16, valid_bits: u16) -> Vec<u8> {
        let bytes = bits / 8;
        let mut file = b"RIFF\x60\0\0\0WAVEJUNK\x02\0\0\0xxfmt \x28\0\0\0\xfe\xff\x01\0".to_vec();
        file.extend([8000, 8000 * u32::from(bytes)].into_iter().flat_map(u32::to_le_bytes));
        file.extend([bytes, bits, 22, valid_bits, 0, 0, kind].into_iter().flat_map(u16::to_le_bytes));
        file.extend(b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71data\x18\0\0\0");
        file.extend([0; 24]);
        file
    }

    #[test]
    fn rejects_samples_in_wider_containers() {
        for (kind, bits, valid_bits) in [(1, 16, 16), (1, 24, 24), (1, 32, 32), (1, 24, 0), (3, 32, 32)] {
            let (_, shape, _) = open(Cursor::new(extensible(kind, bits, valid_bits)), None).unwrap();
            assert_eq!(shape.steps, 192 / usize::from(bits));
        }
        for (kind, bits, valid_bits, part) in [
            (1, 32, 24, "got 24 bits in 4 bytes"),
            (1, 32, 16, "soundfile.write"),
            (1, 24, 16, "got 16 bits in 3 bytes"),
            (1, 24, 20, "with 20 bits"),
            (3, 64, 64, "got floats of 64 bits; `ffmpeg"),
        ] {
            let error = open(Cursor::new(extensible(kind, bits, valid_bits)), None).err().unwrap();
            assert!(error.contains(part), "{error}");
        }
        // As `hound` writes floats, with another width.
        let mut floats = wav(spec(1, 8000, 32, SampleFormat::Float), &[0; 8]);
        let at = floats.windows(4).position(|part| part == b"fmt ").unwrap() + 8;
        floats[at + 8..at + 16].copy_from_slice(&[0, 250, 0, 0, 8, 0, 64, 0]);
        floats[at + 18..at + 20].copy_from_slice(&[64, 0]);
        let error = open(Cursor::new(floats), None).err().unwrap();
        assert!(error.contains("got floats of 64 bits"), "{error}");
    }

    #[test]
    fn reads_streamed_and_long_files_and_odd_chunks() {
        let good = wav(spec(1, 8000, 16, SampleFormat::Int), &[1, 2, 3, 4]);
        let want = open(Cursor::new(&good), None).unwrap().0.samples.read(4).unwrap();
        let read = |bytes: &[u8]| {
            let (mut frames, shape, _) = open(Cursor::new(bytes), None)?;
            frames.read(&shape, shape.steps).map(|x| x.iter().copied().collect::<Vec<f32>>())
        };
        let with_lengths = |riff: u32, data: u32| {
            let mut bytes = good.clone();
            bytes[4..8].copy_from_slice(&riff.to_le_bytes());
            bytes[40..44].copy_from_slice(&data.to_le_bytes());
            bytes
        };
        for (riff, data) in
            [(u32::MAX, u32::MAX), (0, u32::MAX), (u32::MAX, 0), (0, 0), (36, 0), (0x7fff_f024, 0x7fff_f000)]
        {
            assert_eq!(read(&with_lengths(riff, data)).as_ref(), Ok(&want), "{riff} {data}");
            // Half a sample at the end is none.
            let cut = with_lengths(riff, data);
            assert_eq!(read(&cut[..cut.len() - 1]).as_deref(), Ok(&want[..3]), "{riff} {data}");
        }
        // A header that was completed has a length that holds.
        assert!(read(&with_lengths(44, 0)).unwrap_err().contains("found none"));
        assert!(read(&with_lengths(44, 10)).unwrap_err().contains("expected 10 bytes, got 8"));
        // Chunks of an odd length before the samples, and after them.
        let list = b"LIST\x03\0\0\0abc\0";
        assert_eq!(read(&[&good[..36], list, &good[36..], list].concat()).as_ref(), Ok(&want));
        // A length beyond 32 bits is in a chunk of its own.
        let long = [b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0".to_vec(), vec![0; 8], 8u64.to_le_bytes().to_vec()];
        let mut long = [&long.concat()[..], &[0; 12], &good[12..], list].concat();
        let at = long.windows(4).position(|part| part == b"data").unwrap() + 4;
        long[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&long).as_ref(), Ok(&want));
    }

    #[test]
    fn rejects_damaged_files() {
        let good = wav(spec(1, 8000, 16, SampleFormat::Int), &[1, 2, 3, 4]);
        for len in 0..good.len() {
            if let Ok((mut frames, shape, _)) = open(Cursor::new(&good[..len]), None) {
                assert!(frames.read(&shape, shape.steps).is_err(), "{len}");
            }
        }
        assert!(open(Cursor::new(wav(spec(1, 8000, 16, SampleFormat::Int), &[])), None).is_err());
        let error = open(Cursor::new(&good), Some(8_000_000)).err().unwrap();
        assert!(error.contains("8000 Hz to 8000000 Hz"), "{error}");
    }
}
