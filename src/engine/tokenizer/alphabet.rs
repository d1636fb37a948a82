//! How byte-level BPE writes bytes that do not print.

/// GPT-2's printable stand-ins for the 256 bytes.
pub(super) struct Alphabet {
    /// Stand-ins end below U+0144.
    byte_of: [Option<u8>; 0x144],
}

impl Alphabet {
    pub fn new() -> Self {
        let mut byte_of = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let stand_in = if printable {
                usize::from(byte)
            } else {
                next += 1;
                next - 1
            };
            byte_of[stand_in] = Some(byte);
        }
        Self { byte_of }
    }

    /// The bytes of a token, or `None` when a character of it stands for no byte.
    pub fn decode(&self, token: &str) -> Option<Box<[u8]>> {
        token.chars().map(|c| self.byte_of.get(c as usize).copied().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = Alphabet::new();
        let mut bytes: Vec<u8> = alphabet.byte_of.iter().flatten().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        // Ġ is the space, Ċ the line feed.
        assert_eq!(alphabet.decode("Ġa\u{10a}").as_deref(), Some(&b" a\n"[..]));
        assert_eq!(alphabet.decode("東"), None);
    }
}
