//! Files that are not what they should be, and texts in every dress.

use std::{fs, io::Write, process::Stdio};

use super::bench::{Bench, json};

#[test]
fn texts_that_are_no_text_are_refused_before_the_model_is_looked_for() {
    let bench = Bench::new();
    fs::create_dir(bench.path("folder")).unwrap();
    let files: [(&str, &[u8], &str); 8] = [
        ("empty", b"", "empty is empty"),
        ("mark", b"\xef\xbb\xbf", "mark is empty"),
        ("utf16le", b"\xff\xfet\0h\0", "utf16le is UTF-16, by its byte order mark; UTF-8 is read"),
        ("utf16be", b"\xfe\xff\0t\0h", "utf16be is UTF-16, by its byte order mark; UTF-8 is read"),
        ("utf32", b"\xff\xfe\0\0t\0\0\0", "utf32 is UTF-32, by its byte order mark"),
        ("latin", b"a caf\xe9", "latin is not UTF-8 text: invalid byte at offset 5"),
        ("cut", b"caf\xc3", "cut is not UTF-8 text: invalid byte at offset 3"),
        ("zeros", b"t\0h\0", "zeros is not UTF-8 text: zero byte at offset 1"),
    ];
    let commands: [&[&str]; 4] = [
        &["generate", "--prompt-file"],
        &["demo", "--prompt-file"],
        &["eval", "perplexity", "--text"],
        &["eval", "continuation", "--text"],
    ];
    for command in commands {
        let refuses = |file: &str, what: &str| {
            bench.refuses(&[command, &[file, "--model", "none.gguf"]].concat(), what);
        };
        for (name, bytes, what) in files {
            fs::write(bench.path(name), bytes).unwrap();
            refuses(name, what);
        }
        refuses("folder", "cannot read folder: ");
        refuses("no/such/text", "cannot read no/such/text: ");
    }
}

#[test]
fn byte_order_marks_and_line_ends_become_no_tokens() {
    let bench = Bench::new();
    let tokens = |bytes: &[u8]| {
        fs::write(bench.path("prompt"), bytes).unwrap();
        let base = ["generate", "--model", "tiny.gguf", "--prompt-file", "prompt"];
        bench.succeeds(&[&base[..], &["--max-tokens", "3", "--json", "out.json"]].concat());
        let result = json(&bench.path("out.json"));
        (result["prompt_tokens"].clone(), result["tokens"].clone())
    };
    let plain = tokens(b"the heat\nin there\n");
    assert_eq!(tokens(b"\xef\xbb\xbfthe heat\nin there\n"), plain);
    assert_eq!(tokens(b"the heat\r\nin there\r\n"), plain);
    assert_ne!(tokens(b"the heat\rin there\r"), plain);
}

#[test]
fn standard_input_is_read_as_a_file_is() {
    let bench = Bench::new();
    let run = |bytes: &[u8]| {
        let arguments = ["generate", "--model", "tiny.gguf", "--prompt", "-", "--max-tokens", "1"];
        let mut command = bench.command(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(b"\xef\xbb\xbfthe heat\r\n");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(b"");
    assert_eq!((code, said.as_str()), (Some(2), "headwise: standard input is empty\n"));
    let (code, said) = run(b"caf\xe9");
    assert_eq!(code, Some(2));
    assert!(said.contains("standard input is not UTF-8 text: invalid byte at offset 3"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_model_that_is_no_file_is_refused_at_once() {
    use std::process::Command;

    let bench = Bench::new();
    fs::create_dir(bench.path("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(bench.path("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("pipe", bench.path("link")).unwrap();
    for (model, what) in [
        ("pipe", "cannot read the model file pipe: it is not a regular file"),
        ("link", "cannot read the model file link: it is not a regular file"),
        ("/dev/null", "cannot read the model file /dev/null: it is not a regular file"),
        ("folder", "cannot read the model file folder: is a directory"),
        ("missing", "cannot read the model file missing: No such file"),
        ("text.txt", "text.txt is not a GGUF file"),
    ] {
        bench.refuses(&["generate", "--prompt", "the", "--model", model], what);
    }
}

/// A prompt may come through a pipe, as from `<(command)`.
#[cfg(unix)]
#[test]
fn a_text_may_come_through_a_pipe() {
    use std::process::Command;

    let bench = Bench::new();
    let pipe = bench.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = std::thread::spawn(move || fs::write(pipe, "the heat"));
    let generate = ["generate", "--model", "tiny.gguf", "--prompt-file", "pipe"];
    bench.succeeds(&[&generate[..], &["--max-tokens", "1"]].concat());
    writer.join().unwrap().unwrap();
}
