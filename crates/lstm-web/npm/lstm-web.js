// LSTM models in the browser. The declarations, with documentation, are in lstm-web.d.ts.
//
// This file uses nothing that an AudioWorklet lacks, except in `compile`: no fetch, no TextDecoder, no URL.

/** A module with `f(a, c)`, which is the relaxed multiply-add `a * a + c`. Engines without relaxed-simd reject it. */
const RELAXED_PROBE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 125, 125, 1, 125, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 22, 1, 20, 0, 32, 0,
  253, 19, 32, 0, 253, 19, 32, 1, 253, 19, 253, 133, 2, 253, 31, 0, 11,
]);

/** A module with one instruction of simd128. */
const SIMD_PROBE = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 17, 11]);

/** Whether the engine has relaxed-simd, and rounds its multiply-add once. WebAssembly allows it to round twice. */
function fuses() {
  if (!WebAssembly.validate(RELAXED_PROBE)) return false;
  const { f } = new WebAssembly.Instance(new WebAssembly.Module(RELAXED_PROBE)).exports;
  // (1 + e) (1 + e) - (1 + 2 e) is e^2, or 0 if the product is rounded.
  const e = 2 ** -23;
  return f(1 + e, -1 - 2 * e) === e * e;
}

/** UTF-8 of a text. */
function encode(text) {
  const bytes = unescape(encodeURIComponent(text));
  return Uint8Array.from(bytes, (c) => c.charCodeAt(0));
}

/** Text of UTF-8, which an AudioWorklet has no TextDecoder for. */
function decode(bytes) {
  let text = "";
  for (let k = 0; k < bytes.length; ) {
    const first = bytes[k];
    const size = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    let code = size === 1 ? first : first & (0x7f >> size);
    for (let i = 1; i < size; i++) code = (code << 6) | (bytes[k + i] & 0x3f);
    text += String.fromCodePoint(code);
    k += size;
  }
  return text;
}

export class LstmError extends Error {
  constructor(message) {
    super(message);
    this.name = "LstmError";
  }
}

export function supportedModule() {
  if (fuses()) return "relaxed";
  if (WebAssembly.validate(SIMD_PROBE)) return "simd128";
  throw new LstmError("this browser has no WebAssembly SIMD; expected Chrome or Edge 91, Firefox 89, Safari 16.4, or later");
}

export async function compile({ module = supportedModule(), url } = {}) {
  if (module !== "relaxed" && module !== "simd128") {
    throw new LstmError(`module: expected "relaxed" or "simd128", got ${JSON.stringify(module)}`);
  }
  // Written out, so that bundlers find the files.
  const relaxed = () => new URL("./lstm-web-relaxed.wasm", import.meta.url);
  const simd128 = () => new URL("./lstm-web-simd128.wasm", import.meta.url);
  return fetchModule(url ?? (module === "relaxed" ? relaxed() : simd128()));
}

async function fetchModule(url) {
  const response = await fetch(url);
  if (!response.ok) throw new LstmError(`${url}: expected a WebAssembly module, got HTTP status ${response.status}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** What a file was converted from, by the bytes that `convert` returned. */
const conversions = new WeakMap();

let converter;

export async function convert(bytes, { url = new URL("./lstm-web-convert.wasm", import.meta.url) } = {}) {
  converter ??= fetchModule(url);
  // Another try may succeed, if the network failed.
  converter.catch(() => (converter = undefined));
  // An instance for each file: the memory of WebAssembly can grow and never shrinks.
  const runtime = new Runtime(await converter);
  bytes = bytesOf(bytes);
  const result = runtime._with([bytes], (p) => {
    runtime._call("model_convert", p, bytes.length);
    return runtime._bytes();
  });
  const first = result.indexOf(10);
  const second = result.indexOf(10, first + 1);
  const converted = result.slice(second + 1);
  conversions.set(converted, { format: decode(result.subarray(0, first)), steps: Number(decode(result.subarray(first + 1, second))) });
  return converted;
}

function bytesOf(bytes) {
  if (bytes instanceof ArrayBuffer) bytes = new Uint8Array(bytes);
  if (!(bytes instanceof Uint8Array)) throw new LstmError("bytes: expected an ArrayBuffer or a Uint8Array");
  return bytes;
}

/** What the standard library of Rust imports of its system (WASI). There are no files. */
function systemImports(memory) {
  const [BAD_FILE, NOT_SUPPORTED] = [8, 52];
  const view = () => new DataView(memory().buffer);
  const functions = {
    clock_time_get: (id, precision, p) => (view().setBigUint64(p, BigInt(Date.now()) * 1000000n, true), 0),
    environ_get: () => 0,
    environ_sizes_get: (countP, sizeP) => (view().setUint32(countP, 0, true), view().setUint32(sizeP, 0, true), 0),
    // There are no folders.
    fd_prestat_get: () => BAD_FILE,
    // Seeds of hash tables, on whose order no result depends.
    random_get: (p, size) => {
      for (let k = 0; k < size; k++) view().setUint8(p + k, Math.random() * 256);
      return 0;
    },
  };
  return { wasi_snapshot_preview1: new Proxy(functions, { get: (known, name) => known[name] ?? (() => NOT_SUPPORTED) }) };
}

let defaultRuntime;

export class Runtime {
  /** Frees objects that were forgotten. */
  #registry = new FinalizationRegistry((free) => free());

  static async load(options) {
    return new Runtime(await compile(options));
  }

  static default() {
    defaultRuntime ??= Runtime.load();
    // Another try may succeed, if the network failed.
    defaultRuntime.catch(() => (defaultRuntime = undefined));
    return defaultRuntime;
  }

  constructor(module) {
    this.exports = new WebAssembly.Instance(module, systemImports(() => this.exports.memory)).exports;
    this.exports._initialize?.();
    this.exports.start();
  }

  get memoryBytes() {
    return this.exports.memory.buffer.byteLength;
  }

  needsConversion(bytes) {
    bytes = bytesOf(bytes);
    return this._with([bytes], (p) => this.exports.model_needs_conversion(p, bytes.length) !== 0);
  }

  open(bytes, { precision = "f32", plain = false } = {}) {
    const { format, steps } = conversions.get(bytes) ?? { steps: 0 };
    bytes = bytesOf(bytes);
    const bits = { f32: 0, int8: 8, int12: 12 }[precision];
    if (bits === undefined) throw new LstmError(`precision: expected f32, int8 or int12, got ${precision}`);
    if (this.needsConversion(bytes)) {
      throw new LstmError(`bytes: this is a file of the format ${this._text()}; pass it to convert() first, or use Model.open()`);
    }
    return this._with([bytes], (p) => {
      return new Model(this, this._call("model_open", p, bytes.length, steps, bits, Number(plain)), format);
    });
  }

  digest(values) {
    const floats = values instanceof Float32Array ? values : Float32Array.from(values);
    return this._with([floats], (p) => {
      this._call("digest", p, floats.length);
      return this._text();
    });
  }

  // What follows is for this file.

  /** Calls a function of the module. A result of 0, false or NaN is an error, whose message is in the module's buffer. */
  _call(name, ...args) {
    let result;
    try {
      result = this.exports[name](...args);
    } catch (error) {
      // A panic leaves its message. Without one it was a stack overflow, or memory was missing.
      if (error instanceof WebAssembly.RuntimeError) throw new LstmError(this._text() || `internal error: ${error.message}`);
      throw error;
    }
    if (result === 0 || Number.isNaN(result)) throw new LstmError(this._text());
    return typeof result === "number" && result < 0 && Number.isInteger(result) ? result >>> 0 : result;
  }

  /** The bytes in the module's buffer. */
  _bytes() {
    return new Uint8Array(this.exports.memory.buffer, this.exports.result_address() >>> 0, this.exports.result_size()).slice();
  }

  _text() {
    return decode(this._bytes());
  }

  /** Runs `use` with the addresses of copies of typed arrays. An undefined array has the address 0. */
  _with(arrays, use) {
    const copies = [];
    try {
      for (const array of arrays) {
        const p = array === undefined ? 0 : this._call("allocate", array.byteLength);
        copies.push([p, array?.byteLength ?? 0]);
        if (array) new Uint8Array(this.exports.memory.buffer, p, array.byteLength).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      }
      return use(...copies.map(([p]) => p));
    } finally {
      for (const [p, size] of copies) if (p !== 0) this.exports.release(p, size);
    }
  }

  _floats(p, length) {
    return new Float32Array(this.exports.memory.buffer, p, length);
  }

  /** Calls the function `name` with the address of an object, when the object is freed or forgotten. */
  _own(object, name, p) {
    const { exports } = this;
    this.#registry.register(object, () => exports[name](p), object);
  }

  _free(object, name, p) {
    this.#registry.unregister(object);
    if (p !== 0) this.exports[name](p);
  }
}

/** Checks that a value is a whole number of at least `minimum`. */
function count(name, value, minimum) {
  if (!Number.isInteger(value) || value < minimum || value > 0x7fffffff) {
    throw new LstmError(`${name}: expected a whole number of at least ${minimum}, got ${value}`);
  }
  return value;
}

function sized(name, array, length) {
  if (array.length !== length) throw new LstmError(`${name}: expected ${length} values, got ${array.length}`);
  return array;
}

/** Float32Array, or for tokens Int32Array, of the values. */
function values(name, array, readsTokens, length) {
  const Type = readsTokens ? Int32Array : Float32Array;
  if (typeof array?.length !== "number") throw new LstmError(`${name}: expected an array of ${length} numbers`);
  sized(name, array, length);
  if (readsTokens) {
    const wrong = Array.prototype.find.call(array, (token) => token !== (token | 0));
    if (wrong !== undefined) throw new LstmError(`${name}: expected tokens, which are whole numbers, got ${wrong}`);
  }
  return array instanceof Type ? array : Type.from(array);
}

export class Model {
  #runtime;
  #p;
  #info;

  static async open(bytes, options = {}) {
    const { device = "cpu", ...rest } = options;
    if (device !== "cpu") throw new LstmError(`device: expected "cpu", got ${JSON.stringify(device)}`);
    const runtime = await Runtime.default();
    return runtime.open(runtime.needsConversion(bytes) ? await convert(bytes) : bytes, rest);
  }

  /** For this file: use `Model.open`. */
  constructor(runtime, p, format) {
    this.#runtime = runtime;
    this.#p = p;
    runtime._own(this, "model_free", p);
    runtime.exports.model_describe(p);
    this.#info = Object.freeze({ ...JSON.parse(runtime._text()), convertedFrom: format });
  }

  get _p() {
    if (this.#p === 0) throw new LstmError("the model was freed");
    return this.#p;
  }

  get runtime() {
    return this.#runtime;
  }

  get info() {
    return this.#info;
  }

  get inputSize() {
    return this.#info.inputSize;
  }

  get outputSize() {
    return this.#info.outputSize;
  }

  forward(x, { batch = 1, steps, lengths, states } = {}) {
    const runtime = this.#runtime;
    const { inputSize, outputSize, readsTokens, returnsLastStep } = this.#info;
    count("batch", batch, 0);
    const perStep = batch * (readsTokens ? 1 : inputSize);
    steps = count("steps", steps ?? (perStep === 0 ? 0 : x.length / perStep), 0);
    const input = values("x", x, readsTokens, perStep * steps);
    const stateSize = runtime.exports.model_state_size(this._p, batch) >>> 0;
    if (lengths) {
      lengths = Uint32Array.from(sized("lengths", lengths, batch), (length, k) => count(`lengths[${k}]`, length, 0));
    }
    if (states) states = values("states", states, false, stateSize);
    const shape = [batch, returnsLastStep ? Math.min(1, steps) : steps, outputSize];
    const y = new Float32Array(shape[0] * shape[1] * shape[2]);
    const finalStates = new Float32Array(stateSize);
    return runtime._with([input, lengths, states, y, finalStates], (xp, lengthsP, statesP, yp, finalP) => {
      runtime._call("model_forward", this._p, xp, batch, steps, lengthsP, statesP, yp, finalP);
      return { y: runtime._floats(yp, y.length).slice(), shape, states: runtime._floats(finalP, stateSize).slice() };
    });
  }

  stream({ batch = 1, block = 1 } = {}) {
    return new Stream(this, count("batch", batch, 1), count("block", block, 1));
  }

  trainer(options) {
    return new Trainer(this, options);
  }

  digest() {
    this.#runtime._call("model_digest", this._p);
    return this.#runtime._text();
  }

  save() {
    this.#runtime._call("model_save", this._p);
    return this.#runtime._bytes();
  }

  free() {
    this.#runtime._free(this, "model_free", this.#p);
    this.#p = 0;
  }
}

export class Stream {
  #runtime;
  #p;
  #input;
  #output;
  #inputP;
  #outputP;
  #readsTokens;

  /** For this file: use `model.stream`. */
  constructor(model, batch, block) {
    const { runtime } = model;
    this.#runtime = runtime;
    this.#p = runtime._call("stream_new", model._p, batch, block);
    runtime._own(this, "stream_free", this.#p);
    const { inputSize, outputSize, readsTokens } = model.info;
    this.batch = batch;
    this.block = block;
    this.#readsTokens = readsTokens;
    this.#inputP = [runtime.exports.stream_input(this.#p) >>> 0, block * batch * (readsTokens ? 1 : inputSize)];
    this.#outputP = [runtime.exports.stream_output(this.#p) >>> 0, block * batch * outputSize];
  }

  get input() {
    // Views of a memory that has grown are empty.
    if (this.#input === undefined || this.#input.buffer !== this.#runtime.exports.memory.buffer) {
      this.#check();
      const Type = this.#readsTokens ? Int32Array : Float32Array;
      this.#input = new Type(this.#runtime.exports.memory.buffer, ...this.#inputP);
    }
    return this.#input;
  }

  get output() {
    if (this.#output === undefined || this.#output.buffer !== this.#runtime.exports.memory.buffer) {
      this.#check();
      this.#output = this.#runtime._floats(...this.#outputP);
    }
    return this.#output;
  }

  step() {
    this.run(1);
  }

  run(steps = this.block) {
    this.#check();
    // Without a list of arguments, which an AudioWorklet would have to collect as garbage.
    let succeeded;
    try {
      succeeded = this.#runtime.exports.stream_run(this.#p, steps);
    } catch (error) {
      throw new LstmError(this.#runtime._text() || `internal error: ${error.message}`);
    }
    if (!succeeded) throw new LstmError(this.#runtime._text());
  }

  reset() {
    this.#check();
    this.#runtime._call("stream_reset", this.#p);
  }

  free() {
    this.#runtime._free(this, "stream_free", this.#p);
    this.#p = 0;
    this.#input = this.#output = undefined;
  }

  #check() {
    if (this.#p === 0) throw new LstmError("the stream was freed");
  }
}

export class Trainer {
  #runtime;
  #info;
  #p;

  /** For this file: use `model.trainer`. */
  constructor(model, { optimizer = "adam", learningRate = 1e-3, weightDecay, cosineSteps, seed = 0, ...unknown } = {}) {
    const names = Object.keys(unknown);
    if (names.length > 0) throw new LstmError(`trainer: unknown option ${names[0]}`);
    this.#runtime = model.runtime;
    this.#info = model.info;
    const options = encode(JSON.stringify({ optimizer, learningRate, weightDecay, cosineSteps, seed }));
    this.#p = this.#runtime._with([options], (p) => this.#runtime._call("trainer_new", model._p, p, options.length));
    this.#runtime._own(this, "trainer_free", this.#p);
  }

  step(x, target, { batch = 1 } = {}) {
    this.#check();
    const { inputSize, outputSize, returnsLastStep } = this.#info;
    count("batch", batch, 1);
    const steps = count("steps", x.length / (batch * inputSize), 1);
    const input = values("x", x, false, batch * steps * inputSize);
    const wanted = values("target", target, false, batch * (returnsLastStep ? 1 : steps) * outputSize);
    return this.#runtime._with([input, wanted], (xp, targetP) => {
      // A loss may be 0, so that only NaN is an error.
      const loss = this.#runtime.exports.trainer_step(this.#p, xp, targetP, batch, steps);
      if (Number.isNaN(loss)) throw new LstmError(this.#runtime._text());
      return loss;
    });
  }

  model() {
    this.#check();
    return new Model(this.#runtime, this.#runtime._call("trainer_model", this.#p));
  }

  free() {
    this.#runtime._free(this, "trainer_free", this.#p);
    this.#p = 0;
  }

  #check() {
    if (this.#p === 0) throw new LstmError("the trainer was freed");
  }
}
