#!/usr/bin/env bash
# A newcomer's first ten minutes, on a Debian with nothing but Python and make: install, train, subclass,
# restore, compare, documentation. Every line is the one that README.md or a page of docs/ prints.
#
#   debootstrap --variant=minbase --include=python3,python3-venv,make,ca-certificates trixie FOLDER
#   bash scripts/newcomer.sh FOLDER
#
# As root: FOLDER is entered by chroot. Expected: seconds of each part, and exit code 0 within 600 seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?"give the folder of a Debian, as debootstrap makes it"}
clone=$folder/srv/pcflax
rm -rf "$clone" && mkdir -p "$clone"
git archive HEAD | tar x -C "$clone"
cp /etc/resolv.conf "$folder/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"
mountpoint -q "$folder/proc" || { mount -t proc proc "$folder/proc"; trap 'umount "$folder/proc"' EXIT; }

# blocks KIND PAGE PATTERN: the blocks of code of a page in which the pattern is found
blocks() {
  python3 - "$@" <<'EOF'
import re, sys
kind, page, pattern = sys.argv[1:]
for text in re.findall(rf"^```{kind}\n(.*?)^```", open(page).read(), re.DOTALL | re.MULTILINE):
    if re.search(pattern, text):
        print(text)
EOF
}

blocks python README.md . >"$clone/readme.py"
blocks python docs/start.md . >"$clone/start.py"
blocks bash README.md runs/digits >"$clone/commands.sh"
blocks bash docs/command_line.md 'pcflax compare' >"$clone/compare.sh"
for file in readme.py start.py commands.sh compare.sh; do test -s "$clone/$file"; done

# part NAME COMMAND: within the clone, with the environment that make has made on the PATH
part() {
  local began=$SECONDS
  chroot "$folder" /usr/bin/env -i HOME=/srv LANG=C.UTF-8 MPLBACKEND=Agg \
    PATH=/srv/pcflax/.venv/bin:/usr/bin:/bin bash -ec "cd /srv/pcflax; $2" >"$folder/srv/log" 2>&1 ||
    { cat "$folder/srv/log"; echo "FAILED: $1"; exit 1; }
  echo "$1: $((SECONDS - began)) s"
}

SECONDS=0
part "install and train, make train" "make train"
part "train, subclass and restore, README.md's Python" "python readme.py"
part "the first network, docs/start.md's Python" "python start.py"
part "train, resume and inspect, README.md's commands" "bash -e commands.sh"
part "compare, docs/command_line.md's commands" "bash -e compare.sh"
part "documentation, make docs" "make docs"
echo "all: $SECONDS s"
test "$SECONDS" -le 600
