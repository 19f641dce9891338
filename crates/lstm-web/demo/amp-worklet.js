// An amp in an AudioWorklet. There is no fetch and no TextDecoder here: the page posts the compiled module and the file.

import { Runtime } from "./lstm-web/lstm-web.js";

/** Number of blocks after which the load is reported. */
const REPORT_BLOCKS = 128;

class LstmAmp extends AudioWorkletProcessor {
  #stream;
  #bypass = false;
  #blocks = 0;
  #busy = 0;

  constructor({ processorOptions: { module, bytes } }) {
    super();
    this.port.onmessage = ({ data }) => (this.#bypass = data.bypass);
    try {
      this.#stream = new Runtime(module).open(bytes).stream({ block: 128 });
    } catch (error) {
      this.port.postMessage({ error: error.message });
    }
  }

  process([[input]], [[output]]) {
    if (!this.#stream) return false;
    if (!input) return true;
    const start = Date.now();
    if (this.#bypass) {
      output.set(input);
    } else {
      this.#stream.input.set(input);
      this.#stream.run(input.length);
      output.set(this.#stream.output);
    }
    // Blocks are shorter than a tick of the clock, of which they pass more if they take longer: the mean is right.
    this.#busy += Date.now() - start;
    if (++this.#blocks === REPORT_BLOCKS) {
      this.port.postMessage({ load: (100 * this.#busy) / ((1000 * REPORT_BLOCKS * input.length) / sampleRate) });
      this.#blocks = this.#busy = 0;
    }
    return true;
  }
}

registerProcessor("lstm-amp", LstmAmp);
