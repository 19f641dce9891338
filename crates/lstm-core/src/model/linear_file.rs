//! Reading and writing of a [`Linear`] layer in a safetensors file.

use ndarray::Ix2;

use crate::{
    backend::Backend,
    error::{Error, Result},
    model::Linear,
    weights::state_dict::{StateDict, StateDictWriter},
};

impl<B: Backend> Linear<B> {
    /// Takes a layer from a state dict: the tensor `{prefix}weight` and, if present, `{prefix}bias`. An example of a
    /// prefix is `"head."`. Other tensors with the prefix stay in the state dict.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is no weight; [`Error::Shape`] if the weight is not a matrix;
    /// [`Error::TensorShape`] if the length of the bias is not the number of rows of the weight; and the errors of
    /// [`StateDict::take`] and [`new`](Self::new). The state dict is unchanged after an error.
    pub fn take(backend: &B, dict: &mut StateDict, prefix: &str) -> Result<Self> {
        let [weight, bias] = ["weight", "bias"].map(|name| format!("{prefix}{name}"));
        let weight_matrix = dict.read(&weight)?;
        let shape = format!("{:?}", weight_matrix.shape());
        let weight_matrix = weight_matrix.into_dimensionality::<Ix2>();
        let weight_matrix =
            weight_matrix.map_err(|_| Error::shape(format!("tensor `{weight}`"), "(out, in)", shape))?;
        let bias_vector = match dict.shape(&bias) {
            None => None,
            Some(_) => {
                dict.check(&bias, &[weight_matrix.nrows()])?;
                Some(dict.read(&bias)?.into_iter().collect())
            }
        };
        let layer = Self::new(backend, weight_matrix, bias_vector)?;
        dict.remove(&weight);
        dict.remove(&bias);
        Ok(layer)
    }

    /// Adds the tensors `{prefix}weight` and, with a bias, `{prefix}bias` to a writer. [`take`](Self::take) reads them.
    ///
    /// # Errors
    /// [`Error::Format`] if the writer already has a tensor with one of these names.
    pub fn write_to(&self, writer: StateDictWriter, prefix: &str) -> Result<StateDictWriter> {
        let writer = writer.tensor(format!("{prefix}weight"), self.weight())?;
        match self.bias() {
            Some(bias) => writer.tensor(format!("{prefix}bias"), bias),
            None => Ok(writer),
        }
    }
}
