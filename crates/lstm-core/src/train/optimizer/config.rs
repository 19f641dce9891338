//! The algorithm of an optimizer and its options.

use std::{fmt, str::FromStr};

use crate::{
    config::text::{OptionValue, ParsedOptions, write_options},
    error::{Error, Result},
    train::check::{check_not_negative, check_range},
};

/// The algorithm of an [`Optimizer`](super::Optimizer) and its options.
///
/// The equations apply to each element, with the value `p`, the gradient `g`, the learning rate `r` and the step `t`,
/// counted from 1. Operations are f32, each rounded once, in the order written; products and sums associate from the
/// left. Terms in brackets are computed in f64 from the f32 options and rounded to f32 once. This is the order of
/// PyTorch's single-tensor optimizers, which on some machines fuse a product and a sum.
///
/// The text form is one line. Parsing it gives an equal value. Options that are left out have their defaults:
///
/// ```
/// use lstm_core::train::OptimizerConfig;
/// assert_eq!(OptimizerConfig::adamw().to_string(), "adamw beta1=0.9 beta2=0.999 eps=1e-8 weight_decay=0.01");
/// assert_eq!("sgd momentum=0.9".parse::<OptimizerConfig>()?, OptimizerConfig::momentum(0.9));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// Parsing fails with [`Error::Format`] for any other text, and with [`Error::Config`] for options that
/// [`validate`](Self::validate) rejects.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[must_use]
pub enum OptimizerConfig {
    /// Stochastic gradient descent, as `torch.optim.SGD`:
    ///
    /// ```text
    /// g = g + weight_decay * p                        if weight_decay is not 0
    /// b = g                                           in the first step
    /// b = momentum * b + [1 - dampening] * g          in later steps
    /// g = b                                           without nesterov
    /// g = g + momentum * b                            with nesterov
    /// p = p - r * g
    /// ```
    ///
    /// If `momentum` is 0, the lines with `b` are skipped.
    Sgd {
        /// Factor of the momentum buffer `b`; 0 by default.
        momentum: f32,
        /// Dampening of the gradient in the momentum buffer; 0 by default.
        dampening: f32,
        /// Whether to use Nesterov momentum (Sutskever et al. 2013); false by default.
        nesterov: bool,
        /// Factor of the L2 penalty; 0 by default.
        weight_decay: f32,
    },
    /// Adam (Kingma & Ba 2015) with an L2 penalty in the gradient, as `torch.optim.Adam`:
    ///
    /// ```text
    /// g = g + weight_decay * p                        if weight_decay is not 0
    /// m = m + w * (g - m)                             where w = [1 - beta1], if w < 0.5
    /// m = g + (w - 1) * (g - m)                       otherwise
    /// v = beta2 * v + [1 - beta2] * g * g
    /// p = p - [r / (1 - beta1^t)] * m / (sqrt(v) / [sqrt(1 - beta2^t)] + eps)
    /// ```
    ///
    /// `m` and `v` are 0 before the first step. Powers are those of the `libm` crate. The default `beta2` is the f32
    /// nearest to 0.999, while Python's 0.999 is an f64. `1 - beta2`, and `v` with it, therefore has a relative
    /// difference of 1e-5 from PyTorch's; the bias correction cancels this difference in `p`.
    Adam {
        /// Decay rate of `m`, the moving average of the gradient; 0.9 by default.
        beta1: f32,
        /// Decay rate of `v`, the moving average of the squared gradient; 0.999 by default.
        beta2: f32,
        /// Term added to the denominator; 1e-8 by default. With 0, an element becomes NaN if its gradient has been 0 in
        /// every step.
        eps: f32,
        /// Factor of the L2 penalty; 0 by default.
        weight_decay: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW`. The first operation is
    /// `p = p * [1 - r * weight_decay]`. The equations of [`Adam`](OptimizerConfig::Adam) for `m`, `v` and `p` follow,
    /// without an L2 penalty.
    AdamW {
        /// Decay rate of `m`, the moving average of the gradient; 0.9 by default.
        beta1: f32,
        /// Decay rate of `v`, the moving average of the squared gradient; 0.999 by default.
        beta2: f32,
        /// Term added to the denominator; 1e-8 by default. With 0, an element becomes NaN if its gradient has been 0 in
        /// every step.
        eps: f32,
        /// Decay of the parameters per step, as a multiple of the learning rate; 0.01 by default.
        weight_decay: f32,
    },
}

impl OptimizerConfig {
    /// Stochastic gradient descent without momentum or weight decay.
    pub fn sgd() -> Self {
        Self::momentum(0.0)
    }

    /// Stochastic gradient descent with momentum (0.9 is common), without dampening or weight decay.
    pub fn momentum(momentum: f32) -> Self {
        OptimizerConfig::Sgd { momentum, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }

    /// Stochastic gradient descent with Nesterov momentum, without weight decay.
    pub fn nesterov(momentum: f32) -> Self {
        OptimizerConfig::Sgd { momentum, dampening: 0.0, nesterov: true, weight_decay: 0.0 }
    }

    /// Adam with PyTorch's defaults: `beta1` 0.9, `beta2` 0.999, `eps` 1e-8, no weight decay.
    pub fn adam() -> Self {
        OptimizerConfig::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }

    /// AdamW with PyTorch's defaults: `beta1` 0.9, `beta2` 0.999, `eps` 1e-8, `weight_decay` 0.01.
    pub fn adamw() -> Self {
        OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }

    /// Sets the weight decay, an option of every optimizer.
    pub fn weight_decay(mut self, factor: f32) -> Self {
        let (OptimizerConfig::Sgd { weight_decay, .. }
        | OptimizerConfig::Adam { weight_decay, .. }
        | OptimizerConfig::AdamW { weight_decay, .. }) = &mut self;
        *weight_decay = factor;
        self
    }

    /// Checks every option and every combination of options.
    ///
    /// # Errors
    /// [`Error::Config`], which names the option: a number that is negative or not finite; a `beta1` or `beta2` that is
    /// not less than 1; `nesterov` without momentum or with dampening; `dampening` without momentum.
    pub fn validate(&self) -> Result<()> {
        match *self {
            OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
                check_not_negative("momentum", momentum)?;
                check_not_negative("dampening", dampening)?;
                check_not_negative("weight_decay", weight_decay)?;
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    let got = format!("momentum {momentum:?} and dampening {dampening:?}");
                    let reason = format!("expected a positive momentum and dampening 0, got {got}");
                    return Err(Error::config("nesterov", reason));
                }
                if dampening != 0.0 && momentum == 0.0 {
                    let reason = format!("expected 0 without momentum, got {dampening:?}");
                    return Err(Error::config("dampening", reason));
                }
                Ok(())
            }
            OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
            | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                check_range("beta1", beta1, 0.0..1.0, "0 <= beta < 1")?;
                check_range("beta2", beta2, 0.0..1.0, "0 <= beta < 1")?;
                check_not_negative("eps", eps)?;
                check_not_negative("weight_decay", weight_decay)
            }
        }
    }

    /// Two phrases for error messages: the state that this optimizer keeps for each parameter, and the optimizers that
    /// keep the same state.
    pub(in crate::train) fn describe_state(&self) -> (&'static str, &'static str) {
        match *self {
            OptimizerConfig::Sgd { momentum: 0.0, .. } => ("no state", "sgd without momentum"),
            OptimizerConfig::Sgd { .. } => ("the state momentum", "sgd with momentum"),
            OptimizerConfig::Adam { .. } | OptimizerConfig::AdamW { .. } => {
                ("the state exp_avg and exp_avg_sq", "adam or adamw")
            }
        }
    }

    /// PyTorch's names of the state arrays that the optimizer has for each parameter.
    pub(in crate::train) fn state_names(&self) -> &'static [&'static str] {
        match *self {
            OptimizerConfig::Sgd { momentum: 0.0, .. } => &[],
            OptimizerConfig::Sgd { .. } => &["momentum"],
            OptimizerConfig::Adam { .. } | OptimizerConfig::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
        }
    }
}

impl fmt::Display for OptimizerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => write_options(
                f,
                "sgd",
                &[
                    ("momentum", momentum.to_text()),
                    ("dampening", dampening.to_text()),
                    ("nesterov", nesterov.to_text()),
                    ("weight_decay", weight_decay.to_text()),
                ],
            ),
            OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
            | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                let kind = if matches!(self, OptimizerConfig::Adam { .. }) { "adam" } else { "adamw" };
                write_options(
                    f,
                    kind,
                    &[
                        ("beta1", beta1.to_text()),
                        ("beta2", beta2.to_text()),
                        ("eps", eps.to_text()),
                        ("weight_decay", weight_decay.to_text()),
                    ],
                )
            }
        }
    }
}

impl FromStr for OptimizerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("optimizer", text)?;
        let mut config = match options.kind() {
            "sgd" => OptimizerConfig::sgd(),
            "adam" => OptimizerConfig::adam(),
            "adamw" => OptimizerConfig::adamw(),
            _ => return Err(options.unexpected_kind("sgd, adam or adamw")),
        };
        match &mut config {
            OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
                options.read_into("momentum", momentum)?;
                options.read_into("dampening", dampening)?;
                options.read_into("nesterov", nesterov)?;
                options.read_into("weight_decay", weight_decay)?;
            }
            OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
            | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                options.read_into("beta1", beta1)?;
                options.read_into("beta2", beta2)?;
                options.read_into("eps", eps)?;
                options.read_into("weight_decay", weight_decay)?;
            }
        }
        options.finish()?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_invalid_options_by_name() {
        let sgd =
            |momentum, dampening, nesterov| OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay: 0.0 };
        let adam = |beta1, beta2, eps| OptimizerConfig::Adam { beta1, beta2, eps, weight_decay: 0.0 };
        let adamw = |beta1, beta2, eps| OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay: 0.0 };
        for (config, option) in [
            (sgd(-0.1, 0.0, false), "momentum"),
            (sgd(f32::NAN, 0.0, false), "momentum"),
            (sgd(0.9, -1.0, false), "dampening"),
            (sgd(0.9, f32::INFINITY, false), "dampening"),
            (sgd(0.0, 0.5, false), "dampening"),
            (sgd(0.0, 0.0, true), "nesterov"),
            (sgd(0.9, 0.1, true), "nesterov"),
            (adam(1.0, 0.9, 0.0), "beta1"),
            (adam(-0.1, 0.9, 0.0), "beta1"),
            (adamw(0.9, 1.0, 0.0), "beta2"),
            (adamw(0.9, f32::NAN, 0.0), "beta2"),
            (adam(0.9, 0.9, -1e-8), "eps"),
            (adamw(0.9, 0.9, f32::INFINITY), "eps"),
            (OptimizerConfig::sgd().weight_decay(-1.0), "weight_decay"),
            (OptimizerConfig::adam().weight_decay(f32::NAN), "weight_decay"),
            (OptimizerConfig::adamw().weight_decay(f32::INFINITY), "weight_decay"),
        ] {
            for result in [config.validate(), config.to_string().parse::<OptimizerConfig>().map(drop)] {
                match result {
                    Err(Error::Config { option: named, .. }) => assert_eq!(named, option),
                    other => panic!("{config}: {other:?}"),
                }
            }
        }
        for config in [sgd(1.5, 2.0, false), adam(0.0, 0.0, 0.0), adamw(0.1, 0.999_999_94, 1.0)] {
            config.validate().unwrap();
        }
    }

    #[test]
    fn text_round_trip_is_exact() {
        let long_decimal = f32::from_bits(0x3dcc_ccce);
        for config in [
            OptimizerConfig::sgd(),
            OptimizerConfig::momentum(long_decimal).weight_decay(f32::from_bits(1)),
            OptimizerConfig::nesterov(f32::MAX),
            OptimizerConfig::Sgd { momentum: 0.9, dampening: long_decimal, nesterov: false, weight_decay: 1e-20 },
            OptimizerConfig::adam().weight_decay(long_decimal),
            OptimizerConfig::AdamW {
                beta1: long_decimal,
                beta2: 0.999_999_94,
                eps: f32::MIN_POSITIVE,
                weight_decay: 3e7,
            },
        ] {
            assert_eq!(config.to_string().parse::<OptimizerConfig>().unwrap(), config);
        }
        assert_eq!(
            OptimizerConfig::nesterov(0.5).to_string(),
            "sgd momentum=0.5 dampening=0.0 nesterov=true weight_decay=0.0"
        );
        assert_eq!(" adam  eps=1e-8 ".parse::<OptimizerConfig>().unwrap(), OptimizerConfig::adam());
    }

    #[test]
    fn rejects_other_text() {
        for (text, part) in [
            ("", "got ``"),
            ("lion", "expected sgd, adam or adamw, got `lion`"),
            ("Adam", "got `Adam`"),
            ("sgd beta1=0.9", "`sgd` has no option `beta1`"),
            ("adam eps", "expected name=value, got `eps`"),
            ("adam eps=", "option eps: expected a number, got ``"),
            ("adam eps=1e-8x", "option eps: expected a number, got `1e-8x`"),
            ("sgd momentum=0.9 nesterov=yes", "option nesterov: expected true or false, got `yes`"),
            ("adam eps=1e-8 eps=1e-8", "got `eps` twice"),
        ] {
            let error = text.parse::<OptimizerConfig>().unwrap_err();
            assert!(matches!(error, Error::Format { .. }) && error.to_string().contains(part), "{error}");
            assert!(error.to_string().starts_with(&format!("optimizer `{text}`")));
        }
    }
}
