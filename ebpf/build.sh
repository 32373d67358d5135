#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Builds the eBPF objects that are checked in beside their source, and says what built them.
#
#   ebpf/build.sh           installs the toolchain where it is missing (Debian 12, root), builds
#                           ebpf/programs/{node,pod}.bpf.o and writes ebpf/programs/TOOLCHAIN
#   ebpf/build.sh --check   builds to a temporary directory and compares:
#                           exit 0 the same, 1 source and objects have drifted apart,
#                           2 this is not the recorded toolchain, so bytes say nothing
#
# Nobody who only builds Culvert needs this: `cargo build` embeds the objects as they are.
set -euo pipefail

readonly LINKER=0.10.3
readonly TARGET=bpfel-unknown-none
readonly OBJECTS=(node pod)

ebpf=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$ebpf")
programs=$ebpf/programs
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export PATH=$cargo_home/bin:$PATH
# Debian's compiler by path: what is first in PATH has no core for this target. The programs use
# two unstable features of it, inline assembly for BPF and the target itself.
export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
# bpf-linker loads LLVM's library when it runs.
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

fail() {
    echo "ebpf/build.sh: $2" >&2
    exit "$1"
}

install_toolchain() {
    local missing=() package
    for package in rustc-web cargo-web libstd-rust-web-dev-bpf llvm; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if ((${#missing[@]})); then
        [[ $(id -u) == 0 ]] || fail 1 "missing packages: ${missing[*]}; install them as root"
        apt-get update
        apt-get install -y --no-install-recommends "${missing[@]}"
    fi
    if [[ $(bpf-linker --version 2>/dev/null) != "bpf-linker $LINKER" ]]; then
        # With the toolchain of the workspace, not Debian's.
        (cd "$root" && env -u RUSTC -u RUSTC_BOOTSTRAP cargo install "bpf-linker@$LINKER" --locked)
    fi
}

# Everything that has a say in the bytes.
toolchain() {
    echo "# What built the objects here; written by ebpf/build.sh."
    /usr/bin/rustc --version
    /usr/bin/cargo --version
    bpf-linker --version
    llvm-strip --version | sed -n 's/^ *\(.*LLVM version.*\)/llvm-strip \1/p' | head -1
    dpkg-query -W -f '${Package} ${Version}\n' libstd-rust-web-dev-bpf
    # The LLVM that is inside the compiler and the linker.
    dpkg-query -W -f '${Package} ${Version}\n' 'libllvm*' |
        grep -F "$(ldd "$(rustc_driver)" | sed -n 's/.*libLLVM[^0-9]*\([0-9]*\).*/libllvm\1 /p' | head -1)"
}

rustc_driver() {
    find "$(/usr/bin/rustc --print sysroot)/lib" -name 'librustc_driver-*.so' | head -1
}

# A wrapper of rustc. Cargo names crates by where they lie, ../abi by its absolute path, and that
# name gets into symbols and their order: ours get names that are the same everywhere.
stable_metadata() {
    cat <<'WRAPPER'
#!/usr/bin/env bash
arguments=("$@")
if [[ " $* " =~ " --crate-name "(culvert_[a-z_]+|node|pod)" " ]]; then
    arguments=("${arguments[@]/#metadata=*/metadata=culvert}")
fi
exec "${arguments[@]}"
WRAPPER
}

# build <directory for the objects>
build() {
    local out=$1 target object registry
    target=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$target'" RETURN
    (cd "$programs" && /usr/bin/cargo fetch --locked --target "$TARGET")
    # No path of this machine in the objects.
    local flags=(-Clinker=bpf-linker -Clink-arg=--btf "--remap-path-prefix=$root=/culvert")
    for registry in "$cargo_home"/registry/src/*; do
        flags+=("--remap-path-prefix=$registry=/crates")
    done
    stable_metadata >"$target/rustc"
    chmod +x "$target/rustc"
    (
        cd "$programs"
        RUSTC_WRAPPER=$target/rustc \
            CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}") CARGO_TARGET_DIR=$target \
            /usr/bin/cargo build --release --locked --offline --target "$TARGET"
    )
    for object in "${OBJECTS[@]}"; do
        # Without DWARF, with BTF.
        llvm-strip --strip-debug -o "$out/$object.bpf.o" "$target/$TARGET/release/$object"
    done
}

check() {
    local out object
    if ! diff -u "$programs/TOOLCHAIN" <(toolchain) >&2; then
        fail 2 "this is not the toolchain of ebpf/programs/TOOLCHAIN (above), so the objects cannot be compared; run ebpf/build.sh, test, and commit the objects and TOOLCHAIN"
    fi
    out=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$out'" EXIT
    build "$out"
    for object in "${OBJECTS[@]}"; do
        cmp "$programs/$object.bpf.o" "$out/$object.bpf.o" >&2 ||
            fail 1 "ebpf/programs/$object.bpf.o is not what its source builds; run ebpf/build.sh and commit the result"
    done
    echo "ebpf/build.sh: the objects are what their source builds"
}

case ${1-} in
--check)
    install_toolchain
    check
    ;;
'')
    install_toolchain
    build "$programs"
    toolchain >"$programs/TOOLCHAIN"
    ;;
*)
    fail 64 "unknown argument $1; there is only --check"
    ;;
esac
