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

/** Checks that options have known names, so that none is ignored. */
function known(where, options = {}, names) {
  if (options === null || typeof options !== "object") throw new LstmError(`${where}: expected an object of options, got ${String(options)}`);
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) throw new LstmError(`${where}: unknown option ${name}; expected ${names.join(", ")}`);
  }
  return options;
}

export async function compile(options) {
  const { module = supportedModule(), url } = known("compile", options, ["module", "url"]);
  if (module !== "relaxed" && module !== "simd128") {
    throw new LstmError(`module: expected "relaxed" or "simd128", got ${String(module)}`);
  }
  // Written out, so that bundlers find the files.
  const relaxed = () => new URL("./lstm-web-relaxed.wasm", import.meta.url);
  const simd128 = () => new URL("./lstm-web-simd128.wasm", import.meta.url);
  return fetchModule(url ?? (module === "relaxed" ? relaxed() : simd128()));
}

async function fetchModule(url) {
  let got;
  try {
    const response = await fetch(url);
    if (response.ok) return await WebAssembly.compile(await response.arrayBuffer());
    got = `HTTP status ${response.status}`;
  } catch (error) {
    got = error.message;
  }
  throw new LstmError(`${url}: expected a WebAssembly module, got: ${got}`);
}

/** The modules that convert files, by their address. */
const converters = new Map();

export async function convert(bytes, options) {
  const { url = new URL("./lstm-web-convert.wasm", import.meta.url) } = known("convert", options, ["url"]);
  bytes = bytesOf(bytes);
  const key = String(url);
  if (!converters.has(key)) converters.set(key, fetchModule(url));
  let module;
  try {
    module = await converters.get(key);
  } catch (error) {
    // Another try may succeed, if the network failed.
    converters.delete(key);
    throw error;
  }
  // It may have been posted away meanwhile.
  attached("bytes", bytes);
  // An instance for each file: the memory of WebAssembly can grow and never shrinks.
  const runtime = new Runtime(module);
  return runtime._with([bytes], (p) => {
    runtime._call("model_convert", p, bytes.length);
    return runtime._bytes();
  });
}

/** Checks that an array is not a view of memory that has moved, which is empty. */
function attached(name, array) {
  if (array.byteLength > 0 || !array.buffer) return array;
  try {
    new Uint8Array(array.buffer);
  } catch {
    throw new LstmError(`${name}: the memory of this array was moved or posted away; for one of a stream, read \`input\` or \`output\` again`);
  }
  return array;
}

function bytesOf(bytes) {
  try {
    if (bytes instanceof ArrayBuffer) bytes = new Uint8Array(bytes);
  } catch {
    throw new LstmError("bytes: the ArrayBuffer was posted away; pass a copy");
  }
  if (!(bytes instanceof Uint8Array)) throw new LstmError("bytes: expected an ArrayBuffer or a Uint8Array");
  return attached("bytes", bytes);
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

/** What each view of a stream shows: a stream lives for as long as its views. */
const streamsOfViews = new WeakMap();

export class Runtime {
  /** Frees objects that were forgotten. */
  #registry = new FinalizationRegistry((free) => free());

  /** Whether a call ended in a trap, after which the module's memory can't be trusted. */
  #isBroken = false;

  static async load(options) {
    return new Runtime(await compile(options));
  }

  static async default() {
    const loading = (defaultRuntime ??= Runtime.load());
    const again = () => {
      if (defaultRuntime === loading) defaultRuntime = undefined;
    };
    let runtime;
    try {
      runtime = await loading;
    } catch (error) {
      // Another try may succeed, if the network failed.
      again();
      throw error;
    }
    if (!runtime.#isBroken) return runtime;
    again();
    return Runtime.default();
  }

  constructor(module) {
    if (!(module instanceof WebAssembly.Module)) throw new LstmError("module: expected a WebAssembly.Module, which compile() returns");
    try {
      this.exports = new WebAssembly.Instance(module, systemImports(() => this.exports.memory)).exports;
    } catch (error) {
      throw new LstmError(`module: it can't be instantiated: ${error.message}`);
    }
    if (this.exports._initialize) this._guard("_initialize");
    this._guard("start");
  }

  get memoryBytes() {
    return this.exports.memory.buffer.byteLength;
  }

  needsConversion(bytes) {
    bytes = this._outside(bytesOf(bytes));
    return this._with([bytes], (p) => this._guard("model_needs_conversion", p, bytes.length) !== 0);
  }

  open(bytes, options) {
    const { precision = "file", plain = false } = known("open", options, ["precision", "plain"]);
    bytes = this._outside(bytesOf(bytes));
    const bits = new Map([["file", 0], ["int8", 8], ["int12", 12]]).get(precision);
    if (bits === undefined) throw new LstmError(`precision: expected file, int8 or int12, got ${String(precision)}`);
    if (typeof plain !== "boolean") throw new LstmError(`plain: expected true or false, got ${String(plain)}`);
    if (this.needsConversion(bytes)) {
      throw new LstmError(`bytes: this is a file of the format ${this._text()}; pass it to convert() first, or use Model.open()`);
    }
    return this._with([bytes], (p) => new Model(this, this._call("model_open", p, bytes.length, bits, Number(plain))));
  }

  digest(array) {
    const floats = this._outside(values("values", array, false));
    return this._with([floats], (p) => {
      this._call("digest", p, floats.length);
      return this._text();
    });
  }

  // What follows is for this file.

  /**
   * Calls a function of the module: every call is one of these. After a trap the module is in the middle of something, so
   * that it is not used any more. There is no list of arguments, which an AudioWorklet would have to collect as garbage.
   */
  _guard(name, a, b, c, d, e, f, g, h, i) {
    if (this.#isBroken) throw new LstmError("the runtime stopped after an internal error; make a new one, and open the models again");
    try {
      return this.exports[name](a, b, c, d, e, f, g, h, i);
    } catch (error) {
      this.#isBroken = true;
      throw new LstmError(this.#panic() ?? `internal error: ${error.message}; the memory (${this.memoryBytes} bytes) or the stack may not suffice`);
    }
  }

  /** The message that a panic left in the module's buffer, which may have something else. */
  #panic() {
    try {
      const start = "internal error, please report it: ";
      const p = this.exports.result_address() >>> 0;
      const text = decode(new Uint8Array(this.exports.memory.buffer, p, this.exports.result_size() >>> 0));
      return text.startsWith(start) ? text : undefined;
    } catch {
      return undefined;
    }
  }

  /** Calls a function whose result is 0 after an error. The message is in the module's buffer. */
  _call(name, ...args) {
    const result = this._guard(name, ...args);
    if (result === 0) throw new LstmError(this._text());
    return result >>> 0;
  }

  /** The bytes in the module's buffer. */
  _bytes() {
    const p = this._guard("result_address") >>> 0;
    return new Uint8Array(this.exports.memory.buffer, p, this._guard("result_size") >>> 0).slice();
  }

  _text() {
    return decode(this._bytes());
  }

  /**
   * Runs `use` with the addresses of copies of typed arrays. An undefined array has the address 0, and for a number there is
   * space for so many floats.
   */
  _with(arrays, use) {
    arrays = arrays.map((array) => this._outside(array));
    const copies = [];
    try {
      for (const array of arrays) {
        if (array === undefined) {
          copies.push([0, 0]);
          continue;
        }
        const size = typeof array === "number" ? 4 * array : array.byteLength;
        if (size > 0x7fffffff) throw new LstmError(`memory for ${size} bytes: expected at most 2 GB; use a smaller batch or fewer steps`);
        const p = this._call("allocate", size);
        copies.push([p, size]);
        if (typeof array !== "number") new Uint8Array(this.exports.memory.buffer, p, size).set(new Uint8Array(array.buffer, array.byteOffset, size));
      }
      return use(...copies.map(([p]) => p));
    } finally {
      for (const [p, size] of copies) if (p !== 0 && !this.#isBroken) this._guard("release", p, size);
    }
  }

  /** A copy of a view of the module's own memory, which becomes empty when that grows; other arrays themselves. */
  _outside(array) {
    return array?.buffer === this.exports.memory.buffer ? array.slice() : array;
  }

  _floats(p, length) {
    return new Float32Array(this.exports.memory.buffer, p, length);
  }

  /** Calls the function `name` with the address of an object, when the object is freed or forgotten. */
  _own(object, name, p) {
    this.#registry.register(object, () => this.#isBroken || this._guard(name, p), object);
  }

  _free(object, name, p) {
    this.#registry.unregister(object);
    if (p !== 0 && !this.#isBroken) this._guard(name, p);
  }
}

/** The largest number that is a size in WebAssembly, which has signed ones in JavaScript. */
const MAX_COUNT = 0x7fffffff;

/** Checks that a value is a whole number of at least `minimum`. */
function count(name, value, minimum) {
  if (!Number.isInteger(value) || value < minimum || value > MAX_COUNT) {
    throw new LstmError(`${name}: expected a whole number of at least ${minimum} and at most ${MAX_COUNT}, got ${String(value)}`);
  }
  return value;
}

/** The length of an array of numbers. */
function lengthOf(name, array) {
  if (array === null || typeof array !== "object" || !Number.isInteger(array.length)) {
    throw new LstmError(`${name}: expected an array of numbers, got ${typeof array === "object" ? "an object without a length" : typeof array}`);
  }
  return attached(name, array).length;
}

/** Float32Array, or for tokens Int32Array, of the values. */
function values(name, array, readsTokens, length = lengthOf(name, array)) {
  const Type = readsTokens ? Int32Array : Float32Array;
  const got = lengthOf(name, array);
  if (got !== length) throw new LstmError(`${name}: expected ${length} values, got ${got}`);
  if (array instanceof Type) return array;
  const isWrong = readsTokens ? (value) => typeof value !== "number" || value !== (value | 0) : (value) => typeof value !== "number";
  const wrong = Array.prototype.findIndex.call(array, isWrong);
  if (wrong !== -1) {
    throw new LstmError(`${name}[${wrong}]: expected ${readsTokens ? "a token, which is a whole number" : "a number"}, got ${String(array[wrong])}`);
  }
  return Type.from(array);
}

export class Model {
  #runtime;
  #p;
  #info;

  static async open(bytes, options) {
    const { device = "cpu", ...rest } = known("open", options, ["device", "precision", "plain"]);
    if (device !== "cpu") throw new LstmError(`device: expected "cpu", got ${String(device)}`);
    const runtime = await Runtime.default();
    return runtime.open(runtime.needsConversion(bytes) ? await convert(bytes) : bytes, rest);
  }

  /** For this file: use `Model.open`. */
  constructor(runtime, p) {
    this.#runtime = runtime;
    this.#p = p;
    runtime._own(this, "model_free", p);
    runtime._guard("model_describe", p);
    this.#info = Object.freeze(JSON.parse(runtime._text()));
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

  forward(x, options) {
    let { batch = 1, steps, lengths, states } = known("forward", options, ["batch", "steps", "lengths", "states"]);
    const runtime = this.#runtime;
    const { inputSize, outputSize, readsTokens, returnsLastStep } = this.#info;
    count("batch", batch, 0);
    const perStep = batch * (readsTokens ? 1 : inputSize);
    steps = count("steps", steps ?? (perStep === 0 ? 0 : lengthOf("x", x) / perStep), 0);
    const input = values("x", x, readsTokens, perStep * steps);
    const stateSize = runtime._guard("model_state_size", this._p, batch) >>> 0;
    if (lengths !== undefined) {
      const given = lengths;
      if (lengthOf("lengths", given) !== batch) throw new LstmError(`lengths: expected ${batch} values, got ${given.length}`);
      lengths = Uint32Array.from({ length: batch }, (_, k) => count(`lengths[${k}]`, given[k], 0));
    }
    if (states !== undefined) states = values("states", states, false, stateSize);
    // A model that returns the last step has an output for a sequence without steps too.
    const shape = [batch, returnsLastStep ? 1 : steps, outputSize];
    const length = shape[0] * shape[1] * shape[2];
    return runtime._with([input, lengths, states, length, stateSize], (xp, lengthsP, statesP, yp, finalP) => {
      runtime._call("model_forward", this._p, xp, batch, steps, lengthsP, statesP, yp, length, finalP);
      return { y: runtime._floats(yp, length).slice(), shape, states: runtime._floats(finalP, stateSize).slice() };
    });
  }

  stream(options) {
    const { batch = 1, block = 1 } = known("stream", options, ["batch", "block"]);
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
    const p = this.#p;
    this.#p = 0;
    this.#runtime._free(this, "model_free", p);
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
    this.#inputP = [runtime._guard("stream_input", this.#p) >>> 0, block * batch * (readsTokens ? 1 : inputSize)];
    this.#outputP = [runtime._guard("stream_output", this.#p) >>> 0, block * batch * outputSize];
  }

  get input() {
    // Views of a memory that has grown are empty.
    if (this.#input === undefined || this.#input.buffer !== this.#runtime.exports.memory.buffer) {
      this.#check();
      const Type = this.#readsTokens ? Int32Array : Float32Array;
      this.#input = new Type(this.#runtime.exports.memory.buffer, ...this.#inputP);
      streamsOfViews.set(this.#input, this);
    }
    return this.#input;
  }

  get output() {
    if (this.#output === undefined || this.#output.buffer !== this.#runtime.exports.memory.buffer) {
      this.#check();
      this.#output = this.#runtime._floats(...this.#outputP);
      streamsOfViews.set(this.#output, this);
    }
    return this.#output;
  }

  step() {
    this.run(1);
  }

  run(steps = this.block) {
    this.#check();
    count("steps", steps, 0);
    if (this.#runtime._guard("stream_run", this.#p, steps) === 0) throw new LstmError(this.#runtime._text());
  }

  reset() {
    this.#check();
    this.#runtime._call("stream_reset", this.#p);
  }

  free() {
    const p = this.#p;
    this.#p = 0;
    this.#runtime._free(this, "stream_free", p);
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
  constructor(model, given) {
    const names = ["optimizer", "learningRate", "weightDecay", "cosineSteps", "seed"];
    const { optimizer = "adam", learningRate = 1e-3, weightDecay, cosineSteps, seed = 0 } = known("trainer", given, names);
    // JSON has null for other numbers, which would be a missing option.
    for (const [name, value] of Object.entries({ learningRate, weightDecay, cosineSteps, seed })) {
      if (value !== undefined && !Number.isFinite(value)) throw new LstmError(`trainer: ${name}: expected a finite number, got ${String(value)}`);
    }
    if (typeof optimizer !== "string") throw new LstmError(`trainer: optimizer: expected adam, adamw or sgd, got ${String(optimizer)}`);
    this.#runtime = model.runtime;
    this.#info = model.info;
    const options = encode(JSON.stringify({ optimizer, learningRate, weightDecay, cosineSteps, seed }));
    this.#p = this.#runtime._with([options], (p) => this.#runtime._call("trainer_new", model._p, p, options.length));
    this.#runtime._own(this, "trainer_free", this.#p);
  }

  step(x, target, options) {
    const { batch = 1 } = known("step", options, ["batch"]);
    this.#check();
    const { inputSize, outputSize, returnsLastStep } = this.#info;
    count("batch", batch, 1);
    const steps = count("steps", lengthOf("x", x) / (batch * inputSize), 1);
    const input = values("x", x, false, batch * steps * inputSize);
    const wanted = values("target", target, false, batch * (returnsLastStep ? 1 : steps) * outputSize);
    return this.#runtime._with([input, wanted], (xp, targetP) => {
      // A loss may be 0, so that only NaN is an error.
      const loss = this.#runtime._guard("trainer_step", this.#p, xp, targetP, batch, steps);
      if (Number.isNaN(loss)) throw new LstmError(this.#runtime._text());
      return loss;
    });
  }

  model() {
    this.#check();
    return new Model(this.#runtime, this.#runtime._call("trainer_model", this.#p));
  }

  free() {
    const p = this.#p;
    this.#p = 0;
    this.#runtime._free(this, "trainer_free", p);
  }

  #check() {
    if (this.#p === 0) throw new LstmError("the trainer was freed");
  }
}
