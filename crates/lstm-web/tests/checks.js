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

/** A safetensors file with one more text in its metadata. */
function withMetadata(file, key, value) {
  const start = 8 + Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  header.__metadata__ = { ...header.__metadata__, [key]: value };
  // Of the file as it was.
  delete header.__metadata__["lstm.checksum"];
  const text = new TextEncoder().encode(JSON.stringify(header));
  // The tensors stay aligned.
  const padded = 8 * Math.ceil(text.length / 8);
  const made = new Uint8Array(8 + padded + file.length - start).fill(32, 8, 8 + padded);
  new DataView(made.buffer).setBigUint64(0, BigInt(padded), true);
  made.set(text, 8);
  made.set(file.subarray(start), 8 + padded);
  return made;
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
    // Two steps at a time, and one at the end if their number is odd.
    for (let first = 0; first < steps; first += 2) {
      const count = Math.min(2, steps - first);
      for (let t = 0; t < count; t++) {
        for (let b = 0; b < batch; b++) {
          const at = (b * steps + first + t) * inputSize;
          stream.input.set(x.slice(at, at + inputSize), (t * batch + b) * inputSize);
        }
      }
      stream.run(count);
      for (let t = 0; t < count; t++) {
        for (let k = 0; k < batch * outputSize; k++) {
          const want = y[(Math.floor(k / outputSize) * steps + first + t) * outputSize + (k % outputSize)];
          const got = stream.output[t * batch * outputSize + k];
          if (!Object.is(got, want)) throw new Error(`stream, step ${first + t}, output ${k}: expected ${want}, got ${got}`);
        }
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

  const isExpected = (error, pattern) => {
    if (!(error instanceof LstmError && pattern.test(error.message))) throw new Error(`expected an LstmError like ${pattern}, got ${error}`);
  };
  const fails = (body, pattern) => {
    try {
      body();
    } catch (error) {
      return isExpected(error, pattern);
    }
    throw new Error(`expected an error like ${pattern}`);
  };

  const { x: wave, batch: waves, steps: waveSteps, digests } = expected.quantized;
  for (const [precision, digest] of Object.entries(digests)) {
    await check(`quantized: ${precision}`, async () => {
      const bytes = await bytesOf("quantized.safetensors");
      const model = runtime.open(bytes, { precision });
      const { y } = model.forward(wave, { batch: waves });
      same("y", runtime.digest(y), digest);
      streamMatches(model, wave, y, waves, waveSteps);
      const plain = runtime.open(bytes, { precision, plain: true });
      same("y of plain code", runtime.digest(plain.forward(wave, { batch: waves }).y), digest);
      const saved = runtime.open(model.save());
      same("y of the saved model", runtime.digest(saved.forward(wave, { batch: waves }).y), digest);
    });
  }

  await check("a stream of tokens", async () => {
    // The model returns the last step, so that a stream gives the result of each beginning.
    const model = runtime.open(await convert(await bytesOf("keras-embedding.keras")));
    same("returns the last step", model.info.returnsLastStep, true);
    const tokens = Array.from({ length: 8 }, (_, k) => (k * 31) % model.info.numTokens);
    const stream = model.stream();
    tokens.forEach((token, t) => {
      stream.input[0] = token;
      stream.step();
      same(`step ${t}`, runtime.digest(stream.output), runtime.digest(model.forward(tokens.slice(0, t + 1)).y));
    });
    stream.input[0] = -1;
    fails(() => stream.step(), /tokens\[0\].*-1/);
  });

  await check("NaN in the input", async () => {
    const model = runtime.open(await bytesOf("quantized.safetensors"));
    const want = model.forward(wave, { batch: waves }).y;
    // In the third step of the first sequence.
    const x = [...wave];
    x[2 * model.inputSize] = NaN;
    const { y } = model.forward(x, { batch: waves });
    y.forEach((value, k) => {
      const isAfter = k >= 2 * model.outputSize && k < waveSteps * model.outputSize;
      if (!Object.is(value, isAfter ? NaN : want[k])) throw new Error(`output ${k}: expected ${isAfter ? NaN : want[k]}, got ${value}`);
    });
  });

  await check("sequences without steps", async () => {
    const model = runtime.open(await convert(await bytesOf("keras-last.keras")));
    const { outputSize } = model;
    const digest = model.digest();
    for (const batch of [1, 4, 1000]) {
      const { y, shape } = model.forward([], { batch, steps: 0 });
      same("shape", shape.join(), [batch, 1, outputSize].join());
      same("length of y", y.length, batch * outputSize);
    }
    same("steps that follow from x", model.forward([]).y.length, outputSize);
    // The module checks the size of the output too.
    const { exports } = runtime;
    const [x, y, states] = [8, 8, 65536].map((size) => exports.allocate(size));
    same("a wrong size", exports.model_forward(model._p, x, 1, 0, 0, 0, y, 0, states), 0);
    same("its error", runtime._text().replace(/\d+/g, "N"), "forward: y: expected space for N values, got N");
    const every = runtime.open(await bytesOf("amp.safetensors"));
    same("shape of all steps", every.forward([]).shape.join(), "1,0,1");
    same("the digest of the model", model.digest(), digest);
  });

  await check("a fixed number of time steps", async () => {
    const bytes = withMetadata(await bytesOf("forecast.safetensors"), "lstm.steps", "3");
    const x = [1, 2, 3, 4, 5, 6];
    const checkSteps = (model) => {
      same("steps", model.info.steps, 3);
      same("metadata", Object.keys(model.info.metadata).includes("lstm.steps"), false);
      same("shape", model.forward(x).shape.join(), "1,3,1");
      fails(() => model.forward([1, 2]), /expected 3, got 1/);
      fails(() => model.stream(), /for 3 time steps; run it with `forward`/);
    };
    const model = runtime.open(bytes);
    checkSteps(model);
    const trainer = model.trainer();
    fails(() => trainer.step([1, 2], [1]), /expected 3, got 1/);
    trainer.step(x, [1, 2, 3]);
    checkSteps(trainer.model());
    checkSteps(runtime.open(model.save()));
    checkSteps(runtime.open(structuredClone(trainer.model().save())));
    fails(() => runtime.open(withMetadata(bytes, "lstm.steps", "0")), /lstm.steps.*expected a number of time steps of at least 1/);
    const converted = runtime.open(structuredClone(await convert(await bytesOf("keras-last.keras"))));
    same("format", converted.info.convertedFrom, "keras");
  });

  await check("views as arguments", async () => {
    const other = await Runtime.load({ module });
    const model = other.open(await bytesOf("amp.safetensors"));
    const stream = model.stream({ block: 1 << 20 });
    stream.input.fill(0.25);
    const { input } = stream;
    const before = other.memoryBytes;
    // The copies of the view make the memory grow.
    const want = runtime.digest(new Float32Array(1 << 20).fill(0.25));
    let streams = [];
    for (let k = 0; k < 4; k++) {
      same("digest", other.digest(stream.input), want);
      streams.push(model.stream({ block: 1 << 18 }));
    }
    if (!(other.memoryBytes > before)) throw new Error("expected a memory that has grown");
    fails(() => other.digest(input), /memory of this array was moved/);
    fails(() => model.forward(input), /memory of this array was moved/);
    const bytes = new Uint8Array(8);
    structuredClone(bytes, { transfer: [bytes.buffer] });
    fails(() => other.open(bytes), /moved or posted away/);
    stream.free();
    stream.free();
    fails(() => stream.step(), /the stream was freed/);
  });

  await check("a trap", async () => {
    const other = await Runtime.load({ module });
    const bytes = await bytesOf("amp.safetensors");
    const model = other.open(bytes);
    const stream = model.stream();
    // What is in the buffer is not the message.
    model.save();
    fails(() => other._guard("model_digest", 0x7ffffff0), /internal error/);
    const stopped = /stopped after an internal error; make a new one/;
    fails(() => model.forward([1]), stopped);
    fails(() => stream.step(), stopped);
    fails(() => other.open(bytes), stopped);
    fails(() => other.digest([1]), stopped);
    fails(() => model.trainer(), stopped);
    stream.free();
    model.free();
    same("another runtime", runtime.open(bytes).digest().length, 16);
  });

  await check("the default runtime after a trap", async () => {
    const runtime = await Runtime.default();
    fails(() => runtime._guard("model_digest", 0x7ffffff0), /internal error/);
    same("a new one", (await Model.open(await bytesOf("amp.safetensors"))).runtime === runtime, false);
  });

  await check("errors of loading", async () => {
    const rejects = async (promise, pattern) => {
      const error = await promise.then(() => new Error("none"), (error) => error);
      isExpected(error, pattern);
    };
    await rejects(compile({ modul: "relaxed" }), /compile: unknown option modul/);
    await rejects(compile({ url: "data/missing.wasm" }), /missing.wasm: expected a WebAssembly module, got: HTTP status 404/);
    await rejects(compile({ url: "data/expected.json" }), /expected.json: expected a WebAssembly module/);
    const keras = await bytesOf("keras-last.keras");
    await convert(keras);
    await rejects(convert(keras, { url: "data/missing.wasm" }), /missing.wasm/);
    await rejects(Model.open(keras, { precison: "int8" }), /open: unknown option precison/);
    await rejects(Model.open(keras, { device: "gpu" }), /device: expected "cpu", got gpu/);
    fails(() => new Runtime(), /module: expected a WebAssembly.Module/);
  });

  await check("errors of arguments", async () => {
    const model = runtime.open(await bytesOf("amp.safetensors"));
    fails(() => model.forward([1, 2, 3], { batch: 2 }), /steps: expected a whole number/);
    fails(() => model.forward([1, 2], { steps: 3 }), /x: expected 3 values, got 2/);
    fails(() => model.forward([1], { states: [1] }), /states: expected 80 values, got 1/);
    fails(() => model.forward([1, 2], { lengths: [3] }), /forward: lengths|length/);
    fails(() => model.stream({ block: 0 }), /block: expected a whole number of at least 1 .*, got 0/);
    fails(() => model.stream({ block: 2 }).run(3), /at most 2/);
    fails(() => model.trainer({ optimizer: "magic" }), /expected adam, adamw or sgd, got `magic`/);
    fails(() => model.trainer({ rate: 1 }), /unknown option rate/);
    for (const steps of [NaN, null, 0.5, 1.5, 2 ** 32 + 1, -1, "1"]) {
      fails(() => model.stream({ block: 2 }).run(steps), /steps: expected a whole number/);
    }
    fails(() => model.trainer({ cosineSteps: NaN }), /cosineSteps: expected a finite number, got NaN/);
    fails(() => model.trainer({ weightDecay: Infinity }), /weightDecay: expected a finite number/);
    fails(() => model.trainer({ learningRate: null }), /learningRate: expected a finite number, got null/);
    fails(() => model.trainer().step([1], [1], { batchSize: 2 }), /step: unknown option batchSize/);
    fails(() => model.trainer().step(undefined, [1]), /x: expected an array of numbers/);
    fails(() => model.trainer().step([1], null), /target: expected an array of numbers/);
    fails(() => model.forward(), /x: expected an array of numbers, got undefined/);
    fails(() => model.forward({}), /x: expected an array of numbers/);
    fails(() => model.forward([1, undefined]), /x\[1\]: expected a number, got undefined/);
    fails(() => model.forward([1], { batchSize: 2 }), /forward: unknown option batchSize/);
    fails(() => model.forward([1], null), /forward: expected an object of options, got null/);
    fails(() => model.forward([1], { lengths: null }), /lengths: expected an array of numbers/);
    fails(() => model.forward([], { batch: 2 ** 31 - 1, steps: 0 }), /memory/);
    fails(() => model.stream({ blok: 2 }), /stream: unknown option blok/);
    fails(() => model.stream({ block: 3e9 }), /at most 2147483647, got 3000000000/);
    const amp = await bytesOf("amp.safetensors");
    fails(() => runtime.open(amp, { precison: "int8" }), /open: unknown option precison/);
    fails(() => runtime.open(amp, { precision: "f32" }), /precision: expected file, int8 or int12, got f32/);
    fails(() => runtime.open(amp, { precision: "toString" }), /precision: expected file, int8 or int12/);
    fails(() => runtime.open(amp, { plain: 1 }), /plain: expected true or false, got 1/);
    const tokens = runtime.open(await convert(await bytesOf("keras-embedding.keras")));
    for (const wrong of [undefined, 0.5, "1", 1n]) {
      fails(() => tokens.forward([0, wrong]), /x\[1\]: expected a token, which is a whole number/);
    }
    fails(() => tokens.forward(new Array(2)), /x\[0\]: expected a token/);
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
      // A quarter of this is usual; other programs may take the rest.
      if (module === "relaxed" && load > 1) throw new Error(`the mean load is ${(100 * load).toFixed(1)} %, expected at most 100 %`);
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

/** Times of a module's kernels and of plain code: one stream step of hidden size 24, and a forward pass of 100 steps, input size 64, hidden size 128. */
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
