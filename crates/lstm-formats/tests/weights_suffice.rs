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
