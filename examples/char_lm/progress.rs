//! Training progress: a progress bar on a terminal, otherwise a line every few seconds.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Weight of a new loss in the exponential moving average. The first losses are averaged with equal weights.
const SMOOTHING: f64 = 0.05;

/// Progress of a training run.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Number of finished steps and time at the start of this process.
    start: (u64, Instant),
    /// Time of the last line; `None` on a terminal.
    last_line: Option<Instant>,
    /// Total number of steps of the run.
    total: u64,
    /// Moving average of the loss in bits per character.
    smoothed_bits: Option<f64>,
    /// Number of characters processed since the start.
    characters: usize,
}

impl Progress {
    /// Starts showing progress, with `done` steps finished already.
    pub(crate) fn new(done: u64, total: u64) -> Self {
        // Drawn on standard error, hidden if that is not a terminal.
        let bar = ProgressBar::new(total).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} [{wide_bar}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let now = Instant::now();
        let last_line = (!std::io::stderr().is_terminal()).then_some(now);
        Progress { bar, start: (done, now), last_line, total, smoothed_bits: None, characters: 0 }
    }

    /// Records a finished step with its loss in bits per character, and updates the display.
    pub(crate) fn step(&mut self, step: u64, bits: f64, rate: f32, characters: usize) {
        let (first, start) = self.start;
        let steps = step - first;
        let weight = SMOOTHING.max(1.0 / steps as f64);
        let smoothed = self.smoothed_bits.map_or(bits, |old| old + weight * (bits - old));
        self.smoothed_bits = Some(smoothed);
        self.characters += characters;

        let elapsed = start.elapsed();
        let speed = self.characters as f64 / elapsed.as_secs_f64();
        let left = HumanDuration(elapsed.div_f64(steps as f64).mul_f64((self.total - step) as f64));
        let text = format!("{smoothed:.3} bits/char, learning rate {rate:.1e}, {speed:.0} chars/s, {left:#} left");
        self.bar.set_position(step);
        match self.last_line {
            Some(last) if last.elapsed() >= LINE_INTERVAL => {
                self.print_line(&format!("step {step}/{}: {text}", self.total));
                self.last_line = Some(Instant::now());
            }
            Some(_) => {}
            None => self.bar.set_message(text),
        }
    }

    /// Prints a line above the progress bar.
    pub(crate) fn print_line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// Stops updating and leaves the bar as it is.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
