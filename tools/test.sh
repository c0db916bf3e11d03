#!/usr/bin/env bash
# Run the whole test suite; arguments go to pytest: tools/test.sh tests/losses -k eqlv2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$LT_ROOT"

# A test opens a report in a browser. Where none can be installed, it says how to get one.
test_provide_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    ! command -v "$name" >/dev/null || return 0
  done
  [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null || return 0
  setup_say "chromium, in which a test opens a report (apt-get)"
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends chromium; } >/dev/null 2>&1; then
    setup_say "it could not be installed"
  fi
}
test_provide_browser

# The tensors of the tests are small and some tests start two processes: more than 4 threads cost
# more than they give.
if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
  cores="$(getconf _NPROCESSORS_ONLN)"
  export OMP_NUM_THREADS=$((cores < 4 ? cores : 4))
fi
# pytest would keep the files of the last three runs, gigabytes; those of failed tests are enough.
exec "$LT_PYTHON" -m pytest -o tmp_path_retention_policy=failed "$@"
