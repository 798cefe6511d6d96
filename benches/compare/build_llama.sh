#!/usr/bin/env sh
# Builds llama.cpp's llama-bench and llama-quantize for this processor, from the source that the Python package
# llama-cpp-python ships: the peer that compare.py measures. Needs python3 with pip, a C++ compiler, cmake and ninja.
# About ten minutes on two cores.
#
# Usage: build_llama.sh FOLDER
set -eu
version=0.3.36
folder=${1:?usage: build_llama.sh FOLDER}
mkdir -p "$folder"
cd "$folder"
if [ ! -d source ]; then
    python3 -m pip download -q --no-deps --no-binary :all: -d . "llama-cpp-python==$version"
    tar xzf "llama_cpp_python-$version.tar.gz"
    mv "llama_cpp_python-$version/vendor/llama.cpp" source
    rm -rf "llama_cpp_python-$version" "llama_cpp_python-$version.tar.gz"
fi
cmake -S source -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_WEBUI=OFF >configure.log 2>&1 || {
    tail -20 configure.log
    exit 1
}
cmake --build build --target llama-bench llama-quantize >build.log 2>&1 || {
    grep -E 'error|FAILED' build.log | head
    exit 1
}
# What compare.py prints of it: the program itself does not know its commit.
echo "as in llama-cpp-python $version" >build/bin/VERSION
ls build/bin/llama-bench build/bin/llama-quantize
