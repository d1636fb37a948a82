//! Which architectures there are, and what their metadata keys mean to the forward pass.
//!
//! A file may ask for mathematics that the forward pass does not have, and it does so in metadata: a
//! scale of the logits, a sliding window, a cap on attention. Read past, such a key gives a model that
//! loads and talks nonsense. So every key under an architecture's own prefix is looked up here: the
//! engine reads it, or it changes nothing, or it must have the value with which it changes nothing. A
//! key that is not listed is refused, because nobody knows what it would change.

use super::{
    error::ModelError,
    gguf::{
        GgufFile,
        metadata::{Array, Scalar, Value},
    },
};

/// Which forward pass a model asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama (Touvron et al. 2023).
    Llama,
    /// Gemma 3 (arXiv 2503.19786): windowed layers among global ones, norms of queries and keys, norms after
    /// attention and feed-forward as well, GELU, a scaled embedding.
    Gemma3,
}

impl Architecture {
    /// By the name that files have for it.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            "gemma3" => Some(Self::Gemma3),
            _ => None,
        }
    }

    /// What its metadata keys begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Llama => "llama.",
            Self::Gemma3 => "gemma3.",
        }
    }
}

/// A key without its architecture's prefix, and what it means.
type Key = (&'static str, Meaning);

/// What a key means to the forward pass.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// The configuration reads it and checks its range.
    Read,
    /// It describes the model, or belongs to something that another key must switch on first.
    Silent,
    /// It changes results unless it has one of these values.
    Only(Neutral),
    /// Another architecture knows it.
    Unknown,
}

/// Values with which a key changes nothing.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    Numbers(&'static [f64]),
    Flag(bool),
    Texts(&'static [&'static str]),
    /// 0, or at least the context.
    Window,
    /// 0, which means the default, or the default: 1/√(channels of a head).
    InverseRoot,
}

use Meaning::{Only, Read, Silent, Unknown};

const ZERO: Meaning = Only(Neutral::Numbers(&[0.0]));
const ONE: Meaning = Only(Neutral::Numbers(&[1.0]));

/// Keys of `llama`, by <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> and llama.cpp's
/// list of keys, which all its architectures share.
const LLAMA: [Key; 72] = [
    ("block_count", Read),
    ("context_length", Read),
    ("embedding_length", Read),
    ("feed_forward_length", Read),
    ("vocab_size", Read),
    ("attention.head_count", Read),
    ("attention.head_count_kv", Read),
    ("attention.key_length", Read),
    ("attention.value_length", Read),
    ("attention.layer_norm_rms_epsilon", Read),
    ("rope.dimension_count", Read),
    ("rope.freq_base", Read),
    ("rope.scale_linear", Read),
    ("rope.scaling.type", Read),
    ("rope.scaling.factor", Read),
    // Scales, caps and clamps of what flows through the layers.
    ("logit_scale", ONE),
    ("embedding_scale", ONE),
    ("residual_scale", ONE),
    ("final_logit_softcapping", ZERO),
    ("attn_logit_softcapping", ZERO),
    ("swiglu_clamp_exp", ZERO),
    ("swiglu_clamp_shexp", ZERO),
    ("attention.scale", Only(Neutral::InverseRoot)),
    ("attention.output_scale", ONE),
    ("attention.value_scale", ONE),
    ("attention.clamp_kqv", ZERO),
    ("attention.max_alibi_bias", ZERO),
    ("attention.temperature_length", ZERO),
    ("attention.temperature_scale", ZERO),
    // Other layers, or layers put together otherwise.
    ("use_parallel_residual", Only(Neutral::Flag(false))),
    ("hidden_activation", Only(Neutral::Texts(&["silu", "swish"]))),
    ("attention.causal", Only(Neutral::Flag(true))),
    ("attention.q_lora_rank", ZERO),
    ("attention.kv_lora_rank", ZERO),
    ("attention.shared_kv_layers", ZERO),
    ("nextn_predict_layers", ZERO),
    ("n_deepstack_layers", ZERO),
    ("pooling_type", ZERO),
    ("swin_norm", Only(Neutral::Flag(false))),
    // Sliding windows; the rest of their settings matters only with one.
    ("attention.sliding_window", Only(Neutral::Window)),
    ("attention.sliding_window_pattern", Silent),
    ("attention.key_length_swa", Silent),
    ("attention.value_length_swa", Silent),
    ("rope.dimension_count_swa", Silent),
    ("rope.freq_base_swa", Silent),
    // Experts; the rest of their settings matters only where there are some.
    ("expert_count", ZERO),
    ("expert_used_count", ZERO),
    ("expert_shared_count", ZERO),
    ("leading_dense_block_count", Silent),
    ("expert_feed_forward_length", Silent),
    ("expert_shared_feed_forward_length", Silent),
    ("expert_chunk_feed_forward_length", Silent),
    ("expert_group_count", Silent),
    ("expert_group_used_count", Silent),
    ("expert_group_scale", Silent),
    ("experts_per_group", Silent),
    ("expert_weights_scale", Silent),
    ("expert_weights_norm", Silent),
    ("expert_gating_func", Silent),
    ("interleave_moe_layer_step", Silent),
    ("moe_every_n_layers", Silent),
    ("router_logit_softcapping", Silent),
    // RoPE. YaRN's settings matter only with the type `yarn`, which is refused.
    ("rope.scaling.attn_factor", ONE),
    ("rope.scaling.alpha", Only(Neutral::Numbers(&[0.0, 1.0]))),
    ("rope.dimension_sections", ZERO),
    ("rope.scaling.original_context_length", Silent),
    ("rope.scaling.finetuned", Silent),
    ("rope.scaling.yarn_ext_factor", ZERO),
    ("rope.scaling.yarn_attn_factor", ONE),
    ("rope.scaling.yarn_beta_fast", Silent),
    ("rope.scaling.yarn_beta_slow", Silent),
    // Both orders of Q's and K's rows are the one that the tensors have in a GGUF file.
    ("tensor_data_layout", Only(Neutral::Texts(&["reference", "Meta AI original pth"]))),
];

/// Keys that mean something else to `gemma3` than to `llama`, by llama.cpp's loader.
const GEMMA_3: [Key; 12] = [
    ("attention.scale", Read),
    ("attention.sliding_window", Read),
    ("attention.sliding_window_pattern", Read),
    ("attention.key_length_swa", Read),
    ("attention.value_length_swa", Read),
    ("rope.freq_base_swa", Read),
    ("rope.dimension_count_swa", Read),
    ("hidden_activation", Only(Neutral::Texts(&["gelu_pytorch_tanh", "gelu_tanh"]))),
    // The embedding is scaled by the root of its channels.
    ("embedding_scale", Unknown),
    ("swiglu_clamp_exp", Unknown),
    ("swiglu_clamp_shexp", Unknown),
    ("tensor_data_layout", Unknown),
];

/// Numbers that some keys are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub context: usize,
    pub head_dim: usize,
}

/// Refuses a `file` of an architecture whose keys ask for what its forward pass does not do.
pub(super) fn check(
    file: &GgufFile,
    architecture: Architecture,
    facts: Facts,
) -> Result<(), ModelError> {
    let own: &[Key] = match architecture {
        Architecture::Llama => &[],
        Architecture::Gemma3 => &GEMMA_3,
    };
    for (key, value) in file.metadata().iter() {
        let Some(name) = key.strip_prefix(architecture.prefix()) else { continue };
        let (key, found) = (key.to_owned(), value.to_string());
        match own.iter().chain(&LLAMA).find(|(known, _)| *known == name) {
            Some((_, Read | Silent)) => {}
            Some((_, Only(neutral))) if neutral.holds(value, facts) => {}
            Some((_, Only(neutral))) => {
                let supported = neutral.describe(facts);
                return Err(ModelError::UnsupportedKey { key, found, supported });
            }
            Some((_, Unknown)) | None => return Err(ModelError::UnknownKey { key, found }),
        }
    }
    Ok(())
}

impl Neutral {
    /// Whether `value`, or each of a list, is neutral.
    fn holds(self, value: &Value, facts: Facts) -> bool {
        match value {
            Value::Scalar(scalar) => self.holds_scalar(*scalar, facts),
            Value::Text(text) => match self {
                Self::Texts(texts) => texts.contains(&text.as_str()),
                _ => false,
            },
            Value::Array(Array::Scalars(scalars)) => scalars
                .iter()
                .all(|scalar| scalar.is_some_and(|scalar| self.holds_scalar(scalar, facts))),
            Value::Array(array) => array.len() == 0,
        }
    }

    fn holds_scalar(self, scalar: Scalar, facts: Facts) -> bool {
        let number = scalar.number();
        match self {
            Self::Flag(neutral) => scalar == Scalar::Flag(neutral),
            Self::Texts(_) => false,
            Self::Numbers(neutral) => number.is_some_and(|number| neutral.contains(&number)),
            Self::Window => {
                number.is_some_and(|number| number == 0.0 || number >= facts.context as f64)
            }
            // A file has it in f32.
            Self::InverseRoot => number.is_some_and(|number| {
                let default = inverse_root(facts);
                number == 0.0 || (number - default).abs() <= 1e-6 * default
            }),
        }
    }

    fn describe(self, facts: Facts) -> String {
        match self {
            Self::Numbers(numbers) => {
                numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" or ")
            }
            Self::Flag(flag) => flag.to_string(),
            Self::Texts(texts) => {
                texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" or ")
            }
            Self::Window => format!("0 or the context of {} and more", facts.context),
            Self::InverseRoot => format!("1/√{} = {}", facts.head_dim, inverse_root(facts)),
        }
    }
}

fn inverse_root(facts: Facts) -> f64 {
    1.0 / (facts.head_dim as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_once_in_the_table() {
        for table in [&LLAMA[..], &GEMMA_3] {
            let mut names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

    #[test]
    fn neutral_values_are_told_from_others() {
        let facts = Facts { context: 256, head_dim: 64 };
        let float = |value: f32| Value::Scalar(Scalar::F32(value));
        let count = |value: u64| Value::Scalar(Scalar::Unsigned(value));
        let scale = Neutral::Numbers(&[1.0]);
        assert!(scale.holds(&float(1.0), facts) && scale.holds(&count(1), facts));
        for other in [float(0.5), float(0.0), float(f32::NAN), Value::Text("1".into())] {
            assert!(!scale.holds(&other, facts), "{other:?}");
        }
        assert!(!scale.holds(&Value::Scalar(Scalar::Flag(true)), facts));
        for (window, neutral) in [(0, true), (255, false), (256, true), (u64::MAX, true)] {
            assert_eq!(Neutral::Window.holds(&count(window), facts), neutral, "{window}");
        }
        for (value, neutral) in [(0.125, true), (0.0, true), (0.124, false), (1.0, false)] {
            assert_eq!(Neutral::InverseRoot.holds(&float(value), facts), neutral, "{value}");
        }
        let root = Neutral::InverseRoot;
        assert!(root.holds(&float(1.0 / 80f32.sqrt()), Facts { head_dim: 80, ..facts }));
    }
}
