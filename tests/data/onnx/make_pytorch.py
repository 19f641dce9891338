#!/usr/bin/env python3
"""Exports torch.nn.LSTM to ONNX with both of PyTorch's exporters. Writes pytorch-NAME.onnx, and the inputs and PyTorch's
outputs in pytorch-NAME.safetensors as make_onnx.py does, with the axes of the PyTorch model.

    make_pytorch.py OUT_DIR SEED     needs torch, onnx, onnxscript and safetensors

The files in this folder were written by `make_pytorch.py . 7`.
"""
import itertools, pathlib, sys, warnings
import onnx, torch
from safetensors.torch import save_file

out, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
warnings.filterwarnings("ignore")
torch.manual_seed(seed)
INPUTS, OUTPUTS = ("X", "initial_h", "initial_c"), ("Y", "Y_h", "Y_c")

class Model(torch.nn.Module):
    def __init__(self, state, parts=None, **options):
        super().__init__()
        self.lstm, self.state, self.parts = torch.nn.LSTM(3, 4, **options), state, parts

    def forward(self, x, h=None, c=None):
        y, (h, c) = self.lstm(x, (h, c)) if self.state else self.lstm(x)
        return self.parts(y, h, c) if self.parts else (y, h, c)

def strip(path):
    """Removes metadata that does not affect the results, which is most of the file."""
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    del model.graph.metadata_props[:], model.graph.value_info[:]
    for item in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        item.ClearField("doc_string")
        del item.metadata_props[:]
    onnx.save(model, path)

def export(name, dynamo, dynamic, state, unbatched=False, external=False, opset=None, outputs=OUTPUTS, parts=None, **options):
    model = Model(state, parts, **options).eval()
    directions = 2 if options.get("bidirectional") else 1
    first = options.get("batch_first", False)
    b, s = (0, 1) if first else (1, 0)
    shape = [0, 0, 3]
    shape[b], shape[s] = 2, 5
    x = torch.randn(shape)
    states = [torch.randn(options.get("num_layers", 1) * directions, 2, 4) for _ in range(2)]
    if unbatched:
        x, states = x.select(b, 0), [v[:, 0] for v in states]
    args = (x, *states) if state else (x,)
    arguments = dict(input_names=INPUTS[: len(args)], output_names=outputs, opset_version=opset)
    if dynamic and dynamo:
        batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
        arguments["dynamic_shapes"] = ({b: batch, s: steps}, {1: batch}, {1: batch})[: len(args)]
    elif dynamic:
        arguments["dynamic_axes"] = {"X": {b: "batch", s: "steps"}, **({n: {1: "batch"} for n in INPUTS[1:]} if state else {})}
    path = out / f"pytorch-{name}.onnx"
    if dynamo:
        arguments["external_data"] = external
    torch.onnx.export(model, args, path, dynamo=dynamo, verbose=False, **arguments)
    strip(path)
    with torch.no_grad():
        arrays = {**dict(zip(INPUTS, args)), **dict(zip(outputs, model(*args), strict=True))}
    save_file({n: v.contiguous() for n, v in arrays.items()}, path.with_suffix(".safetensors"))
    print(path.name)

for dynamo, dynamic, state in itertools.product((False, True), repeat=3):
    name = f"{'dynamo' if dynamo else 'script'}-{'dynamic' if dynamic else 'static'}{'-state' if state else ''}"
    export(f"{name}-one", dynamo, dynamic, state)
    export(f"{name}-stacked", dynamo, dynamic, state, num_layers=3)
    export(f"{name}-stacked-bidirectional", dynamo, dynamic, state, num_layers=2, bidirectional=True)
    export(f"{name}-batch-first", dynamo, dynamic, state, num_layers=2, bidirectional=True, batch_first=True, bias=False)
for dynamo in (False, True):
    name = "dynamo" if dynamo else "script"
    export(f"{name}-dropout", dynamo, True, True, num_layers=2, dropout=0.5)
    export(f"{name}-unbatched", dynamo, False, True, unbatched=True)
export("script-opset-9", False, True, True, num_layers=2, bidirectional=True, opset=9)
export("script-opset-12", False, True, False, num_layers=2, opset=12)
export("dynamo-external", True, True, False, num_layers=2, external=True)
export("dynamo-opset-22", True, True, True, num_layers=2, bidirectional=True, opset=22)

# Models that use parts of the outputs: the last step, concatenated final states, one direction.
both = dict(bidirectional=True, batch_first=True)
for dynamo, dynamic in itertools.product((False, True), repeat=2):
    name = f"{'dynamo' if dynamo else 'script'}-{'dynamic' if dynamic else 'static'}"
    export(f"{name}-last", dynamo, dynamic, False, outputs=("Y_h",), parts=lambda y, h, c: (y[:, -1],), batch_first=True)
    export(f"{name}-last-of-both", dynamo, dynamic, False, outputs=("Y",), parts=lambda y, h, c: (y[:, -1],), **both)
    export(f"{name}-states-joined", dynamo, dynamic, False, outputs=("Y_h",), parts=lambda y, h, c: (torch.cat([h[-2], h[-1]], 1),), num_layers=2, **both)
    export(f"{name}-ends", dynamo, dynamic, False, outputs=("Y_h",), parts=lambda y, h, c: (torch.cat([y[:, -1, :4], y[:, 0, 4:]], -1),), **both)
    export(f"{name}-directions", dynamo, dynamic, False, outputs=("Y", "Y_1", "Y_c"), parts=lambda y, h, c: (*y.chunk(2, -1), c[0]), **both)

# Packed sequences of different lengths; the lengths are int64 or int32.
class Packed(Model):
    def forward(self, x, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, self.lstm.batch_first)
        y, (h, c) = self.lstm(packed)
        return torch.nn.utils.rnn.pad_packed_sequence(y, self.lstm.batch_first)[0], h, c

def export_packed(name, kind, **options):
    model, first = Packed(False, **options).eval(), options.get("batch_first", False)
    args = (torch.randn([2, 5, 3] if first else [5, 2, 3]), torch.tensor([5, 3], dtype=kind))
    axes = {"X": {0: "batch", 1: "steps"} if first else {0: "steps", 1: "batch"}, "sequence_lens": {0: "batch"}}
    path, names = out / f"pytorch-script-packed{name}.onnx", ("X", "sequence_lens")
    torch.onnx.export(model, args, path, dynamo=False, input_names=names, output_names=OUTPUTS, dynamic_axes=axes)
    strip(path)
    with torch.no_grad():
        arrays = {**dict(zip(names, args)), **dict(zip(OUTPUTS, model(*args), strict=True))}
    save_file({n: v.contiguous() for n, v in arrays.items()}, path.with_suffix(".safetensors"))
    print(path.name)

export_packed("", torch.int64)
export_packed("-batch-first", torch.int32, batch_first=True)
export_packed("-stacked-bidirectional", torch.int64, num_layers=2, **both)
