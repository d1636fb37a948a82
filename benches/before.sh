#!/bin/sh
# A bench of this commit beside the same bench of the first version, in one run:
#   benches/before.sh BENCH [ARGUMENT]...
# BENCH is attend, evict, open, plan or pool; the arguments go to the bench. The first version is commit
# b8e76eb (BEFORE names another), built in a work tree of its own. Where it has the bench, its own file is
# taken; `open` and `plan` came later and are put in, `plan` without what that version could not do.
# ROUNDS (2) is how often the two take turns. PROFILE=dev builds sooner, with dependencies optimised as well.
set -eu
[ $# -ge 1 ] || { sed -n '2,7s/^# *//p' "$0" >&2; exit 2; }
bench=$1
shift
# A relative path names a file of the caller's folder.
for argument; do
    shift
    [ ! -f "$argument" ] || argument=$(realpath "$argument")
    set -- "$@" "$argument"
done
cd "$(dirname "$0")/.."
before=${BEFORE:-b8e76eb}
features=
[ "$bench" != open ] || features="--features engine"
tree=$(mktemp -d)
trap 'git worktree remove --force "$tree" >/dev/null 2>&1 || rm -rf "$tree"' EXIT
git worktree add --quiet --detach "$tree" "$before"
if ! grep -q "name = \"$bench\"" "$tree/Cargo.toml"; then
    printf '\n[[bench]]\nname = "%s"\nharness = false\n' "$bench" >>"$tree/Cargo.toml"
    grep -q '^rustix' "$tree/Cargo.toml" ||
        sed -i '/^\[dev-dependencies\]/a rustix = { version = "1", features = ["time"] }' "$tree/Cargo.toml"
    sed -e '/^fn mapping/,/^}/d; s/, mapping$//; s/\.begin_moves()//' \
        "benches/$bench.rs" >"$tree/benches/$bench.rs"
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
bench() { # the checkout, then what follows `--bench NAME`
    place=$1
    shift
    # shellcheck disable=SC2086 # features are words
    cargo bench --quiet --profile "${PROFILE:-bench}" --no-default-features $features \
        --manifest-path "$place/Cargo.toml" --bench "$bench" "$@"
}
bench "$tree" --no-run
bench . --no-run
for round in $(seq "${ROUNDS:-2}"); do
    for place in "$tree" .; do
        echo "== $(git -C "$place" log -1 --format=%h), round $round"
        bench "$place" -- "$@"
    done
done
