#!/usr/bin/env bash
# Train a small detector with EQLv2 on a CPU, then draw what it finds and its gradient ratios.
#
# Each call is a new run. The output of an earlier call is removed; a directory that this script
# did not make is left alone. DEMO_OUTPUT=path puts the output elsewhere.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
output="${DEMO_OUTPUT:-$LT_ROOT/output/demo}"
[[ "$output" == /* ]] || output="$PWD/$output"
cd "$LT_ROOT"
marker="$output/.made_by_demo"

if [[ -f "$marker" ]]; then
  echo "[demo] removing the earlier demo in $output"
  rm -rf "$output"
elif [[ -d "$output" && -n "$(ls -A "$output")" ]]; then
  echo "[demo] error: $output is not empty and was not made by this script;" \
    "move it away or choose another place: DEMO_OUTPUT=path tools/demo.sh" >&2
  exit 1
fi
mkdir -p "$output"
touch "$marker"

"$LT_PYTHON" tools/train_net.py --config-file configs/quick/lvis_eqlv2.yaml OUTPUT_DIR "$output"
"$LT_PYTHON" tools/visualize.py --run "$output"
"$LT_PYTHON" tools/plot_gradient_ratio.py --run "$output"
"$LT_PYTHON" tools/report.py "$output"

echo
"$LT_PYTHON" tools/show_results.py "$output"
echo
echo "[demo] pictures:"
find "$output" \( -name '*.png' -o -name '*.jpg' \) | sort | sed 's/^/  /'
echo "[demo] report: $output/report.html"
echo "[demo] log: $output/log.txt"
echo "[demo] curves: $LT_PYTHON -m tensorboard.main --logdir $output"
