//! Tests: whatever this library would have to ignore is refused, and the refusal names it.

use prost::Message;

use super::{
    OnnxModel, OnnxWriter,
    port::PortKind,
    proto::{Attribute, Dimension, Entry, Function, Model, Node, Opset, Tensor},
};
use lstm_core::{CellKind, Init, LstmConfig, Weights};

pub(super) fn written(config: LstmConfig) -> Model {
    let weights = Weights::init(config, &Init::default(), 1).unwrap();
    let bytes = OnnxWriter::new(&weights).initial_state().lengths().to_bytes().unwrap();
    Model::decode(&bytes[..]).unwrap()
}

/// Without states and lengths.
pub(super) fn plain(config: LstmConfig) -> Model {
    let weights = Weights::init(config, &Init::default(), 1).unwrap();
    Model::decode(&OnnxWriter::new(&weights).to_bytes().unwrap()[..]).unwrap()
}

pub(super) fn two_layers() -> Model {
    written(LstmConfig::new(3, 5).layers(2).bidirectional().cell(CellKind::PeepholeDiagonal))
}

pub(super) fn load(model: &Model) -> lstm_core::Result<super::OnnxLstm> {
    OnnxModel::from_bytes(&model.encode_to_vec())?.lstm()
}

/// Changes a model and checks that the refusal has all these words.
#[track_caller]
fn refused(words: &[&str], change: impl FnOnce(&mut Model)) {
    let mut model = two_layers();
    change(&mut model);
    let message = match load(&model) {
        Ok(_) => panic!("loaded, though it should be refused for {words:?}"),
        Err(error) => error.to_string(),
    };
    assert!(words.iter().all(|word| message.contains(word)), "{message}: expected {words:?}");
}

pub(super) fn node<'m>(model: &'m mut Model, name: &str) -> &'m mut Node {
    let nodes = &mut model.graph.as_mut().unwrap().node;
    nodes.iter_mut().find(|node| node.name == name).unwrap()
}

pub(super) fn tensor<'m>(model: &'m mut Model, name: &str) -> &'m mut Tensor {
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

pub(super) fn set(model: &mut Model, name: &str, attribute: Attribute) {
    let attributes = &mut node(model, name).attribute;
    attributes.retain(|a| a.name != attribute.name);
    attributes.push(attribute);
}

pub(super) fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), kind: Some(2), i: Some(i), ..Attribute::default() }
}

pub(super) fn text(name: &str, s: &str) -> Attribute {
    Attribute { name: name.into(), kind: Some(3), s: Some(s.into()), ..Attribute::default() }
}

pub(super) fn insert(model: &mut Model, at: usize, op: &str, input: &[&str], output: &str) {
    let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let node = Node { op_type: op.into(), input: strings(input), output: strings(&[output]), ..Node::default() };
    model.graph.as_mut().unwrap().node.insert(at, node);
}

#[test]
fn attributes() {
    assert!(load(&two_layers()).is_ok());
    refused(&["lstm_l0", "`hidden_size`", "-5"], |m| set(m, "lstm_l0", int("hidden_size", -5)));
    refused(&["lstm_l0", "W", "[2, 24, 3]", "[2, 20, 3]"], |m| set(m, "lstm_l0", int("hidden_size", 6)));
    refused(&["lstm_l0", "hidden_size"], |m| set(m, "lstm_l0", int("hidden_size", i64::MAX)));
    refused(&["lstm_l1", "`direction`", "sideways"], |m| set(m, "lstm_l1", text("direction", "sideways")));
    refused(&["lstm_l0", "`direction`", "type 3", "type 2"], |m| set(m, "lstm_l0", int("direction", 1)));
    refused(&["lstm_l0", "`layout`", "2"], |m| set(m, "lstm_l0", int("layout", 2)));
    refused(&["lstm_l0", "initial_h"], |m| set(m, "lstm_l0", int("layout", 1)));
    refused(&["lstm_l0", "`layout`", "opset"], |m| {
        m.opset_import[0].version = Some(13);
        set(m, "lstm_l0", int("layout", 0));
    });
    refused(&["lstm_l0", "`output_sequence`"], |m| set(m, "lstm_l0", int("output_sequence", 1)));
    refused(&["lstm_l0", "`input_forget`"], |m| set(m, "lstm_l0", int("input_forget", 7)));
    refused(&["lstm_l1", "first layer", "coupled: true"], |m| set(m, "lstm_l1", int("input_forget", 1)));
    for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let clip = Attribute { name: "clip".into(), kind: Some(1), f: Some(bound), ..Attribute::default() };
        refused(&["lstm_l0", "`clip`", &bound.to_string()], |m| set(m, "lstm_l0", clip));
    }
    let activations = |names: &[&str]| {
        let strings = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Attribute { name: "activations".into(), kind: Some(8), strings, ..Attribute::default() }
    };
    let ours = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh"];
    for (last, words) in [(Some("Relu"), ["place 5", "`Relu`"]), (None, ["expected 6", "got 5"])] {
        let names: Vec<&str> = ours.into_iter().chain(last).collect();
        refused(&[&["lstm_l0", "`activations`"], &words[..]].concat(), |m| set(m, "lstm_l0", activations(&names)));
    }
    let alpha = Attribute { name: "activation_alpha".into(), kind: Some(6), floats: vec![0.1], ..Attribute::default() };
    refused(&["lstm_l0", "`activation_alpha`", "0.1"], |m| set(m, "lstm_l0", alpha));
    refused(&["lstm_l0", "`direction`", "twice"], |m| {
        node(m, "lstm_l0").attribute.push(text("direction", "forward"));
    });
    refused(&["transpose_l0", "`perm`"], |m| node(m, "transpose_l0").attribute[0].ints = vec![0, 2, 2, 3]);
}

#[test]
fn graphs() {
    // Values in another order or place than a chain has them.
    refused(&["lstm_l1", "outputs of layer 0", "one direction after the other"], |m| {
        node(m, "transpose_l0").attribute[0].ints = vec![0, 2, 3, 1];
    });
    refused(&["lstm_l1", "X"], |m| node(m, "transpose_l0").attribute[0].ints = vec![2, 0, 1, 3]);
    refused(&["lstm_l1", "X", "outputs of layer 0"], |m| node(m, "lstm_l1").input[0] = "X".into());
    refused(&["lstm_l0", "`Y`", "before it"], |m| node(m, "lstm_l0").input[0] = "Y".into());
    refused(&["all_Y_h", "one layer after the other"], |m| node(m, "all_Y_h").input.reverse());
    refused(&["output `Y_c`", "no node"], |m| node(m, "all_Y_c").output[0] = "other".into());
    refused(&["output `Y_l0`", "layer 0"], |m| m.graph.as_mut().unwrap().output[0].name = "Y_l0".into());
    refused(&["lstm_l1", "rows"], |m| {
        let first = node(m, "slice_initial_h_l0").output[0].clone();
        node(m, "lstm_l1").input[5] = first;
    });
    refused(&["initial_h", "6 rows", "4 are used"], |m| {
        let input = &mut m.graph.as_mut().unwrap().input[2];
        let shape = input.kind.as_mut().unwrap().tensor.as_mut().unwrap().shape.as_mut().unwrap();
        shape.dim[0] = Dimension { value: Some(6), param: None };
    });
    refused(&["lstm_l1", "lengths"], |m| node(m, "lstm_l1").input[4].clear());
    // What is more in the graph than the chain.
    refused(&["node 1 (Relu)", "ignored"], |m| insert(m, 1, "Relu", &["X"], "more"));
    refused(&["(GRU)", "ignored"], |m| insert(m, 1, "GRU", &["X", "W_l0", "R_l0"], "more"));
    refused(&["ours.LSTM"], |m| node(m, "lstm_l0").domain = "ours".into());
    refused(&["`Y_l0`", "twice"], |m| insert(m, 9, "Identity", &["X"], "Y_l0"));
    refused(&["unused", "more"], |m| {
        m.graph.as_mut().unwrap().initializer.push(Tensor {
            name: "more".into(),
            data_type: Some(1),
            raw_data: Some(vec![0, 0, 128, 63]),
            ..Tensor::default()
        })
    });
    refused(&["sparse"], |m| m.graph.as_mut().unwrap().sparse_initializer.push(vec![]));
    refused(&["own operator", "LSTM"], |m| m.functions.push(Function { name: "LSTM".into(), domain: "".into() }));
    refused(&["LSTM"], |m| m.graph.as_mut().unwrap().node.clear());
    refused(&["graph"], |m| m.graph = None);
    let mut model = two_layers();
    let want = load(&model).unwrap();
    for version in [22, 23, 24, 25, 26] {
        model.opset_import[0].version = Some(version);
        assert_eq!(load(&model).unwrap(), want, "{version}");
    }
    for version in [6, 27, -1] {
        refused(&["7..=26", &version.to_string()], |m| m.opset_import[0].version = Some(version));
    }
    refused(&["operator set"], |m| m.opset_import.clear());
    refused(&["operator set", "14, 15"], |m| {
        m.opset_import.push(Opset { domain: Some("ai.onnx".into()), version: Some(15) });
    });
}

/// A constant and a `Slice` by it, in front of the node that is number `at`.
fn slice(model: &mut Model, at: usize, input: &str, [start, end, axis]: [i64; 3], output: &str) {
    for (name, value) in [("start", start), ("end", end), ("along", axis)] {
        let raw_data = Some(value.to_le_bytes().to_vec());
        let tensor = Tensor { name: name.into(), dims: vec![1], data_type: Some(7), raw_data, ..Tensor::default() };
        model.graph.as_mut().unwrap().initializer.push(tensor);
    }
    insert(model, at, "Slice", &[input, "start", "end", "along"], output);
}

fn position(model: &Model, name: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().position(|node| node.name == name).unwrap()
}

#[test]
fn parts() {
    let last = two_layers().graph.unwrap().node.len();
    let output = |range: [i64; 3]| {
        move |m: &mut Model| {
            slice(m, last, "Y", range, "part");
            m.graph.as_mut().unwrap().output[0].name = "part".into();
        }
    };
    refused(&["(Slice)", "[0:2] of axis 0", "outputs of layer 1"], output([0, 2, 0]));
    refused(&["(Slice)", "[-1:0] of axis 0"], output([-1, 0, 0]));
    refused(&["(Slice)", "[1:6] of axis 2"], output([1, 6, 2]));
    refused(&["(Slice)", "[0:1] of axis 1"], output([0, 1, 1]));
    refused(&["(Slice)", "axis 3"], output([0, 1, 3]));
    refused(&["(ReverseSequence)", "ignored"], |m| insert(m, 0, "ReverseSequence", &["X", "sequence_lens"], "back"));
    // One step and one direction are outputs of their own; with lengths the last step is no final state.
    for (range, step, rows) in
        [([-1, i64::MAX, 0], Some(-1), 0..2), ([3, 4, 0], Some(3), 0..2), ([5, 10, 2], None, 1..2)]
    {
        let mut model = two_layers();
        output(range)(&mut model);
        let port = load(&model).unwrap().outputs[0].clone();
        assert_eq!((port.kind, port.step, port.rows), (PortKind::Sequence, step, rows), "{range:?}");
    }
    let mut model = two_layers();
    output([-1, i64::from(i32::MAX), 0])(&mut model);
    ["lstm_l0", "lstm_l1"].iter().for_each(|name| node(&mut model, name).input[4].clear());
    model.graph.as_mut().unwrap().input.remove(1);
    assert_eq!(load(&model).unwrap().outputs[0].kind, PortKind::Sequence, "of both directions only one has ended");

    // The next layer needs all of the one below.
    refused(&["lstm_l1", "X", "direction 0 alone"], |m| {
        let at = position(m, "lstm_l1");
        slice(m, at, "Y_l0", [0, 5, 2], "half");
        node(m, "lstm_l1").input[0] = "half".into();
    });
    refused(&["lstm_l1", "X", "step 2 alone"], |m| {
        let at = position(m, "lstm_l1");
        slice(m, at, "Y_l0", [2, 3, 0], "step");
        node(m, "lstm_l1").input[0] = "step".into();
    });
}

#[test]
fn one_layer_in_two_nodes() {
    let file = include_bytes!("../../../../tests/data/onnx/two-nodes.onnx");
    let whole = Model::decode(&file[..]).unwrap();
    assert!(load(&whole).is_ok());
    let refused = |words: &[&str], change: fn(&mut Model)| {
        let mut model = whole.clone();
        change(&mut model);
        let error = load(&model).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}: expected {words:?}");
    };
    // The nodes are Split, Split, then LSTM and Squeeze for each direction, Concat, and the same again.
    fn at(m: &mut Model, k: usize) -> &mut Node {
        &mut m.graph.as_mut().unwrap().node[k]
    }
    refused(&["node 4", "other direction", "node 2"], |m| at(m, 4).attribute.push(int("input_forget", 1)));
    refused(&["node 4", "state", "other direction"], |m| at(m, 4).input[5].clear());
    // Two forward nodes over one input are no layer, and no chain.
    refused(&["node 4", "X: expected the outputs of layer 0, got `X`", "`lstm_named`"], |m| {
        let attributes = &mut at(m, 4).attribute;
        attributes.retain(|a| a.name != "direction");
    });
    refused(&["(Concat)", "direction 1 alone"], |m| at(m, 6).input.reverse());
    refused(&["h", "rows"], |m| at(m, 4).input[5] = "h0".into());
    refused(&["(Split)", "add up to 2"], |m| {
        m.opset_import[0].version = Some(11);
        at(m, 0).attribute.push(Attribute {
            name: "split".into(),
            kind: Some(7),
            ints: vec![1, 2],
            ..Attribute::default()
        });
    });
}

/// Two LSTMs, of which the second is no layer on top of the first.
#[test]
fn models_side_by_side() {
    let second = |first: LstmConfig, second: LstmConfig, x: &str| {
        let (mut model, other) = (plain(first), plain(second));
        let (graph, other) = (model.graph.as_mut().unwrap(), other.graph.unwrap());
        let rename = |name: &String| if ["", "X"].contains(&&**name) { name.clone() } else { format!("{name}_2") };
        graph.initializer.extend(other.initializer.into_iter().map(|t| Tensor { name: rename(&t.name), ..t }));
        graph.node.extend(other.node.into_iter().map(|mut node| {
            node.name = rename(&node.name);
            node.input = node.input.iter().map(|name| if name == "X" { x.into() } else { rename(name) }).collect();
            node.output = node.output.iter().map(rename).collect();
            node
        }));
        model
    };
    let (one, both) = (LstmConfig::new(3, 5), LstmConfig::new(3, 5).bidirectional());
    for (model, words) in [
        (second(one.clone(), LstmConfig::new(5, 3), "Y"), ["Forward of hidden size 5", "got Forward of 3"]),
        (second(both.clone(), LstmConfig::new(10, 5), "Y"), ["Bidirectional of hidden size 5", "got Forward of 5"]),
        (second(one.clone(), LstmConfig::new(5, 5).bidirectional(), "Y"), ["Forward of hidden", "got Bidirectional"]),
        (second(one.clone(), one.clone(), "X"), ["X: expected the outputs of layer 0", "got `X`"]),
        (second(one, LstmConfig::new(3, 7), "X"), ["X: expected the outputs of layer 0", "got `X`"]),
    ] {
        let error = load(&model).unwrap_err().to_string();
        let named = ["lstm_l0_2", "`lstm_named`"];
        assert!(words.iter().chain(&named).all(|word| error.contains(word)), "{error}: expected {words:?}");
        let model = OnnxModel::from_bytes(&model.encode_to_vec()).unwrap();
        ["lstm_l0", "lstm_l0_2"].iter().for_each(|name| drop(model.lstm_named(&[name]).unwrap()));
    }
}

#[test]
fn tensors() {
    refused(&["lstm_l0", "W", "[2, 3, 20]"], |m| tensor(m, "W_l0").dims = vec![2, 3, 20]);
    refused(&["lstm_l1", "input 2 (R)", "missing"], |m| node(m, "lstm_l1").input[2].clear());
    refused(&["lstm_l1", "first layer", "None"], |m| node(m, "lstm_l1").input[3].clear());
    refused(&["lstm_l0", "`W_l0`", "480 bytes", "found 479"], |m| {
        tensor(m, "W_l0").raw_data.as_mut().unwrap().truncate(479);
    });
    refused(&["`W_l0`", "not a shape"], |m| tensor(m, "W_l0").dims = vec![2, -20, 3]);
    refused(&["fit in memory"], |m| tensor(m, "W_l0").dims = vec![1 << 40, 1 << 40, 3]);
    refused(&["fit in memory"], |m| tensor(m, "W_l0").dims = vec![i64::MAX, 2, 2]);
    refused(&["bytes"], |m| tensor(m, "W_l0").dims = vec![1 << 30, 1 << 30, 0]);
    refused(&["`W_l0`", "INT8"], |m| tensor(m, "W_l0").data_type = Some(3));
    refused(&["`W_l0`", "twice"], |m| tensor(m, "W_l0").float_data = vec![1.0]);
    refused(&["`W_l0`", "segment"], |m| tensor(m, "W_l0").segment = Some(vec![]));
    refused(&["`W_l0`", "another file"], |m| tensor(m, "W_l0").data_location = Some(1));
    // A small file with a large model: layer upon layer of the same weights.
    let mut model = written(LstmConfig::new(5, 5).layers(40));
    for k in 1..40 {
        (1..4)
            .for_each(|i| node(&mut model, &format!("lstm_l{k}")).input[i] = format!("{}_l0", ["", "W", "R", "B"][i]));
    }
    let error = load(&model).unwrap_err().to_string();
    assert!(error.contains("lstm_l16") && error.contains("shared by more than 16"), "{error}");
}

#[test]
fn tensors_in_other_files() {
    let dir = std::env::temp_dir().join(format!("lstm-onnx-external-{}", std::process::id()));
    let inner = dir.join("model");
    std::fs::create_dir_all(&inner).unwrap();
    let plain = two_layers();
    let raw = plain.graph.as_ref().unwrap().initializer.iter().find(|t| t.name == "W_l0").unwrap().raw_data.clone();
    let raw = raw.unwrap();
    std::fs::write(inner.join("w.bin"), &raw).unwrap();
    std::fs::write(dir.join("outside.bin"), &raw).unwrap();
    #[cfg(unix)]
    let _ = std::os::unix::fs::symlink("../outside.bin", inner.join("link.bin"));
    let load = |entries: &[(&str, &str)]| {
        let mut model = plain.clone();
        let w = tensor(&mut model, "W_l0");
        (w.raw_data, w.data_location) = (None, Some(1));
        w.external_data = entries.iter().map(|&(key, value)| Entry { key: key.into(), value: value.into() }).collect();
        let path = inner.join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        OnnxModel::open(&path)?.lstm()
    };
    let want = OnnxModel::from_bytes(&plain.encode_to_vec()).unwrap().lstm().unwrap();
    let length = raw.len().to_string();
    let max = u64::MAX.to_string();
    for entries in [
        &[("location", "w.bin")][..],
        &[("location", "./w.bin"), ("offset", "0"), ("length", &length), ("checksum", "")],
    ] {
        assert_eq!(load(entries).unwrap(), want);
    }
    let absolute = dir.join("outside.bin").display().to_string();
    for (entries, word) in [
        (&[][..], "location"),
        (&[("location", "../outside.bin")], "folder"),
        (&[("location", "nowhere/../../outside.bin")], "folder"),
        (&[("location", &absolute)], "folder"),
        (&[("location", "")], "folder"),
        #[cfg(unix)]
        (&[("location", "link.bin")], "folder"),
        (&[("location", "nowhere.bin")], "nowhere.bin"),
        (&[("location", ".")], ""),
        (&[("location", "w.bin"), ("offset", "1")], "bytes"),
        (&[("location", "w.bin"), ("offset", "-1")], "`-1`"),
        (&[("location", "w.bin"), ("offset", &max), ("length", &length)], "bytes at"),
        (&[("location", "w.bin"), ("length", &max)], "bytes"),
        (&[("location", "w.bin"), ("basepath", "/")], "`basepath`"),
        (&[("location", "nowhere.bin"), ("location", "w.bin")], "`location` is there twice"),
        (&[("location", "w.bin"), ("offset", "0"), ("offset", "0")], "`offset` is there twice"),
    ] {
        let error = load(entries).unwrap_err().to_string();
        assert!(error.contains(word), "{entries:?}: {error}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
