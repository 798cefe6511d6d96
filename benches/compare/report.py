"""Rows of the result and the Markdown table, out of the measured pairs."""

import statistics

# Digits of a row in each unit; "" is a quotient.
DIGITS = {"tok/s": 1, "s": 2, "MB": 0, "": 2}
LESS_IS_BETTER = ("s", "MB")
PEAKS = {
    "f32_fma_gflop_s": ("f32 FMA", "GFLOP/s"),
    "bf16_dot_gflop_s": ("bf16 dot", "GFLOP/s"),
    "int8_dot_gop_s": ("int8 dot", "GOP/s"),
}


def rows(entry, figures):
    """The rows of one file, those whose workloads were run. `entry["measured"]` has the pairs of each workload."""
    measured = entry["measured"]
    titles = {name: workload["title"] for name, workload in measured.items()}
    prefill, decode, depth = (titles.get(name, "") for name in ("prefill", "decode", "depth"))
    # Figure, title, unit, workloads that it is made of, and how: (ours, llama.cpp) of each pair.
    table = [
        ("prefill", prefill, "tok/s", ["prefill"], _field("tok_s")),
        ("decode", decode, "tok/s", ["decode"], _field("tok_s")),
        ("depth", depth, "tok/s", ["depth"], _field("tok_s")),
        ("depth", f"{depth} over {decode}", "", ["depth", "decode"], _retained),
        ("start", titles.get("start"), "s", ["start"], _field("wall_s")),
        ("start", titles.get("first_token"), "s", ["first_token"], _field("wall_s")),
        ("memory", "peak memory, prefill and decode", "MB", ["prefill", "decode"], _peaks),
        ("memory", f"peak memory, {depth}", "MB", ["depth"], _peaks),
        ("memory", f"peak memory, {titles.get('first_token')}", "MB", ["first_token"], _peaks),
    ]
    result = []
    for figure, title, unit, workloads, pairs_of in table:
        if figure not in figures or not all(name in measured for name in workloads):
            continue
        row = {"file": entry["file"], "figure": title, "unit": unit}
        error = next((measured[name]["error"] for name in workloads if measured[name]["error"]), None)
        if error:
            row["error"] = error
        else:
            row.update(_summary(pairs_of(*(measured[name]["pairs"] for name in workloads))))
            if figure == "decode":
                row["share_of_read_bandwidth"] = _shares(measured["decode"]["pairs"], entry["weight_bytes_per_token"])
        result.append(row)
    return result


def _field(field):
    return lambda pairs: [(pair["ours"][field], pair["llama"][field]) for pair in pairs]


def _retained(depth, decode):
    """Speed at depth over speed at little depth, of each round."""
    return [
        tuple(deep[side]["tok_s"] / flat[side]["tok_s"] for side in ("ours", "llama"))
        for deep, flat in zip(depth, decode)
    ]


def _peaks(*workloads):
    """The most that any process of a side had resident: a single pair."""
    pairs = [pair for workload in workloads for pair in workload]
    return [tuple(max(pair[side]["peak_bytes"] for pair in pairs) / 1e6 for side in ("ours", "llama"))]


def _summary(pairs):
    """Medians of the sides, and of the ratios: a pair's two runs are neighbours, so that their ratio holds where the
    machine itself drifts."""
    return {
        "ours": statistics.median(ours for ours, _ in pairs),
        "llama": statistics.median(llama for _, llama in pairs),
        "ratio": statistics.median(ours / llama for ours, llama in pairs),
    }


def _shares(pairs, bytes_per_token):
    """Bytes of weights that decode reads in a second over what the machine read just before and after the pair."""
    limit = [statistics.mean(pair["read_gb_s"]) * 1e9 for pair in pairs]
    return {
        side: statistics.median(pair[side]["tok_s"] * bytes_per_token / read for pair, read in zip(pairs, limit))
        for side in ("ours", "llama")
    }


def markdown(result):
    """The whole result, ready for docs/benchmarks.md."""
    machine, ours = result["machine"], result["ours"]
    build = ours["commit"][:12] + (" with changes" if ours["changed"] else "")
    if ours["older_than_commit"]:
        build += f", built before that commit: {' and '.join(ours['older_than_commit'])}"
    lines = [
        f"{result['date']}, {machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])}), "
        f"{machine['system']}, {result['threads']} threads, load {result['load_before']:.1f} before. "
        f"Ours: {build}. llama.cpp: {result['llama']}. "
        f"Medians; pairs in turn: {result['pairs']}, of the start {result['start_pairs']}.",
        "",
        "| file | figure | ours | llama.cpp | ratio | share of read bandwidth, ours / llama.cpp |",
        "|---|---|---|---|---|---|",
    ]
    all_rows = [row for entry in result["files"] for row in entry["rows"]]
    lines += [_line(row) for row in all_rows]
    lines += ["", "The ratio is ours over llama.cpp's: better above 1 for tok/s, better below 1 for s and MB."]
    lines += ["", *_limits(result)]
    for error in dict.fromkeys(row["error"] for row in all_rows if "error" in row):
        lines += ["", "Failed:", "", *("    " + line for line in error.splitlines())]
    return "\n".join(lines)


def _line(row):
    figure = row["figure"] + (f", {row['unit']}" if row["unit"] else "")
    figure += " (less is better)" if row["unit"] in LESS_IS_BETTER else ""
    if "error" in row:
        return f"| {row['file']} | {figure} | failed | failed | | |"
    share = row.get("share_of_read_bandwidth")
    shares = f"{share['ours']:.0%} / {share['llama']:.0%}" if share else ""
    ours, llama = (f"{row[side]:.{DIGITS[row['unit']]}f}" for side in ("ours", "llama"))
    return f"| {row['file']} | {figure} | {ours} | {llama} | {row['ratio']:.2f} | {shares} |"


def _limits(result):
    """What the machine itself did in the same minutes."""
    lines = []
    for entry in result["files"]:
        workloads = entry["measured"].values()
        reads = [read for workload in workloads for pair in workload["pairs"] for read in pair.get("read_gb_s", [])]
        parts = [f"read {min(reads):.1f} to {max(reads):.1f} GB/s"] if reads else []
        for name, (kind, unit) in PEAKS.items():
            values = [peaks[name] for peaks in entry["peaks"] if name in peaks]
            if values:
                parts.append(f"{kind} {min(values):.0f} to {max(values):.0f} {unit}")
        if parts:
            lines.append(f"- Limits beside {entry['file']}: {', '.join(parts)}.")
    return lines
