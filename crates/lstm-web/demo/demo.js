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

/** The number of the last try to open a model. */
let lastTry = 0;

/** Opens a file, whose bytes `load` gets. Of several at once, the last that the user chose is opened. */
async function openModel(name, load) {
  const thisTry = ++lastTry;
  $("model-details").hidden = true;
  say($("model-status"), `Opening ${name} …`);
  // A file that can't be opened leaves no model, so that what plays is what is shown.
  opened?.model.free();
  opened = undefined;
  try {
    const runtime = await Runtime.default();
    let bytes = await load();
    if (runtime.needsConversion(bytes)) bytes = await convert(bytes);
    if (thisTry !== lastTry) return;
    opened = { name, bytes, model: runtime.open(bytes) };
  } catch (error) {
    if (thisTry === lastTry) sayError($("model-status"))(error);
    return;
  }
  const { info } = opened.model;
  const input = info.readsTokens ? `tokens from 0 to ${info.numTokens - 1}` : `${info.inputSize} per time step`;
  const facts = {
    ...info.metadata,
    "Converted from": info.convertedFrom ?? "–",
    Parameters: info.parameters.toLocaleString("en"),
    Inputs: input,
    Outputs: `${info.outputSize} per ${info.returnsLastStep ? "sequence" : "time step"}`,
    Digest: opened.model.digest(),
    "Runs by": [...new Set(info.paths)].join(", ") || "no LSTM",
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

const openFile = (file) => file && openModel(file.name, () => file.arrayBuffer());

$("model-file").addEventListener("change", (event) => openFile(event.target.files[0]));
$("sample").addEventListener("click", () => openSample());
for (const [type, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", isOver);
    if (type !== "drop") return;
    $("model-file").value = "";
    openFile(event.dataTransfer.files[0]);
  });
}

async function openSample() {
  // Not the name of a file that is no longer open.
  $("model-file").value = "";
  await openModel("amp.safetensors", () => fetchBytes("data/amp.safetensors"));
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  return response.arrayBuffer();
}

// ---- 2. Amp

/** What plays, from Play to Stop. */
let playing;

async function play(session) {
  if (!opened) await openSample();
  if (session !== playing) return;
  if (!opened) throw new Error("there is no model; open one above");
  const { name, model, bytes } = opened;
  if (model.info.readsTokens || model.inputSize !== 1 || model.outputSize !== 1 || model.info.returnsLastStep) {
    throw new Error(`${name}: expected a model with one input and one output per time step`);
  }
  const source = document.querySelector("input[name=source]:checked").value;
  const file = $("recording").files[0];
  if (source === "file" && !file) throw new Error("choose a recording first");
  const rate = Number(model.info.metadata.sample_rate) || 48000;
  const context = (session.context = new AudioContext({ sampleRate: rate }));
  await context.audioWorklet.addModule("amp-worklet.js");
  const module = await compile();
  // The user may have stopped meanwhile, and closed the context.
  if (session !== playing) return;
  const amp = new AudioWorkletNode(context, "lstm-amp", { channelCount: 1, channelCountMode: "explicit", processorOptions: { module, bytes } });
  amp.port.onmessage = ({ data }) => {
    if (session !== playing) return;
    if (data.error) return fail(session, new Error(data.error));
    $("load").value = data.load;
    $("load-text").textContent = `${data.load.toFixed(1)} % of real time`;
  };
  amp.onprocessorerror = () => fail(session, new Error("the amp stopped after an error in the audio thread"));
  amp.port.postMessage({ bypass: $("bypass").checked });
  amp.connect(context.destination);
  session.amp = amp;
  if (source === "microphone") {
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    // Whoever stopped during the question wants no microphone.
    if (session !== playing) return microphone.getTracks().forEach((track) => track.stop());
    session.microphone = microphone;
    context.createMediaStreamSource(microphone).connect(amp);
  } else {
    const buffer = source === "file" ? await context.decodeAudioData(await file.arrayBuffer()) : pluck(context);
    if (session !== playing) return;
    const node = context.createBufferSource();
    node.buffer = buffer;
    node.loop = true;
    node.connect(amp);
    node.start();
  }
  say($("amp-status"), `Playing through ${name} at ${rate} Hz.`);
}

function stop() {
  const session = playing;
  playing = undefined;
  session?.microphone?.getTracks().forEach((track) => track.stop());
  session?.context?.close();
  setDisabled($("play"), false);
  setDisabled($("stop"), true);
  $("load").value = 0;
  $("load-text").textContent = "–";
  say($("amp-status"), "Stopped.");
}

/** Stops after an error, unless the user stopped first. */
function fail(session, error) {
  if (session !== playing) return;
  stop();
  sayError($("amp-status"))(error);
}

/** A button that does nothing, and keeps the keyboard's focus. */
function setDisabled(button, isDisabled) {
  button.setAttribute("aria-disabled", isDisabled);
}

const isDisabled = (button) => button.getAttribute("aria-disabled") === "true";

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

$("play").addEventListener("click", () => {
  if (isDisabled($("play"))) return;
  setDisabled($("play"), true);
  setDisabled($("stop"), false);
  say($("amp-status"), "Starting …");
  const session = (playing = {});
  play(session).catch((error) => fail(session, error));
});
$("stop").addEventListener("click", () => isDisabled($("stop")) || stop());
$("recording").addEventListener("change", () => (document.querySelector("input[value=file]").checked = true));
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

const forecastData = fetchBytes("data/forecast.json").then((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
forecastData.then((data) => ($("digest-native").textContent = data.digest), sayError($("train-status")));

$("train").addEventListener("click", () => {
  if (isDisabled($("train"))) return;
  setDisabled($("train"), true);
  say($("train-status"), "Training …");
  forecastData.then(train).catch((error) => endTraining(error.message, true));
});

function endTraining(text, isError = false) {
  say($("train-status"), text, isError);
  setDisabled($("train"), false);
}

function train(data) {
  const losses = [];
  const start = performance.now();
  const drawLosses = () => {
    const points = losses.map((loss, k) => [k + 1, loss]);
    const xLabels = [0, 200, 400, data.steps].map((step) => [step, String(step)]);
    chart($("loss-chart"), [{ points, name: "loss" }], { xLabels, yMax: 1.2, label: `Loss: ${losses.at(-1).toFixed(3)} after ${losses.length} steps` });
    $("progress").value = losses.length;
  };
  const worker = new Worker("forecast-worker.js", { type: "module" });
  worker.onerror = (event) => endTraining(event.message || "the Worker did not start", true);
  worker.onmessage = ({ data: message }) => {
    if (message.error) return endTraining(message.error, true);
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
    endTraining(`Trained in ${((performance.now() - start) / 1000).toFixed(1)} s. The mean error of the forecast is ${(100 * error).toFixed(1)} %. The digests are ${isEqual ? "equal" : "different"}.`);
  };
}

Runtime.default().then(
  async (runtime) => {
    const model = runtime.open(await fetchBytes("data/amp.safetensors"));
    $("instructions").textContent = model.info.instructions;
    model.free();
  },
  sayError($("model-status")),
);
