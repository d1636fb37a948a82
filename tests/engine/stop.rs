//! Text while it is generated, and the texts that end it.

use std::collections::BTreeMap;

use headwise::{
    cache::Capacity,
    engine::{
        EngineError, GgufFile, Model, Strategy, Tokenizer,
        serve::{Completion, Finish, Progress, Request, Scheduler, ServeOptions, StopStrings},
    },
};

use super::serving::{cache, request};
use crate::tiny_llama::TinyLlama;

fn tiny() -> (Model, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama::default().write(&path);
    let file = GgufFile::open(&path).unwrap();
    (Model::load(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap())
}

/// Requests that say something else each: the tiny model's tokens are bytes and pairs of them for the most
/// part, so that characters come in pieces and break.
fn requests(count: u32, max_new_tokens: usize) -> Vec<Request> {
    let strategy = Strategy::Nucleus { temperature: 1.0, top_p: 0.9 };
    let request = |salt| Request { strategy, ..request(salt, 60, max_new_tokens) };
    (0..count).map(request).collect()
}

/// What a caller has of a request from the steps alone.
#[derive(Default)]
struct Streamed {
    tokens: Vec<u32>,
    text: String,
}

/// Runs the requests to their end: what is streamed is what is given back.
fn run(
    (model, tokenizer): &(Model, Tokenizer),
    capacity: Capacity,
    requests: &[Request],
) -> (Vec<Completion>, usize) {
    let options = ServeOptions { watermark: 0.0, ..ServeOptions::default() };
    let scheduler = Scheduler::new(model, cache(model, capacity), options).unwrap();
    let mut scheduler = scheduler.with_tokenizer(tokenizer);
    for request in requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let mut streamed = BTreeMap::<_, Streamed>::new();
    let mut done = Vec::new();
    let each = |progress: &Progress| {
        for (id, token) in &progress.tokens {
            streamed.entry(*id).or_default().tokens.push(*token);
        }
        for (id, text) in &progress.text {
            assert!(!text.is_empty());
            streamed.entry(*id).or_default().text.push_str(text);
        }
        done.extend(progress.completed.iter().cloned());
    };
    scheduler.run(each).unwrap();
    done.sort_by_key(|completion| completion.id);
    for completion in &done {
        let Streamed { tokens, text } = streamed.remove(&completion.id).unwrap_or_default();
        assert_eq!((tokens, text), (completion.tokens.clone(), completion.text.clone()));
    }
    (done, scheduler.stats().preemptions)
}

/// The text of tokens, all at once.
fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    tokenizer.decode(tokens).unwrap()
}

#[test]
fn without_stop_strings_the_text_is_that_of_the_tokens() {
    let tiny = tiny();
    let (done, preemptions) = run(&tiny, Capacity::Tokens(1000), &requests(4, 80));
    assert_eq!(preemptions, 0);
    for completion in &done {
        assert!(matches!(completion.finish, Finish::Length));
        assert_eq!(completion.text, text(&tiny.1, &completion.tokens));
    }
    // Or nothing here would break.
    assert!(done.iter().any(|completion| completion.text.contains('\u{fffd}')));
}

#[test]
fn a_stop_string_ends_a_request_where_it_is_complete_and_is_not_given_back() {
    let tiny = tiny();
    let free = requests(4, 80);
    let (plain, _) = run(&tiny, Capacity::Tokens(1000), &free);
    for length in 1..6 {
        // Of each answer some characters, from the middle; the others must not see them.
        let stops: Vec<String> = (plain.iter())
            .map(|completion| {
                let middle = completion.text.chars().skip(20).collect::<String>();
                // What ends with a broken character is complete when the next token says so.
                let stop: Vec<char> = middle.chars().take(length).collect();
                let end = middle.chars().skip(length).find(|&c| c != '\u{fffd}').unwrap();
                stop.into_iter().chain([end]).collect()
            })
            .collect();
        for kept in [false, true] {
            let requests: Vec<Request> = (free.iter().zip(&stops))
                .map(|(request, stop)| {
                    let stops = StopStrings::new([stop]).unwrap();
                    let stop_strings = if kept { stops.kept() } else { stops };
                    Request { stop_strings, ..request.clone() }
                })
                .collect();
            let (roomy, _) = run(&tiny, Capacity::Tokens(1000), &requests);
            let (tight, preemptions) = run(&tiny, Capacity::Tokens(130), &requests);
            assert!(preemptions > 0);
            for ((done, free), stop) in roomy.iter().zip(&plain).zip(&stops) {
                let Some(at) = free.text.find(stop.as_str()) else {
                    assert!(matches!(done.finish, Finish::Length), "{done:?}");
                    assert_eq!(done.text, free.text);
                    continue;
                };
                assert!(matches!(&done.finish, Finish::StopString(found) if found == stop));
                assert_eq!(done.text, free.text[..at + if kept { stop.len() } else { 0 }]);
                let enough =
                    |tokens: &usize| text(&tiny.1, &free.tokens[..*tokens]).contains(stop.as_str());
                let tokens = (0..).find(enough).unwrap();
                assert_eq!(done.tokens, free.tokens[..tokens]);
            }
            for (roomy, tight) in roomy.iter().zip(&tight) {
                assert_eq!((&roomy.tokens, &roomy.text), (&tight.tokens, &tight.text));
            }
        }
    }
}

#[test]
fn stop_strings_without_a_tokenizer_are_refused() {
    let (model, tokenizer) = tiny();
    let stop_strings = StopStrings::new(["."]).unwrap();
    let stopping = Request { stop_strings, ..request(0, 20, 4) };
    let options = ServeOptions::default();
    let memory = Capacity::Tokens(64);
    let mut scheduler = Scheduler::new(&model, cache(&model, memory), options).unwrap();
    assert!(matches!(scheduler.submit(stopping.clone()), Err(EngineError::NoTokenizer)));
    scheduler.submit(request(0, 20, 4)).unwrap();
    scheduler.run(|progress| assert!(progress.text.is_empty())).unwrap();
    let mut scheduler = scheduler.with_tokenizer(&tokenizer);
    scheduler.submit(stopping).unwrap();
}

#[test]
fn what_waited_is_in_the_text_of_a_cancelled_request() {
    let tiny = tiny();
    let free = request(3, 20, 12);
    let (plain, _) = run(&tiny, Capacity::Tokens(64), std::slice::from_ref(&free));
    // All of the answer and more.
    let stop_strings = StopStrings::new([format!("{} and more", plain[0].text)]).unwrap();
    let options = ServeOptions::default();
    let memory = cache(&tiny.0, Capacity::Tokens(64));
    let scheduler = Scheduler::new(&tiny.0, memory, options).unwrap();
    let mut scheduler = scheduler.with_tokenizer(&tiny.1);
    let id = scheduler.submit(Request { stop_strings, ..free }).unwrap();
    for _ in 0..6 {
        assert!(scheduler.step().unwrap().text.is_empty());
    }
    let cancelled = scheduler.cancel(id).unwrap();
    assert!(matches!(cancelled.finish, Finish::Cancelled));
    assert_eq!(cancelled.text, text(&tiny.1, &plain[0].tokens[..6]));
}
