//! Where the commands run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::tiny_llama::TinyLlama;

/// A folder with a tiny model in it, where commands run.
pub struct Bench {
    pub folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        TinyLlama { context: 512, ..TinyLlama::default() }.write(&folder.path().join("tiny.gguf"));
        let words = "the heat in the tin is an ether and there is more of it here ";
        fs::write(folder.path().join("text.txt"), words.repeat(60)).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwise"));
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Requires exit code 2 and one line on stderr that says `what`.
    pub fn refuses(&self, arguments: &[&str], what: &str) {
        self.refuses_command(&mut self.command(arguments), what);
    }

    pub fn refuses_command(&self, command: &mut Command, what: &str) {
        let output = command.output().unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(what), "{arguments:?} said {stderr:?}, expected {what:?}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

/// What a command wrote.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
