#!/usr/bin/env bash
# What there is to know about minigpt on a GPU:  bash bench/device.sh [PART ...]
#
# It needs CuPy, ml_dtypes and pytest; with pytest-xdist the tests run side by side, with torch the
# benches compare. Logs and records go to $OUT. A part that fails or is late does not stop the
# others; the exit code is then 1. All of it takes a quarter of an hour; in two calls:
#
#   bash bench/device.sh nvidia doctor registers tests memcheck racecheck synccheck initcheck \
#     resume dates
#   bash bench/device.sh host ceilings attention step baby bfloat16 half sample
#
# MINIGPT_CORPUS names a copy of tiny Shakespeare where nothing can be downloaded. REHEARSE=1 runs
# the same commands on small sizes where CuPy's kernels run on the CPU: figures mean nothing there.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export OUT=${OUT:-/tmp/minigpt-gpu} REHEARSE=${REHEARSE:-} python=${PYTHON:-python3}
mkdir -p "$OUT"
work=$(mktemp -d) && export work
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-/tmp/cupy}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
names=$(sed -n 's/^part \([a-z0-9]*\) .*/\1/p' bench/device.sh | tr '\n' ' ')
for name in "$@"; do
    [[ " all $names" == *" $name "* ]] || { echo "no part $name; there are: $names" >&2 && exit 2; }
done
parts=" ${*:-all} "
failed=0

part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS rc
    shift 2
    [[ $parts == *" all "* || $parts == *" $name "* ]] || return 0
    [[ -z $REHEARSE ]] || limit=$((5 * limit))
    timeout -k 5 "$limit" bash -c '"$@"' bash "$@" >"$OUT/$name.log" 2>&1
    rc=$?
    ((rc == 0)) || failed=1
    tail -n 8 "$OUT/$name.log"
    echo "== $name: rc $rc, $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
}

pick() { # pick VALUE SMALL: the second in a rehearsal
    if [[ -z $REHEARSE ]]; then echo "$1"; else echo "$2"; fi
}

nvidia() { if [[ -z $REHEARSE ]]; then nvidia-smi; fi; }

tests() { # in a rehearsal one file of them
    local beside=()
    "$python" -c "import xdist" 2>/dev/null && beside=(-n "$(pick 12 1)")
    # shellcheck disable=SC2046
    "$python" -m pytest -q --maxfail=30 -m cupy --backend cupy -p no:cacheprovider \
        "${beside[@]}" $(pick tests tests/ops/test_dropout.py)
}

device() { # device PART ARGUMENT...: bench/device.py
    "$python" bench/device.py "--$1" "${@:2}" --json "$OUT/$1.json" ${REHEARSE:+--rehearse}
}

sanitize() { # sanitize TOOL OPTION...: tiny models under compute-sanitizer, without cuBLAS's kernels
    local others="kns=gemm,kns=nvjet,kns=cublas"
    local tool=(compute-sanitizer --tool "$@" --error-exitcode 9 --kernel-name-exclude "$others")
    if [[ -n $REHEARSE ]]; then tool=(env); fi
    "${tool[@]}" "$python" bench/device.py --tiny ${REHEARSE:+--rehearse}
}

train() { # train FOLDER DATA ARGUMENT...: a run below $work; DATA is that of a rehearsal
    local small=()
    if [[ -n $REHEARSE ]]; then
        small=(--data "tests/data/old/$2" --n-layer 1 --n-embd 32 --n-head 2 --block-size 32)
        small+=(--batch-size 2 --log-interval 1 --warmup-iters 1)
    fi
    "$python" -m minigpt.train --backend cupy --out-dir "$work/$1" "${@:3}" "${small[@]}"
}

shakespeare() { # shakespeare FOLDER STEPS ARGUMENT...: nanogpt-baby, and what it reached
    train "$1" text.txt --preset nanogpt-baby --max-iters "$2" --eval-interval "$(pick 500 2)" "${@:3}" &&
        cp "$work/$1/metrics.jsonl" "$OUT/$1.jsonl"
}

resumed() { # two runs, one of them interrupted, with the same metrics and weights
    local all half
    all=$(pick 80 4) half=$(pick 40 2)
    local run=(--preset nanogpt-cpu --eval-interval "$half" --lr-decay-iters "$all")
    train whole text.txt "${run[@]}" --max-iters "$all" &&
        train parts text.txt "${run[@]}" --max-iters "$half" &&
        "$python" -m minigpt.train --backend cupy --resume --out-dir "$work/parts" \
            --max-iters "$all" && "$python" bench/device.py --same "$work/whole" "$work/parts"
}

# The sizes of the benches: those of the models, or the smallest.
if [[ -z $REHEARSE ]]; then
    shapes=(64,6,256,64 16,12,1024,64 2,12,4096,64)
    step=(--preset nanogpt-cpu nanogpt-baby gpt2 --seconds 3)
    sample=(--model nanogpt-baby --seconds 3)
else
    shapes=(1,2,33,64)
    step=(--preset nanogpt-cpu --batch-size 2 --block-size 8 --seconds 0.01 --square 64)
    sample=(--model nanogpt-cpu --batch 2 --prompt-tokens 5 --new-tokens 2 --seconds 0.01)
fi
types=(float32 float16 bfloat16)
export -f pick nvidia tests device sanitize train shakespeare resumed

part nvidia 20 nvidia
part doctor 90 "$python" -m minigpt.backend
part registers 90 device registers
part tests 270 tests
part memcheck 150 sanitize memcheck
part racecheck 150 sanitize racecheck --racecheck-detect-level error
part synccheck 150 sanitize synccheck
part initcheck 150 sanitize initcheck
part resume 90 resumed
part dates 120 train dates pairs.tsv --task seq2seq --max-iters "$(pick 300 2)" \
    --eval-interval "$(pick 300 2)"
part host 60 device host --preset nanogpt-cpu nanogpt-baby --seconds "$(pick 5 0.01)"
part ceilings 90 device ceilings --preset $(pick "nanogpt-baby gpt2" nanogpt-baby)
part attention 120 "$python" bench/attention.py --backend cupy --dtype "${types[@]}" --no-memory \
    --seconds "$(pick 0.4 0.01)" --shapes "${shapes[@]}" --json "$OUT/attention.json"
part step 240 "$python" bench/step.py --backend cupy --dtype float32 "$(pick tf32 float16)" \
    bfloat16 --compile "$(pick bfloat16 float32)" "${step[@]}" --json "$OUT/step.json"
part baby 200 shakespeare baby "$(pick 5000 2)" --dtype "$(pick tf32 float32)"
part bfloat16 120 shakespeare bfloat16 "$(pick 5000 2)" --dtype bfloat16
part half 90 shakespeare half "$(pick 500 2)" --dtype float16
part sample 90 "$python" bench/sample.py --backend cupy --dtype float32 \
    "$(pick bfloat16 float16)" "${sample[@]}" --json "$OUT/sample.json"
cat "$OUT/summary.txt"
exit "$failed"
