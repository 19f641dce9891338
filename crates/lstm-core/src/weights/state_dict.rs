//! Reading safetensors files: a [`StateDict`] whose tensors are claimed one by one, so that none is left unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    ops::Range,
    path::Path,
};

use ndarray::{ArrayD, Axis, IxDyn, concatenate};
use safetensors::SafeTensors;

pub use super::writer::StateDictWriter;
pub(crate) use super::writer::config_key;
pub use safetensors::Dtype;

use super::{
    LayerWeights, Weights, element,
    infer::{Found, NO_LSTM},
    names::{self, Stored},
};
use crate::{
    config::{CellKind, LstmConfig, Param},
    error::{Error, Result},
};

/// A safetensors file in memory. A tensor is converted and removed when taken; [`finish`](Self::finish) fails if any is
/// left.
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
#[derive(Clone)]
pub struct StateDict {
    bytes: Vec<u8>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl fmt::Debug for StateDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.tensors.iter().map(|(name, entry)| (name, (entry.dtype, &entry.shape)));
        f.debug_map().entries(tensors).finish()
    }
}

impl StateDict {
    /// Reads a file; its bytes stay in memory as they are.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; [`Error::Format`] as for [`from_bytes`](Self::from_bytes), naming the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(bytes, &path.display().to_string())
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not a safetensors file: cut short, a header that is not what it should be, a
    /// name that occurs twice, tensors that overlap, leave gaps or end outside. No byte of data is looked at.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(bytes, "safetensors")
    }

    fn parse(bytes: Vec<u8>, what: &str) -> Result<Self> {
        let entries = scan(&bytes).map_err(|why| Error::format(what, why))?;
        let (header, info) = SafeTensors::read_metadata(&bytes).map_err(|e| Error::format(what, unread(&bytes, &e)))?;
        let tensors = info.tensors();
        if entries != tensors.len() + usize::from(info.metadata().is_some()) {
            return Err(Error::format(what, "the header has a name twice or null metadata"));
        }
        let data = size_of::<u64>() + header;
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let (start, end) = tensor.data_offsets;
            let range = data + start..data + end;
            (name, Entry { dtype: tensor.dtype, shape: tensor.shape.clone(), range })
        });
        let metadata = info.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(StateDict { tensors: tensors.collect(), metadata, bytes })
    }

    /// The file's own text, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of the tensors that are left, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor that is left.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// The element type of a tensor that is left.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// The prefixes with which [`take_lstm`](Self::take_lstm) would find a model, sorted: all up to the last dot of a name
    /// that an LSTM's input weights have. Whether the rest of the model is there shows when it is taken.
    pub fn lstm_prefixes(&self) -> Vec<String> {
        let prefix = |name: &String| {
            let (prefix, rest) = name.split_at(name.rfind('.').map_or(0, |dot| dot + 1));
            let packed = rest == "W" && self.tensors.contains_key(&format!("{prefix}U"));
            let found = packed || rest == "U_i" || names::parse(rest).is_some_and(|p| p.param == Param::WeightIh);
            found.then(|| prefix.to_owned())
        };
        self.tensors.keys().filter_map(prefix).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The configuration that the metadata give the LSTM of a prefix, under `{prefix}lstm.config`: what
    /// [`StateDictWriter::lstm`] adds where tensors don't tell all of it.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not the text of a valid one.
    pub fn lstm_config(&self, prefix: &str) -> Result<Option<LstmConfig>> {
        let key = config_key(prefix);
        let parse = |text: &String| {
            let config = text.parse::<LstmConfig>().and_then(|config| config.validate().map(|()| config));
            config.map_err(|why| Error::format(format!("metadata `{key}`"), why))
        };
        self.metadata.get(&key).map(parse).transpose()
    }

    /// Takes a tensor of a known shape, of F32, F16, BF16 or F64 (rounded to the nearest f32).
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`], or [`Error::Format`] for a finite
    /// value that f32 can't hold. Then nothing is taken.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<ArrayD<f32>> {
        self.check(name, shape)?;
        self.take_any(name)
    }

    /// Takes a tensor of whatever shape.
    ///
    /// # Errors
    /// As for [`take`](Self::take), but for the shape.
    pub fn take_any(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let value = self.read(name)?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Takes a tensor of F64, F32, F16 or BF16 without rounding.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::TensorType`]. Then nothing is taken.
    pub fn take_f64(&mut self, name: &str) -> Result<ArrayD<f64>> {
        let entry = self.entry(name, || "any shape".into())?;
        let value = array(name, entry, element::to_f64(name, entry.dtype, self.data(entry))?)?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Takes the elements of a tensor of I64 or I32, row by row.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::TensorType`]. Then nothing is taken.
    pub fn take_i64(&mut self, name: &str) -> Result<Vec<i64>> {
        let entry = self.entry(name, || "any shape".into())?;
        let value = element::to_i64(name, entry.dtype, self.data(entry))?;
        self.tensors.remove(name);
        Ok(value)
    }

    /// Takes a whole model: all tensors whose names start with `prefix`, such as `"lstm."`; with `""`, all that are
    /// left. Their names are those of [`pytorch_name`](super::names::pytorch_name) or of the notebook
    /// ([`TensorNames`](super::names::TensorNames); the candidate's letter may be `c` or `g`). Sizes, layers, direction, biases,
    /// projection and cell follow from names and shapes.
    ///
    /// What has no tensor (`coupled`, `clip`, `dropout`) follows from [metadata](Self::lstm_config); in a file without them
    /// it is off: call [`Weights::with_config`] after. PyTorch's names without peepholes give the fused cell, which computes
    /// the same as the unfused one.
    ///
    /// # Errors
    /// - [`Error::MissingTensor`] names the first tensor that the others make necessary, and its shape: a layer in a
    ///   gap, the bias or the reverse half of a layer where another has one; or says that there is no model at all.
    /// - [`Error::UnusedTensors`] names those under the prefix that the model has no place for.
    /// - [`Error::TensorShape`] names one that differs from what the others say; [`Error::Shape`] one that alone tells
    ///   a size and is no matrix.
    /// - [`Error::Config`]: the notebook's `W`, `U`, `bias`, which two cells share (then use
    ///   [`take_lstm_as`](Self::take_lstm_as)), or sizes that are not [valid](crate::LstmConfig::validate).
    /// - [`Error::TensorType`] and [`Error::Format`] as for [`take`](Self::take); [`Error::Format`] for metadata that are no
    ///   configuration, or not that of these tensors.
    ///
    /// Then nothing is taken.
    pub fn take_lstm(&mut self, prefix: &str) -> Result<Weights> {
        self.take_model(prefix, None)
    }

    /// As [`take_lstm`](Self::take_lstm) where the caller knows the cell. The fused and the unfused cell may each be
    /// read from the other's names.
    ///
    /// # Errors
    /// Those of [`take_lstm`](Self::take_lstm), and [`Error::Config`] if the names are those of another cell.
    pub fn take_lstm_as(&mut self, prefix: &str, cell: CellKind) -> Result<Weights> {
        self.take_model(prefix, Some(cell))
    }

    /// Drops a tensor that was [read](Self::read).
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] if any tensor is left.
    pub fn finish(self) -> Result<()> {
        let names: Vec<_> = self.tensors.into_keys().collect();
        if names.is_empty() { Ok(()) } else { Err(Error::UnusedTensors { names }) }
    }

    fn take_model(&mut self, prefix: &str, hint: Option<CellKind>) -> Result<Weights> {
        let shapes = self.tensors.iter().filter_map(|(name, e)| Some((name.strip_prefix(prefix)?, &e.shape[..])));
        let said = self.lstm_config(prefix)?;
        let hint = hint.or(said.as_ref().map(|said| said.cell));
        let found = Found { prefix, shapes: shapes.collect() };
        let (config, scheme) = found.infer(hint).map_err(|error| self.with_prefixes(error))?;
        let mut layout = scheme.layout(&config);
        for (name, _) in layout.iter_mut().flat_map(|(_, params)| params).flat_map(|stored| &mut stored.parts) {
            name.insert_str(0, prefix);
        }
        let parts = || layout.iter().flat_map(|(_, params)| params).flat_map(|stored| &stored.parts);

        for (name, shape) in parts() {
            self.entry(name, || format!("shape {shape:?}"))?;
        }
        let used: BTreeSet<&str> = parts().map(|(name, _)| name.as_str()).collect();
        let unused = self.names().filter(|name| name.starts_with(prefix) && !used.contains(name));
        let names: Vec<_> = unused.map(str::to_owned).collect();
        if !names.is_empty() {
            return Err(Error::UnusedTensors { names });
        }
        for (name, shape) in parts() {
            self.check(name, shape)?;
        }

        let layers = layout.iter().map(|(spec, params)| {
            let values = params.iter().map(|stored| self.assemble(stored));
            LayerWeights::new(*spec, values.collect::<Result<_>>()?)
        });
        let layers = layers.collect::<Result<_>>()?;
        let mut weights = Weights::new(config, layers)?;
        if let Some(mut said) = said {
            if said.cell.is_equivalent_to(weights.config.cell) {
                said.cell = weights.config.cell;
            }
            let other = |why| Error::format(format!("metadata `{}`", config_key(prefix)), why);
            weights = weights.with_config(said).map_err(other)?;
        }
        parts().for_each(|(name, _)| drop(self.tensors.remove(name)));
        Ok(weights)
    }

    /// An error that there is no LSTM of a prefix says which prefixes there are.
    fn with_prefixes(&self, error: Error) -> Error {
        match (error, &self.lstm_prefixes()[..]) {
            (Error::MissingTensor { name, expected }, there) if expected == NO_LSTM && !there.is_empty() => {
                let expected = format!("{expected}, but of one with the prefix `{}`", there.join("`, `"));
                Error::MissingTensor { name, expected }
            }
            (error, _) => error,
        }
    }

    fn assemble(&self, stored: &Stored) -> Result<ArrayD<f32>> {
        let parts = stored.parts.iter().map(|(name, _)| self.read(name)).collect::<Result<Vec<_>>>()?;
        let views: Vec<_> = parts.iter().map(|part| if stored.transposed { part.t() } else { part.view() }).collect();
        concatenate(Axis(0), &views).map_err(|e| Error::shape("take_lstm", "parts that stack", e))
    }

    /// Checks that a tensor is left and has a shape.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let entry = self.entry(name, || format!("shape {shape:?}"))?;
        if entry.shape == shape {
            return Ok(());
        }
        Err(Error::TensorShape { name: name.into(), expected: shape.into(), found: entry.shape.clone() })
    }

    /// A tensor that is left, which it stays.
    pub(crate) fn read(&self, name: &str) -> Result<ArrayD<f32>> {
        let entry = self.entry(name, || "any shape".into())?;
        array(name, entry, element::to_f32(name, entry.dtype, self.data(entry))?)
    }

    fn entry(&self, name: &str, expected: impl Fn() -> String) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.into(), expected: expected() })
    }

    fn data(&self, entry: &Entry) -> &[u8] {
        self.bytes.get(entry.range.clone()).unwrap_or_default()
    }
}

/// Why bytes are no safetensors file. Those of torch.save, zip archives now and pickles of old, are called by their name.
fn unread(bytes: &[u8], why: &dyn fmt::Display) -> String {
    let pickle = [&b"PK\x03\x04"[..], b"\x80\x02"].iter().any(|start| bytes.starts_with(start));
    let hint =
        if pickle { " (a pickle, as torch.save writes; safetensors.torch.save_file takes a state_dict)" } else { "" };
    format!("no safetensors file: {why}{hint}")
}

fn array<T>(name: &str, entry: &Entry, values: Vec<T>) -> Result<ArrayD<T>> {
    let shape = IxDyn(&entry.shape);
    ArrayD::from_shape_vec(shape, values).map_err(|e| Error::format(format!("tensor `{name}`"), e))
}

/// The number of entries in the header, and a check that the safetensors crate leaves out: of numbers so large that
/// sums of offsets overflow. The crate also lets the last of several equal names win; the count shows these.
/// Whatever else is wrong is left to the crate.
fn scan(bytes: &[u8]) -> Result<usize, &'static str> {
    let header = bytes.split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        rest.get(..length)
    });
    let (mut depth, mut entries, mut number) = (0usize, 0, 0usize);
    let (mut quoted, mut escaped) = (false, false);
    for &byte in header.unwrap_or_default() {
        number = if byte.is_ascii_digit() && !quoted { number.saturating_mul(10) } else { 0 };
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'0'..=b'9' => number = number.saturating_add(usize::from(byte - b'0')),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' if depth == 1 => entries += 1,
            _ => {}
        }
        if number > isize::MAX as usize {
            return Err("the header has a number that no size or offset can be");
        }
    }
    Ok(entries)
}
