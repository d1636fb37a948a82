//! SentencePiece vocabularies (Kudo and Richardson 2018): pieces with scores, `▁` for the space.
//!
//! Text is cut at the pieces that users defined, and what is between them is merged from single
//! characters: of all neighbours that make a piece the best scored first, of equal ones the leftmost. There
//! are no lists of merges and no splits before, so a vocabulary of any size is opened by filling one map.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
};

use super::{
    controls::Controls,
    kinds::{TYPE_BYTE, TYPE_UNKNOWN, TYPE_UNUSED, TYPE_USER_DEFINED},
    vocabulary::Vocabulary,
};
use crate::engine::error::TokenizerError;

/// How vocabularies of this kind write the space.
const SPACE: &str = "▁";

/// The pieces of a vocabulary that come out of text.
#[derive(Debug)]
pub(super) struct Pieces {
    /// What merges may make.
    ids: HashMap<Box<str>, u32>,
    /// Bytes of the longest of them.
    longest: usize,
    scores: Vec<f32>,
    /// Ids that merges may pass through, but not end at; in ascending order.
    unused: Vec<u32>,
    user_defined: Controls,
    fallback: Fallback,
    space_first: bool,
}

/// What stands for a character that is no piece.
#[derive(Debug)]
enum Fallback {
    Bytes(Box<[u32; 256]>),
    Unknown(u32),
}

impl Pieces {
    /// `scores` has one for each token, `unknown` is the id that the file names, and `space_first` says
    /// whether a text begins with a space of its own.
    pub fn new(
        vocabulary: Vocabulary<'_>,
        scores: Vec<f32>,
        unknown: Option<u32>,
        space_first: bool,
    ) -> Result<Self, TokenizerError> {
        let mut ids: HashMap<Box<str>, u32> = HashMap::with_capacity(vocabulary.tokens.len());
        let (mut user_defined, mut unused) = (Vec::new(), Vec::new());
        let (mut bytes, mut of_type) = ([None; 256], None);
        for (id, token, kind) in vocabulary.text() {
            match kind {
                TYPE_BYTE => bytes[usize::from(byte(token)?)] = Some(id),
                TYPE_UNKNOWN => of_type = Some(id),
                // A converter may write its spaces as spaces.
                TYPE_USER_DEFINED => user_defined.push((id, token.replace(' ', SPACE))),
                _ => {
                    if let Some(first) = ids.insert(token.into(), id) {
                        let token = token.to_owned();
                        return Err(TokenizerError::Duplicate { token, first, second: id });
                    }
                    if kind == TYPE_UNUSED {
                        unused.push(id);
                    }
                }
            }
        }
        let missing = bytes.iter().position(Option::is_none);
        let fallback = match (missing, unknown.or(of_type)) {
            (None, _) => Fallback::Bytes(Box::new(bytes.map(Option::unwrap_or_default))),
            (Some(_), Some(unknown)) => Fallback::Unknown(unknown),
            (Some(byte), None) => return Err(TokenizerError::NoFallback { byte: byte as u8 }),
        };
        let user_defined = user_defined.iter().map(|(id, token)| (*id, token.as_str()));
        Ok(Self {
            longest: ids.keys().map(|token| token.len()).max().unwrap_or(0),
            ids,
            scores,
            unused,
            user_defined: Controls::new(user_defined)?,
            fallback,
            space_first,
        })
    }

    /// Token ids of `text`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        if text.is_empty() {
            return ids;
        }
        let mut written = String::with_capacity(text.len() + text.len() / 2);
        if self.space_first {
            written.push_str(SPACE);
        }
        text.split_inclusive(' ').for_each(|word| match word.strip_suffix(' ') {
            Some(word) => written.extend([word, SPACE]),
            None => written.push_str(word),
        });
        for (before, user_defined) in self.user_defined.cut(&written) {
            Merge::new(self, before).run(&mut ids);
            ids.extend(user_defined);
        }
        ids
    }

    fn is_unused(&self, id: u32) -> bool {
        self.unused.binary_search(&id).is_ok()
    }
}

/// What each id adds to the text.
pub(super) fn bytes(vocabulary: Vocabulary<'_>) -> Result<Vec<Box<[u8]>>, TokenizerError> {
    let Vocabulary { tokens, types, control } = vocabulary;
    let decode = |(id, token): (usize, &&str)| match (control[id], types[id]) {
        (true, _) => Ok(token.as_bytes().into()),
        (false, TYPE_BYTE) => Ok([byte(token)?].into()),
        (false, _) => Ok(token.replace(SPACE, " ").into_bytes().into()),
    };
    tokens.iter().enumerate().map(decode).collect()
}

/// The byte of a token that stands for one: `<0x0A>`.
fn byte(token: &str) -> Result<u8, TokenizerError> {
    let digits = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
    let digits = digits.filter(|digits| digits.len() == 2 && !digits.starts_with('+'));
    let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
    byte.ok_or_else(|| TokenizerError::Byte { token: token.to_owned() })
}

/// No symbol.
const NONE: usize = usize::MAX;

/// A run of characters that is one piece so far; taken over by its left neighbour, it has no bytes.
struct Symbol {
    start: usize,
    len: usize,
    previous: usize,
    next: usize,
}

/// Two neighbours that make a piece.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both. Other bytes: one of them has grown or is gone since.
    len: usize,
}

impl Candidate {
    fn key(&self) -> (f32, Reverse<usize>) {
        (self.score, Reverse(self.left))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((score, left), (other_score, other_left)) = (self.key(), other.key());
        score.total_cmp(&other_score).then(left.cmp(&other_left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// The merging of one text without user-defined pieces.
struct Merge<'a> {
    pieces: &'a Pieces,
    text: &'a str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
    /// Unused pieces that neighbours make here, and the bytes of the left one.
    halves: HashMap<u32, usize>,
}

impl<'a> Merge<'a> {
    fn new(pieces: &'a Pieces, text: &'a str) -> Self {
        let characters = text.char_indices().enumerate();
        let mut symbols: Vec<_> = characters
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        Self { pieces, text, symbols, candidates: BinaryHeap::new(), halves: HashMap::new() }
    }

    /// Appends the ids of the text.
    fn run(mut self, ids: &mut Vec<u32>) {
        (1..self.symbols.len()).for_each(|right| self.consider(right - 1, right));
        while let Some(Candidate { left, right, len, .. }) = self.candidates.pop() {
            let [a, b] = [left, right].map(|symbol| self.symbols[symbol].len);
            if a == 0 || b == 0 || a + b != len {
                continue;
            }
            let next = self.symbols[right].next;
            self.symbols[right].len = 0;
            self.symbols[left].len = len;
            self.symbols[left].next = next;
            if let Some(next) = self.symbols.get_mut(next) {
                next.previous = left;
            }
            self.consider(self.symbols[left].previous, left);
            self.consider(left, next);
        }
        for &Symbol { start, len, .. } in &self.symbols {
            if len > 0 {
                self.emit(&self.text[start..start + len], ids);
            }
        }
    }

    fn consider(&mut self, left: usize, right: usize) {
        if left == NONE || right == NONE {
            return;
        }
        let Symbol { start, len: half, .. } = self.symbols[left];
        let len = half + self.symbols[right].len;
        if len > self.pieces.longest {
            return;
        }
        let Some(&id) = self.pieces.ids.get(&self.text[start..start + len]) else { return };
        let score = self.pieces.scores[id as usize];
        self.candidates.push(Candidate { score, left, right, len });
        if self.pieces.is_unused(id) {
            self.halves.insert(id, half);
        }
    }

    /// The id of a piece; the ids of its halves where it is unused, and what stands for it where it is none.
    fn emit(&self, piece: &str, ids: &mut Vec<u32>) {
        match (self.pieces.ids.get(piece), &self.pieces.fallback) {
            (Some(id), _) => match self.halves.get(id) {
                Some(&half) => {
                    let (left, right) = piece.split_at(half);
                    self.emit(left, ids);
                    self.emit(right, ids);
                }
                None => ids.push(*id),
            },
            (None, Fallback::Bytes(bytes)) => {
                ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)]));
            }
            // Neighbours without a piece are one unknown.
            (None, Fallback::Unknown(unknown)) if ids.last() == Some(unknown) => {}
            (None, Fallback::Unknown(unknown)) => ids.push(*unknown),
        }
    }
}
