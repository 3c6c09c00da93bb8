#!/usr/bin/env bash
# Makes proto/fleet_proto from the .proto files. With --check it changes nothing and fails where the two have drifted apart.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${VENV:-.venv}/bin
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$bin/python" -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --python_out="$made" --mypy_out="quiet:$made" proto/*.proto

drifted=0
for file in "$made"/*; do
  kept=proto/fleet_proto/$(basename "$file")
  cmp --silent "$file" "$kept" && continue
  if [ "${1:-}" = --check ]; then
    echo "$kept doesn't match its .proto file: run make proto" >&2
    drifted=1
  else
    cp "$file" "$kept"
    echo "made $kept"
  fi
done
exit $drifted
