//! The `headwise` command.
//!
//! Every command takes `--json PATH`; long work shows progress on stderr; bad input is one clear line
//! on stderr and exit code 2.

mod args;
#[cfg(feature = "measure")]
mod bench_gpu;
#[cfg(feature = "measure")]
mod bench_serving;
mod demo;
mod environment;
mod error;
mod eval;
mod fetch;
mod generate;
mod given;
mod input;
mod interrupt;
#[cfg(feature = "measure")]
mod kernels;
mod output;
mod place;
mod progress;
mod setup;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use self::{
    error::{CliError, one_line},
    given::Given,
    output::note,
};

/// A paged KV cache in which every attention head has its own page table.
#[derive(Parser)]
#[command(name = "headwise", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compress a real model's cache 1x to 16x, measure quality and memory, and write a report page.
    Demo(demo::Demo),
    /// Generate text from a prompt.
    Generate(generate::Generate),
    /// Measure quality by a fixed protocol.
    Eval(eval::Eval),
    /// List the CUDA devices, compile the CUDA kernels and report what each needs.
    #[cfg(feature = "measure")]
    Kernels(kernels::Kernels),
    /// Check the CUDA kernels on a device, then measure each next to a plain copy.
    #[cfg(feature = "measure")]
    BenchGpu(bench_gpu::BenchGpu),
    /// Measure decode throughput by compression rate on a CUDA device.
    #[cfg(feature = "measure")]
    BenchServing(bench_serving::BenchServing),
    /// Fetch an artefact into the cache folder and verify its checksum.
    Fetch(fetch::Fetch),
}

/// Runs the command line of this process. Exit codes: 0 done, 2 bad input or a missing piece.
pub fn run() -> ExitCode {
    let parsed = numbers_may_be_negative(Cli::command())
        .try_get_matches()
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?.command, Given::of(&matches))));
    let (command, given) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return not_parsed(&error),
    };
    match environment::check().and_then(|()| command.run(&given)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A compiler's log has lines of its own.
            note(format!("headwise: {}\n", one_line(&error)));
            ExitCode::from(2)
        }
    }
}

/// `-1` is a value that its flag refuses, not a flag that nobody knows.
fn numbers_may_be_negative(command: clap::Command) -> clap::Command {
    let names: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let command = names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, numbers_may_be_negative));
    command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    })
}

impl Command {
    fn run(self, given: &Given) -> Result<(), CliError> {
        match self {
            Self::Demo(demo) => demo.run(given),
            Self::Generate(generate) => generate.run(given),
            Self::Eval(eval) => eval.run(given),
            #[cfg(feature = "measure")]
            Self::Kernels(kernels) => kernels.run(),
            #[cfg(feature = "measure")]
            Self::BenchGpu(bench) => bench.run(given),
            #[cfg(feature = "measure")]
            Self::BenchServing(bench) => bench.run(),
            Self::Fetch(fetch) => fetch.run(),
        }
    }
}

/// Help and version as clap prints them; an error as its first paragraphs, in one line. The usage that
/// follows them is what `--help` is for.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if help {
        // Nobody is left to tell when the pipe is closed.
        let _ = error.print();
    } else {
        let message = error.to_string();
        let end = ["Usage:", "For more information"].iter().filter_map(|part| message.find(part));
        let message = &message[..end.min().unwrap_or(message.len())];
        note(format!("headwise: {}\n", one_line(&message.trim_start_matches("error: "))));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
