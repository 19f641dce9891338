//! The learning rate as a function of the step.

use std::{fmt, str::FromStr};

use crate::{
    config::{
        check::{check_at_least_one, check_not_negative, check_range},
        text::{OptionValue, ParsedOptions, write_options},
    },
    error::{Error, Result},
};

/// The learning rate of each step: a linear warm-up, then a [`Decay`].
///
/// With base rate r, w steps of warm-up, and steps t counted from 0,
///
/// ```text
/// rate(t) = r * (t + 1) / w        while t < w
/// rate(t) = decay(r, t - w)        from then on
/// ```
///
/// in f64 and rounded once. The warm-up is PyTorch's `LinearLR(start_factor=1/w, total_iters=w-1)`, joined to the
/// decay's scheduler by `SequentialLR(milestones=[w])`.
///
/// As text it is one line, which keeps every bit. `warmup`, and `min` of the cosine, may be left out if they are 0:
///
/// ```
/// use lstm_core::train::Schedule;
/// let schedule = Schedule::cosine(0.1, 1000, 0.001).warmup(50);
/// assert_eq!(schedule.to_string(), "cosine rate=0.1 steps=1000 min=0.001 warmup=50");
/// assert_eq!("step rate=0.1 every=30 factor=0.5".parse::<Schedule>()?, Schedule::step(0.1, 30, 0.5));
/// assert_eq!((schedule.rate(49), schedule.rate(1050)), (0.1, 0.001));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// Parsing fails with [`Error::Format`] for text that is not such a line, and as [`validate`](Self::validate) does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Schedule {
    /// The base rate, which the warm-up reaches and the decay starts from.
    pub rate: f32,
    /// Steps of warm-up; 0 by default.
    pub warmup: u64,
    /// What comes after the warm-up.
    pub decay: Decay,
}

/// How a [`Schedule`]'s rate r goes on after its warm-up; u counts steps from there, from 0.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Decay {
    /// It does not change.
    Constant,
    /// `r * factor^floor(u / every)`, with the `libm` crate's power: `StepLR(step_size=every, gamma=factor)`.
    Step {
        /// Steps from one change to the next; at least 1.
        every: u64,
        /// What the rate is multiplied by; from 0 to 1.
        factor: f32,
    },
    /// `min + (r - min) * (1 + cos(pi u / steps)) / 2` while `u < steps`, and `min` from then on, with the `libm`
    /// crate's cosine: `CosineAnnealingLR(T_max=steps, eta_min=min)` (Loshchilov & Hutter 2017) up to its end, where
    /// PyTorch's would rise again.
    Cosine {
        /// Steps from the base rate to `min`; at least 1.
        steps: u64,
        /// The last rate; from 0 to the base rate.
        min: f32,
    },
}

impl Schedule {
    /// The same rate for ever.
    pub fn constant(rate: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Constant }
    }

    /// The rate multiplied by `factor` after every so many steps.
    pub fn step(rate: f32, every: u64, factor: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Step { every, factor } }
    }

    /// Half a cosine from the rate down to `min`, over so many steps.
    pub fn cosine(rate: f32, steps: u64, min: f32) -> Self {
        Schedule { rate, warmup: 0, decay: Decay::Cosine { steps, min } }
    }

    /// Puts a linear warm-up of so many steps before the decay, which starts when it ends.
    pub fn warmup(self, steps: u64) -> Self {
        Schedule { warmup: steps, ..self }
    }

    /// The rate of a step, counted from 0 (an [`Optimizer`](super::Optimizer)'s `steps()` before the step). Finite and
    /// not negative if the schedule is [valid](Self::validate).
    pub fn rate(&self, step: u64) -> f32 {
        let base = f64::from(self.rate);
        let Some(u) = step.checked_sub(self.warmup) else {
            return (base * (step + 1) as f64 / self.warmup as f64) as f32;
        };
        let rate = match self.decay {
            Decay::Constant => base,
            Decay::Step { every, factor } => base * libm::pow(f64::from(factor), (u / every.max(1)) as f64),
            Decay::Cosine { steps, min } if u < steps => {
                let (angle, min) = (std::f64::consts::PI * u as f64 / steps as f64, f64::from(min));
                min + (base - min) * (1.0 + libm::cos(angle)) / 2.0
            }
            Decay::Cosine { min, .. } => f64::from(min),
        };
        rate as f32
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option: a `rate` that is negative or not finite, `every` or `steps` of 0, a
    /// `factor` outside 0 to 1, a `min` outside 0 to the rate.
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
            "step" => Decay::Step { every: options.required("every")?, factor: options.required("factor")? },
            "cosine" => {
                let (steps, mut min) = (options.required("steps")?, 0.0);
                options.set("min", &mut min)?;
                Decay::Cosine { steps, min }
            }
            _ => return Err(options.unexpected_kind("constant, step or cosine")),
        };
        let mut schedule = Schedule { rate: options.required("rate")?, warmup: 0, decay };
        options.set("warmup", &mut schedule.warmup)?;
        options.finish()?;
        schedule.validate()?;
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_the_corners() {
        let rates = |s: &Schedule, n| (0..n).map(|t| s.rate(t)).collect::<Vec<_>>();
        assert_eq!(rates(&Schedule::constant(0.5).warmup(4), 6), [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]);
        assert_eq!(rates(&Schedule::step(1.0, 2, 0.5).warmup(1), 6), [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]);
        assert_eq!(rates(&Schedule::step(1.0, 1, 0.0), 3), [1.0, 0.0, 0.0]);
        assert_eq!(rates(&Schedule::cosine(0.75, 2, 0.25), 5), [0.75, 0.5, 0.25, 0.25, 0.25]);
        for s in [Schedule::constant(0.1), Schedule::step(0.1, 1, 0.9), Schedule::cosine(0.1, 7, 0.001)] {
            assert_eq!(s.rate(0), 0.1);
            for s in [s.clone(), s.clone().warmup(u64::MAX), s.warmup(1 << 63)] {
                assert!((0.0..=0.1).contains(&s.rate(u64::MAX)), "{s}");
            }
        }
        assert_eq!(Schedule::cosine(0.1, u64::MAX, 0.01).rate(u64::MAX), 0.01);
    }

    #[test]
    fn impossible_options_are_named_and_do_not_panic() {
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
            schedule.rate(0);
        }
    }

    #[test]
    fn text_keeps_every_bit() {
        let odd = f32::from_bits(0x3dcc_ccce);
        for schedule in [
            Schedule::constant(odd),
            Schedule::constant(f32::MAX).warmup(u64::MAX),
            Schedule::step(1e-7, u64::MAX, odd).warmup(3),
            Schedule::cosine(odd, 7, f32::from_bits(1)),
        ] {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        }
    }

    #[test]
    fn other_text_is_refused() {
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
