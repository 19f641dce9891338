//! The command-line option that selects the backend.

use clap::builder::PossibleValuesParser;
use lstm::BACKENDS;

/// Parser of the value of the option `--backend`: the name of a bit-exact backend in this build, or `auto`.
/// [`lstm::Device::open`] takes these names.
pub(crate) fn name_parser() -> PossibleValuesParser {
    let names = BACKENDS.iter().filter(|info| info.is_compiled && info.is_default).map(|info| info.name);
    PossibleValuesParser::new(names.chain(["auto"]))
}
