//! A corpus as numbers: its vocabulary, and its two parts to learn from and to be tested on.

use std::{collections::BTreeMap, fmt};

use lstm_core::arithmetic::Digest;

use crate::{Error, Result};

/// The share of a corpus that is not learned from: one character in so many, but no more than are enough to measure by.
const VALIDATION: usize = 10;
const ENOUGH: usize = 100_000;

/// The least that leaves a character and its next in each part.
const LEAST: usize = 2 * VALIDATION;

/// A number for each character.
pub(crate) type Symbol = u32;

/// What stands for all characters that have no number of their own.
pub(crate) const UNKNOWN: Symbol = 0;

/// What a model reads in the place of a symbol, of so many; in all other places it reads 0. The mean square is 1, for
/// which fresh weights are made; if a symbol were 1, a model would start with hardly seeing it and learn slowly.
pub(crate) fn hot(symbols: usize) -> f32 {
    (symbols as f32).sqrt()
}

/// The characters that a model tells apart, in order, with numbers from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vocabulary(Vec<char>);

impl Vocabulary {
    /// The characters that occur at least so many times.
    fn of(text: impl Iterator<Item = char>, min_count: usize) -> Self {
        let mut counts = BTreeMap::new();
        text.for_each(|c| *counts.entry(c).or_insert(0) += 1);
        Vocabulary(counts.into_iter().filter(|&(_, count)| count >= min_count).map(|(c, _)| c).collect())
    }

    /// From a line of text, such as [`line`](Self::line) gives.
    pub(crate) fn from_line(line: &str) -> Result<Self, String> {
        let characters: Vec<_> = line.chars().collect();
        if !characters.is_sorted_by(|a, b| a < b) {
            return Err(format!("expected different characters in order, found {line:?}"));
        }
        Ok(Vocabulary(characters))
    }

    /// All characters, without the unknown one.
    pub(crate) fn line(&self) -> String {
        self.0.iter().collect()
    }

    /// How many symbols there are, with the unknown one.
    pub(crate) fn len(&self) -> usize {
        self.0.len() + 1
    }

    pub(crate) fn symbol(&self, c: char) -> Symbol {
        self.0.binary_search(&c).map_or(UNKNOWN, |k| k as Symbol + 1)
    }

    /// The character of a symbol below [`len`](Self::len) that is not [`UNKNOWN`].
    pub(crate) fn character(&self, symbol: usize) -> Option<char> {
        symbol.checked_sub(1).and_then(|k| self.0.get(k).copied())
    }
}

/// A corpus, ready for a model.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) vocabulary: Vocabulary,
    /// What is learned from.
    pub(crate) training: Vec<Symbol>,
    /// The corpus's end.
    pub(crate) validation: Vec<Symbol>,
    /// Tells corpora apart.
    pub(crate) digest: Digest,
}

impl Text {
    /// Splits a corpus; the vocabulary is that of the part that is learned from.
    pub(crate) fn new(text: &str, min_count: usize) -> Result<Self> {
        let mut digest = Digest::default();
        let mut count = 0;
        for c in text.chars() {
            digest.add(f32::from_bits(c.into()));
            count += 1;
        }
        if count < LEAST {
            return Err(Error::ShortCorpus { count, least: LEAST });
        }
        let training = count - (count / VALIDATION).min(ENOUGH);
        let vocabulary = Vocabulary::of(text.chars().take(training), min_count);
        if vocabulary.0.is_empty() {
            return Err(Error::RareCharacters { min_count });
        }
        let mut symbols = text.chars().map(|c| vocabulary.symbol(c));
        let (training, validation) = (symbols.by_ref().take(training).collect(), symbols.collect());
        Ok(Text { vocabulary, training, validation, digest })
    }

    /// Says what there is to learn.
    pub(crate) fn describe(&self) {
        let (training, validation, symbols) = (self.training.len(), self.validation.len(), self.vocabulary.len());
        println!(
            "Text: {training} characters to learn from, the last {validation} to validate; {symbols} symbols, whose \
             frequencies alone need {:.3} bits per character.",
            self.order0()
        );
    }

    /// The entropy in bits of the validation's characters, each taken alone: what a guesser needs per character who
    /// knows how often each one occurs there, and nothing else.
    pub(crate) fn order0(&self) -> f64 {
        let mut counts = vec![0usize; self.vocabulary.len()];
        self.validation.iter().for_each(|&s| counts[s as usize] += 1);
        let shares = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / self.validation.len() as f64);
        -shares.map(|p| p * p.log2()).sum::<f64>()
    }
}

/// What tells it from other texts.
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
        // 18 characters to learn from, é twice and ß once among them, and 2 more.
        let text = Text::new("abababéßabababéabaaz", 2)?;
        assert_eq!(text.vocabulary.line(), "abé");
        assert_eq!(text.training, [1, 2, 1, 2, 1, 2, 3, 0, 1, 2, 1, 2, 1, 2, 3, 1, 2, 1]);
        assert_eq!(text.validation, [1, 0]);
        assert_eq!(text.order0(), 1.0);
        assert_eq!(Text::new("abababéßabababéabaaz", 3)?.vocabulary.line(), "ab");
        Ok(())
    }

    #[test]
    fn symbols_and_characters_are_inverse() {
        let vocabulary = Vocabulary::from_line("\t ab").expect("in order");
        assert_eq!((vocabulary.len(), &*vocabulary.line()), (5, "\t ab"));
        for (k, c) in "\t ab".chars().enumerate() {
            assert_eq!((vocabulary.symbol(c), vocabulary.character(k + 1)), (k as Symbol + 1, Some(c)));
        }
        assert_eq!((vocabulary.symbol('c'), vocabulary.character(0), vocabulary.character(5)), (0, None, None));
        assert!(Vocabulary::from_line("ba").is_err() && Vocabulary::from_line("aa").is_err());
    }

    #[test]
    fn the_digest_tells_corpora_apart() -> Result<()> {
        let digest = |text: &str| Ok::<_, Error>(Text::new(text, 1)?.digest);
        let text = "a".repeat(20);
        assert_eq!(digest(&text)?, digest(&text)?);
        assert_ne!(digest(&text)?, digest(&text.replacen('a', "b", 1))?);
        assert_ne!(digest(&text)?, digest(&(text + "a"))?);
        Ok(())
    }

    #[test]
    fn a_corpus_must_have_two_parts() {
        let error = Text::new(&"a".repeat(19), 1).expect_err("too short");
        assert_eq!(error.to_string(), "the text has 19 characters; at least 20 are needed");
        let error = Text::new(&"ab".repeat(19), 20).expect_err("too rare");
        assert_eq!(error.to_string(), "no character occurs 20 times in the text; see --min-count");
    }
}
