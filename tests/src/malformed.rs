//! Functions that read a file from an untrusted source, for fuzz targets and tests of malformed files. Reading returns an
//! error or a model and never panics. A model that loads is run, streamed and written again.

use lstm_core::{
    Backend, CellKind, Direction, Input, Lstm, Model, Reference, Result, StateDict, StateDictWriter, TensorNames,
    Weights,
    ndarray::{Array3, ArrayD, ArrayView3, IxDyn, s},
};
use lstm_formats::{OnnxGraph, OnnxModel, OnnxWriter, OpenOptions};

/// Largest number of parameters of a model that is run. Larger models are only loaded.
const MAX_PARAMS: usize = 1 << 12;

/// All cell kinds.
const CELLS: [CellKind; 4] = [CellKind::Fused, CellKind::Unfused, CellKind::PeepholeDense, CellKind::PeepholeDiagonal];

/// Batch size of the input on which models are run.
const BATCH_SIZE: usize = 2;

/// Number of time steps of the input on which models are run.
const STEPS: usize = 3;

/// Reads a safetensors file in every supported way, runs the model, and writes it again.
///
/// # Errors
/// The file is malformed.
///
/// # Panics
/// The model's results differ between execution paths, or between reading and writing.
pub fn check_safetensors<B: Backend>(b: &B, bytes: &[u8]) -> Result<()> {
    let dict = StateDict::from_bytes(bytes.to_vec())?;
    for name in dict.names() {
        let _ = dict.clone().take_any(name);
        let _ = dict.clone().take_f64(name);
        let _ = dict.clone().take_i64(name);
    }
    for cell in CELLS {
        if let Ok(weights) = dict.clone().take_lstm_as("", cell) {
            run_model(b, &weights);
        }
    }
    let weights = dict.clone().take_lstm("")?;
    run_model(b, &weights);
    let bytes = StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch).and_then(|writer| writer.to_bytes());
    let reread_weights =
        bytes.and_then(StateDict::from_bytes).and_then(|mut dict| dict.take_lstm_as("", weights.config().cell));
    assert_same_weights(&weights, &reread_weights.expect("a written file can be read"));
    Ok(())
}

/// Reads an ONNX file in every supported way, runs the model, and writes it again.
///
/// # Errors
/// The file is malformed.
///
/// # Panics
/// The model's results differ between execution paths, or between reading and writing.
pub fn check_onnx<B: Backend>(b: &B, bytes: &[u8]) -> Result<()> {
    let model = OnnxModel::from_bytes(bytes)?;
    for name in model.tensor_names() {
        let _ = model.tensor(name);
    }
    let nodes = model.lstm_nodes();
    let named = |names: &[String]| {
        let mut options = OpenOptions::default();
        options.names = names.to_vec();
        model.graph(&options)
    };
    for name in &nodes {
        let _ = named(std::slice::from_ref(name));
    }
    if !nodes.is_empty() {
        let _ = named(&nodes);
    }
    let graph = model.graph(&OpenOptions::default())?;
    run_onnx_graph(b, &graph);
    for weights in graph.weights().lstms() {
        run_model(b, weights);
        let written = OnnxWriter::new(weights).to_bytes();
        let reread = written.and_then(|bytes| OnnxModel::from_bytes(&bytes)?.graph(&OpenOptions::default()));
        let reread = reread.expect("a written file can be read");
        assert_same_weights(weights, reread.weights().lstms().next().expect("an LSTM was written"));
    }
    Ok(())
}

/// Reads a model file of any format from its bytes and runs its LSTMs.
///
/// # Errors
/// The file is malformed.
///
/// # Panics
/// The LSTMs' results differ between execution paths.
pub fn check_model_file<B: Backend>(b: &B, bytes: &[u8]) -> Result<()> {
    let model = lstm_formats::open_bytes(bytes, &OpenOptions::default())?.weights;
    model.lstms().for_each(|weights| run_model(b, weights));
    Ok(())
}

/// Runs a model on the backend's default path, on the reference path and as a stream, and compares the results.
fn run_model<B: Backend>(b: &B, weights: &Weights) {
    let config = weights.config();
    if weights.len() > MAX_PARAMS {
        return;
    }
    let size = config.input_size;
    let x = Array3::from_shape_fn((BATCH_SIZE, STEPS, size), |(b, t, f)| ((b * 5 + t * 3 + f) % 7) as f32 * 0.5 - 1.5);
    let (default_model, reference_model) =
        (Lstm::new(b, weights.clone()), Lstm::new(&Reference(b.clone()), weights.clone()));
    let default_model = default_model.expect("a small model fits in memory");
    let (y, _) = default_model.forward(&x).expect("the input has the model's size");
    let want = reference_model.and_then(|lstm| lstm.forward(&x)).expect("the input has the model's size").0;
    assert_same(y.view(), want.view());
    let _ = default_model.forward(Input::from(&x).lengths(&[STEPS, 1])).expect("the lengths are valid");
    if config.direction == Direction::Forward {
        let mut stream = default_model.stream(BATCH_SIZE).expect("a forward model supports streams");
        let first_step = stream.chunk(x.slice(s![.., ..1, ..])).expect("the chunk has the model's size");
        let later_steps = stream.chunk(x.slice(s![.., 1.., ..])).expect("the chunk has the model's size");
        assert_same(y.slice(s![.., ..1, ..]), first_step.view());
        assert_same(y.slice(s![.., 1.., ..]), later_steps.view());
    }
}

/// Runs the model of an ONNX file with inputs in the layout of the file's graph. The result is ignored, because states and
/// lengths that are constants of the graph may not fit the batch.
fn run_onnx_graph<B: Backend>(b: &B, graph: &OnnxGraph) {
    if graph.weights().num_params() > MAX_PARAMS || graph.outputs().len() > 16 {
        return;
    }
    let inputs = graph.inputs().iter().map(|input| {
        let shape: Vec<usize> = input.shape.iter().map(|size| size.unwrap_or(BATCH_SIZE)).collect();
        let array = ArrayD::from_elem(IxDyn(&shape), 1.0f32);
        (input.name.clone(), array.into())
    });
    let elements: usize = graph.inputs().iter().map(|i| i.shape.iter().flatten().product::<usize>()).sum();
    if elements < 1 << 16 {
        let model = Model::new(b, graph.weights().clone()).expect("a small model fits in memory");
        let _ = graph.run(&model, inputs.collect());
    }
}

/// Panics unless both arrays are bit-identical. Every NaN counts as equal to every other NaN.
fn assert_same(want: ArrayView3<'_, f32>, got: ArrayView3<'_, f32>) {
    let is_equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    assert!(want.dim() == got.dim() && want.iter().zip(got).all(is_equal), "{want:?} and {got:?}");
}

/// Panics unless both sets of weights are bit-identical.
fn assert_same_weights(want: &Weights, got: &Weights) {
    let values = |weights: &Weights| {
        let params = weights.layers().iter().flat_map(|layer| layer.iter());
        params.flat_map(|(_, value)| value.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    assert_eq!(values(want), values(got));
}

/// The same safetensors file without the checksum that this library writes: spaces instead of the metadata entry.
///
/// # Panics
/// The file has none.
pub fn without_checksum(bytes: &[u8]) -> Vec<u8> {
    let start = b"\"lstm.checksum\":\"lstm-crc32:";
    let at = bytes.windows(start.len()).position(|part| part == start).expect("the file has a checksum");
    // With the digits and the quote, and one of the commas around the entry.
    let end = at + start.len() + 9;
    let range = match (bytes[at - 1], bytes[end]) {
        (_, b',') => at..end + 1,
        (b',', _) => at - 1..end,
        _ => at..end,
    };
    let mut bytes = bytes.to_vec();
    bytes[range].fill(b' ');
    bytes
}

/// A temporary folder that is removed with this value.
pub struct Folder(pub std::path::PathBuf);

impl Folder {
    /// Creates an empty folder.
    ///
    /// # Panics
    /// It can't be created.
    pub fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("lstm-tests-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("the folder for temporary files is writable");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
