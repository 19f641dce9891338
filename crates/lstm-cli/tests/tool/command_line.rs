//! Invalid command lines: exit code 2.

use lstm::LstmConfig;

use super::{TempDir, run, save_npy, sequences};

#[test]
fn rejects_invalid_option_values() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, out) = (dir.path("x.npy"), dir.path("out.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    let digest = ["run", &model, "-i", &input, "--digest"];
    let compare = ["compare", &model, "-i", &input];
    let convert = ["convert", &model, &out];
    let inspect = ["inspect", &model];
    for (start, more, part) in [
        (&["run"][..], &[][..], "<MODEL>"),
        (&["fly"], &[], "fly"),
        (&digest, &["--chunk", "0"], "--chunk"),
        (&digest, &["--tolerance", "1"], "--tolerance"),
        (&digest, &["--threads", "0"], "1..=1024"),
        (&digest, &["--threads", "1025"], "1..=1024"),
        (&digest, &["--backend", "abacus"], "expected one of cpu, wgpu, cuda, cuda-tf32, auto"),
        (&digest, &["--clip", "-1"], "expected a positive finite bound"),
        (&digest, &["--clip", "0"], "expected a positive finite bound"),
        (&digest, &["--clip", "nan"], "expected a positive finite bound"),
        (&compare, &["--backend", "cpu,abacus"], "expected one of cpu, "),
        (&compare, &["--tolerance=-1"], "at least 0"),
        (&compare, &["--tolerance", "nan"], "at least 0"),
        (&convert, &["--prefix", "lstm"], "expected a final dot, `lstm.`"),
        (&inspect, &["--cell", "round"], "expected one of fused, unfused, peephole-dense, peephole-diagonal"),
        // Only exact names are accepted.
        (&inspect, &["--cell", "fused clip=0.01"], "expected one of fused, unfused"),
        (&inspect, &["--cell", "fused coupled=true"], "expected one of fused, unfused"),
        (&inspect, &["--cell", " fused"], "expected one of fused, unfused"),
    ] {
        let args = [start, more].concat();
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(part), "{args:?}: {text}");
    }
    for cell in ["fused", "unfused"] {
        assert_eq!(run(&["inspect", &model, "--cell", cell]).status.code(), Some(0), "{cell}");
    }
    assert_eq!(dir.names(), ["model.safetensors", "x.npy"]);
}
