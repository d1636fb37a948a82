//! Everything given is used or refused, before a model is looked for.

use super::bench::{Bench, json};

/// What a command line says, beside a model that is not there.
fn refusals(command: &str, table: &[(&str, &str)]) {
    let bench = Bench::new();
    for (flags, what) in table {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(flags.split(' ').filter(|flag| !flag.is_empty()));
        bench.refuses(&arguments, what);
    }
}

/// How a command says that all of its flags are fine: by looking for the model.
const FINE: &str = "cannot read the model file none.gguf";

#[test]
fn flags_of_generate_that_do_nothing() {
    const NOTHING_EVICTED: &str = "has no effect without --compress or --keep-tokens";
    let generate = "generate --model none.gguf --prompt the";
    refusals(
        generate,
        &[
            ("", FINE),
            ("--top-p 0.9", "--top-p has no effect at --temperature 0"),
            ("--top-p 1", "--top-p has no effect at --temperature 0"),
            ("--seed 7", "--seed has no effect at --temperature 0"),
            ("--temperature 0.0 --seed 7", "--seed has no effect at --temperature 0"),
            ("--temperature 0.5 --seed 7 --top-p 0.9", FINE),
            ("--stop . --stop --", FINE),
            ("--stop -1 --keep-stop", FINE),
            ("--keep-stop", "--keep-stop has no effect without --stop"),
            ("--policy keydiff", NOTHING_EVICTED),
            ("--evict after-prefill", NOTHING_EVICTED),
            ("--every 8", NOTHING_EVICTED),
            ("--sinks 4", NOTHING_EVICTED),
            ("--window 8", NOTHING_EVICTED),
            ("--floor 64", NOTHING_EVICTED),
            ("--cost max", NOTHING_EVICTED),
            ("--queries 32", NOTHING_EVICTED),
            ("--kernel 5", NOTHING_EVICTED),
            ("--skip-newest 0", NOTHING_EVICTED),
            ("--allocation global", NOTHING_EVICTED),
            (
                "--compress 4 --policy kv-compress --evict after-prefill --every 8 --sinks 2 --window 8 \
                 --floor 64 --cost max --queries 32 --kernel 5 --skip-newest 0 --allocation global",
                FINE,
            ),
            ("--compress 1", FINE),
            ("--compress 1 --sinks 8 --every 4", "has no effect at a ratio of 1, which evicts"),
            ("--compress 1.0 --policy keydiff", "--policy has no effect at a ratio of 1"),
            ("--compress 4 --keep-tokens 50", "cannot be used with '--keep-tokens <TOKENS>'"),
            ("--prompt-file text.txt", "cannot be used with '--prompt-file <PATH>'"),
        ],
    );
    let evicting = format!("{generate} --compress 4");
    refusals(
        &evicting,
        &[
            (
                "--policy keydiff --kernel 5",
                "--kernel has no effect without the policy kv-compress",
            ),
            ("--policy random --queries 9", "--queries has no effect without the policy kv-comp"),
            ("--policy key-norm --skip-newest 1", "--skip-newest has no effect without the policy"),
            ("--policy keydiff --cost max", "--cost has no effect where every head keeps as much"),
            ("--allocation per-head --cost sum", "--cost has no effect where every head keeps as"),
            ("--policy keydiff --allocation global --cost max", FINE),
            ("--floor 36", "--floor has no effect up to the 36 slots of --sinks and --window"),
            ("--sinks 8 --window 8 --floor 10", "no effect up to the 16 slots of --sinks and"),
            ("--floor 37", FINE),
            ("--floor 0", FINE),
        ],
    );
}

#[test]
fn flags_of_the_other_commands_that_do_nothing() {
    refusals(
        "eval continuation --model none.gguf --text text.txt",
        &[
            ("", FINE),
            ("--kernel 5 --queries 9 --skip-newest 1 --cost max --floor 50", FINE),
            ("--policies keydiff,random --kernel 5", "--kernel has no effect without the policy"),
            ("--policies keydiff,random --cost max", "--cost has no effect where every head"),
            ("--policies keydiff,kv-compress --kernel 5 --cost max", FINE),
            ("--ratios 1,1 --window 8", "--window has no effect at a ratio of 1, which evicts"),
            ("--ratios 1,2 --window 8", FINE),
            ("--floor 20", "--floor has no effect up to the 36 slots"),
        ],
    );
    refusals(
        "demo --model none.gguf --prompt-file text.txt",
        &[
            ("", FINE),
            ("--kernel 5 --cost max --floor 64", FINE),
            ("--ratios 1 --sinks 8", FINE),
            ("--ratios 1 --serve-ratio 1 --sinks 8", "--sinks has no effect at a ratio of 1"),
            ("--allocation per-head --cost max", "--cost has no effect where every head"),
            ("--floor 20", "--floor has no effect up to the 36 slots"),
        ],
    );
    refusals(
        "eval perplexity --model none.gguf --text text.txt",
        &[("", FINE), ("--chars 9", FINE)],
    );
}

#[cfg(feature = "measure")]
#[test]
fn flags_of_the_device_commands_that_do_nothing() {
    const NOTHING_MEASURED: &str = "has no effect with --only checks, which measures nothing";
    refusals(
        "bench-gpu --only checks",
        &[
            ("--lengths 1024", NOTHING_MEASURED),
            ("--batches 1", NOTHING_MEASURED),
            ("--memory 1", NOTHING_MEASURED),
        ],
    );
    refusals(
        "bench-gpu",
        &[
            ("--memory 0", "--memory 0 leaves nothing to do"),
            ("--lengths 1024,99999999999", "--lengths 99999999999 is more than 16777216"),
            ("--batches 99999999999", "--batches 99999999999 is more than 65536"),
            ("--group 99999999999", "--group 99999999999 is more than 1024"),
            ("--lengths -1,2", "invalid value '-1' for '--lengths <LENGTHS>'"),
            ("--device -1", "invalid value '-1' for '--device <DEVICE>'"),
        ],
    );
    refusals(
        "bench-serving",
        &[
            ("--layers 4 --distinct-layers 5", "--distinct-layers 5 is more than 4"),
            ("--prompt 99999999999", "--prompt 99999999999 is more than 1048576"),
            ("--page-slots 65537", "--page-slots 65537 is more than 65536"),
            ("--kv-gib nan", "--kv-gib NaN is no size of memory"),
            ("--kv-gib inf", "--kv-gib inf is no size of memory"),
            ("--kv-gib -1", "--kv-gib -1 is no size of memory"),
            ("--kv-gib -inf", "--kv-gib -inf is no size of memory"),
            ("--rates -1,2", "a compression rate of -1 is not from 1 up"),
            ("--rates nan", "a compression rate of NaN is not from 1 up"),
        ],
    );
}

#[test]
fn ranges_are_checked_before_the_model_is_looked_for() {
    let generate = "generate --model none.gguf --prompt the";
    let evicting = "generate --model none.gguf --prompt the --compress 4";
    let perplexity = "eval perplexity --model none.gguf --text text.txt";
    let continuation = "eval continuation --model none.gguf --text text.txt";
    let demo = "demo --model none.gguf --prompt-file text.txt";
    let nothing = |flag: &str| format!("{flag} 0 leaves nothing to do");
    for (command, flags) in [
        (generate, &["--max-tokens", "--chunk", "--memory", "--block-tokens"][..]),
        (perplexity, &["--chars", "--windows", "--context", "--chunk", "--block-tokens"]),
        (continuation, &["--windows", "--context", "--following", "--chunk", "--block-tokens"]),
        (demo, &["--context", "--following", "--requests", "--request-tokens", "--block-tokens"]),
    ] {
        for flag in flags {
            refusals(command, &[(&format!("{flag} 0"), &nothing(flag))]);
            let negative = format!("invalid value '-1' for '{flag} <");
            refusals(command, &[(&format!("{flag} -1"), &negative)]);
        }
    }
    refusals(
        generate,
        &[
            ("--temperature nan", "temperature NaN is not a number above zero"),
            ("--temperature inf", "temperature inf is not a number above zero"),
            ("--temperature -inf", "temperature -inf is not a number above zero"),
            ("--temperature -0.5", "temperature -0.5 is not a number above zero"),
            ("--temperature 1 --top-p 0", "top-p 0 is not above zero and at most one"),
            ("--temperature 1 --top-p -1", "top-p -1 is not above zero and at most one"),
            ("--temperature 1 --top-p 1.01", "top-p 1.01 is not above zero and at most one"),
            ("--temperature 1 --top-p nan", "top-p NaN is not above zero and at most one"),
            ("--temperature 1 --seed -1", "invalid value '-1' for '--seed <SEED>'"),
            ("--block-tokens 65537", "--block-tokens 65537 is more than 65536"),
            ("--compress 0.5", "compression ratio of 0.5"),
            ("--compress -2", "compression ratio of -2"),
            ("--compress -inf", "compression ratio of -inf"),
            ("--compress inf", "compression ratio of inf"),
            ("--keep-tokens 0", "no page"),
            ("--keep-tokens 20", "under the 36 that every head keeps"),
            ("--keep-tokens -3", "invalid value '-3' for '--keep-tokens <TOKENS>'"),
        ],
    );
    refusals(
        evicting,
        &[
            ("--every 0", "--every 0 would evict after no token"),
            ("--queries 0", "a window of 0 queries"),
            ("--kernel 4", "has no middle slot"),
        ],
    );
    refusals(
        demo,
        &[
            ("--ratios 2,-1", "compression ratio of -1"),
            ("--ratios -1,2", "compression ratio of -1"),
            ("--serve-ratio inf", "compression ratio of inf"),
            ("--generate -1", "invalid value '-1' for '--generate <GENERATE>'"),
        ],
    );
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let bench = Bench::new();
    let generate = ["generate", "--model", "none.gguf", "--prompt", "the"];
    let with = |value: &str| {
        let mut command = bench.command(&generate);
        command.env("HEADWISE_ISA", value);
        command
    };
    let absent = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    for wrong in ["avx51", "AVX2", "portable ", absent] {
        let what = format!("HEADWISE_ISA is {wrong:?}; this machine has portable");
        bench.refuses_command(&mut with(wrong), &what);
    }
    for fine in ["portable", ""] {
        bench.refuses_command(&mut with(fine), FINE);
    }
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let bench = Bench::new();
    let tokens = |source: &[&str]| {
        let base = ["generate", "--model", "tiny.gguf", "--max-tokens", "1", "--json", "out.json"];
        bench.succeeds(&[&base[..], source].concat());
        json(&bench.path("out.json"))["prompt_tokens"].as_u64().unwrap()
    };
    for prompt in ["- buy milk", "-1", "--the", "-5 in the", "--top-p"] {
        std::fs::write(bench.path("prompt.txt"), prompt).unwrap();
        assert_eq!(tokens(&["--prompt", prompt]), tokens(&["--prompt-file", "prompt.txt"]));
    }
}
