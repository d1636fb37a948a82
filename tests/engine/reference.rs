//! A Llama forward pass in f64 and plain loops, written to be read.

use headwise::engine::{GgufFile, ModelConfig};

fn product(file: &GgufFile, name: &str, rows: usize, x: &[f64]) -> Vec<f64> {
    let weights = file.tensor(name, &[rows, x.len()]).unwrap();
    weights
        .chunks_exact(x.len())
        .map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
        .collect()
}

fn norm(file: &GgufFile, name: &str, epsilon: f32, x: &[f64]) -> Vec<f64> {
    let weights = file.tensor(name, &[x.len()]).unwrap();
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
    x.iter().zip(weights).map(|(x, w)| x * scale * f64::from(w)).collect()
}

fn turn(config: &ModelConfig, position: usize, heads: &mut [f64]) {
    for head in heads.chunks_exact_mut(config.layer().k_dim()) {
        for pair in 0..config.rope.dims / 2 {
            let exponent = -2.0 * pair as f64 / config.rope.dims as f64;
            let (sin, cos) = (position as f64 * config.rope.base.powf(exponent)).sin_cos();
            let (a, b) = (head[2 * pair], head[2 * pair + 1]);
            head[2 * pair] = a * cos - b * sin;
            head[2 * pair + 1] = a * sin + b * cos;
        }
    }
}

/// Logits of every token of one sequence.
pub fn logits(file: &GgufFile, tokens: &[u32]) -> Vec<Vec<f64>> {
    let config = ModelConfig::read(file).unwrap();
    let (layer, width) = (config.layer(), config.embedding);
    let (d, group) = (layer.k_dim(), layer.group());
    let table = file.tensor("token_embd.weight", &[config.embedding_rows, width]).unwrap();
    let mut stream: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&t| table[t as usize * width..][..width].iter().map(|&x| f64::from(x)).collect())
        .collect();
    for index in 0..config.cache.layers() {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter_mut().enumerate() {
            let normed = norm(file, &name("attn_norm"), config.rms_epsilon, x);
            let mut q = product(file, &name("attn_q"), layer.q_row(), &normed);
            let mut k = product(file, &name("attn_k"), layer.k_row(), &normed);
            turn(&config, position, &mut q);
            turn(&config, position, &mut k);
            keys.push(k);
            values.push(product(file, &name("attn_v"), layer.k_row(), &normed));
            let mut attended = vec![0.0; q.len()];
            for (head, out) in attended.chunks_exact_mut(d).enumerate() {
                let at = head / group * d;
                let weight = |k: &Vec<f64>| {
                    let dot: f64 =
                        q[head * d..][..d].iter().zip(&k[at..]).map(|(q, k)| q * k).sum();
                    (dot / (d as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys.iter().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for (out, value) in out.iter_mut().zip(&value[at..]) {
                        *out += weight / sum * value;
                    }
                }
            }
            let projected = product(file, &name("attn_output"), width, &attended);
            x.iter_mut().zip(projected).for_each(|(x, y)| *x += y);
            let normed = norm(file, &name("ffn_norm"), config.rms_epsilon, x);
            let gate = product(file, &name("ffn_gate"), config.feed_forward, &normed);
            let up = product(file, &name("ffn_up"), config.feed_forward, &normed);
            let gated: Vec<f64> =
                gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = product(file, &name("ffn_down"), width, &gated);
            x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
        }
    }
    let head = if file.tensor_shape("output.weight").is_some() {
        "output.weight"
    } else {
        "token_embd.weight"
    };
    stream
        .iter()
        .map(|x| {
            let x = norm(file, "output_norm.weight", config.rms_epsilon, x);
            let mut row = product(file, head, config.embedding_rows, &x);
            // The others stand for no token.
            row.truncate(config.vocab);
            row
        })
        .collect()
}
