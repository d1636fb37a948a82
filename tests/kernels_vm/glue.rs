//! What `bench-serving` puts between products and attention.

use half::f16;
use headwise::{
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    measure::{
        serving::Glue,
        verify::{Noise, largest_error},
    },
};

use super::whole::device;

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&v| f16::from_f32(v)).collect()
}

fn floats(values: &[f16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    let error = largest_error(got, expected);
    assert!(error <= tolerance, "{what}: {error}");
}

#[test]
fn glue_is_what_plain_loops_say() {
    device(90, |_, context, kernels| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 1 << 16).unwrap();
        let glue = Glue::new(kernels, &stream).unwrap();
        let mut noise = Noise::new(4);
        let (rows, hidden, vocab) = (3, 70, 1030);
        let table = halves(&noise.values(vocab * hidden));
        let weight = halves(&noise.values(hidden));
        let y = halves(&noise.values(rows * hidden));
        let ids = [7u32, 1029, 0];
        let (heads, dim, stride) = (3, 16, 50);
        let qkv = halves(&noise.values(rows * stride));
        let turns = noise.values(9 * dim);
        let mlp = 600;
        let gate_up = halves(&noise.values(2 * rows * mlp));
        let mut logits = halves(&noise.values(rows * vocab));
        // The first of equal ones, wherever threads find them.
        (logits[300], logits[812]) = (f16::from_f32(3.0), f16::from_f32(3.0));
        let mut put = |bytes: &[u8]| {
            let mut buffer = DeviceBuffer::new(context, bytes.len()).unwrap();
            staging.upload(&stream, &mut buffer, [(0, bytes)]).unwrap();
            buffer
        };
        let ids_at = put(bytemuck::cast_slice(&ids));
        let tokens = put(bytemuck::cast_slice(&[4u32, 8, 1]));
        let table_at = put(bytemuck::cast_slice(&table));
        let weight_at = put(bytemuck::cast_slice(&weight));
        let y_at = put(bytemuck::cast_slice(&y));
        let qkv_at = put(bytemuck::cast_slice(&qkv));
        let turns_at = put(bytemuck::cast_slice(&turns));
        let gate_up_at = put(bytemuck::cast_slice(&gate_up));
        let logits_at = put(bytemuck::cast_slice(&logits));
        let empty = |values: usize| DeviceBuffer::new(context, 2 * values).unwrap();
        let (x, h, h_2) = (empty(rows * hidden), empty(rows * hidden), empty(rows * hidden));
        let (act, best) = (empty(rows * mlp), empty(2 * rows));
        let of = DeviceBuffer::address;
        // SAFETY: every buffer has the rows that the sizes name.
        unsafe {
            let addresses = [&ids_at, &tokens, &table_at, &x, &h, &weight_at].map(of);
            glue.embed(rows, hidden, addresses, &stream).unwrap();
            let addresses = [&x, &y_at, &h_2, &weight_at].map(of);
            glue.add_norm(rows, hidden, addresses, &stream).unwrap();
            let addresses = [&qkv_at, &tokens, &turns_at].map(of);
            glue.rope(rows, [heads, dim, stride], addresses, &stream).unwrap();
            glue.silu(rows, mlp, [&gate_up_at, &act].map(of), &stream).unwrap();
            glue.argmax(rows, vocab, [&logits_at, &best].map(of), &stream).unwrap();
        }
        let mut get = |buffer: &DeviceBuffer| {
            let mut bytes = vec![0u8; buffer.bytes()];
            let range = 0..bytes.len();
            let range = std::slice::from_ref(&range);
            staging.download(&stream, buffer, range, &mut bytes).unwrap();
            bytes
        };
        let mut values = |buffer: &DeviceBuffer| -> Vec<f32> {
            get(buffer).chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        };
        let weight = floats(&weight);
        let norm = |x: &[f32]| -> Vec<f32> {
            let mean = x.iter().map(|v| v * v).sum::<f32>() / hidden as f32;
            x.iter().zip(&weight).map(|(v, w)| v * w / (mean + 1e-5).sqrt()).collect()
        };
        let embedded = |row: usize| floats(&table[ids[row] as usize * hidden..][..hidden]);
        let added = |row: usize| -> Vec<f32> {
            let y = floats(&y[row * hidden..][..hidden]);
            embedded(row).iter().zip(&y).map(|(a, b)| a + b).collect()
        };
        let all = |of: &dyn Fn(usize) -> Vec<f32>| -> Vec<f32> { (0..rows).flat_map(of).collect() };
        close("h", &values(&h), &all(&|row| norm(&embedded(row))), 2e-3);
        close("x", &values(&x), &all(&added), 2e-3);
        close("h after", &values(&h_2), &all(&|row| norm(&added(row))), 2e-3);
        let turned = all(&|row| {
            let mut turned = floats(&qkv[row * stride..][..stride]);
            let position = [4, 8, 1][row];
            for head in 0..heads {
                for i in 0..dim / 2 {
                    let [cosine, sine] = [0, 1].map(|j| turns[(position * dim / 2 + i) * 2 + j]);
                    let (a, b) = (head * dim + i, head * dim + i + dim / 2);
                    (turned[a], turned[b]) = (
                        turned[a] * cosine - turned[b] * sine,
                        turned[b] * cosine + turned[a] * sine,
                    );
                }
            }
            turned
        });
        close("rope", &values(&qkv_at), &turned, 2e-3);
        let gated = all(&|row| {
            let row = floats(&gate_up[2 * row * mlp..][..2 * mlp]);
            (0..mlp).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[mlp + i]).collect()
        });
        close("silu", &values(&act), &gated, 2e-3);
        let largest = |row: &[f16]| {
            let best = row.iter().copied().fold(f16::NEG_INFINITY, f16::max);
            row.iter().position(|&v| v == best).unwrap() as u32
        };
        let want: Vec<u32> = logits.chunks(vocab).map(largest).collect();
        let words = |bytes: Vec<u8>| -> Vec<u32> {
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        assert_eq!(words(get(&best)), want);
        assert_eq!(want[0], 300);
        assert_eq!(words(get(&tokens)), [5, 9, 2], "each step counts a token");
    });
}
