// Trains the forecast, and posts its losses, and at the end the forecast and its digest.

import { Runtime } from "./lstm-web/lstm-web.js";
import { trainForecast } from "./forecast.js";

try {
  const [runtime, file, data] = await Promise.all([
    Runtime.load(),
    fetch("data/forecast.safetensors").then((response) => response.arrayBuffer()),
    fetch("data/forecast.json").then((response) => response.json()),
  ]);
  postMessage(trainForecast(runtime, file, data, (losses) => postMessage({ losses })));
} catch (error) {
  postMessage({ error: error.message });
}
