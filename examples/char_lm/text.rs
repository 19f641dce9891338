//! Encodes a corpus as symbols, with a vocabulary, and splits it into training and validation parts.

use std::{collections::BTreeMap, fmt};

use lstm::arithmetic::Digest;

use crate::{Error, Result};

/// The last `1 / VALIDATION_DIVISOR` of a corpus is for validation, but at most [`MAX_VALIDATION_CHARACTERS`] characters.
const VALIDATION_DIVISOR: usize = 10;

/// Largest number of characters for validation.
const MAX_VALIDATION_CHARACTERS: usize = 100_000;

/// Least number of characters of a corpus, so that the training and the validation part each have an input and a
/// target.
const MIN_CHARACTERS: usize = 2 * VALIDATION_DIVISOR;

/// Index of a character in the vocabulary.
pub(crate) type Symbol = u32;

/// Symbol of all characters that are not in the vocabulary.
pub(crate) const UNKNOWN_SYMBOL: Symbol = 0;

/// Value of the nonzero element of a one-hot input with `symbols` elements: the square root of `symbols`. The mean square of
/// the input is then 1, as the initial weights assume. With the value 1, inputs would hardly affect an untrained model, and it
/// would learn slowly.
pub(crate) fn one_hot_value(symbols: usize) -> f32 {
    (symbols as f32).sqrt()
}

/// The characters that a model distinguishes, in ascending order. Their symbols start at 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vocabulary(Vec<char>);

impl Vocabulary {
    /// Collects the characters that occur at least `min_count` times.
    fn from_text(text: impl Iterator<Item = char>, min_count: usize) -> Self {
        let mut counts = BTreeMap::new();
        text.for_each(|c| *counts.entry(c).or_insert(0) += 1);
        Vocabulary(counts.into_iter().filter(|&(_, count)| count >= min_count).map(|(c, _)| c).collect())
    }

    /// Parses the text that [`line`](Self::line) returns.
    pub(crate) fn from_line(line: &str) -> Result<Self, String> {
        let characters: Vec<_> = line.chars().collect();
        if !characters.is_sorted_by(|a, b| a < b) {
            return Err(format!("expected distinct characters in ascending order, got {line:?}"));
        }
        Ok(Vocabulary(characters))
    }

    /// All characters of the vocabulary in ascending order, without [`UNKNOWN_SYMBOL`].
    pub(crate) fn line(&self) -> String {
        self.0.iter().collect()
    }

    /// Number of symbols, including [`UNKNOWN_SYMBOL`].
    pub(crate) fn len(&self) -> usize {
        self.0.len() + 1
    }

    /// Symbol of a character.
    pub(crate) fn symbol(&self, c: char) -> Symbol {
        self.0.binary_search(&c).map_or(UNKNOWN_SYMBOL, |k| k as Symbol + 1)
    }

    /// Character of a symbol; `None` for [`UNKNOWN_SYMBOL`] and for symbols of [`len`](Self::len) or more.
    pub(crate) fn character(&self, symbol: usize) -> Option<char> {
        symbol.checked_sub(1).and_then(|k| self.0.get(k).copied())
    }
}

/// A corpus as symbols, split into training and validation parts.
#[derive(Debug)]
pub(crate) struct Text {
    /// Vocabulary of the training part.
    pub(crate) vocabulary: Vocabulary,
    /// Symbols to train on.
    pub(crate) training: Vec<Symbol>,
    /// Symbols for validation, the end of the corpus.
    pub(crate) validation: Vec<Symbol>,
    /// Digest of all characters, to detect a changed corpus.
    pub(crate) digest: Digest,
}

impl Text {
    /// Splits and encodes a corpus. The vocabulary comes from the training part only.
    pub(crate) fn new(text: &str, min_count: usize) -> Result<Self> {
        let mut digest = Digest::default();
        let mut count = 0;
        for c in text.chars() {
            digest.add(f32::from_bits(c.into()));
            count += 1;
        }
        if count < MIN_CHARACTERS {
            return Err(Error::ShortCorpus { count, min: MIN_CHARACTERS });
        }
        let training_count = count - (count / VALIDATION_DIVISOR).min(MAX_VALIDATION_CHARACTERS);
        let vocabulary = Vocabulary::from_text(text.chars().take(training_count), min_count);
        if vocabulary.0.is_empty() {
            return Err(Error::RareCharacters { min_count });
        }
        let mut symbols = text.chars().map(|c| vocabulary.symbol(c));
        let (training, validation) = (symbols.by_ref().take(training_count).collect(), symbols.collect());
        Ok(Text { vocabulary, training, validation, digest })
    }

    /// Prints the sizes of both parts and of the vocabulary.
    pub(crate) fn describe(&self) {
        let (training, validation, symbols) = (self.training.len(), self.validation.len(), self.vocabulary.len());
        println!(
            "Text: {training} characters for training, the last {validation} for validation; {symbols} symbols; unigram \
             entropy {:.3} bits per character.",
            self.unigram_entropy()
        );
    }

    /// Unigram entropy of the validation part in bits per character: the loss of a model that predicts each character with its
    /// frequency in that part.
    pub(crate) fn unigram_entropy(&self) -> f64 {
        let mut counts = vec![0usize; self.vocabulary.len()];
        self.validation.iter().for_each(|&s| counts[s as usize] += 1);
        let frequencies = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / self.validation.len() as f64);
        -frequencies.map(|p| p * p.log2()).sum::<f64>()
    }
}

/// Writes the number of characters and the digest, which identify the text in checkpoints.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} characters of digest {}", self.training.len() + self.validation.len(), self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_characters_are_unknown() -> Result<()> {
        // 18 characters for training, with é twice and ß once, and 2 for validation.
        let text = Text::new("abababéßabababéabaaz", 2)?;
        assert_eq!(text.vocabulary.line(), "abé");
        assert_eq!(text.training, [1, 2, 1, 2, 1, 2, 3, 0, 1, 2, 1, 2, 1, 2, 3, 1, 2, 1]);
        assert_eq!(text.validation, [1, 0]);
        assert_eq!(text.unigram_entropy(), 1.0);
        assert_eq!(Text::new("abababéßabababéabaaz", 3)?.vocabulary.line(), "ab");
        Ok(())
    }

    #[test]
    fn symbols_and_characters_are_inverse() {
        let vocabulary = Vocabulary::from_line("\t ab").expect("valid vocabulary");
        assert_eq!((vocabulary.len(), &*vocabulary.line()), (5, "\t ab"));
        for (k, c) in "\t ab".chars().enumerate() {
            assert_eq!((vocabulary.symbol(c), vocabulary.character(k + 1)), (k as Symbol + 1, Some(c)));
        }
        assert_eq!((vocabulary.symbol('c'), vocabulary.character(0), vocabulary.character(5)), (0, None, None));
        assert!(Vocabulary::from_line("ba").is_err() && Vocabulary::from_line("aa").is_err());
    }

    #[test]
    fn digest_depends_on_all_characters() -> Result<()> {
        let digest = |text: &str| Ok::<_, Error>(Text::new(text, 1)?.digest);
        let text = "a".repeat(20);
        assert_eq!(digest(&text)?, digest(&text)?);
        assert_ne!(digest(&text)?, digest(&text.replacen('a', "b", 1))?);
        assert_ne!(digest(&text)?, digest(&(text + "a"))?);
        Ok(())
    }

    #[test]
    fn rejects_short_corpora_and_rare_characters() {
        let error = Text::new(&"a".repeat(19), 1).expect_err("too short");
        assert_eq!(error.to_string(), "expected a text of at least 20 characters, got 19");
        let error = Text::new(&"ab".repeat(19), 20).expect_err("too rare");
        assert_eq!(error.to_string(), "no character occurs 20 times in the text; use a lower --min-count");
    }
}
