#!/bin/sh
# Installs what the benchmarks need, where it is missing: nginx, haproxy, wrk, h2load, openssl, curl, etcd,
# redis (Debian, Ubuntu).
# The packages' own services are not started: the benchmarks run their own instances on loopback and stop them.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
POLICY=/usr/sbin/policy-rc.d

missing=""
for tool in nginx haproxy wrk h2load openssl curl etcd etcdctl redis-server redis-cli; do
    command -v "$tool" >/dev/null 2>&1 && continue
    case $tool in
    h2load) missing="$missing nghttp2-client" ;;
    etcd) missing="$missing etcd-server" ;;
    etcdctl) missing="$missing etcd-client" ;;
    redis-cli) missing="$missing redis-tools" ;;
    *) missing="$missing $tool" ;;
    esac
done
if [ -z "$missing" ]; then
    echo "benches: everything is installed"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root="sudo"; fi

# Exit status 101 from policy-rc.d forbids a package's scripts to start a service. One that is there is left alone.
if [ ! -e "$POLICY" ]; then
    trap '$as_root rm -f "$POLICY"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$POLICY" >/dev/null
    $as_root chmod 755 "$POLICY"
fi

echo "benches: installing$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 -- the list is to be split
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
