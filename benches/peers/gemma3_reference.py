#!/usr/bin/env python3
"""Gemma 3 by Hugging Face's transformers, from the GGUF file that headwise reads: perplexity and greedy text.

Everything is f32 on the CPU over dequantised weights, attention in plain matrix products. Ids are those of
the `sentencepiece` package for the file's own vocabulary. A window is --context tokens: the BOS, then
--context - 1 tokens of the text; the first windows are measured, and each token but the BOS is predicted, as
`headwise eval perplexity` does. Then --generate tokens follow the BOS and --prompt, the likeliest each time.

  pip install transformers==5.24.0 torch gguf sentencepiece protobuf accelerate
  python3 benches/peers/gemma3_reference.py --gguf gemma-3-270m-q4_k_m.gguf --text T --chars 80000 --json out.json

`gap` in the result is by how much the likeliest token's logit was above the second's.
"""

import argparse
import json
import os

import torch
from transformers import AutoModelForCausalLM

from sentencepiece_ids import processor, real


def load(path):
    folder, name = os.path.split(os.path.abspath(path))
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def nll(model, window):
    hidden = model.model(torch.tensor([window])).last_hidden_state[0, :-1]
    targets = torch.tensor(window[1:])
    # Few rows at a time: one is a megabyte.
    parts = zip(hidden.split(128), targets.split(128))
    loss = torch.nn.functional.cross_entropy
    return sum(loss(model.lm_head(x), y, reduction="none").double().sum().item() for x, y in parts)


def greedy(model, ids, count):
    made, gaps, past, fed = [], [], None, torch.tensor([ids])
    for _ in range(count):
        out = model(fed, past_key_values=past, use_cache=True)
        past, best = out.past_key_values, out.logits[0, -1].topk(2)
        made.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 5))
        fed = torch.tensor([[made[-1]]])
    return made, gaps


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chars", type=int, default=80000)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--prompt", default="The river rises in the mountains and")
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    tokens, scores, types, space_first = real(arguments.gguf)
    vocabulary = processor(tokens, scores, types, space_first)
    bos = tokens.index("<bos>")
    with open(arguments.text, encoding="utf-8") as file:
        text = vocabulary.encode(file.read()[: arguments.chars])
    model = load(arguments.gguf)
    print(model.config, flush=True)

    sums, step = [], arguments.context - 1
    for first in range(0, arguments.windows * step, step):
        sums.append(nll(model, [bos] + text[first : first + step]))
        print(f"window at {first}: {torch.tensor(sums[-1] / step).exp():.4f}", flush=True)
    made, gaps = greedy(model, [bos] + vocabulary.encode(arguments.prompt), arguments.generate)
    result = {
        "text_tokens": len(text),
        "windows": [sum / step for sum in sums],
        "perplexity": torch.tensor(sum(sums) / (step * len(sums)), dtype=torch.float64).exp().item(),
        "prompt": arguments.prompt,
        "ids": made,
        "gap": gaps,
        "text": vocabulary.decode(made),
    }
    print(json.dumps({key: result[key] for key in ("text_tokens", "windows", "perplexity", "text")}))
    print(f"smallest gap {min(gaps)} at {gaps.index(min(gaps))}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
