//! The equations of one step, element by element, as [`OptimizerConfig`] documents them.

use super::OptimizerConfig;

/// What a step keeps of a parameter for the next: as many as [`OptimizerConfig::slots`] names, the others are empty.
pub(super) type Slots = [Vec<f32>; 2];

/// Changes one parameter's values and slots, all of them as long as its gradient; `step` counts from 1.
pub(super) fn update(
    method: &OptimizerConfig,
    rate: f32,
    step: u64,
    value: &mut [f32],
    gradient: &[f32],
    [first, second]: &mut Slots,
) {
    match *method {
        OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
            let pairs = value.iter_mut().zip(gradient);
            if momentum == 0.0 {
                return pairs.for_each(|(p, &g)| *p -= rate * penalised(g, *p, weight_decay));
            }
            let enters = less(dampening);
            for ((p, &g), b) in pairs.zip(first) {
                let g = penalised(g, *p, weight_decay);
                *b = if step == 1 { g } else { momentum * *b + enters * g };
                *p -= rate * if nesterov { g + momentum * *b } else { *b };
            }
        }
        OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
        | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
            let correction = |beta: f32| 1.0 - libm::pow(f64::from(beta), step as f64);
            let size = (f64::from(rate) / correction(beta1)) as f32;
            let root = libm::sqrt(correction(beta2)) as f32;
            let (w1, w2) = (less(beta1), less(beta2));
            let (penalty, kept) = match method {
                OptimizerConfig::Adam { .. } => (weight_decay, 1.0),
                _ => (0.0, (1.0 - f64::from(rate) * f64::from(weight_decay)) as f32),
            };
            for (((p, &g), m), v) in value.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = penalised(g, *p, penalty);
                *p *= kept;
                *m = lerp(*m, g, w1);
                *v = beta2 * *v + w2 * g * g;
                *p -= size * *m / (v.sqrt() / root + eps);
            }
        }
    }
}

/// `1 - x`, rounded once.
fn less(x: f32) -> f32 {
    (1.0 - f64::from(x)) as f32
}

fn penalised(gradient: f32, value: f32, weight_decay: f32) -> f32 {
    if weight_decay == 0.0 { gradient } else { gradient + weight_decay * value }
}

/// From `a` towards `b` by the weight, starting from the nearer end, as `torch.lerp` does.
fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    if weight < 0.5 { a + weight * (b - a) } else { b + (weight - 1.0) * (b - a) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(method: &OptimizerConfig, step: u64, p: f32, g: f32, slots: &mut Slots) -> f32 {
        let mut value = [p];
        update(method, 0.1, step, &mut value, &[g], slots);
        value[0]
    }

    #[test]
    fn the_first_momentum_is_the_gradient_undampened() {
        let method = OptimizerConfig::Sgd { momentum: 0.5, dampening: 0.25, nesterov: false, weight_decay: 0.0 };
        let mut slots = [vec![7.0], vec![]];
        assert_eq!(one(&method, 1, 1.0, 2.0, &mut slots), 1.0 - 0.1f32 * 2.0);
        assert_eq!(slots[0], [2.0]);
        one(&method, 2, 1.0, 4.0, &mut slots);
        assert_eq!(slots[0], [0.5 * 2.0 + 0.75 * 4.0]);
    }

    #[test]
    fn adam_s_first_step_is_the_rate_s_size() {
        for g in [1e-3, -5.0, 1e12] {
            let p = one(&OptimizerConfig::adam(), 1, 0.0, g, &mut [vec![0.0], vec![0.0]]);
            assert!((p + g.signum() * 0.1).abs() < 2e-6, "{p}");
        }
    }

    #[test]
    fn decay_is_in_the_gradient_or_beside_it() {
        let slots = || [vec![0.0], vec![0.0]];
        let adam = one(&OptimizerConfig::adam().weight_decay(0.5), 1, 8.0, 0.0, &mut slots());
        let adamw = one(&OptimizerConfig::adamw().weight_decay(0.5), 1, 8.0, 0.0, &mut slots());
        assert!((adam - 7.9).abs() < 1e-5);
        assert_eq!(adamw, 8.0 * (1.0 - 0.1f32 * 0.5));
    }

    #[test]
    fn lerp_meets_its_ends() {
        assert_eq!((lerp(3.0, 0.1, 0.0), lerp(3.0, 0.1, 1.0)), (3.0, 0.1));
    }
}
