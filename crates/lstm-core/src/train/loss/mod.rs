//! Loss functions with their gradients.

mod cross_entropy;
mod ctc;
mod gaussian;
mod pointwise;

pub use cross_entropy::{IGNORE_INDEX, cross_entropy, weighted_cross_entropy};
pub use ctc::ctc_loss;
pub use gaussian::{gaussian_nll_loss, masked_gaussian_nll_loss};
pub use pointwise::{
    binary_cross_entropy, binary_cross_entropy_with_logits, huber, masked_binary_cross_entropy_with_logits,
    masked_mean_squared_error, masked_pointwise_loss, mean_squared_error, pinball, pointwise_loss, squared_error,
    weighted_pointwise_loss,
};

use crate::error::{Error, Result};

fn check_same_shape(op: &str, prediction: &[usize], target: &[usize]) -> Result<()> {
    if target == prediction {
        return Ok(());
    }
    Err(Error::shape(
        format!("{op}: target"),
        format!("{prediction:?}, the shape of the prediction"),
        format!("{target:?}"),
    ))
}

fn check_not_empty(op: &str, argument: &str, shape: &[usize]) -> Result<()> {
    if shape.contains(&0) {
        return Err(Error::shape(format!("{op}: {argument}"), "at least one element", format!("{shape:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::{
        Array, Array2, Array3, ArrayD, ArrayView2, Axis, Dimension, Ix2, Ix3, IxDyn, arr0, array, concatenate, s,
    };

    use super::*;

    fn error_message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn results_do_not_depend_on_memory_layout() {
        let (p, t) = (array![[1.5f32, -2.0, 0.25], [3.0, 0.0, -7.5]], array![[1.0f32, 2.0, 3.0], [-4.0, 5.0, 6.0]]);
        let (fp, ft) = (p.t().as_standard_layout().into_owned(), t.t().as_standard_layout().into_owned());
        let contiguous_result = mean_squared_error(p.view(), t.view()).unwrap();
        assert_eq!(contiguous_result, mean_squared_error(fp.t(), ft.t()).unwrap());
        assert_eq!(contiguous_result, mean_squared_error(p.view(), ft.t()).unwrap());
        assert!(mean_squared_error(fp.t(), ft.t()).unwrap().1.is_standard_layout());
        assert_eq!(cross_entropy(p.view(), &[2, 0]).unwrap(), cross_entropy(fp.t(), &[2, 0]).unwrap());
    }

    #[test]
    fn masked_losses_ignore_elements_beyond_the_lengths() {
        let p = Array3::from_shape_fn((3, 4, 2), |(b, t, k)| (b + 2 * t) as f32 - 0.5 * k as f32);
        let mut t = p.mapv(|v| 0.25 * v + 1.0);
        let unmasked_result = mean_squared_error(p.view(), t.view()).unwrap();
        assert_eq!(masked_mean_squared_error(p.view(), t.view(), &[4, 4, 4]).unwrap(), unmasked_result);
        t.slice_mut(s![1, 2.., ..]).fill(f32::NAN);
        t.slice_mut(s![2, .., ..]).fill(f32::INFINITY);
        let (loss, gradient) = masked_mean_squared_error(p.view(), t.view(), &[4, 2, 0]).unwrap();
        let unmasked_rows = |x: &Array3<f32>| {
            let rows = [x.slice(s![0, .., ..]), x.slice(s![1, ..2, ..])];
            ndarray::concatenate(Axis(0), &rows).unwrap()
        };
        let expected = mean_squared_error(unmasked_rows(&p).view(), unmasked_rows(&t).view()).unwrap();
        assert_eq!((loss, unmasked_rows(&gradient)), expected);
        let probabilities = t.mapv(|t| if t.is_finite() { t.clamp(0.0, 1.0) } else { t });
        let (loss, logit_gradient) =
            masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[4, 2, 0]).unwrap();
        let expected =
            binary_cross_entropy_with_logits(unmasked_rows(&p).view(), unmasked_rows(&probabilities).view()).unwrap();
        assert_eq!((loss, unmasked_rows(&logit_gradient)), expected);
        let error = error_message(masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[4, 3, 0]));
        assert!(error.contains("target: expected probabilities from 0 to 1, got NaN"), "{error}");
        assert!(masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[usize::MAX, 1, 1]).is_err());
        assert!(gradient.slice(s![1, 2.., ..]).iter().chain(gradient.slice(s![2, .., ..])).all(|v| v.to_bits() == 0));
        for (lengths, parts) in [
            (&[4, 5, 5][..], ["masked_mean_squared_error: lengths[1]", "at most 4 steps", "got 5"]),
            (&[4, 4], ["lengths", "3, one for each sequence", "got 2"]),
            (&[0, 0, 0], ["lengths", "at least one element", "[0, 0, 0]"]),
        ] {
            let error = error_message(masked_mean_squared_error(p.view(), t.view(), lengths));
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
        let error = error_message(masked_mean_squared_error(p.view(), t.slice(s![..2, .., ..]), &[1, 1, 1]));
        assert!(error.contains("target: expected [3, 4, 2], the shape of the prediction, got [2, 4, 2]"), "{error}");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let (loss, gradient) = cross_entropy(array![f32::MAX, 0.0, f32::MIN].view(), &[1]).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX), array![1.0, -1.0, 0.0]));
        let (loss, gradient) = cross_entropy(array![0.0, f32::NEG_INFINITY].view(), &[0]).unwrap();
        assert_eq!((loss, gradient), (0.0, array![0.0, 0.0]));
        let (x, t) = (array![f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY], array![0.0, 0.0, 1.0, 0.0]);
        let (loss, gradient) = binary_cross_entropy_with_logits(x.view(), t.view()).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX) / 4.0, array![0.25, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn non_finite_inputs_give_a_non_finite_loss() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!mean_squared_error(array![bad, 1.0].view(), array![0.0, 0.0].view()).unwrap().0.is_finite());
            assert!(!cross_entropy(array![bad, 1.0].view(), &[0]).unwrap().0.is_finite());
            assert!(
                !binary_cross_entropy_with_logits(array![bad, 1.0].view(), array![0.5, 0.0].view())
                    .unwrap()
                    .0
                    .is_finite()
            );
        }
        assert!(cross_entropy(array![f32::NAN, 1.0].view(), &[1]).unwrap().0.is_nan());
        let (loss, gradient) = cross_entropy(array![[f32::NAN, 1.0], [0.0, 0.0]].view(), &[IGNORE_INDEX, 0]).unwrap();
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "an ignored row");
    }

    #[test]
    fn errors_name_the_argument() {
        let x = Array2::<f32>::zeros((2, 3));
        for (error, parts) in [
            (
                error_message(mean_squared_error(x.view(), Array2::zeros((3, 2)).view())),
                ["mean_squared_error: target", "[2, 3]", "[3, 2]"],
            ),
            (
                error_message(mean_squared_error(x.view().into_dyn(), ArrayD::zeros(IxDyn(&[6])).view())),
                ["target", "[2, 3]", "[6]"],
            ),
            (
                error_message(mean_squared_error(x.slice(ndarray::s![0..0, ..]), Array2::zeros((0, 3)).view())),
                ["one", "[0, 3]", ""],
            ),
            (
                error_message(binary_cross_entropy_with_logits(x.view(), Array2::from_elem((2, 3), -0.5).view())),
                ["binary_cross_entropy: target", "from 0 to 1", "got -0.5"],
            ),
            (error_message(cross_entropy(arr0(1.0f32).view(), &[0])), ["cross_entropy: logits", "one axis", "none"]),
            (error_message(cross_entropy(Array2::zeros((2, 0)).view(), &[0, 0])), ["logits", "one element", "[2, 0]"]),
            (error_message(cross_entropy(x.view(), &[0])), ["targets", "2, one per row of [2, 3]", "got 1"]),
            (error_message(cross_entropy(x.view(), &[IGNORE_INDEX, 3])), ["row 1", "below 3", "got 3"]),
            (
                error_message(cross_entropy(x.view(), &[IGNORE_INDEX, IGNORE_INDEX])),
                ["targets", "at least one", "IGNORE_INDEX"],
            ),
            (error_message(huber(0.0).map(drop)), ["delta", "positive", "got 0.0"]),
            (error_message(pinball(1.0).map(drop)), ["quantile", "0 < quantile < 1", "got 1.0"]),
            (
                error_message(weighted_pointwise_loss(x.view(), x.view(), Array2::zeros((2, 2)).view(), squared_error)),
                ["weights", "[2, 3]", "got [2, 2]"],
            ),
            (
                error_message(weighted_pointwise_loss(x.view(), x.view(), x.view(), squared_error)),
                ["weights", "above 0", "only 0"],
            ),
            (
                error_message(weighted_pointwise_loss(x.view(), x.view(), array![[-1.0]].view(), squared_error)),
                ["weights", "at least 0", "got -1"],
            ),
            (error_message(weighted_cross_entropy(x.view(), &[0, 1], &[1.0])), ["class_weights", "3, one", "got 1"]),
            (
                error_message(weighted_cross_entropy(x.view(), &[0, 1], &[0.0, 0.0, 1.0])),
                ["class_weights", "above 0", "only 0"],
            ),
            (
                error_message(gaussian_nll_loss(x.view(), x.view())),
                ["gaussian_nll_loss: prediction", "[2, 6]", "got [2, 3]"],
            ),
            (
                error_message(ctc_loss(Array3::zeros((1, 3, 3)).view(), None, &[&[1, 1, 2]], 0)),
                ["length of sequence 0", "at least 4 time steps", "got 3"],
            ),
            (
                error_message(ctc_loss(Array3::zeros((1, 3, 3)).view(), None, &[&[1, 0]], 0)),
                ["target of sequence 0", "other than the blank 0", "got 0"],
            ),
            (
                error_message(ctc_loss(Array3::zeros((2, 3, 3)).view(), Some(&[3, 4]), &[&[], &[]], 0)),
                ["lengths[1]", "at most 3", "got 4"],
            ),
            (
                error_message(ctc_loss(Array3::zeros((2, 3, 3)).view(), None, &[&[1]], 0)),
                ["targets", "2, one", "got 1"],
            ),
            (error_message(ctc_loss(Array3::zeros((1, 3, 3)).view(), None, &[&[1]], 3)), ["blank", "below 3", "got 3"]),
        ] {
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
    }

    /// Numbers between -1.25 and 1.25, which the script that computed PyTorch's results has as well.
    fn values<D: Dimension>(shape: D, k: usize) -> Array<f32, D> {
        let numbers = (0..shape.size()).map(|i| ((7 * i + 3 * k) % 11) as f32 / 4.0 - 1.25);
        Array::from_shape_vec(shape, numbers.collect()).unwrap()
    }

    fn assert_close<D: Dimension>((loss, gradient): (f64, Array<f32, D>), expected_loss: f64, expected: &[f64]) {
        assert!((loss - expected_loss).abs() < 1e-12, "loss {loss}, expected {expected_loss}");
        assert_eq!(gradient.len(), expected.len());
        for (gradient, expected) in gradient.iter().zip(expected) {
            assert!((f64::from(*gradient) - expected).abs() < 1e-7, "gradient {gradient}, expected {expected}");
        }
    }

    /// Losses and gradients that PyTorch 2.15 computed in float64.
    #[test]
    fn losses_equal_pytorchs() {
        let (p, t) = (values(Ix2(2, 3), 0), values(Ix2(2, 3), 1));
        for (delta, loss, gradient) in [
            (1.0, 0.484375, [-0.125, -0.125, -0.125, 0.166666667, -0.125, -0.125]),
            (0.3, 0.24250000000000002, [-0.05, -0.05, -0.05, 0.05, -0.05, -0.05]),
        ] {
            assert_close(pointwise_loss(p.view(), t.view(), huber(delta).unwrap()).unwrap(), loss, &gradient);
        }
        let probabilities = values(Ix2(2, 3), 2).mapv(|v| (v + 1.25) / 2.5);
        let loss = pointwise_loss(p.view(), probabilities.view(), binary_cross_entropy(3.5).unwrap()).unwrap();
        // The targets are rounded to f32 here.
        assert!((loss.0 - 2.146511017406547).abs() < 1e-7);
        assert_close(
            (2.146511017406547, loss.1),
            2.146511017406547,
            &[-0.257208275, 0.0389481661, -0.320498804, -0.000179218726, 0.058786771, -0.306256016],
        );
        let (mean, log_variance) = (values(Ix2(2, 2), 0), values(Ix2(2, 2), 5));
        let prediction = concatenate(Axis(1), &[mean.view(), log_variance.view()]).unwrap();
        let gradient = concatenate(
            Axis(1),
            &[
                ArrayView2::from_shape((2, 2), &[-0.722264297, 0.43629287, 0.0758163325, 0.206090159]).unwrap(),
                ArrayView2::from_shape((2, 2), &[-0.687547334, 0.0159267826, 0.106045917, 0.0734774603]).unwrap(),
            ],
        );
        let gradient: Vec<f64> = gradient.unwrap().iter().copied().collect();
        let target = values(Ix2(2, 2), 3);
        assert_close(gaussian_nll_loss(prediction.view(), target.view()).unwrap(), 0.8045971742437927, &gradient);
        let logits = values(Ix2(4, 3), 0);
        let loss = weighted_cross_entropy(logits.view(), &[2, IGNORE_INDEX, 0, 1], &[0.5, 2.0, 1.5]).unwrap();
        assert_close(
            loss,
            1.292074527857276,
            &[
                0.0422697018,
                0.243245339,
                -0.285515041,
                0.0,
                0.0,
                0.0,
                -0.0418448805,
                0.0305910589,
                0.0112538216,
                0.332620478,
                -0.377635764,
                0.0450152866,
            ],
        );
        let logits = values(Ix3(3, 6, 4), 0);
        let loss = ctc_loss(logits.view(), Some(&[6, 5, 4]), &[&[1, 2], &[3, 3, 2], &[]], 0).unwrap();
        assert_close(
            loss,
            3.8345930699526005,
            &[
                -0.0165655501,
                -0.0966308998,
                0.0167584172,
                0.0964380326,
                -0.0159921333,
                -0.0414575558,
                0.027006475,
                0.0304432141,
                -0.00626094517,
                0.0446126162,
                -0.0518018994,
                0.0134502284,
                0.00719895426,
                0.00797954319,
                -0.0456217116,
                0.0304432141,
                -0.0354666978,
                0.097687936,
                -0.0756714666,
                0.0134502284,
                -0.0773418416,
                0.0268680208,
                -0.00640577974,
                0.0568796005,
                -0.0118444324,
                0.0662563279,
                0.0243743409,
                -0.0787862365,
                -0.0208718814,
                0.0179120139,
                0.00658946166,
                -0.00362959416,
                -0.0388474765,
                0.00958690407,
                0.0551688238,
                -0.0259082514,
                0.0253318461,
                0.0179120139,
                0.00193506202,
                -0.045178922,
                0.0245666766,
                0.00958690407,
                -0.0544490567,
                0.0202954761,
                0.0,
                0.0,
                0.0,
                0.0,
                -0.255153612,
                0.0287607122,
                0.165506471,
                0.0608864282,
                -0.298792463,
                0.198768984,
                0.0731230227,
                0.0269004567,
                -0.255153612,
                0.0287607122,
                0.165506471,
                0.0608864282,
                -0.298792463,
                0.198768984,
                0.0731230227,
                0.0269004567,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
            ],
        );
        let loss = ctc_loss(values(Ix3(1, 5, 3), 4).view(), None, &[&[0, 0, 1]], 2).unwrap();
        assert_close(
            loss,
            1.7196327898560242,
            &[
                -0.272897433,
                0.216218079,
                0.0566793541,
                0.00391059918,
                0.216218079,
                -0.220128678,
                -0.0550610471,
                0.081576157,
                -0.0265151099,
                -0.00371306356,
                -0.00343429555,
                0.00714735911,
                0.221746985,
                -0.228894344,
                0.00714735911,
            ],
        );
    }

    #[test]
    fn pinball_loss_is_lowest_at_the_quantile() {
        let targets: Vec<f64> = (0..100).map(f64::from).collect();
        let loss = pinball(0.9).unwrap();
        let total = |p: f64| targets.iter().map(|&t| loss(p, t).0).sum::<f64>();
        assert!(total(89.5) < total(88.0) && total(89.5) < total(91.0) && total(89.5) < total(50.0));
        assert_eq!(
            (loss(0.0, 2.0), loss(2.0, 0.0), loss(1.0, 1.0)),
            ((1.8, -0.9), (2.0 * (1.0 - 0.9), 1.0 - 0.9), (0.0, 0.0))
        );
    }

    #[test]
    fn weights_select_and_scale_elements() {
        let (p, mut t) = (values(Ix3(2, 3, 2), 0), values(Ix3(2, 3, 2), 1));
        let equal =
            weighted_pointwise_loss(p.view(), t.view(), Array3::from_elem((1, 1, 1), 0.5).view(), squared_error);
        let mean = mean_squared_error(p.view(), t.view()).unwrap();
        assert_eq!(equal.unwrap(), mean);
        // A weight of 0 is a mask.
        t.slice_mut(s![1, 2.., ..]).fill(f32::NAN);
        let weights = array![[[1.0], [1.0], [1.0]], [[1.0], [1.0], [0.0]]];
        let weighted = weighted_pointwise_loss(p.view(), t.view(), weights.view(), squared_error).unwrap();
        assert_eq!(weighted, masked_mean_squared_error(p.view(), t.view(), &[3, 2]).unwrap());
        assert_eq!(weighted, masked_pointwise_loss(p.view(), t.view(), &[3, 2], squared_error).unwrap());
        let prediction = concatenate(Axis(2), &[p.view(), p.view()]).unwrap();
        let masked = masked_gaussian_nll_loss(prediction.view(), t.view(), &[3, 2]).unwrap();
        let rows = |x: &Array3<f32>| concatenate(Axis(0), &[x.slice(s![0, .., ..]), x.slice(s![1, ..2, ..])]).unwrap();
        let unmasked = gaussian_nll_loss(rows(&prediction).view(), rows(&t).view()).unwrap();
        assert_eq!((masked.0, rows(&masked.1)), unmasked);
        let logits = values(Ix2(4, 3), 0);
        assert_eq!(
            weighted_cross_entropy(logits.view(), &[2, 1, 0, 1], &[1.0; 3]).unwrap(),
            cross_entropy(logits.view(), &[2, 1, 0, 1]).unwrap()
        );
        let without_class = weighted_cross_entropy(logits.view(), &[2, 1, 0, 1], &[1.0, 0.0, 1.0]).unwrap();
        assert_eq!(without_class, cross_entropy(logits.view(), &[2, IGNORE_INDEX, 0, IGNORE_INDEX]).unwrap());
    }

    /// The gradient of the loss, by central differences.
    #[test]
    fn ctc_gradient_is_the_derivative() {
        let logits = values(Ix3(2, 7, 3), 3);
        let loss = |logits: &Array3<f32>| ctc_loss(logits.view(), Some(&[7, 5]), &[&[2, 2, 1], &[1, 2]], 0).unwrap();
        let gradient = loss(&logits).1;
        for (index, &expected) in gradient.indexed_iter() {
            let (mut above, mut below) = (logits.clone(), logits.clone());
            above[index] += 1.0 / 64.0;
            below[index] -= 1.0 / 64.0;
            let difference = (loss(&above).0 - loss(&below).0) * 32.0;
            assert!((difference - f64::from(expected)).abs() < 1e-4, "{index:?}: {difference} {expected}");
        }
    }

    #[test]
    fn rejects_shapes_larger_than_memory() {
        let huge_array = array![1.0f32];
        let huge_array = huge_array.broadcast(isize::MAX as usize).unwrap();
        assert!(matches!(
            mean_squared_error(huge_array, huge_array),
            Err(Error::TooLarge { op: "mean_squared_error", .. })
        ));
    }
}
