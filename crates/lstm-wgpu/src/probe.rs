//! Finds out, on the adapter at hand, what WGSL leaves open, and a way to compute that gives the specified bits.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use lstm_core::{
    Backend, CellKind, Checkpointing, Direction, Error, LayerWeights, Lstm, LstmConfig, MatrixShape, Ops,
    OutputGradients, Reference, Result, Sequence, State, Weights,
    arithmetic::{dot, sigmoid, snap, tanh},
    ndarray::Array3,
};

use crate::{
    backend::Wgpu,
    builder::Wishes,
    errors::device_error,
    gpu::Gpu,
    parameters::Length,
    shader::{Fma, Kernel, Mode, Unary},
    tensor::Tensor,
};

/// What an adapter does with single operations in plain WGSL. None of it is decisive but `fused`: the decision is made by
/// comparing results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `fma` rounds once.
    pub fused: bool,
    /// `a * b + c` rounds once.
    pub contracts: bool,
    /// `(x + M) - M` or `(a + b) - a` are simplified.
    pub reassociates: bool,
    /// Ties go to the even neighbour.
    pub rounds_to_even: bool,
    /// Results that are subnormal are kept.
    pub keeps_subnormals: bool,
}

/// What a probe found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// About single operations.
    pub facts: Facts,
    /// The ways to compute that were tried, in their order, and the first thing in which each differed from the
    /// specification; `None`: nothing did.
    pub tried: Vec<(Mode, Option<String>)>,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |b: bool| if b { "yes" } else { "no" };
        let Facts { fused, contracts, reassociates, rounds_to_even, keeps_subnormals } = self.facts;
        write!(
            f,
            "fma fused: {}, a*b+c contracted: {}, reassociation: {}, ties to even: {}, subnormals kept: {}",
            yes(fused),
            yes(contracts),
            yes(reassociates),
            yes(rounds_to_even),
            yes(keeps_subnormals)
        )?;
        for (mode, difference) in &self.tried {
            let found = difference.as_deref().unwrap_or("exact");
            write!(f, "; {mode}: {found}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fma {
            Fma::Native => "native fma",
            Fma::F64 => "fma in binary64",
            Fma::Integer => "fma in integers",
        })?;
        f.write_str(if self.no_contraction { ", NoContraction" } else { "" })
    }
}

/// The first way to compute on this device that gives the specified bits.
pub(crate) async fn choose(
    info: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    lost: Arc<Mutex<Option<String>>>,
    Wishes { mode: only, allow_inexact, treat_as_cpu, guards }: Wishes,
) -> Result<(Arc<Gpu>, Probe)> {
    let is_cpu = treat_as_cpu.unwrap_or(info.device_type == wgpu::DeviceType::Cpu);
    let open =
        |mode| Gpu::new(device.clone(), queue.clone(), info.clone(), is_cpu, lost.clone(), guards, mode).map(Arc::new);
    let plain = open(PLAIN)?;
    let facts = facts(&plain).await?;
    let mut probe = Probe { facts, tried: Vec::new() };
    let features = device.features();
    let mut offered = modes(features, info.backend);
    match only {
        Some(only) => offered.retain(|mode| *mode == only),
        // No need to try.
        None => offered.retain(|mode| facts.fused || *mode != PLAIN),
    }
    if let Some(mode) = only.filter(|_| offered.is_empty()) {
        let needed = "binary64 needs SHADER_F64 and SHADER_INT64, NoContraction PASSTHROUGH_SHADERS on Vulkan";
        return Err(device_error("probe", format!("{} does not offer {mode}: {needed}", info.name)));
    }
    // What is taken if nothing is exact: what was asked for, or the fastest.
    let mut inexact = plain;
    for mode in offered {
        let gpu = open(mode)?;
        let wgpu = Wgpu::from_parts(gpu.clone(), probe.clone());
        match difference(&wgpu).await {
            Ok(None) => {
                probe.tried.push((mode, None));
                return Ok((gpu, probe));
            }
            Ok(Some(what)) => {
                probe.tried.push((mode, Some(what)));
                if only.is_some() {
                    inexact = gpu;
                }
            }
            // A way that can't be compiled here is no reason to give up the others; a lost device is.
            Err(Error::Device { op: "compile", reason: why, .. }) => probe.tried.push((mode, Some(why))),
            Err(error) => return Err(error),
        }
    }
    if allow_inexact {
        return Ok((inexact, probe));
    }
    let wanted = only.map(|mode| format!(" ({mode} was asked for)")).unwrap_or_default();
    Err(device_error("probe", format!("{} does not compute the specified bits{wanted}: {probe}", info.name)))
}

/// WGSL as it is.
const PLAIN: Mode = Mode { fma: Fma::Native, no_contraction: false };

/// The ways that this adapter offers, the fastest first.
fn modes(features: wgpu::Features, backend: wgpu::Backend) -> Vec<Mode> {
    let binary64 = features.contains(wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64);
    let spirv = backend == wgpu::Backend::Vulkan && features.contains(wgpu::Features::PASSTHROUGH_SHADERS);
    let fmas = [(Fma::Native, true), (Fma::F64, binary64), (Fma::Integer, true)];
    let with = |fma| [Mode { fma, no_contraction: false }, Mode { fma, no_contraction: true }];
    let modes = fmas.into_iter().filter(|(_, offered)| *offered).flat_map(|(fma, _)| with(fma));
    modes.filter(|mode| spirv || !mode.no_contraction).collect()
}

async fn facts(gpu: &Gpu) -> Result<Facts> {
    let third = |n: i32| 2f32.powi(n);
    let x = [
        1.0 + third(-12),
        -(1.0 + third(-11)),
        1.25,
        12_582_912.0,
        1e8,
        1.0,
        third(-24),
        f32::from_bits(0x1234),
        1e-30,
        1e-10,
    ];
    let y = run(gpu, Kernel::Facts, &x, 7, 1).await?;
    Ok(Facts {
        fused: y[0] == third(-24),
        contracts: y[1] == third(-24),
        reassociates: y[2] != 1.0 || y[3] != 0.0,
        rounds_to_even: y[4] == 1.0,
        keeps_subnormals: y[5].to_bits() == 0x1234 && y[6] == 1e-30 * 1e-10,
    })
}

/// Runs a kernel that maps one buffer to another.
async fn run(gpu: &Gpu, kernel: Kernel, x: &[f32], len: usize, groups: usize) -> Result<Vec<f32>> {
    let from = gpu.upload("probe", bytemuck::cast_slice(x))?;
    let to = gpu.allocate("probe", len)?;
    gpu.run("probe", kernel, &[&from, &to], &Length { len: len as u32 }, groups)?;
    let mut y = vec![0.0; len];
    gpu.download("probe", &to, 0, bytemuck::cast_slice_mut(&mut y)).await?;
    Ok(y)
}

/// The first thing in which the kernels differ from the specification.
async fn difference(wgpu: &Wgpu) -> Result<Option<String>> {
    let gpu = wgpu.gpu();
    let x = triples();
    let want: Vec<f32> = x.chunks_exact(3).map(|t| t[0].mul_add(t[1], t[2])).collect();
    let got = run(gpu, Kernel::Fma, &x, want.len(), want.len().div_ceil(64)).await?;
    if let Some(what) = compare("fma", &want, &got) {
        return Ok(Some(what));
    }
    let x = samples();
    let shape = MatrixShape::new(1, x.len());
    let tensor = wgpu.upload(shape, &x)?;
    for (name, operation, scalar) in [
        ("sigmoid", Unary::Sigmoid, sigmoid as fn(f32) -> f32),
        ("tanh", Unary::Tanh, tanh),
        ("snap", Unary::Snap, snap),
    ] {
        let want: Vec<f32> = x.iter().map(|&x| scalar(x)).collect();
        let got = get(wgpu, &gpu.unary("probe", operation, &tensor, 0.0)?).await?;
        if let Some(what) = compare(name, &want, &got) {
            return Ok(Some(what));
        }
    }
    // Where there are two kernels of the product, both.
    let mut random = Random(5);
    for (m, k, n) in [(5, 67, 9), (65, 97, 66)] {
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..m * k).map(|_| random.float()).collect(), (0..k * n).map(|_| random.float()).collect());
        let want: Vec<f32> = (0..m * n).map(|i| dot(k, |j| a[i / n * k + j], |j| b[j * n + i % n])).collect();
        let (a, b) = (wgpu.upload(MatrixShape::new(m, k), &a)?, wgpu.upload(MatrixShape::new(k, n), &b)?);
        let got = get(wgpu, &gpu.gemm((&a).into(), (&b).into(), None)?).await?;
        if let Some(what) = compare("gemm", &want, &got) {
            return Ok(Some(what));
        }
    }
    let x: Vec<f32> = (0..300).map(|_| random.float()).collect();
    let (all, row) = (wgpu.upload(MatrixShape::new(20, 15), &x)?, wgpu.upload(MatrixShape::new(1, 15), &x[..15])?);
    let want: Vec<f32> = (0..300).map(|k| (0.5 * x[k]).mul_add(x[k % 15], x[k])).collect();
    let got = get(wgpu, &gpu.mul_add(0.5, &all, Some(&row), Some(&all))?).await?;
    if let Some(what) = compare("mul_add", &want, &got) {
        return Ok(Some(what));
    }
    if let Some(what) = steps(wgpu).await? {
        return Ok(Some(what));
    }
    // What was looked at above is all that the reference path is made of: the kernels of the passes must agree with it.
    let larger = LstmConfig::new(6, 150);
    let other = LstmConfig::new(6, 20)
        .cell(CellKind::PeepholeDiagonal)
        .coupled()
        .clip(2.0)
        .proj_size(7)
        .direction(Direction::Reverse);
    for (name, config) in [("passes with a dispatch a step", larger), ("passes with every option", other)] {
        let weights = Weights::init(config, &Default::default(), 3)?;
        let want = passes(&Lstm::new(&Reference(wgpu.clone()), weights.clone())?).await?;
        let got = passes(&Lstm::new(wgpu, weights)?).await?;
        if let Some(what) = compare(name, &want, &got) {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Everything that a pass forward and back gives.
async fn passes<B: Backend>(lstm: &Lstm<B>) -> Result<Vec<f32>> {
    let mut random = Random(13);
    let x = Array3::from_shape_simple_fn((3, 3, 6), || random.float());
    let pass = lstm.forward_train_async(&x, Checkpointing::Everything).await?;
    let gradients = pass.tape.backward_async(OutputGradients::from(&pass.y).with_input()).await?;
    let mut all: Vec<f32> = pass.y.iter().chain(&pass.state.h).chain(&pass.state.c).copied().collect();
    all.extend(gradients.x.iter().flatten().chain(&gradients.state.h).chain(&gradients.state.c));
    for layer in gradients.weights.layers() {
        all.extend(layer.iter().flat_map(|(_, values)| values.iter().copied().collect::<Vec<f32>>()));
    }
    Ok(all)
}

/// A few steps of a layer.
async fn steps(wgpu: &Wgpu) -> Result<Option<String>> {
    let (input, hidden, batch, steps) = (5, 40, 3, 4);
    let mut random = Random(7);
    let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| random.float()).collect() };
    let weights = Weights::init(LstmConfig::new(input, hidden), &Default::default(), 3)?;
    let (x, h, c) = (values(steps * batch * input), values(batch * hidden), values(batch * hidden));
    let want = scalar(&weights.layers()[0], &x, &h, &c, (steps, batch));

    let layer = wgpu.load(&weights.layers()[0])?;
    let up = |rows, data: &[f32]| wgpu.upload(MatrixShape::new(rows, data.len() / rows), data);
    let state = State { h: up(batch, &h)?, c: up(batch, &c)? };
    let sequence = Sequence { x: &up(steps * batch, &x)?, state: &state, steps, batch, lengths: None };
    let output = wgpu.forward(&layer, &mut wgpu.plan(&layer, batch, steps)?, sequence)?;
    let got = get(wgpu, &output.y).await?;
    Ok(compare("a layer's steps", &want, &got))
}

/// The same in plain code.
fn scalar(weights: &LayerWeights, x: &[f32], h: &[f32], c: &[f32], (steps, batch): (usize, usize)) -> Vec<f32> {
    use lstm_core::Param::{WeightHh, WeightIh};
    let (input, hidden) = (weights.spec().input_size, weights.spec().hidden_size);
    let snapped = |v: &[f32]| v.iter().map(|&v| snap(v)).collect::<Vec<f32>>();
    let get = |param| snapped(weights.get(param).and_then(|v| v.as_slice()).unwrap_or_default());
    let (w, u, bias) = (get(WeightIh), get(WeightHh), snapped(&weights.bias().unwrap_or_default()));
    let (x, mut h, mut c, mut y) = (snapped(x), snapped(h), snapped(c), Vec::new());
    for t in 0..steps {
        let before = h.clone();
        for (b, j) in (0..batch).flat_map(|b| (0..hidden).map(move |j| (b, j))) {
            let z = |gate: usize| {
                let row = gate * hidden + j;
                let wx = dot(input, |k| x[(t * batch + b) * input + k], |k| w[row * input + k]);
                (bias[row] + wx) + dot(hidden, |k| before[b * hidden + k], |k| u[row * hidden + k])
            };
            let (i, f, g, o) = (sigmoid(z(0)), sigmoid(z(1)), snap(tanh(z(2))), sigmoid(z(3)));
            let at = b * hidden + j;
            c[at] = snap(f.mul_add(c[at], i * g));
            h[at] = snap(o * tanh(c[at]));
        }
        y.extend_from_slice(&h);
    }
    y
}

async fn get(wgpu: &Wgpu, x: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; x.shape.len()];
    wgpu.download(x, &mut out).await?;
    Ok(out)
}

/// Where two results differ first; any NaN is like any other.
fn compare(name: &str, want: &[f32], got: &[f32]) -> Option<String> {
    let differs = |(w, g): &(&f32, &f32)| w.to_bits() != g.to_bits() && !(w.is_nan() && g.is_nan());
    let count = want.iter().zip(got).filter(differs).count();
    let (k, (w, g)) = want.iter().zip(got).enumerate().find(|(_, pair)| differs(pair))?;
    Some(format!("{name}: {count} of {} differ, at {k} {:08x} instead of {:08x}", want.len(), g.to_bits(), w.to_bits()))
}

/// A small generator of its own: a probe must not change with a library.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In [-1, 1), a multiple of 2^-23.
    fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// Any sign and significand, with this exponent.
    fn scaled(&mut self, exponent: u32) -> f32 {
        f32::from_bits(self.bits() & 0x807f_ffff | exponent.clamp(1, 254) << 23)
    }
}

/// Operands of fma: of any size, cancelling ones, and sums near a tie, which two roundings get wrong.
fn triples() -> Vec<f32> {
    let mut random = Random(99);
    let mut triples = vec![f32::NAN, 1.0, 1.0, 1.0, 1.0, f32::NAN, 0.0, -1.0, 0.0, 0.0, -1.0, -0.0, 3.0, -0.0, 5.0];
    for k in 0..8192 {
        let (ea, eb) = (100 + random.bits() % 54, 100 + random.bits() % 54);
        let (mut a, mut b) = (random.scaled(ea), random.scaled(eb));
        let product = (a * b).to_bits() >> 23 & 0xff;
        let c = match k % 4 {
            0 => {
                let e = 60 + random.bits() % 130;
                random.scaled(e)
            }
            1 => -(a * b),
            2 => {
                // a b is 1 - 2^-2q times a power of two: just off the tie of a larger c.
                let q = 2f32.powi(-(15 + (random.bits() % 3) as i32));
                let (u, v) = (random.bits() % 20, random.bits() % 20);
                let sign = if random.bits() & 1 == 1 { -1.0 } else { 1.0 };
                (a, b) = ((1.0 + q) * 2f32.powi(u as i32), (1.0 - q) * 2f32.powi(v as i32) * sign);
                random.scaled(127 + 24 + u + v)
            }
            _ => {
                let e = product.max(30) - 28 + random.bits() % 54;
                random.scaled(e)
            }
        };
        triples.extend([a, b, c]);
    }
    triples
}

/// Inputs of the activations: all exponents with both signs, and plenty where they bend.
fn samples() -> Vec<f32> {
    let mut random = Random(11);
    let mut samples: Vec<f32> = Vec::new();
    for high in 0..512u32 {
        samples.extend([0, 1, 0x40_0000, 0x7f_ffff].map(|low| f32::from_bits(high << 23 | low)));
    }
    samples.extend((0..6000).map(|_| random.float() * 16.0));
    samples
}
