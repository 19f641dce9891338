//! The command-line option that selects the backend.

use clap::builder::PossibleValuesParser;
use lstm::BACKENDS;

/// Parser of the option's value: the names of the exact backends in this build, and `auto`. [`lstm::Device::open`] takes
/// them.
pub(crate) fn name_parser() -> PossibleValuesParser {
    let names = BACKENDS.iter().filter(|info| info.is_compiled && info.is_default).map(|info| info.name);
    PossibleValuesParser::new(names.chain(["auto"]))
}
