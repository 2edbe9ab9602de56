#!/bin/bash
# Installs what dist/ has into a root of its own, serves the demo model there, upgrades, removes: `try.sh deb|rpm`, as root, on
# Debian. The root is made by debootstrap (build/trial/base is kept), and apt installs what the packages depend on. The RPMs
# go into such a root, too, with --nodeps: Fedora's base is not there, so what they depend on by name is not tried.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
kind=${1:?try.sh deb|rpm}
work=$top/build/trial
root=$work/$kind
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/pyproject.toml")
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
units=$([ "$kind" = deb ] && echo /lib/systemd/system || echo /usr/lib/systemd/system)

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && exit 1; }
# In the root, in a mount namespace that ends with what runs there; of this host's environment only where packages come from.
in_root() { in_namespace 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$@"; }

# As ProtectSystem=strict and PrivateTmp=true have it: only state, caches and /run can be written.
in_strict_root() {
    in_namespace 'mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/tmp" \
        && for path in var/lib var/cache run; do mount --bind "$0/$path" "$0/$path" || exit 1; done \
        && mount -o remount,bind,ro "$0" && exec chroot "$0" "$@"' "$@"
}

in_namespace() {
    local script=$1
    shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} unshare --mount --fork --kill-child sh -c "$script" "$root" "$@"
}

# Nothing that was started outlives the script.
ended_all() {
    for file in "$root"/run/trial-*/pid; do
        if [ -e "$file" ] && [ ! -e "$(dirname "$file")/exit" ]; then kill -TERM "$(cat "$file")" 2>/dev/null || true; fi
    done
}
trap ended_all EXIT

make_root() {
    if [ ! -e "$work/base/.ready" ]; then
        rm -rf "$work/base" && mkdir -p "$work"
        debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/base" "$mirror" >"$work/debootstrap.log"
        touch "$work/base/.ready"
    fi
    rm -rf "$root" && cp -a --reflink=auto "$work/base" "$root"
    # The index and the authorities that this host trusts; no service is started by installing it.
    cp /etc/resolv.conf "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/trial" && cp "$here"/*.py "$root/trial/"
    in_root apt-get update -qq
}

install_deb() {
    cp "$top"/dist/cortex_"$version"_*.deb "$top"/dist/cortex-neuron*_"$version"_*.deb "$root/trial/"
    in_root sh -c 'apt-get install -y -qq --no-install-recommends /trial/cortex_*.deb /trial/cortex-neuron_*.deb /trial/cortex-neuron-hopper_*.deb' \
        >"$work/deb.log" 2>&1 || fail "apt-get install, see $work/deb.log"
}

# The same packages once more, as the next version.
upgrade_deb() {
    local package
    for package in cortex cortex-neuron; do
        dpkg-deb -R "$top"/dist/${package}_"$version"_*.deb "$work/next"
        sed -i "s/$version/$version+next/" "$work/next/DEBIAN/control"
        dpkg-deb -Znone -b "$work/next" "$root/trial/next-$package.deb" >/dev/null
        rm -rf "$work/next"
    done
    in_root dpkg -i --force-confdef /trial/next-cortex.deb /trial/next-cortex-neuron.deb >>"$work/deb.log" 2>&1
    in_root dpkg-query -W cortex | grep -q "$version+next" || fail "it was not upgraded"
}

# With /proc and /dev for the scriptlets, as an installer has them.
rpm_in_root() {
    unshare --mount sh -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec rpm --root "$0" "$@"' "$root" "$@"
}

install_rpm() {
    in_root apt-get install -y -qq --no-install-recommends python3 libstdc++6 systemd-standalone-tmpfiles >"$work/rpm.log" 2>&1
    rpm --root "$root" --initdb
    rpm_in_root --nodeps -ivh "$top"/dist/cortex-"$version"-1.*.rpm "$top"/dist/cortex-neuron-"$version"-1.*.rpm \
        "$top"/dist/cortex-neuron-hopper-"$version"-1*.rpm >>"$work/rpm.log" 2>&1 || fail "rpm -i, see $work/rpm.log"
    rpm --root "$root" -V --nodeps cortex cortex-neuron || fail "rpm -V"
}

# To the same release once more: its scriptlets are told that it is an upgrade, and every file is written again.
upgrade_rpm() {
    rpm_in_root --nodeps -Uvh --replacepkgs "$top"/dist/cortex-"$version"-1.*.rpm "$top"/dist/cortex-neuron-"$version"-1.*.rpm >>"$work/rpm.log" 2>&1
}

start() {
    rm -rf "$root/run/trial-$1"
    in_strict_root /usr/lib/cortex/bin/python3 /trial/run_unit.py "$units/$1.service" "/run/trial-$1" >"$work/$kind-$1.log" 2>&1 &
    for _ in $(seq 300); do
        [ ! -e "$root/run/trial-$1/ready" ] || return 0
        sleep 0.5
    done
    cat "$work/$kind-$1.log" && fail "$1 did not become ready"
}

# The unit's exit code: 0 after SIGTERM.
ended() {
    for _ in $(seq 120); do
        [ ! -e "$root/run/trial-$1/exit" ] || break
        sleep 0.5
    done
    [ "$(cat "$root/run/trial-$1/exit")" = 0 ] || fail "$1 ended with $(cat "$root/run/trial-$1/exit")"
}

mode() { # PATH MODE OWNER:GROUP
    local is
    is=$(in_root stat -c '%a %U:%G' "$1")
    [ "$is" = "$2 $3" ] || fail "$1 is $is and should be $2 $3"
}

say "root"
make_root
say "install"
"install_$kind"
mode /etc/cortex/cortex.toml 640 root:cortex
mode /etc/neuron/neuron.toml 640 root:neuron
! in_root sh -c 'command -v c++ g++ clang++' || fail "the root has a compiler"
in_root cortex --version
in_root neuron --version
in_root neuron --version | grep -q "kernels: prebuilt, x86-64" || fail "the kernels that came compiled are not taken"
! in_root neuron-cuda check || fail "neuron-cuda found a GPU"

say "keys, made by root before the first start"
in_root cortex keys add laptop >/dev/null
mode /var/lib/cortex/cortex-state.db 600 cortex:cortex

say "serve"
start neuron
start cortex
python3 "$here/ask.py" "$(cat "$root/run/trial-cortex/pid")"
ended cortex
kill -TERM "$(cat "$root/run/trial-neuron/pid")"
ended neuron
grep -h "prebuilt\|came compiled" "$work/$kind-neuron.log" || true

say "upgrade"
echo '# what the administrator wrote' >>"$root/etc/cortex/cortex.toml"
"upgrade_$kind"
grep -q "what the administrator wrote" "$root/etc/cortex/cortex.toml" || fail "the configuration was replaced"
in_root cortex keys list | grep -q laptop || fail "the key is gone"
mode /etc/cortex/cortex.toml 640 root:cortex
[ -n "$(find "$root/var/cache/neuron" -name '*.safetensors' -o -name '*.gguf' | head -n 1)" ] || fail "the model is gone"

say "remove"
if [ "$kind" = deb ]; then
    in_root apt-get remove -y -qq cortex >>"$work/deb.log" 2>&1
    [ -e "$root/var/lib/cortex/cortex-state.db" ] && [ -e "$root/etc/cortex/cortex.toml" ] || fail "removing took state or configuration"
    [ ! -e "$root/usr/lib/cortex" ] || fail "removing left $(find "$root/usr/lib/cortex" | head -n 3)"
    say "purge"
    in_root apt-get purge -y -qq cortex cortex-neuron >>"$work/deb.log" 2>&1
    for path in /etc/cortex /etc/neuron /var/lib/cortex /var/cache/neuron /usr/bin/cortex /usr/bin/neuron; do
        [ ! -e "$root$path" ] || fail "purging left $path"
    done
else
    rpm_in_root --nodeps -e cortex-neuron-hopper cortex-neuron cortex >>"$work/rpm.log" 2>&1
    [ -e "$root/var/lib/cortex/cortex-state.db" ] || fail "removing took the state"
    [ -e "$root/etc/cortex/cortex.toml.rpmsave" ] || fail "removing took the changed configuration"
    [ ! -e "$root/usr/lib/cortex" ] || fail "removing left $(find "$root/usr/lib/cortex" | head -n 3)"
fi
rm -rf "$root"
say "$kind: all of it held"
