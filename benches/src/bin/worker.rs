//! `worker BACKEND THREADS`: times cases on one backend, as the conductor asks.

use anyhow::{Context, Result};
use lstm_benches::{backends, worker};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "expected BACKEND THREADS";
    let (name, threads) = (args.next().context(usage)?, args.next().context(usage)?.parse().context(usage)?);
    let opened = backends::open(&name, threads);
    let about = opened.as_ref().map(|device| device.about()).map_err(|error| anyhow::anyhow!("{error:#}"));
    worker::serve(about, |case, _| opened.as_ref().expect("ready only if open").prepare(case))
}
