// The training and the forecast of the demo.

const YEAR = 12;

/** Trains and forecasts as native code does, in the same order. `progress` gets the losses since the last call. */
export function trainForecast(runtime, file, data, progress = () => {}) {
  const { logs: known, mean, std, steps } = data;
  const features = (logs, t) => {
    const growth = (t) => (logs[t] - logs[t - YEAR] - mean) / std;
    return [growth(t), t + 1 >= 2 * YEAR ? growth(t + 1 - YEAR) : 0];
  };
  const inputs = [];
  for (let t = YEAR; t < known.length; t++) inputs.push(features(known, t));
  // Each month is an input, and the growth of the next one is its target.
  const x = Float32Array.from(inputs.slice(0, -1).flat());
  const target = Float32Array.from(inputs.slice(1), ([growth]) => growth);

  const untrained = runtime.open(file);
  const trainer = untrained.trainer({ optimizer: "adam", learningRate: data.learningRate, weightDecay: data.weightDecay, cosineSteps: steps });
  let losses = [];
  let loss;
  for (let step = 1; step <= steps; step++) {
    losses.push((loss = trainer.step(x, target)));
    if (step % 10 === 0 && step < steps) {
      progress(losses);
      losses = [];
    }
  }
  const model = trainer.model();
  const stream = model.stream();
  const run = (logs, t) => {
    stream.input.set(features(logs, t));
    stream.step();
    return stream.output[0];
  };
  const logs = [...known];
  let y;
  for (let t = YEAR; t < known.length; t++) y = run(logs, t);
  const outputs = [];
  for (let month = 0; month < data.values.length - known.length; month++) {
    if (month > 0) y = run(logs, logs.length - 1);
    outputs.push(y);
    logs.push(logs[logs.length - YEAR] + y * std + mean);
  }
  const forecast = logs.slice(known.length).map(Math.exp);
  for (const object of [stream, model, trainer, untrained]) object.free();
  return { losses, loss, forecast, digest: runtime.digest(outputs) };
}
