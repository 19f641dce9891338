//! Segments of speech from the probabilities of the chunks, with the defaults of Silero VAD's
//! `get_speech_timestamps`.

use std::ops::Range;

use crate::model::{CHUNK, SAMPLE_RATE};

/// Speech begins with a chunk of at least this probability.
pub(crate) const BEGIN_PROBABILITY: f32 = 0.5;
/// Speech ends with a chunk below this probability.
pub(crate) const END_PROBABILITY: f32 = 0.35;
/// Shorter speech is dropped.
const MIN_SPEECH: usize = milliseconds(250);
/// Shorter silence does not end speech.
const MIN_SILENCE: usize = milliseconds(100);
/// Each segment is extended by this number of samples at both ends.
const PADDING: usize = milliseconds(30);

/// Converts milliseconds to samples.
const fn milliseconds(ms: usize) -> usize {
    ms * SAMPLE_RATE as usize / 1000
}

/// Finds the segments of speech, as ranges of samples. `len` is the number of samples of the audio.
pub(crate) fn find_segments(probabilities: &[f32], len: usize) -> Vec<Range<usize>> {
    let (mut segments, mut begin, mut silence): (Vec<Range<usize>>, Option<usize>, Option<usize>) =
        (Vec::new(), None, None);
    for (k, &probability) in probabilities.iter().enumerate() {
        let now = k * CHUNK;
        match begin {
            None if probability >= BEGIN_PROBABILITY => begin = Some(now),
            Some(_) if probability >= BEGIN_PROBABILITY => silence = None,
            Some(first) if probability < END_PROBABILITY => {
                let end = *silence.get_or_insert(now);
                if now - end >= MIN_SILENCE {
                    segments.push(first..end);
                    (begin, silence) = (None, None);
                }
            }
            _ => {}
        }
    }
    segments.extend(begin.map(|first| first..len));
    segments.retain(|segment| segment.len() > MIN_SPEECH);
    // Two segments that are close share the silence between them.
    let gaps: Vec<usize> = segments.windows(2).map(|pair| (pair[1].start - pair[0].end) / 2).collect();
    for (k, segment) in segments.iter_mut().enumerate() {
        let before = if k > 0 { gaps[k - 1].min(PADDING) } else { PADDING };
        let after = gaps.get(k).map_or(PADDING, |&gap| gap.min(PADDING));
        *segment = segment.start.saturating_sub(before)..(segment.end + after).min(len);
    }
    segments
}
