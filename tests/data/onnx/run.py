#!/usr/bin/env python3
"""Runs each DIR/NAME.onnx in ONNX Runtime on the inputs in DIR/NAME.safetensors and compares the outputs: run.py DIR

Needs onnx, onnxruntime and safetensors. Checks each model and its shapes with onnx.checker. Prints one line for each model
with its name and the largest |got - want| / (1 + |want|) in float32.
"""
import pathlib, sys
import numpy as np, onnx, onnxruntime
from safetensors.numpy import load_file

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    arrays = load_file(path.with_suffix(".safetensors"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {i.name: arrays.pop(i.name) for i in session.get_inputs()}
    if "sequence_lens" in inputs:
        inputs["sequence_lens"] = inputs["sequence_lens"].astype(np.int32)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))
    assert got.keys() == arrays.keys(), (got.keys(), arrays.keys())
    assert all(got[n].shape == arrays[n].shape for n in arrays), path
    worst = max(float((np.abs(got[n] - arrays[n]) / (1 + np.abs(arrays[n]))).max()) for n in arrays)
    print(path.stem, worst)
