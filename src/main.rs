//! The `headwise` command; see [`headwise::cli`].

fn main() -> std::process::ExitCode {
    headwise::cli::run()
}
