#!/usr/bin/env python3
"""One short table out of what benches/gpu/run.sh left in a folder: decode in f16 beside its peers.

  python3 benches/gpu/summary.py OUT
"""

import json
import os
import sys


def load(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def peer(data, length, batch):
    for row in (data or {}).get("rows", []):
        if (row["length"], row["batch"]) == (length, batch) and "micros" in row:
            return row
    return None


def main():
    folder = sys.argv[1]
    bench = load(folder, "bench.json")
    if bench is None:
        sys.exit("summary.py: no bench.json")
    torch, flashinfer = load(folder, "torch.json"), load(folder, "flashinfer.json")
    checks = bench["checks"]
    print(f"{bench['device']['name']}: {sum(c['passed'] for c in checks)} of {len(checks)} checks right")
    print(f"copy {bench['copy_gbps']:.0f} GB/s; f16 decode, better of both ways to bring pages")
    print("batch   slots    GB/s  of copy  ragged   i8 x   torch x  flashinfer x")
    rows = bench["decode"]

    def best(form, length, batch, ragged):
        found = [
            r for r in rows
            if (r["format"], r["length"], r["batch"], r["ragged"]) == (form, length, batch, ragged)
        ]
        return min(found, key=lambda r: r["micros"]) if found else None

    formats = []
    for row in rows:
        if row["format"] not in formats:
            formats.append(row["format"])
    both = lambda name: next((f for f in formats if f == name or f == {"k": name, "v": name}), None)
    f16, i8 = both("f16"), both("i8")
    for length in bench["plan"]["lengths"]:
        for batch in bench["plan"]["batches"]:
            ours = best(f16, length, batch, False)
            if ours is None:
                continue
            ragged, small = best(f16, length, batch, True), best(i8, length, batch, False)
            times = [peer(data, length, batch) for data in (torch, flashinfer)]
            ratio = lambda row: f"{row['micros'] / ours['micros']:.2f}" if row else "-"
            print(
                f"{batch:>5} {length:>7} {ours['gbps']:>7.0f} {100 * ours['share']:>7.0f}% "
                f"{ours['gbps'] / ragged['gbps']:>7.2f} "
                f"{ours['micros'] / small['micros'] if small else float('nan'):>6.2f} "
                f"{ratio(times[0]):>9} {ratio(times[1]):>13}"
            )
    serving = load(folder, "serving.json")
    if serving is not None:
        print("serving.json is there too")


if __name__ == "__main__":
    main()
