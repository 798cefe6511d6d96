#!/usr/bin/env python3
"""Ours beside llama.cpp: the same GGUF files, the same threads, in turn, in one run.

    sh benches/compare/build_llama.sh ~/llama
    cargo build --release --example bench --bench limits
    python3 benches/compare/compare.py --llama ~/llama/build/bin/llama-bench FILE.gguf...

For each file it runs A B A B ... (ours, llama.cpp), takes medians and prints the ratios; before and after, the read
bandwidth of the machine, by a sum over a buffer larger than the caches. Nothing else should run meanwhile. The last
line is the whole result as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(command):
    """Standard output and peak memory in bytes."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{err.read()[-2000:]}")
        scale = 1 if sys.platform == "darwin" else 1024
        return out.read(), usage.ru_maxrss * scale


def ours(bench, file, threads, n_prompt, n_gen, depth):
    command = [bench, "--model", file, "-t", threads, "-p", n_prompt, "-n", n_gen, "-d", depth, "-r", 1, "--json"]
    out, peak = run([str(part) for part in command])
    lines = [json.loads(line) for line in out.splitlines() if line.strip()]
    return lines[0]["avg_ts"], peak


def llama(bench, file, threads, n_prompt, n_gen, depth):
    command = [bench, "-m", file, "-t", threads, "-p", n_prompt, "-n", n_gen, "-d", depth, "-r", 1, "-fa", 1, "-o", "jsonl"]
    out, peak = run([str(part) for part in command])
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return lines[0]["avg_ts"], peak


def read_bandwidth(limits):
    """GB/s, from what the bench `limits` prints."""
    out, _ = run([limits, "--bench"])
    words = out.split("the machine reads ", 1)[1].split()
    return float(words[0])


def newest(pattern):
    found = [path for path in ROOT.glob(pattern) if os.access(path, os.X_OK) and not path.suffix]
    if not found:
        sys.exit(f"no {pattern}; run: cargo build --release --example bench --bench limits")
    return max(found, key=lambda path: path.stat().st_mtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="GGUF files")
    parser.add_argument("--llama", required=True, help="llama-bench")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    arguments = parser.parse_args()
    bench = newest("target/release/examples/bench")
    limits = newest("target/release/deps/limits-*")

    what = [
        ("prefill 512", 512, 0, 0),
        ("decode at 128", 0, 64, 128),
    ]
    result = {"date": time.strftime("%Y-%m-%d"), "threads": arguments.threads, "rows": []}
    result["read_gb_s"] = [read_bandwidth(limits)]
    print(f"{'file':<36} {'figure':<14} {'ours':>9} {'llama.cpp':>10} {'ratio':>6}")
    for file in arguments.files:
        for name, n_prompt, n_gen, depth in what:
            pairs = []
            for _ in range(arguments.pairs):
                mine = ours(bench, file, arguments.threads, n_prompt, n_gen, depth)
                peer = llama(arguments.llama, file, arguments.threads, n_prompt, n_gen, depth)
                pairs.append((mine, peer))
            mine = statistics.median(pair[0][0] for pair in pairs)
            peer = statistics.median(pair[1][0] for pair in pairs)
            ratio = statistics.median(pair[0][0] / pair[1][0] for pair in pairs)
            memory = max(pair[0][1] for pair in pairs) / max(pair[1][1] for pair in pairs)
            result["rows"].append(
                {
                    "file": Path(file).name,
                    "figure": name,
                    "ours_tok_s": mine,
                    "llama_tok_s": peer,
                    "ratio": ratio,
                    "peak_memory_ratio": memory,
                }
            )
            print(f"{Path(file).name:<36} {name:<14} {mine:>9.1f} {peer:>10.1f} {ratio:>6.2f}  memory {memory:.2f}")
    result["read_gb_s"].append(read_bandwidth(limits))
    print(f"the machine reads {result['read_gb_s'][0]:.1f} GB/s before, {result['read_gb_s'][1]:.1f} after")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
