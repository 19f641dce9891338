/** An error of the library. Its message says what was expected, what came, and where. */
export class LstmError extends Error {}

/** `"relaxed"` has fused multiply-adds and is 6 to 15 times as fast; `"simd128"` runs in more browsers. */
export type ModuleName = "relaxed" | "simd128";

/**
 * The fastest module of this browser. Where the relaxed multiply-add is rounded twice, that is `"simd128"`. Throws an
 * `LstmError` if the browser has no WebAssembly SIMD.
 */
export function supportedModule(): ModuleName;

export interface LoadOptions {
  /** The module; default: the fastest that this browser can load. Results are bit-identical in both. */
  module?: ModuleName;
  /** Where the module is; default: next to this file. */
  url?: string | URL;
}

/** Fetches and compiles a module, which can be posted to a Worker or an AudioWorklet. Needs `fetch` and `URL`. */
export function compile(options?: LoadOptions): Promise<WebAssembly.Module>;

/**
 * Converts a model of any supported format to a safetensors file. This fetches a module of its own, once. The content of the
 * file determines its format.
 */
export function convert(bytes: ArrayBuffer | Uint8Array, options?: { url?: string | URL }): Promise<Uint8Array>;

/**
 * An instance of the module, with a memory of its own. All its models run on the thread that made it. After an internal error,
 * such as missing memory, it is stopped: each call throws an `LstmError`, and `Runtime.default` makes another one.
 */
export class Runtime {
  /** Fetches, compiles and instantiates a module. */
  static load(options?: LoadOptions): Promise<Runtime>;
  /** The instance that `Model.open` uses. */
  static default(): Promise<Runtime>;
  /** Instantiates a compiled module, without waiting: this is for an AudioWorklet. */
  constructor(module: WebAssembly.Module);
  /** Whether the file must be converted by `convert` first, such as those of Keras and ONNX. */
  needsConversion(bytes: ArrayBuffer | Uint8Array): boolean;
  /** Opens a safetensors file, one of NAM, AIDA-X, GuitarML or RTNeural, or what `convert` returned. */
  open(bytes: ArrayBuffer | Uint8Array, options?: Omit<OpenOptions, "device">): Model;
  /** The digest of floats: 16 hexadecimal digits, equal to that of native code for bit-identical values. */
  digest(values: ArrayLike<number>): string;
  /** Size of the instance's memory. */
  readonly memoryBytes: number;
}

export interface OpenOptions {
  /** The device. Default: `"cpu"`. */
  device?: "cpu";
  /** Quantizes the weights when the model is opened. Default: `"file"`, which keeps those of the file. */
  precision?: "file" | "int8" | "int12";
  /** Uses no vector instructions. This is slow, and meant for comparison. Default: false. */
  plain?: boolean;
}

export interface ModelInfo {
  /** The format of the file that was converted, if any. */
  readonly convertedFrom?: string;
  /**
   * The number of time steps that the model is for, if it is one alone; for other sequences, and for a stream, there is an
   * error. Files of `convert` and `save` have it.
   */
  readonly steps?: number;
  /** One line for each layer. */
  readonly layers: readonly string[];
  readonly inputSize: number;
  readonly outputSize: number;
  /** Whether the input is tokens, from 0 to `numTokens - 1`, instead of features. */
  readonly readsTokens: boolean;
  readonly numTokens: number;
  /** Whether the model returns the output of the last time step only. */
  readonly returnsLastStep: boolean;
  /** Number of parameters. */
  readonly parameters: number;
  /** Texts that the file carries along, such as `sample_rate`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The instruction set: `relaxed-simd`, `simd128` or `plain`. */
  readonly instructions: string;
  /** How each LSTM layer runs: kernels, or the slow reference path. */
  readonly paths: readonly string[];
}

export interface ForwardOptions {
  /** Number of sequences. Default: 1. */
  batch?: number;
  /** Number of time steps. Default: what the length of `x` gives. */
  steps?: number;
  /** The number of time steps of each sequence. Default: all. */
  lengths?: ArrayLike<number>;
  /** Initial states, as `ForwardResult` has them. Default: those of the model, or zero. */
  states?: ArrayLike<number>;
}

export interface ForwardResult {
  /** The outputs, row-major: `(batch, steps, outputSize)`; one step if the model returns the last step only, even of none. */
  y: Float32Array;
  /** The shape of `y`. */
  shape: [number, number, number];
  /** The final states: of each LSTM `h` and then `c`, each `(layers * directions, batch, size)`. */
  states: Float32Array;
}

/** A model. Free it with `free`, or leave that to garbage collection. */
export class Model {
  /** Opens a model of any supported format in the default runtime, after a conversion if needed. */
  static open(bytes: ArrayBuffer | Uint8Array, options?: OpenOptions): Promise<Model>;
  private constructor();
  readonly runtime: Runtime;
  readonly info: ModelInfo;
  readonly inputSize: number;
  readonly outputSize: number;
  /** Runs whole sequences: `x` is `(batch, steps, inputSize)`, or `(batch, steps)` of tokens. */
  forward(x: ArrayLike<number>, options?: ForwardOptions): ForwardResult;
  /** Starts `batch` sequences whose samples arrive over time. `block` is the most time steps of one call. */
  stream(options?: { batch?: number; block?: number }): Stream;
  /** Starts training. The model stays as it is. */
  trainer(options?: TrainerOptions): Trainer;
  /** The digest of all parameters. */
  digest(): string;
  /** The model as a safetensors file. */
  save(): Uint8Array;
  free(): void;
}

/** Sequences whose samples arrive over time. A step neither copies nor allocates. */
export class Stream {
  private constructor();
  readonly batch: number;
  readonly block: number;
  /**
   * Write the input here: `(block, batch, inputSize)`, or Int32Array `(block, batch)` of tokens. It is a view of the
   * module's memory. It is valid until the next call of anything but this stream, which may move the memory, and until
   * `free`: read the property each time.
   */
  readonly input: Float32Array | Int32Array;
  /** Read the output here: `(block, batch, outputSize)`. A view, as `input`: copy with `slice` what you keep. */
  readonly output: Float32Array;
  /** Runs the first time step of the block. */
  step(): void;
  /** Runs the first `steps` time steps of the block. Default: all. */
  run(steps?: number): void;
  /** Starts the sequences again. */
  reset(): void;
  free(): void;
}

export interface TrainerOptions {
  /** Default: `"adam"`. */
  optimizer?: "adam" | "adamw" | "sgd";
  /** Default: 0.001. */
  learningRate?: number;
  /** Default: that of the optimizer. */
  weightDecay?: number;
  /** Lowers the learning rate to 0 along a cosine, over this many steps. Default: a constant rate. */
  cosineSteps?: number;
  /** Seed of dropout. Default: 0. */
  seed?: number;
}

/** Trains a model with the mean squared error. */
export class Trainer {
  private constructor();
  /**
   * One training step over `batch` sequences; returns the loss before it. `x` is `(batch, steps, inputSize)`, `target` has
   * the shape of the outputs. An error leaves the trainer unchanged, except one that stops the runtime.
   */
  step(x: ArrayLike<number>, target: ArrayLike<number>, options?: { batch?: number }): number;
  /** A model with the current parameters. */
  model(): Model;
  free(): void;
}
