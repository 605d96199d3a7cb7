"""All figures of a GPU in one call of at most nine minutes: speed, memory, Muon against AdamW, and writing.

    python -m benchmarks.gpu [--minutes 9] [--only 124m,race] [--out FILE] [--device cuda|cpu] [--tiny]

Each group of rows is a process of its own with a share of the time: a crash or a full memory ends that group alone. The
file is written after every row, so nothing is lost when time runs out, and names every row that was not measured, with
the reason. `--only` measures some groups and keeps the rows of the others. `--device cpu --tiny` shows that the script
runs; its figures mean nothing.

Steps are the trainer's own (`Trainer.advance`) with the settings of the presets gpt2-124m, gpt2-355m and gpt2-774m:
context 1,024, 0.5 M tokens a step by accumulation, bfloat16. MFU counts 6N + 12LCT operations a token
(`GPT.flops_per_token`), against the data sheet's peak and against the best matrix product measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmodel.store.artifacts import write_atomic
from gptmodel.training.launch import child_environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "gpu.json"
SHARES = {"machine": 8, "124m": 36, "writing": 8, "355m": 18, "774m": 20, "race": 14}
_LEAST_SECONDS = 35.0  # of a group: torch's import, the GPU's start and the first kernels take half of it
Row = dict[str, Any]


class Report:
    """The file, renewed after each row."""

    def __init__(self, path: Path, asked: dict[str, Any], groups: list[str]) -> None:
        old = json.loads(path.read_text()) if path.exists() else {}
        self._path, self._asked, self._machine = path, asked, old.get("machine", {})
        self.rows: list[Row] = [row for row in old.get("rows", []) if row["group"] not in groups]
        self.missing: list[Row] = [row for row in old.get("not_measured", []) if row["group"] not in groups]
        self._kept = {row["group"] for row in self.rows}

    def add(self, row: Row) -> None:
        if "machine" in row:
            self._machine = row.pop("machine")
        (self.missing if "why" in row else self.rows).append(row)
        self.save()

    @property
    def peak(self) -> float:
        """FLOP/s of the best matrix product measured; 0 before any."""
        return max((row["flops_per_second"] for row in self.rows if row["row"].startswith("product ")), default=0.0)

    def save(self) -> None:
        told = {"asked": self._asked, "rows_of_an_earlier_call": sorted(self._kept), "machine": self._machine}
        for row in self.rows:
            if self.peak and "model_flops_per_second" in row:
                row["mfu_of_measured_peak"] = round(row["model_flops_per_second"] / self.peak, 4)
        whole = {**told, "rows": self.rows, "not_measured": self.missing}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, json.dumps(whole, indent=2) + "\n")


def measure(group: str, seconds: float, given: argparse.Namespace, report: Report) -> None:
    """Run a group until it is done or its time is up; what it did not get to is named."""
    more = ["--tiny"] if given.tiny else []
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu_rows",
            group,
            "--device",
            given.device,
            "--seconds",
            str(seconds),
            *more,
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=child_environment(0),
        start_new_session=True,  # to be ended with its compilers; a training that it started ends when it is gone
    )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_pump, args=(child, lines), daemon=True)
    reader.start()
    open_rows, why, ends = [f"all of {group}"], "", time.monotonic() + seconds
    while True:
        try:
            line = lines.get(timeout=max(0.0, ends - time.monotonic()))
        except queue.Empty:
            why = f"its {seconds:.0f} s were over; give more --minutes, or --only {group}"
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            break
        if not line:
            break
        row = json.loads(line)
        if "planned" in row:
            open_rows = list(row["planned"])
            continue
        open_rows = [name for name in open_rows if name != row["row"]]
        report.add({"group": group, **row})
        print(in_words(report.missing[-1] if "why" in row else report.rows[-1]), flush=True)
    code = child.wait()
    reader.join()
    for name in open_rows:
        report.add({"group": group, "row": name, "why": why or f"its process ended with exit code {code}"})
        print(in_words(report.missing[-1]), flush=True)


def _pump(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):  # libraries print things of their own
            lines.put(line)
    lines.put("")


def in_words(row: Row) -> str:
    """A row in one line."""
    name = f"{row['group']:8} {row['row']:44}"
    if "why" in row:
        return f"{name} not measured: {row['why']}"
    if "tokens_per_second" in row:
        shares = "".join(
            f"  {100 * row[k]:5.1f} % {k[4:]}" for k in ("mfu_of_datasheet", "mfu_of_measured_peak") if row.get(k)
        )
        memory = f"  {row['peak_memory_bytes'] / 1e9:.1f} GB" if "peak_memory_bytes" in row else ""
        return f"{name} {row['tokens_per_second']['median']:12,.0f} tokens/s{shares}{memory}"
    plain = {k: v for k, v in row.items() if k not in ("group", "row") and isinstance(v, int | float | str)}
    return f"{name} " + "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all")
    parser.add_argument("--only", default=",".join(SHARES), help="groups, separated by commas: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    given = parser.parse_args()
    groups = [group for group in SHARES if group in given.only.split(",")]
    if unknown := sorted(set(given.only.split(",")) - set(SHARES)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(SHARES)}")
    if given.minutes <= 0:
        parser.error(f"--minutes is {given.minutes}; give a number above 0")
    if given.device == "cuda" and not _sees_gpu():
        parser.error("torch sees no CUDA device here; run this where one is, or try it with --device cpu --tiny")
    if given.device == "cpu" and given.out == RESULTS:
        parser.error("figures of a processor do not belong among those of GPUs; give --out FILE")
    asked = {"minutes": given.minutes, "groups": groups, "device": given.device, "tiny": given.tiny}
    report = Report(given.out, asked, groups)
    ends = time.monotonic() + 60 * given.minutes - 5  # to end the last child and write
    for number, group in enumerate(groups):
        left = ends - time.monotonic()
        share = SHARES[group] / sum(SHARES[later] for later in groups[number:])
        measure(group, max(0.0, min(left, max(_LEAST_SECONDS, left * share))), given, report)
    print(f"{len(report.rows)} rows, {len(report.missing)} not measured: {given.out}")
    return 0 if report.rows else 1


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
