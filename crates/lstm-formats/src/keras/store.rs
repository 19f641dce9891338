//! The parameters of a model in an HDF5 file.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
};

use hdf5_pure::{AttrValue, DType, Dataset, File, FileAccessProperties, FormatError, Group, Source, WriteMarkPolicy};
use ndarray::ArrayD;

use super::config::Place;

/// Groups inside each other beyond this depth are an error. A group may contain itself.
const MAX_DEPTH: usize = 32;

/// Datasets and groups beyond this number are an error.
const MAX_OBJECTS: usize = 1 << 16;

/// All reads together may be this many times as large as the file, and [`MIN_READ`] more. Several references in a file
/// may point to the same bytes.
const MAX_RATIO: u64 = 32;

/// See [`MAX_RATIO`].
const MIN_READ: u64 = 1 << 20;

/// A filter such as deflate makes data at most this many times as small.
const MAX_COMPRESSION: u64 = 1032;

/// The groups that Keras 3 and late versions of Keras 2 keep the layers of a model in.
const CONTAINERS: [&str; 2] = ["layers", "_layer_checkpoint_dependencies"];

/// The parameters of a model. Each is taken once.
pub(super) struct Store {
    datasets: BTreeMap<String, Dataset>,
    layout: Layout,
    /// Names that the file gives to layers, by the path of the group.
    names: BTreeMap<String, String>,
    dtypes: BTreeSet<String>,
    file_len: u64,
}

/// How the file names parameters.
enum Layout {
    /// By the class and number of the layer and of those around it, and the number of the parameter. The field is the
    /// group of the layers.
    ByClass(&'static str),
    /// By a list of names for each layer.
    ByName(BTreeMap<String, VecDeque<String>>),
}

impl Store {
    /// The parameters in the file `model.weights.h5` of a `.keras` file.
    pub(super) fn of_archive(bytes: Vec<u8>) -> Result<Self, String> {
        let file_len = bytes.len() as u64;
        let root = open(bytes)?;
        let mut store = Store::new(file_len, Layout::ByClass(CONTAINERS[0]));
        store.add_group(&root, "", 0)?;
        for container in CONTAINERS {
            if store.datasets.keys().any(|path| path.starts_with(&format!("{container}/"))) {
                store.layout = Layout::ByClass(container);
                break;
            }
        }
        store.datasets.retain(|path, _| !path.starts_with("optimizer/") && !path.starts_with("metrics/"));
        Ok(store)
    }

    /// The parameters in a `.h5` file, and the text attributes of the file.
    pub(super) fn of_file(bytes: Vec<u8>) -> Result<(Self, BTreeMap<String, String>), String> {
        let file_len = bytes.len() as u64;
        let root = open(bytes)?;
        let attributes = root.attrs().map_err(|error| error.to_string())?;
        let is_list = |value: &AttrValue| value.as_strings().is_some();
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in attributes {
            match value.as_str() {
                Some(text) => drop(texts.insert(name, text.to_owned())),
                None if is_list(&value) => drop(texts.insert(name, String::new())),
                None => {}
            }
        }
        let mut store = Store::new(file_len, Layout::ByName(BTreeMap::new()));
        if !texts.contains_key("model_config") {
            store.add_group(&root, "", 0)?;
            return Ok((store, texts));
        }
        let weights = root.group("model_weights").map_err(|error| format!("`model_weights`: {error}"))?;
        store.add_group(&weights, "", 0)?;
        let mut lists = BTreeMap::new();
        for layer in string_list(&weights, "layer_names")? {
            let group = weights.group(&layer).map_err(|error| format!("`model_weights/{layer}`: {error}"))?;
            lists.insert(layer, string_list(&group, "weight_names")?.into());
        }
        store.layout = Layout::ByName(lists);
        Ok((store, texts))
    }

    fn new(file_len: u64, layout: Layout) -> Self {
        Store { datasets: BTreeMap::new(), layout, names: BTreeMap::new(), dtypes: BTreeSet::new(), file_len }
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Store::new(0, Layout::ByClass(CONTAINERS[0]))
    }

    /// Whether the file has no datasets.
    pub(super) fn is_empty(&self) -> bool {
        self.datasets.is_empty()
    }

    /// Adds the datasets of a group and of the groups in it. `prefix` is its path, with a `/` at the end.
    fn add_group(&mut self, group: &Group, prefix: &str, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH || self.datasets.len() + self.names.len() > MAX_OBJECTS {
            return Err(format!("`{prefix}`: groups inside each other deeper than {MAX_DEPTH}, or too many of them"));
        }
        let at = |error: hdf5_pure::Error| format!("`{prefix}`: {error}");
        for (name, dataset) in group.iter_datasets().map_err(at)? {
            self.datasets.insert(format!("{prefix}{name}"), dataset);
        }
        for (name, inner) in group.iter_groups().map_err(at)? {
            let path = format!("{prefix}{name}");
            if name == "vars"
                && let Some(layer) = inner.attrs().map_err(at)?.get("name").and_then(AttrValue::as_str)
            {
                self.names.insert(path.clone(), layer.to_owned());
            }
            self.add_group(&inner, &format!("{path}/"), depth + 1)?;
        }
        Ok(())
    }

    /// Fails if the file says that the parameters of this layer belong to another one.
    pub(super) fn check_name(&self, place: &Place, name: &str) -> Result<(), String> {
        let Layout::ByClass(container) = self.layout else { return Ok(()) };
        let path = format!("{}/vars", class_path(place, container));
        match self.names.get(&path) {
            Some(found) if found != name => {
                Err(format!("expected its parameters at `{path}`, which are those of `{found}`"))
            }
            _ => Ok(()),
        }
    }

    /// Number of rows of the next parameter of a layer, a kernel.
    pub(super) fn rows(&self, place: &Place, part: &str) -> Result<usize, String> {
        let path = match &self.layout {
            Layout::ByClass(container) => Some(format!("{}{part}/vars/0", class_path(place, container))),
            Layout::ByName(lists) => {
                lists.get(&place.group).and_then(VecDeque::front).map(|name| format!("{}/{name}", place.group))
            }
        };
        let dataset = path.and_then(|path| self.datasets.get(&path)).ok_or("the dataset of its kernel is missing")?;
        let shape = dataset.shape().map_err(|error| error.to_string())?;
        let rows = shape.first().and_then(|rows| usize::try_from(*rows).ok());
        rows.ok_or_else(|| format!("expected a kernel of two axes, got the shape {shape:?}"))
    }

    /// Takes a parameter of a layer. `part` is the path from the layer to the one that has it, such as `/cell`. `index`
    /// is its number, `role` its name there.
    pub(super) fn take(
        &mut self,
        place: &Place,
        part: &str,
        (index, role): (usize, &str),
        shape: &[usize],
    ) -> Result<ArrayD<f32>, String> {
        let path = match &mut self.layout {
            Layout::ByClass(container) => format!("{}{part}/vars/{index}", class_path(place, container)),
            Layout::ByName(lists) => {
                let group = &place.group;
                let name = lists.get_mut(group).and_then(VecDeque::pop_front);
                let name =
                    name.ok_or_else(|| format!("expected one more parameter, `{role}`, in the group `{group}`"))?;
                let last = name.rsplit('/').next().and_then(|last| last.split(':').next());
                if last != Some(role) {
                    return Err(format!("expected the parameter `{role}`, got `{name}`"));
                }
                format!("{group}/{name}")
            }
        };
        let dataset = self.datasets.remove(&path).ok_or_else(|| format!("the dataset `{path}` is missing"))?;
        self.read(&dataset, shape).map_err(|why| format!("`{path}`: {why}"))
    }

    /// Reads a dataset of this shape, rounded to f32.
    fn read(&mut self, dataset: &Dataset, shape: &[usize]) -> Result<ArrayD<f32>, String> {
        let text = |error: hdf5_pure::Error| error.to_string();
        let found = dataset.shape().map_err(text)?;
        if found.len() != shape.len() || found.iter().zip(shape).any(|(found, size)| *found != *size as u64) {
            return Err(format!("expected the shape {shape:?}, got {found:?}"));
        }
        // The dataset may be larger than the file, if its elements were not written.
        let size = dataset.element_size().map_err(text)?;
        let len = found.iter().try_fold(size, |len, size| len.checked_mul(*size));
        let ratio = if dataset.filters().is_empty() { 1 } else { MAX_COMPRESSION };
        if len.is_none_or(|len| len > self.file_len.saturating_mul(ratio)) {
            return Err(format!("expected {found:?} elements, more than the file has"));
        }
        let dtype = dataset.dtype().map_err(text)?;
        let values: Vec<f32> = match dtype {
            DType::F64 => dataset.read_f64().map_err(text)?.into_iter().map(|v| v as f32).collect(),
            DType::F32 => dataset.read_f32().map_err(text)?,
            DType::Other(_) if size == 2 => dataset.read_f32().map_err(text)?,
            other => return Err(format!("expected floating-point numbers, got {other}")),
        };
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(format!("expected finite numbers that fit in f32, got {value}"));
        }
        self.dtypes.insert(format!("float{}", size * 8));
        ArrayD::from_shape_vec(shape, values).map_err(|error| error.to_string())
    }

    /// Fails if a parameter is left. Returns the element types of those that were read.
    pub(super) fn finish(self) -> Result<Vec<String>, String> {
        // The state of random numbers for dropout.
        let is_seed = |path: &str| path.split('/').any(|part| part.starts_with("seed_generator"));
        let left: Vec<_> = self.datasets.keys().filter(|path| !is_seed(path)).map(|path| format!("`{path}`")).collect();
        if !left.is_empty() {
            let shown = left.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            return Err(format!("{} datasets are not part of the model's layers: {shown}", left.len()));
        }
        Ok(self.dtypes.into_iter().collect())
    }
}

/// The path of a layer's group in a `.keras` file.
fn class_path(place: &Place, container: &str) -> String {
    let path: Vec<_> = place.path.iter().map(|name| format!("{container}/{name}")).collect();
    path.join("/")
}

/// An attribute that is a list of texts. Keras splits a long list into `NAME0`, `NAME1` and so on.
fn string_list(group: &Group, name: &str) -> Result<Vec<String>, String> {
    let attributes = group.attrs().map_err(|error| error.to_string())?;
    let mut texts = Vec::new();
    let parts = (0..).map(|k| format!("{name}{k}"));
    for part in std::iter::once(name.to_owned()).chain(parts) {
        match attributes.get(&part) {
            Some(value) => texts.extend(value.as_strings().unwrap_or_default().iter().cloned()),
            // An empty list is stored as numbers.
            None if part == name => {}
            None => break,
        }
    }
    Ok(texts)
}

/// Opens an HDF5 file.
fn open(bytes: Vec<u8>) -> Result<Group, String> {
    let budget = MIN_READ.saturating_add(MAX_RATIO.saturating_mul(bytes.len() as u64));
    let source = BoundedSource { bytes, budget: AtomicU64::new(budget) };
    // The mark is that of a program that did not close the file. It does not matter if all that is read is intact.
    let properties = FileAccessProperties::new().with_write_mark_policy(WriteMarkPolicy::AllowSnapshot);
    let file = File::from_source_with_options(source, properties).map_err(|error| format!("the HDF5 file: {error}"))?;
    Ok(file.root())
}

/// The bytes of a file. Reads fail after a number of bytes, which bounds the memory and time that a damaged file costs.
struct BoundedSource {
    bytes: Vec<u8>,
    budget: AtomicU64,
}

impl Source for BoundedSource {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError> {
        let end = FormatError::UnexpectedEof { expected: buf.len(), available: 0 };
        let len = buf.len() as u64;
        if self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len)).is_err() {
            return Err(end);
        }
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.bytes.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(end)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each read is charged to the budget, so that a small file which refers to the same bytes many times can't cause
    /// unlimited reads.
    #[test]
    fn reads_are_bounded() {
        let source = BoundedSource { bytes: (0..100).collect(), budget: AtomicU64::new(250) };
        let mut buf = [0; 100];
        source.read_at(0, &mut buf).unwrap();
        source.read_at(0, &mut buf).unwrap();
        assert_eq!(buf[99], 99);
        assert!(source.read_at(0, &mut buf).is_err());
        source.read_at(70, &mut buf[..30]).unwrap();
        assert_eq!(buf[0], 70);
        assert!(source.read_at(99, &mut buf[..2]).is_err());
        assert!(source.read_at(u64::MAX, &mut buf[..2]).is_err());
    }
}
