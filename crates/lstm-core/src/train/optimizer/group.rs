//! Parameter groups: options of the optimizer for some of the parameters.

use std::{fmt, str::FromStr};

use crate::{
    config::text::{OptionValue, ParsedOptions, write_options},
    error::{Error, Result},
    train::check::check_not_negative,
};

/// Options of the optimizer for some of the parameters, as PyTorch's parameter groups: another learning rate, another
/// weight decay, or no updates at all. Parameters in no group have the options of the
/// [`OptimizerConfig`](super::OptimizerConfig).
///
/// A group has the parameters whose name matches its pattern, in which `*` stands for any text: `head.*` for all
/// parameters of the head, `*bias*` for all biases.
///
/// The text form is one line. Options that are left out have their defaults:
///
/// ```
/// use lstm_core::train::ParameterGroup;
/// let group = ParameterGroup::new("head.*").rate_factor(0.5).weight_decay(0.0);
/// assert_eq!(group.to_string(), "group parameters=head.* rate_factor=0.5 weight_decay=0.0 frozen=false");
/// assert_eq!("group parameters=lstm.* frozen=true".parse::<ParameterGroup>()?, ParameterGroup::new("lstm.*").frozen());
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct ParameterGroup {
    /// Pattern of the names of the parameters.
    pub parameters: String,
    /// The learning rate of the group is this factor times that of the step, rounded to f32; 1 by default.
    pub rate_factor: f32,
    /// Weight decay of the group; that of the optimizer if it is `None`, the default.
    pub weight_decay: Option<f32>,
    /// Whether the parameters stay as they are; false by default. Gradients of frozen parameters are not part of the
    /// gradient norm. They are computed all the same, and frozen parameters have optimizer state, which stays as it is.
    pub frozen: bool,
}

impl ParameterGroup {
    /// A group of the parameters whose names match `pattern`, with the options of the optimizer.
    pub fn new(pattern: impl Into<String>) -> Self {
        ParameterGroup { parameters: pattern.into(), rate_factor: 1.0, weight_decay: None, frozen: false }
    }

    /// Sets the factor of the learning rate.
    pub fn rate_factor(self, rate_factor: f32) -> Self {
        ParameterGroup { rate_factor, ..self }
    }

    /// Sets the weight decay.
    pub fn weight_decay(self, weight_decay: f32) -> Self {
        ParameterGroup { weight_decay: Some(weight_decay), ..self }
    }

    /// Freezes the parameters.
    pub fn frozen(self) -> Self {
        ParameterGroup { frozen: true, ..self }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`] if the pattern is empty or has whitespace, or a number is negative or not finite.
    pub fn validate(&self) -> Result<()> {
        if self.parameters.is_empty() || self.parameters.contains(char::is_whitespace) {
            let reason = format!(
                "expected a pattern of parameter names without whitespace, in whose place `*` can be written; got `{}`",
                self.parameters
            );
            return Err(Error::config("parameters", reason));
        }
        check_not_negative("rate_factor", self.rate_factor)?;
        self.weight_decay.map_or(Ok(()), |weight_decay| check_not_negative("weight_decay", weight_decay))
    }

    /// Whether the group has the parameter `name`.
    pub(super) fn contains(&self, name: &str) -> bool {
        let mut parts = self.parameters.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // The earliest match of each part leaves the most for those after it.
        for part in parts {
            let Some(start) = rest.find(part) else { return false };
            rest = &rest[start + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for ParameterGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = [
            ("parameters", self.parameters.clone()),
            ("rate_factor", self.rate_factor.to_text()),
            ("weight_decay", self.weight_decay.to_text()),
            ("frozen", self.frozen.to_text()),
        ];
        write_options(f, "group", &options)
    }
}

/// Parses the text that [`Display`](fmt::Display) writes. Fails with [`Error::Format`] for any other text and with
/// [`Error::Config`] for options that [`ParameterGroup::validate`] rejects.
impl FromStr for ParameterGroup {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("parameter group", text)?;
        if options.kind() != "group" {
            return Err(options.unexpected_kind("group"));
        }
        let mut group = ParameterGroup::new(options.read_required::<String>("parameters")?);
        options.read_into("rate_factor", &mut group.rate_factor)?;
        options.read_into("weight_decay", &mut group.weight_decay)?;
        options.read_into("frozen", &mut group.frozen)?;
        options.finish()?;
        group.validate()?;
        Ok(group)
    }
}

/// The group of each parameter, in the order of `names`.
///
/// # Errors
/// [`Error::Config`] if a parameter is in two groups, or a group has no parameter.
pub(super) fn group_of_each<'a>(
    groups: &'a [ParameterGroup],
    names: &[&str],
) -> Result<Vec<Option<&'a ParameterGroup>>> {
    if let Some(unused) = groups.iter().find(|group| !names.iter().any(|name| group.contains(name))) {
        let reason = format!(
            "no parameter has a name that matches the pattern `{}`; the parameters are {}",
            unused.parameters,
            names.join(", ")
        );
        return Err(Error::config("groups", reason));
    }
    let group_of = |name: &&str| {
        let mut matching = groups.iter().filter(|group| group.contains(name));
        match (matching.next(), matching.next()) {
            (Some(first), Some(second)) => {
                let reason = format!(
                    "expected each parameter in at most one group, got `{name}` in `{}` and `{}`",
                    first.parameters, second.parameters
                );
                Err(Error::config("groups", reason))
            }
            (group, _) => Ok(group),
        }
    };
    names.iter().map(group_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, matches) in [
            ("head.*", "head.weight", true),
            ("head.*", "lstm.head.weight", false),
            ("*bias*", "lstm.bias_ih_l0", true),
            ("*.bias", "head.bias", true),
            ("*.bias", "head.bias_ih", false),
            ("head.bias", "head.bias", true),
            ("head.bias", "head.bias2", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "xab", false),
            ("lstm.*_ih_*", "lstm.weight_ih_l0", true),
        ] {
            assert_eq!(ParameterGroup::new(pattern).contains(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn text_round_trip_is_exact() {
        for group in [
            ParameterGroup::new("*"),
            ParameterGroup::new("a.*").rate_factor(0.1),
            ParameterGroup::new("=b").weight_decay(1e-7).frozen(),
        ] {
            assert_eq!(group.to_string().parse::<ParameterGroup>().unwrap(), group);
        }
        for (text, part) in [
            ("group", "requires the option parameters"),
            ("groups parameters=a", "got `groups`"),
            ("group parameters=a rate=1", "no option `rate`"),
            ("group parameters=a rate_factor=-1", "at least 0"),
        ] {
            let error = text.parse::<ParameterGroup>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(ParameterGroup::new("a b").validate().unwrap_err().to_string().contains("whitespace"));
    }

    #[test]
    fn unused_and_ambiguous_groups_are_errors() {
        let names = ["lstm.weight", "head.bias"];
        let groups = [ParameterGroup::new("lstm.*"), ParameterGroup::new("decoder.*")];
        let error = group_of_each(&groups, &names).unwrap_err().to_string();
        assert!(error.contains("`decoder.*`; the parameters are lstm.weight, head.bias"), "{error}");
        let groups = [ParameterGroup::new("head.*"), ParameterGroup::new("*bias")];
        let error = group_of_each(&groups, &names).unwrap_err().to_string();
        assert!(error.contains("got `head.bias` in `head.*` and `*bias`"), "{error}");
    }
}
