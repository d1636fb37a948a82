#!/bin/sh
# Opening a model, before and after the header was read in one pass:
#   benches/open.sh [MODEL.gguf]
# Builds the bench at commit b8e76eb in a work tree of its own, runs it there and here. PROFILE=dev takes
# cargo's development profile, in which dependencies are optimised as well.
set -eu
[ $# -eq 0 ] || set -- "$(realpath "$1")"
cd "$(dirname "$0")/.."
before=${BEFORE:-b8e76eb}
profile=${PROFILE:-bench}
tree=$(mktemp -d)
trap 'git worktree remove --force "$tree" >/dev/null 2>&1 || rm -rf "$tree"' EXIT
git worktree add --quiet --detach "$tree" "$before"
cp benches/open.rs "$tree/benches/open.rs"
if ! grep -q 'name = "open"' "$tree/Cargo.toml"; then
    printf '\n[[bench]]\nname = "open"\nharness = false\nrequired-features = ["engine"]\n' >>"$tree/Cargo.toml"
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
for place in "$tree" .; do
    echo "$(git -C "$place" log -1 --format=%h):"
    cargo bench --quiet --profile "$profile" --manifest-path "$place/Cargo.toml" --bench open -- "$@"
done
