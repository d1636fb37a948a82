#!/usr/bin/env python3
"""Paged decode attention by FlashInfer, on the shapes of `headwise bench-gpu`.

One page table per sequence, pages in no order, K and V in f16, tensor cores on and off; the better
counts. Plans are made outside the timed region, as engines do. Data sets rotate.

  python3 benches/peers/flashinfer_decode.py --lengths 1024,32768 --batches 1,8 --json peers.json
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_sdpa import median_seconds


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--lengths", type=numbers, default=[1 << 10, 4 << 10, 16 << 10, 32 << 10, 128 << 10])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 64])
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--memory", type=int, default=40, help="GiB of K and V in a case at most")
    parser.add_argument("--json", help="write the rows here")
    return parser.parse_args()


def measure(torch, flashinfer, args, length, batch, workspace):
    per_sequence = -(-length // args.page_size)
    pages = batch * per_sequence
    page_values = 2 * args.page_size * args.kv_heads * args.head_dim
    bytes_ = 2 * batch * args.kv_heads * length * args.head_dim * 2
    row = {"peer": "FlashInfer", "dtype": "float16", "length": length, "batch": batch, "bytes": bytes_}
    if bytes_ > args.memory << 30:
        return row | {"left_out": f"over {args.memory} GiB"}
    sets = max(1, min(64, (1 << 30) // bytes_))
    cache = torch.randn(
        sets * pages, 2, args.page_size, args.kv_heads, args.head_dim, device="cuda", dtype=torch.float16
    )
    heads = args.kv_heads * args.group
    q = torch.randn(batch, heads, args.head_dim, device="cuda", dtype=torch.float16)
    order = torch.randperm(sets * pages, dtype=torch.int32)
    indptr = torch.arange(0, pages + 1, per_sequence, dtype=torch.int32, device="cuda")
    last = torch.full((batch,), (length - 1) % args.page_size + 1, dtype=torch.int32, device="cuda")
    times, refused = {}, {}
    for tensor_cores in (True, False):
        name = "tensor cores" if tensor_cores else "CUDA cores"
        try:
            wrappers = []
            for s in range(min(sets, 8)):
                wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                    workspace[s], "NHD", use_tensor_cores=tensor_cores
                )
                indices = order[s * pages : (s + 1) * pages].cuda()
                wrapper.plan(
                    indptr, indices, last, heads, args.kv_heads, args.head_dim, args.page_size,
                    q_data_type=torch.float16, kv_data_type=torch.float16,
                )
                wrappers.append(wrapper)
            run = lambda turn: wrappers[turn % len(wrappers)].run(q, cache)
            times[name] = median_seconds(torch, run) * 1e6
        except Exception as error:  # whatever a build or a backend refuses is recorded
            refused[name] = str(error).strip().splitlines()[-1][:200] if str(error) else repr(error)
    if not times:
        return row | {"refused": refused}
    best = min(times, key=times.get)
    return row | {
        "form": best, "micros": times[best], "gbps": bytes_ / times[best] / 1e3,
        "all_micros": times, "refused": refused,
    }


def main():
    args = arguments()
    try:
        import torch
        import flashinfer
    except Exception as error:
        sys.exit(f"flashinfer_decode.py: {type(error).__name__}: {error}")
    if not torch.cuda.is_available():
        sys.exit("flashinfer_decode.py: torch sees no CUDA device")
    print(f"flashinfer {flashinfer.__version__}, pages of {args.page_size}")
    print(f"{'batch':>5} {'slots':>7} {'us':>10} {'GB/s':>7}  best form")
    workspace = [torch.empty(256 << 20, dtype=torch.uint8, device="cuda") for _ in range(8)]
    rows = []
    for length in args.lengths:
        for batch in args.batches:
            row = measure(torch, flashinfer, args, length, batch, workspace)
            rows.append(row)
            if "micros" in row:
                print(f"{batch:>5} {length:>7} {row['micros']:>10.1f} {row['gbps']:>7.0f}  {row['form']}", flush=True)
            elif "refused" in row:
                print(f"{batch:>5} {length:>7} refused: {row['refused']}", flush=True)
            torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"flashinfer": flashinfer.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
