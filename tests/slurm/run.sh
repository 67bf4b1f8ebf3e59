#!/usr/bin/env bash
# Runs a command where a Slurm cluster can be brought up without touching this machine's: with
# processes, network, host names and /etc/slurm of its own. Needs root on Debian; what ends the
# command, or kills this script, ends every process that was started below it.
set -euo pipefail

if [ "${1:-}" = --inside ]; then
  shift
  python3 - <<'PYTHON'
import fcntl, socket, struct
control = socket.socket()
fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
# Names are looked up for a machine with an address that is not 127.0.0.1 only.
address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("127.0.0.2"))
fcntl.ioctl(control, 0x8916, address)  # SIOCSIFADDR
PYTHON
  mount -t tmpfs tmpfs /etc/slurm
  hosts=$(mktemp)
  printf '127.0.0.1 localhost %s\n' "$(hostname)" > "$hosts"
  chmod 644 "$hosts"
  mount --bind "$hosts" /etc/hosts
  rm "$hosts"
  # A Python below /root can be run by no other user. Here it can: of /root only what is needed is
  # left, for all to enter.
  needed=("$PWD")
  for python in "$(command -v python3)" ${OPD_WORKFLOW:+"$OPD_WORKFLOW"}; do
    needed+=("$(readlink -f "$python")")
  done
  real=$(mktemp -d)
  mount --bind /root "$real"
  mount -t tmpfs -o mode=711 tmpfs /root
  for path in "${needed[@]}"; do
    name=${path#/root/}
    name=${name%%/*}
    if [ "$path" != "${path#/root/}" ] && mkdir "/root/$name" 2>/dev/null; then
      mount --bind "$real/$name" "/root/$name"
    fi
  done
  umount "$real"
  rmdir "$real"
  export OPD_SLURM_INSIDE=1
  status=0
  "$@" || status=$?  # not exec: this shell is the process that orphans are handed to
  exit "$status"
fi

[ "$(id -u)" = 0 ] || { echo "a Slurm cluster of its own needs root" >&2; exit 1; }
for program in slurmctld slurmd munged; do
  if ! command -v "$program" >/dev/null; then
    # Debian starts what it installs unless a policy says otherwise.
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; added=1; }
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
      slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge >/dev/null
    [ -z "${added:-}" ] || rm "$policy"
    break
  fi
done
mkdir -p /etc/slurm
exec unshare --mount --net --uts --pid --fork --kill-child --mount-proc "$0" --inside "$@"
