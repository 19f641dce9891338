//! Which optimizer, with which options, and both as text.

use std::{fmt, str::FromStr};

use crate::{
    config::{
        check::{check_not_negative, check_range},
        text::{OptionValue, ParsedOptions, write_options},
    },
    error::{Error, Result},
};

/// How an [`Optimizer`](super::Optimizer) changes parameters, and its options.
///
/// The equations are for each element: value p, gradient g, rate r, step t counted from 1. Operations are f32, in the
/// order written, products and sums from the left, each rounded once; numbers in brackets are computed in f64 from the
/// f32 options and rounded once to f32. That is the order of PyTorch's single-tensor optimizers, which on some
/// machines fuse a product and a sum.
///
/// As text it is one line, which keeps every bit. Options that are left out have their defaults:
///
/// ```
/// use lstm_core::train::OptimizerConfig;
/// assert_eq!(OptimizerConfig::adamw().to_string(), "adamw beta1=0.9 beta2=0.999 eps=1e-8 weight_decay=0.01");
/// assert_eq!("sgd momentum=0.9".parse::<OptimizerConfig>()?, OptimizerConfig::momentum(0.9));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// Parsing fails with [`Error::Format`] for text that is not such a line, and as [`validate`](Self::validate) does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// Stochastic gradient descent, `torch.optim.SGD`:
    ///
    /// ```text
    /// g = g + weight_decay * p                        if weight_decay is not 0
    /// b = g                                           in the first step
    /// b = momentum * b + [1 - dampening] * g          in later ones
    /// g = b, or g = g + momentum * b with nesterov
    /// p = p - r * g
    /// ```
    ///
    /// Without momentum there is no b, and g stays what it is.
    Sgd {
        /// How much of the earlier steps is kept; 0 by default.
        momentum: f32,
        /// How much less of the gradient enters the momentum; 0 by default.
        dampening: f32,
        /// Whether to look ahead by a step (Nesterov; Sutskever et al. 2013); not by default.
        nesterov: bool,
        /// L2 penalty's factor; 0 by default.
        weight_decay: f32,
    },
    /// Adam (Kingma & Ba 2015) with an L2 penalty in the gradient, `torch.optim.Adam`:
    ///
    /// ```text
    /// g = g + weight_decay * p                        if weight_decay is not 0
    /// m = m + w * (g - m)       where w = [1 - beta1], if w < 0.5
    /// m = g + (w - 1) * (g - m)                        otherwise
    /// v = beta2 * v + [1 - beta2] * g * g
    /// p = p - [r / (1 - beta1^t)] * m / (sqrt(v) / [sqrt(1 - beta2^t)] + eps)
    /// ```
    ///
    /// m and v are 0 before the first step. Powers are those of the `libm` crate. Note that the f32 nearest to 0.999 is
    /// not the f64 that Python has: `1 - beta2` differs by 1e-5 of itself, and v with it, while p's step does not.
    Adam {
        /// Decay of the gradient's average; 0.9 by default.
        beta1: f32,
        /// Decay of the squared gradient's average; 0.999 by default.
        beta2: f32,
        /// Added to the denominator; 1e-8 by default. With 0, an element whose gradients were all 0 becomes NaN.
        eps: f32,
        /// L2 penalty's factor; 0 by default.
        weight_decay: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019), `torch.optim.AdamW`: first
    /// `p = p * [1 - r * weight_decay]`, then Adam's equations from m on, without a penalty in g.
    AdamW {
        /// Decay of the gradient's average; 0.9 by default.
        beta1: f32,
        /// Decay of the squared gradient's average; 0.999 by default.
        beta2: f32,
        /// Added to the denominator; 1e-8 by default. With 0, an element whose gradients were all 0 becomes NaN.
        eps: f32,
        /// Decay of the parameters, as a multiple of the rate; 0.01 by default.
        weight_decay: f32,
    },
}

impl OptimizerConfig {
    /// Plain gradient descent: no momentum, no decay.
    pub fn sgd() -> Self {
        Self::momentum(0.0)
    }

    /// Gradient descent with momentum (0.9 is usual); no dampening, no decay.
    pub fn momentum(momentum: f32) -> Self {
        OptimizerConfig::Sgd { momentum, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }

    /// Gradient descent with Nesterov's momentum; no decay.
    pub fn nesterov(momentum: f32) -> Self {
        OptimizerConfig::Sgd { momentum, dampening: 0.0, nesterov: true, weight_decay: 0.0 }
    }

    /// Adam with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, no decay.
    pub fn adam() -> Self {
        OptimizerConfig::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }

    /// AdamW with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, decay 0.01.
    pub fn adamw() -> Self {
        OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }

    /// Sets the weight decay, which every method has.
    pub fn weight_decay(mut self, factor: f32) -> Self {
        let (OptimizerConfig::Sgd { weight_decay, .. }
        | OptimizerConfig::Adam { weight_decay, .. }
        | OptimizerConfig::AdamW { weight_decay, .. }) = &mut self;
        *weight_decay = factor;
        self
    }

    /// Checks that the options exist and fit together.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option: a number that is negative or not finite; a beta that is not less than 1;
    /// `nesterov` without momentum or with dampening; `dampening` without the momentum that it acts on.
    pub fn validate(&self) -> Result<()> {
        match *self {
            OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
                check_not_negative("momentum", momentum)?;
                check_not_negative("dampening", dampening)?;
                check_not_negative("weight_decay", weight_decay)?;
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    let got = format!("momentum {momentum:?} and dampening {dampening:?}");
                    return Err(Error::config("nesterov", format!("expected a momentum and no dampening, got {got}")));
                }
                if dampening != 0.0 && momentum == 0.0 {
                    let why = format!("expected 0, as there is no momentum to dampen, got {dampening:?}");
                    return Err(Error::config("dampening", why));
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

    /// What is kept for each parameter from step to step, by PyTorch's names.
    pub(in crate::train) fn slots(&self) -> &'static [&'static str] {
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
        let mut method = match options.kind() {
            "sgd" => OptimizerConfig::sgd(),
            "adam" => OptimizerConfig::adam(),
            "adamw" => OptimizerConfig::adamw(),
            _ => return Err(options.unexpected_kind("sgd, adam or adamw")),
        };
        match &mut method {
            OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay } => {
                options.set("momentum", momentum)?;
                options.set("dampening", dampening)?;
                options.set("nesterov", nesterov)?;
                options.set("weight_decay", weight_decay)?;
            }
            OptimizerConfig::Adam { beta1, beta2, eps, weight_decay }
            | OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                options.set("beta1", beta1)?;
                options.set("beta2", beta2)?;
                options.set("eps", eps)?;
                options.set("weight_decay", weight_decay)?;
            }
        }
        options.finish()?;
        method.validate()?;
        Ok(method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_named() {
        let sgd =
            |momentum, dampening, nesterov| OptimizerConfig::Sgd { momentum, dampening, nesterov, weight_decay: 0.0 };
        let adam = |beta1, beta2, eps| OptimizerConfig::Adam { beta1, beta2, eps, weight_decay: 0.0 };
        let adamw = |beta1, beta2, eps| OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay: 0.0 };
        for (method, option) in [
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
            for result in [method.validate(), method.to_string().parse::<OptimizerConfig>().map(drop)] {
                match result {
                    Err(Error::Config { option: named, .. }) => assert_eq!(named, option),
                    other => panic!("{method}: {other:?}"),
                }
            }
        }
        for method in [sgd(1.5, 2.0, false), adam(0.0, 0.0, 0.0), adamw(0.1, 0.999_999_94, 1.0)] {
            method.validate().unwrap();
        }
    }

    #[test]
    fn text_keeps_every_bit() {
        let odd = f32::from_bits(0x3dcc_ccce);
        for method in [
            OptimizerConfig::sgd(),
            OptimizerConfig::momentum(odd).weight_decay(f32::from_bits(1)),
            OptimizerConfig::nesterov(f32::MAX),
            OptimizerConfig::Sgd { momentum: 0.9, dampening: odd, nesterov: false, weight_decay: 1e-20 },
            OptimizerConfig::adam().weight_decay(odd),
            OptimizerConfig::AdamW { beta1: odd, beta2: 0.999_999_94, eps: f32::MIN_POSITIVE, weight_decay: 3e7 },
        ] {
            assert_eq!(method.to_string().parse::<OptimizerConfig>().unwrap(), method);
        }
        assert_eq!(
            OptimizerConfig::nesterov(0.5).to_string(),
            "sgd momentum=0.5 dampening=0.0 nesterov=true weight_decay=0.0"
        );
        assert_eq!(" adam  eps=1e-8 ".parse::<OptimizerConfig>().unwrap(), OptimizerConfig::adam());
    }

    #[test]
    fn other_text_is_refused() {
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
