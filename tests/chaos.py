"""Kills a small pipeline at random moments until it is done, and compares what it made with an undisturbed run.

    python tests/chaos.py --kills 50 --seed 1 [--through plain|cli] [--keep DIRECTORY]        (make chaos N=50)

The pipeline downloads over HTTP from this machine, tokenizes, imports a small random GPT-2, trains from it in its child
process, and evaluates. Killed with SIGKILL, by turns of a seeded dice: the process of the flow, the training child, or
both at once. A new run follows each kill at once, while an orphaned child may still be saving. `plain` calls the
functions of gptmodel; `cli` is the real `gptflow run`, with Prefect and MLflow. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import chaos_pipeline  # its neighbour
import psutil

from gptmodel.artifacts import Store, sha256_file
from gptmodel.metrics_log import read_lines
from tasks.processes import Record

ROOT = Path(__file__).resolve().parents[1]
_MARK = "GPTFLOW_SERVICE"  # in the environment of all that an attempt starts, so that its child is found
_PATIENCE_SECONDS = 300


class Attempt:
    """One run of the chain: a flow process, and the child that it starts."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.mark = os.urandom(8).hex()
        self.began = time.monotonic()
        self.stages: dict[str, float] = {}
        """Seconds until each stage began."""
        self.said: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
        env = {**clean, "GPTFLOW_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1", _MARK: self.mark}
        env |= {"PYTHONPATH": str(ROOT)}
        self.flow = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.flow.stdout is not None
        for line in self.flow.stdout:
            with self._news:
                self.said.append(line.rstrip())
                if line.startswith("stage "):
                    self.stages[line.split()[1]] = time.monotonic() - self.began
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def reach(self, stage: str) -> None:
        """Until that stage begins, or the attempt ends."""
        with self._news:
            reached = self._news.wait_for(lambda: self._ended or stage in self.stages, _PATIENCE_SECONDS)
        if not reached:
            raise TimeoutError(f"never reached {stage}: {self.said[-5:]}")

    def ended_within(self, seconds: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: self._ended, seconds)

    def kin(self) -> list[psutil.Process]:
        return Record(self.flow.pid, 0.0, 0, self.mark).kin()

    def kill(self, target: str) -> str:
        """SIGKILL; what was hit. Without a child there is only the flow to hit."""
        children = [process for process in self.kin() if _is_child(process)]
        hit = target if children else "flow"
        if hit in ("child", "both"):
            with suppress(psutil.NoSuchProcess):
                children[0].kill()
        if hit in ("flow", "both"):
            self.flow.kill()
        return hit

    def finish(self) -> int:
        """Wait for its end; servers that it started for itself end with it. An orphaned child goes on saving."""
        code = self.flow.wait(_PATIENCE_SECONDS)
        for process in self.kin():
            if not _is_child(process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return code


def _is_child(process: psutil.Process) -> bool:
    try:
        return "gptmodel.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def on_disk(store: Path) -> str:
    """What a restart finds: finished kinds, half-built ones, the checkpoints, half a download, the last step logged."""
    done = sorted(path.parents[1].name for path in store.glob("*/[0-9a-f]*/manifest.json"))
    half = sorted(f"half a {path.parent.name}" for path in store.glob("*/.building-*"))
    parts = [f"{path.stat().st_size:,} bytes downloaded" for path in store.rglob(".*.part")]
    saved = sorted(path.name for path in store.glob("*/.building-*/.work/checkpoints/*"))
    steps = [line["step"] for log in store.glob(".runs/*/metrics.jsonl") for line in read_lines(log)]
    return ", ".join([*done, *half, *parts, *saved, *([f"log to step {steps[-1]}"] if steps else [])]) or "nothing"


def findings(root: Path) -> dict[str, str]:
    """All that must be equal, by name: digests, hashes of the bytes that lie there, each step's numbers in hex."""
    found: dict[str, str] = {}
    for artifact in Store(root).artifacts():
        found[f"{artifact.label}: digest"] = artifact.digest
        for entry in artifact.files:
            found[f"{artifact.label}: sha256 of {entry.name}"] = sha256_file(artifact.path / entry.name)
        if artifact.kind == "checkpoint":
            for line in (json.loads(text) for text in artifact.file("curve.jsonl").read_text().splitlines()):
                for name, value in line["metrics"].items():
                    found[f"step {line['step']}: {name}"] = float(value).hex()
    logged = [line for log in root.glob(".runs/*/metrics.jsonl") for line in read_lines(log)]
    found["steps in the log"] = str([line["step"] for line in logged if "train/loss" in line["metrics"]])
    found["left behind"] = str(sorted(path.name for path in (*root.glob("*/.building-*"), *root.rglob("*.part"))))
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return [f"{name}: {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}" for name in names]


@dataclass
class Chaos:
    """Rounds of kills, each round one pipeline in a fresh store."""

    folder: Path
    command: list[str]
    kills: int
    dice: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    spans: dict[str, float] = field(default_factory=dict)
    done: int = 0

    def undisturbed(self) -> None:
        folder = self.folder / "undisturbed"
        folder.mkdir()
        attempt = Attempt(self.command, folder)
        attempt.reach("never")
        if attempt.finish() != 0:
            raise RuntimeError("the undisturbed run failed:\n" + "\n".join(attempt.said[-20:]))
        starts = [*attempt.stages.values(), time.monotonic() - attempt.began]
        self.spans = {name: starts[n + 1] - starts[n] for n, name in enumerate(attempt.stages)} or {"": starts[-1]}
        self.expected = findings(folder / "store")
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.spans.items() if name)
        print(f"undisturbed: {starts[-1]:.0f} s ({parts}), {len(self.expected)} values to compare", flush=True)

    def round(self, number: int) -> list[str]:
        """One pipeline until it is done; what differs in the end."""
        folder = self.folder / f"round-{number}"
        folder.mkdir()
        while self.done < self.kills:
            if (code := self._disturbed(folder)) is not None:
                break
        else:
            attempt = Attempt(self.command, folder)
            code = attempt.finish()
        if code != 0:
            return [f"round {number}: a run that nobody killed ended with exit code {code}; see {folder}"]
        found = differences(self.expected, findings(folder / "store"))
        return [f"round {number}: {line}" for line in found]

    def _disturbed(self, folder: Path) -> int | None:
        """One attempt with a kill in it. The exit code if it ended before it was hit."""
        stage = self.dice.choice(list(self.spans))
        target = self.dice.choice(("flow", "child", "both"))
        moment = self.dice.uniform(0, self.spans[stage])
        attempt = Attempt(self.command, folder)
        if stage:
            attempt.reach(stage)
        if attempt.ended_within(moment):
            return attempt.finish()
        at = next(reversed(attempt.stages), "")
        hit = attempt.kill(target)
        lies = on_disk(folder / "store")
        if attempt.finish() == 0:
            return 0  # it was done before the child was hit
        self.done += 1
        print(f"kill {self.done:3}  {hit:5}  {at:9} on disk: {lies}", flush=True)
        return None


def run(folder: Path, kills: int, seed: int, through: str) -> list[str]:
    """All rounds; what differed."""
    chaos_pipeline.write_corpus(folder / "corpus.jsonl")
    chaos_pipeline.write_gpt2(folder / "theirs")
    digest = hashlib.sha256((folder / "corpus.jsonl").read_bytes()).hexdigest()
    with chaos_pipeline.served(folder / "corpus.jsonl") as url:
        sets = chaos_pipeline.settings(url, digest, folder / "theirs")
        options = [word for text in sets for word in ("--set", text)]
        plain = [sys.executable, chaos_pipeline.__file__, json.dumps(sets)]
        cli = [sys.executable, "-m", "flows", "run", "--preset", "smoke", *options]
        chaos = Chaos(folder, plain if through == "plain" else cli, kills, random.Random(seed))
        chaos.undisturbed()
        wrong, rounds = [], 0
        while chaos.done < kills:
            rounds += 1
            wrong += chaos.round(rounds)
    print(f"{chaos.done} kills in {rounds} pipelines: {len(wrong) or 'no'} differences", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--through", choices=("plain", "cli"), default="plain")
    parser.add_argument("--keep", type=Path, help="an empty directory to work in, kept; else a temporary one")
    told = parser.parse_args()
    folder = (told.keep or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wrong = run(folder, told.kills, told.seed, told.through)
    for line in wrong[:40]:
        print(line)
    if wrong:
        print(f"what was made lies in {folder}")
    elif not told.keep:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
