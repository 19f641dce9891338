//! Loads a file of `torch.save` with an LSTM and a linear layer, and compares its outputs with PyTorch's.
//!
//! `cargo run --release --example pytorch_model`

use std::path::Path;

use lstm::{
    Cpu, Error, StateDict, formats,
    ndarray::{Array3, Ix3},
};

fn main() -> Result<(), Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    // The layers and sizes follow from the names and shapes of the tensors: `rec.weight_ih_l0`, `lin.weight` and so on.
    let model = formats::open_model(&Cpu::new(), folder.join("torch-checkpoint.pt"))?;
    for layer in model.weights().layers() {
        println!("{layer}");
    }

    // What PyTorch computed, saved by `safetensors.torch.save_file({"x": x, "y": y}, path)`.
    let mut file = StateDict::open(folder.join("torch-checkpoint.expected.safetensors"))?;
    let mut take = |name| -> Result<Array3<f32>, Error> {
        let array = file.take_any(name)?;
        Ok(array.into_dimensionality::<Ix3>().expect("batch, steps, features"))
    };
    let (x, expected) = (take("x")?, take("y")?);
    file.finish()?; // an error if the file has more

    let y = model.forward(&x)?.y;
    let largest = y.iter().zip(&expected).fold(0.0f32, |largest, (y, expected)| largest.max((y - expected).abs()));
    println!("{:?} outputs, at most {largest:e} from PyTorch's", y.dim());
    assert!(y.dim() == expected.dim() && largest < 1e-6);
    Ok(())
}
