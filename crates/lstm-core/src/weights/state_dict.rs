//! Reading of safetensors files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    path::Path,
};

use ndarray::{ArrayD, Axis, Dimension, IxDyn};
use safetensors::SafeTensors;

#[cfg(feature = "train")]
pub(crate) use super::checksum::CHECKPOINT_VERSION_WITHOUT_CHECKSUM;
pub use super::writer::StateDictWriter;
pub(crate) use super::{checksum::CHECKPOINT_KEY, writer::config_key};
pub use safetensors::Dtype;

use super::{
    LayerWeights, Scales, Weights, checksum, dequantize, element, file,
    header::{count_header_entries, header},
    infer::{EXPECTED_LSTM, TensorShapes},
    names::{self, StoredParam},
};
use crate::{
    config::{CellKind, LstmConfig, Param, Precision},
    error::{Error, Result},
    memory,
    quantized::{Format, INT8, INT12},
};

/// Prefixes of the tensors of a training checkpoint that do not belong to the model: those of the optimizer and of the
/// caller.
pub(crate) const CHECKPOINT_PREFIXES: [&str; 2] = ["optimizer.", "extra."];

/// The part of an error message that explains how to read a training checkpoint.
const CHECKPOINT_ADVICE: &str = "the file is a training checkpoint: continue the run with Trainer::resume, or take the \
                                 weights alone with the prefix `lstm.` and leave the other tensors";

/// Maximum number of tensor names in an error message.
const MAX_LISTED_NAMES: usize = 8;

/// A safetensors file in memory. The `take` methods convert and remove one tensor or one model;
/// [`finish`](Self::finish) fails if tensors remain.
///
/// ```
/// use std::collections::BTreeMap;
/// use lstm_core::{LstmConfig, TensorNames, StateDict, StateDictWriter, Weights, Init, ndarray::array};
///
/// let weights = Weights::init(LstmConfig::new(3, 5).layers(2), &Init::default(), 1)?;
/// let head = array![[1.0f32, 2.0, 3.0, 4.0, 5.0]];
/// let bytes = StateDictWriter::new()
///     .lstm("lstm.", &weights, TensorNames::PyTorch)?
///     .tensor("head.weight", &head)?
///     .to_bytes()?;
///
/// let mut dict = StateDict::from_bytes(bytes)?;
/// assert_eq!(dict.take_lstm("lstm.")?, weights);
/// assert_eq!(dict.take("head.weight", &[1, 5])?, head.into_dyn());
/// dict.finish()?;
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct StateDict {
    bytes: Vec<u8>,
    /// The tensors that have not been taken yet, by name.
    tensors: BTreeMap<String, TensorEntry>,
    metadata: BTreeMap<String, String>,
}

/// Element type, shape and position of a tensor in the file.
#[derive(Clone)]
struct TensorEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// The range of bytes in [`StateDict::bytes`] that holds the tensor's elements.
    range: Range<usize>,
}

impl fmt::Debug for StateDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.tensors.iter().map(|(name, entry)| (name, (entry.dtype, &entry.shape)));
        f.debug_map().entries(tensors).finish()
    }
}

impl StateDict {
    /// Reads a safetensors file into memory. Tensors are converted when they are taken.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or is not a regular file; the errors of [`from_bytes`](Self::from_bytes),
    /// which name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(file::read_regular(path)?, &path.display().to_string())
    }

    /// Parses the header of a safetensors file in memory and checks the checksum, if this library wrote the file.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are not a safetensors file: the file is truncated, the header is invalid, a name
    /// occurs twice, or tensors overlap, leave gaps or exceed the file, the header has more than about 50,000 tensors, or
    /// the checksum is that of other content.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(bytes, "safetensors")
    }

    /// Parses a file. `file_name` names the file in error messages.
    fn parse(bytes: Vec<u8>, file_name: &str) -> Result<Self> {
        let entries = count_header_entries(header(&bytes)).map_err(|reason| Error::format(file_name, reason))?;
        let read_result = SafeTensors::read_metadata(&bytes);
        let (header_len, parsed_header) =
            read_result.map_err(|e| Error::format(file_name, not_safetensors_message(&bytes, &e)))?;
        let tensors = parsed_header.tensors();
        if entries != tensors.len() + usize::from(parsed_header.metadata().is_some()) {
            return Err(Error::format(file_name, "the header has a duplicate name or null metadata"));
        }
        let data_start = size_of::<u64>() + header_len;
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let (start, end) = tensor.data_offsets;
            let range = data_start + start..data_start + end;
            (name, TensorEntry { dtype: tensor.dtype, shape: tensor.shape.clone(), range })
        });
        let mut metadata: BTreeMap<_, _> =
            parsed_header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        checksum::check(&bytes, data_start, &metadata).map_err(|reason| Error::format(file_name, reason))?;
        metadata.remove(checksum::CHECKSUM_KEY);
        Ok(StateDict { tensors: tensors.collect(), metadata, bytes })
    }

    /// Adds a tensor, for a state dict that another kind of file contains; [`StateDict::default`] has none. `bytes` are
    /// the elements in row-major order, little-endian.
    ///
    /// # Errors
    /// [`Error::Format`] if a tensor of this name exists, or if the shape and the type need another number of bytes.
    pub fn insert(&mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let name = name.into();
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &size| bits.checked_mul(size));
        let reason = if self.tensors.contains_key(&name) {
            "expected a new name, but the tensor exists".to_owned()
        } else if bits != bytes.len().checked_mul(8) {
            format!("{} bytes do not hold the shape {shape:?} of {dtype}", bytes.len())
        } else {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(bytes);
            self.tensors.insert(name, TensorEntry { dtype, shape: shape.to_vec(), range: start..self.bytes.len() });
            return Ok(());
        };
        Err(Error::format(format!("tensor `{name}`"), reason))
    }

    /// Removes the tensors for whose names `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    /// The elements of a tensor as they are in the file: in row-major order, little-endian. `None` if it does not exist
    /// or was taken.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|entry| self.data(entry))
    }

    /// The metadata of the file, without its checksum: text by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of the tensors that have not been taken yet, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor; `None` if it does not exist or was taken.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// Element type of a tensor; `None` if it does not exist or was taken.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// The prefixes of the LSTMs in the file, sorted, for [`take_lstm`](Self::take_lstm). An LSTM is recognized by the
    /// name of its input weights; the prefix is what precedes `weight_ih_l0` or, up to the last dot, `weight_ih` of
    /// `torch.nn.LSTMCell`, or the notebook's `W` or `U_i`. Other tensors of the LSTM may be missing. In a training
    /// checkpoint the tensors of the optimizer and of the caller do not count.
    pub fn lstm_prefixes(&self) -> Vec<String> {
        let prefix = |name: &String| {
            let name = name.strip_suffix(".q").unwrap_or(name);
            let (prefix, stem) = name.split_at(name.rfind("weight_ih_l").unwrap_or(0));
            if names::parse_pytorch_name(stem).is_some_and(|parsed| parsed.param == Param::WeightIh) {
                return Some(prefix.to_owned());
            }
            let (prefix, last_part) = name.split_at(name.rfind('.').map_or(0, |dot| dot + 1));
            let is_packed = last_part == "W" && self.tensors.contains_key(&format!("{prefix}U"));
            (is_packed || last_part == "U_i" || last_part == "weight_ih").then(|| prefix.to_owned())
        };
        let is_of_model = |prefix: &String| {
            !self.is_checkpoint() || !CHECKPOINT_PREFIXES.iter().any(|other| prefix.starts_with(other))
        };
        self.tensors.keys().filter_map(prefix).filter(is_of_model).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether the file is a training checkpoint.
    fn is_checkpoint(&self) -> bool {
        self.metadata.contains_key(CHECKPOINT_KEY)
    }

    /// The configuration of an LSTM in the metadata, under the key `{prefix}lstm.config`. [`StateDictWriter::lstm`]
    /// adds it if the configuration does not follow from the tensors. `None` if the key does not exist.
    ///
    /// # Errors
    /// [`Error::Format`] if the text is not a valid configuration.
    pub fn lstm_config(&self, prefix: &str) -> Result<Option<LstmConfig>> {
        let key = config_key(prefix);
        let parse = |text: &String| {
            let config = text.parse::<LstmConfig>().and_then(|config| config.validate().map(|()| config));
            config.map_err(|e| Error::format(format!("metadata `{key}`"), e))
        };
        self.metadata.get(&key).map(parse).transpose()
    }

    /// Removes a tensor and returns its elements as f32. The tensor must have the given shape. Elements may be F32,
    /// F16, BF16 or F64; F64 is rounded to the nearest f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`], or [`Error::Format`] if a finite value
    /// is too large for f32. The tensor is not removed after an error.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<ArrayD<f32>> {
        self.check(name, shape)?;
        self.take_any(name)
    }

    /// Removes a tensor of any shape and returns its elements as f32. Elements may be F32, F16, BF16 or F64; F64 is
    /// rounded to the nearest f32.
    ///
    /// # Errors
    /// As for [`take`](Self::take), except [`Error::TensorShape`].
    pub fn take_any(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let value = self.read(name)?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Removes a tensor of any shape and returns its elements as f64, without rounding. Elements may be F64, F32, F16
    /// or BF16.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::TensorType`]. The tensor is not removed after an error.
    pub fn take_f64(&mut self, name: &str) -> Result<ArrayD<f64>> {
        let entry = self.entry(name, || "any shape".into())?;
        let value = array_from_elements(name, entry, element::to_f64(name, entry.dtype, self.data(entry))?)?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Removes an I64 or I32 tensor and returns its elements in row-major order.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::TensorType`]. The tensor is not removed after an error.
    pub fn take_i64(&mut self, name: &str) -> Result<Vec<i64>> {
        let entry = self.entry(name, || "any shape".into())?;
        let value = element::to_i64(name, entry.dtype, self.data(entry))?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Removes the tensors of a model and returns its weights. The tensors are all those whose names start with
    /// `prefix`, such as `"lstm."`. The prefix `""` selects all tensors.
    ///
    /// The names are those of [`pytorch_name`](super::names::pytorch_name), of `torch.nn.LSTMCell` (`weight_ih`, without
    /// a layer number), or of the original notebook ([`TensorNames::Notebook`](super::names::TensorNames); the
    /// candidate's letter may be `c` or `g`). Sizes, number of layers, direction, biases, projection and cell follow from
    /// names and shapes. PyTorch's names without peepholes give the fused cell, which is bit-identical to the unfused
    /// one.
    ///
    /// The options `coupled`, `clip`, `dropout` and `activations` come from the [metadata](Self::lstm_config). Without
    /// metadata they have their defaults; [`Weights::with_config`] sets them.
    ///
    /// # Errors
    /// Nothing is taken after an error.
    /// - [`Error::MissingTensor`] names the first missing tensor: one of a layer in a gap of the layer numbers, a bias
    ///   or a reverse direction that another layer has. If no tensor with the prefix belongs to an LSTM, it lists the
    ///   prefixes of the LSTMs in the file, or some tensors of a file without an LSTM. It says so if the file is a
    ///   training checkpoint.
    /// - [`Error::UnusedTensors`] names tensors with the prefix that do not belong to the model.
    /// - [`Error::TensorShape`] names a tensor whose shape contradicts the other tensors. [`Error::Shape`] names a
    ///   tensor that is needed to determine a size and is not a matrix.
    /// - [`Error::Config`] if a size is invalid, or the notebook's names `W`, `U`, `bias` do not determine the cell;
    ///   use [`take_lstm_as`](Self::take_lstm_as) then.
    /// - [`Error::TensorType`] and [`Error::Format`] as for [`take`](Self::take). [`Error::Format`] also if the
    ///   metadata are invalid or contradict the tensors.
    pub fn take_lstm(&mut self, prefix: &str) -> Result<Weights> {
        self.take_model(prefix, None)
    }

    /// Removes the tensors of a model with the given cell and returns its weights. See [`take_lstm`](Self::take_lstm).
    /// The tensors of the fused cell may be read as the unfused cell and vice versa.
    ///
    /// # Errors
    /// As for [`take_lstm`](Self::take_lstm), and [`Error::Config`] if the tensors are those of another cell.
    pub fn take_lstm_as(&mut self, prefix: &str, cell: CellKind) -> Result<Weights> {
        self.take_model(prefix, Some(cell))
    }

    /// Removes a tensor, which [`read`](Self::read) has read before.
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Checks that all tensors were taken.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`], which names the tensors that were not taken, and says so if the file is a training
    /// checkpoint.
    pub fn finish(self) -> Result<()> {
        let advice = self.is_checkpoint().then_some(CHECKPOINT_ADVICE);
        self.finish_with(advice)
    }

    /// Does the same as [`finish`](Self::finish), with the given advice in the error.
    pub(crate) fn finish_with(self, advice: Option<&'static str>) -> Result<()> {
        let names: Vec<_> = self.tensors.into_keys().collect();
        if names.is_empty() { Ok(()) } else { Err(Error::UnusedTensors { names, advice }) }
    }

    /// Removes the tensors of a model and returns its weights. `cell` is the expected cell, if the caller knows it.
    fn take_model(&mut self, prefix: &str, cell: Option<CellKind>) -> Result<Weights> {
        let precision = self.precision(prefix)?;
        let shapes = self.tensors.iter().filter_map(|(name, entry)| {
            let is_scale = |name: &str| self.tensors.contains_key(&format!("{name}.q"));
            match name.strip_suffix(".scale").filter(|name| is_scale(name)) {
                Some(_) => None,
                None => Some((name.strip_suffix(".q").unwrap_or(name).strip_prefix(prefix)?, &entry.shape[..])),
            }
        });
        let saved_config = self.lstm_config(prefix)?;
        let cell = cell.or(saved_config.as_ref().map(|config| config.cell));
        let shapes = TensorShapes { prefix, shapes: shapes.collect() };
        let (config, layout) = shapes.infer(cell).map_err(|error| self.add_contents_to_error(error))?;
        let config = config.precision(precision);
        let mut layers = layout.stored_params(&config);
        for (name, _) in layers.iter_mut().flat_map(|(_, params)| params).flat_map(|stored| &mut stored.tensors) {
            name.insert_str(0, prefix);
        }
        let mut stored_tensors = Vec::new();
        for (spec, params) in &layers {
            for ((param, _), stored) in spec.params().into_iter().zip(params) {
                for (name, shape) in &stored.tensors {
                    if precision != Precision::F32 && param.is_matrix() {
                        stored_tensors.push((format!("{name}.q"), shape.clone()));
                        stored_tensors.push((format!("{name}.scale"), vec![shape[0]]));
                    } else {
                        stored_tensors.push((name.clone(), shape.clone()));
                    }
                }
            }
        }

        for (name, shape) in &stored_tensors {
            self.entry(name, || format!("shape {shape:?}"))?;
        }
        let used_names: BTreeSet<&str> = stored_tensors.iter().map(|(name, _)| name.as_str()).collect();
        let unused_names = self.names().filter(|name| name.starts_with(prefix) && !used_names.contains(name));
        let names: Vec<_> = unused_names.map(str::to_owned).collect();
        if !names.is_empty() {
            let advice = self.is_checkpoint().then_some(CHECKPOINT_ADVICE);
            return Err(Error::UnusedTensors { names, advice });
        }
        for (name, shape) in &stored_tensors {
            self.check(name, shape)?;
        }

        let layer_weights = layers.iter().map(|(spec, params)| {
            let (mut values, mut scales) = (Vec::new(), Vec::new());
            for ((param, _), stored) in spec.params().into_iter().zip(params) {
                match precision.format().filter(|_| param.is_matrix()) {
                    Some(format) => {
                        let (value, scale) = self.read_quantized(&stored.tensors[0].0, format)?;
                        values.push(value);
                        scales.push(scale);
                    }
                    None => {
                        values.push(self.read_param(stored)?);
                        scales.push(Vec::new());
                    }
                }
            }
            LayerWeights::from_scales(*spec, values, scales)
        });
        let layer_weights = layer_weights.collect::<Result<_>>()?;
        let mut weights = Weights::new(config, layer_weights)?;
        if let Some(mut saved_config) = saved_config {
            if saved_config.cell.is_equivalent_to(weights.config.cell) {
                saved_config.cell = weights.config.cell;
            }
            let metadata_error = |e| Error::format(format!("metadata `{}`", config_key(prefix)), e);
            weights = weights.with_config(saved_config).map_err(metadata_error)?;
        }
        stored_tensors.iter().for_each(|(name, _)| drop(self.tensors.remove(name)));
        Ok(weights)
    }

    /// The precision of the LSTM with the given prefix: that of the first tensor `NAME.q`, or else f32.
    fn precision(&self, prefix: &str) -> Result<Precision> {
        let is_integers = |name: &&String| {
            let stem = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(".q"));
            stem.is_some_and(|stem| names::parse_pytorch_name(stem).is_some())
        };
        self.tensors.keys().find(is_integers).map_or(Ok(Precision::F32), |name| self.integer_precision(name))
    }

    /// The precision whose integers have the type of a tensor.
    fn integer_precision(&self, name: &str) -> Result<Precision> {
        let entry = self.entry(name, || "integers".into())?;
        let formats = [INT8, INT12].into_iter().find(|format| element::integer_dtype(*format) == entry.dtype);
        let format = formats.ok_or_else(|| Error::TensorType {
            name: name.into(),
            expected: "I8 or I16",
            found: entry.dtype.to_string(),
        })?;
        Ok(format.precision)
    }

    /// Reads the tensors `NAME.q` and `NAME.scale` of a quantized matrix, without removing them. Returns the values that
    /// they stand for, and the scales.
    fn read_quantized(&self, name: &str, format: Format) -> Result<(ArrayD<f32>, Vec<f32>)> {
        let (q_name, scale_name) = (format!("{name}.q"), format!("{name}.scale"));
        let q = self.entry(&q_name, || "integers".into())?;
        let scale = self.entry(&scale_name, || "scales".into())?;
        if q.dtype != element::integer_dtype(format) {
            let expected = if format.precision == Precision::Int8 { "I8" } else { "I16" };
            return Err(Error::TensorType { name: q_name, expected, found: q.dtype.to_string() });
        }
        if scale.dtype != Dtype::F32 {
            return Err(Error::TensorType { name: scale_name, expected: "F32", found: scale.dtype.to_string() });
        }
        let [rows, _] = q.shape[..] else {
            return Err(Error::shape(format!("tensor `{q_name}`"), "a matrix", format!("{:?}", q.shape)));
        };
        if scale.shape != [rows] {
            let found = scale.shape.clone();
            return Err(Error::TensorShape { name: scale_name, expected: vec![rows], found });
        }
        let scales = element::to_f32(&scale_name, scale.dtype, self.data(scale))?;
        let integers = element::to_i16(&q_name, q.dtype, self.data(q))?;
        let values = dequantize(name, &integers, &scales, format)?;
        Ok((array_from_elements(&q_name, q, values)?, scales))
    }

    /// Removes a matrix that may be quantized, and returns its values, and its precision and scales if it is quantized.
    pub(crate) fn take_matrix(&mut self, name: &str) -> Result<(ArrayD<f32>, Option<Scales>)> {
        let q_name = format!("{name}.q");
        if !self.tensors.contains_key(&q_name) {
            return Ok((self.take_any(name)?, None));
        }
        let precision = self.integer_precision(&q_name)?;
        let Some(format) = precision.format() else { return Ok((self.take_any(name)?, None)) };
        let (array, values) = self.read_quantized(name, format)?;
        self.remove(&q_name);
        self.remove(&format!("{name}.scale"));
        Ok((array, Some(Scales { precision, values })))
    }

    /// Adds a description of the file's contents to an error that says that no LSTM has the requested prefix. Returns
    /// other errors unchanged.
    fn add_contents_to_error(&self, error: Error) -> Error {
        match error {
            Error::MissingTensor { name, expected } if expected == EXPECTED_LSTM => {
                Error::MissingTensor { name, expected: format!("{expected}, found {}", self.describe_contents()) }
            }
            error => error,
        }
    }

    /// A description of the file's contents for error messages: a checkpoint, the prefixes of its LSTMs, or some of its
    /// tensors.
    fn describe_contents(&self) -> String {
        let quoted = |name: &str| if name.is_empty() { "`` (empty)".to_owned() } else { format!("`{name}`") };
        let quote = |names: &mut dyn Iterator<Item = &str>| names.map(quoted).collect::<Vec<_>>().join(", ");
        let prefixes = self.lstm_prefixes();
        let found = match (&prefixes[..], self.tensors.len()) {
            ([], 0) => "no tensors in the file".to_owned(),
            ([], len) => {
                let names = quote(&mut self.names().take(MAX_LISTED_NAMES));
                let others = len.saturating_sub(MAX_LISTED_NAMES);
                format!(
                    "no LSTM in the file, only {names}{}",
                    if others > 0 { format!(" and {others} others") } else { String::new() }
                )
            }
            ([prefix], _) => format!("an LSTM with the prefix {}", quoted(prefix)),
            (several, _) => format!("LSTMs with the prefixes {}", quote(&mut several.iter().map(String::as_str))),
        };
        if self.is_checkpoint() { format!("{found}; {CHECKPOINT_ADVICE}") } else { found }
    }

    /// Reads the tensors of a parameter and stacks them.
    fn read_param(&self, stored: &StoredParam) -> Result<ArrayD<f32>> {
        let tensors = stored.tensors.iter().map(|(name, _)| self.read(name)).collect::<Result<Vec<_>>>()?;
        let views = || tensors.iter().map(|tensor| if stored.transposed { tensor.t() } else { tensor.view() });
        let mut shape = views().next().map(|view| view.raw_dim()).unwrap_or_default();
        if views().any(|view| view.ndim() == 0 || view.shape()[1..] != shape.slice()[1..]) {
            return Err(Error::shape("take_lstm", "gates of one shape", format!("{:?}", stored.tensors)));
        }
        let len = views().map(|view| view.len()).sum();
        let values = memory::collect("take_lstm", len, views().flatten().copied())?;
        shape[0] = views().map(|view| view.len_of(Axis(0))).sum();
        memory::array_from_vec("take_lstm", shape, values)
    }

    /// Checks that a tensor exists, was not taken, and has the given shape.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let entry = self.entry(name, || format!("shape {shape:?}"))?;
        if entry.shape == shape {
            return Ok(());
        }
        Err(Error::TensorShape { name: name.into(), expected: shape.into(), found: entry.shape.clone() })
    }

    /// Reads a tensor of any shape without removing it.
    pub(crate) fn read(&self, name: &str) -> Result<ArrayD<f32>> {
        let entry = self.entry(name, || "any shape".into())?;
        array_from_elements(name, entry, element::to_f32(name, entry.dtype, self.data(entry))?)
    }

    /// The header entry of a tensor. `expected` describes the tensor in the error message if it is missing.
    fn entry(&self, name: &str, expected: impl Fn() -> String) -> Result<&TensorEntry> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.into(), expected: expected() })
    }

    /// The bytes of a tensor's elements.
    fn data(&self, entry: &TensorEntry) -> &[u8] {
        self.bytes.get(entry.range.clone()).unwrap_or_default()
    }
}

/// The error message for bytes that are not a safetensors file. It has a hint for files that `torch.save` wrote.
fn not_safetensors_message(bytes: &[u8], error: &dyn fmt::Display) -> String {
    // A zip archive, and a pickle of old versions of PyTorch.
    let is_torch_file = [&b"PK\x03\x04"[..], b"\x80\x02"].iter().any(|start| bytes.starts_with(start));
    let hint = if is_torch_file {
        " (the file looks like the output of torch.save; write it with safetensors.torch.save_file instead)"
    } else {
        ""
    };
    format!("not a safetensors file: {error}{hint}")
}

/// An array of a tensor's shape from its elements in row-major order.
fn array_from_elements<T>(name: &str, entry: &TensorEntry, values: Vec<T>) -> Result<ArrayD<T>> {
    let shape = IxDyn(&entry.shape);
    ArrayD::from_shape_vec(shape, values).map_err(|e| Error::format(format!("tensor `{name}`"), e))
}
