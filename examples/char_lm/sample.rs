//! Writing text: characters drawn from what a model foretells, each fed back as its next input.

use lstm_core::{
    Backend, Lstm, Stream,
    ndarray::ArrayView1,
    train::{Linear, cross_entropy},
};

use crate::{
    Result,
    text::{UNKNOWN, Vocabulary, hot},
};

/// How characters are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Taste {
    /// What the logits are divided by: 1 writes as the model foretells, less takes fewer risks, 0 none at all.
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
}

/// An endless text. It streams: the LSTM makes one step per character.
///
/// The same model, prompt and taste give the same text. Its odds come from the library's cross entropy, so it is the
/// same on every device too; but it is meant for people to read: nothing else is promised of it.
pub(crate) struct Sample<'a, B: Backend> {
    stream: Stream<B>,
    head: &'a Linear<B>,
    vocabulary: &'a Vocabulary,
    temperature: f32,
    random: Random,
    /// What the LSTM read last, and what it gave for it.
    x: Vec<f32>,
    y: Vec<f32>,
}

impl<'a, B: Backend> Sample<'a, B> {
    /// A text that goes on from `prompt`.
    pub(crate) fn new(
        lstm: &Lstm<B>,
        head: &'a Linear<B>,
        vocabulary: &'a Vocabulary,
        prompt: &str,
        Taste { temperature, seed }: Taste,
    ) -> Result<Self> {
        let (x, y) = (vec![0.0; vocabulary.len()], vec![0.0; lstm.config().output_size()]);
        let (stream, random) = (lstm.stream(1)?, Random(seed));
        let mut sample = Sample { stream, head, vocabulary, temperature, random, x, y };
        prompt.chars().try_for_each(|c| sample.read(vocabulary.symbol(c) as usize))?;
        Ok(sample)
    }

    fn read(&mut self, symbol: usize) -> Result<()> {
        self.x.fill(0.0);
        self.x[symbol] = hot(self.vocabulary.len());
        Ok(self.stream.step(&self.x, &mut self.y)?)
    }

    /// Draws a symbol, but never the unknown one, which has no character.
    fn draw(&mut self) -> Result<usize> {
        let mut logits = self.head.forward(ArrayView1::from(&self.y))?;
        let known = UNKNOWN as usize + 1..self.vocabulary.len();
        if self.temperature == 0.0 {
            let most = known.max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            return Ok(most.unwrap_or_default());
        }
        logits.mapv_inplace(|logit| logit / self.temperature);
        // It is never drawn; with its odds those of the others might round to nothing.
        logits[UNKNOWN as usize] = f32::NEG_INFINITY;
        // The gradient of the cross entropy is the softmax, everywhere but at its target.
        let (_, odds) = cross_entropy(logits.view(), &[UNKNOWN as usize])?;
        let odds = known.map(|symbol| (symbol, f64::from(odds[symbol])));
        let total = odds.clone().map(|(_, odds)| odds).sum::<f64>();
        if total.is_nan() {
            return Err(lstm_core::Error::format("the model", "its outputs are not finite").into());
        }
        let mut left = self.random.uniform() * total;
        let mut drawn = 0;
        for (symbol, odds) in odds.filter(|&(_, odds)| odds > 0.0) {
            drawn = symbol;
            left -= odds;
            if left < 0.0 {
                break;
            }
        }
        Ok(drawn)
    }
}

impl<B: Backend> Iterator for Sample<'_, B> {
    type Item = Result<char>;

    fn next(&mut self) -> Option<Result<char>> {
        let drawn = self.draw().and_then(|symbol| self.read(symbol).map(|()| symbol));
        drawn.map(|symbol| self.vocabulary.character(symbol)).transpose()
    }
}

/// SplitMix64 (Steele, Lea & Flood 2014): enough for a text, and the same everywhere.
struct Random(u64);

impl Random {
    /// From 0 to 1, 1 excluded.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use lstm_core::{
        LstmConfig,
        ndarray::{Array1, Array2},
    };
    use lstm_cpu::Cpu;

    use super::*;

    #[test]
    fn the_same_seed_writes_the_same_text() -> Result<()> {
        let vocabulary = Vocabulary::from_line("\n abcdef").expect("in order");
        let (cpu, size) = (Cpu::new(), vocabulary.len());
        let lstm = Lstm::random(&cpu, LstmConfig::new(size, 6).layers(2), 1)?;
        let head = Linear::random(&cpu, 6, size, 2)?;
        let sample =
            |prompt, temperature, seed| Sample::new(&lstm, &head, &vocabulary, prompt, Taste { temperature, seed });
        let text = |prompt, temperature, seed| sample(prompt, temperature, seed)?.take(50).collect::<Result<String>>();
        let one = text("abc", 1.0, 7)?;
        assert_eq!(one, text("abc", 1.0, 7)?);
        assert_eq!(one.chars().count(), 50);
        assert_ne!(one, text("abc", 1.0, 8)?);
        assert_eq!(text("abc", 0.0, 7)?, text("abc", 0.0, 8)?);
        // A prompt is read, and characters that are unknown are one symbol in it.
        assert_ne!(sample("abc", 1.0, 7)?.y, sample("ab", 1.0, 7)?.y);
        assert_eq!(sample("a?", 1.0, 7)?.y, sample("a!", 1.0, 7)?.y);
        text("", 1.0, 7)?;
        Ok(())
    }

    #[test]
    fn characters_come_as_often_as_foretold() -> Result<()> {
        let vocabulary = Vocabulary::from_line("ab").expect("in order");
        let cpu = Cpu::new();
        let lstm = Lstm::random(&cpu, LstmConfig::new(3, 2), 1)?;
        // Whatever the LSTM says: twice as many b as a, and far more unknown ones, which are never drawn.
        let bias = Array1::from(vec![5.0, 0.0, std::f32::consts::LN_2]);
        let head = Linear::new(&cpu, Array2::zeros((3, 2)), Some(bias))?;
        let share = |temperature| {
            let sample = Sample::new(&lstm, &head, &vocabulary, "", Taste { temperature, seed: 3 })?;
            let text = sample.take(6000).collect::<Result<String>>()?;
            assert_eq!(text.chars().count(), 6000);
            Ok::<_, crate::Error>(text.matches('a').count() as f64 / 6000.0)
        };
        for (temperature, want) in [(1.0, 1.0 / 3.0), (0.5, 1.0 / 5.0), (0.0, 0.0), (0.01, 0.0), (100.0, 0.498)] {
            let got = share(temperature)?;
            assert!((got - want).abs() < 0.02, "{got} instead of {want} at {temperature}");
        }
        Ok(())
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // The first outputs for the seed 1234567 are 6457827717110365317 and 3203168211198807973.
        let mut random = Random(1_234_567);
        let top = |n: u64| (n >> 11) as f64 / (1u64 << 53) as f64;
        assert_eq!(random.uniform(), top(6_457_827_717_110_365_317));
        assert_eq!(random.uniform(), top(3_203_168_211_198_807_973));
    }
}
