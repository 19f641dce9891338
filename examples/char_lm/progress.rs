//! What a run shows while it trains: a bar on a terminal, else a line now and then.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// The time between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(5);

/// How much of the smoothed loss a new one is, once there are enough.
const NEW: f64 = 0.05;

pub(crate) struct Progress {
    bar: ProgressBar,
    /// Where it began, in steps and in time, and when it last wrote a line.
    start: (u64, Instant),
    line: Option<Instant>,
    total: u64,
    /// What it has seen: losses, smoothed, and characters.
    bits: Option<f64>,
    characters: usize,
}

impl Progress {
    pub(crate) fn new(done: u64, total: u64) -> Self {
        // On standard error; hidden if that is no terminal.
        let bar = ProgressBar::new(total).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} [{wide_bar}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let now = Instant::now();
        let line = (!std::io::stderr().is_terminal()).then_some(now);
        Progress { bar, start: (done, now), line, total, bits: None, characters: 0 }
    }

    /// A step is done, and the rest of them may be waited for.
    pub(crate) fn step(&mut self, step: u64, bits: f64, rate: f32, characters: usize) {
        let (first, start) = self.start;
        let seen = step - first;
        let weight = NEW.max(1.0 / seen as f64);
        let smoothed = self.bits.map_or(bits, |old| old + weight * (bits - old));
        self.bits = Some(smoothed);
        self.characters += characters;

        let elapsed = start.elapsed();
        let speed = self.characters as f64 / elapsed.as_secs_f64();
        let left = HumanDuration(elapsed.div_f64(seen as f64).mul_f64((self.total - step) as f64));
        let text = format!("{smoothed:.3} bits/char, rate {rate:.1e}, {speed:.0} chars/s, {left:#} left");
        self.bar.set_position(step);
        match self.line {
            Some(last) if last.elapsed() >= PAUSE => {
                self.note(&format!("step {step}/{}: {text}", self.total));
                self.line = Some(Instant::now());
            }
            Some(_) => {}
            None => self.bar.set_message(text),
        }
    }

    /// Writes a line above the bar.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
