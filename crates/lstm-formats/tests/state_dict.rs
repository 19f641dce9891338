use lstm_core::ModelLayer;
use lstm_formats::{OpenOptions, open};
#[test]
fn show() {
    for dir in ["tests/data/pytorch", "/work/shared/field/formats"] {
        let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for path in files {
            if path.to_string_lossy().contains("expected") {
                continue;
            }
            print!("{:?}: {:?} ", path.file_name().unwrap(), lstm_formats::detect(&std::fs::read(&path).unwrap()));
            match open(&path, &OpenOptions::default()) {
                Ok(file) => println!(
                    "OK {:?} {:?} {:?}",
                    file.weights
                        .layers()
                        .iter()
                        .map(|l| match l {
                            ModelLayer::Lstm { name, weights, .. } => format!("{name}: {}", weights.config()),
                            l => format!("{:?} {}", l.name(), l.kind()),
                        })
                        .collect::<Vec<_>>(),
                    file.dtypes,
                    file.unused
                ),
                Err(e) => println!("ERR {e}"),
            }
        }
    }
}
