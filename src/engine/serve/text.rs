//! Text as it may be handed out while a request runs.

use super::stop::{Place, StopStrings};
use crate::engine::tokenizer::StreamDecoder;

/// Makes text of the bytes of tokens, up to a stop string.
///
/// What is handed out is whole characters, and never taken back: a character whose bytes come in several
/// tokens waits for the last of them, and what may be the beginning of a stop string waits until it is
/// one or is not. Nothing else waits. Bytes that can become no character are U+FFFD, as in
/// [`String::from_utf8_lossy`], and stop strings are looked for in the text with these.
#[derive(Clone, Debug)]
pub struct TextStream {
    decoder: StreamDecoder,
    stops: StopStrings,
    place: Option<Place>,
    /// All text that came, or all before the end that a stop string made.
    text: String,
    /// Bytes of it that were handed out.
    given: usize,
    stopped_by: Option<String>,
}

impl TextStream {
    /// No text yet.
    pub fn new(stops: StopStrings) -> Self {
        let place = stops.search().map(|search| search.start());
        Self {
            decoder: StreamDecoder::default(),
            stops,
            place,
            text: String::new(),
            given: 0,
            stopped_by: None,
        }
    }

    /// Adds the bytes of one token; returns the text that is certain now and was not before. Nothing
    /// comes after a stop string.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        let decoded = self.decoder.push(bytes);
        self.read(&decoded);
        let begun = match (self.stops.search(), self.place) {
            // What comes is handed out either way.
            _ if self.stops.are_kept() || self.stopped_by.is_some() => 0,
            (Some(search), Some(place)) => search.begun(place, self.decoder.pending()),
            _ => 0,
        };
        self.give(self.text.len() - begun)
    }

    /// Ends the text; returns what had waited. An unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        let decoded = self.decoder.finish();
        self.read(&decoded);
        self.give(self.text.len())
    }

    /// The stop string that came, if one did.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    /// All text that was handed out.
    pub fn given(&self) -> &str {
        &self.text[..self.given]
    }

    fn read(&mut self, decoded: &str) {
        if self.stopped_by.is_some() {
            return;
        }
        let (Some(search), Some(place)) = (self.stops.search(), &mut self.place) else {
            self.text.push_str(decoded);
            return;
        };
        let Some(found) = search.read(place, decoded) else {
            self.text.push_str(decoded);
            return;
        };
        self.text.push_str(&decoded[..found.end]);
        if !self.stops.are_kept() {
            self.text.truncate(self.text.len() - found.text.len());
        }
        self.stopped_by = Some(found.text.to_owned());
    }

    fn give(&mut self, end: usize) -> &str {
        let start = std::mem::replace(&mut self.given, end);
        &self.text[start..end]
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
