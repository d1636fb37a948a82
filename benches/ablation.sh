#!/usr/bin/env bash
# What each setting of kv-compress is worth: the continuation protocol, one changed at a time.
# Prints a table for each and leaves the JSON in OUT.
#
#   cargo build --release && benches/ablation.sh target/release/headwise TEXT OUT [more flags]
#
# More flags go to every run, such as --windows 3 for a quick look.
set -euo pipefail
(($# >= 3)) || { echo "usage: $0 BIN TEXT OUT [more flags]" >&2; exit 2; }
bin=$1 text=$2 out=$3
shift 3
mkdir -p "$out"

run() {
    local cost=$1 queries=$2 skip=$3
    shift 3
    local flags=(--policies kv-compress --cost "$cost" --queries "$queries" --skip-newest "$skip")
    printf '\n== %s\n' "${flags[*]}"
    "$bin" eval continuation --text "$text" "${flags[@]}" --json "$out/$cost-$queries-$skip.json" "$@"
}

# The default, then what a page costs.
run sum 256 32 "$@"
run max 256 32 "$@"
# How many queries count, and whether near attention does.
run sum 256 0 "$@"
run sum 32 32 "$@"
run sum 32 0 "$@"
# The published settings.
run max 32 0 "$@"
