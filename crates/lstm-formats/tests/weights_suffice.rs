//! Whether the weights of a file alone compute what the file computes.

use std::path::PathBuf;

use lstm_formats::{OpenOptions, open};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models").join(name)
}

#[test]
fn a_graph_that_reorders_outputs_needs_more_than_its_weights() {
    for (name, output) in [("concat-reverse-first.onnx", "`Y`"), ("gobw.onnx", "`out`")] {
        let error = open(path(name), &OpenOptions::default()).unwrap().check_weights_suffice().unwrap_err().to_string();
        assert!(error.contains(output) && error.contains("select its LSTM nodes by name"), "{name}: {error}");
    }
}

#[test]
fn selected_nodes_and_chains_need_only_their_weights() {
    let mut options = OpenOptions::default();
    options.names = vec!["lstm".into()];
    open(path("gobw.onnx"), &options).unwrap().check_weights_suffice().unwrap();
    for name in ["two-sizes.onnx", "nam.nam", "keras-last.keras"] {
        open(path(name), &OpenOptions::default()).unwrap().check_weights_suffice().unwrap();
    }
}

#[test]
fn constants_of_a_graph_are_not_part_of_the_weights() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx/constants.onnx");
    let mut options = OpenOptions::default();
    for names in [vec![], vec!["0".into()]] {
        options.names = names;
        let file = open(&path, &options).unwrap();
        let error = file.check_weights_suffice().unwrap_err().to_string();
        assert!(error.contains("constant initial states or lengths"), "{error}");
        file.check_weights_and_constants_suffice().unwrap();
    }
}
