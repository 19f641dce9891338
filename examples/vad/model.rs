//! Silero VAD, version 5 and 6, for 16 kHz: a short-time Fourier transform, four convolutions, an LSTM and a head. See
//! <https://github.com/snakers4/silero-vad>, `tinygrad_model.py`.

use std::path::Path;

use lstm::{
    Activation, Backend, Error, LayerWeights, Linear, LstmConfig, Model, ModelLayer, ModelStream, ModelWeights,
    OnnxModel, Precision, Weights,
    ndarray::{Array1, ArrayD, Ix3},
};

use crate::Result;

/// The sample rate of the model, in Hz.
pub(crate) const SAMPLE_RATE: u32 = 16_000;
/// Number of new samples per call.
pub(crate) const CHUNK: usize = 512;
/// Number of samples of the last chunk that precede the next one.
const CONTEXT: usize = 64;
/// Number of samples of reflection padding at the end.
const MIRRORED: usize = 64;
/// Number of frequencies of the transform.
const FREQUENCIES: usize = 129;
/// Number of features of the encoder's output and of the LSTM.
const FEATURES: usize = 128;

/// Silero VAD with the state of one stream.
pub(crate) struct SileroVad<B: Backend> {
    transform: Convolution<B>,
    encoder: Vec<Convolution<B>>,
    /// The LSTM, relu, a linear layer and a sigmoid.
    decoder: ModelStream<B>,
    /// The context, the new chunk, and the mirrored samples.
    samples: Vec<f32>,
    spectrum: Vec<f32>,
    features: Vec<f32>,
}

impl<B: Backend> SileroVad<B> {
    /// Reads the published weights from the package's ONNX file, `silero_vad_16k_op15.onnx`. `precision` is that of the LSTM
    /// and the layer after it.
    pub(crate) fn open(backend: &B, path: &Path, precision: Precision) -> Result<Self> {
        let file = OnnxModel::open(path)?;
        let basis = file.tensor("model.stft.forward_basis_buffer")?;
        let transform = Convolution::new(backend, basis, [2 * FREQUENCIES, 1, 256], None, 128, 0)?;
        let mut encoder = Vec::new();
        let layers = [(FREQUENCIES, FEATURES, 1), (FEATURES, 64, 2), (64, 64, 2), (64, FEATURES, 1)];
        for (k, (channels, out, stride)) in layers.into_iter().enumerate() {
            let [weight, bias] = ["weight", "bias"].map(|name| format!("model.encoder.{k}.reparam_conv.{name}"));
            let (weight, bias) = (file.tensor(&weight)?, Some(file.tensor(&bias)?));
            encoder.push(Convolution::new(backend, weight, [out, channels, 3], bias, stride, 1)?);
        }
        let config = LstmConfig::new(FEATURES, FEATURES);
        let spec = config.layer_specs()[0];
        let names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(|name| format!("model.decoder.rnn.{name}"));
        let tensors = names.iter().map(|name| file.tensor(name)).collect::<Result<_, _>>()?;
        let lstm = Weights::new(config, vec![LayerWeights::new(spec, tensors)?])?;
        // A convolution with a kernel of 1 is a linear layer.
        let weight = file.tensor("model.decoder.decoder.2.weight")?.into_shape_with_order((1, FEATURES))?;
        let bias = Some(file.tensor("model.decoder.decoder.2.bias")?.into_iter().collect());
        let layers = vec![
            ModelLayer::Lstm { name: "lstm".into(), weights: lstm.into(), initial_state: None },
            ModelLayer::Activation(Activation::Relu),
            ModelLayer::Linear { name: "head".into(), weight, bias },
            ModelLayer::Activation(Activation::Sigmoid),
        ];
        Ok(SileroVad {
            transform,
            encoder,
            decoder: Model::new(backend, ModelWeights::new(layers)?.quantize(precision)?)?.stream(1)?,
            samples: vec![0.0; CONTEXT + CHUNK + MIRRORED],
            spectrum: Vec::new(),
            features: Vec::new(),
        })
    }

    /// Returns the probability that the next [`CHUNK`] samples contain speech.
    pub(crate) fn step(&mut self, chunk: &[f32; CHUNK]) -> Result<f32> {
        let end = CONTEXT + CHUNK;
        self.samples.copy_within(CHUNK..end, 0);
        self.samples[CONTEXT..end].copy_from_slice(chunk);
        for k in 0..MIRRORED {
            self.samples[end + k] = self.samples[end - 2 - k];
        }
        self.transform.run(&self.samples, &mut self.spectrum)?;
        self.features.clear();
        for frame in self.spectrum.chunks(2 * FREQUENCIES) {
            let (re, im) = frame.split_at(FREQUENCIES);
            self.features.extend(re.iter().zip(im).map(|(re, im)| (re * re + im * im).sqrt()));
        }
        for convolution in &mut self.encoder {
            convolution.run(&self.features, &mut self.spectrum)?;
            self.features.clear();
            self.features.extend(self.spectrum.iter().map(|v| v.max(0.0)));
        }
        let mut probability = [0.0];
        self.decoder.step(&self.features, &mut probability)?;
        Ok(probability[0])
    }
}

/// A convolution over time, as `torch.nn.Conv1d`: a linear layer that is applied to each window of the input. Arrays
/// are `(steps, channels)`.
pub(crate) struct Convolution<B: Backend> {
    linear: Linear<B>,
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    windows: Vec<f32>,
}

impl<B: Backend> Convolution<B> {
    /// Creates a layer from a weight of this shape, `[out, channels, kernel]`.
    pub(crate) fn new(
        backend: &B,
        weight: ArrayD<f32>,
        shape: [usize; 3],
        bias: Option<ArrayD<f32>>,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        if weight.shape() != shape {
            let found = weight.shape();
            let expected = format!("{shape:?}, the weights of Silero VAD");
            return Err(Error::shape("convolution", expected, format!("{found:?}")).into());
        }
        let [out, channels, kernel] = shape;
        let weight = weight.into_dimensionality::<Ix3>()?;
        // A window holds all channels of its first step, then those of the next one.
        let weight = weight.permuted_axes([0, 2, 1]);
        let weight = weight.as_standard_layout().into_owned().into_shape_with_order((out, kernel * channels))?;
        let bias = bias.map(|bias| bias.into_iter().collect::<Array1<f32>>());
        let linear = Linear::new(backend, weight, bias)?;
        Ok(Convolution { linear, channels, kernel, stride, padding, windows: Vec::new() })
    }

    /// Computes the convolution of `x`.
    fn run(&mut self, x: &[f32], y: &mut Vec<f32>) -> Result<()> {
        let (channels, padding) = (self.channels, self.padding);
        let steps = x.len() / channels;
        let outputs = (steps + 2 * padding - self.kernel) / self.stride + 1;
        self.windows.clear();
        for step in (0..outputs).flat_map(|k| k * self.stride..k * self.stride + self.kernel) {
            match (padding..padding + steps).contains(&step) {
                true => self.windows.extend_from_slice(&x[(step - padding) * channels..][..channels]),
                false => self.windows.resize(self.windows.len() + channels, 0.0),
            }
        }
        y.resize(outputs * self.linear.output_size(), 0.0);
        Ok(self.linear.step(&self.windows, y)?)
    }
}
