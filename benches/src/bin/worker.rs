//! `worker BACKEND PRECISION THREADS`: times cases on one backend in one precision, controlled by the program `bench` through standard input.

use anyhow::{Context, Result};
use lstm_benches::{backends, worker};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "expected arguments BACKEND PRECISION THREADS";
    let (name, precision) = (args.next().context(usage)?, args.next().context(usage)?.parse()?);
    let threads = args.next().context(usage)?.parse().context(usage)?;
    let opened_device = backends::open(&name, threads);
    let description =
        opened_device.as_ref().map(|device| device.description()).map_err(|error| anyhow::anyhow!("{error:#}"));
    worker::serve(description, |case, _| {
        opened_device.as_ref().expect("requests are served only if the device was opened").prepare(case, precision)
    })
}
