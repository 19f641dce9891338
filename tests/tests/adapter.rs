//! Checks that only the wgpu backend needs: selecting adapters, modes, limits, devices that the caller opened or
//! destroyed, and threads that share a device. Without an adapter all checks are skipped; with `LSTM_REQUIRE` set, that
//! is a failure.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use lstm_cpu::Cpu;
use lstm_wgpu::{
    Arithmetic, Backend, Checkpointing, Error, Fma, Input, Lstm, LstmConfig, MatrixShape, Mode, Ops, OutputGradients,
    State, Tensor, Weights, Wgpu, WgpuStream,
    ndarray::{Array3, Axis},
    wgpu,
};

type CheckResult = Result<(), Failed>;
/// A check, which gets an adapter that all checks share.
type Check = fn(&Wgpu) -> CheckResult;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let shared = match Wgpu::new() {
        Ok(wgpu) => wgpu,
        Err(error) => {
            println!("adapter: skipped: {error}");
            return if std::env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    println!("{}: {}", shared.adapter().name, shared.probe());
    let tests: [(&str, Check); 13] = [
        ("arithmetic_matches_probe", arithmetic_matches_probe),
        ("selects_adapter_by_name", selects_adapter_by_name),
        ("every_mode_is_exact_or_rejected", every_mode_is_exact_or_rejected),
        ("allow_inexact_accepts_inexact_mode", allow_inexact_accepts_inexact_mode),
        ("uses_device_of_caller", uses_device_of_caller),
        ("rejects_too_low_limits", rejects_too_low_limits),
        ("rejects_tensors_larger_than_a_buffer", rejects_tensors_larger_than_a_buffer),
        ("destroyed_device_is_an_error", destroyed_device_is_an_error),
        ("rejects_tensors_of_another_device", rejects_tensors_of_another_device),
        ("set_stream_state_is_atomic", set_stream_state_is_atomic),
        ("lost_work_cannot_be_downloaded", lost_work_cannot_be_downloaded),
        ("tensor_buffers_can_be_read_on_the_device", tensor_buffers_can_be_read_on_the_device),
        ("threads_share_a_device", threads_share_a_device),
    ];
    // Without a fused fma, the device of the caller emulates it in integers, and compiling these kernels takes a minute.
    let is_slow = !shared.probe().float_behavior.fma_is_fused && std::env::var_os("LSTM_EXHAUSTIVE").is_none();
    let trials = tests.map(|(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || test(&shared)).with_ignored_flag(is_slow && name == "uses_device_of_caller")
    });
    libtest_mimic::run(&args, trials.into()).exit_code()
}

fn model<B: Backend>(b: &B, hidden: usize) -> Lstm<B> {
    let weights = Weights::init(LstmConfig::new(5, hidden).layers(2), &Default::default(), 1).unwrap();
    Lstm::new(b, weights).unwrap()
}

fn input(steps: usize) -> Array3<f32> {
    Array3::from_shape_fn((2, steps, 5), |(b, t, k)| ((b * 31 + t * 7 + k * 3) % 17) as f32 / 8.0 - 1.0)
}

/// Outputs, final cell states and input gradients of a forward and a backward pass.
fn passes<B: Backend>(b: &B, hidden: usize) -> lstm_wgpu::Result<Vec<f32>> {
    let (model, x) = (model(b, hidden), input(9));
    let pass = model.forward_train(Input::from(&x), Checkpointing::SaveEverything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input_gradient())?;
    Ok(pass.y.iter().chain(&pass.state.c).chain(gradients.x.iter().flatten()).copied().collect())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// One size, because compiling kernels that emulate fma takes seconds. The conformance tests have all sizes, in the mode
/// that is used by default.
fn check_equals_cpu(b: &Wgpu) -> CheckResult {
    ensure(bits(&passes(b, 70)?) == bits(&passes(&Cpu::new(), 70)?), "results are not bit-identical to the CPU's")
}

fn ensure(condition: bool, message: impl ToString) -> CheckResult {
    if condition { Ok(()) } else { Err(message.to_string().into()) }
}

/// Checks that `result` is a device error whose message contains all of `words`.
fn check_rejected<T>(result: Result<T, Error>, words: &[&str]) -> CheckResult {
    match result {
        Ok(_) => Err(format!("expected an error that contains {words:?}, found success").into()),
        Err(error @ Error::Device { .. }) => ensure(
            words.iter().all(|word| error.to_string().contains(word)),
            format!("expected an error that contains {words:?}, found: {error}"),
        ),
        Err(error) => Err(format!("expected a device error, found: {error}").into()),
    }
}

fn arithmetic_matches_probe(b: &Wgpu) -> CheckResult {
    let (mode, difference) = b.probe().attempts.last().ok_or("the probe tried no mode")?;
    match b.arithmetic() {
        Arithmetic::Exact => ensure(mode.fma == Fma::Native && difference.is_none(), b.probe())?,
        Arithmetic::Emulated(reason) => {
            ensure(mode.fma != Fma::Native && difference.is_none(), b.probe())?;
            ensure(reason.contains(&b.adapter().name), reason)?;
        }
        other => return Err(other.to_string().into()),
    }
    if !b.probe().float_behavior.fma_is_fused {
        ensure(matches!(b.arithmetic(), Arithmetic::Emulated(_)), "native fma rounds twice, so it must be emulated")?;
    }
    check_equals_cpu(b)
}

fn selects_adapter_by_name(b: &Wgpu) -> CheckResult {
    let name = &b.adapter().name;
    let all = pollster::block_on(lstm_wgpu::adapters(wgpu::Backends::PRIMARY));
    ensure(all.iter().any(|info| info.name == *name), format!("expected `{name}` among the adapters, found {all:?}"))?;
    let same = Wgpu::builder().adapter_name(name.to_uppercase()).build()?;
    ensure(same.adapter().name == *name, format!("expected adapter `{name}`, found `{}`", same.adapter().name))?;
    check_rejected(Wgpu::builder().adapter_name("abacus").build(), &["`abacus`", name])?;
    check_rejected(Wgpu::builder().backends(wgpu::Backends::empty()).build(), &["found no adapter"])
}

fn every_mode_is_exact_or_rejected(b: &Wgpu) -> CheckResult {
    let mut exact = 0;
    // Not the emulation in integers, of which the kernels take a minute to compile: the device of the caller has it.
    for fma in [Fma::Native, Fma::EmulatedInF64] {
        for no_contraction in [false, true] {
            let mode = Mode { fma, no_contraction };
            match Wgpu::builder().mode(mode).build() {
                Ok(this) => {
                    println!("{mode}: exact");
                    ensure(this.probe().attempts == [(mode, None)], this.probe())?;
                    check_equals_cpu(&this).map_err(|e| format!("{mode}: {}", e.message().unwrap_or_default()))?;
                    exact += 1;
                }
                Err(error) => {
                    println!("{error}");
                    check_rejected(Err::<(), _>(error), &[&b.adapter().name, &mode.to_string()])?;
                }
            }
        }
    }
    let (mode, _) = b.probe().attempts.last().ok_or("the probe tried no mode")?;
    ensure(exact > 0 || mode.fma == Fma::EmulatedInIntegers, "no mode is exact, although the adapter opened")
}

fn allow_inexact_accepts_inexact_mode(b: &Wgpu) -> CheckResult {
    if b.probe().float_behavior.fma_is_fused {
        println!("allow_inexact_accepts_inexact_mode: skipped: {} has a fused fma", b.adapter().name);
        return Ok(());
    }
    let mode = Mode { fma: Fma::Native, no_contraction: false };
    let inexact = Wgpu::builder().mode(mode).allow_inexact(true).build()?;
    ensure(format!("{inexact:?}").ends_with("native fma)"), format!("{inexact:?}"))?;
    match inexact.arithmetic() {
        Arithmetic::Inexact(reason) => ensure(reason.contains("fma fused: no"), reason)?,
        other => return Err(format!("{other:?}").into()),
    }
    let (want, got) = (passes(&Cpu::new(), 70)?, passes(&inexact, 70)?);
    ensure(bits(&want) != bits(&got), "an inexact mode gave bit-exact results")?;
    let max_error = want.iter().zip(&got).map(|(w, g)| (w - g).abs() / (1.0 + w.abs())).fold(0.0, f32::max);
    ensure(max_error < 1e-5, format!("expected a relative error below 1e-5, found {max_error}"))
}

/// Opens a device through wgpu directly, without optional features.
fn plain_device(limits: wgpu::Limits) -> Result<(wgpu::Adapter, wgpu::Device, wgpu::Queue), Failed> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    Ok((adapter, device, queue))
}

fn uses_device_of_caller(_: &Wgpu) -> CheckResult {
    let (adapter, device, queue) = plain_device(wgpu::Limits::default())?;
    let name = adapter.get_info().name;
    let opened = Wgpu::builder().adapter_name("abacus").from_device(&adapter, device.clone(), queue.clone());
    check_rejected(pollster::block_on(opened), &["adapter name", "cannot be set"])?;
    // This device supports neither f64 nor SPIR-V shaders.
    match pollster::block_on(Wgpu::from_device(&adapter, device.clone(), queue)) {
        Ok(this) => {
            ensure(*this.device() == device, "`device` must return the caller's device")?;
            check_equals_cpu(&this)
        }
        Err(error) => check_rejected(Err::<(), _>(error), &[&name, "fma emulated in integers"]),
    }
}

fn rejects_too_low_limits(_: &Wgpu) -> CheckResult {
    let (adapter, device, queue) = plain_device(wgpu::Limits::downlevel_defaults())?;
    check_rejected(
        pollster::block_on(Wgpu::from_device(&adapter, device, queue)),
        &["max_storage_buffers_per_shader_stage", "at least 8 is required"],
    )
}

fn rejects_tensors_larger_than_a_buffer(_: &Wgpu) -> CheckResult {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let small = Wgpu::builder().limits(limits).build()?;
    // This fits, although its size class is larger than the limit.
    small.upload(MatrixShape::new(1, 250_000), &vec![1.0; 250_000])?;
    let len = 1 << 18;
    let x = small.upload(MatrixShape::new(1, len), &vec![1.0; len])?;
    check_rejected(small.upload(MatrixShape::new(1, len + 1), &vec![1.0; len + 1]), &["upload", "262145", "1048576"])?;
    let (a, b) = (
        small.upload(MatrixShape::new(1024, 1), &[1.0; 1024])?,
        small.upload(MatrixShape::new(1, 1024), &[1.0; 1024])?,
    );
    check_rejected(small.gemm((&a).into(), (&b).into(), None), &["gemm", "1048576"])?;
    // The errors have no effect on later work.
    let mut y = vec![0.0; len];
    pollster::block_on(small.download(&small.snap(x)?, &mut y))?;
    ensure(y.iter().all(|&y| y == 1.0), "wrong result after an error")?;
    // Inference runs in chunks if the gates of a whole sequence do not fit into a buffer.
    let x = input(800);
    let want = model(&Cpu::new(), 100).forward(Input::from(&x))?;
    let got = model(&small, 100).forward(Input::from(&x))?;
    ensure(want == got, "inference in chunks is not bit-identical")?;
    // Training keeps the gates of all steps.
    check_rejected(
        model(&small, 100).forward_train(Input::from(&x), Checkpointing::SaveEverything),
        &["forward_train", "1048576"],
    )
}

fn destroyed_device_is_an_error(_: &Wgpu) -> CheckResult {
    let destroyed = Wgpu::new()?;
    let (model, x) = (model(&destroyed, 8), input(3));
    let mut stream = model.stream(2)?;
    let tensor = destroyed.upload(MatrixShape::new(1, 2), &[1.0, 2.0])?;
    destroyed.device().destroy();
    for _ in 0..2 {
        check_rejected(model.forward(Input::from(&x)), &["wgpu"])?;
        check_rejected(model.forward_train(Input::from(&x), Checkpointing::SaveEverything), &["wgpu"])?;
        check_rejected(stream.chunk(x.view()), &["wgpu"])?;
        check_rejected(destroyed.upload(MatrixShape::new(1, 1), &[1.0]), &["upload"])?;
        let mut out = [0.0; 2];
        check_rejected(pollster::block_on(destroyed.download(&tensor, &mut out)), &["download"])?;
    }
    check_equals_cpu(&Wgpu::new()?)
}

fn rejects_tensors_of_another_device(b: &Wgpu) -> CheckResult {
    let other = Wgpu::new()?;
    let own = b.upload(MatrixShape::new(2, 2), &[1.0; 4])?;
    let foreign = other.upload(MatrixShape::new(2, 2), &[1.0; 4])?;
    check_rejected(b.gemm((&own).into(), (&foreign).into(), None), &["gemm"])?;
    check_rejected(b.sigmoid(foreign.clone()), &["sigmoid"])?;
    let weights = Weights::init(LstmConfig::new(5, 8), &Default::default(), 1)?;
    let mut stream = other.stream(&[other.load(&weights.layers()[0])?], 1)?;
    check_rejected(pollster::block_on(b.step(&mut stream, &[0.0; 5], &mut [0.0; 8])), &["step"])?;
    let mut out = [0.0; 4];
    check_rejected(pollster::block_on(b.download(&foreign, &mut out)), &["download"])?;
    pollster::block_on(b.download(&own, &mut out))?;
    ensure(out == [1.0; 4], "wrong result after an error")
}

fn set_stream_state_is_atomic(b: &Wgpu) -> CheckResult {
    let other = Wgpu::new()?;
    let weights = Weights::init(LstmConfig::new(5, 8).layers(2), &Default::default(), 1)?;
    let layers = weights.layers().iter().map(|layer| b.load(layer)).collect::<Result<Vec<_>, _>>()?;
    let mut stream = b.stream(&layers, 1)?;
    let state = |of: &Wgpu| -> Result<State<Tensor>, Error> {
        Ok(State { h: of.upload(MatrixShape::new(1, 8), &[0.5; 8])?, c: of.upload(MatrixShape::new(1, 8), &[0.5; 8])? })
    };
    let values = |stream: &WgpuStream| -> Result<Vec<f32>, Error> {
        let mut all = Vec::new();
        for State { h, c } in b.stream_state(stream, 0..1)? {
            for tensor in [h, c] {
                let mut out = [0.0; 8];
                pollster::block_on(b.download(&tensor, &mut out))?;
                all.extend(out);
            }
        }
        Ok(all)
    };
    check_rejected(b.set_stream_state(&mut stream, 0, &[state(b)?, state(&other)?]), &["set_stream_state"])?;
    ensure(values(&stream)? == [0.0; 32], "a failed call changed the state")?;
    b.set_stream_state(&mut stream, 0, &[state(b)?, state(b)?])?;
    ensure(values(&stream)? == [0.5; 32], "the state is not the one that was set")
}

/// If the device rejects a submission, the work of other calls in it is lost too.
fn lost_work_cannot_be_downloaded(_: &Wgpu) -> CheckResult {
    let own = Wgpu::new()?;
    let y = own.tanh(own.upload(MatrixShape::new(1, 2), &[3.0; 2])?)?;
    let v = own.upload(MatrixShape::new(1, 2), &[1.0; 2])?;
    let z = own.snap(v.clone())?;
    v.buffer().destroy();
    let mut out = [7.0; 2];
    check_rejected(pollster::block_on(own.download(&z, &mut out)), &["download"])?;
    check_rejected(pollster::block_on(own.download(&y, &mut out)), &["download", "an earlier error lost work"])?;
    ensure(out == [7.0; 2], "a failed download wrote to its output")
}

fn tensor_buffers_can_be_read_on_the_device(b: &Wgpu) -> CheckResult {
    let tensor = b.snap(b.upload(MatrixShape::new(1, 3), &[1.0, -2.0, 0.5])?)?;
    let copy = b.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 12,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    b.submit()?;
    let mut encoder = b.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(tensor.buffer(), 0, &copy, 0, 12);
    b.queue().submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    b.device().poll(wgpu::PollType::wait_indefinitely())?;
    let view = copy.slice(..).get_mapped_range()?;
    let got: Vec<f32> = view.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    ensure(got == [1.0, -2.0, 0.5], format!("{got:?}"))
}

/// Runs streams and training in parallel, with buffers from one pool.
fn threads_share_a_device(b: &Wgpu) -> CheckResult {
    let x = input(60);
    let stream = |hidden| -> lstm_wgpu::Result<Vec<f32>> {
        let model = model(b, hidden);
        let mut stream = model.stream(2)?;
        let mut y = Vec::new();
        for step in x.axis_chunks_iter(Axis(1), 1) {
            y.extend(stream.chunk(step)?);
        }
        Ok(y)
    };
    let work = |k: usize| if k.is_multiple_of(2) { stream(6 + k) } else { passes(b, 6 + k) };
    let sequential = (0..4).map(work).collect::<lstm_wgpu::Result<Vec<_>>>()?;
    let parallel = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|k| scope.spawn(move || (0..8).map(|_| work(k)).collect::<Vec<_>>())).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for (k, (expected, runs)) in sequential.iter().zip(parallel).enumerate() {
        for run in runs.map_err(|_| "a thread panicked")? {
            ensure(bits(&run?) == bits(expected), format!("thread {k}: not bit-identical to a sequential run"))?;
        }
    }
    Ok(())
}
