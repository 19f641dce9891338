//! The error of one output array of a verification case.

use std::fmt;

use lstm_core::ndarray::ArrayD;

/// Error of one array that a backend computed, and the largest error that passes.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Name of the array, such as `y`, `grad.x` or `Y_h`.
    pub array: String,
    /// The error as computed by [`relative_error`].
    pub error: f64,
    /// The largest error that passes.
    pub limit: f64,
    /// The error of PyTorch for this array in float32, compared with the expected float64 values; `None` except in
    /// golden cases.
    pub float32_error: Option<f64>,
}

impl Score {
    /// The error divided by the limit. Values up to 1 pass.
    pub fn ratio(&self) -> f64 {
        self.error / self.limit
    }

    /// Whether the error is at most the limit. An error of NaN does not pass.
    pub fn passes(&self) -> bool {
        self.error <= self.limit
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Score { array, error, limit, float32_error } = self;
        let verdict = if self.passes() { "ok" } else { "FAIL" };
        match float32_error {
            Some(float32_error) => {
                write!(
                    f,
                    "{array:<26} error {error:.2e}  float32_error {float32_error:.2e}  limit {limit:.2e}  {verdict}"
                )
            }
            None => write!(f, "{array:<5} error {error:.2e}  limit {limit:.0e}  {verdict}"),
        }
    }
}

/// The largest `|got - want| / (1 + |want|)` of all elements. It is infinite if an element is NaN or the shapes differ.
pub fn relative_error(want: &ArrayD<f64>, got: &ArrayD<f32>) -> f64 {
    if want.shape() != got.shape() {
        return f64::INFINITY;
    }
    let errors = want.iter().zip(got).map(|(want, &got)| (f64::from(got) - want).abs() / (1.0 + want.abs()));
    errors.fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::ndarray::array;

    #[test]
    fn error_is_relative_and_infinite_for_nan_and_other_shapes() {
        let got = array![[[1.0f32, 3.5]]].into_dyn();
        assert_eq!(relative_error(&array![[[1.0, 3.0]]].into_dyn(), &got), 0.125);
        assert_eq!(relative_error(&array![[[1.0, f64::NAN]]].into_dyn(), &got), f64::INFINITY);
        assert_eq!(relative_error(&array![[[1.0], [3.0]]].into_dyn(), &got), f64::INFINITY);
    }

    #[test]
    fn infinite_error_fails() {
        let score = Score { array: "y".into(), error: f64::INFINITY, limit: 5e-7, float32_error: Some(1e-7) };
        assert!(!score.passes());
        assert!(score.to_string().ends_with("FAIL"));
    }
}
