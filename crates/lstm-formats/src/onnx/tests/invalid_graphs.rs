//! Tests that a graph is rejected if a part of it would have to be ignored, and that the error names this part.

use prost::Message;

use super::{
    assert_rejected, insert_node, int_attribute, load, load_named, model_with_x_only, node, set_attribute,
    string_attribute, tensor, two_layer_model,
};
use crate::{
    OpenOptions,
    onnx::{
        OnnxGraph, OnnxModel, OnnxOutputKind,
        proto::{
            Attribute, BFLOAT16, Entry, FLOAT, FLOAT16, Function, INT64, Model, Node, Opset, Tensor, attribute_type,
        },
    },
};
use lstm_core::{LstmConfig, Param};

/// Changes the model of [`two_layer_model`], and checks that loading fails with a message that contains all `words`.
#[track_caller]
fn assert_change_rejected(words: &[&str], change: impl FnOnce(&mut Model)) {
    let mut model = two_layer_model();
    change(&mut model);
    assert_rejected(&model, words);
}

#[test]
fn rejects_unsupported_attributes() {
    assert!(load(&two_layer_model()).is_ok());
    assert_change_rejected(&["lstm_l0", "`hidden_size`", "-5"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("hidden_size", -5))
    });
    assert_change_rejected(&["lstm_l0", "W", "[2, 24, 3]", "[2, 20, 3]"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("hidden_size", 6))
    });
    assert_change_rejected(&["lstm_l0", "hidden_size"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("hidden_size", i64::MAX))
    });
    assert_change_rejected(&["lstm_l1", "`direction`", "sideways"], |m| {
        set_attribute(m, "lstm_l1", string_attribute("direction", "sideways"))
    });
    assert_change_rejected(&["lstm_l0", "`direction`", "type 3", "type 2"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("direction", 1))
    });
    assert_change_rejected(&["lstm_l0", "`layout`", "2"], |m| set_attribute(m, "lstm_l0", int_attribute("layout", 2)));
    assert_change_rejected(&["lstm_l1", "X", "several"], |m| set_attribute(m, "lstm_l0", int_attribute("layout", 1)));
    assert_change_rejected(&["lstm_l0", "`layout`", "opset"], |m| {
        m.opset_import[0].version = Some(13);
        set_attribute(m, "lstm_l0", int_attribute("layout", 0));
    });
    assert_change_rejected(&["lstm_l0", "`output_sequence`"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("output_sequence", 1))
    });
    assert_change_rejected(&["lstm_l0", "`input_forget`"], |m| {
        set_attribute(m, "lstm_l0", int_attribute("input_forget", 7))
    });
    for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let clip = Attribute {
            name: "clip".into(),
            attribute_type: Some(attribute_type::FLOAT),
            f: Some(bound),
            ..Attribute::default()
        };
        assert_change_rejected(&["lstm_l0", "`clip`", &bound.to_string()], |m| set_attribute(m, "lstm_l0", clip));
    }
    let activations = |names: &[&str]| {
        let strings = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Attribute {
            name: "activations".into(),
            attribute_type: Some(attribute_type::STRINGS),
            strings,
            ..Attribute::default()
        }
    };
    let supported_activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh"];
    for (last, words) in [
        (Some("Relu"), ["same functions", "both directions"]),
        (Some("Elu"), ["index 5", "`Elu`"]),
        (None, ["expected 6", "got 5"]),
    ] {
        let names: Vec<&str> = supported_activations.into_iter().chain(last).collect();
        assert_change_rejected(&[&["lstm_l0", "`activations`"], &words[..]].concat(), |m| {
            set_attribute(m, "lstm_l0", activations(&names))
        });
    }
    let alpha_attribute = Attribute {
        name: "activation_alpha".into(),
        attribute_type: Some(attribute_type::FLOATS),
        floats: vec![0.1],
        ..Attribute::default()
    };
    assert_change_rejected(&["lstm_l0", "`activation_alpha`", "0.1"], |m| set_attribute(m, "lstm_l0", alpha_attribute));
    assert_change_rejected(&["lstm_l0", "`direction`", "repeated"], |m| {
        node(m, "lstm_l0").attribute.push(string_attribute("direction", "forward"));
    });
    assert_change_rejected(&["transpose_l0", "`perm`"], |m| {
        node(m, "transpose_l0").attribute[0].ints = vec![0, 2, 2, 3]
    });
}

#[test]
fn rejects_unsupported_graphs() {
    // Permuted, missing or misplaced values.
    assert_change_rejected(&["lstm_l1", "X"], |m| node(m, "transpose_l0").attribute[0].ints = vec![2, 0, 1, 3]);
    assert_change_rejected(&["lstm_l1", "10 features of X, got 3"], |m| node(m, "lstm_l1").input[0] = "X".into());
    assert_change_rejected(&["lstm_l0", "`Y`", "earlier node"], |m| node(m, "lstm_l0").input[0] = "Y".into());
    // The final states may be in any order.
    let mut model = two_layer_model();
    node(&mut model, "all_Y_h").input.reverse();
    assert_ne!(load(&model).unwrap(), load(&two_layer_model()).unwrap());
    assert_change_rejected(&["output `Y_c`", "no node"], |m| node(m, "all_Y_c").output[0] = "other".into());
    assert_change_rejected(&["lstm_l1", "not stacked"], |m| m.graph.as_mut().unwrap().output[0].name = "Y_l0".into());
    assert_change_rejected(&["lstm_l1", "lengths"], |m| node(m, "lstm_l1").input[4].clear());
    // Nodes and tensors that are not part of the LSTM.
    for (op, words) in [("Elu", "(Elu)"), ("GRU", "(GRU)")] {
        assert_change_rejected(&[words, "not supported"], |m| {
            insert_node(m, 0, op, &["X"], "more");
            node(m, "lstm_l0").input[0] = "more".into();
        });
    }
    assert_change_rejected(&["ours.LSTM"], |m| node(m, "lstm_l0").domain = "ours".into());
    assert_change_rejected(&["`Y_l0`", "more than once"], |m| insert_node(m, 9, "Identity", &["X"], "Y_l0"));
    // An unused initializer has no effect.
    let mut model = two_layer_model();
    let raw_data = Some(vec![0, 0, 128, 63]);
    let more = Tensor { name: "more".into(), data_type: Some(FLOAT), raw_data, ..Tensor::default() };
    model.graph.as_mut().unwrap().initializer.push(more);
    assert_eq!(load(&model).unwrap(), load(&two_layer_model()).unwrap());
    assert_change_rejected(&["sparse"], |m| m.graph.as_mut().unwrap().sparse_initializer.push(vec![]));
    assert_change_rejected(&["redefinition", "LSTM"], |m| {
        m.functions.push(Function { name: "LSTM".into(), domain: "".into() })
    });
    assert_change_rejected(&["LSTM"], |m| m.graph.as_mut().unwrap().node.clear());
    assert_change_rejected(&["graph"], |m| m.graph = None);
    let mut model = two_layer_model();
    let expected = load(&model).unwrap();
    for version in [22, 23, 24, 25, 26] {
        model.opset_import[0].version = Some(version);
        assert_eq!(load(&model).unwrap(), expected, "{version}");
    }
    for version in [6, 27, -1] {
        assert_change_rejected(&["7..=26", &version.to_string()], |m| m.opset_import[0].version = Some(version));
    }
    assert_change_rejected(&["operator set"], |m| m.opset_import.clear());
    assert_change_rejected(&["operator set", "14, 15"], |m| {
        m.opset_import.push(Opset { domain: Some("ai.onnx".into()), version: Some(15) });
    });
}

/// Inserts a `Slice` with constant bounds before the node with this index.
fn insert_slice(model: &mut Model, index: usize, input: &str, [start, end, axis]: [i64; 3], output: &str) {
    for (name, value) in [("start", start), ("end", end), ("along", axis)] {
        let raw_data = Some(value.to_le_bytes().to_vec());
        let tensor = Tensor { name: name.into(), dims: vec![1], data_type: Some(INT64), raw_data, ..Tensor::default() };
        model.graph.as_mut().unwrap().initializer.push(tensor);
    }
    insert_node(model, index, "Slice", &[input, "start", "end", "along"], output);
}

/// The index of the node with this name.
fn node_index(model: &Model, name: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().position(|node| node.name == name).unwrap()
}

#[test]
fn rejects_unsupported_slices() {
    let node_count = two_layer_model().graph.unwrap().node.len();
    let slice_output = |range: [i64; 3]| {
        move |m: &mut Model| {
            insert_slice(m, node_count, "Y", range, "part");
            m.graph.as_mut().unwrap().output[0].name = "part".into();
        }
    };
    assert_change_rejected(&["`part`", "expected all time steps"], slice_output([0, 2, 0]));
    assert_change_rejected(&["`part`", "an empty"], slice_output([-1, 0, 0]));
    assert_change_rejected(&["(Slice)", "3..4 of axis 0"], slice_output([3, 4, 0]));
    assert_change_rejected(&["(Slice)", "axis 3"], slice_output([0, 1, 3]));
    assert_change_rejected(&["(ReverseSequence)", "input 1"], |m| {
        insert_node(m, 0, "ReverseSequence", &["X", "sequence_lens"], "back");
        node(m, "lstm_l0").input[0] = "back".into();
    });
    // A single step or direction is a supported output. With lengths, the last step is not the final state.
    for (range, step) in
        [([-1, i64::MAX, 0], Some(-1)), ([0, 1, 0], Some(0)), ([5, 10, 2], None), ([1, 6, 2], None), ([0, 1, 1], None)]
    {
        let mut model = two_layer_model();
        slice_output(range)(&mut model);
        let port = load(&model).unwrap().outputs()[0].clone();
        assert_eq!((&port.kind, port.is_last_step), (&OnnxOutputKind::Outputs, step == Some(-1)), "{range:?}");
    }
    let mut model = two_layer_model();
    slice_output([-1, i64::from(i32::MAX), 0])(&mut model);
    ["lstm_l0", "lstm_l1"].iter().for_each(|name| node(&mut model, name).input[4].clear());
    model.graph.as_mut().unwrap().input.remove(1);
    assert_eq!(
        load(&model).unwrap().outputs()[0].kind,
        OnnxOutputKind::Outputs,
        "the reverse direction ends at step 0"
    );

    // The next layer needs the whole output.
    assert_change_rejected(&["lstm_l1", "10 features of X, got 5"], |m| {
        let index = node_index(m, "lstm_l1");
        insert_slice(m, index, "Y_l0", [0, 5, 2], "half");
        node(m, "lstm_l1").input[0] = "half".into();
    });
    assert_change_rejected(&["(Slice)", "2..3 of axis 0"], |m| {
        let index = node_index(m, "lstm_l1");
        insert_slice(m, index, "Y_l0", [2, 3, 0], "step");
        node(m, "lstm_l1").input[0] = "step".into();
    });
}

#[test]
fn rejects_invalid_pairs_of_direction_nodes() {
    let file = include_bytes!("../../../../../tests/data/onnx/two-nodes.onnx");
    let valid_model = Model::decode(&file[..]).unwrap();
    assert!(load(&valid_model).is_ok());
    let assert_change_rejected = |words: &[&str], change: fn(&mut Model)| {
        let mut model = valid_model.clone();
        change(&mut model);
        assert_rejected(&model, words);
    };
    // The nodes are Split, Split, then LSTM and Squeeze for each direction, Concat, and the same for the second layer.
    fn node_at(m: &mut Model, k: usize) -> &mut Node {
        &mut m.graph.as_mut().unwrap().node[k]
    }
    assert_change_rejected(&["node 7", "one layer", "node 2", "node 4"], |m| {
        node_at(m, 4).attribute.push(int_attribute("input_forget", 1))
    });
    // Directions may have initial states of different kinds, and they may share one.
    for name in ["", "h0"] {
        let mut model = valid_model.clone();
        node_at(&mut model, 4).input[5] = name.into();
        load(&model).unwrap();
    }
    // Two forward nodes with the same input are neither a bidirectional layer nor a stack.
    assert_change_rejected(&["node 7", "one layer", "node 2", "node 4", "by its name, such as `2`"], |m| {
        let attributes = &mut node_at(m, 4).attribute;
        attributes.retain(|a| a.name != "direction");
    });
    assert_change_rejected(&["(Split)", "add up to 2"], |m| {
        m.opset_import[0].version = Some(11);
        node_at(m, 0).attribute.push(Attribute {
            name: "split".into(),
            attribute_type: Some(attribute_type::INTS),
            ints: vec![1, 2],
            ..Attribute::default()
        });
    });
}

/// Two LSTMs, of which the second is not a layer on top of the first, can only be loaded by name.
#[test]
fn rejects_nodes_that_are_not_stacked() {
    // `x` is the input of the second LSTM.
    let two_lstms = |first: LstmConfig, second: LstmConfig, x: &str| {
        let (mut model, second_lstm) = (model_with_x_only(first), model_with_x_only(second));
        let (graph, second_lstm) = (model.graph.as_mut().unwrap(), second_lstm.graph.unwrap());
        let rename = |name: &String| if ["", "X"].contains(&&**name) { name.clone() } else { format!("{name}_2") };
        graph.initializer.extend(second_lstm.initializer.into_iter().map(|t| Tensor { name: rename(&t.name), ..t }));
        graph.node.extend(second_lstm.node.into_iter().map(|mut node| {
            node.name = rename(&node.name);
            node.input = node.input.iter().map(|name| if name == "X" { x.into() } else { rename(name) }).collect();
            node.output = node.output.iter().map(rename).collect();
            node
        }));
        if x != "X" {
            // The outputs of the second one are those of the graph.
            graph.output.iter_mut().for_each(|output| output.name += "_2");
        }
        model
    };
    let (one_direction, two_directions) = (LstmConfig::new(3, 5), LstmConfig::new(3, 5).bidirectional());
    for (model, kinds) in [
        (two_lstms(one_direction.clone(), LstmConfig::new(5, 3), "Y"), 2),
        (two_lstms(two_directions.clone(), LstmConfig::new(10, 5), "Y"), 2),
        (two_lstms(one_direction.clone(), LstmConfig::new(5, 5).bidirectional(), "Y"), 2),
    ] {
        assert_eq!(load(&model).unwrap().weights().lstms().count(), kinds);
    }
    for second in [one_direction.clone(), LstmConfig::new(3, 7)] {
        let model = two_lstms(one_direction.clone(), second, "X");
        assert_rejected(&model, &["lstm_l0", "2 LSTM nodes", "alone by its name, such as `lstm_l0`"]);
        ["lstm_l0", "lstm_l0_2"].iter().for_each(|name| drop(load_named(&model, &[name]).unwrap()));
    }
}

#[test]
fn rejects_invalid_tensors() {
    assert_change_rejected(&["lstm_l0", "W", "[2, 3, 20]"], |m| tensor(m, "W_l0").dims = vec![2, 3, 20]);
    assert_change_rejected(&["lstm_l1", "input 2 (R)", "missing"], |m| node(m, "lstm_l1").input[2].clear());
    assert_change_rejected(&["lstm_l0", "`W_l0`", "480 bytes", "found 479"], |m| {
        tensor(m, "W_l0").raw_data.as_mut().unwrap().truncate(479);
    });
    assert_change_rejected(&["`W_l0`", "invalid shape"], |m| tensor(m, "W_l0").dims = vec![2, -20, 3]);
    assert_change_rejected(&["fit in memory"], |m| tensor(m, "W_l0").dims = vec![1 << 40, 1 << 40, 3]);
    assert_change_rejected(&["fit in memory"], |m| tensor(m, "W_l0").dims = vec![i64::MAX, 2, 2]);
    assert_change_rejected(&["bytes"], |m| tensor(m, "W_l0").dims = vec![1 << 30, 1 << 30, 0]);
    assert_change_rejected(&["`W_l0`", "INT8"], |m| tensor(m, "W_l0").data_type = Some(3));
    assert_change_rejected(&["`W_l0`", "more than one field"], |m| tensor(m, "W_l0").float_data = vec![1.0]);
    assert_change_rejected(&["`W_l0`", "segment"], |m| tensor(m, "W_l0").segment = Some(vec![]));
    assert_change_rejected(&["`W_l0`", "another file"], |m| tensor(m, "W_l0").data_location = Some(1));
    // A small file must not ask for much memory.
    let mut model = two_layer_model();
    insert_node(&mut model, 0, "ConstantOfShape", &["huge"], "zeros");
    let raw_data = Some([1i64 << 20, 1 << 20, 5].iter().flat_map(|v| v.to_le_bytes()).collect());
    let huge = Tensor { name: "huge".into(), dims: vec![3], data_type: Some(INT64), raw_data, ..Tensor::default() };
    model.graph.as_mut().unwrap().initializer.push(huge);
    node(&mut model, "lstm_l0").input[5] = "zeros".into();
    assert_rejected(&model, &["(ConstantOfShape)", "[1048576, 1048576, 5]", "out of proportion"]);
}

/// A file with holes can be larger than memory: 8 TB here, where the file system can do that. A system that promises any
/// amount of memory is not asked.
#[test]
#[cfg(target_os = "linux")]
fn external_data_that_do_not_fit_in_memory_are_an_error() {
    let dir = std::env::temp_dir().join(format!("lstm-onnx-huge-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let promises = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|text| text.trim() == "1");
    let file = std::fs::File::create(dir.join("w.bin")).unwrap();
    if promises || file.set_len(1 << 43).is_err() {
        eprintln!("not run: no file of 8 TB, or memory without limit");
    } else {
        let mut model = two_layer_model();
        let w = tensor(&mut model, "W_l0");
        (w.raw_data, w.data_location, w.dims) = (None, Some(1), vec![1, 1 << 21, 1 << 20]);
        w.external_data = vec![Entry { key: "location".into(), value: "w.bin".into() }];
        let path = dir.join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let error = OnnxModel::open(&path).unwrap().graph(&OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("do not fit in memory"), "{error}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn rejects_external_data_outside_the_folder() {
    let dir = std::env::temp_dir().join(format!("lstm-onnx-external-{}", std::process::id()));
    let model_dir = dir.join("model");
    std::fs::create_dir_all(&model_dir).unwrap();
    let model = two_layer_model();
    let raw = model.graph.as_ref().unwrap().initializer.iter().find(|t| t.name == "W_l0").unwrap().raw_data.clone();
    let raw = raw.unwrap();
    std::fs::write(model_dir.join("w.bin"), &raw).unwrap();
    std::fs::write(dir.join("outside.bin"), &raw).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../outside.bin", model_dir.join("link.bin")).unwrap();
        std::os::unix::fs::symlink("w.bin", model_dir.join("inside.bin")).unwrap();
        let pipe = model_dir.join("pipe.bin");
        assert!(std::process::Command::new("mknod").arg(&pipe).arg("p").status().unwrap().success());
    }
    let load = |entries: &[(&str, &str)]| {
        let mut model = model.clone();
        let w = tensor(&mut model, "W_l0");
        (w.raw_data, w.data_location) = (None, Some(1));
        w.external_data = entries.iter().map(|&(key, value)| Entry { key: key.into(), value: value.into() }).collect();
        let path = model_dir.join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        OnnxModel::open(&path)?.graph(&OpenOptions::default())
    };
    let expected = super::load(&model).unwrap();
    let length = raw.len().to_string();
    let max_offset = u64::MAX.to_string();
    for entries in [
        &[("location", "w.bin")][..],
        &[("location", "./w.bin"), ("offset", "0"), ("length", &length), ("checksum", "")],
        #[cfg(unix)]
        &[("location", "inside.bin")],
    ] {
        assert_eq!(load(entries).unwrap(), expected);
    }
    let absolute_path = dir.join("outside.bin").display().to_string();
    for (entries, word) in [
        (&[][..], "location"),
        (&[("location", "../outside.bin")], "folder"),
        (&[("location", "nowhere/../../outside.bin")], "folder"),
        (&[("location", &absolute_path)], "folder"),
        (&[("location", "")], "folder"),
        #[cfg(unix)]
        (&[("location", "link.bin")], "folder"),
        #[cfg(unix)]
        (&[("location", "pipe.bin")], "expected a regular file, got a pipe"),
        (&[("location", "nowhere.bin")], "nowhere.bin"),
        (&[("location", ".")], ""),
        (&[("location", "w.bin"), ("offset", "1")], "bytes"),
        (&[("location", "w.bin"), ("offset", "-1")], "`-1`"),
        (&[("location", "w.bin"), ("offset", &max_offset), ("length", &length)], "bytes at offset"),
        (&[("location", "w.bin"), ("length", &max_offset)], "bytes"),
        (&[("location", "w.bin"), ("basepath", "/")], "`basepath`"),
        (&[("location", "nowhere.bin"), ("location", "w.bin")], "`location` is repeated"),
        (&[("location", "w.bin"), ("offset", "0"), ("offset", "0")], "`offset` is repeated"),
    ] {
        let error = load(entries).unwrap_err().to_string();
        assert!(error.contains(word), "{entries:?}: {error}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn casts_to_half_precision_round_constants_and_are_rejected_elsewhere() {
    for (half, name) in [(FLOAT16, "FLOAT16"), (BFLOAT16, "BFLOAT16")] {
        // Of a layer's outputs, and of an input.
        for input in ["Y_l0", "X"] {
            assert_change_rejected(&["lstm_l", &format!("from FLOAT to {name}"), "rounds", "FLOAT model"], |m| {
                let nodes = &m.graph.as_ref().unwrap().node;
                let source = nodes.iter().position(|node| node.output.iter().any(|name| name == input));
                insert_node(m, source.map_or(0, |source| source + 1), "Cast", &[input], "half");
                let nodes = &mut m.graph.as_mut().unwrap().node;
                let cast = nodes.iter_mut().find(|node| node.op_type == "Cast").unwrap();
                cast.attribute.push(int_attribute("to", half.into()));
                let mut others = nodes.iter_mut().filter(|node| node.op_type != "Cast");
                *others.find_map(|node| node.input.iter_mut().find(|name| *name == input)).unwrap() = "half".into();
            });
        }
        let mut model = model_with_x_only(LstmConfig::new(3, 5));
        let exact = load(&model).unwrap();
        for (output, input, to) in [("float", "half", FLOAT), ("half", "W_l0", half)] {
            insert_node(&mut model, 0, "Cast", &[input], output);
            model.graph.as_mut().unwrap().node[0].attribute.push(int_attribute("to", to.into()));
        }
        node(&mut model, "lstm_l0").input[1] = "float".into();
        let rounded = load(&model).unwrap();
        let weight = |graph: &OnnxGraph| {
            let lstm = graph.weights().lstms().next().unwrap().clone();
            lstm.layers()[0].get(Param::WeightIh).unwrap().clone()
        };
        let precision = if half == FLOAT16 { 2f32.powi(-11) } else { 2f32.powi(-8) };
        let (exact, rounded) = (weight(&exact), weight(&rounded));
        assert_ne!(exact, rounded);
        for (exact, rounded) in exact.iter().zip(&rounded) {
            assert!((exact - rounded).abs() <= precision * exact.abs().max(2f32.powi(-14)), "{exact} {rounded}");
            let kept_bits = if half == FLOAT16 { 13 } else { 16 };
            assert_eq!(rounded.to_bits() << (32 - kept_bits), 0, "{rounded}");
        }
    }
}
