#!/usr/bin/env python3
"""Decode attention by PyTorch's scaled_dot_product_attention, on the shapes of `headwise bench-gpu`.

K and V are contiguous, one tensor per case, which is kinder than pages are. Each case is timed in every
form that PyTorch offers for grouped queries, and the best counts:

  gqa      enable_gqa=True: query heads [batch, heads, 1, dim] over fewer KV heads
  rows     the group's heads as rows: [batch, kv_heads, group, dim], no causal mask
  math etc. the same under each backend that takes it

Data sets rotate so that no launch finds its K and V in the cache. Times are of the device, medians.

  python3 benches/peers/torch_sdpa.py --lengths 1024,32768 --batches 1,8 --json peers.json
"""

import argparse
import json
import statistics
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--lengths", type=numbers, default=[1 << 10, 4 << 10, 16 << 10, 32 << 10, 128 << 10])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 64])
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--memory", type=int, default=40, help="GiB of K and V in a case at most")
    parser.add_argument("--json", help="write the rows here")
    return parser.parse_args()


def median_seconds(torch, launch, samples=7, sample_seconds=3e-3):
    """Median time of one launch; each is told its number."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    turn = 0

    def sample(launches):
        nonlocal turn
        start.record()
        for _ in range(launches):
            launch(turn)
            turn += 1
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / launches

    sample(1)
    launches = max(1, min(512, int(sample_seconds / max(sample(2), 1e-7))))
    return statistics.median(sample(launches) for _ in range(samples))


def forms(torch, args):
    """(name, function of (q, k, v)) of every way to ask."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    heads = args.kv_heads * args.group
    shapes = {
        "gqa": lambda q, k, v: sdpa(q.view(-1, heads, 1, args.head_dim), k, v, enable_gqa=True),
        "rows": lambda q, k, v: sdpa(q, k, v),
    }
    backends = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    for shape, call in shapes.items():
        for name, backend in backends.items():
            if backend is None:
                yield f"{shape}/{name}", call
            else:
                def under(q, k, v, call=call, backend=backend):
                    with sdpa_kernel(backend):
                        return call(q, k, v)
                yield f"{shape}/{name}", under


def measure(torch, args, length, batch):
    dtype = getattr(torch, args.dtype)
    size = torch.finfo(dtype).bits // 8
    bytes_ = 2 * batch * args.kv_heads * length * args.head_dim * size
    row = {"peer": "torch SDPA", "dtype": args.dtype, "length": length, "batch": batch, "bytes": bytes_}
    if bytes_ > args.memory << 30:
        return row | {"left_out": f"over {args.memory} GiB"}
    sets = max(1, min(64, (1 << 30) // bytes_))
    random = lambda *shape: torch.randn(*shape, device="cuda", dtype=dtype)
    kv = [
        tuple(random(batch, args.kv_heads, length, args.head_dim) for _ in range(2)) for _ in range(sets)
    ]
    q = random(batch, args.kv_heads, args.group, args.head_dim)
    times, refused = {}, {}
    for name, call in forms(torch, args):
        try:
            times[name] = median_seconds(torch, lambda turn: call(q, *kv[turn % sets])) * 1e6
        except RuntimeError as error:
            refused[name] = str(error).strip().splitlines()[0][:120]
    if not times:
        return row | {"refused": refused}
    best = min(times, key=times.get)
    return row | {
        "form": best,
        "micros": times[best],
        "gbps": bytes_ / times[best] / 1e3,
        "all_micros": times,
        "refused": refused,
    }


def main():
    args = arguments()
    try:
        import torch
    except ImportError as error:
        sys.exit(f"torch_sdpa.py: {error}")
    if not torch.cuda.is_available():
        sys.exit("torch_sdpa.py: torch sees no CUDA device")
    import warnings

    # A backend that refuses says so as an error too, which is recorded.
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {args.dtype}")
    print(f"{'batch':>5} {'slots':>7} {'us':>10} {'GB/s':>7}  best form")
    rows = []
    for length in args.lengths:
        for batch in args.batches:
            row = measure(torch, args, length, batch)
            rows.append(row)
            if "micros" in row:
                print(f"{batch:>5} {length:>7} {row['micros']:>10.1f} {row['gbps']:>7.0f}  {row['form']}", flush=True)
            torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
