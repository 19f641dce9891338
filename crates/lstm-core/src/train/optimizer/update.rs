//! One optimizer step for one parameter. [`OptimizerConfig`] documents the equations.

use super::OptimizerConfig;

/// Optimizer state of one parameter: the arrays that [`OptimizerConfig::state_names`] names, in that order. Unused
/// arrays are empty.
pub(super) type ParameterState = [Vec<f32>; 2];

/// Updates one parameter and its optimizer state in place. All slices have the length of the gradient. `step` counts
/// from 1.
pub(super) fn update(
    config: &OptimizerConfig,
    rate: f32,
    step: u64,
    value: &mut [f32],
    gradient: &[f32],
    [first_array, second_array]: &mut ParameterState,
) {
    match *config {
        OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
            let values_and_gradients = value.iter_mut().zip(gradient);
            if momentum == 0.0 {
                return values_and_gradients.for_each(|(p, &g)| *p -= rate * add_l2_penalty(g, *p, weight_decay));
            }
            let gradient_factor = one_minus(dampening);
            for ((p, &g), b) in values_and_gradients.zip(first_array) {
                let g = add_l2_penalty(g, *p, weight_decay);
                *b = if step == 1 { g } else { momentum * *b + gradient_factor * g };
                *p -= rate * if nesterov { g + momentum * *b } else { *b };
            }
        }
        OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
        | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
            let bias_correction = |beta: f32| 1.0 - libm::pow(f64::from(beta), step as f64);
            let step_size = (f64::from(rate) / bias_correction(beta1)) as f32;
            let sqrt_bias_correction2 = libm::sqrt(bias_correction(beta2)) as f32;
            let (one_minus_beta1, one_minus_beta2) = (one_minus(beta1), one_minus(beta2));
            let (l2_penalty, decay_factor) = match config {
                OptimizerConfig::Adam { .. } => (weight_decay, 1.0),
                _ => (0.0, (1.0 - f64::from(rate) * f64::from(weight_decay)) as f32),
            };
            for (((p, &g), m), v) in value.iter_mut().zip(gradient).zip(first_array).zip(second_array) {
                let g = add_l2_penalty(g, *p, l2_penalty);
                *p *= decay_factor;
                *m = lerp(*m, g, one_minus_beta1);
                *v = beta2 * *v + one_minus_beta2 * g * g;
                *p -= step_size * *m / (v.sqrt() / sqrt_bias_correction2 + eps);
            }
        }
    }
}

/// `1 - x`, computed in f64 and rounded to f32 once.
fn one_minus(x: f32) -> f32 {
    (1.0 - f64::from(x)) as f32
}

/// `gradient + weight_decay * value`. With a weight decay of 0, the gradient is unchanged even if the value is not
/// finite.
fn add_l2_penalty(gradient: f32, value: f32, weight_decay: f32) -> f32 {
    if weight_decay == 0.0 { gradient } else { gradient + weight_decay * value }
}

/// Linear interpolation from `a` to `b`, computed from the nearer end point, as `torch.lerp` does.
fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    if weight < 0.5 { a + weight * (b - a) } else { b + (weight - 1.0) * (b - a) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The new value of a parameter with one element after a step with the learning rate 0.1.
    fn update_scalar(config: &OptimizerConfig, step: u64, p: f32, g: f32, state: &mut ParameterState) -> f32 {
        let mut value = [p];
        update(config, 0.1, step, &mut value, &[g], state);
        value[0]
    }

    #[test]
    fn first_momentum_is_the_undampened_gradient() {
        let config = OptimizerConfig::Sgd { momentum: 0.5, dampening: 0.25, nesterov: false, weight_decay: 0.0 };
        let mut state = [vec![7.0], vec![]];
        assert_eq!(update_scalar(&config, 1, 1.0, 2.0, &mut state), 1.0 - 0.1f32 * 2.0);
        assert_eq!(state[0], [2.0]);
        update_scalar(&config, 2, 1.0, 4.0, &mut state);
        assert_eq!(state[0], [0.5 * 2.0 + 0.75 * 4.0]);
    }

    #[test]
    fn adam_first_step_has_the_size_of_the_rate() {
        for g in [1e-3, -5.0, 1e12] {
            let p = update_scalar(&OptimizerConfig::adam(), 1, 0.0, g, &mut [vec![0.0], vec![0.0]]);
            assert!((p + g.signum() * 0.1).abs() < 2e-6, "{p}");
        }
    }

    #[test]
    fn adam_adds_weight_decay_to_the_gradient_and_adamw_to_the_value() {
        let zero_state = || [vec![0.0], vec![0.0]];
        let adam = update_scalar(&OptimizerConfig::adam().weight_decay(0.5), 1, 8.0, 0.0, &mut zero_state());
        let adamw = update_scalar(&OptimizerConfig::adamw().weight_decay(0.5), 1, 8.0, 0.0, &mut zero_state());
        assert!((adam - 7.9).abs() < 1e-5);
        assert_eq!(adamw, 8.0 * (1.0 - 0.1f32 * 0.5));
    }

    #[test]
    fn lerp_is_exact_at_both_ends() {
        assert_eq!((lerp(3.0, 0.1, 0.0), lerp(3.0, 0.1, 1.0)), (3.0, 0.1));
    }
}
