//! Keras models: `.keras` files, which are zip archives, and whole-model `.h5` files, of Keras 2 and 3.
//!
//! `config` reads the architecture: a `Sequential` model, or a functional one that is a chain. `layers` converts each
//! layer of the chain, with parameters that `store` reads from the HDF5 file.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
};

use lstm_core::{Error, ModelWeights, Result};

use crate::{
    file::{Format, ModelFile, OpenOptions, catch_panic},
    json::Object,
};

mod config;
mod layers;
mod store;

use layers::Builder;
use store::Store;

/// Unpacked parts of an archive may be this many times as large as the archive, and [`MIN_UNPACKED`] more. Keras stores
/// them without compression.
const MAX_RATIO: u64 = 64;

/// See [`MAX_RATIO`].
const MIN_UNPACKED: u64 = 1 << 20;

/// What to do with a file that has no architecture.
const SAVE_MODEL: &str = "write the whole model with `model.save(\"model.keras\")`";

/// Reads a Keras model.
pub(crate) fn read(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    let error = |why: String| Error::format(source, why);
    if *options != OpenOptions::default() {
        return Err(error(
            "a Keras file says everything about its model; omit the options (a name, layers, values, a cell, a clip or \
             coupled gates)"
                .into(),
        ));
    }
    catch_panic(source, || {
        let (weights, dtypes, has_one_step) = match bytes.starts_with(b"PK") {
            true => read_archive(bytes).map_err(error)?,
            false => read_hdf5(bytes).map_err(error)?,
        };
        let file = ModelFile::new(Format::Keras, weights, dtypes, Vec::new());
        Ok(if has_one_step { file.for_steps(1) } else { file })
    })
}

/// Reads a `.keras` file. Returns the model, the element types of its parameters, and whether it is for a single time step.
fn read_archive(bytes: &[u8]) -> Result<(ModelWeights, Vec<String>, bool), String> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| format!("the zip archive: {error}"))?;
    let mut budget = MIN_UNPACKED.saturating_add(MAX_RATIO.saturating_mul(bytes.len() as u64));
    let mut unpack = |name: &str| -> Result<Vec<u8>, String> {
        let file = archive.by_name(name).map_err(|error| format!("`{name}` in the zip archive: {error}"))?;
        let mut unpacked = Vec::new();
        file.take(budget + 1).read_to_end(&mut unpacked).map_err(|error| format!("`{name}`: {error}"))?;
        budget = budget.checked_sub(unpacked.len() as u64).ok_or_else(|| {
            format!("`{name}`: expected at most {MAX_RATIO} times the size of the file when unpacked, got more")
        })?;
        Ok(unpacked)
    };
    let mut metadata = Object::parse(&unpack("metadata.json")?).map_err(|why| format!("`metadata.json`: {why}"))?;
    let version = metadata.require("keras_version").and_then(|version| version.text("`keras_version`"))?;
    let config = Object::parse(&unpack("config.json")?).map_err(|why| format!("`config.json`: {why}"))?;
    let store = Store::of_archive(unpack("model.weights.h5")?)?;
    build(config, store, &version)
}

/// Reads a `.h5` file with a whole model.
fn read_hdf5(bytes: &[u8]) -> Result<(ModelWeights, Vec<String>, bool), String> {
    let (store, attributes) = Store::of_file(bytes.to_vec())?;
    let Some(config) = attributes.get("model_config") else {
        return Err(match store.is_empty() && !attributes.contains_key("layer_names") {
            true => format!(
                "an HDF5 file without a Keras model, that is without the attribute `model_config`; {SAVE_MODEL}"
            ),
            false => format!("an HDF5 file with weights, without the architecture of the model; {SAVE_MODEL}"),
        });
    };
    let version = attributes.get("keras_version").ok_or("expected the attribute `keras_version`, which is missing")?;
    let config = Object::parse(config.as_bytes()).map_err(|why| format!("`model_config`: {why}"))?;
    build(config, store, version)
}

/// Makes the model of an architecture and its parameters.
fn build(config: Object, store: Store, version: &str) -> Result<(ModelWeights, Vec<String>, bool), String> {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let Some(2..=3) = major else {
        return Err(format!("expected a file of Keras 2 or 3, got one of the version `{version}`"));
    };
    let chain = config::chain(config)?;
    let mut builder = Builder::new(store, major == Some(2));
    for layer in chain {
        builder.add(layer)?;
    }
    let (model, dtypes, has_one_step) = builder.finish()?;
    Ok((model.with_metadata(BTreeMap::from([("keras_version".into(), version.into())])), dtypes, has_one_step))
}

#[cfg(test)]
mod tests;
