//! Control tokens: which there are, and where a text has them written out.

use aho_corasick::{AhoCorasick, MatchKind};

use super::{TYPE_CONTROL, TYPE_USER_DEFINED, bpe_error};
use crate::engine::error::TokenizerError;

/// Tokens that end a turn or a text in the chat formats of published models, by llama.cpp's list.
/// Nobody writes them by accident: a file that calls one of them text was converted wrongly.
const END_MARKS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
];
/// The same for names that may also be text: `</s>` ends strike-through in HTML.
const END_WORDS: [&str; 6] = ["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"];

/// Whether generation ends at a token of this text and type, whatever ids the file names.
pub(super) fn ends_by_name(token: &str, kind: i64) -> bool {
    let text = kind != TYPE_CONTROL && kind != TYPE_USER_DEFINED;
    END_MARKS.contains(&token) || (!text && END_WORDS.contains(&token))
}

/// The control tokens of a vocabulary, to be found in text.
#[derive(Debug)]
pub(super) struct Controls {
    search: AhoCorasick,
    ids: Vec<u32>,
}

impl Controls {
    /// Control tokens of a vocabulary, with their ids.
    pub fn new<'a>(tokens: impl Iterator<Item = (u32, &'a str)>) -> Result<Self, TokenizerError> {
        // A token without text would be found everywhere.
        let (ids, texts): (Vec<_>, Vec<_>) = tokens.filter(|(_, token)| !token.is_empty()).unzip();
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| bpe_error(error.into()))?;
        Ok(Self { search, ids })
    }

    /// Cuts `text` at each control token written out in it: the text before each, and its id. What
    /// follows the last comes with no id.
    pub fn cut<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (&'a str, Option<u32>)> {
        let mut start = 0;
        let found = self.search.find_iter(text).map(Some).chain([None]);
        found.map(move |found| match found {
            Some(found) => {
                let before = &text[std::mem::replace(&mut start, found.end())..found.start()];
                (before, Some(self.ids[found.pattern().as_usize()]))
            }
            None => (&text[start..], None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_the_longest_token() {
        let tokens = [(7, "<a>"), (8, "<a><b>"), (9, ""), (10, "<c>")];
        let controls = Controls::new(tokens.into_iter()).unwrap();
        let cut = |text| controls.cut(text).collect::<Vec<_>>();
        assert_eq!(
            cut("x<a>y<a><b><c>"),
            [("x", Some(7)), ("y", Some(8)), ("", Some(10)), ("", None)]
        );
        assert_eq!(cut("<a"), [("<a", None)]);
        let none = Controls::new(std::iter::empty()).unwrap();
        assert_eq!(none.cut("<a>").collect::<Vec<_>>(), [("<a>", None)]);
    }

    #[test]
    fn a_word_that_may_be_text_ends_only_as_a_control_token() {
        assert!(ends_by_name("</s>", TYPE_CONTROL) && !ends_by_name("</s>", 1));
        assert!(ends_by_name("<|im_end|>", TYPE_CONTROL) && ends_by_name("<|im_end|>", 1));
        assert!(!ends_by_name("<|im_start|>", TYPE_CONTROL));
    }
}
