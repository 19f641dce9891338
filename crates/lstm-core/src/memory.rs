//! Memory whose size a caller decides: each allocation can fail with [`Error::TooLarge`] instead of ending the process.
//! Small ones of a fixed size, such as a name or the list of a model's layers, do not use this module.

use ndarray::{Array, ArrayView, Dimension};

use crate::{
    error::{Error, Result},
    shape::checked_len,
};

/// An empty vector with capacity for as many elements as the product of `sizes`. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn with_capacity<T>(op: &'static str, sizes: &[usize]) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    let len = checked_len(op, sizes)?;
    vec.try_reserve_exact(len).map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
    Ok(vec)
}

/// A vector with as many copies of `value` as the product of `sizes`. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn filled<T: Clone>(op: &'static str, sizes: &[usize], value: T) -> Result<Vec<T>> {
    let mut vec = with_capacity(op, sizes)?;
    vec.resize(sizes.iter().product(), value);
    Ok(vec)
}

/// A vector of the values of an iterator, which yields at most `len`. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn collect<T>(op: &'static str, len: usize, values: impl IntoIterator<Item = T>) -> Result<Vec<T>> {
    let mut vec = with_capacity(op, &[len])?;
    vec.extend(values);
    debug_assert!(vec.len() <= len, "{op}: more than {len} values");
    Ok(vec)
}

/// Like [`collect`], for values whose computation may fail.
///
/// # Errors
/// The first error of a value; [`Error::TooLarge`] if the values do not fit in memory.
pub fn try_collect<T>(op: &'static str, len: usize, values: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut vec = with_capacity(op, &[len])?;
    for value in values {
        vec.push(value?);
    }
    debug_assert!(vec.len() <= len, "{op}: more than {len} values");
    Ok(vec)
}

/// A copy of a slice. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if it does not fit in memory.
pub fn copy<T: Copy>(op: &'static str, values: &[T]) -> Result<Vec<T>> {
    collect(op, values.len(), values.iter().copied())
}

/// Slices one after the other. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn concat<T: Copy>(op: &'static str, parts: &[&[T]]) -> Result<Vec<T>> {
    let mut all = with_capacity(op, &[parts.iter().map(|part| part.len()).sum()])?;
    parts.iter().for_each(|part| all.extend_from_slice(part));
    Ok(all)
}

/// An array of zeros. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if it does not fit in memory.
pub fn zero_array<D: Dimension>(op: &'static str, dim: D) -> Result<Array<f32, D>> {
    let values = filled(op, dim.slice(), 0.0)?;
    array_from_vec(op, dim, values)
}

/// A row-major copy of an array. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if it does not fit in memory.
pub fn copy_array<D: Dimension>(op: &'static str, from: ArrayView<'_, f32, D>) -> Result<Array<f32, D>> {
    map_array(op, from, |v| v)
}

/// A row-major array of `map` of each element. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if it does not fit in memory.
pub fn map_array<D: Dimension>(
    op: &'static str,
    from: ArrayView<'_, f32, D>,
    map: impl Fn(f32) -> f32,
) -> Result<Array<f32, D>> {
    let values = match from.as_slice() {
        Some(values) => collect(op, values.len(), values.iter().map(|&v| map(v)))?,
        None => collect(op, from.len(), from.iter().map(|&v| map(v)))?,
    };
    array_from_vec(op, from.raw_dim(), values)
}

/// The array itself if it is row-major, else a row-major copy. An error names `op`.
///
/// # Errors
/// [`Error::TooLarge`] if the copy does not fit in memory.
pub fn row_major<D: Dimension>(op: &'static str, from: Array<f32, D>) -> Result<Array<f32, D>> {
    if from.is_standard_layout() { Ok(from) } else { copy_array(op, from.view()) }
}

/// The row-major array of `values`. An error names `op`.
///
/// # Errors
/// [`Error::Shape`] if the array does not have as many elements.
pub(crate) fn array_from_vec<D: Dimension>(op: &str, dim: D, values: Vec<f32>) -> Result<Array<f32, D>> {
    let shape = format!("{:?}", dim.slice());
    Array::from_shape_vec(dim, values).map_err(|e| Error::shape(op, shape, e))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error() {
        const HUGE: usize = isize::MAX as usize / 64;
        let is_too_large = |error| matches!(error, Error::TooLarge { op: "op", .. });
        assert!(is_too_large(with_capacity::<u64>("op", &[HUGE]).unwrap_err()));
        assert!(is_too_large(with_capacity::<u8>("op", &[1 << 40, 1 << 40]).unwrap_err()));
        assert!(is_too_large(filled("op", &[2, HUGE / 2], [0u64; 2]).unwrap_err()));
        assert!(is_too_large(collect("op", HUGE, [0u64]).unwrap_err()));
        assert!(is_too_large(try_collect("op", HUGE, [Ok(0u64)]).unwrap_err()));
        assert!(is_too_large(zero_array("op", ndarray::Ix2(1 << 31, 1 << 31)).unwrap_err()));
        let broadcast = ndarray::arr0(1.0);
        let broadcast = broadcast.broadcast((1 << 30, 1 << 30)).unwrap();
        assert!(is_too_large(copy_array("op", broadcast).unwrap_err()));
    }

    #[test]
    fn arrays_keep_their_elements() {
        let a = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        for view in [a.view(), a.t(), a.slice(ndarray::s![.., ..;2])] {
            let copy = copy_array("op", view).unwrap();
            assert!(copy == view && copy.is_standard_layout());
            assert_eq!(map_array("op", view, |v| v + 1.0).unwrap(), &view + 1.0);
            let row_major = row_major("op", view.to_owned()).unwrap();
            assert!(row_major == view && row_major.is_standard_layout());
        }
        assert_eq!(zero_array("op", ndarray::Ix2(2, 3)).unwrap(), Array2::<f32>::zeros((2, 3)));
        assert_eq!(copy("op", &[1, 2]).unwrap(), [1, 2]);
        assert_eq!(concat("op", &[&[1, 2], &[], &[3]]).unwrap(), [1, 2, 3]);
        assert_eq!(try_collect("op", 2, [Ok(1), Err(Error::config("x", "y"))]).unwrap_err().to_string(), "option x: y");
    }
}
