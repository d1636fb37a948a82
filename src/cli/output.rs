//! Results: text for people, and the files that `--json` and `--report` name.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::error::CliError;
use crate::report::{self, Destination, Identity};

/// Where a command's results go, known before any work is done for them.
pub(super) struct Results {
    json: Option<Sink>,
    report: Option<Sink>,
}

enum Sink {
    /// Standard output, which is then free of anything else.
    Stdout,
    /// Standard error, which then has nothing else but an error that ends the command.
    Stderr,
    Path(Destination),
}

/// Something that a command reads, and must not overwrite.
pub(super) struct Input {
    what: &'static str,
    identity: Option<Identity>,
}

impl Input {
    /// The file at `path`.
    pub fn file(what: &'static str, path: &Path) -> Self {
        Self { what, identity: Identity::of(path) }
    }

    /// A file in the cache folder, which may be yet to come.
    pub fn fetched(what: &'static str, path: &Path) -> Self {
        let found = Destination::at(path).ok().and_then(|there| there.identity().cloned());
        Self { what, identity: Identity::of(path).or(found) }
    }

    /// No file.
    pub fn none(what: &'static str) -> Self {
        Self { what, identity: None }
    }

    /// Standard input.
    pub fn stdin(what: &'static str) -> Self {
        Self { what, identity: of_stream(io::stdin()) }
    }
}

impl Results {
    /// Looks at the paths that `--json` and `--report` were given.
    ///
    /// # Errors
    /// A place that cannot be written, that is an input, or that is given twice.
    pub fn to(
        json: Option<&Path>,
        report: Option<&Path>,
        inputs: &[Input],
    ) -> Result<Self, CliError> {
        let json = json.map(Sink::at).transpose()?;
        let report = report.map(Sink::at).transpose()?;
        for (flag, sink) in [("--json", &json), ("--report", &report)] {
            let Some(sink) = sink else { continue };
            let identity = sink.identity();
            let overwritten = |input: &&Input| identity.is_some() && input.identity == identity;
            if let Some(input) = inputs.iter().find(overwritten) {
                let (name, input) = (sink.name(), input.what);
                let reason = format!("{flag} {name} would overwrite {input}");
                return Err(CliError::Usage(reason));
            }
        }
        if let (Some(json), Some(report)) = (&json, &report) {
            let one_stream = matches!(
                (json, report),
                (Sink::Stdout, Sink::Stdout) | (Sink::Stderr, Sink::Stderr)
            );
            if one_stream || (json.identity().is_some() && json.identity() == report.identity()) {
                let (json, report) = (json.name(), report.name());
                let reason = format!("--json {json} and --report {report} are the same file");
                return Err(CliError::Usage(reason));
            }
        }
        Ok(Self { json, report })
    }

    /// Prints text for people: to standard output, or to standard error where a result has that. A
    /// closed pipe is an error, not a panic.
    pub fn print(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        match self.has(&Sink::Stdout) {
            true => self.note(text),
            false => to_stdout(text.as_ref().as_bytes())?,
        }
        Ok(())
    }

    /// Prints beside the results, on standard error, unless a result has that.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.has(&Sink::Stderr) {
            note(text);
        }
    }

    /// Whether a result goes to this standard stream.
    fn has(&self, stream: &Sink) -> bool {
        let same = |sink: &&Sink| std::mem::discriminant(*sink) == std::mem::discriminant(stream);
        self.json.iter().chain(&self.report).any(|sink| same(&sink))
    }

    /// Writes the result where `--json` says.
    pub fn write_json(&self, result: &impl Serialize) -> Result<(), CliError> {
        match &self.json {
            Some(sink) => sink.write(&report::json(result)?),
            None => Ok(()),
        }
    }

    /// Writes the page where `--report` says.
    pub fn write_report(&self, page: &str) -> Result<(), CliError> {
        self.report.as_ref().map_or(Ok(()), |sink| sink.write(page.as_bytes()))
    }
}

impl Sink {
    fn at(path: &Path) -> Result<Self, CliError> {
        // `/dev/stdout` and `/dev/stderr`, and the files that they were sent to.
        let found = Identity::of(path);
        let leads_to = |stream: Option<Identity>| stream.is_some() && stream == found;
        if path == Path::new("-") || leads_to(of_stream(io::stdout())) {
            return Ok(Self::Stdout);
        }
        if leads_to(of_stream(io::stderr())) {
            return Ok(Self::Stderr);
        }
        Ok(Self::Path(Destination::at(path)?))
    }

    fn identity(&self) -> Option<Identity> {
        match self {
            Self::Stdout => of_stream(io::stdout()),
            Self::Stderr => of_stream(io::stderr()),
            Self::Path(destination) => destination.identity().cloned(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Stdout => "-".to_owned(),
            Self::Stderr => "standard error".to_owned(),
            Self::Path(destination) => destination.path().display().to_string(),
        }
    }

    fn write(&self, content: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Stdout => to_stdout(content),
            Self::Stderr => io::stderr().write_all(content).map_err(CliError::Stderr),
            Self::Path(destination) => Ok(destination.write(content)?),
        }
    }
}

/// Prints beside the results, on standard error. Where that is closed, nobody is left to tell.
pub(super) fn note(text: impl AsRef<str>) {
    let _ = io::stderr().write_all(text.as_ref().as_bytes());
}

fn to_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::Stdout)
}

/// The file that a standard stream is, where the system tells.
#[cfg(unix)]
fn of_stream(stream: impl std::os::fd::AsFd) -> Option<Identity> {
    let own = stream.as_fd().try_clone_to_owned().ok()?;
    Identity::of_open(&std::fs::File::from(own).metadata().ok()?)
}

#[cfg(not(unix))]
fn of_stream<S>(_: S) -> Option<Identity> {
    None
}
