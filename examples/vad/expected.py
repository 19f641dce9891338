"""Speech by espeak-ng, and the probabilities of Silero VAD's ONNX model: under ONNX Runtime, and in float64.

    python3 expected.py silero_vad_16k_op15.onnx OUT      (pip: numpy onnx onnxruntime; Debian: espeak-ng)

Writes OUT/speech.wav, 16 kHz, with pauses between sentences, and OUT/probabilities.json: `onnxruntime` and `float64`, one
probability per 512 samples each. ONNX Runtime's own rounding errors reach 2e-5.
"""
import json, subprocess, sys, wave
import numpy as np, onnx, onnxruntime
from onnx import numpy_helper

model, out = sys.argv[1:]
RATE, CHUNK, CONTEXT = 16000, 512, 64


def speak(text):
    subprocess.run(["espeak-ng", "-v", "en", "-w", f"{out}/espeak.wav", text], check=True)
    with wave.open(f"{out}/espeak.wav") as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    data = np.frombuffer(data, "<i2").astype(float)
    # Band-limited to the new rate by cutting the spectrum.
    count = round(len(data) * RATE / rate)
    spectrum = np.fft.rfft(data)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count) * count / len(data)


noise = np.random.default_rng(1)
pause = lambda seconds: noise.normal(0, 20, round(seconds * RATE))
sentences = ["The quick brown fox jumps over the lazy dog.", "Long short term memory.", "One, two, three, four, five."]
parts = [pause(0.7)]
for sentence in sentences:
    parts += [speak(sentence), pause(0.9)]
samples = np.clip(np.round(np.concatenate(parts)), -32768, 32767).astype("<i2")
with wave.open(f"{out}/speech.wav", "wb") as file:
    file.setparams((1, 2, RATE, len(samples), "NONE", ""))
    file.writeframes(samples.tobytes())

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
x = samples.astype(np.float32) / 32768
x = np.concatenate([np.zeros(CONTEXT, np.float32), x, np.zeros(-len(x) % CHUNK, np.float32)])
chunks = [x[start - CONTEXT : start + CHUNK] for start in range(CONTEXT, len(x), CHUNK)]
state, probabilities = np.zeros((2, 1, 128), np.float32), []
for chunk in chunks:
    probability, state = session.run(None, {"input": chunk[None], "state": state, "sr": np.array(RATE)})
    probabilities.append(float(probability[0, 0]))

weights = {t.name: numpy_helper.to_array(t).astype(float) for t in onnx.load(model).graph.initializer}
sigmoid = lambda v: 1 / (1 + np.exp(-v))


def convolution(x, weight, bias, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=1)[:, ::stride]
    return np.einsum("itk,oik->ot", windows, weight) + bias[:, None]


h, c, exact = np.zeros(128), np.zeros(128), []
lstm = [weights[f"model.decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
for chunk in chunks:
    y = np.pad(chunk.astype(float), (0, 64), mode="reflect")[None]
    basis = weights["model.stft.forward_basis_buffer"]
    y = convolution(y, basis, np.zeros(len(basis)), 128, 0)
    y = np.hypot(y[:129], y[129:])
    for k, stride in enumerate([1, 2, 2, 1]):
        name = f"model.encoder.{k}.reparam_conv"
        y = np.maximum(convolution(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1), 0)
    i, f, g, o = np.split(lstm[0] @ y[:, 0] + lstm[2] + lstm[1] @ h + lstm[3], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    head = "model.decoder.decoder.2"
    exact.append(float(sigmoid(weights[f"{head}.weight"][0, :, 0] @ np.maximum(h, 0) + weights[f"{head}.bias"])[0]))
json.dump({"onnxruntime": probabilities, "float64": exact}, open(f"{out}/probabilities.json", "w"))
