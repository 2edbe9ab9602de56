#!/bin/sh
# Lays out below $1 what a Python environment at $2 needs to run, and nothing else: no shell, no package manager. Run in a
# build stage on Debian. What a file came with is noted in var/lib/dpkg/status.d, where scanners of images look.
set -eu
root=$1 home=$2
python=$(readlink -f "$home/bin/python3")
version=${python##*/python}
stdlib=/usr/lib/python$version

mkdir -p "$root/etc" "$root/tmp" "$root/var/lib/dpkg/status.d"
for folder in bin lib lib64 sbin; do
    [ -L "/$folder" ] || continue
    mkdir -p "$root/usr/$folder"
    ln -s "usr/$folder" "$root/$folder"
done
chmod 1777 "$root/tmp"

list=$(mktemp)
echo "$python" >>"$list"
find "$stdlib" \( -name test -o -name tests -o -name idlelib -o -name lib2to3 -o -name ensurepip -o -name __pycache__ \) -prune \
    -o -type f -print >>"$list"
# Every shared library that something here names, and the loader itself.
find "$python" "$stdlib" "$home" -type f \( -name '*.so' -o -name '*.so.*' -o -path "$python" \) -print0 |
    xargs -0 ldd 2>/dev/null | awk '$2 == "=>" && $3 ~ "^/" { print $3 } $1 ~ "^/" && $2 ~ "^\\(" { print $1 }' |
    grep -v "^$home/" >>"$list"
echo /etc/ssl/certs/ca-certificates.crt >>"$list"

sort -u "$list" | while IFS= read -r file; do
    mkdir -p "$root${file%/*}"
    cp -L --preserve=mode,timestamps "$file" "$root$file"
done
# The package of a file, however its path is written since /lib is a link.
sort -u "$list" | while IFS= read -r file; do
    dpkg -S "$file" 2>/dev/null || dpkg -S "/usr$file" 2>/dev/null || dpkg -S "${file#/usr}" 2>/dev/null || true
done | grep -v '^diversion ' | sed 's/:.*//' | sort -u | while IFS= read -r package; do
    dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
    mkdir -p "$root/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/" 2>/dev/null || true
done
rm "$list"
ln -s "python$version" "$root/usr/bin/python3"
cp /etc/os-release "$root/etc/os-release"
mkdir -p "$root$home"
cp -a "$home/." "$root$home/"
"$python" -m compileall -q -j 0 -s "$root" --invalidation-mode unchecked-hash "$root$stdlib" "$root$home/lib" >/dev/null || true
printf 'root:x:0:0:root:/:/none\nnonroot:x:65532:65532:nonroot:/var/empty:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
