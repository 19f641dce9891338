//! Training progress: a progress bar on a terminal, otherwise a line every few seconds.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Time between two printed lines if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Weight of a new loss value in the exponential moving average. The first losses are averaged with equal weights.
const SMOOTHING_WEIGHT: f64 = 0.05;

/// Progress of a training run.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Number of finished steps and time at the start of this process.
    start: (u64, Instant),
    /// Time at which the last line was printed; `None` on a terminal, where a bar is shown instead.
    last_line_time: Option<Instant>,
    /// Total number of steps of the run.
    total_steps: u64,
    /// Moving average of the loss in bits per character.
    smoothed_bits: Option<f64>,
    /// Number of characters processed since the start.
    characters: usize,
}

impl Progress {
    /// Starts showing progress, with `finished_steps` steps finished already.
    pub(crate) fn new(finished_steps: u64, total_steps: u64) -> Self {
        // Drawn on standard error, hidden if that is not a terminal.
        let bar = ProgressBar::new(total_steps).with_position(finished_steps);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} [{wide_bar}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let now = Instant::now();
        let last_line_time = (!std::io::stderr().is_terminal()).then_some(now);
        Progress { bar, start: (finished_steps, now), last_line_time, total_steps, smoothed_bits: None, characters: 0 }
    }

    /// Records a finished step with its loss in bits per character, and updates the display.
    pub(crate) fn record_step(&mut self, step: u64, loss_bits: f64, learning_rate: f32, characters: usize) {
        let (first_step, start) = self.start;
        let steps = step - first_step;
        let loss_weight = SMOOTHING_WEIGHT.max(1.0 / steps as f64);
        let new_average = self.smoothed_bits.map_or(loss_bits, |old| old + loss_weight * (loss_bits - old));
        self.smoothed_bits = Some(new_average);
        self.characters += characters;

        let elapsed = start.elapsed();
        let characters_per_second = self.characters as f64 / elapsed.as_secs_f64();
        let time_left = HumanDuration(elapsed.div_f64(steps as f64).mul_f64((self.total_steps - step) as f64));
        let text = format!(
            "{new_average:.3} bits/char, learning rate {learning_rate:.1e}, {characters_per_second:.0} chars/s, {time_left:#} left"
        );
        self.bar.set_position(step);
        match self.last_line_time {
            Some(last) if last.elapsed() >= LINE_INTERVAL => {
                self.print_line(&format!("step {step}/{}: {text}", self.total_steps));
                self.last_line_time = Some(Instant::now());
            }
            Some(_) => {}
            None => self.bar.set_message(text),
        }
    }

    /// Prints a line above the progress bar.
    pub(crate) fn print_line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// Stops updating the display and leaves the bar as it is.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
