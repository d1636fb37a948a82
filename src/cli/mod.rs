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
mod error;
mod eval;
mod fetch;
mod generate;
#[cfg(feature = "measure")]
mod kernels;
mod output;
mod progress;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};

use self::error::one_line;

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
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return not_parsed(&error),
    };
    let result = match command {
        Command::Demo(demo) => demo.run(),
        Command::Generate(generate) => generate.run(),
        Command::Eval(eval) => eval.run(),
        #[cfg(feature = "measure")]
        Command::Kernels(kernels) => kernels.run(),
        #[cfg(feature = "measure")]
        Command::BenchGpu(bench) => bench.run(),
        #[cfg(feature = "measure")]
        Command::BenchServing(bench) => bench.run(),
        Command::Fetch(fetch) => fetch.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headwise: {error}");
            ExitCode::from(2)
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
        eprintln!("headwise: {}", one_line(&message.trim_start_matches("error: ")));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
