#!/usr/bin/env bash
# Runs an experiment in an environment of its own:   ./launch.sh EXPERIMENT [--flag=value ...]
# PYTHON=/path/to/python chooses the interpreter, VENV=folder the environment (default .venv).
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
venv=${VENV:-.venv}

# Keep large buffers instead of returning them to the system after every call: an evaluation on
# a CPU takes half the time, since glibc otherwise maps, clears and unmaps them each time.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-67108864}

# install EXTRA: make the environment, or remake what pyproject.toml has changed.
install() {
  local extras=${1:-} version stamp
  version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="."); sys.exit(sys.version_info < (3, 11))') || {
    echo "launch.sh: $python is Python ${version:-of no version}; wanted 3.11 or newer: set PYTHON=/path/to/python3.11" >&2
    exit 2
  }
  stamp=$(cksum <pyproject.toml)-$version
  [ "$(cat "$venv/.installed$extras" 2>/dev/null)" = "$stamp" ] && return
  if [ -e "$venv" ] && [ "$("$venv/bin/python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)" != "$version" ]; then
    if [ ! -f "$venv/pyvenv.cfg" ]; then echo "launch.sh: $venv is there and is no environment; set VENV=another folder" >&2; exit 2; fi
    rm -rf "$venv"
  fi
  echo "launch.sh: installing into $venv (once; a minute or two)" >&2
  local packages=(-e ".$extras")
  # A visible NVIDIA driver: take JAX's CUDA wheels along.
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then packages+=("jax[cuda12]"); fi
  if command -v uv >/dev/null; then
    [ -d "$venv" ] || uv venv -q --python "$python" "$venv"
    uv pip install -q --python "$venv/bin/python" "${packages[@]}"
  else
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}"
  fi
  echo "$stamp" >"$venv/.installed$extras"
}

name=${1:-help}
[ $# -gt 0 ] && shift
case $name in
  test)
    install "[dev]"
    "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/mypy"
    exec "$venv/bin/python" -m pytest "$@"
    ;;
  help | -h | --help) exec "$python" -m experiments ;;
  *)
    "$python" -m experiments "$name" >/dev/null # an unknown name ends here, with status 2
    install
    exec "$venv/bin/python" -m "experiments.$name" "$@"
    ;;
esac
