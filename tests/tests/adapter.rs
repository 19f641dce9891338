//! What only this backend has: adapters, ways to compute, limits, devices that other code opened or destroyed, threads that
//! share one. Reports it where there is no adapter; with `LSTM_REQUIRE` set that is a failure.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use lstm_cpu::Cpu;
use lstm_wgpu::{
    Arithmetic, Backend, Checkpointing, Error, Fma, Input, Lstm, LstmConfig, MatrixShape, Mode, Ops, OutputGradients,
    State, Tensor, Weights, Wgpu, WgpuStream,
    ndarray::{Array3, Axis},
    wgpu,
};

type Checked = Result<(), Failed>;
type Test = fn(&Wgpu) -> Checked;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let shared = match Wgpu::blocking() {
        Ok(wgpu) => wgpu,
        Err(error) => {
            println!("adapter: not run: {error}");
            return if std::env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    println!("{}: {}", shared.adapter().name, shared.probe());
    let tests: [(&str, Test); 13] = [
        ("the_arithmetic_is_what_the_probe_found", the_arithmetic_is_what_the_probe_found),
        ("adapters_have_names", adapters_have_names),
        ("every_way_to_compute_is_exact_or_refused", every_way_to_compute_is_exact_or_refused),
        ("inexact_adapters_are_taken_if_allowed", inexact_adapters_are_taken_if_allowed),
        ("a_device_of_the_program_s_own", a_device_of_the_program_s_own),
        ("too_low_limits_are_named", too_low_limits_are_named),
        ("what_does_not_fit_is_refused", what_does_not_fit_is_refused),
        ("a_destroyed_device_is_an_error", a_destroyed_device_is_an_error),
        ("tensors_of_another_device_are_refused", tensors_of_another_device_are_refused),
        ("a_state_is_set_whole_or_not_at_all", a_state_is_set_whole_or_not_at_all),
        ("lost_work_is_not_read", lost_work_is_not_read),
        ("results_stay_on_the_device", results_stay_on_the_device),
        ("threads_share_a_device", threads_share_a_device),
    ];
    let trials = tests.map(|(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || test(&shared))
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

/// A pass forward and back.
fn passes<B: Backend>(b: &B, hidden: usize) -> lstm_wgpu::Result<Vec<f32>> {
    let (model, x) = (model(b, hidden), input(9));
    let pass = model.forward_train(Input::from(&x), Checkpointing::Everything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input())?;
    Ok(pass.y.iter().chain(&pass.state.c).chain(gradients.x.iter().flatten()).copied().collect())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn equals_the_cpu(b: &Wgpu) -> Checked {
    for hidden in [3, 70, 150] {
        let same = bits(&passes(b, hidden)?) == bits(&passes(&Cpu::new(), hidden)?);
        ensure(same, format!("hidden size {hidden}: other bits than the CPU's"))?;
    }
    Ok(())
}

fn ensure(holds: bool, what: impl ToString) -> Checked {
    if holds { Ok(()) } else { Err(what.to_string().into()) }
}

/// Fails unless it is a device error that says all of `words`.
fn refused<T>(result: Result<T, Error>, words: &[&str]) -> Checked {
    match result {
        Ok(_) => Err(format!("accepted, where an error with {words:?} was expected").into()),
        Err(error @ Error::Device { .. }) => {
            ensure(words.iter().all(|word| error.to_string().contains(word)), format!("{error}, without {words:?}"))
        }
        Err(error) => Err(format!("another kind of error: {error}").into()),
    }
}

fn the_arithmetic_is_what_the_probe_found(b: &Wgpu) -> Checked {
    let found = b.probe().tried.last().ok_or("nothing was tried")?;
    match b.arithmetic() {
        Arithmetic::Exact => ensure(found.0.fma == Fma::Native && found.1.is_none(), b.probe())?,
        Arithmetic::Emulated(why) => {
            ensure(found.0.fma != Fma::Native && found.1.is_none(), b.probe())?;
            ensure(why.contains(&b.adapter().name), why)?;
        }
        Arithmetic::Inexact(why) => return Err(why.into()),
    }
    if !b.probe().facts.fused {
        ensure(matches!(b.arithmetic(), Arithmetic::Emulated(_)), "an fma that rounds twice can't be used")?;
    }
    equals_the_cpu(b)
}

fn adapters_have_names(b: &Wgpu) -> Checked {
    let name = &b.adapter().name;
    let all = pollster::block_on(lstm_wgpu::adapters(wgpu::Backends::PRIMARY));
    ensure(all.iter().any(|info| info.name == *name), format!("{name} is not among {all:?}"))?;
    let same = Wgpu::builder().adapter(name.to_uppercase()).blocking()?;
    ensure(same.adapter().name == *name, format!("{} instead of {name}", same.adapter().name))?;
    refused(Wgpu::builder().adapter("abacus").blocking(), &["`abacus`", name])?;
    refused(Wgpu::builder().backends(wgpu::Backends::empty()).blocking(), &["no adapter"])
}

fn every_way_to_compute_is_exact_or_refused(b: &Wgpu) -> Checked {
    let mut exact = 0;
    for fma in [Fma::Native, Fma::F64, Fma::Integer] {
        for no_contraction in [false, true] {
            let mode = Mode { fma, no_contraction };
            match Wgpu::builder().mode(mode).blocking() {
                Ok(this) => {
                    println!("{mode}: exact");
                    ensure(this.probe().tried == [(mode, None)], this.probe())?;
                    equals_the_cpu(&this).map_err(|e| format!("{mode}: {}", e.message().unwrap_or_default()))?;
                    exact += 1;
                }
                Err(error) => {
                    println!("{error}");
                    refused(Err::<(), _>(error), &[&b.adapter().name, &mode.to_string()])?;
                }
            }
        }
    }
    ensure(exact > 0, "no way is exact, yet the adapter opened")
}

fn inexact_adapters_are_taken_if_allowed(b: &Wgpu) -> Checked {
    if b.probe().facts.fused {
        println!("inexact_adapters_are_taken_if_allowed: not run: {} has a fused fma", b.adapter().name);
        return Ok(());
    }
    let mode = Mode { fma: Fma::Native, no_contraction: false };
    let inexact = Wgpu::builder().mode(mode).allow_inexact(true).blocking()?;
    ensure(format!("{inexact:?}").ends_with("native fma)"), format!("{inexact:?}"))?;
    match inexact.arithmetic() {
        Arithmetic::Inexact(why) => ensure(why.contains("fma fused: no"), why)?,
        other => return Err(format!("{other:?}").into()),
    }
    let (want, got) = (passes(&Cpu::new(), 70)?, passes(&inexact, 70)?);
    ensure(bits(&want) != bits(&got), "equal: then nothing was inexact")?;
    let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs() / (1.0 + w.abs())).fold(0.0, f32::max);
    ensure(worst < 1e-5, format!("off by {worst}"))
}

/// Opens a device the way that a program does which knows nothing of this crate.
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

fn a_device_of_the_program_s_own(_: &Wgpu) -> Checked {
    let (adapter, device, queue) = plain_device(wgpu::Limits::default())?;
    let name = adapter.get_info().name;
    let choosing = Wgpu::builder().adapter("abacus").from_device(&adapter, device.clone(), queue.clone());
    refused(pollster::block_on(choosing), &["can't be chosen"])?;
    // It has no binary64, and SPIR-V can't be handed over.
    match pollster::block_on(Wgpu::from_device(&adapter, device.clone(), queue)) {
        Ok(this) => {
            ensure(*this.device() == device, "another device")?;
            equals_the_cpu(&this)
        }
        Err(error) => refused(Err::<(), _>(error), &[&name, "fma in integers"]),
    }
}

fn too_low_limits_are_named(_: &Wgpu) -> Checked {
    let (adapter, device, queue) = plain_device(wgpu::Limits::downlevel_defaults())?;
    refused(
        pollster::block_on(Wgpu::from_device(&adapter, device, queue)),
        &["max_storage_buffers_per_shader_stage", "8 are needed"],
    )
}

fn what_does_not_fit_is_refused(_: &Wgpu) -> Checked {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let small = Wgpu::builder().limits(limits).blocking()?;
    // Nearly all of it, which is more than its class of sizes.
    small.upload(MatrixShape::new(1, 250_000), &vec![1.0; 250_000])?;
    let len = 1 << 18;
    let x = small.upload(MatrixShape::new(1, len), &vec![1.0; len])?;
    refused(small.upload(MatrixShape::new(1, len + 1), &vec![1.0; len + 1]), &["upload", "262145", "1048576"])?;
    let (a, b) = (
        small.upload(MatrixShape::new(1024, 1), &[1.0; 1024])?,
        small.upload(MatrixShape::new(1, 1024), &[1.0; 1024])?,
    );
    refused(small.gemm((&a).into(), (&b).into(), None), &["gemm", "1048576"])?;
    // And nothing is broken by it.
    let mut y = vec![0.0; len];
    pollster::block_on(small.download(&small.snap(x)?, &mut y))?;
    ensure(y.iter().all(|&y| y == 1.0), "another result after an error")?;
    // Inference goes by pieces where a whole sequence's gates do not fit.
    let x = input(800);
    let want = model(&Cpu::new(), 100).forward(Input::from(&x))?;
    let got = model(&small, 100).forward(Input::from(&x))?;
    ensure(want == got, "a sequence in pieces has other bits")?;
    // Training keeps them all.
    refused(model(&small, 100).forward_train(Input::from(&x), Checkpointing::Everything), &["forward_train", "1048576"])
}

fn a_destroyed_device_is_an_error(_: &Wgpu) -> Checked {
    let doomed = Wgpu::blocking()?;
    let (model, x) = (model(&doomed, 8), input(3));
    let mut stream = model.stream(2)?;
    let tensor = doomed.upload(MatrixShape::new(1, 2), &[1.0, 2.0])?;
    doomed.device().destroy();
    for _ in 0..2 {
        refused(model.forward(Input::from(&x)), &["wgpu"])?;
        refused(model.forward_train(Input::from(&x), Checkpointing::Everything), &["wgpu"])?;
        refused(stream.chunk(x.view()), &["wgpu"])?;
        refused(doomed.upload(MatrixShape::new(1, 1), &[1.0]), &["upload"])?;
        let mut out = [0.0; 2];
        refused(pollster::block_on(doomed.download(&tensor, &mut out)), &["download"])?;
    }
    equals_the_cpu(&Wgpu::blocking()?)
}

fn tensors_of_another_device_are_refused(b: &Wgpu) -> Checked {
    let other = Wgpu::blocking()?;
    let mine = b.upload(MatrixShape::new(2, 2), &[1.0; 4])?;
    let theirs = other.upload(MatrixShape::new(2, 2), &[1.0; 4])?;
    refused(b.gemm((&mine).into(), (&theirs).into(), None), &["gemm"])?;
    refused(b.sigmoid(theirs.clone()), &["sigmoid"])?;
    let weights = Weights::init(LstmConfig::new(5, 8), &Default::default(), 1)?;
    let mut stream = other.stream(&[other.load(&weights.layers()[0])?], 1)?;
    refused(pollster::block_on(b.step(&mut stream, &[0.0; 5], &mut [0.0; 8])), &["step"])?;
    let mut out = [0.0; 4];
    refused(pollster::block_on(b.download(&theirs, &mut out)), &["download"])?;
    pollster::block_on(b.download(&mine, &mut out))?;
    ensure(out == [1.0; 4], "another result after an error")
}

fn a_state_is_set_whole_or_not_at_all(b: &Wgpu) -> Checked {
    let other = Wgpu::blocking()?;
    let weights = Weights::init(LstmConfig::new(5, 8).layers(2), &Default::default(), 1)?;
    let layers = weights.layers().iter().map(|layer| b.load(layer)).collect::<Result<Vec<_>, _>>()?;
    let mut stream = b.stream(&layers, 1)?;
    let state = |of: &Wgpu| -> Result<State<Tensor>, Error> {
        Ok(State { h: of.upload(MatrixShape::new(1, 8), &[0.5; 8])?, c: of.upload(MatrixShape::new(1, 8), &[0.5; 8])? })
    };
    let values = |stream: &WgpuStream| -> Result<Vec<f32>, Error> {
        let mut all = Vec::new();
        for State { h, c } in b.stream_state(stream)? {
            for tensor in [h, c] {
                let mut out = [0.0; 8];
                pollster::block_on(b.download(&tensor, &mut out))?;
                all.extend(out);
            }
        }
        Ok(all)
    };
    refused(b.set_stream_state(&mut stream, &[state(b)?, state(&other)?]), &["set_stream_state"])?;
    ensure(values(&stream)? == [0.0; 32], "half a state")?;
    b.set_stream_state(&mut stream, &[state(b)?, state(b)?])?;
    ensure(values(&stream)? == [0.5; 32], "another state than the one that was set")
}

/// A submission that the device refuses takes with it what other calls recorded.
fn lost_work_is_not_read(_: &Wgpu) -> Checked {
    let mine = Wgpu::blocking()?;
    let y = mine.tanh(mine.upload(MatrixShape::new(1, 2), &[3.0; 2])?)?;
    let v = mine.upload(MatrixShape::new(1, 2), &[1.0; 2])?;
    let z = mine.snap(v.clone())?;
    v.buffer().destroy();
    let mut out = [7.0; 2];
    refused(pollster::block_on(mine.download(&z, &mut out)), &["download"])?;
    refused(pollster::block_on(mine.download(&y, &mut out)), &["download", "earlier work was lost"])?;
    ensure(out == [7.0; 2], "an error wrote")
}

fn results_stay_on_the_device(b: &Wgpu) -> Checked {
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

/// Streams and training beside each other, all on memory from one pool.
fn threads_share_a_device(b: &Wgpu) -> Checked {
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
    let alone = (0..4).map(work).collect::<lstm_wgpu::Result<Vec<_>>>()?;
    let together = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|k| scope.spawn(move || (0..8).map(|_| work(k)).collect::<Vec<_>>())).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for (k, (alone, runs)) in alone.iter().zip(together).enumerate() {
        for run in runs.map_err(|_| "a thread panicked")? {
            ensure(bits(&run?) == bits(alone), format!("thread {k}: other bits than alone"))?;
        }
    }
    Ok(())
}
