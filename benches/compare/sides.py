"""The two sides of the comparison as processes: what is run, and what one run gives."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Unit of `ru_maxrss`.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Failed(Exception):
    """A side failed: the command, how it ended and the end of its standard error."""


@dataclass
class Workload:
    """What a process does once: tokens read at once, tokens decoded one by one, tokens that are there before."""

    n_prompt: int
    n_gen: int
    depth: int

    def options(self):
        # Both sides name them alike.
        return ["-p", self.n_prompt, "-n", self.n_gen, "-d", self.depth, "-r", 1]


@dataclass
class Finished:
    """A process that ended well. Wall time and peak memory are those of the whole process."""

    stdout: str
    wall_s: float
    peak_bytes: int


def run(command):
    """Runs a command to its end."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise Failed(f"{' '.join(command)}: {error}") from error
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
            raise Failed(f"{' '.join(command)}: {how}\n{_text(err)[-2000:]}")
        return Finished(_text(out), wall_s, usage.ru_maxrss * RSS_UNIT)


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def run_json(command):
    """Runs a command; its first line that is a JSON object, and the process."""
    finished = run(command)
    for line in finished.stdout.splitlines():
        if line.startswith("{"):
            return json.loads(line), finished
    raise Failed(f"{' '.join(map(str, command))}: no JSON in its output\n{finished.stdout[-2000:]}")


def _measured(finished, tok_s=None):
    return {"tok_s": tok_s, "wall_s": finished.wall_s, "peak_bytes": finished.peak_bytes}


class Ours:
    """This project's examples `bench` and `generate`."""

    def __init__(self, folder, threads):
        self.bench = Path(folder) / "bench"
        self.generate = Path(folder) / "generate"
        self.threads = threads

    def rate(self, file, workload):
        command = [self.bench, "--model", file, "-t", self.threads, *workload.options(), "--json"]
        line, finished = run_json(command)
        return _measured(finished, line["avg_ts"])

    def first_token(self, file):
        """One token out of one token, vocabulary and all, with nothing done twice."""
        command = [self.generate, "--model", file, "--threads", self.threads, "--ids", 2, "--context", 32]
        command += ["--max-new-tokens", 1, "--greedy", "--ignore-eos", "--json"]
        _, finished = run_json(command)
        return _measured(finished)


class Llama:
    """llama.cpp's `llama-bench`, with flash attention: its attention that stores no scores of a whole prompt."""

    def __init__(self, bench, threads):
        self.bench = Path(bench)
        self.threads = threads

    def rate(self, file, workload, *more):
        command = [self.bench, "-m", file, "-t", self.threads, *workload.options(), "-fa", 1, *more, "-o", "jsonl"]
        line, finished = run_json(command)
        return _measured(finished, line["avg_ts"])

    def first_token(self, file):
        """As ours: llama-bench always loads the vocabulary, and skips its warm-up when asked."""
        return self.rate(file, Workload(1, 0, 0), "--no-warmup")

    def version(self):
        """What build_llama.sh noted beside the program, else the program's own words."""
        note = self.bench.parent / "VERSION"
        if note.exists():
            return note.read_text().strip()
        # The program says it on standard error.
        command = [str(self.bench), "--version"]
        said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
        return said.splitlines()[0] if said else "unknown"
