#!/bin/sh
# Install the agent of this bundle, without a network:  sh install.sh [DIRECTORY]
#
# DIRECTORY is /opt/evenfleet unless given. It holds two environments, a and b, and the link "current" to the one in use;
# this fills the other one, tries it, and only then turns the link. What runs is not touched, and a power cut at any
# moment leaves the link on a whole environment. PYTHON names another Python than python3.
#
# Exit codes: 0 installed, 1 not: "current" is as it was.
set -eu

fail() {
    echo "error: $*" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
target=${1:-/opt/evenfleet}
python=${PYTHON:-python3}

# What the bundle is for: version, extras, python_version, bits, machine, kernels, system_packages, system_modules.
. "$here/about"

command -v "$python" >/dev/null || fail "there is no $python; on Debian: apt-get install python3 python3-venv"
found=$("$python" -I -c 'import struct, sys; print("%d.%d" % sys.version_info[:2], struct.calcsize("P") * 8)')
[ "$found" = "$python_version $bits" ] ||
    fail "$python is Python ${found% *} of ${found#* } bits, this bundle is for $python_version of $bits ($machine)"
# Many a kernel of 64 bits has a userland of 32.
case " $kernels " in
    *" $(uname -m) "*) ;;
    *) fail "this machine is a $(uname -m), this bundle is for $machine" ;;
esac
"$python" -I -c 'import ensurepip' 2>/dev/null ||
    fail "$python makes no environments with pip; on Debian: apt-get install python3-venv"
"$python" -I -c 'import ctypes; ctypes.CDLL("libstdc++.so.6")' 2>/dev/null ||
    fail "there is no libstdc++.so.6, which the runtime needs; on Debian: apt-get install libstdc++6"
for module in $system_modules; do
    "$python" -I -c "import $module" 2>/dev/null ||
        fail "$python has no module $module, of which there is no wheel for $machine; on Debian: apt-get install $system_packages"
done
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "a file of this bundle is damaged; copy it again"

mkdir -p "$target"
target=$(cd "$target" && pwd)
next=a
[ "$(readlink "$target/current" 2>/dev/null || true)" = a ] && next=b
rm -rf "${target:?}/$next"
if [ -n "$system_modules" ]; then
    "$python" -m venv --system-site-packages "$target/$next"
else
    "$python" -m venv "$target/$next"
fi
"$target/$next/bin/python" -m pip --isolated --disable-pip-version-check --no-cache-dir install --quiet \
    --no-index --find-links "$here/wheels" "evenfleet[$extras]==$version" ||
    fail "pip could not install; see above"
"$target/$next/bin/evenfleet-agent" doctor || fail "no runtime works in $target/$next; see above"

sync -f "$target"
ln -sfn "$next" "$target/next"
mv -T "$target/next" "$target/current"
sync -f "$target"
echo "installed: $target/current/bin/evenfleet-agent"
