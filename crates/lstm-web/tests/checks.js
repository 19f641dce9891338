// The checks that run in the browser, in a page or in a Worker: `run` with the name of a module returns their results.

import { LstmError, Model, Runtime, compile, convert, supportedModule } from "./lstm-web/lstm-web.js";
import { trainForecast } from "./forecast.js";

const bytesOf = async (name) => new Uint8Array(await (await fetch(`data/${name}`)).arrayBuffer());
const jsonOf = async (name) => (await fetch(`data/${name}`)).json();

/** The shortest time of `run`, in milliseconds: the machine may be busy with other things. */
function fastest(run, times) {
  let best = Infinity;
  for (let k = 0; k < times; k++) {
    const start = performance.now();
    run();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

/** Runs all checks. Each result has a name, whether it is identical, and a detail. */
export async function run(module, { audio = true } = {}) {
  const runtime = await Runtime.load({ module });
  const expected = await jsonOf("expected.json");
  const results = [];
  const check = async (name, body) => {
    try {
      results.push({ name, identical: true, detail: (await body()) ?? "" });
    } catch (error) {
      results.push({ name, identical: false, detail: `${error.message ?? error}\n${error.stack ?? ""}` });
    }
  };
  const same = (what, got, want) => {
    if (got !== want) throw new Error(`${what}: expected ${want}, got ${got}`);
  };

  for (const test of expected.cases) {
    await check(`case ${test.name}`, async () => {
      const model = runtime.open(await bytesOf(`${test.name}.safetensors`));
      const { batch, steps } = test;
      const options = { batch, steps, lengths: test.lengths ?? undefined, states: test.states ?? undefined };
      const { y, states } = model.forward(test.x, options);
      same("y", runtime.digest(y), test.y);
      same("h", runtime.digest(states.subarray(0, test.hLength)), test.h);
      same("c", runtime.digest(states.subarray(test.hLength)), test.c);
      if (test.streams && test.states === null) {
        streamMatches(model, test.x, y, batch, steps);
      } else if (test.streams) {
        // A stream starts at zero, so that it is compared with such a forward pass.
        streamMatches(model, test.x, model.forward(test.x, { batch, steps }).y, batch, steps);
      }
      model.free();
    });
  }

  function streamMatches(model, x, y, batch, steps) {
    const stream = model.stream({ batch, block: 2 });
    const { inputSize, outputSize } = model;
    for (let t = 0; t < steps; t++) {
      for (let b = 0; b < batch; b++) {
        const at = (b * steps + t) * inputSize;
        stream.input.set(x.slice(at, at + inputSize), b * inputSize);
      }
      stream.step();
      for (let k = 0; k < batch * outputSize; k++) {
        const want = y[(Math.floor(k / outputSize) * steps + t) * outputSize + (k % outputSize)];
        if (!Object.is(stream.output[k], want)) throw new Error(`stream, step ${t}, output ${k}: expected ${want}, got ${stream.output[k]}`);
      }
    }
    stream.free();
  }

  for (const test of expected.models) {
    await check(`file ${test.file}`, async () => {
      const bytes = await bytesOf(test.file);
      let got;
      try {
        const model = runtime.open(runtime.needsConversion(bytes) ? await convert(bytes) : bytes);
        const { inputSize, readsTokens, numTokens } = model.info;
        const forward = (steps) => {
          const length = 2 * steps * (readsTokens ? 1 : inputSize);
          const x = Array.from({ length }, (_, k) => (readsTokens ? (k * 31) % numTokens : ((k * 31) % 101) / 64 - 0.75));
          return runtime.digest(model.forward(x, { batch: 2 }).y);
        };
        try {
          got = forward(12);
        } catch (error) {
          const fixed = /expected (\d+), got 12/.exec(error.message);
          if (!fixed) throw error;
          got = forward(Number(fixed[1]));
        }
        if (!readsTokens) same("the saved model", runtime.open(model.save()).digest(), model.digest());
        model.free();
      } catch (error) {
        if (!(error instanceof LstmError)) throw error;
        got = error.message;
      }
      if (test.file.endsWith(".pt")) {
        if (!/can't be read in a browser/.test(got)) throw new Error(`expected advice, got ${got}`);
        return;
      }
      same("result", got, test.digest ?? test.error);
    });
  }

  await check("training of 200 steps", async () => {
    const { steps, batch, batches, learningRate, losses, parameters } = expected.training;
    const model = runtime.open(await bytesOf("training.safetensors"));
    const before = model.digest();
    const trainer = model.trainer({ optimizer: "adam", learningRate });
    const bits = new Float64Array(steps);
    for (let k = 0; k < steps; k++) bits[k] = trainer.step(batches[k % 5].x, batches[k % 5].target, { batch });
    same("losses", runtime.digest(new Float32Array(bits.buffer)), losses);
    same("the model that was trained", model.digest(), before);
    const file = trainer.model().save();
    const view = new DataView(file.buffer);
    const start = 8 + Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
    for (const [name, want] of Object.entries(parameters)) {
      const [from, to] = header[name].data_offsets;
      same(name, runtime.digest(new Float32Array(file.slice(start + from, start + to).buffer)), want);
    }
    let message;
    try {
      trainer.step(new Float32Array(batches[0].x.length).fill(NaN), batches[0].target, { batch });
    } catch (error) {
      message = error.message;
    }
    if (!/is NaN/.test(message)) throw new Error(`a NaN in the input: expected an error that names what is NaN, got ${message}`);
    return `${steps} losses, ${Object.keys(parameters).length} tensors`;
  });

  await check("forecast", async () => {
    const data = await jsonOf("forecast.json");
    const start = performance.now();
    const { digest, loss } = trainForecast(runtime, await bytesOf("forecast.safetensors"), data);
    same("digest", digest, data.digest);
    same("last loss", loss, data.loss);
    return `${data.steps} steps in ${((performance.now() - start) / 1000).toFixed(2)} s, digest ${digest}`;
  });

  await check("memory of 1000000 steps", async () => {
    const model = runtime.open(await bytesOf("speed-step.safetensors"));
    const stream = model.stream();
    stream.step();
    const { input, output } = stream;
    const before = runtime.memoryBytes;
    const start = performance.now();
    for (let k = 0; k < 1e6; k++) {
      input[0] = (k % 101) / 64 - 0.75;
      stream.step();
    }
    const time = performance.now() - start;
    same("memory", runtime.memoryBytes, before);
    if (!(output.length === model.outputSize && output.every(Number.isFinite))) throw new Error(`the output is ${output}`);
    // Models and streams that are freed leave nothing behind.
    const bytes = await bytesOf("amp.safetensors");
    const cycle = () => {
      const other = runtime.open(bytes);
      other.stream().free();
      other.forward([1, 2, 3]);
      other.free();
    };
    for (let k = 0; k < 20; k++) cycle();
    const after = runtime.memoryBytes;
    for (let k = 0; k < 300; k++) cycle();
    same("memory after freeing", runtime.memoryBytes, after);
    return `${before} bytes, ${time.toFixed(0)} ns a step from JavaScript`;
  });

  await check("errors of arguments", async () => {
    const model = runtime.open(await bytesOf("amp.safetensors"));
    const fails = (body, pattern) => {
      try {
        body();
      } catch (error) {
        if (error instanceof LstmError && pattern.test(error.message)) return;
        throw new Error(`expected an LstmError like ${pattern}, got ${error}`);
      }
      throw new Error(`expected an error like ${pattern}`);
    };
    fails(() => model.forward([1, 2, 3], { batch: 2 }), /steps: expected a whole number/);
    fails(() => model.forward([1, 2], { steps: 3 }), /x: expected 3 values, got 2/);
    fails(() => model.forward([1], { states: [1] }), /states: expected 80 values, got 1/);
    fails(() => model.forward([1, 2], { lengths: [3] }), /forward: lengths|length/);
    fails(() => model.stream({ block: 0 }), /block: expected a whole number of at least 1, got 0/);
    fails(() => model.stream({ block: 2 }).run(3), /at most 2/);
    fails(() => model.trainer({ optimizer: "magic" }), /expected adam, adamw or sgd, got `magic`/);
    fails(() => model.trainer({ rate: 1 }), /unknown option rate/);
    fails(() => runtime.open("text"), /bytes: expected/);
    const keras = await bytesOf("keras-last.keras");
    fails(() => runtime.open(keras), /a file of the format keras; pass it to convert/);
    model.free();
    fails(() => model.forward([1]), /the model was freed/);
  });

  await check("plain code", async () => {
    const model = runtime.open(await bytesOf("speed-forward.safetensors"), { plain: true });
    same("instructions", model.info.instructions, "plain");
    same("digest", runtime.digest(model.forward(wideInput()).y), expected.speed.digest);
    const fast = runtime.open(await bytesOf("speed-forward.safetensors"));
    const wanted = module === "simd128" ? "simd128" : "relaxed-simd";
    same("instructions", fast.info.instructions, wanted);
    same("digest", runtime.digest(fast.forward(wideInput()).y), expected.speed.digest);
  });

  if (audio) {
    await check("amp in an OfflineAudioContext", async () => {
      const bytes = await bytesOf("amp.safetensors");
      const x = new Float32Array((await bytesOf("amp.f32")).buffer);
      const { rate, digest } = expected.amp;
      let load = Infinity;
      // The best of three, as the machine may be busy with other things.
      for (let k = 0; k < 3; k++) {
        const context = new OfflineAudioContext(1, x.length, rate);
        await context.audioWorklet.addModule("amp-worklet.js");
        const processorOptions = { module: await compile({ module }), bytes };
        const node = new AudioWorkletNode(context, "lstm-amp", { processorOptions });
        let message;
        node.port.onmessage = ({ data }) => (message ??= data.error);
        const source = context.createBufferSource();
        source.buffer = context.createBuffer(1, x.length, rate);
        source.buffer.copyToChannel(x, 0);
        source.connect(node).connect(context.destination);
        source.start();
        const start = performance.now();
        const rendered = await context.startRendering();
        load = Math.min(load, (performance.now() - start) / ((1000 * x.length) / rate));
        if (message) throw new Error(message);
        same("digest", runtime.digest(rendered.getChannelData(0)), digest);
      }
      // The worst block, of one stream here: there is no precise clock in an AudioWorklet.
      const stream = runtime.open(bytes).stream({ block: 128 });
      let worst = 0;
      for (let at = 0; at < x.length; at += 128) {
        const before = performance.now();
        stream.input.set(x.subarray(at, at + 128));
        stream.run();
        worst = Math.max(worst, performance.now() - before);
      }
      if (module === "relaxed" && load > 0.25) throw new Error(`the mean load is ${(100 * load).toFixed(1)} %, expected at most 25 %`);
      return `mean load ${(100 * load).toFixed(1)} %, worst block ${worst.toFixed(2)} ms of the ${((1000 * 128) / rate).toFixed(2)} ms that it lasts`;
    });
    await check("default module", async () => {
      same("the fastest module", supportedModule(), "relaxed");
      const model = await Model.open(await bytesOf("amp.safetensors"));
      same("instructions", model.info.instructions, "relaxed-simd");
      return model.info.instructions;
    });
  }
  return results;
}

const wideInput = () => Float32Array.from({ length: 6400 }, (_, k) => ((k * 31) % 101) / 64 - 0.75);

/** Time steps whose time is measured together. */
const BLOCK = 1000;

/** Times of a module's kernels and of plain code: a step of hidden size 24, and 100 steps of 64 to 128. */
export async function speed(module) {
  const runtime = await Runtime.load({ module });
  const times = {};
  for (const plain of [true, false]) {
    const stream = runtime.open(await bytesOf("speed-step.safetensors"), { plain }).stream({ block: BLOCK });
    stream.input.fill(0.25);
    const model = runtime.open(await bytesOf("speed-forward.safetensors"), { plain });
    // Until the engine has compiled with optimization.
    const until = performance.now() + 400;
    while (performance.now() < until) {
      stream.run();
      model.forward(wideInput());
    }
    const input = wideInput();
    times[plain ? "plain" : model.info.instructions] = {
      stepNs: (fastest(() => stream.run(), 60) / BLOCK) * 1e6,
      forwardMs: fastest(() => model.forward(input), 60),
    };
  }
  return times;
}
