#!/usr/bin/env sh
# Makes what compare.py measures with: the GGUF files of the real 270M and of random weights in the 1B's shape, and the
# program `limits`. What exists already is kept. Needs a C compiler with OpenMP, python3 with numpy, and about 5 GB of disk.
#
# Usage: prepare.sh FOLDER LLAMA_BIN_DIR REAL_270M_GGUF
#   LLAMA_BIN_DIR   where llama-quantize is: build/bin in the folder that build_llama.sh was given
#   REAL_270M_GGUF  gemma-3-270m-Q4_K_M.gguf, which the example `generate` fetches
set -eu
usage="usage: prepare.sh FOLDER LLAMA_BIN_DIR REAL_270M_GGUF"
folder=${1:?$usage}
llama=${2:?$usage}
real=$(realpath "${3:?$usage}")
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$folder"

# quantize IN OUT FORMAT: under another name until it is whole, so that an interrupted run leaves no half file.
quantize() {
    [ -e "$2" ] && return
    "$llama/llama-quantize" --allow-requantize "$1" "$2.part" "$3" >"$2.log" 2>&1 || {
        tail -20 "$2.log"
        exit 1
    }
    mv "$2.part" "$2"
    rm "$2.log"
}

if [ ! -x "$folder/limits" ] || [ "$here/limits.c" -nt "$folder/limits" ]; then
    "${CC:-cc}" -O3 -march=native -fopenmp "$here/limits.c" -o "$folder/limits"
fi

small="$folder/gemma-3-270m"
[ -e "$small-Q4_K_M.gguf" ] || ln -s "$real" "$small-Q4_K_M.gguf"
for format in BF16 Q8_0 Q4_0; do
    quantize "$real" "$small-$format.gguf" "$format"
done

big="$folder/random-1b"
if [ ! -e "$big-BF16.gguf" ]; then
    "$python" -c 'import numpy' || {
        echo "prepare.sh: $python needs numpy: $python -m pip install numpy"
        exit 1
    }
    "$python" "$here/make_random_gguf.py" "$real" "$big-BF16.gguf"
fi
for format in Q8_0 Q4_0; do
    quantize "$big-BF16.gguf" "$big-$format.gguf" "$format"
done
ls -l "$folder"/*.gguf "$folder/limits"
