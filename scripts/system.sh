#!/usr/bin/env bash
# Installs the system's programs that overlay, boxes, the network lab and the images' test are made of.
# Looks for the programs first, so it costs nothing where all are present. Never fails: without them everything
# else works, and the tests that need one skip and say so.
set -euo pipefail

# What is looked for, and the Debian or Ubuntu package that brings it.
readonly needed=(
  nebula:nebula
  nebula-cert:nebula
  bwrap:bubblewrap
  nft:nftables
  ip:iproute2
  nsenter:util-linux
  setpriv:util-linux
  mkfs.ext4:e2fsprogs
  podman:podman
  runc:runc
  mmdebstrap:mmdebstrap
  iperf3:iperf3
  nmap:nmap
  prometheus:prometheus
  promtool:prometheus
)
# Administrators' programs are not on everybody's path.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'system: %s\n' "$*" >&2; }

missing_packages() {
  local pair
  for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
  done | sort -u
}

mapfile -t packages < <(missing_packages)
((${#packages[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  say "overlay, boxes and lab need (Debian, Ubuntu: as root, apt-get install) ${packages[*]}"
  exit 0
fi

say "installing ${packages[*]}"
export DEBIAN_FRONTEND=${DEBIAN_FRONTEND:-noninteractive}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if apt-get update -qq >"$log" 2>&1 &&
  apt-get install -qq --yes --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
  # Debian starts what it installs; here the program is wanted, not a service on a port of its own.
  if [[ " ${packages[*]} " == *" prometheus "* ]] && command -v systemctl >/dev/null; then
    systemctl disable --quiet --now prometheus 2>/dev/null || true
  fi
  say "ready ($SECONDS s)"
else
  tail -n 5 "$log" >&2
  say "apt-get failed; install by hand: ${packages[*]}"
fi
