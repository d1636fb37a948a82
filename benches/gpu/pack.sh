#!/usr/bin/env bash
# Builds what benches/gpu/run.sh takes along into a folder: stripped release binaries.
#
#   benches/gpu/pack.sh BIN
set -euo pipefail
mkdir -p "$1"
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
cargo build --release --no-default-features --features measure,cli
test=$(cargo test --release --no-default-features --features measure,cli --test cuda_device --no-run \
    --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "cuda_device":
        print(message["executable"])')
cp "$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/headwise" "$bin/headwise"
cp "$test" "$bin/cuda_device"
strip "$bin/headwise" "$bin/cuda_device"
du -h "$bin"/*
