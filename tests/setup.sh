#!/bin/sh
# Installs what the tests of real servers need and this machine lacks. Debian and its kin only.
set -eu
cd "$(dirname "$0")/.."

missing=
command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v python3 >/dev/null 2>&1 || missing="$missing python3-minimal"
python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v slowhttptest >/dev/null 2>&1 || missing="$missing slowhttptest"
# Servers are where the path of an ordinary user does not lead.
[ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
[ -x /usr/sbin/apache2 ] || missing="$missing apache2-bin"
command -v valgrind >/dev/null 2>&1 || missing="$missing valgrind"
command -v strace >/dev/null 2>&1 || missing="$missing strace"
command -v mkfs.ext4 >/dev/null 2>&1 || missing="$missing e2fsprogs"
# The library is looked for where Debian has it, of whatever architecture.
ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"

# What a machine of one's own may do without, CI may not: a test that is skipped there looks like one that passed.
skip() {
    echo "$1" >&2
    if [ "${CI:-}" = true ]; then
        exit 1
    fi
}

# Python's packages are pinned, and kept where a clean build leaves nothing of them.
packages() {
    [ -d target/python/h11 ] || python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --no-deps --require-hashes --target target/python -r tests/smuggling/requirements.txt
    # The scanner of TLS, which brings a good deal with it.
    [ -d target/sslyze/sslyze-6.3.1.dist-info ] || python3 -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore --upgrade --target target/sslyze sslyze==6.3.1 ||
        skip "the scan of TLS will be skipped: sslyze could not be installed"
    # What tries an API by its document.
    [ -d target/schemathesis/schemathesis-4.32.5.dist-info ] || python3 -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore --upgrade --target target/schemathesis schemathesis==4.32.5 ||
        skip "the trial of the API will be skipped: schemathesis could not be installed"
}

if [ -z "$missing" ]; then
    packages
    exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    skip "tests of real servers will be skipped: missing$missing"
    exit 0
fi

# A service that starts by itself would take port 80; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get install -y --no-install-recommends $missing ||
    { apt-get update && apt-get install -y --no-install-recommends $missing; }
packages
