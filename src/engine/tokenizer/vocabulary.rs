//! The tokens of a file, as it lists them.

/// Tokens by id, with what the file says of each. The lists are of one length.
#[derive(Clone, Copy)]
pub(super) struct Vocabulary<'a> {
    pub tokens: &'a [&'a str],
    /// By the numbers of [`kinds`](super::kinds).
    pub types: &'a [i64],
    /// Whether a token stands for something else than text: it comes out of no text.
    pub control: &'a [bool],
}

impl<'a> Vocabulary<'a> {
    /// Id, text and type of every token that is text.
    pub fn text(self) -> impl Iterator<Item = (u32, &'a str, i64)> {
        let listed = (0..).zip(self.tokens).zip(self.types.iter().zip(self.control));
        let listed = listed.filter(|(_, (_, control))| !**control);
        listed.map(|((id, token), (&kind, _))| (id, *token, kind))
    }

    /// Id and text of every control token.
    pub fn controls(self) -> impl Iterator<Item = (u32, &'a str)> {
        let listed = (0..).zip(self.tokens).zip(self.control).filter(|(_, control)| **control);
        listed.map(|((id, token), _)| (id, *token))
    }
}
