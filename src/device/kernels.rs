//! The kernels: their sources, and what they are specialised for.
//!
//! Each file of `kernels/*.cu` is one kernel, `headwise_` and the file's name, compiled anew for every
//! page format, `head_dim`, query group and page size it meets: these are macros, so that the inner
//! loops know them. A kernel says how it wants to be launched in two constants of its module,
//! `headwise_*_threads` and `headwise_*_shared` (dynamic shared memory, in bytes).

use std::fmt;

use serde::Serialize;

use crate::{
    base::LayerShape,
    cuda::nvrtc::Source,
    format::{PageLayout, Region, SlotFormat},
};

/// What the kernels include.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("append.cuh", include_str!("../../kernels/append.cuh")),
    ("attend.cuh", include_str!("../../kernels/attend.cuh")),
    ("format.cuh", include_str!("../../kernels/format.cuh")),
    ("intrin.cuh", include_str!("../../kernels/intrin.cuh")),
    ("scan.cuh", include_str!("../../kernels/scan.cuh")),
    ("score.cuh", include_str!("../../kernels/score.cuh")),
    ("window.cuh", include_str!("../../kernels/window.cuh")),
    ("work.cuh", include_str!("../../kernels/work.cuh")),
];

/// The most channels of a head that the kernels have registers for.
pub const MOST_HEAD_DIM: usize = 256;

/// Makes [`KernelFile`] out of the list of files.
macro_rules! kernel_files {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One of the files in `kernels/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum KernelFile {
            $($(#[$doc])* $variant,)+
        }

        impl KernelFile {
            /// Every kernel.
            pub const ALL: &'static [KernelFile] = &[$(KernelFile::$variant,)+];

            /// The file's name without `.cu`.
            pub const fn name(self) -> &'static str {
                match self { $(KernelFile::$variant => $name,)+ }
            }

            /// The kernel's name in the module.
            pub const fn entry(self) -> &'static str {
                match self { $(KernelFile::$variant => concat!("headwise_", $name),)+ }
            }

            /// The module's constant with the threads of a block.
            pub const fn threads_constant(self) -> &'static str {
                match self { $(KernelFile::$variant => concat!("headwise_", $name, "_threads"),)+ }
            }

            /// The module's constant with the dynamic shared memory of a block.
            pub const fn shared_constant(self) -> &'static str {
                match self { $(KernelFile::$variant => concat!("headwise_", $name, "_shared"),)+ }
            }

            /// The module's constant with the most query rows of a work item, if it has one.
            pub const fn rows_constant(self) -> Option<&'static str> {
                match self {
                    KernelFile::Prefill => Some("headwise_prefill_rows"),
                    _ => None,
                }
            }

            /// The source, with what it includes.
            pub const fn source(self) -> Source<'static> {
                match self {
                    $(KernelFile::$variant => Source {
                        name: concat!($name, ".cu"),
                        text: include_str!(concat!("../../kernels/", $name, ".cu")),
                        headers: HEADERS,
                    },)+
                }
            }
        }
    };
}

kernel_files! {
    /// Encodes new rows into pages.
    Append = "append",
    /// Encodes a decode step's rows where its work items end, and counts them.
    AppendStep = "append_step",
    /// Attention of one query token per sequence.
    Decode = "decode",
    /// Joins the partial results of cut heads.
    Merge = "merge",
    /// Attention of a chunk of query tokens.
    Prefill = "prefill",
    /// Squared attention probabilities of the newest queries, per slot and query head.
    Score = "score",
    /// Scores at rest from those.
    ScorePool = "score_pool",
    /// What a decode step adds to the scores at rest.
    ScoreStep = "score_step",
    /// What the pages that a head could give up cost.
    Price = "price",
    /// Which slots die, and the moves that close the gaps.
    Select = "select",
    /// Moves slots.
    Compact = "compact",
    /// Copies pages.
    Copy = "copy",
    /// Decodes slots into rows.
    Gather = "gather",
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specialisation {
    /// The pages' layout, with format, `head_dim` and page size.
    pub layout: PageLayout,
    /// Query heads that read a KV head.
    pub group: usize,
    /// How queries, new keys and values, and outputs are stored: f32, f16 or bf16.
    pub io: SlotFormat,
    /// Whether `decode` also writes the scaled score of each slot.
    pub logits: bool,
    /// Whether `decode` has the copy engine bring pages (`cp.async.bulk`); needs sm_90 or newer.
    pub bulk: bool,
    /// What layers do beside plain attention.
    pub terms: Terms,
}

/// What a layer does beside scaling its scores. Kernels without a term have no code for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Terms {
    /// Queries see a window, and sinks.
    pub window: bool,
    /// Scores are held to a range.
    pub softcap: bool,
    /// Each query head has a logit without a value.
    pub sink_logits: bool,
}

impl Terms {
    /// None of them.
    pub const NONE: Self = Self { window: false, softcap: false, sink_logits: false };

    /// Those of a layer.
    pub fn of(layer: &LayerShape) -> Self {
        Self {
            window: layer.window().is_some(),
            softcap: layer.softcap().is_some(),
            sink_logits: layer.sink_logits().is_some(),
        }
    }
}

/// A list in words.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = [
            (self.window, "windows"),
            (self.softcap, "soft caps"),
            (self.sink_logits, "sink logits"),
        ];
        let names: Vec<_> = terms.into_iter().filter(|(there, _)| *there).map(|t| t.1).collect();
        if names.is_empty() {
            return f.write_str("plain attention");
        }
        f.write_str(&names.join(", "))
    }
}

impl Specialisation {
    /// For f32 queries and outputs, without scores, for layers of plain attention.
    pub fn new(layout: PageLayout, group: usize) -> Self {
        let (io, terms) = (SlotFormat::F32, Terms::NONE);
        Self { layout, group, io, logits: false, bulk: false, terms }
    }

    /// What `merge` is compiled for, beside `decode` for this.
    pub fn of_merge(&self) -> Self {
        let terms = Terms { sink_logits: self.terms.sink_logits, ..Terms::NONE };
        Self { logits: false, bulk: false, terms, ..*self }
    }

    /// What `score` is compiled for: log-sum-exps have the sink logits in them.
    pub fn of_score(&self) -> Self {
        let terms = Terms { sink_logits: false, ..self.terms };
        Self { logits: false, bulk: false, terms, ..*self }
    }

    /// The options that define the kernels' macros.
    pub fn defines(&self) -> Vec<String> {
        let layout = &self.layout;
        let mut options = vec![
            "--std=c++17".to_owned(),
            define("HEAD_DIM", layout.channels.k),
            define("GROUP", self.group),
            define("PAGE_BYTES", layout.page_bytes),
            define("PAGE_SLOTS", layout.slots),
            define("IO_FORMAT", number(self.io)),
        ];
        for (side, format, region) in
            [("K", layout.format.k, layout.k), ("V", layout.format.v, layout.v)]
        {
            let Region { payload, payload_stride, scales, scale_stride } = region;
            options.extend([
                define(&format!("{side}_FORMAT"), number(format)),
                define(&format!("{side}_PAYLOAD"), payload),
                define(&format!("{side}_PAYLOAD_STRIDE"), payload_stride),
                define(&format!("{side}_SCALES"), scales),
                define(&format!("{side}_SCALE_STRIDE"), scale_stride),
            ]);
        }
        if self.logits {
            options.push("-DHEADWISE_LOGITS".to_owned());
        }
        let Terms { window, softcap, sink_logits } = self.terms;
        let flags = [
            (self.bulk, "BULK"),
            (window, "WINDOW"),
            (softcap, "SOFTCAP"),
            (sink_logits, "SINK_LOGITS"),
        ];
        let set = flags.into_iter().filter(|(set, _)| *set);
        options.extend(set.map(|(_, name)| format!("-DHEADWISE_{name}")));
        options
    }
}

fn define(name: &str, value: usize) -> String {
    format!("-DHEADWISE_{name}={value}")
}

/// The number that stands for a format in the kernels.
fn number(format: SlotFormat) -> usize {
    match format {
        SlotFormat::F32 => 0,
        SlotFormat::F16 => 1,
        SlotFormat::Bf16 => 2,
        SlotFormat::I8 => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::Window, format::PageFormat};

    #[test]
    fn macros_carry_the_layout() {
        let format = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
        let layout = PageLayout::new(format, 128, 16_384).unwrap();
        let defines = Specialisation::new(layout, 4).defines();
        for expected in [
            "-DHEADWISE_K_FORMAT=3".to_owned(),
            "-DHEADWISE_V_FORMAT=1".to_owned(),
            "-DHEADWISE_IO_FORMAT=0".to_owned(),
            "-DHEADWISE_GROUP=4".to_owned(),
            format!("-DHEADWISE_PAGE_SLOTS={}", layout.slots),
            format!("-DHEADWISE_V_PAYLOAD={}", layout.v.payload),
            format!("-DHEADWISE_K_SCALES={}", layout.k.scales),
            "-DHEADWISE_K_SCALE_STRIDE=8".to_owned(),
        ] {
            assert!(defines.contains(&expected), "{expected} in {defines:?}");
        }
        assert!(!defines.iter().any(|d| d.contains("LOGITS") || d.contains("BULK")));
        let bulk = Specialisation { bulk: true, ..Specialisation::new(layout, 4) };
        assert!(bulk.defines().contains(&"-DHEADWISE_BULK".to_owned()));
    }

    /// Kernels are compiled once for all layers that they treat alike.
    #[test]
    fn macros_say_what_layers_do() {
        let layout = PageLayout::new(PageFormat::default(), 64, 8192).unwrap();
        let layer = LayerShape::new(2, 8, 64).unwrap().windowed(Window::of(512)).unwrap();
        let layer = layer.softcapped(50.0).unwrap().with_sink_logits(vec![0.0; 8]).unwrap();
        let terms = Terms::of(&layer);
        assert_eq!(terms.to_string(), "windows, soft caps, sink logits");
        assert_eq!(Terms::NONE.to_string(), "plain attention");
        let of = Specialisation { logits: true, terms, ..Specialisation::new(layout, 4) };
        let flags = |of: Specialisation| {
            let named = ["WINDOW", "SOFTCAP", "SINK_LOGITS"];
            let defines = of.defines();
            named.map(|name| defines.contains(&format!("-DHEADWISE_{name}")))
        };
        assert_eq!(flags(of), [true; 3]);
        assert_eq!(flags(of.of_merge()), [false, false, true]);
        assert_eq!(flags(of.of_score()), [true, true, false]);
        assert!(!of.of_merge().logits && !of.of_score().logits);
        assert_eq!(flags(Specialisation::new(layout, 4)), [false; 3]);
    }

    /// A kernel that is asked for by name exists under that name.
    #[test]
    fn sources_define_what_their_names_promise() {
        for &file in KernelFile::ALL {
            let text = file.source().text;
            let names = [file.entry(), file.threads_constant(), file.shared_constant()];
            for name in names.into_iter().chain(file.rows_constant()) {
                assert!(text.contains(name), "{name} in {}", file.source().name);
            }
            let format = HEADERS.iter().find(|(name, _)| *name == "format.cuh").unwrap().1;
            assert!(format.contains(&format!("D <= {MOST_HEAD_DIM},")));
            for line in text.lines().filter_map(|line| line.strip_prefix("#include ")) {
                let header = line.trim().trim_matches('"');
                assert!(HEADERS.iter().any(|(name, _)| *name == header), "{header}");
            }
        }
    }
}
