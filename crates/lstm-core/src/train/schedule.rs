//! Learning rate schedules.

use std::{fmt, hint::black_box, str::FromStr};

use crate::{
    config::text::{OptionValue, ParsedOptions, write_options},
    error::{Error, Result},
    float_environment::FloatEnvironment,
    train::check::{check_at_least_one, check_not_negative, check_range},
};

/// Learning rate schedule: a linear warm-up followed by a [`Decay`].
///
/// For the base rate `r`, `w` warm-up steps and the step `t`, counted from 0:
///
/// ```text
/// rate(t) = r * (t + 1) / w        if t < w
/// rate(t) = decay(r, t - w)        otherwise
/// ```
///
/// The rate is computed in f64 and rounded to f32 once. The warm-up is PyTorch's
/// `LinearLR(start_factor=1/w, total_iters=w-1)`, followed by the decay's scheduler in
/// `SequentialLR(milestones=[w])`.
///
/// The text form is one line. Parsing it gives an equal schedule. `warmup` defaults to 0, and so does the cosine's
/// `min`:
///
/// ```
/// use lstm_core::train::Schedule;
/// let schedule = Schedule::cosine(0.1, 1000, 0.001).warmup(50);
/// assert_eq!(schedule.to_string(), "cosine rate=0.1 steps=1000 min=0.001 warmup=50");
/// assert_eq!("step rate=0.1 every=30 factor=0.5".parse::<Schedule>()?, Schedule::step(0.1, 30, 0.5));
/// assert_eq!((schedule.rate_at(49), schedule.rate_at(1050)), (0.1, 0.001));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// Parsing fails with [`Error::Format`] for any other text, and with [`Error::Config`] for options that
/// [`validate`](Self::validate) rejects.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Schedule {
    /// The base learning rate, at the end of the warm-up and the start of the decay.
    pub rate: f32,
    /// Number of warm-up steps; 0 by default.
    pub warmup: u64,
    /// How the rate changes after the warm-up.
    pub decay: Decay,
}

/// How the learning rate of a [`Schedule`] changes after its warm-up. In the equations, `r` is the base rate and `u`
/// the number of steps since the end of the warm-up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Decay {
    /// The rate stays at the base rate.
    Constant,
    /// The rate is multiplied by `factor` every `every` steps. It is `r * factor^floor(u / every)` for the base rate
    /// `r`, `u` steps after the warm-up, with the `libm` crate's `pow`. This is PyTorch's
    /// `StepLR(step_size=every, gamma=factor)`.
    Step {
        /// Number of steps between two changes of the rate; at least 1.
        every: u64,
        /// Factor by which the rate is multiplied; from 0 to 1.
        factor: f32,
    },
    /// Cosine annealing (Loshchilov & Hutter 2017): `min + (r - min) * (1 + cos(pi * u / steps)) / 2` for `u < steps`,
    /// with the `libm` crate's `cos`, then `min`; `r` is the base rate and `u` the number of steps since the warm-up.
    /// This is PyTorch's `CosineAnnealingLR(T_max=steps, eta_min=min)`, except that PyTorch's rate rises again after
    /// `steps` steps.
    Cosine {
        /// Number of steps from the base rate to `min`; at least 1.
        steps: u64,
        /// The final rate; from 0 to the base rate.
        min: f32,
    },
}

impl Schedule {
    /// A constant rate, without warm-up.
    pub fn constant(rate: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Constant }
    }

    /// Multiplies the rate by `factor` every `every` steps, without warm-up. See [`Decay::Step`].
    pub fn step(rate: f32, every: u64, factor: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Step { every, factor } }
    }

    /// Cosine annealing from `rate` to `min` over `steps` steps, without warm-up. See [`Decay::Cosine`].
    pub fn cosine(rate: f32, steps: u64, min: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Cosine { steps, min } }
    }

    /// Adds a linear warm-up of `steps` steps before the decay.
    pub fn warmup(self, steps: u64) -> Self {
        Schedule { warmup: steps, ..self }
    }

    /// The learning rate of a step. Steps are counted from 0: `step` is [`Optimizer::steps`](super::Optimizer::steps)
    /// before the step. The rate is finite and not negative if the schedule is [valid](Self::validate).
    pub fn rate_at(&self, step: u64) -> f32 {
        let _environment = FloatEnvironment::set_default();
        let base_rate = f64::from(self.rate);
        let Some(u) = step.checked_sub(self.warmup) else {
            return black_box((base_rate * (step + 1) as f64 / self.warmup as f64) as f32);
        };
        let rate = match self.decay {
            Decay::Constant => base_rate,
            Decay::Step { every, factor } => base_rate * libm::pow(f64::from(factor), (u / every.max(1)) as f64),
            Decay::Cosine { steps, min } if u < steps => {
                let (angle, min) = (std::f64::consts::PI * u as f64 / steps as f64, f64::from(min));
                min + (base_rate - min) * (1.0 + libm::cos(angle)) / 2.0
            }
            Decay::Cosine { min, .. } => f64::from(min),
        };
        // Computed before the settings are restored.
        black_box(rate as f32)
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`], which names the option: a `rate` that is negative or not finite, an `every` or `steps` of 0,
    /// a `factor` outside `[0, 1]`, a `min` outside `[0, rate]`.
    pub fn validate(&self) -> Result<()> {
        check_not_negative("rate", self.rate)?;
        match self.decay {
            Decay::Constant => Ok(()),
            Decay::Step { every, factor } => {
                check_at_least_one("every", every)?;
                check_range("factor", factor, 0.0..=1.0, "0 <= factor <= 1")
            }
            Decay::Cosine { steps, min } => {
                check_at_least_one("steps", steps)?;
                check_range("min", min, 0.0..=self.rate, &format!("0 <= min <= rate {:?}", self.rate))
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schedule { rate, warmup, decay } = self;
        let mut options = vec![("rate", rate.to_text())];
        let kind = match decay {
            Decay::Constant => "constant",
            Decay::Step { every, factor } => {
                options.extend([("every", every.to_text()), ("factor", factor.to_text())]);
                "step"
            }
            Decay::Cosine { steps, min } => {
                options.extend([("steps", steps.to_text()), ("min", min.to_text())]);
                "cosine"
            }
        };
        options.push(("warmup", warmup.to_text()));
        write_options(f, kind, &options)
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("schedule", text)?;
        let decay = match options.kind() {
            "constant" => Decay::Constant,
            "step" => Decay::Step { every: options.read_required("every")?, factor: options.read_required("factor")? },
            "cosine" => {
                let (steps, mut min) = (options.read_required("steps")?, 0.0);
                options.read_into("min", &mut min)?;
                Decay::Cosine { steps, min }
            }
            _ => return Err(options.unexpected_kind("constant, step or cosine")),
        };
        let mut schedule = Schedule { rate: options.read_required("rate")?, warmup: 0, decay };
        options.read_into("warmup", &mut schedule.warmup)?;
        options.finish()?;
        schedule.validate()?;
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_the_equations() {
        let rates = |s: &Schedule, n| (0..n).map(|t| s.rate_at(t)).collect::<Vec<_>>();
        assert_eq!(rates(&Schedule::constant(0.5).warmup(4), 6), [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]);
        assert_eq!(rates(&Schedule::step(1.0, 2, 0.5).warmup(1), 6), [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]);
        assert_eq!(rates(&Schedule::step(1.0, 1, 0.0), 3), [1.0, 0.0, 0.0]);
        assert_eq!(rates(&Schedule::cosine(0.75, 2, 0.25), 5), [0.75, 0.5, 0.25, 0.25, 0.25]);
        for s in [Schedule::constant(0.1), Schedule::step(0.1, 1, 0.9), Schedule::cosine(0.1, 7, 0.001)] {
            assert_eq!(s.rate_at(0), 0.1);
            for s in [s.clone(), s.clone().warmup(u64::MAX), s.warmup(1 << 63)] {
                assert!((0.0..=0.1).contains(&s.rate_at(u64::MAX)), "{s}");
            }
        }
        assert_eq!(Schedule::cosine(0.1, u64::MAX, 0.01).rate_at(u64::MAX), 0.01);
    }

    #[test]
    fn rejects_invalid_options_by_name() {
        for (schedule, option) in [
            (Schedule::constant(-0.1), "rate"),
            (Schedule::constant(f32::NAN), "rate"),
            (Schedule::constant(f32::INFINITY), "rate"),
            (Schedule::step(0.1, 0, 0.5), "every"),
            (Schedule::step(0.1, 1, 1.5), "factor"),
            (Schedule::step(0.1, 1, -0.5), "factor"),
            (Schedule::cosine(0.1, 0, 0.0), "steps"),
            (Schedule::cosine(0.1, 1, 0.2), "min"),
            (Schedule::cosine(0.1, 1, -0.1), "min"),
            (Schedule::cosine(0.1, 1, f32::NAN), "min"),
        ] {
            for result in [schedule.validate(), schedule.to_string().parse::<Schedule>().map(drop)] {
                match result {
                    Err(Error::Config { option: named, .. }) => assert_eq!(named, option),
                    other => panic!("{schedule}: {other:?}"),
                }
            }
            schedule.rate_at(0);
        }
    }

    #[test]
    fn text_round_trip_is_exact() {
        let long_decimal = f32::from_bits(0x3dcc_ccce);
        for schedule in [
            Schedule::constant(long_decimal),
            Schedule::constant(f32::MAX).warmup(u64::MAX),
            Schedule::step(1e-7, u64::MAX, long_decimal).warmup(3),
            Schedule::cosine(long_decimal, 7, f32::from_bits(1)),
        ] {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        }
    }

    #[test]
    fn rejects_other_text() {
        for (text, part) in [
            ("", "expected constant, step or cosine, got ``"),
            ("linear rate=1", "got `linear`"),
            ("constant", "`constant` requires the option rate"),
            ("step rate=1 every=2", "`step` requires the option factor"),
            ("cosine rate=1", "`cosine` requires the option steps"),
            ("cosine rate=1 steps=-1", "option steps: expected a whole number, got `-1`"),
            ("constant rate=1 min=0", "`constant` has no option `min`"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err();
            assert!(matches!(error, Error::Format { .. }) && error.to_string().contains(part), "{error}");
        }
    }
}
