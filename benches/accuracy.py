#!/usr/bin/env python3
"""Errors of quantized LSTMs on trained weights: int12, int8, and ONNX Runtime's int8. Prints the table of docs/quantization.md.

  accuracy.py TOOL SILERO_ONNX SPEECH_WAV FORECAST_SAFETENSORS PASSENGERS_CSV      (pip: numpy onnx onnxruntime safetensors)

TOOL is the tool `lstm`. `examples/vad/fetch.sh` fetches SILERO_ONNX, `examples/vad/expected.py` makes SPEECH_WAV, and the example
`forecast` saves FORECAST_SAFETENSORS. An error is the root mean square of the differences of the LSTM's outputs from those in f32.
"""
import csv, json, logging, pathlib, subprocess, sys, tempfile, wave
import numpy as np, onnx, onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file, save_file

tool, silero, speech, forecast, passengers = sys.argv[1:]
folder = pathlib.Path(tempfile.mkdtemp())
logging.disable(logging.WARNING)


def rms(v):
    return float(np.sqrt(np.mean(np.square(v, dtype=float))))


def silero_case():
    """The LSTM's weights, and its inputs for the speech: the features that the encoder computes."""
    weights = {t.name: numpy_helper.to_array(t).astype(float) for t in onnx.load(silero).graph.initializer}
    with wave.open(speech) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    samples = np.concatenate([np.zeros(64), samples, np.zeros(-len(samples) % 512)])

    def convolution(x, weight, bias, stride, padding):
        x = np.pad(x, ((0, 0), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=1)[:, ::stride]
        return np.einsum("itk,oik->ot", windows, weight) + bias[:, None]

    rows = []
    for start in range(64, len(samples), 512):
        y = np.pad(samples[start - 64 : start + 512], (0, 64), mode="reflect")[None]
        basis = weights["model.stft.forward_basis_buffer"]
        y = convolution(y, basis, np.zeros(len(basis)), 128, 0)
        y = np.hypot(y[:129], y[129:])
        for k, stride in enumerate([1, 2, 2, 1]):
            name = f"model.encoder.{k}.reparam_conv"
            y = np.maximum(convolution(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1), 0)
        rows.append(y[:, 0])
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {f"{name}_l0": weights[f"model.decoder.rnn.{name}"] for name in names}, np.array(rows)


def passengers_case():
    """The LSTM's weights, and its inputs: the growth over a year, standardized, and that of a month eleven months before."""
    values = np.log([float(row[-1]) for row in list(csv.reader(open(passengers)))[1:]])
    growth = values[12:] - values[:-12]
    growth = (growth - growth[:108].mean()) / growth[:108].std(ddof=1)
    before = np.concatenate([np.zeros(11), growth[:-11]])
    tensors = {name: v for name, v in load_file(forecast).items() if "lstm." in name or name.startswith("rec.")}
    prefix = next(name for name in tensors if "weight_ih_l0" in name).split("weight_ih_l0")[0]
    weights = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    return weights, np.stack([growth, before], 1)


print("| model | rms of y | int12 | int8 | ONNX Runtime int8 |\n|---|---|---|---|---|")
for name, case in [("Silero VAD on speech", silero_case), ("passengers", passengers_case)]:
    weights, x = case()
    model, x = folder / "model.safetensors", x.astype(np.float32)
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in weights.items()}, model)
    np.save(folder / "x.npy", x)
    precisions = ["--precision", "f32,int12,int8"]
    command = [tool, "compare", model, "--input", folder / "x.npy", "--backend", "cpu", "--json", *precisions]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert report["exact_runs_identical"]
    errors = {error["precision"]: error for error in report["precisions"]}
    subprocess.run([tool, "convert", model, folder / "model.onnx"], check=True, stdout=subprocess.DEVNULL)
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)

    def run(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(["Y"], {"X": x[:, None]})[0]

    runtime = rms(run(folder / "int8.onnx") - run(folder / "model.onnx"))
    cells = [errors["f32"]["rms_output"], errors["int12"]["rms_error"], errors["int8"]["rms_error"], runtime]
    print(f"| {name} | " + " | ".join(f"{v:.1e}" for v in cells) + " |")
