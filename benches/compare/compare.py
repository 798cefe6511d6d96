#!/usr/bin/env python3
"""Ours beside llama.cpp: the same GGUF files, the same threads, in turn, in one run. README.md says how to prepare it
and what the figures mean.

    python3 benches/compare/compare.py --llama ~/llama/build/bin/llama-bench ~/gguf/*.gguf

Prints a Markdown table; progress goes to standard error. Nothing else should run meanwhile.
"""

import argparse
import fnmatch
import json
import os
import sys
import time
from pathlib import Path

import gguf_file
import machine
import report
from sides import Failed, Llama, Ours, Workload

FIGURES = ["prefill", "decode", "depth", "start", "memory"]
# The sizes of `--tiny`, which shows that everything works and measures nothing.
TINY = {"prefill": Workload(16, 0, 0), "decode": Workload(0, 4, 8), "depth": Workload(0, 2, 64)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="GGUF files")
    parser.add_argument("--llama", required=True, type=Path, help="llama-bench")
    parser.add_argument("--limits", type=Path, help="the program of limits.c (default: beside the first file)")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="our checkout")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each figure")
    parser.add_argument("--start-pairs", type=int, default=5, help="pairs of `start`, which is short")
    parser.add_argument("--figures", help=f"of {','.join(FIGURES)}; default: all, depth only with --depth")
    parser.add_argument("--depth", type=int, help="tokens of context of the figure `depth` (default 8192)")
    parser.add_argument("--depth-files", default="*", metavar="PATTERN", help="file names that `depth` is measured of")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result there, after each file anew")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    chosen = parser.parse_args()
    chosen.limits = chosen.limits or chosen.files[0].parent / "limits"
    default = [figure for figure in FIGURES if figure != "depth" or chosen.depth]
    chosen.figures = chosen.figures.split(",") if chosen.figures else default
    unknown = set(chosen.figures) - set(FIGURES)
    if unknown:
        parser.error(f"unknown figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if min(chosen.pairs, chosen.start_pairs, chosen.threads) < 1:
        parser.error("--pairs, --start-pairs and --threads are at least 1")
    return chosen


class Comparison:
    """Runs the workloads of one file after the other."""

    def __init__(self, chosen):
        self.chosen = chosen
        self.ours = Ours(chosen.root / "target/release/examples", chosen.threads)
        self.llama = Llama(chosen.llama, chosen.threads)
        self.limits = machine.Limits(chosen.limits, chosen.threads)

    def groups(self, file):
        """Workloads by name; those of a group take turns, so that their quotients come from the same minutes."""
        figures = self.chosen.figures
        sizes = {
            "prefill": Workload(512, 0, 0),
            "decode": Workload(0, 64, 128),
            "depth": Workload(0, 32, self.chosen.depth or 8192),
        }
        sizes = TINY if self.chosen.tiny else sizes
        groups = []
        if "prefill" in figures or "memory" in figures:
            groups.append(["prefill"])
        with_depth = "depth" in figures and fnmatch.fnmatch(file.name, self.chosen.depth_files)
        if with_depth:
            groups.append(["decode", "depth"])
        elif "decode" in figures or "memory" in figures:
            groups.append(["decode"])
        if "start" in figures:
            groups += [["start"], ["first_token"]]
        return groups, sizes

    def file(self, file):
        """All that is measured of one file."""
        header = gguf_file.read_header(file)
        machine.fill_cache(file)
        entry = {
            "file": file.name,
            "size_bytes": file.stat().st_size,
            "weight_bytes_per_token": header.weight_bytes_per_token(),
            "peaks": [],
            "measured": {},
        }
        groups, sizes = self.groups(file)
        for group in groups:
            start = group[0] in ("start", "first_token")
            for name in group:
                entry["measured"][name] = {"title": title(name, sizes), "pairs": [], "error": None}
            if group == ["prefill"]:
                entry["peaks"].append(self.limits.peaks())
            for turn in range(self.chosen.start_pairs if start else self.chosen.pairs):
                for name in group:
                    self.pair(file, name, sizes, entry["measured"][name], turn)
            if group == ["prefill"]:
                entry["peaks"].append(self.limits.peaks())
        return entry

    def pair(self, file, name, sizes, measured, turn):
        """Ours, then llama.cpp; for decode between two measurements of the read bandwidth. A side that failed once is
        not asked again."""
        if measured["error"]:
            return
        limited = name == "decode"
        try:
            before = self.limits.read_gb_s() if limited else None
            if name == "first_token":
                pair = {"ours": self.ours.first_token(file), "llama": self.llama.first_token(file)}
            else:
                workload = sizes.get(name, Workload(1, 0, 0))
                pair = {"ours": self.ours.rate(file, workload), "llama": self.llama.rate(file, workload)}
            if limited:
                pair["read_gb_s"] = [before, self.limits.read_gb_s()]
        except Failed as failure:
            measured["error"] = str(failure)
            print(f"{file.name} {measured['title']} failed: {failure}", file=sys.stderr)
            return
        measured["pairs"].append(pair)
        sides = ", ".join(f"{side} {shown(pair[side])}" for side in ("ours", "llama"))
        print(f"{file.name} {measured['title']} {turn + 1}: {sides}", file=sys.stderr, flush=True)


def title(name, sizes):
    if name == "prefill":
        return f"prefill {sizes[name].n_prompt}"
    if name in ("decode", "depth"):
        return f"decode at {sizes[name].depth:,}"
    if name == "start":
        return "start to first token, ours without vocabulary"
    return "start to first token, both with vocabulary"


def shown(side):
    rate = f"{side['tok_s']:.1f} tok/s, " if side["tok_s"] else ""
    return f"{rate}{side['wall_s']:.2f} s, {side['peak_bytes'] / 1e6:.0f} MB"


def main():
    chosen = arguments()
    comparison = Comparison(chosen)
    for program in (comparison.ours.bench, comparison.llama.bench, chosen.limits):
        if not os.access(program, os.X_OK):
            sys.exit(f"compare.py: {program} is missing; README.md says how to build it")
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"compare.py: the load is {load:.1f}; the figures need a machine that is idle", file=sys.stderr)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "load_before": load,
        "threads": chosen.threads,
        "pairs": chosen.pairs,
        "start_pairs": chosen.start_pairs,
        "ours": machine.our_build(chosen.root, [comparison.ours.bench, comparison.ours.generate]),
        "llama": comparison.llama.version(),
        "files": [],
    }
    for file in chosen.files:
        try:
            entry = comparison.file(file)
        except (OSError, gguf_file.GgufError, Failed) as error:
            # Without the file or the limits there is nothing to compare.
            sys.exit(f"compare.py: {error}")
        entry["rows"] = report.rows(entry, chosen.figures)
        result["files"].append(entry)
        if chosen.json:
            chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report.markdown(result))
    if any("error" in row for entry in result["files"] for row in entry["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
