//! The text in which a user states the layers of a state dict: `embedding, rec, last, lin:relu, out`.

use std::fmt;

use lstm_core::Activation;

/// One entry of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// A layer with parameters, by the prefix of its tensors, and the activation after it.
    Layer { name: String, activation: Option<Activation> },
    /// `last`: the output at the last time step.
    Last,
    /// `h_n`: the final hidden state of the LSTM before it.
    FinalState,
    /// `dropout(p)`: dropout with this probability, in training only.
    Dropout(f32),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Layer { name, activation: None } => f.write_str(name),
            Entry::Layer { name, activation: Some(activation) } => write!(f, "{name}:{activation}"),
            Entry::Last => f.write_str("last"),
            Entry::FinalState => f.write_str("h_n"),
            Entry::Dropout(p) => write!(f, "dropout({p})"),
        }
    }
}

/// The words for activations, for error messages.
const ACTIVATIONS: &str = "relu, sigmoid, tanh, hard_sigmoid, hard_sigmoid(alpha, beta), softmax or log_softmax";

/// Parses the text. Entries are separated by commas; spaces are ignored.
///
/// # Errors
/// A message that names the entry that is not understood.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for part in split_outside_parentheses(text) {
        entries.push(parse_entry(part.trim()).map_err(|why| format!("in the layers `{text}`: {why}"))?);
    }
    Ok(entries)
}

/// Splits at the commas that are not inside parentheses.
fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_entry(entry: &str) -> Result<Entry, String> {
    if entry == "last" {
        return Ok(Entry::Last);
    }
    if entry == "h_n" {
        return Ok(Entry::FinalState);
    }
    if let Some(arguments) = arguments(entry, "dropout") {
        return match arguments?[..] {
            [p] if (0.0..1.0).contains(&p) => Ok(Entry::Dropout(p)),
            _ => Err(format!("expected a probability 0 <= p < 1, such as dropout(0.2), got `{entry}`")),
        };
    }
    let (name, activation) = match entry.split_once(':') {
        Some((name, activation)) => (name.trim_end(), Some(parse_activation(activation.trim())?)),
        None => (entry, None),
    };
    // The last dot of a prefix may be written or not.
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(format!("expected the name of a layer, got `{entry}`"));
    }
    Ok(Entry::Layer { name: name.to_owned(), activation })
}

fn parse_activation(text: &str) -> Result<Activation, String> {
    match text {
        "relu" => Ok(Activation::Relu),
        "sigmoid" => Ok(Activation::Sigmoid),
        "tanh" => Ok(Activation::Tanh),
        "softmax" => Ok(Activation::Softmax),
        "log_softmax" => Ok(Activation::LogSoftmax),
        // A state dict comes from PyTorch, so this is the one of PyTorch.
        "hard_sigmoid" => Ok(Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }),
        _ => match arguments(text, "hard_sigmoid") {
            Some(arguments) => match arguments?[..] {
                [alpha, beta] => Ok(Activation::HardSigmoid { alpha, beta }),
                _ => Err(format!("expected two numbers, such as hard_sigmoid(0.2, 0.5), got `{text}`")),
            },
            None => Err(format!("expected the activation {ACTIVATIONS}, got `{text}`")),
        },
    }
}

/// The numbers in the parentheses of `function(..)`, such as `0.2, 0.5`, each also as `alpha=0.2`. `None` for another
/// text.
fn arguments(text: &str, function: &str) -> Option<Result<Vec<f32>, String>> {
    let inside = text.strip_prefix(function)?.trim_start().strip_prefix('(')?;
    let Some(inside) = inside.strip_suffix(')') else { return Some(Err(format!("expected `)` after `{text}`"))) };
    let number = |part: &str| {
        let value = part.rsplit_once('=').map_or(part, |(_, value)| value).trim();
        let number = value.parse::<f32>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("expected a number in `{text}`, got `{value}`"))
    };
    Some(inside.split(',').map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_entry() {
        let layer = |name: &str, activation| Entry::Layer { name: name.into(), activation };
        let text = " embedding,rec. , last, dropout(0.25),lin:relu, a.b : hard_sigmoid(0.2,0.5),h_n, out:log_softmax";
        let expected = vec![
            layer("embedding", None),
            layer("rec", None),
            Entry::Last,
            Entry::Dropout(0.25),
            layer("lin", Some(Activation::Relu)),
            layer("a.b", Some(Activation::HardSigmoid { alpha: 0.2, beta: 0.5 })),
            Entry::FinalState,
            layer("out", Some(Activation::LogSoftmax)),
        ];
        let entries = parse(text).unwrap();
        assert_eq!(entries, expected);
        // What is displayed can be parsed again.
        let displayed = entries.iter().map(Entry::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(parse(&displayed).unwrap(), expected);
        assert_eq!(
            parse("x:hard_sigmoid").unwrap(),
            [layer("x", Some(Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }))]
        );
    }

    #[test]
    fn names_the_entry_that_is_not_understood() {
        for (text, expected) in [
            ("rec,,lin", "expected the name of a layer, got ``"),
            ("", "expected the name of a layer"),
            ("rec, :relu", "got `:relu`"),
            ("rec:gelu", "got `gelu`"),
            ("rec, dropout(1)", "got `dropout(1)`"),
            ("rec, dropout(0.1, 0.2)", "expected a probability"),
            ("rec, dropout(x)", "expected a number in `dropout(x)`, got `x`"),
            ("rec:hard_sigmoid(0.2)", "expected two numbers"),
            ("rec:hard_sigmoid(0.2, inf)", "got `inf`"),
            ("rec:hard_sigmoid(0.2, 0.5", "expected `)`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
