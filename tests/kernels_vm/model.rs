//! A model's forward pass on the driver in host memory: its kernels' real PTX in the interpreter, products by
//! plain loops, attention by the host.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};
use headwise::{
    cuda::{CudaError, DeviceRows, DeviceRowsMut, Element, cublas::Gemm, driver::Stream},
    device::{DeviceError, Kernels},
    engine::{ContiguousKv, EngineError, GgufFile, Logits, ModelError, Span, cuda::DeviceKv},
};

use super::whole::{device, ran};
use crate::{
    fake::Fake,
    forward::{HostAttention, STORED, Stored, forward_agrees, forward_through_pages, load},
    gemm::HostGemm,
    tiny_llama::{Parts, TinyLlama},
};

const F16: Stored = STORED[0];

pub fn gemm() -> Box<dyn Gemm + Send> {
    Box::new(HostGemm)
}

/// A device with room for a tiny model.
pub fn roomy(test: impl FnOnce(&Fake, &Kernels)) {
    device(90, |fake, _, kernels| {
        fake.set("free", 1 << 30);
        test(fake, kernels);
    });
}

#[test]
fn logits_are_the_hosts_however_they_are_stored() {
    roomy(|_, kernels| {
        for stored in STORED {
            forward_agrees(kernels, &gemm, &TinyLlama::default(), stored);
        }
        let ran = ran();
        for kernel in ["embed", "rms_norm", "rope", "gate", "cast", "argmax"] {
            assert!(ran.contains(&format!("headwise_{kernel}")), "{kernel} in {ran:?}");
        }
    });
}

#[test]
fn logits_through_pages_of_the_device_are_the_hosts() {
    device(90, |fake, _, kernels| {
        fake.set("free", 1 << 30);
        for stored in [STORED[0], STORED[1], STORED[3]] {
            forward_through_pages(kernels, &gemm, &TinyLlama::default(), stored);
        }
    });
}

#[test]
fn logits_are_the_hosts_in_other_shapes() {
    roomy(|_, kernels| {
        let odd = TinyLlama {
            heads: 2,
            kv_heads: 1,
            head_dim: 80,
            feed_forward: 160,
            ..TinyLlama::default()
        };
        let untied =
            TinyLlama { tied: false, padding: 4, layers: 1, seed: 2, ..TinyLlama::default() };
        for tiny in [odd, untied] {
            forward_agrees(kernels, &gemm, &tiny, F16);
        }
    });
}

/// The file of a tiny model after `change`.
pub fn file(tiny: &TinyLlama, change: impl FnOnce(&mut Parts)) -> (tempfile::TempDir, GgufFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write_with(&path, change);
    let file = GgufFile::open(&path).unwrap();
    (folder, file)
}

pub fn quantized(values: Vec<f32>, shape: &[usize], kind: GgmlDType) -> QTensor {
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, kind).unwrap()
}

#[test]
fn a_device_without_the_memory_says_the_numbers() {
    device(90, |fake, _, kernels| {
        let (_folder, file) = file(&TinyLlama::default(), |_| {});
        fake.set("free", 1 << 30);
        let needed = load(&file, kernels, gemm(), F16).unwrap().weight_bytes();
        let refused = |free: usize| {
            let text = load(&file, kernels, gemm(), F16).err().unwrap().to_string();
            let said = format!(
                "the model's weights need {needed} bytes of device memory, {free} are free"
            );
            assert_eq!(text, said);
        };
        fake.set("free", needed as i32 - 1);
        refused(needed - 1);
        // Enough by what the driver says, and not by what it grants.
        fake.set("free", needed as i32);
        fake.fail("cuMemAlloc_v2", 2);
        refused(needed);
        fake.fail("", 0);
        assert!(load(&file, kernels, gemm(), F16).is_ok());
    });
}

#[test]
fn files_that_do_not_fit_are_refused_before_the_device_is_asked() {
    device(90, |fake, _, kernels| {
        // What would come first.
        fake.fail("cuMemAlloc_v2", 2);
        fake.set("free", 1 << 30);
        let tiny = TinyLlama::default();
        let error = |change: &dyn Fn(&mut Parts)| {
            let (_folder, file) = file(&tiny, change);
            load(&file, kernels, gemm(), F16).err().unwrap()
        };
        let missing =
            error(&|parts| parts.tensors.retain(|(name, _)| name != "blk.1.ffn_up.weight"));
        assert_eq!(missing.to_string(), "the model file has no tensor blk.1.ffn_up.weight");
        let more = error(&|parts| {
            let bias = quantized(vec![0.0; 64], &[64], GgmlDType::F32);
            parts.tensors.push(("blk.0.attn_q.bias".into(), bias));
        });
        assert!(matches!(more, EngineError::Model(ModelError::UnexpectedTensor(_))), "{more}");
        let shape = error(&|parts| {
            let key = parts.metadata.iter_mut().find(|(key, _)| key == "llama.feed_forward_length");
            key.unwrap().1 = Value::U32(97);
        });
        assert!(matches!(shape, EngineError::Model(ModelError::TensorShape { .. })), "{shape}");
        let other = Stored { weights: Element::F32, attention: Element::F32 };
        let (_folder, file) = file(&tiny, |_| {});
        let text = load(&file, kernels, gemm(), other).err().unwrap().to_string();
        assert_eq!(text, "the type of weights is f32, it must be f16 or bf16");
        let other = Stored { weights: Element::F16, attention: Element::Bf16 };
        let text = load(&file, kernels, gemm(), other).err().unwrap().to_string();
        assert_eq!(text, "the type of queries is bf16, it must be f32, or that of the weights");
    });
}

#[test]
fn a_weight_beyond_its_type_is_refused() {
    roomy(|_, kernels| {
        let (_folder, file) = file(&TinyLlama::default(), |parts| {
            let mut values = vec![0.5; 64 * 96];
            values[4321] = -1e5;
            let at = parts.tensors.iter().position(|(name, _)| name == "blk.1.ffn_down.weight");
            parts.tensors[at.unwrap()].1 = quantized(values, &[64, 96], GgmlDType::F32);
        });
        let text = load(&file, kernels, gemm(), F16).err().unwrap().to_string();
        assert_eq!(
            text,
            "tensor blk.1.ffn_down.weight has a weight of -100000, which f16 cannot hold"
        );
        assert!(load(&file, kernels, gemm(), STORED[2]).is_ok());
    });
}

/// Attention that fails in a layer.
struct Failing(usize);

impl DeviceKv for Failing {
    fn attend(
        &mut self,
        layer: usize,
        _: DeviceRows<'_>,
        _: DeviceRows<'_>,
        _: DeviceRows<'_>,
        _: DeviceRowsMut<'_>,
        _: &Stream,
    ) -> Result<(), EngineError> {
        if layer == self.0 { Err(EngineError::UnknownSequence(layer)) } else { Ok(()) }
    }
}

#[test]
fn steps_that_cannot_run_are_errors() {
    roomy(|fake, kernels| {
        let (_folder, file) = file(&TinyLlama::default(), |_| {});
        let mut model = load(&file, kernels, gemm(), F16).unwrap();
        let mut kv = Failing(0);
        let span = |tokens, position| Span { tokens, position, logits: Logits::Last };
        let mut run = |span| model.forward(&[span], &mut kv).unwrap_err();
        assert!(matches!(run(span(&[], 0)), EngineError::EmptySpan { span: 0 }));
        assert!(matches!(run(span(&[300], 0)), EngineError::TokenId { token: 300, vocab: 300 }));
        assert!(matches!(
            run(span(&[1, 2], 255)),
            EngineError::ContextExceeded { needed: 257, .. }
        ));
        assert!(matches!(run(span(&[1], 0)), EngineError::UnknownSequence(0)));
        let span = span(&[1], 0);
        let error = model.forward(&[span], &mut Failing(1)).unwrap_err();
        assert!(matches!(error, EngineError::UnknownSequence(1)));
        // No span at all is no error, and no logits.
        let kv = ContiguousKv::new(model.shape().clone());
        let stream = std::sync::Arc::clone(model.stream());
        let mut kv = HostAttention::new(kv, &stream);
        assert!(model.forward(&[], &mut kv).unwrap().is_empty());
        assert!(model.greedy(&[], &mut kv).unwrap().is_empty());
        // An error of the device is the step's, and the next one can run.
        let sequence = kv.kv.add_sequence();
        kv.kv.begin_step(&[(sequence, 1)]).unwrap();
        fake.fail("cuLaunchKernel", 2);
        let error = model.forward(&[span], &mut kv).unwrap_err();
        let launch = "cuLaunchKernel failed with code 2 (CUDA_ERROR_OUT_OF_MEMORY)";
        assert_eq!(error.to_string(), launch);
        fake.fail("", 0);
        assert_eq!(model.forward(&[span], &mut kv).unwrap().len(), 1);
    });
}

#[test]
fn another_devices_stream_is_refused() {
    device(90, |fake, _, kernels| {
        fake.set("devices", 2);
        let other = headwise::cuda::driver::Context::new(&fake.open().unwrap(), 1).unwrap();
        let (_folder, file) = file(&TinyLlama::default(), |_| {});
        let stream = std::sync::Arc::new(Stream::new(&other).unwrap());
        let setup = headwise::engine::cuda::DeviceSetup {
            kernels,
            gemm: gemm(),
            stream,
            weights: Element::F16,
            attention: Element::F32,
            progress: &|_| (),
        };
        let error = headwise::engine::cuda::DeviceModel::load(&file, setup).err().unwrap();
        let expected = EngineError::Device(DeviceError::Cuda(CudaError::OtherContext));
        assert_eq!(error.to_string(), expected.to_string());
    });
}
