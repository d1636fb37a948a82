//! Page formats: how one slot of K or V is stored, and where it lies in a page.
//!
//! A format is one file that implements [`Codec`] and one line in the list below. Nothing else
//! changes when a format is added: page layouts, the stores and the attention kernels are generic
//! over [`Codec`], and code that holds a format as a value reaches its codec through
//! [`SlotFormat::visit`].

mod bf16;
mod codec;
mod f16;
mod f32;
mod i8;
mod layout;
mod page_format;
mod range;

pub use codec::{BLOCK, Codec, CodecVisitor};
pub use layout::{LayoutError, PageLayout, Region};
pub use page_format::{PageFormat, ParseFormatError};
pub use range::{OutOfRange, Overflow, Side};

/// Makes [`SlotFormat`] out of the list of codecs.
macro_rules! slot_formats {
    ($($(#[$doc:meta])* $variant:ident = $codec:ty,)+) => {
        /// How the K (or the V) of one slot is stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum SlotFormat {
            $($(#[$doc])* $variant,)+
        }

        impl SlotFormat {
            /// Every format there is.
            pub const ALL: &'static [SlotFormat] = &[$(SlotFormat::$variant,)+];

            /// Calls the visitor with the codec of this format.
            #[inline]
            pub fn visit<T: CodecVisitor>(self, visitor: T) -> T::Output {
                match self {
                    $(SlotFormat::$variant => visitor.visit::<$codec>(),)+
                }
            }
        }
    };
}

slot_formats! {
    /// IEEE single precision: exact for engines that compute in f32.
    F32 = f32::F32,
    /// IEEE half precision: the default.
    F16 = f16::F16,
    /// bfloat16: the range of f32 with eight bits of precision.
    Bf16 = bf16::Bf16,
    /// Signed bytes with one bfloat16 scale per token and 32 channels.
    I8 = i8::I8,
}

#[cfg(test)]
mod tests;
