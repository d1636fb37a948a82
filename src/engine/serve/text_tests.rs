//! Streams in random pieces against the whole text, looked at end by end.

use proptest::prelude::*;

use super::TextStream;
use crate::engine::serve::stop::StopStrings;

/// The stop string of `text` that is complete first, the longest of those, and where it ends.
fn first_stop<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
    ends.filter_map(|end| {
        let here = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
        here.max_by_key(|stop| stop.len()).map(|stop| (end, stop.as_str()))
    })
    .next()
}

/// What is given back of `text`.
fn until_stop<'a>(text: &'a str, stops: &[String], kept: bool) -> &'a str {
    let end = first_stop(text, stops);
    end.map_or(text, |(end, stop)| &text[..end - if kept { 0 } else { stop.len() }])
}

/// What of the text of `bytes` no continuation takes back: the beginning that all of them have, among them
/// those that finish or spoil a character and those that finish any stop string.
fn safe(bytes: &[u8], stops: &[String], kept: bool) -> String {
    let next = [0x80, 0x90, 0xbf, b'a'];
    let threes = next.iter().flat_map(|a| next.iter().map(move |b| [*a, *b]));
    let threes = threes.flat_map(|[a, b]| next.iter().map(move |c| vec![a, b, *c]));
    let rests = stops.iter().flat_map(|stop| {
        let rests = (0..=stop.len()).map(|from| &stop.as_bytes()[from..]);
        rests.flat_map(|rest| [rest.to_vec(), [rest, b"a"].concat()])
    });
    let ends = threes.chain(rests).map(|rest| {
        let longer = [bytes, &rest].concat();
        until_stop(&String::from_utf8_lossy(&longer), stops, kept).to_owned()
    });
    let common = |a: String, b: String| {
        let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
        same.map(|(a, _)| a).collect()
    };
    ends.reduce(common).unwrap()
}

/// Few letters, so that stop strings come, overlap and lie inside each other; characters of two to four
/// bytes, the replacement character among them.
fn letters() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{1,3}", "[ab東é\u{fffd}🦀]{1,4}"]
}

fn texts() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof!["[ab]{0,16}", "[ab東é🦀]{0,24}"].prop_map(String::into_bytes);
    let broken = proptest::sample::select(&b"ab\xe6\x9d\xb1\xc3\xa9\xf0\x9f\xa6\x80\xff"[..]);
    prop_oneof![2 => whole, 1 => proptest::collection::vec(broken, 0..24)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_stream_hands_out_what_is_certain_and_nothing_of_a_stop_string(
        bytes in texts(),
        stops in proptest::collection::vec(letters(), 0..4),
        kept in any::<bool>(),
        cuts in proptest::collection::vec(0usize..5, 0..12),
    ) {
        let strings = StopStrings::new(stops.clone()).unwrap();
        let mut stream = TextStream::new(if kept { strings.kept() } else { strings });
        let (mut given, mut read) = (String::new(), 0usize);
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let end = read.max(bytes.len().min(read.saturating_add(cut)));
            given.push_str(stream.push(&bytes[read..end]));
            read = end;
            prop_assert_eq!(&given, &safe(&bytes[..read], &stops, kept));
            prop_assert_eq!(stream.given(), &given);
        }
        given.push_str(stream.finish());
        let whole = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(&given, until_stop(&whole, &stops, kept));
        prop_assert_eq!(stream.stopped_by(), first_stop(&whole, &stops).map(|found| found.1));
    }
}

fn stream(stops: &[&str]) -> TextStream {
    TextStream::new(StopStrings::new(stops.iter().copied()).unwrap())
}

#[test]
fn what_may_be_a_stop_string_waits_and_nothing_else() {
    let mut text = stream(&["\n\nUser:"]);
    assert_eq!(text.push(b"yes\n"), "yes");
    assert_eq!(text.push(b"no\n\nUs"), "\nno");
    assert_eq!(text.push(b"ing\n\nUser"), "\n\nUsing");
    assert_eq!(text.push(b": and then"), "");
    assert_eq!(text.stopped_by(), Some("\n\nUser:"));
    assert_eq!(text.push(b"more"), "");
    assert_eq!(text.finish(), "");
    assert_eq!(text.given(), "yes\nno\n\nUsing");
}

#[test]
fn a_stop_string_that_another_always_ends_first_holds_nothing_back() {
    let mut text = stream(&["abc", "b"]);
    assert_eq!(text.push(b"a"), "a");
    assert_eq!(text.push(b"b"), "");
    assert_eq!(text.stopped_by(), Some("b"));
}

#[test]
fn of_those_that_end_together_the_longest_counts() {
    let mut text = stream(&["\n", "a\n"]);
    assert_eq!(text.push(b"xa"), "x");
    assert_eq!(text.push(b"\n"), "");
    assert_eq!(text.stopped_by(), Some("a\n"));
}

#[test]
fn an_unfinished_character_may_be_a_stop_string() {
    let mut text = stream(&["\u{fffd}"]);
    assert_eq!(text.push(b"a\xe6"), "a");
    assert_eq!(text.stopped_by(), None);
    assert_eq!(text.finish(), "");
    assert_eq!(text.stopped_by(), Some("\u{fffd}"));
}

#[test]
fn the_first_bytes_of_a_character_say_what_need_not_wait() {
    let mut text = stream(&["ab", "a\u{6771}"]);
    assert_eq!(text.push(b"a"), "");
    // Begins the second, but not the first.
    assert_eq!(text.push(b"\xe6"), "");
    assert_eq!(text.push(b"\x9e"), "a");
    assert_eq!(text.push(b"\xb1"), "\u{67b1}");
}
