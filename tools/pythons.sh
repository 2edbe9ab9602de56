#!/bin/sh
# Which Pythons of this machine cortex can run on: "3.12 /path/to/python" a line, ascending, one of each version. Found on
# PATH and where pyenv and uv keep theirs. Each is asked, as a name on PATH may be a shim of pyenv's that runs nothing.
# Exits with 1 where there is none.
set -eu

candidates() {
    echo "$PATH" | tr : '\n' | while IFS= read -r folder; do
        ls "$folder"/python3 "$folder"/python3.[0-9]* || true
    done
    ls "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python3 || true
    ls "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python}"/*/bin/python3 || true
}

# Without uv it takes the parts of Python that make environments, which Debian has in packages of their own.
needs="sys"
command -v uv >/dev/null 2>&1 || needs="sys, venv, ensurepip"

candidates 2>/dev/null | grep -E '/python3(\.[0-9]+)?$' | while IFS= read -r path; do
    "$path" -c "import $needs; v = sys.version_info; v < (3, 11) or print(f'{v[0]}.{v[1]}', sys.executable)" \
        2>/dev/null </dev/null || true
done | awk '!seen[$1]++' | sort -t . -k 2,2n | grep .
