#!/usr/bin/env bash
# Run the whole test suite; arguments go to pytest: tools/test.sh tests/losses -k eqlv2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$LT_ROOT"

# The tensors of the tests are small and some tests start two processes: more than 4 threads cost
# more than they give.
if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
  cores="$(getconf _NPROCESSORS_ONLN)"
  export OMP_NUM_THREADS=$((cores < 4 ? cores : 4))
fi
exec "$LT_PYTHON" -m pytest "$@"
