#!/usr/bin/env python3
"""Writes ONNX LSTM cases: NAME.onnx with one LSTM node whose weights are initializers, and NAME.safetensors with the
inputs (X, initial_h?, initial_c?, sequence_lens?) and the outputs (Y, Y_h, Y_c). ONNX Runtime computes the outputs; those
of the ONNX standard's node tests come from the standard. ONNX Runtime's CPU provider does not support layout 1 and float
types other than float32: for these cases, the outputs come from an equivalent model in layout 0 and float32.

    make_onnx.py OUT_DIR SEED        needs onnx, onnxruntime and safetensors

The files in this folder were written by `make_onnx.py . 7`.
"""
import pathlib, sys, numpy as np, onnx, onnxruntime as ort
from onnx import helper as oh, numpy_helper as nh, TensorProto as TP
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save_file
out, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]); out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(seed)
NAMES = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
OUTPUTS = (("Y", 4), ("Y_h", 3), ("Y_c", 3))

def graph(name, attrs, inputs, tensors, rename=lambda n: n, nodes=(), outputs=("Y", "Y_h", "Y_c")):
    """A graph with one LSTM node. `rename` maps the names of its operands to names in the graph; `nodes` are further nodes."""
    have = set(inputs) | {t.name.split(":")[0] for t in tensors}
    ins = [rename(n) if n in have else "" for n in NAMES]
    while ins and ins[-1] == "": ins.pop()
    node = oh.make_node("LSTM", ins, [n if n in outputs else "" for n, _ in OUTPUTS], **attrs)
    kind = {np.dtype(np.float32): TP.FLOAT, np.dtype(np.float16): TP.FLOAT16, np.dtype(np.float64): TP.DOUBLE, np.dtype(np.int32): TP.INT32}
    vi = [oh.make_tensor_value_info(n, kind[v.dtype], list(v.shape)) for n, v in inputs.items()]
    y = kind[inputs["X"].dtype]
    vo = [oh.make_tensor_value_info(n, y, [None] * r) for n, r in OUTPUTS if n in outputs]
    return oh.make_graph([*nodes, node], name, vi, vo, tensors)

def model(g, opset=14):
    m = oh.make_model(g, opset_imports=[oh.make_opsetid("", opset)]); m.ir_version = 8
    onnx.checker.check_model(m)
    return m

def save(name, m, arrays, how=""):
    (out / f"{name}.onnx").write_bytes(m.SerializeToString())
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, out / f"{name}.safetensors")
    print(name, how)

def run(m, inputs):
    s = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in m.graph.output], s.run(None, inputs)))

def tensors(weights): return [nh.from_array(v, n) for n, v in weights.items()]

# The node tests of the ONNX standard.
import onnx.backend.test.case.node as nodes
from onnx.backend.test.case.node import lstm  # noqa: F401  (registers its cases)
for c in nodes._NodeTestCases:
    if "lstm" not in c.name: continue
    n = c.model.graph.node[0]; ins, outs = c.data_sets[0]
    # A data set contains one array for each graph input that is not empty, in order.
    named = dict(zip([i.name for i in c.model.graph.input], ins)); onames = [o.name for o in c.model.graph.output]
    have = {NAMES[k]: np.asarray(named[i]) for k, i in enumerate(n.input) if i}
    inputs = {k: v for k, v in have.items() if k in ("X", "sequence_lens", "initial_h", "initial_c")}
    weights = {k: v for k, v in have.items() if k in ("W", "R", "B", "P")}
    by = dict(zip(onames, outs))
    exp = {OUTPUTS[k][0]: np.asarray(by[o]) for k, o in enumerate(n.output) if o}
    attrs = {a.name: oh.get_attribute_value(a) for a in n.attribute}
    attrs = {k: (v.decode() if isinstance(v, bytes) else v) for k, v in attrs.items()}
    save("standard-" + c.name.removeprefix("test_"), model(graph(c.name, attrs, inputs, tensors(weights))), {**inputs, **exp}, "given")

def draw(I, H, B, T, D=1, bias=True, init=False, lens=None, peep=False, s=0.4):
    f = lambda *sh: (rng.uniform(-1, 1, sh) * s).astype(np.float32)
    inputs = {"X": rng.standard_normal((T, B, I)).astype(np.float32)}
    if lens is not None: inputs["sequence_lens"] = np.array(lens, np.int32)
    if init: inputs |= {n: f(D, B, H) for n in ("initial_h", "initial_c") if init is True or n == init}
    w = {"W": f(D, 4*H, I), "R": f(D, 4*H, H)}
    if bias: w["B"] = f(D, 8*H)
    if peep: w["P"] = f(D, 3*H)
    return inputs, w

def gen(name, I, H, B, T, opset=14, outputs=("Y", "Y_h", "Y_c"), attrs={}, **kw):
    inputs, w = draw(I, H, B, T, **kw)
    m = model(graph(name, {"hidden_size": H, **attrs}, inputs, tensors(w), outputs=outputs), opset)
    save(name, m, {**inputs, **run(m, inputs)}, f"{attrs} opset {opset}")
both = {"direction": "bidirectional"}
gen("forward", 5, 9, 3, 7, init=True)
gen("reverse-lens", 5, 9, 3, 7, init=True, lens=[7, 2, 5], attrs={"direction": "reverse"})
gen("bidirectional-lens", 5, 9, 4, 7, D=2, init=True, lens=[1, 7, 4, 6], attrs=both)
gen("peephole-bidirectional", 6, 11, 2, 9, D=2, peep=True, init=True, attrs=both)
gen("peephole-bidirectional-clip", 6, 11, 2, 9, D=2, peep=True, init=True, s=2.0, attrs={**both, "clip": 0.8})
gen("peephole-no-bias", 4, 8, 2, 5, bias=False, peep=True)
gen("clip", 4, 8, 2, 10, s=3.0, init=True, attrs={"clip": 0.7})
gen("input-forget", 4, 8, 2, 10, init=True, attrs={"input_forget": 1})
gen("input-forget-peephole-reverse-clip", 4, 8, 2, 10, peep=True, s=2.0, attrs={"input_forget": 1, "direction": "reverse", "clip": 1.5})
gen("no-bias", 4, 8, 2, 5, bias=False)
gen("initial-h-only", 4, 8, 2, 5, init="initial_h")
gen("initial-c-only", 4, 8, 2, 5, init="initial_c")
gen("large", 16, 70, 4, 30, init=True, s=0.1)
gen("explicit-defaults", 4, 8, 2, 5, attrs={"direction": "forward", "input_forget": 0, "layout": 0, "activations": ["Sigmoid", "Tanh", "Tanh"]})
gen("activations-bidirectional", 4, 8, 2, 5, D=2, attrs={**both, "activations": ["Sigmoid", "Tanh", "Tanh"] * 2})
gen("last-state-only", 4, 8, 2, 5, outputs=("Y_h",))
for opset in (7, 9, 13, 22): gen(f"opset-{opset}", 4, 8, 2, 5, D=2, init=True, opset=opset, attrs=both)

# Layout 1: the same arrays with the batch as the first axis.
for name, D, kw, attrs in [("layout-1", 1, {}, {}), ("layout-1-bidirectional-lens", 2, {"lens": [3, 5]}, both)]:
    inputs, w = draw(4, 8, 2, 5, D=D, init=True, **kw)
    want = run(model(graph(name, {"hidden_size": 8, **attrs}, inputs, tensors(w))), inputs)
    first = lambda n, v: {"Y": lambda: v.transpose(2, 0, 1, 3), "sequence_lens": lambda: v}.get(n, lambda: v.swapaxes(0, 1))()
    ins = {n: first(n, v) for n, v in inputs.items()}
    m = model(graph(name, {"hidden_size": 8, "layout": 1, **attrs}, ins, tensors(w)))
    save(name, m, {**ins, **{n: first(n, v) for n, v in want.items()}}, "layout 1")

# Initial states and lengths that are constants: initializers, or outputs of nodes.
inputs, w = draw(4, 8, 2, 5, init=True, lens=[2, 5])
fixed = {n: v for n, v in inputs.items() if n != "X"}
m = model(graph("constants", {"hidden_size": 8}, {"X": inputs["X"]}, tensors({**w, **fixed})))
save("constants", m, {"X": inputs["X"], **run(m, {"X": inputs["X"]})}, "states and lengths as initializers")
made = [oh.make_node("Constant", [], ["W"], value=nh.from_array(w["W"])), oh.make_node("Identity", ["R:0"], ["R"])]
kept = [nh.from_array(v, n + ":0" if n == "R" else n) for n, v in w.items() if n != "W"]
g = graph("constant-nodes", {"hidden_size": 8}, {"X": inputs["X"]}, [*kept, nh.from_array(w["W"], "W")], nodes=made)
del g.initializer[-1]
m = model(g)
save("constant-nodes", m, {"X": inputs["X"], **run(m, {"X": inputs["X"]})}, "Constant and Identity")

# Weights of other element types with Cast nodes, which ONNX Runtime supports.
for name, dtype in (("float16", np.float16), ("float64", np.float64)):
    inputs, w = draw(4, 8, 2, 5, init=True)
    w = {n: v.astype(dtype) for n, v in w.items()}
    casts = [oh.make_node("Cast", [n + ":0"], [n], to=TP.FLOAT) for n in w]
    m = model(graph(name, {"hidden_size": 8}, inputs, tensors({n + ":0": v for n, v in w.items()}), nodes=casts))
    save(name + "-cast", m, {**inputs, **run(m, inputs)}, "Cast")
    # The whole model in that type, with the elements in the typed fields of the tensors.
    narrow = {n: v.astype(dtype) for n, v in inputs.items()}
    want = run(model(graph(name, {"hidden_size": 8}, inputs, tensors({n: v.astype(np.float32) for n, v in w.items()}))), {n: v.astype(np.float32) for n, v in narrow.items()})
    kind = {np.float16: TP.FLOAT16, np.float64: TP.DOUBLE}[dtype]
    typed = [oh.make_tensor(n, kind, v.shape, v.ravel()) for n, v in w.items()]
    m = model(graph(name, {"hidden_size": 8}, narrow, typed))
    save(name, m, {**narrow, **want}, "typed fields")
import ml_dtypes
inputs, w = draw(4, 8, 2, 5)
w = {n: v.astype(ml_dtypes.bfloat16) for n, v in w.items()}
want = run(model(graph("b", {"hidden_size": 8}, inputs, tensors({n: v.astype(np.float32) for n, v in w.items()}))), inputs)
casts = [oh.make_node("Cast", [n + ":0"], [n], to=TP.FLOAT) for n in w]
m = model(graph("bfloat16", {"hidden_size": 8}, inputs, tensors({n + ":0": v for n, v in w.items()}), nodes=casts))
save("bfloat16-cast", m, {**inputs, **want}, "Cast")
inputs, w = draw(4, 8, 2, 5)
m = model(graph("float32", {"hidden_size": 8}, inputs, [oh.make_tensor(n, TP.FLOAT, v.shape, v.ravel()) for n, v in w.items()]))
save("float32-typed", m, {**inputs, **run(m, inputs)}, "typed fields")

# Weights in an external file.
inputs, w = draw(4, 8, 2, 5)
m = model(graph("external", {"hidden_size": 8}, inputs, tensors(w)))
want, blob = run(m, inputs), b""
for t in m.graph.initializer:
    raw = t.raw_data
    set_external_data(t, "external-weights.bin", offset=len(blob), length=len(raw)); t.ClearField("raw_data")
    blob += raw
(out / "external-weights.bin").write_bytes(blob)
save("external", m, {**inputs, **want}, "external data")

# Two bidirectional layers of two nodes each, as some exporters write them. The initial states are split from one input and
# the final states are concatenated.
inputs, lower = draw(4, 8, 2, 5, D=2, init=True)
_, upper = draw(16, 8, 2, 5, D=2)
node, parts, init = oh.make_node, [], [nh.from_array(np.array([1], np.int64), "one")]
for k, w in enumerate((lower, upper)):
    for d, direction in enumerate(("forward", "reverse")):
        own = {n: f"{n}{k}{d}" for n in w}
        init += [nh.from_array(w[n][d:d + 1], own[n]) for n in w]
        states = ["", f"h{d}", f"c{d}"] if k == 0 else []
        ins = ["X" if k == 0 else "joined0", *(own[n] for n in ("W", "R", "B")), *states]
        parts.append(node("LSTM", ins, [f"{o}{k}{d}" for o in ("y", "h_out", "c_out")], direction=direction, hidden_size=8))
        parts.append(node("Squeeze", [f"y{k}{d}", "one"], [f"y{k}{d}_"]))
    parts.append(node("Concat", [f"y{k}0_", f"y{k}1_"], [f"joined{k}" if k == 0 else "Y"], axis=2))
parts[:0] = [node("Split", [n], [n[-1] + "0", n[-1] + "1"], axis=0) for n in ("initial_h", "initial_c")]
parts.append(node("Concat", ["h_out00", "h_out01", "h_out10", "h_out11"], ["Y_h"], axis=0))
given = {"X": inputs["X"], **{n: inputs[n] for n in ("initial_h", "initial_c")}}
info = lambda n, shape: oh.make_tensor_value_info(n, TP.FLOAT, shape)
for name, states in (("two-nodes", True), ("two-nodes-zeros", False)):
    nodes = [p for p in parts if states or p.op_type != "Split"]
    ins = given if states else {"X": given["X"]}
    for p in nodes:
        if p.op_type == "LSTM" and not states: del p.input[4:]
    m = model(oh.make_graph(nodes, name, [info(n, list(v.shape)) for n, v in ins.items()], [info("Y", [None] * 3), info("Y_h", [None] * 3)], init))
    save(name, m, {**ins, **run(m, ins)}, "one node for each direction")
