//! Finds a mode in which the adapter computes bit-exact results, by comparing results with the specification.

mod checks;
mod samples;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use lstm_core::{Error, Result};

use super::{
    builder::ComputeOptions,
    device_error,
    gpu::Gpu,
    mode::{Mode, PLAIN_MODE, supported_modes},
};
use crate::{
    backend::Wgpu,
    shader::{Kernel, ProbeParameters},
};

/// How an adapter rounds single float operations in plain WGSL.
///
/// Only [`fma_is_fused`](Self::fma_is_fused) affects which mode is used: if it is false, native `fma` in plain WGSL is
/// not tried. The other fields are for information. The mode is then chosen by comparing the results of the remaining
/// modes with the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FloatBehavior {
    /// Whether `fma(a, b, c)` rounds once.
    pub fma_is_fused: bool,
    /// Whether `a * b + c` rounds once, which means that it is contracted to a fused multiply-add.
    pub contracts_mul_add: bool,
    /// Whether `(x + m) - m` is simplified to `x`, or `(a + b) - a` to `b`.
    pub reassociates: bool,
    /// Whether ties round to even.
    pub rounds_to_even: bool,
    /// Whether subnormal results are kept rather than flushed to zero.
    pub keeps_subnormals: bool,
}

/// Results of the arithmetic tests that run when an adapter is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// How the adapter rounds single float operations.
    pub float_behavior: FloatBehavior,
    /// The modes that were tried, in order, each with a description of the first difference from the specification.
    /// `None` if the mode is bit-exact.
    pub attempts: Vec<(Mode, Option<String>)>,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes_no = |b: bool| if b { "yes" } else { "no" };
        let FloatBehavior { fma_is_fused, contracts_mul_add, reassociates, rounds_to_even, keeps_subnormals } =
            self.float_behavior;
        write!(
            f,
            "fma fused: {}, a*b+c contracted: {}, reassociation: {}, ties to even: {}, subnormals kept: {}",
            yes_no(fma_is_fused),
            yes_no(contracts_mul_add),
            yes_no(reassociates),
            yes_no(rounds_to_even),
            yes_no(keeps_subnormals)
        )?;
        for (mode, difference) in &self.attempts {
            let result = difference.as_deref().unwrap_or("exact");
            write!(f, "; {mode}: {result}")?;
        }
        Ok(())
    }
}

/// Opens the device in the first mode that is bit-exact.
pub(super) async fn select_mode(
    info: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    loss_reason: Arc<Mutex<Option<String>>>,
    ComputeOptions { mode: requested_mode, allow_inexact, treat_as_cpu, guards }: ComputeOptions,
) -> Result<(Arc<Gpu>, Probe)> {
    let is_cpu = treat_as_cpu.unwrap_or(info.device_type == wgpu::DeviceType::Cpu);
    let open_gpu = |mode| {
        Gpu::new(device.clone(), queue.clone(), info.clone(), is_cpu, loss_reason.clone(), guards, mode).map(Arc::new)
    };
    let plain_gpu = open_gpu(PLAIN_MODE)?;
    let float_behavior = measure_float_behavior(&plain_gpu).await?;
    let mut probe = Probe { float_behavior, attempts: Vec::new() };
    let features = device.features();
    let mut modes = supported_modes(features, info.backend);
    match requested_mode {
        Some(requested_mode) => modes.retain(|mode| *mode == requested_mode),
        // Without a fused fma, the plain mode cannot be exact.
        None => modes.retain(|mode| float_behavior.fma_is_fused || *mode != PLAIN_MODE),
    }
    if let Some(mode) = requested_mode.filter(|_| modes.is_empty()) {
        let requirements = "emulation in f64 requires the features SHADER_F64 and SHADER_INT64, and NoContraction \
                            requires PASSTHROUGH_SHADERS on Vulkan";
        return Err(device_error("probe", format!("{} does not support the mode `{mode}`: {requirements}", info.name)));
    }
    // Used with `allow_inexact` if no mode is exact: the requested mode, or the fastest one.
    let mut inexact_gpu = plain_gpu;
    for mode in modes {
        let gpu = open_gpu(mode)?;
        let wgpu = Wgpu::from_parts(gpu.clone(), probe.clone());
        match checks::first_difference(&wgpu).await {
            Ok(None) => {
                probe.attempts.push((mode, None));
                return Ok((gpu, probe));
            }
            Ok(Some(difference)) => {
                probe.attempts.push((mode, Some(difference)));
                if requested_mode.is_some() {
                    inexact_gpu = gpu;
                }
            }
            // If this mode does not compile here, another one may. Any other error, such as a lost device, ends the
            // probe.
            Err(Error::Device { op: "compile", reason, .. }) => probe.attempts.push((mode, Some(reason))),
            Err(error) => return Err(error),
        }
    }
    if allow_inexact {
        return Ok((inexact_gpu, probe));
    }
    let mode_suffix = requested_mode.map(|mode| format!(" in the requested mode `{mode}`")).unwrap_or_default();
    Err(device_error("probe", format!("{} is not bit-exact{mode_suffix}: {probe}", info.name)))
}

async fn measure_float_behavior(gpu: &Gpu) -> Result<FloatBehavior> {
    let power_of_two = |n: i32| 2f32.powi(n);
    let x = [
        1.0 + power_of_two(-12),
        -(1.0 + power_of_two(-11)),
        1.25,
        12_582_912.0,
        1e8,
        1.0,
        power_of_two(-24),
        f32::from_bits(0x1234),
        1e-30,
        1e-10,
    ];
    let y = run_kernel(gpu, Kernel::FloatBehavior, &x, 7, 1).await?;
    Ok(FloatBehavior {
        fma_is_fused: y[0] == power_of_two(-24),
        contracts_mul_add: y[1] == power_of_two(-24),
        reassociates: y[2] != 1.0 || y[3] != 0.0,
        rounds_to_even: y[4] == 1.0,
        keeps_subnormals: y[5].to_bits() == 0x1234 && y[6] == 1e-30 * 1e-10,
    })
}

/// Runs a kernel that maps the buffer `x` to a buffer of `len` elements, and downloads the result.
async fn run_kernel(gpu: &Gpu, kernel: Kernel, x: &[f32], len: usize, workgroups: usize) -> Result<Vec<f32>> {
    let input = gpu.upload("probe", bytemuck::cast_slice(x))?;
    let output = gpu.allocate("probe", len)?;
    let parameters = ProbeParameters { len: len as u32 };
    gpu.bind_and_dispatch("probe", kernel, &[&input, &output], &parameters, workgroups)?;
    let mut y = vec![0.0; len];
    gpu.download("probe", &output, 0, bytemuck::cast_slice_mut(&mut y)).await?;
    Ok(y)
}
