#!/bin/sh
# Generate the committed stubs from the .proto files. Needs: pip install '.[test]'
# Usage: proto/generate.sh [OUTPUT_ROOT]   (default: the repository; tests give another folder)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
out=${1:-$root}
mkdir -p "$out"
${PYTHON:-python3} -m grpc_tools.protoc -I "$root/proto" \
  --python_out="$out" --mypy_out="quiet:$out" --grpc_python_out="$out" \
  "$root"/proto/plugin_sdk/wire/v1/*.proto
