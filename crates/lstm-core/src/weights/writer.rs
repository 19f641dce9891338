//! Writing safetensors files: the same tensors give the same bytes, and a file is replaced whole or not at all.

use std::{collections::BTreeMap, path::Path};

use ndarray::{ArrayBase, Axis, Data, Dimension};
use safetensors::Dtype;

use super::{
    Weights, element, file,
    infer::Found,
    names::{Scheme, TensorNames},
};
use crate::error::{Error, Result};

/// The key of a model's configuration in the metadata.
pub(crate) fn config_key(prefix: &str) -> String {
    format!("{prefix}lstm.config")
}

/// What the safetensors crate refuses to read, and so nobody should write.
const MAX_HEADER: usize = 100_000_000;

/// Gathers tensors and metadata for a safetensors file; what a [`StateDict`](super::state_dict::StateDict) reads back.
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
pub struct StateDictWriter {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    metadata: BTreeMap<String, String>,
    /// By their keys, the models' configurations; `None` where tensors tell all of it.
    configs: BTreeMap<String, Option<String>>,
    dtype: Dtype,
}

impl Default for StateDictWriter {
    fn default() -> Self {
        let (tensors, metadata, configs) = Default::default();
        StateDictWriter { tensors, metadata, configs, dtype: Dtype::F32 }
    }
}

impl StateDictWriter {
    /// Nothing yet; elements will be F32.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line of text, or replaces the one of the same key.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the element type of all tensors: F32 or F64, which keep every bit, or F16 or BF16, rounded to the nearest
    /// (and exact for what was read from a file of the same type).
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Adds a model's parameters, their names behind `prefix`. Of a configuration that these would not tell who reads them
    /// (`clip`, `coupled`, `dropout`, the unfused cell by PyTorch's names, the notebook's `W`, `U`, `bias`) the text is kept
    /// as metadata `{prefix}lstm.config`, which [`take_lstm`](super::state_dict::StateDict::take_lstm) reads; other readers
    /// know nothing of it.
    ///
    /// # Errors
    /// [`Error::Config`] names the option that the notebook's names can't express: several layers, another direction
    /// than forward, two biases, a projection, the diagonal peephole. [`Error::Format`] if a name is already there.
    pub fn lstm(mut self, prefix: &str, weights: &Weights, names: TensorNames) -> Result<Self> {
        let config = weights.config();
        let layout = Scheme::new(names, config)?.layout(config);
        let parts = || layout.iter().flat_map(|(_, params)| params).flat_map(|stored| &stored.parts);
        let shapes = parts().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        let told = Found { prefix, shapes }.infer(None).is_ok_and(|(inferred, _)| inferred == *config);
        self.configs.insert(config_key(prefix), (!told).then(|| config.to_string()));
        for (layer, (_, params)) in weights.layers().iter().zip(layout) {
            for ((_, value), stored) in layer.iter().zip(params) {
                let rows = value.len_of(Axis(0)) / stored.parts.len();
                for (part, (name, shape)) in value.axis_chunks_iter(Axis(0), rows).zip(stored.parts) {
                    let part = if stored.transposed { part.reversed_axes() } else { part };
                    self.add(format!("{prefix}{name}"), shape, part.iter().copied().collect())?;
                }
            }
        }
        Ok(self)
    }

    /// Adds a tensor of the caller's.
    ///
    /// # Errors
    /// [`Error::Format`] if the name is already there or is `__metadata__`, which the format keeps for itself.
    pub fn tensor<S, D>(mut self, name: impl Into<String>, array: &ArrayBase<S, D>) -> Result<Self>
    where
        S: Data<Elem = f32>,
        D: Dimension,
    {
        self.add(name.into(), array.shape().to_vec(), array.iter().copied().collect())?;
        Ok(self)
    }

    /// The file's bytes: always the same for the same tensors, metadata and element type.
    ///
    /// # Errors
    /// [`Error::Config`] for an element type that is not F32, F16, BF16 or F64; [`Error::Format`] for a finite value
    /// that the element type can't hold, for names and metadata of more than 100 MB together, or for the caller's metadata
    /// where a [model's](Self::lstm) would be, unless they are the same.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let mut entries = Vec::new();
        let mut metadata = self.metadata.clone();
        for (key, config) in &self.configs {
            // Such as those of a file that was read: another model's options would be taken for this one's.
            if let Some(other) = metadata.get(key).filter(|other| Some(*other) != config.as_ref()) {
                let want = config.as_deref().unwrap_or("none, since its tensors tell all");
                return Err(Error::format(format!("metadata `{key}`"), format!("expected {want}, got {other}")));
            }
            metadata.extend(config.clone().map(|config| (key.clone(), config)));
        }
        // The safetensors crate would write metadata in the order of a hash map, which changes from run to run.
        if !metadata.is_empty() {
            let lines = metadata.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v)));
            entries.push(format!("\"__metadata__\":{{{}}}", lines.collect::<Vec<_>>().join(",")));
        }
        for (name, (shape, values)) in &self.tensors {
            let start = data.len();
            element::write(name, self.dtype, values, &mut data)?;
            let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let info = format!(r#""dtype":"{}","shape":[{shape}],"data_offsets":[{start},{}]"#, self.dtype, data.len());
            entries.push(format!("{}:{{{info}}}", quote(name)));
        }
        let mut header = format!("{{{}}}", entries.join(","));
        // Spaces up to a multiple of 8, so that the elements lie aligned.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        if header.len() > MAX_HEADER {
            let why = format!("names and metadata take {} bytes, more than {MAX_HEADER}", header.len());
            return Err(Error::format("safetensors", why));
        }
        let length = (header.len() as u64).to_le_bytes();
        Ok([&length, header.as_bytes(), &data].concat())
    }

    /// Writes the file: to another one beside it, which then takes its name. If anything fails, an older file of that
    /// name is as it was.
    ///
    /// # Errors
    /// Those of [`to_bytes`](Self::to_bytes), and [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        file::write_atomic(path.as_ref(), &self.to_bytes()?)
    }

    fn add(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) -> Result<()> {
        if name == "__metadata__" || self.tensors.contains_key(&name) {
            return Err(Error::format(format!("tensor `{name}`"), "the name is taken"));
        }
        self.tensors.insert(name, (shape, values));
        Ok(())
    }
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\0'..='\x1f' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
