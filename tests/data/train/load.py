#!/usr/bin/env python3
"""Loads a trained model into PyTorch and compares the outputs: load.py MODEL X_AND_Y      needs torch and safetensors

MODEL contains the tensors `lstm.*` and `head.*`. X_AND_Y contains an input `x` (batch, steps, features) and the expected
outputs `y`. Prints the largest |got - y| / (1 + |y|) in float32.
"""
import sys
import torch
from safetensors.torch import load_file

weights, data = load_file(sys.argv[1]), load_file(sys.argv[2])
names = [name.removeprefix("lstm.") for name in weights if name.startswith("lstm.")]
layers = sum(name.startswith("weight_ih_l") and not name.endswith("_reverse") for name in names)
outputs, features = weights["head.weight"].shape

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        hidden, size = weights["lstm.weight_ih_l0"].shape
        directions = 2 if "weight_ih_l0_reverse" in names else 1
        proj = weights["lstm.weight_hr_l0"].shape[0] if "weight_hr_l0" in names else 0
        self.lstm = torch.nn.LSTM(size, hidden // 4, layers, batch_first=True, bidirectional=directions == 2, proj_size=proj)
        self.head = torch.nn.Linear(features, outputs)

model = Model()
model.load_state_dict(weights, strict=True)
with torch.no_grad():
    y = model.head(model.lstm(data["x"])[0])
print(((y - data["y"]).abs() / (1 + data["y"].abs())).max().item())
