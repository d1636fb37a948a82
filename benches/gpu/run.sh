#!/usr/bin/env bash
# Everything that a GPU can tell about headwise, in one call of under ten minutes, on a machine that has
# a driver, NVRTC (or a CUDA toolkit) and python3 with torch, and needs neither Rust nor a network.
#
#   benches/gpu/run.sh BIN OUT [STAGE…]
#
# BIN holds the release binaries `headwise` and `cuda_device` (benches/gpu/pack.sh makes it), OUT takes
# logs and JSON. Stages, all by default: machine tests bench peers sanitize counters serving summary.
# A stage that fails or has no tool says so, and the rest run on; the exit status is that of the stages
# that must pass: tests, bench, sanitize.
set -uo pipefail

bin=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2
stages=${*:-machine tests bench peers sanitize counters serving summary}
here=$(cd "$(dirname "$0")" && pwd)
failed=""
begin=$SECONDS

# HEADWISE_BENCH_ARGS narrows the grid, as `--lengths 1024,4096 --batches 8`.
read -ra grid <<<"${HEADWISE_BENCH_ARGS:-}"

# NVRTC: where the caller says, or with the toolkit, or in torch's own packages.
if [ -z "${HEADWISE_NVRTC:-}" ]; then
    for folder in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
        "$(python3 -c 'import nvidia.cu13, os; print(os.path.join(list(nvidia.cu13.__path__)[0], "lib"))' 2>/dev/null)" \
        "$(python3 -c 'import nvidia.cuda_nvrtc as m, os; print(os.path.join(list(m.__path__)[0], "lib"))' 2>/dev/null)"; do
        if compgen -G "$folder/libnvrtc.so*" >/dev/null; then
            export HEADWISE_NVRTC=$folder
            break
        fi
    done
fi
if [ -z "${HEADWISE_CUBLAS:-}" ]; then
    for folder in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
        "$(python3 -c 'import nvidia.cu13, os; print(os.path.join(list(nvidia.cu13.__path__)[0], "lib"))' 2>/dev/null)"; do
        if compgen -G "$folder/libcublas.so*" >/dev/null; then
            export HEADWISE_CUBLAS=$folder
            break
        fi
    done
fi
export HEADWISE_CACHE=${HEADWISE_CACHE:-$out/cache}

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - begin)); }
# must STAGE SECONDS COMMAND…: a failure is the script's.
must() {
    local stage=$1 limit=$2
    shift 2
    timeout "$limit" "$@" 2>&1 | tee "$out/$stage.log"
    local status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "FAILED: $stage, status $status"
        failed="$failed $stage"
    fi
}
# may STAGE SECONDS COMMAND…: a failure is said.
may() {
    local stage=$1 limit=$2
    shift 2
    timeout "$limit" "$@" >"$out/$stage.log" 2>&1 || echo "not done: $stage: $(tail -n 1 "$out/$stage.log")"
    tail -n 40 "$out/$stage.log"
}

for stage in $stages; do
    say "$stage"
    case $stage in
    machine)
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
        echo "NVRTC: ${HEADWISE_NVRTC:-by name}; cuBLAS: ${HEADWISE_CUBLAS:-by name}"
        ;;
    tests) must tests 240 "$bin/cuda_device" ;;
    bench) must bench 300 "$bin/headwise" bench-gpu "${grid[@]}" --json "$out/bench.json" ;;
    peers)
        may torch 90 python3 "$here/../peers/torch_sdpa.py" "${grid[@]}" --json "$out/torch.json"
        may flashinfer 150 python3 "$here/../peers/flashinfer_decode.py" "${grid[@]}" --json "$out/flashinfer.json"
        ;;
    sanitize)
        if ! command -v compute-sanitizer >/dev/null; then
            echo "not done: no compute-sanitizer here"
            continue
        fi
        for tool in memcheck racecheck; do
            must "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$bin/headwise" bench-gpu --only checks --format f16 i8
        done
        ;;
    counters)
        may counters 90 ncu --clock-control none --kernel-name regex:headwise_decode \
            --launch-skip 4 --launch-count 2 \
            --metrics dram__bytes_read.sum,lts__t_sectors_srcunit_tex_op_read.sum,gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active,smsp__inst_executed.sum \
            "$bin/headwise" bench-gpu --only decode --lengths 32768 --batches 8 --format f16
        ;;
    serving) may serving 200 "$bin/headwise" bench-serving --json "$out/serving.json" ;;
    summary) python3 "$here/summary.py" "$out" ;;
    *) echo "no stage $stage" && exit 2 ;;
    esac
done
say "done"
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
