//! The program `verify_models`: opens every model file of a directory, runs it whole on every backend, and compares the
//! outputs with right ones.
//!
//! The right outputs of `NAME.EXT` are in `NAME.expected.safetensors`: the input is `x`, shape `(batch, steps, features)`,
//! or `tokens`, shape `(batch, steps)`; the output is `y`, shape `(batch, steps, features)`, or `last`, shape
//! `(batch, features)`; `state.h` and `state.c` are the initial state that the file itself has. For `NAME.onnx` they may
//! be in `NAME.safetensors`, with `in.` and `out.` before the names of the graph's inputs and outputs.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Backend, Model, ModelInput, ModelLayer, ModelWeights, StateDict,
    ndarray::{Array2, Array3, ArrayD, Axis, Ix3, concatenate},
    weights::state_dict::Dtype,
};
use lstm_formats::{
    Format, OpenOptions,
    onnx::{OnnxArray, OnnxGraph, OnnxModel},
};

use crate::{
    backends::{self, BackendVisitor},
    onnx::TOLERANCE,
    score::relative_error,
};

/// Ends of the names of files with right outputs.
const EXPECTED: &str = ".expected.safetensors";

/// Extensions of model files. A file with one of these, but without right outputs, can't be verified.
const MODEL_EXTENSIONS: [&str; 12] =
    ["onnx", "safetensors", "pt", "pth", "ckpt", "bin", "keras", "h5", "hdf5", "json", "aidax", "nam"];

/// A model file, and the file with right outputs, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The path within the directory, for reports.
    pub name: String,
    /// The model.
    pub model: PathBuf,
    /// The right outputs.
    pub values: Option<PathBuf>,
}

impl ModelFiles {
    /// Whether an entry of the list of refusals means this file: its name with or without the extension.
    fn is_named(&self, entry: &str) -> bool {
        self.name == entry || Path::new(&self.name).with_extension("") == Path::new(entry)
    }
}

/// Finds the model files in a directory and the directories in it, sorted by name.
///
/// # Errors
/// The directory can't be read or contains no models.
pub fn find_models(dir: &Path) -> Result<Vec<ModelFiles>> {
    let mut paths = Vec::new();
    list_files(dir, &mut paths)?;
    paths.sort();
    let mut models = Vec::new();
    for path in &paths {
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let is_values_of_onnx = extension == "safetensors" && path.with_extension("onnx").is_file();
        if file_name.ends_with(EXPECTED) || is_values_of_onnx || file_name.starts_with('.') {
            continue;
        }
        let mut candidates = vec![path.with_extension(&EXPECTED[1..])];
        if extension == "onnx" {
            candidates.push(path.with_extension("safetensors"));
        }
        let values = candidates.into_iter().find(|candidate| candidate.is_file());
        if values.is_some() || MODEL_EXTENSIONS.contains(&&*extension) {
            let name = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
            models.push(ModelFiles { name, model: path.clone(), values });
        }
    }
    ensure!(!models.is_empty(), "{}: no model files", dir.display());
    Ok(models)
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        // `metadata` follows links: only real directories are entered, so that a link to a parent does no harm.
        if path.symlink_metadata()?.is_dir() {
            list_files(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// Files that may be refused, with the reason: `NAME: reason` in each line. Blank lines and lines that begin with `#` are
/// skipped.
///
/// # Errors
/// A line without a name or a reason, or a name that occurs twice.
pub fn parse_allowed(text: &str) -> Result<BTreeMap<String, String>> {
    let mut allowed = BTreeMap::new();
    for (k, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once(':').map(|(name, reason)| (name.trim(), reason.trim()));
        match entry {
            Some((name, reason)) if !name.is_empty() && !reason.is_empty() => {
                ensure!(
                    allowed.insert(name.to_owned(), reason.to_owned()).is_none(),
                    "line {}: `{name}` occurs twice",
                    k + 1
                );
            }
            _ => bail!("line {}: expected `NAME: reason`, got `{line}`", k + 1),
        }
    }
    Ok(allowed)
}

/// A model that was opened, with its input and the right outputs.
struct ModelCase {
    format: Format,
    weights: ModelWeights,
    values: Values,
}

/// Inputs of a graph by name.
type Inputs = BTreeMap<String, OnnxArray>;

/// Right values by name.
type Wanted = BTreeMap<String, ArrayD<f64>>;

/// Inputs and right outputs.
enum Values {
    /// One input and one output.
    Plain { input: Input, want: ArrayD<f64> },
    /// Inputs and outputs of a graph, by name, in the layout of the graph.
    Graph { graph: Box<OnnxGraph>, inputs: Inputs, want: Wanted },
}

/// The input of a model.
enum Input {
    Features(Array3<f32>),
    Tokens(Array2<i64>),
}

impl ModelCase {
    /// Opens a model and its right outputs. The outer error is about the right outputs, the inner one about the model.
    fn open(model: &Path, values: &Path) -> Result<lstm_core::Result<Self>> {
        let values_error = || format!("{}", values.display());
        let mut tensors = StateDict::open(values).with_context(values_error)?;
        if tensors.names().any(|name| name.starts_with("in.")) {
            let (inputs, want) = read_graph_values(&mut tensors).with_context(values_error)?;
            let graph = match open_graph(model, &inputs) {
                Ok(graph) => Box::new(graph),
                Err(error) => return Ok(Err(error)),
            };
            let (format, weights) = (Format::Onnx, graph.weights().clone());
            return Ok(Ok(ModelCase { format, weights, values: Values::Graph { graph, inputs, want } }));
        }
        let (values, states) = read_values(&mut tensors).with_context(values_error)?;
        let file = match lstm_formats::open(model, &OpenOptions::default()) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        for (name, want) in states {
            let got = own_state(&file.weights, &name)?;
            let error = relative_error(&want, &got);
            ensure!(error <= TOLERANCE, "the file's own state {name} is {got}, expected {want}");
        }
        Ok(Ok(ModelCase { format: file.format, weights: file.weights, values }))
    }

    /// Runs the model on a backend and returns the largest `|got - want| / (1 + |want|)`.
    fn score<B: Backend>(&self, b: &B) -> Result<f64> {
        let model = Model::new(b, self.weights.clone())?;
        match &self.values {
            Values::Graph { graph, inputs, want } => {
                let mut outputs: BTreeMap<_, _> = graph.run(&model, inputs.clone())?.into_iter().collect();
                let mut largest = 0.0f64;
                for (name, want) in want {
                    let y = outputs.remove(name).with_context(|| format!("the model has no output `{name}`"))?;
                    check_shape(name, want, &y)?;
                    largest = largest.max(relative_error(want, &y));
                }
                Ok(largest)
            }
            Values::Plain { input, want } => {
                let output = match input {
                    Input::Features(x) => model.forward(ModelInput::from(x))?,
                    Input::Tokens(tokens) => model.forward(ModelInput::from(tokens))?,
                };
                let y = output.y.into_dyn();
                check_shape("y", want, &y)?;
                Ok(relative_error(want, &y))
            }
        }
    }
}

fn check_shape(name: &str, want: &ArrayD<f64>, got: &ArrayD<f32>) -> Result<()> {
    ensure!(got.shape() == want.shape(), "expected `{name}` of shape {:?}, got {:?}", want.shape(), got.shape());
    Ok(())
}

/// Opens the graph of an ONNX file. Values of scalar inputs are set if the graph needs them.
fn open_graph(model: &Path, inputs: &Inputs) -> lstm_core::Result<OnnxGraph> {
    let model = OnnxModel::open(model)?;
    let mut options = OpenOptions::default();
    let scalars = model.scalar_inputs();
    for (name, array) in inputs.iter().filter(|(name, _)| scalars.contains(&name.as_str())) {
        let value = match array {
            OnnxArray::F32(array) if array.len() == 1 => array.first().map(|&v| f64::from(v)),
            OnnxArray::I64(array) if array.len() == 1 => array.first().map(|&v| v as f64),
            _ => None,
        };
        options.set.extend(value.map(|value| (name.clone(), value)));
    }
    // An input of one element may also be, for example, the length of one sequence, which needs no setting.
    match model.graph(&OpenOptions::default()) {
        Err(_) if !options.set.is_empty() => model.graph(&options),
        result => result,
    }
}

/// Reads the inputs and outputs of a graph by name.
fn read_graph_values(tensors: &mut StateDict) -> Result<(Inputs, Wanted)> {
    let (mut inputs, mut want) = (BTreeMap::new(), BTreeMap::new());
    for name in tensors.names().map(str::to_owned).collect::<Vec<_>>() {
        if let Some(input) = name.strip_prefix("in.") {
            let shape = tensors.shape(&name).unwrap_or_default().to_vec();
            let is_integer = matches!(tensors.dtype(&name), Some(Dtype::I64 | Dtype::I32));
            let array: OnnxArray = match is_integer {
                true => ArrayD::from_shape_vec(shape, tensors.take_i64(&name)?)?.into(),
                false => tensors.take_any(&name)?.into(),
            };
            inputs.insert(input.to_owned(), array);
        } else if let Some(output) = name.strip_prefix("out.") {
            want.insert(output.to_owned(), tensors.take_f64(&name)?);
        } else {
            bail!("unknown tensor `{name}`");
        }
    }
    ensure!(!want.is_empty(), "no right outputs `out.NAME`");
    Ok((inputs, want))
}

/// Reads the input, the right output and the file's own states by name.
fn read_values(tensors: &mut StateDict) -> Result<(Values, Wanted)> {
    let input = match tensors.shape("tokens") {
        Some(&[batch, steps]) => Input::Tokens(Array2::from_shape_vec((batch, steps), tensors.take_i64("tokens")?)?),
        Some(shape) => bail!("expected `tokens` of shape (batch, steps), got {shape:?}"),
        None => Input::Features(tensors.take_any("x")?.into_dimensionality::<Ix3>()?),
    };
    let want = match tensors.shape("last").is_some() {
        true => tensors.take_f64("last")?.insert_axis(Axis(1)),
        false => tensors.take_f64("y")?,
    };
    let mut states = Wanted::new();
    for name in ["h", "c"] {
        let tensor = format!("state.{name}");
        if tensors.shape(&tensor).is_some() {
            states.insert(name.to_owned(), tensors.take_f64(&tensor)?);
        }
    }
    ensure!(tensors.names().next().is_none(), "unknown tensor `{}`", tensors.names().next().unwrap_or_default());
    Ok((Values::Plain { input, want }, states))
}

/// The initial states `h` or `c` of all LSTMs of a model that it has itself, joined along the axis of layers.
fn own_state(weights: &ModelWeights, name: &str) -> Result<ArrayD<f32>> {
    let mut arrays = Vec::new();
    for layer in weights.layers() {
        if let ModelLayer::Lstm { initial_state, name: lstm, .. } = layer {
            let state = initial_state.as_ref().with_context(|| format!("`{lstm}` has no initial state of its own"))?;
            arrays.push(if name == "h" { state.h.view() } else { state.c.view() });
        }
    }
    Ok(concatenate(Axis(0), &arrays)?.into_dyn())
}

/// A model's layers in a few words: `lstm 3 -> 8, linear 8 -> 2`.
fn describe_layers(weights: &ModelWeights) -> String {
    let layers = weights.layers().iter().map(|layer| match layer {
        ModelLayer::Embedding { weight, .. } => format!("embedding {} x {}", weight.nrows(), weight.ncols()),
        ModelLayer::Lstm { weights, .. } => {
            let config = weights.config();
            let stack = if config.num_layers > 1 { format!(" x {}", config.num_layers) } else { String::new() };
            format!("lstm {} -> {}{stack}", config.input_size, config.output_size())
        }
        ModelLayer::Linear { weight, .. } => format!("linear {} -> {}", weight.ncols(), weight.nrows()),
        ModelLayer::Activation(activation) => activation.to_string(),
        other => other.kind().to_owned(),
    });
    let mut text = layers.collect::<Vec<_>>().join(", ");
    if weights.skip() {
        text += ", skip";
    }
    text
}

/// What became of one model file.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// Every output is right on every backend that ran.
    Right,
    /// The file can't be opened.
    Refused(String),
    /// An output is wrong, differs among backends, or can't be checked.
    Wrong(String),
}

/// A row of the report.
struct Row {
    name: String,
    /// The format and the layers of an opened model.
    contents: String,
    verdict: Verdict,
    /// The largest error of all outputs.
    error: f64,
    case: Option<ModelCase>,
    backends: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { name, contents, verdict, error, backends, .. } = self;
        match verdict {
            Verdict::Right => write!(f, "{name}: right, error {error:.1e} on {}; {contents}", backends.join(", ")),
            Verdict::Refused(reason) => write!(f, "{name}: refused: {reason}"),
            Verdict::Wrong(reason) => write!(f, "{name}: WRONG: {reason}; {contents}"),
        }
    }
}

impl BackendVisitor for Vec<Row> {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        for row in self {
            let Some(case) = &row.case else { continue };
            row.backends.push(backend.to_owned());
            let wrong = match case.score(&b) {
                Ok(error) => {
                    row.error = row.error.max(error);
                    (error > TOLERANCE)
                        .then(|| format!("error {error:.1e} on {backend}, expected at most {TOLERANCE:.0e}"))
                }
                Err(error) => Some(format!("{backend}: {error:#}")),
            };
            if let (Some(wrong), Verdict::Right) = (wrong, &row.verdict) {
                row.verdict = Verdict::Wrong(wrong);
            }
        }
    }
}

/// Opens a model. The row says that it is right until a backend shows otherwise.
fn open_row(files: &ModelFiles) -> Row {
    let mut row = Row {
        name: files.name.clone(),
        contents: String::new(),
        verdict: Verdict::Right,
        error: 0.0,
        case: None,
        backends: Vec::new(),
    };
    let Some(values) = &files.values else {
        row.verdict = Verdict::Wrong(format!("no right outputs: expected a file NAME{EXPECTED}"));
        return row;
    };
    match ModelCase::open(&files.model, values) {
        Ok(Ok(case)) => {
            row.contents = format!("{}: {}", case.format, describe_layers(&case.weights));
            row.case = Some(case);
        }
        Ok(Err(refused)) => row.verdict = Verdict::Refused(one_line(&refused.to_string(), &files.model)),
        Err(error) => row.verdict = Verdict::Wrong(format!("{error:#}")),
    }
    row
}

/// A message without the path of the model and without line breaks.
fn one_line(message: &str, model: &Path) -> String {
    let prefix = format!("{}: ", model.display());
    message.replace(&prefix, "").replace('\n', " ")
}

/// How a run of all models of a directory ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Models whose outputs are right on every backend.
    pub right: usize,
    /// Models that can't be opened.
    pub refused: usize,
    /// Models with a wrong output, or without right outputs to compare with.
    pub wrong: usize,
    /// What makes the run fail, in words.
    pub failures: Vec<String>,
}

/// Runs every model in `dir` on the named backends, or on all backends of this build if `None`, and prints a line for
/// each. It fails for every model that is not right, unless `allowed` lists it with a reason and it is refused; for an
/// entry of `allowed` that is not refused, or that names no file; and for a named backend that can't run.
///
/// # Errors
/// The directory can't be read or contains no models.
pub fn run(dir: &Path, backends: Option<&[String]>, allowed: &BTreeMap<String, String>) -> Result<Summary> {
    let models = find_models(dir)?;
    let mut rows: Vec<Row> = models.iter().map(open_row).collect();
    let mut summary = Summary::default();
    let not_run = backends::for_each_backend(backends, &mut rows);
    for not_run in &not_run {
        println!("{not_run}");
        if backends.is_some() {
            summary.failures.push(not_run.to_string());
        }
    }
    if rows.iter().all(|row| row.backends.is_empty()) && rows.iter().any(|row| row.case.is_some()) {
        summary.failures.push("no backend ran".into());
    }
    for (row, files) in rows.iter().zip(&models) {
        let entry = allowed.iter().find(|(name, _)| files.is_named(name));
        match (&row.verdict, entry) {
            (Verdict::Refused(_), Some((_, reason))) => println!("{row} (allowed: {reason})"),
            _ => println!("{row}"),
        }
        match (&row.verdict, entry) {
            (Verdict::Refused(_), Some(_)) | (Verdict::Right, None) => {}
            (Verdict::Refused(_), None) => summary.failures.push(format!("{} is refused", row.name)),
            (Verdict::Wrong(_), _) => summary.failures.push(format!("{} is wrong", row.name)),
            (Verdict::Right, Some((name, _))) => {
                summary.failures.push(format!("`{name}` is listed, but it opens and is right: remove the entry"));
            }
        }
        match row.verdict {
            Verdict::Right => summary.right += 1,
            Verdict::Refused(_) => summary.refused += 1,
            Verdict::Wrong(_) => summary.wrong += 1,
        }
    }
    for name in allowed.keys().filter(|name| !models.iter().any(|files| files.is_named(name))) {
        summary.failures.push(format!("`{name}` is listed, but there is no such file"));
    }
    println!();
    summary.failures.iter().for_each(|failure| println!("FAIL: {failure}"));
    let Summary { right, refused, wrong, .. } = summary;
    println!("{} models, {right} right, {refused} refused, {wrong} wrong", models.len());
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use lstm_core::{Init, LstmConfig, StateDictWriter, Weights};

    use super::*;
    use crate::toy::Toy;

    #[test]
    fn reads_the_list_of_refusals() {
        let allowed = parse_allowed("# comment\n\na.onnx: made of: GRUs \nb : no\n").unwrap();
        let entries = [("a.onnx", "made of: GRUs"), ("b", "no")].map(|(name, why)| (name.to_owned(), why.to_owned()));
        assert_eq!(allowed.into_iter().collect::<Vec<_>>(), entries);
        for text in ["a.onnx", "a.onnx:", ": reason", "a: b\na: c"] {
            assert!(parse_allowed(text).is_err(), "{text}");
        }
    }

    /// Tests every way in which a model can fail, and which failures the allow list excuses.
    #[test]
    fn counts_models_and_reports_every_failure() {
        let dir = std::env::temp_dir().join(format!("lstm-verify-models-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        let lstm = Weights::init(LstmConfig::new(2, 3), &Init::default(), 1).unwrap();
        let layer = ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None };
        let weights = ModelWeights::new(vec![layer]).unwrap();
        let x = Array3::from_elem((1, 4, 2), 0.5);
        let y = Model::new(&Toy, weights.clone()).unwrap().forward(&x).unwrap().y;
        let save = |name: &str, y: &Array3<f32>| {
            weights.save(dir.join(format!("{name}.safetensors"))).unwrap();
            let values = StateDictWriter::new().tensor("x", &x).unwrap().tensor("y", y).unwrap();
            values.save(dir.join(format!("{name}{EXPECTED}"))).unwrap();
        };
        save("right", &y);
        save("sub/right", &y);
        let run = |allowed: &str| {
            let summary = super::run(&dir, Some(&["toy".to_owned()]), &parse_allowed(allowed).unwrap()).unwrap();
            ((summary.right, summary.refused, summary.wrong), summary.failures)
        };
        assert_eq!(run(""), ((2, 0, 0), vec![]));
        let listed = run("right.safetensors: reason\nno-such-file: reason");
        assert_eq!(listed.0, (2, 0, 0));
        assert_eq!(listed.1.len(), 2, "{listed:?}");
        assert!(listed.1[0].contains("remove the entry") && listed.1[1].contains("no such file"), "{listed:?}");

        save("off", &y.mapv(|v| v + 3e-5));
        save("shape", &Array3::zeros((1, 3, 3)));
        std::fs::copy(dir.join("right.safetensors"), dir.join("alone.safetensors")).unwrap();
        let broken = run("off: a list does not help where results are wrong");
        assert_eq!(broken.0, (2, 0, 3));
        assert_eq!(broken.1, ["alone.safetensors is wrong", "off.safetensors is wrong", "shape.safetensors is wrong"]);

        for name in ["off", "shape", "alone"] {
            std::fs::remove_file(dir.join(format!("{name}.safetensors"))).unwrap();
        }
        std::fs::write(dir.join("right.safetensors"), b"{\"what\": 1}").unwrap();
        assert_eq!(run(""), ((1, 1, 0), vec!["right.safetensors is refused".into()]));
        assert_eq!(run("right: reason"), ((1, 1, 0), vec![]));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(super::run(&dir, None, &BTreeMap::new()).is_err());
    }
}
