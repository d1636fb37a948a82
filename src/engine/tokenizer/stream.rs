//! Text from tokens that come one at a time.

/// Puts streamed token bytes together into text, never cutting a character in two.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Adds the bytes of one token and returns the text that is complete now. Bytes that no later
    /// byte can complete become U+FFFD at once.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = done + invalid.len() == self.pending.len();
            let unfinished =
                || std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if invalid.is_empty() || (last && unfinished()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// The bytes of the unfinished character at the end, if there is one.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn streams_invalid_bytes_as_they_come() {
        let mut stream = StreamDecoder::default();
        assert_eq!(stream.push(b"a\xff\xe6\x9d"), "a\u{fffd}");
        assert_eq!(stream.push(b"\xb1"), "東");
        assert_eq!(stream.push(b"\xe6"), "");
        assert_eq!(stream.push(b"b"), "\u{fffd}b");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn streaming_in_any_pieces_gives_the_whole_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                ".{0,20}".prop_map(String::into_bytes),
            ],
            cuts in proptest::collection::vec(1usize..5, 0..40),
        ) {
            let mut stream = StreamDecoder::default();
            let mut text = String::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                text.push_str(&stream.push(piece));
                rest = later;
            }
            text.push_str(&stream.push(rest));
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
