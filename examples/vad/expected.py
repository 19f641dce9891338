"""Speech by espeak-ng, and the probabilities of Silero VAD's ONNX model under ONNX Runtime.

    python3 expected.py MODEL.onnx OUT      (pip: numpy onnxruntime; Debian: espeak-ng)

Writes OUT/speech.wav, 16 kHz, with pauses between sentences, and OUT/probabilities.json, one probability per 512 samples.
"""
import json, subprocess, sys, wave
import numpy as np, onnxruntime

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
state, probabilities = np.zeros((2, 1, 128), np.float32), []
for start in range(CONTEXT, len(x), CHUNK):
    inputs = {"input": x[None, start - CONTEXT : start + CHUNK], "state": state, "sr": np.array(RATE)}
    probability, state = session.run(None, inputs)
    probabilities.append(float(probability[0, 0]))
json.dump(probabilities, open(f"{out}/probabilities.json", "w"))
