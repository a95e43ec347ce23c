set -e
s() { printf '\n$ %s\n' "$*"; local t=$SECONDS; eval "$@"; echo "($((SECONDS-t)) s)"; }
s 'apt-get install gcc libc6-dev >/dev/null'
s 'cargo xtask setup'
s 'cargo xtask windows'
s 'cargo xtask build-ebpf --check'
