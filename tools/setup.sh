#!/usr/bin/env bash
# Prepare the Python that lt_det runs in. Run it, or source it from a script to get it as LT_PYTHON.
#
# An active virtual or conda environment that has torch is used as it is, and its torch is kept;
# so is a .venv that this script did not make. Otherwise it makes .venv in the repository, with
# the pair in tools/requirements-torch.txt.
# PYTHON=/path/to/python3 chooses the Python (3.10 to 3.13) for a new .venv.
set -euo pipefail

LT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
LT_VENV="$LT_ROOT/.venv"
# Only an environment with this file in it is ever removed, or has its torch replaced.
LT_MADE="$LT_VENV/.made_by_lt_det"

setup_say() { echo "[setup] $*"; }
setup_die() { echo "[setup] error: $*" >&2; exit 1; }

setup_find_python() {
  local name names=(python3.11 python3.12 python3.13 python3.10 python3 python)
  local probe='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
  [[ -z "${PYTHON:-}" ]] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if "$name" -c "$probe" >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  setup_die "no Python 3.10 to 3.13 with the venv module among: ${names[*]}." \
    "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it with PYTHON=path"
}

# $1: a Python that has torch? Without importing it, which takes seconds.
setup_has_torch() {
  "$1" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null
}

# The directory of the environment to use.
setup_prefix() {
  local prefix
  if [[ -z "${PYTHON:-}" ]]; then
    for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
      [[ -n "$prefix" && ! "$prefix" -ef "$LT_VENV" ]] || continue
      if setup_has_torch "$prefix/bin/python"; then
        echo "$prefix"
        return
      fi
      setup_say "the active environment $prefix has no torch: using .venv" >&2
    done
  fi
  echo "$LT_VENV"
}

# What an environment was set up from: when this changes, it is set up again.
setup_inputs() {
  local files=(setup.py tools/setup.sh tools/install_detectron2.py tools/requirements-torch.txt)
  echo "$LT_ROOT $("$1" -V 2>&1) $(cd "$LT_ROOT" && cat "${files[@]}" lt_det/environment.py | cksum)"
}

# Make .venv, unless there is one that works.
setup_make_venv() {
  local python wanted
  if "$LT_PYTHON" -m pip --version >/dev/null 2>&1; then
    [[ -n "${PYTHON:-}" ]] || return 0
    wanted="$("$PYTHON" -V 2>&1)"
    [[ "$wanted" == "$("$LT_PYTHON" -V 2>&1)" ]] || setup_die "PYTHON is $wanted, but .venv has" \
      "$("$LT_PYTHON" -V 2>&1). Unset PYTHON to use .venv, or remove .venv first"
    return 0
  fi
  [[ ! -e "$LT_VENV" || -f "$LT_MADE" ]] \
    || setup_die "$LT_VENV does not work and was not made by this script; move it away"
  python="$(setup_find_python)"
  setup_say "making .venv with $("$python" -V) ($python)"
  rm -rf "$LT_VENV"
  mkdir "$LT_VENV"
  touch "$LT_MADE"
  "$python" -m venv "$LT_VENV"
}

setup_main() {
  local prefix stamp kept pair="$LT_ROOT/tools/requirements-torch.txt"
  prefix="$(setup_prefix)"
  stamp="$prefix/.lt_det_setup"
  LT_PYTHON="$prefix/bin/python"
  if [[ "$prefix" == "$LT_VENV" && -n "${PYTHON:-}" && -e "$LT_VENV" ]]; then
    setup_make_venv # refuses if it is of another Python
  fi
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$(setup_inputs "$LT_PYTHON" 2>/dev/null)" ]]; then
    return 0
  fi

  [[ "$prefix" != "$LT_VENV" ]] || setup_make_venv
  rm -f "$stamp" # written last: an interrupted set-up is taken up again
  if [[ "$prefix" == "$LT_VENV" && -f "$LT_MADE" ]] || ! setup_has_torch "$LT_PYTHON"; then
    setup_say "torch and torchvision (about 3 GB to download the first time)"
    "$LT_PYTHON" -m pip install -q -r "$pair"
    if ! "$LT_PYTHON" -c 'import torch, torchvision' 2>/dev/null; then
      setup_say "they do not import, perhaps after an interrupted set-up: installing them again"
      "$LT_PYTHON" -m pip install -q --force-reinstall -r "$pair"
    fi
  else
    setup_say "using $prefix; its torch is kept"
  fi

  "$LT_PYTHON" "$LT_ROOT/tools/install_detectron2.py"

  setup_say "lt_det with its development tools"
  kept="$(mktemp)"
  "$LT_PYTHON" -m pip list --format=freeze 2>/dev/null \
    | grep -iE '^(torch|torchvision|numpy|pillow)==' >"$kept"
  "$LT_PYTHON" -m pip install -q -c "$kept" -e "$LT_ROOT[dev]"
  rm -f "$kept"

  setup_inputs "$LT_PYTHON" >"$stamp"
  setup_say "done: $LT_PYTHON"
}

setup_main
