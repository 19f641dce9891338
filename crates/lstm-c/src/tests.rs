//! Tests the C functions, called as C does, against the Rust library.

use std::{
    ffi::{CStr, CString},
    ptr::{null, null_mut},
};

use library::{
    Cpu, HostState, Model, Precision, formats,
    ndarray::{Array2, Array3},
};

use crate::{
    model::*,
    options::*,
    status::{LstmStatus, lstm_last_error, lstm_status_text},
    stream::*,
};

fn path(name: &str) -> CString {
    CString::new(format!("{}/../../tests/data/models/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn last_error() -> String {
    // SAFETY: the text is valid until the next error of this thread.
    unsafe { CStr::from_ptr(lstm_last_error()) }.to_str().unwrap().to_owned()
}

/// Checks that a call failed with this status and a text with these words.
#[track_caller]
fn assert_failed(got: LstmStatus, status: LstmStatus, words: &[&str]) {
    let text = last_error();
    assert_eq!(got, status, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{text}: expected {words:?}");
}

/// A model, and with the options the same one in Rust.
fn open(name: &str, options: &[(&str, &str)]) -> *mut LstmModel {
    let (mut c_options, mut model) = (null_mut(), null_mut());
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(lstm_options_create(&mut c_options), LstmStatus::Ok);
        for (name, value) in options {
            let [name, value] = [name, value].map(|text| CString::new(*text).unwrap());
            assert_eq!(lstm_options_set(c_options, name.as_ptr(), value.as_ptr()), LstmStatus::Ok, "{}", last_error());
        }
        let status = lstm_model_open(path(name).as_ptr(), c_options, &mut model);
        assert_eq!(status, LstmStatus::Ok, "{}", last_error());
        lstm_options_destroy(c_options);
    }
    model
}

/// The same model in Rust.
fn rust_model(name: &str, precision: Option<Precision>) -> Model<Cpu> {
    let mut options = formats::OpenOptions::default();
    options.precision = precision;
    let file = formats::open(path(name).to_str().unwrap(), &options).unwrap();
    Model::new(&Cpu::new(), file.weights).unwrap()
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|k| ((k * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
}

fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

fn flat(states: &[HostState]) -> Vec<f32> {
    states.iter().flat_map(|state| state.h.iter().chain(&state.c)).copied().collect()
}

const BATCH: usize = 3;
const STEPS: usize = 7;

#[test]
fn whole_sequences_equal_rust() {
    for (name, precision) in [
        ("nam.nam", None),
        ("nam-two.nam", Some(Precision::Int8)),
        ("aidax.json", None),
        ("keras-last.keras", Some(Precision::Int12)),
        ("two-sizes.onnx", None),
    ] {
        let options: Vec<_> = precision.iter().map(|p| ("precision", p.name())).chain([("threads", "2")]).collect();
        let (model, rust) = (open(name, &options), rust_model(name, precision));
        let weights = rust.weights();
        let x = values(BATCH * STEPS * weights.input_size());
        let rust_x = Array3::from_shape_vec((BATCH, STEPS, weights.input_size()), x.clone()).unwrap();
        let lengths = [STEPS, 2, 5];
        let out_steps = if weights.returns_last_step() { 1 } else { STEPS };
        let mut y = vec![9.0; BATCH * out_steps * weights.output_size()];
        // SAFETY: all pointers are valid and the arrays have the sizes of the arguments.
        unsafe {
            assert_eq!(lstm_model_input_size(model), weights.input_size());
            assert_eq!(lstm_model_output_size(model), weights.output_size());
            assert_eq!(lstm_model_num_params(model), weights.num_params());
            assert_eq!(lstm_model_returns_last_step(model), weights.returns_last_step());
            let mut state = vec![9.0; lstm_model_state_size(model, BATCH)];
            let status = lstm_model_forward(
                model,
                x.as_ptr(),
                BATCH,
                STEPS,
                lengths.as_ptr(),
                null(),
                y.as_mut_ptr(),
                state.as_mut_ptr(),
            );
            assert_eq!(status, LstmStatus::Ok, "{name}: {}", last_error());
            let first = rust.forward(library::ModelInput::from(&rust_x).lengths(&lengths)).unwrap();
            assert_eq!((bits(&y), bits(&state)), (bits(&first.y), bits(&flat(&first.states))), "{name}");

            // Again from these states, in the same memory.
            let state_in = state.clone();
            let status = lstm_model_forward(
                model,
                x.as_ptr(),
                BATCH,
                STEPS,
                null(),
                state_in.as_ptr(),
                y.as_mut_ptr(),
                null_mut(),
            );
            assert_eq!(status, LstmStatus::Ok, "{name}: {}", last_error());
            let second = rust.forward(library::ModelInput::from(&rust_x).states(&first.states)).unwrap();
            assert_eq!(bits(&y), bits(&second.y), "{name}");
            let description = CStr::from_ptr(lstm_model_description(model)).to_str().unwrap();
            let precision = precision.map_or("lstm", Precision::name);
            assert!(description.contains(precision) && description.contains("device cpu"), "{description}");
            lstm_model_destroy(model);
        }
    }
}

#[test]
fn streams_equal_whole_sequences_and_states_move_between_them() {
    for name in ["nam.nam", "aidax-gain.aidax", "two-sizes.onnx"] {
        let (model, rust) = (open(name, &[]), rust_model(name, None));
        let (input_size, output_size) = (rust.weights().input_size(), rust.weights().output_size());
        // Time-major, as a stream reads it.
        let x = values(STEPS * BATCH * input_size);
        let rust_x = Array3::from_shape_fn((BATCH, STEPS, input_size), |(b, t, k)| x[(t * BATCH + b) * input_size + k]);
        let expected = rust.forward(&rust_x).unwrap();
        let expected: Vec<f32> = expected.y.permuted_axes([1, 0, 2]).iter().copied().collect();
        let (mut stream, mut y) = (null_mut(), vec![9.0; STEPS * BATCH * output_size]);
        // SAFETY: all pointers are valid and the arrays have the sizes of the arguments.
        unsafe {
            assert_eq!(lstm_stream_create(model, BATCH, &mut stream), LstmStatus::Ok);
            // The stream keeps the model alive.
            lstm_model_destroy(model);
            assert_eq!(lstm_stream_run(stream, x.as_ptr(), y.as_mut_ptr(), 3), LstmStatus::Ok);
            let mut state = vec![9.0; lstm_stream_state_size(stream)];
            assert_eq!(lstm_stream_get_state(stream, state.as_mut_ptr(), state.len()), LstmStatus::Ok);
            assert_eq!(lstm_stream_reset(stream), LstmStatus::Ok);
            assert_eq!(lstm_stream_set_state(stream, state.as_ptr(), state.len()), LstmStatus::Ok);
            let offsets = (3 * BATCH * input_size, 3 * BATCH * output_size);
            let rest = y[offsets.1..].chunks_exact_mut(BATCH * output_size);
            for (x, y) in x[offsets.0..].chunks_exact(BATCH * input_size).zip(rest) {
                assert_eq!(lstm_stream_step(stream, x.as_ptr(), y.as_mut_ptr()), LstmStatus::Ok);
            }
            assert_eq!(bits(&y), bits(&expected), "{name}");
            assert_failed(
                lstm_stream_set_state(stream, state.as_ptr(), state.len() - 1),
                LstmStatus::InvalidArgument,
                &["size", &state.len().to_string()],
            );
            lstm_stream_destroy(stream);
        }
    }
}

#[test]
fn tokens_equal_rust() {
    let (model, rust) = (open("keras-embedding.keras", &[]), rust_model("keras-embedding.keras", None));
    // SAFETY: the model is valid.
    let count = unsafe { lstm_model_num_tokens(model) } as i64;
    assert_eq!(count, 12);
    let tokens: Vec<i64> = (0..STEPS as i64).map(|k| k * 3 % count).collect();
    let expected = rust.forward(&Array2::from_shape_vec((1, STEPS), tokens.clone()).unwrap()).unwrap().y;
    let mut y = vec![9.0; expected.len()];
    // SAFETY: all pointers are valid and the arrays have the sizes of the arguments.
    unsafe {
        assert!(lstm_model_reads_tokens(model));
        let forward = |tokens: &[i64], y: &mut [f32]| {
            lstm_model_forward_tokens(model, tokens.as_ptr(), 1, STEPS, null(), null(), y.as_mut_ptr(), null_mut())
        };
        assert_eq!(forward(&tokens, &mut y), LstmStatus::Ok, "{}", last_error());
        assert_eq!(bits(&y), bits(&expected));
        let mut bad = tokens.clone();
        bad[5] = count;
        assert_failed(forward(&bad, &mut y), LstmStatus::InvalidArgument, &["tokens[0, 5]"]);
        let x = [0.0f32; STEPS];
        let status = lstm_model_forward(model, x.as_ptr(), 1, STEPS, null(), null(), y.as_mut_ptr(), null_mut());
        assert_failed(status, LstmStatus::InvalidArgument, &["lstm_model_forward_tokens"]);

        let mut stream = null_mut();
        assert_eq!(lstm_stream_create(model, 1, &mut stream), LstmStatus::Ok);
        let size = rust.weights().output_size();
        let (mut step_y, mut last) = (vec![9.0; STEPS * size], vec![9.0; size]);
        assert_eq!(lstm_stream_run_tokens(stream, tokens.as_ptr(), step_y.as_mut_ptr(), STEPS), LstmStatus::Ok);
        let end = if rust.weights().returns_last_step() { 0 } else { (STEPS - 1) * size };
        assert_eq!(bits(&step_y[(STEPS - 1) * size..]), bits(&y_of(&expected)[end..]));
        assert_eq!(lstm_stream_step_tokens(stream, bad[5..].as_ptr(), last.as_mut_ptr()), LstmStatus::InvalidArgument);
        assert_eq!(lstm_stream_step_tokens(stream, [-1i64].as_ptr(), last.as_mut_ptr()), LstmStatus::InvalidArgument);
        assert_eq!(lstm_stream_step(stream, x.as_ptr(), last.as_mut_ptr()), LstmStatus::InvalidArgument);
        lstm_stream_destroy(stream);
        lstm_model_destroy(model);
    }
}

fn y_of(y: &Array3<f32>) -> Vec<f32> {
    y.iter().copied().collect()
}

#[test]
fn memory_opens_as_the_file_does() {
    let bytes = std::fs::read(path("nam.nam").to_str().unwrap()).unwrap();
    let mut model = null_mut();
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(lstm_model_open_memory(bytes.as_ptr(), bytes.len(), null(), &mut model), LstmStatus::Ok);
        drop(bytes);
        assert_eq!(lstm_model_input_size(model), 1);
        let rate = lstm_model_metadata(model, c"sample_rate".as_ptr());
        assert!(!rate.is_null() && CStr::from_ptr(rate) == c"48000", "{:?}", CStr::from_ptr(rate));
        assert!(lstm_model_metadata(model, c"no such key".as_ptr()).is_null());
        lstm_model_destroy(model);
        let mut none = null_mut();
        assert_failed(lstm_model_open_memory(null(), 0, null(), &mut none), LstmStatus::InvalidFile, &[]);
        assert_failed(lstm_model_open_memory(null(), 3, null(), &mut none), LstmStatus::InvalidArgument, &["bytes"]);
        assert!(none.is_null());
    }
}

#[test]
fn invalid_options_and_files_say_what_was_expected() {
    let (mut options, mut model) = (null_mut(), null_mut());
    // SAFETY: all pointers are valid or null.
    unsafe {
        assert_eq!(lstm_options_create(&mut options), LstmStatus::Ok);
        for (name, value, words) in [
            (c"speed", c"1", &["unknown option `speed`", "precision"][..]),
            (c"threads", c"0", &["threads", "at least 1"]),
            (c"threads", c"two", &["threads"]),
            (c"precision", c"int4", &["int4", "int8"]),
            (c"clip", c"-1", &["clip", "positive"]),
            (c"coupled", c"maybe", &["coupled", "true or false"]),
            (c"set", c"sr", &["sr=16000"]),
            (c"cell", c"gru", &["gru"]),
        ] {
            let status = lstm_options_set(options, name.as_ptr(), value.as_ptr());
            assert_failed(status, LstmStatus::InvalidArgument, words);
        }
        assert_failed(
            lstm_options_set(null_mut(), c"a".as_ptr(), c"b".as_ptr()),
            LstmStatus::InvalidArgument,
            &["options"],
        );
        assert_failed(lstm_options_set(options, c"layers".as_ptr(), null()), LstmStatus::InvalidArgument, &["value"]);
        // The value of the first call stays.
        assert_eq!(lstm_options_set(options, c"set".as_ptr(), c"sr=1".as_ptr()), LstmStatus::Ok);
        let twice = lstm_options_set(options, c"set".as_ptr(), c"sr=2".as_ptr());
        assert_failed(twice, LstmStatus::InvalidArgument, &["set twice"]);
        assert_eq!((&(*options).open.set)["sr"], 1.0);
        // Only ONNX files have such inputs.
        lstm_options_destroy(options);
        assert_eq!(lstm_options_create(&mut options), LstmStatus::Ok);
        let not_utf8 = c"\xff";
        assert_failed(
            lstm_options_set(options, not_utf8.as_ptr(), c"".as_ptr()),
            LstmStatus::InvalidArgument,
            &["UTF-8"],
        );

        assert_eq!(lstm_options_set(options, c"device".as_ptr(), c"abacus".as_ptr()), LstmStatus::Ok);
        let nam = path("nam.nam");
        assert_failed(
            lstm_model_open(nam.as_ptr(), options, &mut model),
            LstmStatus::InvalidArgument,
            &["option device: ", "abacus"],
        );
        assert_eq!(lstm_options_set(options, c"device".as_ptr(), c"cuda".as_ptr()), LstmStatus::Ok);
        // Not the feature of this crate: a build of the whole workspace can have the backend without it.
        if library::BACKENDS.iter().any(|backend| backend.name == "cuda" && !backend.is_compiled) {
            assert_failed(
                lstm_model_open(nam.as_ptr(), options, &mut model),
                LstmStatus::Device,
                &["xtask c --features cuda`"],
            );
        }
        lstm_options_destroy(options);

        let missing = path("missing.nam");
        assert_failed(lstm_model_open(missing.as_ptr(), null(), &mut model), LstmStatus::Io, &["missing.nam"]);
        let script = path("make_formats.py");
        assert_failed(
            lstm_model_open(script.as_ptr(), null(), &mut model),
            LstmStatus::InvalidFile,
            &["make_formats.py"],
        );
        assert_failed(lstm_model_open(null(), null(), &mut model), LstmStatus::InvalidArgument, &["path"]);
        assert_failed(lstm_model_open(nam.as_ptr(), null(), null_mut()), LstmStatus::InvalidArgument, &["out"]);
        let reordered = path("concat-reverse-first.onnx");
        assert_failed(
            lstm_model_open(reordered.as_ptr(), null(), &mut model),
            LstmStatus::InvalidFile,
            &["by the option name: `"],
        );
        assert!(model.is_null());
        let bidirectional = open("tf2onnx-keras-bi-batch1.onnx", &[]);
        let mut stream = null_mut();
        assert_failed(
            lstm_stream_create(bidirectional, 1, &mut stream),
            LstmStatus::InvalidArgument,
            &["reverse", "use lstm_model_forward"],
        );
        lstm_model_destroy(bidirectional);
    }
}

#[test]
fn null_unaligned_and_overlapping_pointers_are_errors() {
    let model = open("nam.nam", &[]);
    let (mut stream, mut buffer) = (null_mut(), [0.5f32; 8]);
    let [x, y] = [buffer.as_mut_ptr(), buffer[4..].as_mut_ptr()];
    let invalid = LstmStatus::InvalidArgument;
    // SAFETY: the pointers that are used are valid; the others are only compared.
    unsafe {
        assert_failed(lstm_stream_create(null(), 1, &mut stream), invalid, &["model"]);
        assert_failed(lstm_stream_create(model, 0, &mut stream), invalid, &["batch", "at least 1"]);
        assert_failed(lstm_stream_create(model, usize::MAX / 2, &mut stream), LstmStatus::OutOfMemory, &[]);
        assert_failed(lstm_stream_create(model, 1, null_mut()), invalid, &["out"]);
        assert_eq!(lstm_stream_create(model, 1, &mut stream), LstmStatus::Ok);

        let text = last_error();
        for (stream, x, y) in [
            (null_mut(), x.cast_const(), y),
            (stream, null(), y),
            (stream, x, null_mut()),
            (stream, x.cast::<u8>().add(1).cast(), y),
            (stream, x, y.cast::<u8>().add(2).cast()),
            (stream, x, x),
        ] {
            assert_eq!(lstm_stream_step(stream, x, y), invalid);
        }
        assert_eq!(lstm_stream_run(stream, x, y, 5), invalid);
        assert_eq!(lstm_stream_run(stream, x, y, usize::MAX), invalid);
        assert_eq!(lstm_stream_run(stream, null(), null_mut(), 0), LstmStatus::Ok);
        assert_eq!(last_error(), text, "real-time functions set no text");
        assert_eq!(lstm_stream_run(stream, x, y, 4), LstmStatus::Ok);

        let forward = |x, batch, steps, y, state| lstm_model_forward(model, x, batch, steps, null(), null(), y, state);
        assert_failed(forward(x, 1, 4, x, null_mut()), invalid, &["overlaps"]);
        assert_failed(forward(x, 1, 4, y, y), invalid, &["overlaps"]);
        assert_failed(forward(null(), 1, 4, y, null_mut()), invalid, &["x", "NULL"]);
        assert_failed(forward(x, usize::MAX, 2, y, null_mut()), invalid, &["too large"]);
        assert_failed(forward(x, 0, usize::MAX, y, null_mut()), invalid, &[]);
        assert_failed(lstm_model_forward(null(), x, 1, 1, null(), null(), y, null_mut()), invalid, &["model"]);
        let long = [5usize];
        let status = lstm_model_forward(model, x, 1, 4, long.as_ptr(), null(), y, null_mut());
        assert_failed(status, invalid, &["length"]);
        assert_eq!(forward(x, 1, 4, y, null_mut()), LstmStatus::Ok);

        assert_eq!(lstm_model_input_size(null()), 0);
        assert_eq!(lstm_stream_state_size(null()), 0);
        assert_failed(lstm_stream_reset(null_mut()), invalid, &["stream"]);
        lstm_stream_destroy(stream);
        lstm_model_destroy(model);
        lstm_options_destroy(null_mut());
        lstm_model_destroy(null_mut());
        lstm_stream_destroy(null_mut());
        for status in -1..8 {
            assert!(!CStr::from_ptr(lstm_status_text(status)).is_empty());
        }
    }
}

#[test]
fn a_panic_becomes_a_status() {
    let status = crate::status::call(|| panic!("on purpose"));
    assert_failed(status, LstmStatus::Internal, &["internal error: on purpose"]);
}

#[test]
fn models_say_whether_steps_are_for_real_time() {
    for (name, options, expected) in [
        ("nam.nam", &[][..], true),
        ("nam.nam", &[("threads", "2")], false),
        ("nam.nam", &[("precision", "int8")], true),
        ("tf2onnx-keras-hard-sigmoid.onnx", &[], false),
    ] {
        let model = open(name, options);
        // SAFETY: the model is valid.
        unsafe {
            assert_eq!(lstm_model_is_real_time(model), expected, "{name} {options:?}");
            lstm_model_destroy(model);
        }
    }
    // SAFETY: NULL is allowed.
    assert!(!unsafe { lstm_model_is_real_time(null()) });
}

#[test]
fn a_bad_token_is_found_before_the_first_step() {
    let model = open("keras-embedding.keras", &[]);
    let (mut stream, mut y, mut state) = (null_mut(), [9.0; 9], Vec::new());
    // SAFETY: all pointers are valid and the arrays have the sizes of the arguments.
    unsafe {
        assert_eq!(lstm_stream_create(model, 1, &mut stream), LstmStatus::Ok);
        assert_eq!(lstm_stream_run_tokens(stream, [1, 2, 12].as_ptr(), y.as_mut_ptr(), 3), LstmStatus::InvalidArgument);
        state.resize(lstm_stream_state_size(stream), 9.0);
        assert_eq!(lstm_stream_get_state(stream, state.as_mut_ptr(), state.len()), LstmStatus::Ok);
        lstm_stream_destroy(stream);
        lstm_model_destroy(model);
    }
    assert!(y == [9.0; 9] && state.iter().all(|&v| v == 0.0));
}

/// `include/lstm.h` is what cbindgen makes of the source.
#[test]
fn header_is_current() {
    let folder = env!("CARGO_MANIFEST_DIR");
    let config = cbindgen::Config::from_file(format!("{folder}/cbindgen.toml")).unwrap();
    let mut header = Vec::new();
    cbindgen::Builder::new()
        .with_crate(folder)
        .with_config(config)
        .generate()
        .expect("cbindgen can read the source")
        .write(&mut header);
    let path = format!("{folder}/include/lstm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let committed = std::fs::read(&path).unwrap_or_default();
    assert!(header == committed, "{path} is not current; run `cargo xtask c --update-header`");
}
