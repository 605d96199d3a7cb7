"""Seconds of a training step, ours against each peer in turns: one row for each size and peer.

    make bench-step NANOGPT=path/to/nanoGPT/model.py

For each peer two processes are started afresh, ours and theirs, and step in turns, ours, theirs, ours, theirs; the
first step of each warms up and must show the same loss, or the row is void. On a busy machine trust the ratios, which
are medians of neighbouring steps, and among them those of processor time. Peers run as shipped, and again in bfloat16
autocast. Ours runs in bfloat16 with the allocator settings of its child process, as a training does where that is
faster (`--dtype float32` for the rest). Rows of an earlier call stay in the file until they are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gptmodel.training.launch import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "training_step.json"
SIZES = {
    "GPT-2 124M, 4 x 256": (12, 12, 768, 4, 256),
    "GPT-2 124M, 2 x 1024": (12, 12, 768, 2, 1024),
    "6 layers, 384 wide, 16 x 256": (6, 6, 384, 16, 256),
}
TOLERANCE = {"float32": 5e-4, "bfloat16": 1e-2}  # nats; nanoGPT and ours differ in GELU's formula by 1e-4


class Process:
    """A contestant that makes a step when asked."""

    def __init__(self, python: str, who: str, sizes: tuple[int, ...], dtype: str, given: argparse.Namespace) -> None:
        command = [python, "-m", "benchmarks.contestants", who, "--sizes", *map(str, sizes), "--dtype", dtype]
        command += ["--threads", str(given.threads), "--nanogpt", given.nanogpt, "--vocab", str(given.vocab)]
        env = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(given.threads), **(ALLOCATOR if who == "ours" else {})}
        self.child = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self.parameters = self._answer()["parameters"]

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith("{"):  # peers print things of their own
                return dict(json.loads(line))
        raise SystemExit(f"a contestant ended with exit code {self.child.wait()}; its error is above")

    def step(self) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Peak memory in bytes."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        peak = int(self._answer()["peak_bytes"])
        self.child.wait()
        return peak


def race(name: str, sizes: tuple[int, ...], peer: str, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row: ours and a peer in turns."""
    pair = {
        "ours": Process(sys.executable, "ours", sizes, given.dtype, given),
        "peer": Process(given.peers if peer != "ours" else sys.executable, peer, sizes, dtype, given),
    }
    first = {side: process.step()["loss"] for side, process in pair.items()}
    steps: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(given.rounds):
        for side, process in pair.items():
            steps[side].append(process.step())
    row: dict[str, Any] = {"size": name, "peer": peer, "peer_dtype": dtype, "our_dtype": given.dtype}
    row["first_loss"] = first
    both = max(TOLERANCE[dtype], TOLERANCE[given.dtype])
    row["void"] = abs(first["ours"] - first["peer"]) > both
    for clock in ("wall", "cpu"):
        seconds = {side: [s[clock] for s in found] for side, found in steps.items()}
        row[clock] = {
            side: {"median": statistics.median(s), "least": min(s), "most": max(s)} for side, s in seconds.items()
        }
        row[clock]["ratio"] = statistics.median(
            theirs / ours for ours, theirs in zip(seconds["ours"], seconds["peer"], strict=True)
        )
    row["peak_bytes"] = {side: process.end() for side, process in pair.items()}
    row["rounds"], row["load"] = given.rounds, round(os.getloadavg()[0], 1)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| size | against | their / our processor time | their / our wall time | our / their peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        memory = " / ".join(f"{row['peak_bytes'][side] / 1e9:.1f}" for side in ("ours", "peer"))
        ratios = "void: losses differ | " if row["void"] else f"{row['cpu']['ratio']:.2f} | {row['wall']['ratio']:.2f}"
        lines.append(f"| {row['size']} | {row['peer']} {row['peer_dtype']} | {ratios} | {memory} |")
    return "\n".join(lines)


def machine(given: argparse.Namespace) -> dict[str, Any]:
    """What it ran on: never the host's name."""
    program = (
        "import json, torch, importlib.metadata as m; names = ('torch', 'transformers', 'litgpt', 'llms-from-scratch');"
        "found = {d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name'] in names};"
        "print(json.dumps([torch.backends.cpu.get_cpu_capability(), found]))"
    )
    capability, versions = json.loads(
        subprocess.run([given.peers, "-c", program], check=True, capture_output=True).stdout
    )
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    ran = {"cpu": cpu, "capability": capability, "threads": given.threads}
    return {**ran, "python": platform.python_version(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peers", default=str(ROOT / ".bench" / "bin" / "python"), help="python with the peers")
    parser.add_argument("--nanogpt", default="", help="nanoGPT's model.py; without it there is no row for it")
    parser.add_argument("--against", default="", help="such as nanogpt:float32,book:bfloat16; all if not given")
    parser.add_argument("--size", type=int, nargs="*", default=list(range(len(SIZES))), help="rows of SIZES, from 0")
    parser.add_argument("--sizes", type=int, nargs=5, help="another size: layers, heads, width, sequences, tokens")
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = [*(["nanogpt"] if given.nanogpt else []), "transformers", "book", "litgpt"]
    wanted = [tuple(w.split(":")) for w in given.against.split(",") if w] or [
        (name, dtype) for name in names for dtype in ("float32", "bfloat16")
    ]
    sizes = (
        {"given": tuple(given.sizes)} if given.sizes else {k: SIZES[k] for k in (list(SIZES)[i] for i in given.size)}
    )
    key = ("size", "peer", "peer_dtype", "our_dtype")
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    for name, numbers in sizes.items():
        for peer, dtype in wanted:
            row = race(name, numbers, peer, dtype, given)
            rows = [*(r for r in rows if any(r[k] != row[k] for k in key)), row]
            found = {"machine": machine(given), "rows": rows}
            given.out.parent.mkdir(exist_ok=True)
            given.out.write_text(json.dumps(found, indent=2) + "\n")
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
