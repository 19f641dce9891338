// Runs a program for wasm32-wasip1 under Node's WASI, as the runner of `cargo test --target wasm32-wasip1`:
//
//   CARGO_TARGET_WASM32_WASIP1_RUNNER="node --experimental-wasm-relaxed-simd --no-warnings $PWD/tests/wasm/wasi.mjs"
//
// Programs may read and write all files, as on the machine itself.

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { WASI } from "node:wasi";

const [program, ...args] = process.argv.slice(2);
// cargo sets the working directory, to which relative paths belong.
const env = { ...process.env, PWD: process.cwd() };
// The snapshots are looked for here. By default insta asks cargo, which WASI can't start.
env.INSTA_WORKSPACE_ROOT ??= fileURLToPath(new URL("../..", import.meta.url));
const wasi = new WASI({ version: "preview1", args: [program, ...args], env, preopens: { "/": "/", ".": "." } });
console.error(`Node.js ${process.versions.node}, V8 ${process.versions.v8}`);
const module = await WebAssembly.compile(await readFile(program));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()));
