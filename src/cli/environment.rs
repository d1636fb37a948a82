//! Environment variables that would otherwise be ignored where they are wrong.

use std::ffi::OsStr;

use super::error::CliError;
use crate::base::simd::Isa;

/// Refuses an instruction set in `HEADWISE_ISA` that this machine does not have, or nobody.
pub(super) fn check() -> Result<(), CliError> {
    std::env::var_os("HEADWISE_ISA").map_or(Ok(()), |name| check_isa(&name))
}

fn check_isa(name: &OsStr) -> Result<(), CliError> {
    let here = Isa::available();
    let wish = name.to_str().and_then(Isa::from_name);
    if name.is_empty() || wish.is_some_and(|isa| here.contains(&isa)) {
        return Ok(());
    }
    let here: Vec<String> = here.iter().map(|isa| format!("{isa:?}").to_lowercase()).collect();
    let (name, here) = (name.display(), here.join(", "));
    Err(CliError::Usage(format!("HEADWISE_ISA is {name:?}; this machine has {here}")))
}
