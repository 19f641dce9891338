//! The parameters of a model on the host, exactly as loaded: device copies are snapped, these never are.

pub mod element;
pub mod file;
pub mod gates;
mod infer;
pub mod init;
pub mod names;
pub mod state_dict;
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
    /// Puts together `values` in the order of [`LayerSpec::params`].
    ///
    /// # Errors
    /// A spec that is not [valid](LayerSpec::validate); [`Error::TensorShape`] names the first array that does not fit;
    /// [`Error::Shape`] if there are too few or too many.
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

    /// What the layer is.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// One parameter, if this layer has it; row-major.
    pub fn get(&self, param: Param) -> Option<&ArrayD<f32>> {
        self.iter().find(|(p, _)| *p == param).map(|(_, value)| value)
    }

    /// All parameters in the order of [`LayerSpec::params`].
    pub fn iter(&self) -> impl Iterator<Item = (Param, &ArrayD<f32>)> {
        self.spec.params().into_iter().map(|(p, _)| p).zip(&self.values)
    }

    /// All parameters' elements, row-major, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Param, &mut [f32])> {
        let values = self.values.iter_mut().map(|v| v.as_slice_mut().expect("row-major since new"));
        self.spec.params().into_iter().map(|(p, _)| p).zip(values)
    }

    /// The bias that the cell adds, `b_ih + b_hh` or the only one, or `None`.
    pub fn bias(&self) -> Option<Vec<f32>> {
        let get = |param| self.get(param).map(|v| v.iter().copied());
        match (get(Param::Bias), get(Param::BiasIh), get(Param::BiasHh)) {
            (Some(bias), _, _) => Some(bias.collect()),
            (_, Some(ih), Some(hh)) => Some(ih.zip(hh).map(|(a, b)| a + b).collect()),
            _ => None,
        }
    }

    /// The elements of a parameter that the spec says is there, row-major.
    pub(crate) fn expect(&self, param: Param) -> &[f32] {
        self.get(param).and_then(|v| v.as_slice()).expect("checked against the spec in new")
    }
}

/// The parameters of a whole model and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    config: LstmConfig,
    layers: Vec<LayerWeights>,
}

impl Weights {
    /// Puts together layers in the order of [`LstmConfig::layer_specs`].
    ///
    /// # Errors
    /// A configuration that is not [valid](LstmConfig::validate), or layers of another one.
    pub fn new(config: LstmConfig, layers: Vec<LayerWeights>) -> Result<Self> {
        config.validate()?;
        let specs = config.layer_specs();
        if layers.len() != specs.len() {
            let got = layers.len();
            return Err(Error::shape("Weights::new", format!("{} layer directions", specs.len()), got));
        }
        for (k, (layer, spec)) in layers.iter().zip(&specs).enumerate() {
            if layer.spec != *spec {
                let op = format!("Weights::new: layer direction {k}");
                return Err(Error::shape(op, format!("{spec:?}"), format!("{:?}", layer.spec)));
            }
        }
        Ok(Weights { config, layers })
    }

    /// The configuration.
    pub fn config(&self) -> &LstmConfig {
        &self.config
    }

    /// The layers in the order of [`LstmConfig::layer_specs`].
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// The elements of all parameters, to be changed in place: layer by layer, each as [`LayerWeights::iter_mut`] has them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Param, &mut [f32])> {
        self.layers.iter_mut().flat_map(LayerWeights::iter_mut)
    }

    /// Number of scalar parameters.
    pub fn len(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.values.iter().map(ArrayD::len)).sum()
    }

    /// Whether there are no parameters; never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same parameters computed by the fused instead of the unfused cell. See [`gates`] for bare matrices.
    ///
    /// # Errors
    /// [`Error::Config`] if the cell is a peephole.
    pub fn pack(self) -> Result<Self> {
        self.with_cell(CellKind::Fused)
    }

    /// The same parameters computed by the unfused instead of the fused cell.
    ///
    /// # Errors
    /// [`Error::Config`] if the cell is a peephole.
    pub fn unpack(self) -> Result<Self> {
        self.with_cell(CellKind::Unfused)
    }

    /// The same parameters with other options that no parameter depends on: `clip`, `coupled`, `dropout`, and whether the
    /// cell is fused or unfused.
    ///
    /// # Errors
    /// [`Error::Config`] if anything else differs, or for a configuration that is not [valid](LstmConfig::validate).
    pub fn with_config(self, config: LstmConfig) -> Result<Self> {
        config.validate()?;
        let cell = if self.config.cell.is_equivalent_to(config.cell) { config.cell } else { self.config.cell };
        let LstmConfig { coupled, clip, dropout, .. } = config;
        if config != (LstmConfig { cell, coupled, clip, dropout, ..self.config.clone() }) {
            let why = format!("other than clip, coupled and dropout, expected those of {}, got {config}", self.config);
            return Err(Error::config("config", why));
        }
        let layers = config.layer_specs().into_iter().zip(self.layers);
        let layers = layers.map(|(spec, layer)| LayerWeights::new(spec, layer.values));
        Ok(Weights { config, layers: layers.collect::<Result<_>>()? })
    }

    fn with_cell(self, cell: CellKind) -> Result<Self> {
        if !self.config.cell.is_equivalent_to(cell) {
            return Err(Error::config("cell", format!("{:?} can't become {cell:?}", self.config.cell)));
        }
        let config = LstmConfig { cell, ..self.config.clone() };
        self.with_config(config)
    }
}
