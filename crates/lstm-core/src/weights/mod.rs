//! The parameters of a model on the host, and safetensors files. Host parameters keep the exact values that were
//! loaded; only the copies on the device are snapped (see [`arithmetic::snap`](crate::arithmetic::snap)).

#[cfg(feature = "safetensors")]
mod checksum;
#[cfg(feature = "safetensors")]
pub mod element;
pub mod file;
pub mod gates;
#[cfg(feature = "safetensors")]
mod header;
#[cfg(feature = "safetensors")]
mod infer;
pub mod init;
#[cfg(feature = "safetensors")]
pub mod names;
mod quantize;
#[cfg(feature = "safetensors")]
pub mod state_dict;
#[cfg(feature = "safetensors")]
mod writer;

use ndarray::ArrayD;

pub use quantize::QuantizedRows;
#[cfg(feature = "safetensors")]
pub(crate) use quantize::dequantize;
pub(crate) use quantize::{Scales, check_finite, integers, quantize};

use crate::{
    backend::{DeviceMatrix, Ops},
    config::{CellKind, LayerSpec, LstmConfig, Param, Precision},
    error::{Error, Result},
    memory,
    quantized::Format,
};

/// The parameters of one layer in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    spec: LayerSpec,
    values: Vec<ArrayD<f32>>,
    /// The scales of each parameter, in the order of `values`; empty for parameters in f32.
    scales: Vec<Vec<f32>>,
}

impl LayerWeights {
    /// Creates the parameters of a layer from one array per parameter, in the order of [`LayerSpec::params`].
    ///
    /// # Errors
    /// [`Error::Config`] if the spec is not [valid](LayerSpec::validate) or its precision is not f32, which
    /// [`Weights::quantize`] changes; [`Error::Shape`] if the number of arrays is wrong; [`Error::TensorShape`] if the
    /// shape of an array is wrong.
    pub fn new(spec: LayerSpec, values: Vec<ArrayD<f32>>) -> Result<Self> {
        spec.validate()?;
        if spec.precision != Precision::F32 {
            let reason = format!("expected f32, got {}; create f32 weights and quantize them", spec.precision);
            return Err(Error::config("precision", reason));
        }
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
        let values =
            values.into_iter().map(|v| memory::row_major("LayerWeights::new", v)).collect::<Result<Vec<_>>>()?;
        let scales = vec![Vec::new(); values.len()];
        Ok(LayerWeights { spec, values, scales })
    }

    /// The same layer with quantized matrices. `self` is in f32.
    fn quantize(mut self, format: Format) -> Result<Self> {
        for (k, (param, shape)) in self.spec.params().into_iter().enumerate() {
            let values = self.values[k].as_slice_mut().expect("LayerWeights::new makes arrays row-major");
            if param.is_matrix() {
                self.scales[k] = quantize(&format!("{param:?}"), values, shape[1], format)?;
            } else {
                check_finite(&format!("{param:?}"), values)?;
            }
        }
        self.spec.precision = format.precision;
        Ok(self)
    }

    /// The same layer in f32, with the values that the quantized matrices stand for.
    fn dequantize(self) -> Self {
        let spec = LayerSpec { precision: Precision::F32, ..self.spec };
        LayerWeights { spec, scales: vec![Vec::new(); self.values.len()], values: self.values }
    }

    /// Creates a layer from dequantized values and the scales of its quantized matrices.
    #[cfg(feature = "safetensors")]
    fn from_scales(spec: LayerSpec, values: Vec<ArrayD<f32>>, scales: Vec<Vec<f32>>) -> Result<Self> {
        let f32_layer = LayerWeights::new(LayerSpec { precision: Precision::F32, ..spec }, values)?;
        for ((param, shape), scales) in spec.params().iter().zip(&scales) {
            let expected = if spec.precision != Precision::F32 && param.is_matrix() { shape[0] } else { 0 };
            if scales.len() != expected {
                return Err(Error::shape(format!("scales of {param:?}"), expected, scales.len()));
            }
        }
        if spec.precision != Precision::F32 {
            for (param, value) in f32_layer.iter().filter(|(param, _)| !param.is_matrix()) {
                check_finite(&format!("{param:?}"), value.as_slice().unwrap_or_default())?;
            }
        }
        Ok(LayerWeights { spec, scales, ..f32_layer })
    }

    /// The integers and scales of a matrix of a quantized layer; `None` for parameters that are floats.
    ///
    /// # Errors
    /// [`Error::Config`] if the values were changed after they were quantized.
    pub fn quantized(&self, param: Param) -> Result<Option<QuantizedRows<'_>>> {
        match self.spec.params().iter().position(|(p, _)| *p == param) {
            Some(k) if param.is_matrix() => {
                integers(&format!("{param:?}"), self.elements(param), &self.scales[k], self.spec.precision)
            }
            _ => Ok(None),
        }
    }

    /// Sizes and options of the layer.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// One parameter as a row-major array; `None` if the layer does not have it. A quantized matrix has the values that
    /// its integers and scales stand for.
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
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub fn bias(&self) -> Result<Option<Vec<f32>>> {
        let elements_of = |param| self.get(param).map(|v| v.iter().copied());
        match (elements_of(Param::Bias), elements_of(Param::BiasIh), elements_of(Param::BiasHh)) {
            (Some(bias), _, _) => memory::collect("bias", bias.len(), bias).map(Some),
            (_, Some(ih), Some(hh)) => memory::collect("bias", ih.len(), ih.zip(hh).map(|(a, b)| a + b)).map(Some),
            _ => Ok(None),
        }
    }

    /// A copy of the parameters.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let values = self.values.iter().map(|v| memory::copy_array("weights", v.view()));
        let scales = self.scales.iter().map(|scales| memory::copy("weights", scales));
        Ok(LayerWeights {
            spec: self.spec,
            values: values.collect::<Result<_>>()?,
            scales: scales.collect::<Result<_>>()?,
        })
    }

    /// Uploads a matrix, snapped or quantized.
    pub(crate) fn load_matrix<B: Ops>(&self, b: &B, param: Param) -> Result<DeviceMatrix<B::Tensor>> {
        let cols = self.get(param).map_or(1, |v| v.len_of(ndarray::Axis(1)));
        DeviceMatrix::load(b, cols, self.elements(param), self.quantized(param)?)
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

    /// Checks that the weights are f32, as training needs them.
    ///
    /// # Errors
    /// [`Error::Config`] for quantized weights.
    pub(crate) fn check_trainable(&self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| layer.spec.check_trainable())
    }

    /// Iterates over the elements of all parameters, mutable and row-major, layer by layer. See
    /// [`LayerWeights::iter_mut`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Param, &mut [f32])> {
        self.layers.iter_mut().flat_map(LayerWeights::iter_mut)
    }

    /// A copy of the parameters.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let layers = self.layers.iter().map(LayerWeights::try_clone);
        let layers = memory::try_collect("weights", self.layers.len(), layers)?;
        Ok(Weights { config: self.config.clone(), layers })
    }

    /// Number of scalar parameters.
    pub fn len(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.values.iter().map(ArrayD::len)).sum()
    }

    /// Whether the model has no parameters. Always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weights in another precision. Matrices are quantized row by row: a row's scale is its largest magnitude
    /// divided by 127 for [`Precision::Int8`] and by 2047 for [`Precision::Int12`], and a weight becomes the nearest
    /// multiple of the scale. Biases and peephole vectors stay f32. From a quantized precision to
    /// [`Precision::F32`], the values stay those of the quantized weights.
    ///
    /// ```
    /// use lstm_core::{Init, LstmConfig, Precision, Weights};
    /// let weights = Weights::init(LstmConfig::new(3, 5), &Init::default(), 1)?;
    /// let quantized = weights.quantize(Precision::Int8)?;
    /// assert_eq!(quantized.config().precision, Precision::Int8);
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] if the weights are quantized already and `precision` is another quantized one, or if a value is
    /// not finite or larger than 2^127; [`Error::TooLarge`] if the result does not fit in memory.
    pub fn quantize(&self, precision: Precision) -> Result<Self> {
        let config = self.config.clone().precision(precision);
        let layers = self.layers.iter().map(LayerWeights::try_clone);
        let layers = match (self.config.precision, precision.format()) {
            (from, _) if from == precision => return self.try_clone(),
            (_, None) => {
                let layers = layers.map(|layer| layer.map(LayerWeights::dequantize));
                memory::try_collect("quantize", self.layers.len(), layers)?
            }
            (Precision::F32, Some(format)) => {
                let layers = layers.map(|layer| layer?.quantize(format));
                memory::try_collect("quantize", self.layers.len(), layers)?
            }
            (from, Some(_)) => {
                let reason =
                    format!("the weights are {from} already; quantize the original f32 weights to {precision}");
                return Err(Error::config("precision", reason));
            }
        };
        Ok(Weights { config, layers })
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
        let layers = layers.map(|(spec, layer)| LayerWeights { spec, ..layer }).collect();
        Ok(Weights { config, layers })
    }

    fn with_cell(self, cell: CellKind) -> Result<Self> {
        if !self.config.cell.is_equivalent_to(cell) {
            return Err(Error::config("cell", format!("expected fused or unfused, got {}", self.config.cell)));
        }
        let config = LstmConfig { cell, ..self.config.clone() };
        self.with_config(config)
    }
}
