//! Generates reviews.

/// The classes: the verdict of a review of one clause, or of two clauses that disagree.
pub(crate) const CLASSES: [&str; 4] = ["good", "bad", "good, then bad", "bad, then good"];

/// The words. The number of a word is its token. The first ones have a meaning, and the others have none.
pub(crate) const VOCABULARY: [&str; 32] = [
    "not", "but", "great", "lovely", "funny", "moving", "fresh", "dull", "awful", "boring", "flat", "weak", "the", "a",
    "film", "plot", "music", "cast", "end", "start", "is", "was", "very", "really", "of", "in", "and", "this", "scene",
    "actor", "story", "it",
];
const NOT: usize = 0;
const BUT: usize = 1;
const GOOD_WORDS: usize = 2;
const BAD_WORDS: usize = 7;
/// Number of good words, and of bad ones.
const VERDICT_WORDS: usize = 5;
const OTHER_WORDS: usize = 12;

/// Reviews as tokens, and their classes.
pub(crate) struct Reviews {
    pub(crate) tokens: Vec<Vec<i64>>,
    pub(crate) classes: Vec<usize>,
}

impl Reviews {
    /// Generates `count` reviews, which depend on the seed alone.
    pub(crate) fn generate(count: usize, seed: u64) -> Self {
        // Knuth's linear congruential generator; the upper bits are random enough.
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut reviews, mut classes) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let class = random(CLASSES.len());
            let verdicts: &[bool] = [&[true][..], &[false], &[true, false], &[false, true]][class];
            let mut words = Vec::new();
            for (k, &is_good) in verdicts.iter().enumerate() {
                if k > 0 {
                    words.push(BUT);
                }
                let is_negated = random(3) == 0;
                let mut others = |words: &mut Vec<usize>, most: usize| {
                    (0..random(most + 1))
                        .for_each(|_| words.push(OTHER_WORDS + random(VOCABULARY.len() - OTHER_WORDS)));
                };
                others(&mut words, 8);
                if is_negated {
                    words.push(NOT);
                    others(&mut words, 3);
                }
                let first = if is_good != is_negated { GOOD_WORDS } else { BAD_WORDS };
                words.push(first + random(VERDICT_WORDS));
                (0..random(9)).for_each(|_| words.push(OTHER_WORDS + random(VOCABULARY.len() - OTHER_WORDS)));
            }
            reviews.push(words.into_iter().map(|word| word as i64).collect());
            classes.push(class);
        }
        Reviews { tokens: reviews, classes }
    }

    /// The words of a review.
    pub(crate) fn text(&self, index: usize) -> String {
        let words: Vec<_> = self.tokens[index].iter().map(|&token| VOCABULARY[token as usize]).collect();
        words.join(" ")
    }
}
