//! Writing of safetensors files.

use std::{collections::BTreeMap, path::Path};

use ndarray::{ArrayBase, Axis, Data, Dimension};
use safetensors::Dtype;

use super::{
    QuantizedRows, Weights, checksum,
    checksum::CHECKSUM_KEY,
    element, file,
    header::{count_header_entries, json_string},
    infer::TensorShapes,
    names::{FileLayout, TensorNames},
};
use crate::{
    config::Precision,
    error::{Error, Result},
    memory,
};

/// The metadata key of the configuration of the LSTM with the given prefix.
pub(crate) fn config_key(prefix: &str) -> String {
    format!("{prefix}lstm.config")
}

/// Largest size of a header in bytes. The safetensors crate rejects larger headers.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// The elements of a tensor.
#[derive(Clone, Debug)]
enum Elements {
    /// Floats, which are written in the type of the writer.
    Float(Vec<f32>),
    /// Scales of a quantized matrix, which are written in F32.
    Scale(Vec<f32>),
    /// Integers of a quantized matrix.
    Integer(Dtype, Vec<i16>),
}

/// Builder of a safetensors file from tensors and metadata. [`StateDict`](super::state_dict::StateDict) reads the file.
///
/// ```no_run
/// # use lstm_core::{TensorNames, StateDictWriter, Weights, weights::state_dict::Dtype};
/// # fn save(weights: &Weights) -> lstm_core::Result<()> {
/// StateDictWriter::new()
///     .metadata("trained-on", "passengers.csv")
///     .lstm("lstm.", weights, TensorNames::PyTorch)?
///     .dtype(Dtype::F16)
///     .save("model.safetensors")
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StateDictWriter {
    /// Shape and elements of each tensor by name.
    tensors: BTreeMap<String, (Vec<usize>, Elements)>,
    metadata: BTreeMap<String, String>,
    /// Text of each model's configuration by metadata key; `None` if the configuration follows from the tensors.
    config_texts: BTreeMap<String, Option<String>>,
    dtype: Dtype,
}

impl Default for StateDictWriter {
    fn default() -> Self {
        let (tensors, metadata, config_texts) = Default::default();
        StateDictWriter { tensors, metadata, config_texts, dtype: Dtype::F32 }
    }
}

impl StateDictWriter {
    /// Creates a writer without tensors or metadata. The element type is F32.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry to the metadata, or replaces the entry with the same key.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the element type of all tensors; F32 by default. F32 and F64 keep the exact values. F16 and BF16 round to
    /// nearest, so values that were read from a file of the same type stay exact.
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Adds the parameters of a model. Their names are `prefix` followed by the name in the convention `names`.
    ///
    /// The matrices of quantized weights are two tensors each: the integers `NAME.q` (I8 or I16) and the scales
    /// `NAME.scale` (F32, one for each row).
    ///
    /// If the configuration does not follow from the tensors, its text is added to the metadata under the key
    /// `{prefix}lstm.config`. This is the case with `clip`, `coupled`, `dropout` or `activations`, for the unfused cell with PyTorch's
    /// names, and for the notebook's names `W`, `U`, `bias`.
    /// [`StateDict::take_lstm`](super::state_dict::StateDict::take_lstm) reads this key; other programs ignore it.
    ///
    /// # Errors
    /// [`Error::Config`], which names an option that the notebook's names do not support: several layers, a direction
    /// other than forward, two biases, a projection, the diagonal peephole cell, quantized weights. [`Error::Format`] if a name already
    /// exists.
    pub fn lstm(mut self, prefix: &str, weights: &Weights, names: TensorNames) -> Result<Self> {
        let config = weights.config();
        if names != TensorNames::PyTorch && config.precision != Precision::F32 {
            let reason = format!("only PyTorch's names are possible for {} weights", config.precision);
            return Err(Error::config("names", reason));
        }
        let layers = FileLayout::new(names, config)?.stored_params(config);
        let stored_tensors = || layers.iter().flat_map(|(_, params)| params).flat_map(|stored| &stored.tensors);
        let shapes = stored_tensors().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        let inferred = TensorShapes { prefix, shapes }.infer(None);
        let needs_metadata = !inferred.is_ok_and(|(inferred, _)| inferred.precision(config.precision) == *config);
        self.config_texts.insert(config_key(prefix), needs_metadata.then(|| config.to_string()));
        for (layer, (_, params)) in weights.layers().iter().zip(layers) {
            for ((param, value), stored) in layer.iter().zip(params) {
                if let Some(rows) = layer.quantized(param)? {
                    let (name, shape) = &stored.tensors[0];
                    self.add_quantized(&format!("{prefix}{name}"), [shape[0], shape[1]], rows)?;
                    continue;
                }
                let rows = value.len_of(Axis(0)) / stored.tensors.len();
                for (part, (name, shape)) in value.axis_chunks_iter(Axis(0), rows).zip(stored.tensors) {
                    let part = if stored.transposed { part.reversed_axes() } else { part };
                    let values = memory::collect("save", part.len(), part.iter().copied())?;
                    self.add_tensor(format!("{prefix}{name}"), shape, Elements::Float(values))?;
                }
            }
        }
        Ok(self)
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if the name already exists or is `__metadata__`, which the file format reserves.
    pub fn tensor<S, D>(mut self, name: impl Into<String>, array: &ArrayBase<S, D>) -> Result<Self>
    where
        S: Data<Elem = f32>,
        D: Dimension,
    {
        let values = memory::collect("save", array.len(), array.iter().copied())?;
        self.add_tensor(name.into(), array.shape().to_vec(), Elements::Float(values))?;
        Ok(self)
    }

    /// Adds a quantized matrix: the tensors `NAME.q` and `NAME.scale`.
    pub(crate) fn quantized(mut self, name: &str, shape: [usize; 2], rows: QuantizedRows<'_>) -> Result<Self> {
        self.add_quantized(name, shape, rows)?;
        Ok(self)
    }

    fn add_quantized(&mut self, name: &str, shape: [usize; 2], rows: QuantizedRows<'_>) -> Result<()> {
        let integers = Elements::Integer(element::integer_dtype(rows.format), rows.q);
        self.add_tensor(format!("{name}.q"), shape.to_vec(), integers)?;
        self.add_tensor(format!("{name}.scale"), vec![shape[0]], Elements::Scale(memory::copy("save", rows.scale)?))
    }

    /// The bytes of the file. They depend only on the tensors, the metadata and the element type. The file also has a
    /// checksum, the entry `lstm.checksum` of the metadata. [`StateDict`](super::state_dict::StateDict) checks and removes
    /// it.
    ///
    /// # Errors
    /// - [`Error::Config`] if the element type is not F32, F16, BF16 or F64.
    /// - [`Error::Format`] if a finite value is too large for the element type; if names and metadata together exceed
    ///   100 MB; if there are more than about 50,000 tensors; if [`metadata`](Self::metadata) sets a checksum, or sets the
    ///   configuration key of a [model](Self::lstm) to another text.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let mut header_entries = Vec::new();
        let mut metadata = self.metadata.clone();
        for (key, config) in &self.config_texts {
            // The caller may copy the metadata of another file; a reader would then use the options of another model.
            if let Some(caller_text) = metadata.get(key).filter(|caller_text| Some(*caller_text) != config.as_ref()) {
                let expected = config.as_deref().unwrap_or("none, as the configuration follows from the tensors");
                return Err(Error::format(
                    format!("metadata `{key}`"),
                    format!("expected {expected}, got {caller_text}"),
                ));
            }
            metadata.extend(config.clone().map(|config| (key.clone(), config)));
        }
        if let Some((key, value)) = metadata.iter().find(|(key, value)| checksum::is_reserved(key, value)) {
            let reason = format!("the value `{value}` is a checksum, which the file gets by itself; remove the entry");
            return Err(Error::format(format!("metadata `{key}`"), reason));
        }
        metadata.insert(CHECKSUM_KEY.into(), checksum::placeholder_value());
        // The safetensors crate writes metadata in the order of a hash map, which changes from run to run.
        let json_pairs = metadata.iter().map(|(k, v)| format!("{}:{}", json_string(k), json_string(v)));
        header_entries.push(format!("\"__metadata__\":{{{}}}", json_pairs.collect::<Vec<_>>().join(",")));
        for (name, (shape, values)) in &self.tensors {
            let data_start = data.len();
            let dtype = match values {
                Elements::Float(values) => {
                    element::append(name, self.dtype, values, &mut data)?;
                    self.dtype
                }
                Elements::Scale(values) => {
                    element::append(name, Dtype::F32, values, &mut data)?;
                    Dtype::F32
                }
                Elements::Integer(dtype, values) => {
                    element::append_integers(*dtype, values, &mut data)?;
                    *dtype
                }
            };
            let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let json_fields =
                format!(r#""dtype":"{}","shape":[{shape}],"data_offsets":[{data_start},{}]"#, dtype, data.len());
            header_entries.push(format!("{}:{{{json_fields}}}", json_string(name)));
        }
        let mut header = format!("{{{}}}", header_entries.join(","));
        // Padded with spaces to a multiple of 8, so that the elements are aligned.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        if header.len() > MAX_HEADER_BYTES {
            let reason =
                format!("expected names and metadata of at most {MAX_HEADER_BYTES} bytes, got {}", header.len());
            return Err(Error::format("safetensors", reason));
        }
        // What is written must be readable.
        count_header_entries(header.as_bytes()).map_err(|reason| Error::format("safetensors", reason))?;
        let header_len_bytes = (header.len() as u64).to_le_bytes();
        let mut file = memory::concat("save", &[&header_len_bytes, header.as_bytes(), &data])?;
        checksum::write(&mut file);
        Ok(file)
    }

    /// Writes the file: to a temporary file in the same folder, which is then renamed. An existing file is replaced
    /// atomically; it is unchanged after an error.
    ///
    /// # Errors
    /// The errors of [`to_bytes`](Self::to_bytes); [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        file::write_atomic(path.as_ref(), &self.to_bytes()?)
    }

    /// Adds a tensor with the given shape and row-major elements.
    fn add_tensor(&mut self, name: String, shape: Vec<usize>, values: Elements) -> Result<()> {
        if name == "__metadata__" || self.tensors.contains_key(&name) {
            return Err(Error::format(format!("tensor `{name}`"), "the name already exists"));
        }
        self.tensors.insert(name, (shape, values));
        Ok(())
    }
}
