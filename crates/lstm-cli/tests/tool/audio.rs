//! Audio: .wav files in and out, knobs, prewarming and sample rates.

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use lstm::{
    Cpu, Model, ModelInput,
    formats::{OpenOptions, open},
    ndarray::{Array3, Axis, concatenate},
};

use super::{TempDir, bits, data, read_npy, run_json, save_npy, sequences};

/// Audio of `channels` channels, shape `(channels, steps, 1)`, of multiples of 1/64, which all sample formats hold.
fn audio(channels: usize, steps: usize) -> Array3<f32> {
    Array3::from_shape_fn((channels, steps, 1), |(b, t, _)| ((b * 31 + t * 7) % 97) as f32 / 64.0 - 0.75)
}

fn spec(x: &Array3<f32>, sample_rate: u32, bits_per_sample: u16, sample_format: SampleFormat) -> WavSpec {
    WavSpec { channels: x.dim().0 as u16, sample_rate, bits_per_sample, sample_format }
}

fn save_wav(path: &str, x: &Array3<f32>, spec: WavSpec) {
    let mut wav = WavWriter::create(path, spec).unwrap();
    for &v in x.view().permuted_axes([1, 0, 2]) {
        match spec.sample_format {
            SampleFormat::Float => wav.write_sample(v).unwrap(),
            SampleFormat::Int => {
                wav.write_sample((f64::from(v) * f64::from(spec.bits_per_sample - 1).exp2()) as i32).unwrap()
            }
        }
    }
    wav.finalize().unwrap();
}

/// Reads samples, interleaved, where 1.0 is full scale.
fn read_wav(path: &str) -> (WavSpec, Vec<f64>) {
    let mut wav = WavReader::open(path).unwrap();
    let spec = wav.spec();
    let full_scale = f64::from(spec.bits_per_sample - 1).exp2();
    let samples = match spec.sample_format {
        SampleFormat::Float => wav.samples::<f32>().map(|v| v.unwrap().into()).collect(),
        SampleFormat::Int => wav.samples::<i32>().map(|v| f64::from(v.unwrap()) / full_scale).collect(),
    };
    (spec, samples)
}

/// The outputs of the model in `tests/data/models`, interleaved as in a .wav file.
fn outputs(model: &str, x: &Array3<f32>) -> Vec<f32> {
    let weights = open(model, &OpenOptions::default()).unwrap().weights;
    let y = Model::new(&Cpu::new(), weights).unwrap().forward(ModelInput::from(x)).unwrap().y;
    y.permuted_axes([1, 0, 2]).iter().copied().collect()
}

#[test]
fn every_sample_format_comes_out_as_it_went_in() {
    let dir = TempDir::new();
    let model = data("models/nam.nam");
    let (input, output) = (dir.path("x.wav"), dir.path("y.wav"));
    let x = audio(2, 300);
    let want = outputs(&model, &x);
    for (bits, format) in
        [(16, SampleFormat::Int), (24, SampleFormat::Int), (32, SampleFormat::Int), (32, SampleFormat::Float)]
    {
        let spec = spec(&x, 48000, bits, format);
        save_wav(&input, &x, spec);
        let (code, report) = run_json(&["run", &model, "-i", &input, "-o", &output, "--chunk", "64"]);
        assert_eq!((code, &report["clipped"], &report["sample_rate"]), (0, &0.into(), &48000.into()), "{report}");
        let (got_spec, got) = read_wav(&output);
        assert_eq!(got_spec, spec);
        let half_a_step = if format == SampleFormat::Float { 0.0 } else { f64::from(-i32::from(bits)).exp2() };
        assert_eq!(got.len(), want.len());
        for (got, &want) in got.iter().zip(&want) {
            assert!((got - f64::from(want)).abs() <= half_a_step, "{bits} {format:?}: {got} {want}");
        }
    }
    // Audio in, numbers out: each channel is a sequence.
    let table = dir.path("y.npy");
    assert_eq!(run_json(&["run", &model, "-i", &input, "-o", &table]).0, 0);
    let by_channel = read_npy(&table, &[2, 300, 1]);
    let want_by_channel: Vec<f32> = (0..2).flat_map(|b| want.iter().skip(b).step_by(2).copied()).collect();
    assert_eq!(bits_of(&by_channel), bits_of(&want_by_channel));
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    bits(values)
}

#[test]
fn clipped_samples_are_counted_and_float_keeps_them() {
    let dir = TempDir::new();
    // The skip connection adds the input, which is near full scale.
    let model = data("models/guitarml.json");
    let (input, output) = (dir.path("x.wav"), dir.path("y.wav"));
    let x = Array3::from_shape_fn((1, 200, 1), |(_, t, _)| if t % 2 == 0 { 0.96875 } else { -0.96875 });
    save_wav(&input, &x, spec(&x, 44100, 16, SampleFormat::Int));
    let want = outputs(&model, &x);
    let beyond = want.iter().filter(|v| !(-1.0..=32767.0 / 32768.0).contains(*v)).count();
    assert!(beyond > 0 && beyond < want.len());
    let (code, report) = run_json(&["run", &model, "-i", &input, "-o", &output]);
    assert_eq!((code, &report["clipped"]), (0, &beyond.into()), "{report}");
    assert!(read_wav(&output).1.iter().all(|v| (-1.0..1.0).contains(v)));
    let (code, report) = run_json(&["run", &model, "-i", &input, "-o", &output, "--float"]);
    assert_eq!((code, &report["clipped"]), (0, &0.into()), "{report}");
    let (spec, got) = read_wav(&output);
    assert_eq!((spec.bits_per_sample, spec.sample_format), (32, SampleFormat::Float));
    assert!(got.iter().zip(&want).all(|(got, &want)| *got == f64::from(want)));
}

#[test]
fn silence_before_the_start_changes_the_state_only() {
    let dir = TempDir::new();
    let model = data("models/nam-two.nam");
    let (input, output) = (dir.path("x.wav"), dir.path("y.wav"));
    let x = audio(1, 100);
    save_wav(&input, &x, spec(&x, 48000, 32, SampleFormat::Float));
    let with_silence = concatenate(Axis(1), &[Array3::zeros((1, 480, 1)).view(), x.view()]).unwrap();
    let want = outputs(&model, &with_silence);
    assert_ne!(bits_of(&want[480..]), bits_of(&outputs(&model, &x)));
    for more in [&[][..], &["--chunk", "77"]] {
        let args = ["run", &model, "-i", &input, "-o", &output, "--prewarm", "0.01"];
        assert_eq!(run_json(&[&args, more].concat()).0, 0);
        let got: Vec<f32> = read_wav(&output).1.iter().map(|&v| v as f32).collect();
        assert_eq!(bits_of(&got), bits_of(&want[480..]));
    }
}

#[test]
fn knobs_are_the_inputs_after_the_sample() {
    let dir = TempDir::new();
    let model = data("models/guitarml-knob.json");
    let (input, output) = (dir.path("x.wav"), dir.path("y.wav"));
    let x = audio(1, 60);
    save_wav(&input, &x, spec(&x, 44100, 32, SampleFormat::Float));
    let with_knob = concatenate(Axis(2), &[x.view(), Array3::from_elem((1, 60, 1), -0.25).view()]).unwrap();
    let (code, report) = run_json(&["run", &model, "-i", &input, "-o", &output, "--knobs=-0.25"]);
    assert_eq!(code, 0, "{report}");
    let got: Vec<f32> = read_wav(&output).1.iter().map(|&v| v as f32).collect();
    assert_eq!(bits_of(&got), bits_of(&outputs(&model, &with_knob)));
    for (more, part) in [
        (&[][..], "expected 1 values of --knobs, got 0"),
        (&["--knobs", "1,2"], "got 2"),
        (&["--knobs", "-0.5,1"], "got 2"),
        (&["--knobs", "-0.5,-1,.5"], "got 3"),
    ] {
        let (code, report) = run_json(&[&["run", &model, "-i", &input, "-o", &output], more].concat());
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(part), "{report}");
    }
}

#[test]
fn extensions_are_of_any_case() {
    let dir = TempDir::new();
    let model = data("models/nam.nam");
    let (input, output, npy) = (dir.path("X.WAV"), dir.path("Y.Wav"), dir.path("Z.NPY"));
    let x = audio(1, 20);
    save_wav(&input, &x, spec(&x, 48000, 16, SampleFormat::Int));
    for output in [&output, &npy] {
        let (code, report) = run_json(&["run", &model, "-i", &input, "-o", output]);
        assert_eq!(code, 0, "{report}");
    }
    assert_eq!((read_wav(&output).1.len(), read_npy(&npy, &[1, 20, 1]).len()), (20, 20));
}

#[test]
fn other_sample_rates_are_resampled_on_request() {
    let dir = TempDir::new();
    let model = data("models/nam.nam");
    let (input, output) = (dir.path("x.wav"), dir.path("y.wav"));
    let x = audio(1, 441);
    save_wav(&input, &x, spec(&x, 44100, 16, SampleFormat::Int));
    let args = ["run", &model, "-i", &input, "-o", &output];
    let (code, report) = run_json(&args);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 1 && message.contains("44100 Hz") && message.contains("48000 Hz; --resample"), "{report}");
    let (code, report) = run_json(&[&args[..], &["--resample"]].concat());
    assert_eq!((code, &report["steps"], &report["sample_rate"]), (0, &480.into(), &48000.into()), "{report}");
    let (spec, samples) = read_wav(&output);
    assert_eq!((spec.sample_rate, samples.len()), (48000, 480));
    // A model without a rate runs at that of the file, and can't say what to resample to.
    let unknown = data("models/guitarml.json");
    assert_eq!(run_json(&["run", &unknown, "-i", &input, "-o", &output]).0, 0);
    let (code, report) = run_json(&["run", &unknown, "-i", &input, "-o", &output, "--resample"]);
    assert!(code == 2 && report["error"]["message"].as_str().unwrap().contains("--resample=44100"), "{report}");
    assert_eq!(run_json(&["run", &unknown, "-i", &input, "-o", &output, "--resample=22050"]).1["steps"], 221);
}

#[test]
fn rejects_what_is_no_audio() {
    let dir = TempDir::new();
    let (model, last) = (data("models/nam.nam"), data("models/keras-last.keras"));
    let (wav, npy, out, broken) = (dir.path("x.wav"), dir.path("x.npy"), dir.path("y.wav"), dir.path("broken.wav"));
    let x = audio(1, 20);
    save_wav(&wav, &x, spec(&x, 48000, 16, SampleFormat::Int));
    save_npy(&npy, &sequences(1, 20, 1));
    std::fs::write(&broken, &std::fs::read(&wav).unwrap()[..60]).unwrap();
    for (args, part) in [
        (&["run", &model, "-i", &npy, "-o", &out][..], "a .wav output needs a .wav input"),
        (&["run", &model, "-i", &npy, "--digest", "--prewarm", "1"], "--prewarm: expected a .wav file"),
        (&["run", &model, "-i", &npy, "--digest", "--knobs", "1"], "--knobs: expected a .wav file"),
        (&["run", &model, "-i", &npy, "--digest", "--float"], "--float: expected a .wav output"),
        (&["run", &model, "-i", &broken, "--digest"], "fewer samples than its header says"),
        (&["run", &model, "-i", &wav, "--digest", "--tokens"], "--tokens: the model reads features"),
        (&["run", &last, "-i", &wav, "--digest"], "the model reads 3 values at each step"),
    ] {
        let (code, report) = run_json(args);
        assert!(code != 0 && report["error"]["message"].as_str().unwrap().contains(part), "{args:?}: {report}");
    }
    assert!(!dir.names().contains(&"y.wav".to_owned()));
}
