//! Generates text: samples characters from the predictions of the model and feeds each back as the next input.

use lstm::{Backend, Linear, Lstm, Stream, ndarray::ArrayView1, train::cross_entropy};

use crate::{
    Result,
    text::{UNKNOWN_SYMBOL, Vocabulary, one_hot_value},
};

/// Settings for choosing the characters of a generated text at random.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// Divisor of the logits. With 0, the likeliest character is always taken.
    pub(crate) temperature: f32,
    /// Seed of the random generator.
    pub(crate) seed: u64,
}

/// Iterator over the characters of an endless generated text. The LSTM runs one step of a stream per character.
///
/// The text is a deterministic function of the model, prompt and settings. Probabilities come from the library's cross
/// entropy, so the text is also the same on all exact backends, but it may change between versions of this program.
pub(crate) struct TextGenerator<'a, B: Backend> {
    stream: Stream<B>,
    head: &'a Linear<B>,
    vocabulary: &'a Vocabulary,
    temperature: f32,
    rng: SplitMix64,
    /// Input of the LSTM in the last step: one symbol, one-hot.
    x: Vec<f32>,
    /// Output of the LSTM in the last step.
    y: Vec<f32>,
}

impl<'a, B: Backend> TextGenerator<'a, B> {
    /// Creates a generator of text that continues `prompt`.
    pub(crate) fn new(
        lstm: &Lstm<B>,
        head: &'a Linear<B>,
        vocabulary: &'a Vocabulary,
        prompt: &str,
        Sampling { temperature, seed }: Sampling,
    ) -> Result<Self> {
        let (x, y) = (vec![0.0; vocabulary.len()], vec![0.0; lstm.config().output_size()]);
        let (stream, rng) = (lstm.stream(1)?, SplitMix64(seed));
        let mut generator = TextGenerator { stream, head, vocabulary, temperature, rng, x, y };
        prompt.chars().try_for_each(|c| generator.feed(vocabulary.symbol(c) as usize))?;
        Ok(generator)
    }

    /// Runs the LSTM for one step with a symbol as input.
    fn feed(&mut self, symbol: usize) -> Result<()> {
        self.x.fill(0.0);
        self.x[symbol] = one_hot_value(self.vocabulary.len());
        Ok(self.stream.step(&self.x, &mut self.y)?)
    }

    /// Samples the next symbol. [`UNKNOWN_SYMBOL`] is excluded, because it has no character.
    fn sample(&mut self) -> Result<usize> {
        let mut logits = self.head.forward(ArrayView1::from(&self.y))?;
        let candidates = UNKNOWN_SYMBOL as usize + 1..self.vocabulary.len();
        if self.temperature == 0.0 {
            let likeliest_symbol = candidates.max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            return Ok(likeliest_symbol.unwrap_or_default());
        }
        logits.mapv_inplace(|logit| logit / self.temperature);
        // Excluded before the softmax: if it were very likely, the other probabilities might round to zero.
        logits[UNKNOWN_SYMBOL as usize] = f32::NEG_INFINITY;
        // The gradient of the cross entropy with respect to the logits is the softmax minus 1 at the target.
        let (_, probabilities) = cross_entropy(logits.view(), &[UNKNOWN_SYMBOL as usize])?;
        let probabilities = candidates.map(|symbol| (symbol, f64::from(probabilities[symbol])));
        let total_probability = probabilities.clone().map(|(_, probability)| probability).sum::<f64>();
        if total_probability.is_nan() {
            return Err(lstm::Error::format("the model", "the outputs are not finite").into());
        }
        let mut remaining_probability = self.rng.uniform() * total_probability;
        let mut sampled_symbol = 0;
        for (symbol, probability) in probabilities.filter(|&(_, probability)| probability > 0.0) {
            sampled_symbol = symbol;
            remaining_probability -= probability;
            if remaining_probability < 0.0 {
                break;
            }
        }
        Ok(sampled_symbol)
    }
}

impl<B: Backend> Iterator for TextGenerator<'_, B> {
    type Item = Result<char>;

    fn next(&mut self) -> Option<Result<char>> {
        let sampled_symbol = self.sample().and_then(|symbol| self.feed(symbol).map(|()| symbol));
        sampled_symbol.map(|symbol| self.vocabulary.character(symbol)).transpose()
    }
}

/// SplitMix64 random generator (Steele, Lea & Flood 2014). Its output is the same on all platforms.
struct SplitMix64(u64);

impl SplitMix64 {
    /// A uniform random number in `[0, 1)`.
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
    use lstm::{
        Cpu, LstmConfig,
        ndarray::{Array1, Array2},
    };

    use super::*;

    #[test]
    fn text_depends_only_on_prompt_and_settings() -> Result<()> {
        let vocabulary = Vocabulary::from_line("\n abcdef").expect("in order");
        let (cpu, size) = (Cpu::new(), vocabulary.len());
        let lstm = Lstm::random(&cpu, LstmConfig::new(size, 6).layers(2), 1)?;
        let head = Linear::random(&cpu, 6, size, 2)?;
        let generator = |prompt, temperature, seed| {
            TextGenerator::new(&lstm, &head, &vocabulary, prompt, Sampling { temperature, seed })
        };
        let text =
            |prompt, temperature, seed| generator(prompt, temperature, seed)?.take(50).collect::<Result<String>>();
        let first_text = text("abc", 1.0, 7)?;
        assert_eq!(first_text, text("abc", 1.0, 7)?);
        assert_eq!(first_text.chars().count(), 50);
        assert_ne!(first_text, text("abc", 1.0, 8)?);
        assert_eq!(text("abc", 0.0, 7)?, text("abc", 0.0, 8)?);
        // The prompt changes the outputs, and all unknown characters in it are one symbol.
        assert_ne!(generator("abc", 1.0, 7)?.y, generator("ab", 1.0, 7)?.y);
        assert_eq!(generator("a?", 1.0, 7)?.y, generator("a!", 1.0, 7)?.y);
        text("", 1.0, 7)?;
        Ok(())
    }

    #[test]
    fn characters_are_sampled_with_predicted_probabilities() -> Result<()> {
        let vocabulary = Vocabulary::from_line("ab").expect("in order");
        let cpu = Cpu::new();
        let lstm = Lstm::random(&cpu, LstmConfig::new(3, 2), 1)?;
        // Logits that do not depend on the LSTM: b is twice as likely as a, and UNKNOWN, which is never sampled, far likelier.
        let bias = Array1::from(vec![5.0, 0.0, std::f32::consts::LN_2]);
        let head = Linear::new(&cpu, Array2::zeros((3, 2)), Some(bias))?;
        let share_of_a = |temperature| {
            let generator = TextGenerator::new(&lstm, &head, &vocabulary, "", Sampling { temperature, seed: 3 })?;
            let text = generator.take(6000).collect::<Result<String>>()?;
            assert_eq!(text.chars().count(), 6000);
            Ok::<_, crate::Error>(text.matches('a').count() as f64 / 6000.0)
        };
        for (temperature, want) in [(1.0, 1.0 / 3.0), (0.5, 1.0 / 5.0), (0.0, 0.0), (0.01, 0.0), (100.0, 0.498)] {
            let got = share_of_a(temperature)?;
            assert!((got - want).abs() < 0.02, "expected {want}, got {got} at temperature {temperature}");
        }
        Ok(())
    }

    #[test]
    fn splitmix64_matches_published_values() {
        // Published outputs for the seed 1234567: 6457827717110365317 and 3203168211198807973.
        let mut rng = SplitMix64(1_234_567);
        let to_unit_interval = |n: u64| (n >> 11) as f64 / (1u64 << 53) as f64;
        assert_eq!(rng.uniform(), to_unit_interval(6_457_827_717_110_365_317));
        assert_eq!(rng.uniform(), to_unit_interval(3_203_168_211_198_807_973));
    }
}
