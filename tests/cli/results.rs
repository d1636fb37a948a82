//! What the commands measure and write.

use std::fs;

use super::bench::{Bench, json};
use crate::tiny_llama::TinyLlama;

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
fn generate_ends_before_a_stop_text() {
    let bench = Bench::new();
    let generate =
        "generate --model tiny.gguf --prompt the --max-tokens 24 --temperature 1 --json out.json";
    let generate = |extra: &[&str]| {
        let printed = bench.succeeds(&[&generate.split(' ').collect::<Vec<_>>(), extra].concat());
        let result = json(&bench.path("out.json"));
        assert_eq!(printed, format!("{}\n", result["text"].as_str().unwrap()));
        result
    };
    let free = generate(&[]);
    assert_eq!(free["finish"], "length");
    let text = free["text"].as_str().unwrap();
    let (from, _) = text.char_indices().nth(5).unwrap();
    // What ends with a broken character is complete one token later.
    let whole = |(_, c): &(usize, char)| *c != '\u{fffd}';
    let (last, c) = text.char_indices().skip(7).find(whole).unwrap();
    let stop = &text[from..last + c.len_utf8()];
    let at = text.find(stop).unwrap();
    let stopped = generate(&["--stop", "not there", "--stop", stop]);
    assert_eq!(stopped["finish"]["stop-string"], stop);
    assert_eq!(stopped["text"], text[..at]);
    assert!(stopped["tokens"].as_array().unwrap().len() < free["tokens"].as_array().unwrap().len());
    let kept = generate(&["--stop", stop, "--keep-stop"]);
    assert_eq!(kept["text"], text[..at + stop.len()]);
    assert_eq!(kept["tokens"], stopped["tokens"]);
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
fn a_prompt_is_text_unless_it_is_called_a_template() {
    let bench = Bench::new();
    let prompt = "the<|end|>the";
    let tokens = |extra: &[&str]| {
        let base = ["generate", "--model", "tiny.gguf", "--max-tokens", "2", "--json", "out.json"];
        bench.succeeds(&[&base[..], extra].concat());
        json(&bench.path("out.json"))["prompt_tokens"].as_u64().unwrap()
    };
    fs::write(bench.path("prompt.txt"), prompt).unwrap();
    // "t", "he" twice, and the marker: one token, or its seven characters.
    assert_eq!(tokens(&["--prompt", prompt, "--control-tokens"]), 5);
    assert_eq!(tokens(&["--prompt", prompt]), 11);
    assert_eq!(tokens(&["--prompt-file", "prompt.txt"]), 11);
}
