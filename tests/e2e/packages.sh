#!/usr/bin/env bash
# The Debian packages that a cluster on this machine takes: what makes images, and what a node needs. Needs root; done at once where
# all of them are there.
set -euo pipefail

packages=(
  buildah debootstrap # images
  gcc libc6-dev       # the pause image's program
  containerd runc iptables conntrack containernetworking-plugins iproute2 util-linux procps kmod # nodes
)

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "fleet-twin: a cluster on this machine needs root and these Debian packages: ${missing[*]}" >&2
  exit 1
fi
echo "fleet-twin: installing ${missing[*]}" >&2
# Daemons that packages bring are not started: the cluster starts its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
fi
{
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
} >&2
