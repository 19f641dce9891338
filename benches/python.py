#!/usr/bin/env python3
"""Times the Python package against PyTorch and ONNX Runtime in one process, on cases of cases.json.

  python.py [--threads N] [--rounds N] [--cases NAME,...]

It needs the packages lstm-rs, and torch, onnx and onnxruntime to compare with. The subjects take turns, so that what else
the machine does affects all of them. A time is the median of the rounds; a ratio is ours to the fastest other.
"""
import argparse
import json
import logging
import pathlib
import statistics
import time
import warnings

import lstm
import numpy as np

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--cases", default="stream-h24,vad-h128,single-h512,batch-h512")
args = parser.parse_args()
# The quantizer advises to pre-process a model, which changes nothing here.
logging.getLogger().setLevel(logging.ERROR)


def torch_subjects(case, weights, x):
    import torch

    torch.set_num_threads(args.threads)
    model = torch.nn.LSTM(case["input"], case["hidden"]).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Only layers inside a module are converted.
        int8 = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(model), {torch.nn.LSTM}, dtype=torch.qint8)[0]
    tensor = torch.from_numpy(x)

    def call(model):
        with torch.inference_mode():
            return model(tensor)[0].numpy()

    return {"torch": lambda: call(model), "torch int8": lambda: call(int8)}


def onnxruntime_subjects(case, weights, x):
    import tempfile

    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    hidden = case["hidden"]

    def reorder(value):
        """From PyTorch's order of gates to ONNX's."""
        i, f, g, o = np.split(value, 4)
        return np.concatenate([i, o, f, g])

    arrays = {
        "W": reorder(weights["weight_ih_l0"])[None],
        "R": reorder(weights["weight_hh_l0"])[None],
        "B": np.concatenate([reorder(weights["bias_ih_l0"]), reorder(weights["bias_hh_l0"])])[None],
    }
    steps, batch, _ = x.shape
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["y", "h", "c"], hidden_size=hidden)],
        "lstm",
        [value("x", steps, batch, case["input"])],
        [value("y", steps, 1, batch, hidden), value("h", 1, batch, hidden), value("c", 1, batch, hidden)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
    options.log_severity_level = 3
    subjects = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        onnx.save(model, path)
        quantized = path.with_suffix(".int8.onnx")
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
        for name, file in [("onnxruntime", path), ("onnxruntime int8", quantized)]:
            session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            subjects[name] = lambda session=session: session.run(None, {"x": x})[0][:, 0]
    return subjects


def our_subjects(case, weights, x):
    subjects = {}
    for precision in ("f32", "int8"):
        model = lstm.LSTM(case["input"], case["hidden"], precision=precision, threads=args.threads)
        model.load_state_dict(weights)
        suffix = "" if precision == "f32" else f" {precision}"
        subjects[f"lstm{suffix}"] = lambda model=model: model(x)[0]
        if case["kind"] == "step":
            stream, row, out = model.stream(), x[0, 0].copy(), np.empty(case["hidden"], np.float32)
            subjects[f"lstm{suffix}, stream.step(x, out)"] = lambda s=stream: s.step(row, out)
            subjects[f"lstm{suffix}, stream.step(x)"] = lambda s=stream: s.step(row)
    return subjects


def times(subjects):
    """The median time of a call in seconds, by subject."""
    counts = {}
    for name, run in subjects.items():
        for _ in range(5):
            run()
        start = time.perf_counter()
        for _ in range(3):
            run()
        counts[name] = max(1, int(0.05 * 3 / (time.perf_counter() - start)))
    samples = {name: [] for name in subjects}
    for _ in range(args.rounds):
        for name, run in subjects.items():
            count = range(counts[name])
            start = time.perf_counter()
            for _ in count:
                run()
            samples[name].append((time.perf_counter() - start) / len(count))
    return {name: statistics.median(values) for name, values in samples.items()}


cases = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())
cases = {case["name"]: case for case in (cases["cases"] if isinstance(cases, dict) else cases)}
for name in args.cases.split(","):
    case = cases[name]
    x = np.random.default_rng(0).standard_normal((case["seq"], case["batch"], case["input"]), dtype=np.float32)
    weights = lstm.LSTM(case["input"], case["hidden"], seed=1).state_dict()
    subjects = our_subjects(case, weights, x)
    peers = {}
    for make in (torch_subjects, onnxruntime_subjects):
        try:
            peers |= make(case, weights, x)
        except ImportError as error:
            print(f"{make.__name__}: not compared: {error}")
    expected = subjects["lstm"]()
    for peer, run in peers.items():
        difference = np.abs(run() - expected).max()
        assert difference < (0.05 if "int8" in peer else 1e-4), (peer, difference)
    results = times(subjects | peers)
    print(f"\n{name}, {args.threads} thread(s)")
    for subject, seconds in results.items():
        print(f"  {subject:32} {seconds * 1e6:10.2f} us")
    for ours, suffix in [("lstm", ""), ("lstm int8", " int8")]:
        others = {peer: results[peer] for peer in peers if peer.endswith(" int8") == bool(suffix)}
        if others:
            best = min(others, key=others.__getitem__)
            print(f"  {ours} takes {results[ours] / others[best]:.2f} of the time of {best}")
