//! Which flags stand on the command line, and whether they do anything.

use clap::{ArgMatches, parser::ValueSource};

use super::error::CliError;

/// The flags of one command, as opposed to those that are at their default.
pub(super) struct Given(ArgMatches);

/// Flags, whether they do something beside the others, and where they would not.
pub(super) type Rule<'a> = (&'a [&'a str], bool, &'a str);

impl Given {
    /// The flags of the command that was named, below all subcommands.
    pub fn of(matches: &ArgMatches) -> Self {
        match matches.subcommand() {
            Some((_, below)) => Self::of(below),
            None => Self(matches.clone()),
        }
    }

    /// Whether a flag (`--some-flag`) of this command was given.
    fn has(&self, flag: &str) -> bool {
        let id = flag.trim_start_matches('-').replace('-', "_");
        self.0.value_source(&id) == Some(ValueSource::CommandLine)
    }

    /// Refuses a flag that was given and does nothing.
    pub fn all_used(&self, rules: &[Rule<'_>]) -> Result<(), CliError> {
        for (flags, used, unless) in rules {
            if let Some(flag) = flags.iter().find(|flag| !used && self.has(flag)) {
                return Err(CliError::Usage(format!("{flag} has no effect {unless}")));
            }
        }
        Ok(())
    }
}
