#!/usr/bin/env bash
# Makes a virtual environment from a hash-pinned requirements file. Done at once where the folder already holds exactly that.
# usage: [UV=a uv that is there already] scripts/make_venv.sh FOLDER REQUIREMENTS
set -euo pipefail

folder=$1
requirements=$2
python=${PYTHON:-python3}
stamp=$folder/.requirements

refuse() {
  printf 'fleet-twin: %s\n' "$*" >&2
  exit 1
}

command -v "$python" >/dev/null || refuse "there is no $python here; install Python 3.11 or newer, or name one: make PYTHON=python3.12 …"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  refuse "$("$python" --version) is too old; Python 3.11 or newer is needed: make PYTHON=python3.12 …"

# Where a virtual environment is active, perhaps the very one that is about to be made anew: the interpreter that it was made with.
python=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')

# The interpreter is part of what was installed: wheels of one Python version are useless to another.
wanted=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)'; cat "$requirements")
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

rm -rf "$folder"
if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  "$python" -m venv "$folder"
elif "$python" -c 'import virtualenv' 2>/dev/null; then
  "$python" -m virtualenv --quiet "$folder"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # Debian packs venv apart from python3.
  echo "fleet-twin: installing Debian's python3-venv" >&2
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; } >&2
  "$python" -m venv "$folder"
else
  refuse "$python can't make virtual environments; run: sudo apt-get install python3-venv (or: $python -m pip install --user virtualenv)"
fi

echo "fleet-twin: installing $(grep -c '==' "$requirements") pinned packages into $(basename "$folder")" >&2
pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check)

# uv installs ten times as fast as pip: take it from the same pins, or the one that the caller has. Where it fails
# (a mirror that only pip is set up for, say), pip does it.
install_with_uv() {
  local uv=${UV:-$folder/bin/uv} index
  if [ -z "${UV:-}" ]; then
    awk '/^[^ ]/ { ours = /^uv==/ } ours' "$requirements" >"$folder/uv.txt"
    "${pip[@]}" install --no-deps --require-hashes --only-binary :all: -r "$folder/uv.txt" || return 1
  fi
  index=$("${pip[@]}" config get global.index-url 2>/dev/null) && export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
  "$uv" pip install --quiet --system-certs --python "$folder/bin/python" --require-hashes --only-binary :all: -r "$requirements"
}

install_with_uv || "${pip[@]}" install --require-hashes --only-binary :all: -r "$requirements"
printf '%s\n' "$wanted" >"$stamp"
