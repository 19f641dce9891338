// Runs the checks in a Worker.

import { run } from "./checks.js";

onmessage = async ({ data }) => {
  try {
    postMessage({ results: await run(data, { audio: false }) });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
