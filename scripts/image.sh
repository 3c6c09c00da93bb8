#!/usr/bin/env bash
# Builds the image with docker or buildah, whichever is here (docs/reference/image.md).
# usage: [IMAGE=fleet-twin:VERSION] [BASE_IMAGE=the Dockerfile's] scripts/image.sh
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(awk -F '"' '/^version = / { print $2; exit }' pyproject.toml)
image=${IMAGE:-fleet-twin:$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ "$revision" = unknown ] || [ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-changed
arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} --tag "$image")

if docker info >/dev/null 2>&1; then
  DOCKER_BUILDKIT=1 docker build "${arguments[@]}" .
elif command -v buildah >/dev/null; then
  buildah bud --layers --format docker "${arguments[@]}" .
else
  echo "fleet-twin: neither a running docker nor buildah is here; install one of them: sudo apt-get install buildah" >&2
  exit 1
fi
echo "fleet-twin: built $image"
