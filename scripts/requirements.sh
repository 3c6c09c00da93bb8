#!/usr/bin/env bash
# Pins what pyproject.toml asks for, with hashes and for every Python version and machine at once. Pins that still fit
# stay; `make requirements UPGRADE=1` moves all of them to the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
  ${VENV:-.venv}/bin/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    ${UPGRADE:+--upgrade} "$@"
}

compile pyproject.toml --output-file requirements.txt
compile pyproject.toml --extra demo --group dev --output-file requirements-dev.txt
# In an environment of its own: the AWS CLI pins another botocore than aiobotocore does.
echo awscli | compile - --output-file requirements-awscli.txt
# What the image's build takes besides: the build backend, and a pip for base images that have none.
printf 'hatchling\npip\n' | compile - --constraint requirements-dev.txt --output-file requirements-build.txt
