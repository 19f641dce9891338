//! The parameters of a model on the host, and safetensors files. Host parameters keep the exact values that were
//! loaded; only the copies on the device are snapped (see [`arithmetic::snap`](crate::arithmetic::snap)).

#[cfg(feature = "safetensors")]
pub mod element;
#[cfg(feature = "safetensors")]
pub mod file;
pub mod gates;
#[cfg(feature = "safetensors")]
mod infer;
pub mod init;
#[cfg(feature = "safetensors")]
pub mod names;
#[cfg(feature = "safetensors")]
pub mod state_dict;
#[cfg(feature = "safetensors")]
mod writer;

use ndarray::ArrayD;

use crate::{
    config::{CellKind, LayerSpec, LstmConfig, Param},
    error::{Error, Result},
};

/// The parameters of one layer in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    spec: LayerSpec,
    values: Vec<ArrayD<f32>>,
}

impl LayerWeights {
    /// Creates the parameters of a layer from one array per parameter, in the order of [`LayerSpec::params`].
    ///
    /// # Errors
    /// [`Error::Config`] if the spec is not [valid](LayerSpec::validate); [`Error::Shape`] if the number of arrays is
    /// wrong; [`Error::TensorShape`] if the shape of an array is wrong.
    pub fn new(spec: LayerSpec, values: Vec<ArrayD<f32>>) -> Result<Self> {
        spec.validate()?;
        let params = spec.params();
        if params.len() != values.len() {
            return Err(Error::shape("LayerWeights::new", format!("{} arrays", params.len()), values.len()));
        }
        for ((param, expected), value) in params.iter().zip(&values) {
            if value.shape() != expected {
                return Err(Error::TensorShape {
                    name: format!("{param:?}"),
                    expected: expected.clone(),
                    found: value.shape().to_vec(),
                });
            }
        }
        let values = values.into_iter().map(|v| v.as_standard_layout().into_owned()).collect();
        Ok(LayerWeights { spec, values })
    }

    /// Sizes and options of the layer.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// One parameter as a row-major array; `None` if the layer does not have it.
    pub fn get(&self, param: Param) -> Option<&ArrayD<f32>> {
        self.iter().find(|(p, _)| *p == param).map(|(_, value)| value)
    }

    /// Iterates over all parameters in the order of [`LayerSpec::params`].
    pub fn iter(&self) -> impl Iterator<Item = (Param, &ArrayD<f32>)> {
        self.spec.params().into_iter().map(|(p, _)| p).zip(&self.values)
    }

    /// Iterates over the elements of all parameters, mutable and row-major, in the order of [`LayerSpec::params`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Param, &mut [f32])> {
        let values =
            self.values.iter_mut().map(|v| v.as_slice_mut().expect("LayerWeights::new makes arrays row-major"));
        self.spec.params().into_iter().map(|(p, _)| p).zip(values)
    }

    /// The total bias, shape `[4 * hidden]`: `b_ih + b_hh`, or the single bias; `None` for a layer without a bias.
    pub fn bias(&self) -> Option<Vec<f32>> {
        let elements_of = |param| self.get(param).map(|v| v.iter().copied());
        match (elements_of(Param::Bias), elements_of(Param::BiasIh), elements_of(Param::BiasHh)) {
            (Some(bias), _, _) => Some(bias.collect()),
            (_, Some(ih), Some(hh)) => Some(ih.zip(hh).map(|(a, b)| a + b).collect()),
            _ => None,
        }
    }

    /// The row-major elements of a parameter.
    ///
    /// # Panics
    /// If the layer does not have the parameter.
    pub(crate) fn elements(&self, param: Param) -> &[f32] {
        self.get(param).and_then(|v| v.as_slice()).expect("the layer has this parameter")
    }
}

/// The configuration and all parameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    config: LstmConfig,
    layers: Vec<LayerWeights>,
}

impl Weights {
    /// Creates the parameters of a model from those of its layers, in the order of [`LstmConfig::layer_specs`].
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](LstmConfig::validate); [`Error::Shape`] if the number of
    /// layers or the spec of a layer is wrong.
    pub fn new(config: LstmConfig, layers: Vec<LayerWeights>) -> Result<Self> {
        config.validate()?;
        let specs = config.layer_specs();
        if layers.len() != specs.len() {
            return Err(Error::shape("Weights::new: layers", specs.len(), layers.len()));
        }
        for (index, (layer, spec)) in layers.iter().zip(&specs).enumerate() {
            if layer.spec != *spec {
                let op = format!("Weights::new: layers[{index}]");
                return Err(Error::shape(op, format!("{spec:?}"), format!("{:?}", layer.spec)));
            }
        }
        Ok(Weights { config, layers })
    }

    /// The configuration of the model.
    pub fn config(&self) -> &LstmConfig {
        &self.config
    }

    /// The parameters of each layer and direction, in the order of [`LstmConfig::layer_specs`].
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// Iterates over the elements of all parameters, mutable and row-major, layer by layer. See
    /// [`LayerWeights::iter_mut`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Param, &mut [f32])> {
        self.layers.iter_mut().flat_map(LayerWeights::iter_mut)
    }

    /// Number of scalar parameters.
    pub fn len(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.values.iter().map(ArrayD::len)).sum()
    }

    /// Whether the model has no parameters. Always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes the cell from [`CellKind::Unfused`] to [`CellKind::Fused`]. The parameters stay the same, and the
    /// results are bit-identical. To stack separate gate matrices into one, use [`gates::pack`].
    ///
    /// # Errors
    /// [`Error::Config`] for a peephole cell.
    pub fn into_fused(self) -> Result<Self> {
        self.with_cell(CellKind::Fused)
    }

    /// Changes the cell from [`CellKind::Fused`] to [`CellKind::Unfused`]. The parameters stay the same, and the
    /// results are bit-identical.
    ///
    /// # Errors
    /// [`Error::Config`] for a peephole cell.
    pub fn into_unfused(self) -> Result<Self> {
        self.with_cell(CellKind::Unfused)
    }

    /// Changes options that do not affect the parameters: `clip`, `coupled`, `dropout`, `activations`, and the choice
    /// between the fused and the unfused cell.
    ///
    /// # Errors
    /// [`Error::Config`] if another option differs or the configuration is not [valid](LstmConfig::validate).
    pub fn with_config(self, config: LstmConfig) -> Result<Self> {
        config.validate()?;
        let cell = if self.config.cell.is_equivalent_to(config.cell) { config.cell } else { self.config.cell };
        let LstmConfig { coupled, clip, dropout, activations, .. } = config;
        if config != (LstmConfig { cell, coupled, clip, dropout, activations, ..self.config.clone() }) {
            let reason =
                format!("expected {} with any clip, coupled, dropout and activations, got {config}", self.config);
            return Err(Error::config("config", reason));
        }
        let layers = config.layer_specs().into_iter().zip(self.layers);
        let layers = layers.map(|(spec, layer)| LayerWeights::new(spec, layer.values));
        Ok(Weights { config, layers: layers.collect::<Result<_>>()? })
    }

    fn with_cell(self, cell: CellKind) -> Result<Self> {
        if !self.config.cell.is_equivalent_to(cell) {
            return Err(Error::config("cell", format!("expected fused or unfused, got {}", self.config.cell)));
        }
        let config = LstmConfig { cell, ..self.config.clone() };
        self.with_config(config)
    }
}
