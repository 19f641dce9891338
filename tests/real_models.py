"""Compares models from public packages with their own runtimes; tests/real_models.md has the results.

    python3 tests/real_models.py LSTM FOLDER      (pip: numpy torch onnx onnxruntime h5py safetensors)

LSTM is the tool, target/release/lstm. FOLDER gets the packages, which this script fetches by name, version and hash.
Prints one line per model: the file, whether it is the whole model or the LSTM alone, and the largest |error| / (1 + |y|).
"""
import glob, hashlib, json, os, subprocess, sys, urllib.request, zipfile
import h5py, numpy as np, onnx, onnxruntime, torch
from safetensors.torch import load_file

tool, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
PACKAGES = {
    "silero-vad==6.2.3": "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    "ddddocr==1.6.1": "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
    "Resemblyzer==0.1.4": "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
    "arabic-diacritizer==1.0.0": "c4a62e8563baec1a206b3594710880557220f9b67287b102043531dd670dd45f",
    "g2p-fa==1.1.0": "4b5fde901920fa326852ae121431c3d91e696e1290f9fca87b5657ea2e56a320",
    "nano-ocr==0.1.0": "7246e23c29ded72b5808e09f18c5954184c71f664deb025ed52dde248eee0eff",
    "asmscan-bilstm==1.0.0": "8ea505beeb4bc28d4cc5cd681f310ee8f5f7f90b45c25e4f7b8790bb5ac1bd87",
}
VAD_WEB = "https://registry.npmjs.org/@ricky0123/vad-web/-/vad-web-0.0.31.tgz"
VAD_WEB_HASH = "d1a211cf1a2ed26297da52cc08de79e75d79838a274bfc6de546feb1f828c940"
for package, digest in PACKAGES.items():
    wheels = lambda: glob.glob(f"{folder}/{package.split('=')[0].replace('-', '_')}-*.whl")
    if not wheels():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package, "-d", folder]
        subprocess.run(command, check=True)
    assert hashlib.sha256(open(wheels()[0], "rb").read()).hexdigest() == digest, package
    zipfile.ZipFile(wheels()[0]).extractall(folder)
archive = f"{folder}/vad-web.tgz"
if not os.path.exists(archive):
    urllib.request.urlretrieve(VAD_WEB, archive)
assert hashlib.sha256(open(archive, "rb").read()).hexdigest() == VAD_WEB_HASH
subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)

rng = np.random.default_rng(1)
features = lambda size, steps=20: rng.standard_normal((1, steps, size)).astype(np.float32)


def run(path, x, *options):
    """The outputs of the tool."""
    np.save(f"{folder}/x.npy", x)
    command = [tool, "run", path, "--input", f"{folder}/x.npy", "--output", f"{folder}/y.npy", "--backend", "cpu", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return np.load(f"{folder}/y.npy")


def report(path, kind, got, expected):
    expected = np.asarray(expected)
    error = np.max(np.abs(got - expected) / (1 + np.abs(expected)))
    print(f"{os.path.relpath(path, folder)} | {kind} | {error:.1e}", flush=True)


def torch_lstm(state, prefix, **options):
    """A torch.nn.LSTM in double precision from the tensors with a prefix."""
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    layers = sum(k.startswith("weight_ih") and not k.endswith("reverse") for k in state)
    hidden, size = state["weight_hh_l0"].shape[1], state["weight_ih_l0"].shape[1]
    both = "weight_ih_l0_reverse" in state
    lstm = torch.nn.LSTM(size, hidden, layers, bidirectional=both, batch_first=True, **options)
    lstm.load_state_dict(state)
    return lstm.double()


def graphs(graph, path="", outer=()):
    """Each graph of a model with its path and the graphs around it."""
    yield graph, path, outer
    for k, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name = f"{path}{node.name or k}/{attribute.name.removesuffix('_branch')}/"
                yield from graphs(attribute.g, name, (*outer, graph))


def onnx_alone(path):
    """Each LSTM of an ONNX file alone, against ONNX Runtime on a model of this node and its constants."""
    model = onnx.load(path)
    for graph, prefix, outer in graphs(model.graph):
        for k, node in enumerate(graph.node):
            if node.op_type != "LSTM":
                continue
            name = f"{prefix}{node.name or k}"
            nodes = [n for g in (*outer, graph) for n in g.node]
            constants = [t for g in (*outer, graph) for t in g.initializer]
            producer = {o: n for n in nodes for o in n.output}
            used, todo = [], [i for i in node.input[1:4] if i]
            while todo:
                n = producer.get(todo.pop())
                if n is not None and n not in used:
                    used.append(n)
                    todo += n.input
            used.sort(key=nodes.index)
            lstm = onnx.NodeProto()
            lstm.CopyFrom(node)
            del lstm.input[4:]
            needed = {i for n in [*used, lstm] for i in n.input}
            constants = [t for t in constants if t.name in needed]
            part = onnx.helper.make_graph(
                [*used, lstm], "part", [onnx.helper.make_tensor_value_info(node.input[0], 1, None)],
                [onnx.helper.make_tensor_value_info(node.output[0], 1, None)], constants,
            )
            part = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
            session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
            result = subprocess.run([tool, "inspect", path, "--json", "--name", name], capture_output=True, text=True)
            if result.returncode:
                print(f"{os.path.relpath(path, folder)} | {name} | {result.stderr.strip()}", flush=True)
                continue
            size = json.loads(result.stdout)["layers"][0]["input_size"]
            x = features(size)
            y = session.run(None, {node.input[0]: x.transpose(1, 0, 2)})[0]
            steps, directions, batch, hidden = y.shape
            y = y.transpose(2, 0, 1, 3).reshape(batch, steps, directions * hidden)
            got = run(path, x, "--name", name)
            # An output that is the final state has one row per sequence.
            report(path, f"LSTM `{name}` alone", got, y if got.shape == y.shape else y[:, -1].reshape(got.shape))


for path in sorted(glob.glob(f"{folder}/**/*.onnx", recursive=True)):
    onnx_alone(path)

path = f"{folder}/silero_vad/data/silero_vad_16k.safetensors"
cell = {f"{k}_l0".removeprefix("lstm_cell."): v for k, v in load_file(path).items() if k.startswith("lstm_cell.")}
x = features(128)
report(path, "LSTM alone", run(path, x, "--name", "lstm_cell"), torch_lstm(cell, "")(torch.tensor(x).double())[0].detach())

load = lambda path: torch.load(path, map_location="cpu", weights_only=True)
for path, prefix, options in [
    (f"{folder}/diacritize/assets/bilstm_best.pt", "lstm.", []),
    (f"{folder}/nano_ocr/model/nano_ocr_ftr.pth", "rnn.", []),
    (f"{folder}/g2p_fa/data/weights", "encoder.rnn.", []),
    (f"{folder}/g2p_fa/data/weights", "decoder.rnn.", []),
]:
    lstm = torch_lstm(load(path), prefix)
    x = features(lstm.input_size)
    got = run(path, x, "--name", prefix[:-1])
    report(path, f"LSTM `{prefix[:-1]}` alone", got, lstm(torch.tensor(x).double())[0].detach())

path = f"{folder}/resemblyzer/pretrained.pt"
state = load(path)["model_state"]
lstm, x = torch_lstm(state, "lstm."), features(40)
y = lstm(torch.tensor(x).double())[1][0][-1] @ state["linear.weight"].double().T + state["linear.bias"].double()
got = run(path, x, "--name", "model_state", "--layers", "lstm, last, linear:relu")
report(path, "whole, before the division by the norm", got, torch.relu(y).detach().numpy()[:, None].reshape(got.shape))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras_lstm(group, x, reverse=False):
    """An LSTM of Keras in float64: gates i, f, c, o."""
    cell = next(iter(group.values()))
    kernel, recurrent, bias = (np.array(cell[f"{n}:0"], float) for n in ("kernel", "recurrent_kernel", "bias"))
    h = c = np.zeros(recurrent.shape[0])
    y = []
    for row in x[::-1] if reverse else x:
        i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.array(y[::-1] if reverse else y)


for path in sorted(glob.glob(f"{folder}/asmscan/**/*.h5", recursive=True)):
    with h5py.File(path) as file:
        weights = file["model_weights"]
        tokens = rng.integers(0, 26, (1, 40))
        x = np.array(weights["embedding/embedding/embeddings:0"], float)[tokens[0]]
        backward, forward = (group for _, group in sorted(weights["bi-lstm/bi-lstm"].items()))
        x = np.concatenate([keras_lstm(forward, x), keras_lstm(backward, x, True)], 1)
        last = keras_lstm(weights["lstm/lstm"], x)[-1]
        dense = weights["classif/classif"]
        y = sigmoid(last @ np.array(dense["kernel:0"], float) + np.array(dense["bias:0"], float))
    got = run(path, tokens)
    report(path, "whole", got, y.reshape(got.shape))
