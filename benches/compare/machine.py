"""What the comparison ran on: the processor, its limits, and which builds."""

import os
import platform
import subprocess
from pathlib import Path

from sides import run_json

# Instruction sets that products of weights use, as /proc/cpuinfo names them.
FLAGS = (
    "avx2 fma f16c avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimddp i8mm bf16 sve"
).split()


def describe():
    """Processor, instruction sets and cores."""
    model, flags = platform.processor() or platform.machine(), []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = {}
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        model = fields.get("model name", model)
        present = (fields.get("flags") or fields.get("Features") or "").split()
        flags = [flag for flag in FLAGS if flag in present]
    elif platform.system() == "Darwin":
        model = output(["sysctl", "-n", "machdep.cpu.brand_string"]) or model
    return {
        "cpu": model,
        "flags": flags,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def output(command):
    """Standard output of a small command; empty where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def our_build(root, programs):
    """The commit of the checkout at `root`, whether files of it are changed, and which programs are older than it."""
    git = ["git", "--no-optional-locks", "-C", str(root)]
    committed = float(output([*git, "log", "-1", "--format=%ct"]) or 0)
    older = [program.name for program in programs if program.exists() and program.stat().st_mtime < committed]
    return {
        "commit": output([*git, "rev-parse", "HEAD"]) or "unknown",
        "changed": bool(output([*git, "status", "--porcelain", "--untracked-files=no"])),
        "older_than_commit": older,
    }


class Limits:
    """The program of limits.c."""

    def __init__(self, program, threads):
        self.program = program
        self.threads = threads

    def read_gb_s(self):
        """GB/s that all threads read together, from a buffer far larger than the caches."""
        return self._measure("read")["read_gb_s"]

    def peaks(self):
        """Arithmetic of all threads together, GFLOP/s or GOP/s; what the processor lacks is left out."""
        measured = self._measure("peak")
        names = ["f32_fma_gflop_s", "bf16_dot_gflop_s", "int8_dot_gop_s"]
        return {name: measured[name] for name in names if name in measured}

    def _measure(self, what):
        line, _ = run_json([self.program, what, self.threads])
        return line


def fill_cache(file):
    """Reads the file once, so that no side pays for the disk."""
    with open(file, "rb", buffering=0) as data:
        while data.read(1 << 20):
            pass
