// The demo page: opens models, plays through amps in an AudioWorklet, and trains a forecast in a Worker.

import { Runtime, compile, convert } from "./lstm-web/lstm-web.js";

const $ = (id) => document.getElementById(id);

/** Shows a message, or the text of an error. */
function say(element, text, isError = false) {
  element.textContent = text;
  element.classList.toggle("error", isError);
}

const sayError = (element) => (error) => say(element, error.message ?? String(error), true);

// ---- 1. Models

/** The model that is open, and the bytes of its file, which the AudioWorklet opens again. */
let opened;

async function openModel(name, bytes) {
  $("model-details").hidden = true;
  say($("model-status"), `Opening ${name} …`);
  try {
    const runtime = await Runtime.default();
    if (runtime.needsConversion(bytes)) bytes = await convert(bytes);
    const model = runtime.open(bytes);
    opened?.model.free();
    opened = { name, bytes, model };
  } catch (error) {
    return sayError($("model-status"))(error);
  }
  const { info } = opened.model;
  const input = info.readsTokens ? `tokens from 0 to ${info.numTokens - 1}` : `${info.inputSize} per time step`;
  const facts = {
    "Converted from": info.convertedFrom ?? "–",
    Parameters: info.parameters.toLocaleString("en"),
    Inputs: input,
    Outputs: `${info.outputSize} per ${info.returnsLastStep ? "sequence" : "time step"}`,
    Digest: opened.model.digest(),
    "Runs by": [...new Set(info.paths)].join(", ") || "no LSTM",
    ...info.metadata,
  };
  $("model-facts").replaceChildren(...Object.entries(facts).flatMap(([key, value]) => [element("dt", key), element("dd", value)]));
  $("layers").replaceChildren(...info.layers.map((layer) => element("li", layer)));
  $("model-details").hidden = false;
  say($("model-status"), `${name} is open.`);
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

const openFile = async (file) => file && openModel(file.name, await file.arrayBuffer());

$("model-file").addEventListener("change", (event) => openFile(event.target.files[0]));
$("sample").addEventListener("click", () => openSample().catch(sayError($("model-status"))));
for (const [type, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", isOver);
    if (type === "drop") openFile(event.dataTransfer.files[0]);
  });
}

async function openSample() {
  await openModel("amp.safetensors", await fetchBytes("data/amp.safetensors"));
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  return response.arrayBuffer();
}

// ---- 2. Amp

let playing;

async function play() {
  if (!opened) await openSample();
  const { model, bytes } = opened;
  if (model.info.readsTokens || model.inputSize !== 1 || model.outputSize !== 1 || model.info.returnsLastStep) {
    throw new Error(`${opened.name}: expected a model with one input and one output per time step`);
  }
  const source = document.querySelector("input[name=source]:checked").value;
  const file = $("wav").files[0];
  if (source === "file" && !file) throw new Error("choose a WAV file first");
  const rate = Number(model.info.metadata.sample_rate) || 48000;
  const context = new AudioContext({ sampleRate: rate });
  playing = { context };
  await context.audioWorklet.addModule("amp-worklet.js");
  const options = { module: await compile(), bytes };
  const amp = new AudioWorkletNode(context, "lstm-amp", { channelCount: 1, channelCountMode: "explicit", processorOptions: options });
  amp.port.onmessage = ({ data }) => {
    if (data.error) return stop().then(() => say($("amp-status"), data.error, true));
    $("load").value = data.load;
    $("load-text").textContent = `${data.load.toFixed(1)} % of real time`;
  };
  amp.port.postMessage({ bypass: $("bypass").checked });
  amp.connect(context.destination);
  playing.amp = amp;
  if (source === "microphone") {
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    playing.microphone = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    context.createMediaStreamSource(playing.microphone).connect(amp);
  } else {
    const node = context.createBufferSource();
    node.buffer = source === "file" ? await context.decodeAudioData(await file.arrayBuffer()) : pluck(context);
    node.loop = true;
    node.connect(amp);
    node.start();
  }
  say($("amp-status"), `Playing through ${opened.name} at ${rate} Hz.`);
}

async function stop() {
  playing?.microphone?.getTracks().forEach((track) => track.stop());
  await playing?.context.close();
  playing = undefined;
  $("play").disabled = false;
  $("stop").disabled = true;
  $("load").value = 0;
  $("load-text").textContent = "–";
  say($("amp-status"), "Stopped.");
}

/** A plucked string, by the algorithm of Karplus and Strong. */
function pluck(context) {
  const rate = context.sampleRate;
  const buffer = context.createBuffer(1, 2 * rate, rate);
  const samples = buffer.getChannelData(0);
  const period = Math.floor(rate / 110);
  for (let k = 0; k < samples.length; k++) {
    samples[k] = k <= period ? ((k * k) % 101) / 101 - 0.5 : 0.498 * (samples[k - period] + samples[k - period - 1]);
  }
  return buffer;
}

$("play").addEventListener("click", async () => {
  $("play").disabled = true;
  $("stop").disabled = false;
  try {
    await play();
  } catch (error) {
    await stop();
    sayError($("amp-status"))(error);
  }
});
$("stop").addEventListener("click", stop);
$("bypass").addEventListener("change", (event) => playing?.amp?.port.postMessage({ bypass: event.target.checked }));

// ---- 3. Forecast

/** Draws lines of points `[x, y]` with axes. */
function chart(svg, lines, { xLabels, yMax, label }) {
  const { width, height } = svg.viewBox.baseVal;
  const [left, right, top, bottom] = [44, width - 8, 10, height - 26];
  const xs = lines.flatMap(({ points }) => points.map(([x]) => x));
  const [x0, x1] = xLabels ? [xLabels[0][0], xLabels.at(-1)[0]] : [Math.min(...xs), Math.max(...xs)];
  const place = ([x, y]) => [left + ((x - x0) / (x1 - x0 || 1)) * (right - left), bottom - (y / yMax) * (bottom - top)];
  const make = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const parts = [];
  for (let k = 0; k <= 4; k++) {
    const y = (yMax * k) / 4;
    const [, at] = place([x0, y]);
    parts.push(make("line", { class: "axis", x1: left, x2: right, y1: at, y2: at }));
    parts.push(make("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, String(+y.toFixed(2))));
  }
  for (const [x, text] of xLabels ?? []) {
    parts.push(make("text", { x: place([x, 0])[0], y: height - 6, "text-anchor": x === x0 ? "start" : x === x1 ? "end" : "middle" }, text));
  }
  for (const { points, name } of lines) {
    parts.push(make("polyline", { class: `line ${name}`, points: points.map((p) => place(p).map((v) => v.toFixed(1)).join(",")).join(" ") }));
  }
  svg.replaceChildren(...parts);
  svg.setAttribute("aria-label", label);
}

const forecastData = fetch("data/forecast.json").then((response) => response.json());
forecastData.then((data) => ($("digest-native").textContent = data.digest), sayError($("train-status")));

$("train").addEventListener("click", async () => {
  $("train").disabled = true;
  say($("train-status"), "Training …");
  const data = await forecastData;
  const losses = [];
  const start = performance.now();
  const drawLosses = () => {
    const points = losses.map((loss, k) => [k + 1, loss]);
    const xLabels = [0, 200, 400, data.steps].map((step) => [step, String(step)]);
    chart($("loss-chart"), [{ points, name: "loss" }], { xLabels, yMax: 1.2, label: `Loss: ${losses.at(-1).toFixed(3)} after ${losses.length} steps` });
    $("progress").value = losses.length;
  };
  const worker = new Worker("forecast-worker.js", { type: "module" });
  worker.onerror = (event) => {
    say($("train-status"), event.message, true);
    $("train").disabled = false;
  };
  worker.onmessage = ({ data: message }) => {
    if (message.error) {
      say($("train-status"), message.error, true);
      $("train").disabled = false;
      return;
    }
    losses.push(...message.losses);
    requestAnimationFrame(drawLosses);
    if (!message.forecast) return;
    worker.terminate();
    const known = data.logs.length;
    const actual = data.values.map((value, k) => [k, value]);
    const forecast = message.forecast.map((value, k) => [known + k, value]);
    const error = message.forecast.reduce((sum, value, k) => sum + Math.abs(value / data.values[known + k] - 1), 0) / message.forecast.length;
    const xLabels = data.months.flatMap((month, k) => (k % 36 === 0 ? [[k, month.slice(0, 4)]] : [])).concat([[data.months.length - 1, data.months.at(-1)]]);
    chart($("forecast-chart"), [{ points: actual, name: "actual" }, { points: forecast, name: "forecast" }], {
      xLabels, yMax: 700, label: `Passengers from ${data.months[0]} to ${data.months.at(-1)}, and the forecast of the last ${forecast.length} months, whose mean error is ${(100 * error).toFixed(1)} %`,
    });
    const isEqual = message.digest === data.digest;
    $("digest-here").textContent = message.digest;
    $("digest-result").textContent = isEqual ? "equal" : "different";
    $("digest-result").className = isEqual ? "equal" : "error";
    say($("train-status"), `Trained in ${((performance.now() - start) / 1000).toFixed(1)} s. The mean error of the forecast is ${(100 * error).toFixed(1)} %. The digests are ${isEqual ? "equal" : "different"}.`);
    $("train").disabled = false;
  };
});

Runtime.default().then(
  async (runtime) => {
    const model = runtime.open(await fetchBytes("data/amp.safetensors"));
    $("instructions").textContent = model.info.instructions;
    model.free();
  },
  sayError($("model-status")),
);
