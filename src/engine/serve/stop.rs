//! Texts that end a generation, found as they come.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::{
    Anchored,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};
use thiserror::Error;

/// Stop strings that cannot be looked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StopStringError {
    /// One without a character: every text contains it.
    #[error("stop string {index} is empty")]
    Empty {
        /// Which one, from 0.
        index: usize,
    },
    /// More than [`StopStrings::MOST`].
    #[error("{found} stop strings are more than {}", StopStrings::MOST)]
    TooMany {
        /// How many.
        found: usize,
    },
    /// One of more than [`StopStrings::MOST_BYTES`].
    #[error("stop string {index} has {found} bytes, more than {}", StopStrings::MOST_BYTES)]
    TooLong {
        /// Which one, from 0.
        index: usize,
        /// Its bytes.
        found: usize,
    },
    /// The library that looks for them refused them.
    #[error("stop strings: {0}")]
    Search(String),
}

/// Texts that end a generation, none by default. Clones share one search.
///
/// The one that is complete first counts, whichever began first; of those that end with the same
/// character, the longest.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    search: Option<Arc<Search>>,
    kept: bool,
}

impl StopStrings {
    /// Stop strings of one request at most.
    pub const MOST: usize = 64;
    /// Bytes of one stop string at most.
    pub const MOST_BYTES: usize = 1024;

    /// Stop strings in any order. What is generated ends before the one that came.
    ///
    /// # Errors
    /// An empty one, too many, or too long ones.
    pub fn new<T: Into<String>>(
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, StopStringError> {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        if texts.len() > Self::MOST {
            return Err(StopStringError::TooMany { found: texts.len() });
        }
        for (index, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(StopStringError::Empty { index });
            }
            if text.len() > Self::MOST_BYTES {
                return Err(StopStringError::TooLong { index, found: text.len() });
            }
        }
        let search = (!texts.is_empty()).then(|| Search::new(&texts)).transpose()?;
        Ok(Self { search: search.map(Arc::new), kept: false })
    }

    /// The same, but the text given back ends with the stop string that came.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { kept: true, ..self }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.search.is_none()
    }

    /// Whether the text given back ends with the stop string that came.
    pub(super) fn are_kept(&self) -> bool {
        self.kept
    }

    /// What looks for them, if there are any.
    pub(super) fn search(&self) -> Option<&Arc<Search>> {
        self.search.as_ref()
    }
}

/// Where a search stands between two pieces of text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(StateID);

/// A stop string that came.
pub(super) struct Found<'a> {
    /// Where it ends in the piece of text.
    pub end: usize,
    pub text: &'a str,
}

/// Looks for all stop strings at once.
#[derive(Debug)]
pub(super) struct Search {
    texts: Vec<String>,
    automaton: NFA,
    start: StateID,
    /// Bytes of a stop string that are there in each state.
    begun: HashMap<StateID, usize>,
}

impl Search {
    fn new(texts: &[String]) -> Result<Self, StopStringError> {
        // One that has another inside can never be complete first; nothing need wait for it.
        let comes_first = |text: &str| {
            let inside = |other: &String| text.find(other).map(|at| at + other.len());
            !texts.iter().filter_map(inside).any(|end| end < text.len())
        };
        let texts: Vec<String> = texts.iter().filter(|text| comes_first(text)).cloned().collect();
        let refused = |error: &dyn ToString| StopStringError::Search(error.to_string());
        // Matches by where they end, not by where they begin: the crate's standard kind.
        let automaton = NFA::new(&texts).map_err(|error| refused(&error))?;
        let start = automaton.start_state(Anchored::No).map_err(|error| refused(&error))?;
        let mut begun = HashMap::new();
        for text in &texts {
            let mut state = start;
            for (before, byte) in text.bytes().enumerate() {
                state = automaton.next_state(Anchored::No, state, byte);
                begun.insert(state, before + 1);
            }
        }
        Ok(Self { texts, automaton, start, begun })
    }

    /// Before any text.
    pub fn start(&self) -> Place {
        Place(self.start)
    }

    /// Reads on from `place`, up to the first stop string that is complete.
    pub fn read(&self, place: &mut Place, text: &str) -> Option<Found<'_>> {
        for (at, byte) in text.bytes().enumerate() {
            place.0 = self.automaton.next_state(Anchored::No, place.0, byte);
            if self.automaton.is_match(place.0) {
                let ending = 0..self.automaton.match_len(place.0);
                let ending = ending.map(|match_| self.automaton.match_pattern(place.0, match_));
                let longest = ending.map(|id| &self.texts[id]).max_by_key(|text| text.len());
                return longest.map(|text| Found { end: at + 1, text });
            }
        }
        None
    }

    /// Bytes at the end of the text read so far that may be the beginning of a stop string, when the next
    /// character begins with `next`, which are not all of its bytes: it becomes that, or U+FFFD.
    pub fn begun(&self, place: Place, next: &[u8]) -> usize {
        let after = |bytes: &[u8]| {
            let step = |state, &byte| self.automaton.next_state(Anchored::No, state, byte);
            let state = bytes.iter().fold(place.0, step);
            self.begun.get(&state).map_or(0, |begun| begun.saturating_sub(bytes.len()))
        };
        match next {
            [] => after(&[]),
            _ => after(next).max(after("\u{fffd}".as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_for_is_refused() {
        let refused = |texts: &[&str]| StopStrings::new(texts.iter().copied()).unwrap_err();
        assert_eq!(refused(&["a", ""]).to_string(), "stop string 1 is empty");
        let many = vec!["a"; StopStrings::MOST + 1];
        assert_eq!(refused(&many).to_string(), "65 stop strings are more than 64");
        let long = "a".repeat(StopStrings::MOST_BYTES + 1);
        let reason = "stop string 0 has 1025 bytes, more than 1024";
        assert_eq!(refused(&[&long]).to_string(), reason);
    }

    #[test]
    fn as_many_and_as_long_as_allowed_are_found() {
        let long = |index: usize| format!("{}{index}", "é".repeat(StopStrings::MOST_BYTES / 2 - 1));
        let texts: Vec<String> = (10..10 + StopStrings::MOST).map(long).collect();
        assert_eq!(texts[0].len(), StopStrings::MOST_BYTES);
        let stops = StopStrings::new(texts.clone()).unwrap();
        let search = stops.search().unwrap();
        let mut place = search.start();
        let text = format!("x{}éy", &texts[7][..1000]);
        assert!(search.read(&mut place, &text).is_none());
        assert_eq!(search.begun(place, b""), 0);
        assert!(search.read(&mut place, &texts[40][..1022]).is_none());
        assert_eq!(search.begun(place, b""), 1022);
        let found = search.read(&mut place, "50").unwrap();
        assert_eq!((found.end, found.text), (2, &*texts[40]));
    }

    #[test]
    fn there_may_be_none() {
        let none = StopStrings::new(Vec::<String>::new()).unwrap();
        assert!(none.is_empty() && StopStrings::default().is_empty());
        assert!(!StopStrings::new(["a"]).unwrap().is_empty());
    }
}
