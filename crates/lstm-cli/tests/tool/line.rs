//! A command line that is wrong by itself: exit code 2, whatever the files are.

use lstm_cpu::LstmConfig;

use super::{Folder, run, save, x};

#[test]
fn values_that_no_option_has_are_refused() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let (input, out) = (folder.path("x.npy"), folder.path("out.safetensors"));
    save(&input, &x(2, 4, 3));
    let digest = ["run", &model, "-i", &input, "--digest"];
    let compare = ["compare", &model, "-i", &input];
    let convert = ["convert", &model, &out];
    let inspect = ["inspect", &model];
    for (start, more, word) in [
        (&["run"][..], &[][..], "<MODEL>"),
        (&["fly"], &[], "fly"),
        (&digest, &["--chunk", "0"], "--chunk"),
        (&digest, &["--tolerance", "1"], "--tolerance"),
        (&digest, &["--threads", "0"], "1..=1024"),
        (&digest, &["--threads", "1025"], "1..=1024"),
        (&digest, &["--backend", "abacus"], "expected one of cpu, "),
        (&digest, &["--clip", "-1"], "expected a positive finite bound"),
        (&digest, &["--clip", "0"], "expected a positive finite bound"),
        (&digest, &["--clip", "nan"], "expected a positive finite bound"),
        (&compare, &["--backend", "cpu,abacus"], "expected one of cpu, "),
        (&compare, &["--tolerance=-1"], "from 0 on"),
        (&compare, &["--tolerance", "nan"], "from 0 on"),
        (&convert, &["--prefix", "lstm"], "expected a final dot, `lstm.`"),
        (&inspect, &["--cell", "round"], "expected fused, unfused, peephole-dense or peephole-diagonal"),
        // What follows a name is not passed over.
        (&inspect, &["--cell", "fused clip=0.01"], "expected fused, unfused"),
        (&inspect, &["--cell", "fused coupled=true"], "expected fused, unfused"),
        (&inspect, &["--cell", " fused"], "expected fused, unfused"),
    ] {
        let args = [start, more].concat();
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(word), "{args:?}: {text}");
    }
    for cell in ["fused", "unfused"] {
        assert_eq!(run(&["inspect", &model, "--cell", cell]).status.code(), Some(0), "{cell}");
    }
    assert_eq!(folder.names(), ["model.safetensors", "x.npy"]);
}
