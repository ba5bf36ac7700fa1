#!/usr/bin/env bash
# Runs an experiment in an environment of its own:   ./launch.sh EXPERIMENT [--flag=value ...]
# PYTHON=/path/to/python chooses the interpreter, VENV=folder the environment (default .venv
# beside this file). Paths in flags are relative to where it is called from.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
venv=${VENV:-$root/.venv}

# Keep large buffers instead of returning them to the system after every call: an evaluation on
# a CPU takes half the time, since glibc otherwise maps, clears and unmaps them each time. It
# does so even then for what outgrows the 64 MB of a thread's arena: hence one arena for all.
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1}
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-67108864}
# Pages of 2 MB for them where Linux gives those on request: a training step whose arrays pass the
# caches takes a tenth to a third less time, since fewer addresses must be looked up and cleared.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  echo "launch.sh: $*" >&2
  exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# is_made: whether the environment is there as `install` would make it now.
is_made() {
  [ "$(cat "$venv/.installed$extra" 2>/dev/null)" = "$stamp" ] && return
  # What is there for the tests serves for everything else.
  [ -z "$extra" ] && [ "$(cat "$venv/.installed[dev]" 2>/dev/null)" = "$stamp" ]
}

# install [EXTRA]: make the environment, or remake it where pyproject.toml has changed.
install() {
  local extra=${1:-} stamp packages
  stamp="$(cksum <"$root/pyproject.toml") $version"
  is_made && return
  # Of several processes that srun starts, one makes it, and the others find it made.
  if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
    is_made && { exec 9>&-; return; }
  fi
  if [ -e "$venv" ] && [ "$(version_of "$venv/bin/python")" != "$version" ]; then
    [ -f "$venv/pyvenv.cfg" ] || fail "$venv is there and is no environment; set VENV=another/folder"
    rm -rf "$venv"
  fi
  echo "launch.sh: installing into $venv (once; a minute or two)" >&2
  packages=(-e "$root$extra")
  # A visible NVIDIA driver: take JAX's CUDA wheels along.
  if nvidia-smi -L >/dev/null 2>&1; then packages+=("jax[cuda12]"); fi
  if command -v uv >/dev/null; then
    [ -d "$venv" ] || uv venv -q --python "$python" "$venv"
    uv pip install -q --compile-bytecode --python "$venv/bin/python" "${packages[@]}"
  else
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}"
  fi
  echo "$stamp" >"$venv/.installed$extra"
  exec 9>&-
}

version=$(version_of "$python")
case $version in
  3.1[1-9] | 3.[2-9][0-9]) ;;
  *) fail "$python is Python ${version:-of no version}; wanted 3.11 or newer: set PYTHON=/path/to/python3.11" ;;
esac
name=${1:-help}
[ $# -gt 0 ] && shift
case $name in
  test)
    install "[dev]"
    cd "$root"
    "$venv/bin/ruff" check .
    "$venv/bin/ruff" format --check .
    "$venv/bin/mypy"
    exec "$venv/bin/python" -m pytest "$@"
    ;;
  help | -h | --help) PYTHONPATH=$root exec "$python" -m experiments ;;
  *)
    PYTHONPATH=$root "$python" -m experiments "$name" >/dev/null # an unknown name ends here: status 2
    install
    exec "$venv/bin/python" -m "experiments.$name" "$@"
    ;;
esac
