#!/usr/bin/env bash
# What only a GPU can show, in one go of at most eight minutes on one H100 or H200: the tests marked
# gpu, and the benchmarks of loss, step and memory. It needs no Snakemake: only python3 with torch,
# transformers, accelerate, pyarrow and pytest, and a folder with wheels of what else is missing.
# Without a GPU it tries itself at small shapes, and what it writes says so.
#
#   tests/gpu/run.sh OUT [WHEELS]       writes OUT/gpu.json and OUT/gpu.md
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit
  export PYTHONPATH=$PYTHONPATH:$site
fi

# part NAME SECONDS COMMAND: run it with a limit of its own; keep what it prints, its time and status.
part() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "$name: $*" >&2
  timeout "$limit" "$@" > >(tee "$out/$name.txt") 2>"$out/$name.log"
  status=$?
  [ $status = 0 ] || tail -n 20 "$out/$name.log" >&2
  printf '%s\t%s\t%s\t%s\n' "$name" $status $((SECONDS - start)) "$*" >> "$out/parts.tsv"
}

rm -f "$out"/parts.tsv
if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  small=() memory=(0 2 5 --cuda)
  few=(--rounds 5 --presets rethinking_code sampled full many_faces_default)
else
  export OPD_TEST_DEVICE=cpu
  small=(--small) memory=(0)
  few=(--rounds 1 --presets rethinking_code full --vocabulary 1024 --hidden 32 --positions 128)
fi
part tests 240 python3 -m pytest -q -p no:cacheprovider -m gpu --durations=5 \
  tests/gpu tests/unit/training
part loss 90 python3 tests/bench/bench_loss.py "${few[@]}"
part step 120 python3 tests/bench/bench_step.py --steps 5 "${small[@]}"
part memory 60 python3 tests/bench/bench_memory.py "${memory[@]}"
python3 tests/gpu/summary.py "$out"
