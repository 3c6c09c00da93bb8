#!/bin/sh
# What a container of the emulators' image runs: `kinesis [NAME:SHARDS:REGION,…]` or `s3 [BUCKET …]`. The root may be read-only; /data and /tmp are not.
set -eu

kind=${1:-}
[ $# = 0 ] || shift
case $kind in
kinesis)
  cd /tmp
  export KINESIS_MOCK_CERT_PATH=/opt/kinesis-local/server.json
  export KINESIS_MOCK_PLAIN_PORT="${KINESIS_MOCK_PLAIN_PORT:-4568}" KINESIS_MOCK_TLS_PORT="${KINESIS_MOCK_TLS_PORT:-4567}"
  export SHARD_LIMIT="${SHARD_LIMIT:-200}" LOG_LEVEL="${LOG_LEVEL:-ERROR}"
  [ $# = 0 ] || export INITIALIZE_STREAMS="$1"
  exec node /opt/kinesis-local/main.js
  ;;
s3)
  root=${S3_FOLDER:-/data}
  mkdir -p "$root/buckets" "$root/attributes"
  for bucket in "$@"; do mkdir -p "$root/buckets/$bucket"; done
  exec versitygw --access "${S3_ACCESS_KEY_ID:-test}" --secret "${S3_SECRET_ACCESS_KEY:-test}" --region "${AWS_REGION:-us-east-1}" \
    --port "${S3_PORT:-:7070}" --health /healthz --quiet posix --sidecar "$root/attributes" "$root/buckets"
  ;;
*)
  echo "usage: emulator kinesis [NAME:SHARDS:REGION,…] | emulator s3 [BUCKET …]" >&2
  exit 64
  ;;
esac
