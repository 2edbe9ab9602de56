#!/bin/bash
# Builds what users install, into dist/: `build.sh [wheels] [deb] [rpm] [srpm] [lint]`. Without a word all that this host has the
# tools for, but the SRPM alone. Packages are for the Python named by $SYSTEM_PYTHON (/usr/bin/python3). Fetches the wheels of
# the lock once, into build/wheels-cp3XX; the rest needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$PWD/dist
work=$PWD/build
python=$PWD/.venv/bin/python
export SYSTEM_PYTHON=${SYSTEM_PYTHON:-/usr/bin/python3}
system=$SYSTEM_PYTHON
machine=$(uname -m)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tag=$("$system" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
vendored=$work/wheels-$tag
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
mkdir -p "$dist" "$work"

# Wheel, sdist, and the compiled CPU kernels; of another machine, too, where its compiler is here.
wheels() {
    "$python" -m build --no-isolation --outdir "$dist" .
    local machines=$machine
    if command -v aarch64-linux-gnu-g++ >/dev/null && [ "$machine" != aarch64 ]; then machines="$machine aarch64"; fi
    # shellcheck disable=SC2086
    "$python" packaging/kernels.py "$dist" $machines
}

# Every wheel of the lock for the system's Python, held to its hash, and our own.
vendor() {
    "$python" packaging/lock.py neuron <requirements.lock >"$work/neuron.lock"
    if ! cmp -s "$work/neuron.lock" "$vendored/neuron.lock"; then
        rm -rf "$vendored"
        mkdir -p "$vendored"
        # It keeps to the lock's markers for the Python that runs it.
        "$system" -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes --only-binary :all: \
            --dest "$vendored" --requirement "$work/neuron.lock"
        cp "$work/neuron.lock" "$vendored/"
    fi
    rm -f "$vendored"/cortex_jax*.whl
    cp "$dist/cortex_jax-$version"-*.whl "$dist/cortex_jax_kernels-$version"-*"_$machine.whl" "$vendored/"
}

deb() {
    local tree=$work/deb/cortex-$version
    rm -rf "$work/deb"
    mkdir -p "$tree"
    tar -xzf "$dist/cortex_jax-$version.tar.gz" -C "$tree" --strip-components 1
    cp -r packaging/debian "$tree/debian"
    cp -rl "$vendored" "$tree/wheels"
    "$python" packaging/changelog.py deb >"$tree/debian/changelog"
    sed -i "s|@MAINTAINER@|$("$python" packaging/changelog.py maintainer)|" "$tree/debian/control"
    (cd "$tree" && DEB_BUILD_OPTIONS=nocheck dpkg-buildpackage --build=binary --no-sign --no-check-builddeps)
    mv "$work"/deb/*.deb "$work"/deb/*.buildinfo "$work"/deb/*.changes "$dist/"
}

# What `rpmbuild` takes: the spec, and both sources.
rpm_sources() {
    rm -rf "$work/rpm"
    mkdir -p "$work/rpm/SOURCES" "$work/rpm/SPECS"
    cp "$dist/cortex_jax-$version.tar.gz" "$work/rpm/SOURCES/"
    tar -cf "$work/rpm/SOURCES/cortex-wheels-$version-$tag-$machine.tar" --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" --mode=u=rwX,go=rX --transform "s|^wheels-$tag|wheels|" -C "$work" "wheels-$tag"
    "$python" packaging/changelog.py rpm >"$work/changelog"
    sed -e "s/@VERSION@/$version/" -e "/@CHANGELOG@/{r $work/changelog" -e 'd}' packaging/rpm/cortex.spec.in \
        >"$work/rpm/SPECS/cortex.spec"
}

rpm_build() {
    rpm_sources
    # Debian has Python and pip, but no RPM database that says so.
    local unknown=
    if [ ! -e /etc/redhat-release ]; then unknown=--nodeps; fi
    rpmbuild $unknown "$1" --define "_topdir $work/rpm" --define "_prefix /usr" \
        --define "system_python $system" --define "use_source_date_epoch_as_buildtime 1" \
        --define "clamp_mtime_to_source_date_epoch 1" --define "_buildhost localhost" \
        --define "_binary_payload w9T0.zstdio" --define "_source_payload w0.gzdio" "$work/rpm/SPECS/cortex.spec"
    find "$work/rpm" -name '*.rpm' -exec mv -t "$dist" {} +
}

# As strict as each tool can be: an error of any fails.
lint() {
    if [ ! -x .venv-packages/bin/twine ]; then
        "$python" -m venv .venv-packages
        .venv-packages/bin/pip install --quiet --disable-pip-version-check twine==7.0.0
    fi
    .venv-packages/bin/twine check --strict "$dist"/*.whl "$dist"/*.tar.gz
    if has lintian; then lintian --allow-root --fail-on error "$dist"/*.changes; fi
    if has rpmlint; then rpmlint --config packaging/rpm/rpmlint.toml "$dist"/*.rpm; fi
}

has() { command -v "$1" >/dev/null || { echo "there is no $1 here" && false; }; }

if [ $# = 0 ]; then
    set -- wheels
    if has dpkg-buildpackage; then set -- "$@" deb; fi
    if has rpmbuild; then set -- "$@" rpm; fi
    set -- "$@" lint
fi
for what in "$@"; do
    case $what in
    wheels) wheels ;;
    deb) vendor && deb ;;
    rpm) vendor && rpm_build -ba ;;
    srpm) vendor && rpm_build -bs ;;
    lint) lint ;;
    *) echo "build.sh: $what is none of wheels, deb, rpm, srpm, lint" >&2 && exit 2 ;;
    esac
done
(cd "$dist" && ls -l)
