"""Kills small pipelines at random moments until they are done, and compares what they made with an undisturbed run.

    python tests/chaos.py --kills 50 --seed 1 [--through plain|cli|worker] [--keep DIRECTORY]     (make chaos N=50)

The pipeline downloads over HTTP from this machine, tokenizes, imports a small random GPT-2, trains from it in its child
process, and evaluates. A seeded dice chooses a kind of moment (a download, a training step, an evaluation, a checkpoint
write, a publish, ...), waits until the files of the store show it, waits a little more, and sends SIGKILL: to the
process of the flow, to the training child, or to both at once. A new run follows at once, while an orphaned child may
still be saving. `plain` calls the functions of gptmodel; `cli` is the real `gptflow run`, with Prefect and MLflow;
`worker` is a deployment run under the servers of `make up`, where the worker is killed as well. Whatever was killed,
digests, bytes and the losses of all steps must equal those of an undisturbed `plain` run, and MLflow must hold each
step once. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import chaos_pipeline  # its neighbours
from chaos_moments import (
    BETWEEN,
    CHECKPOINT,
    EVALUATION,
    MAKING,
    MOMENTS,
    PUBLISH,
    START,
    STEP,
    TRAINING,
    Moment,
    moment,
    on_disk,
)
from chaos_pipeline import MAX_STEPS
from chaos_runs import NEED_CHILD, Pipeline, Process
from chaos_worker import Deployed

from gptmodel.store.artifacts import Store, sha256_file
from gptmodel.training.metrics_log import read_lines

ROOT = Path(__file__).resolve().parents[1]
_LOOK_SECONDS = 0.001
_PAUSE_SECONDS = {CHECKPOINT: 0.01, EVALUATION: 0.01, PUBLISH: 0.004, STEP: 0.1, START: 3.0, BETWEEN: 3.0}
"""How long at most a kill waits after its moment has come; 0.3 s where nothing is said."""
_KINDS = ("corpus", "shards", "weights", "checkpoint", "evaluation")


@dataclass(frozen=True)
class Aim:
    """When to kill, and what."""

    target: str
    name: str
    """One of MOMENTS."""
    least: int
    """In training: not before this step. Of publishing, and between steps: not before so many artifacts are there."""
    pause: float
    """Seconds to wait after that."""

    def fits(self, now: Moment) -> bool:
        if self.name in (PUBLISH, BETWEEN):
            return now.name == self.name and now.finished >= self.least
        return now.name == self.name and (now.name not in TRAINING or now.name == START or now.step >= self.least)

    def is_past(self, now: Moment) -> bool:
        """Whether the moment was missed, for a kill before it fell late."""
        return self.name not in (PUBLISH, BETWEEN) and now.finished > self.order[0]

    @property
    def order(self) -> tuple[int, int]:
        """Where a pipeline comes to it: how many artifacts are there, and how far it is with the next."""
        if self.name in TRAINING:
            return _KINDS.index("checkpoint"), self.least
        if self.name in (PUBLISH, BETWEEN):
            return self.least, 1000 if self.name == PUBLISH else -1
        return max(0, MAKING.index(self.name) - 1), MAKING.index(self.name)


def roll(dice: random.Random, targets: tuple[str, ...], number: int) -> list[Aim]:
    """So many aims, in the order in which one pipeline can meet them. Moments by the dice, targets by turns."""
    found: list[Aim] = []
    turns: dict[bool, list[str]] = {True: [], False: []}
    for _ in range(number):
        name = dice.choice((*MOMENTS, *TRAINING, PUBLISH))  # these twice as often
        trains = name in TRAINING
        least = dice.randrange(MAX_STEPS if trains else len(_KINDS))
        if not turns[trains]:
            turns[trains] = [target for target in targets if trains or target not in NEED_CHILD]
            dice.shuffle(turns[trains])
        target = turns[trains].pop()
        longest = 0.5 if (name, least) == (PUBLISH, _KINDS.index("checkpoint")) else _PAUSE_SECONDS.get(name, 0.3)
        found.append(Aim(target, name, least, dice.uniform(0, longest)))
    return sorted(found, key=lambda aim: aim.order)


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


def tracked(database: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with the training losses that MLflow holds: each step once, with the value that was computed."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT step, value FROM metrics WHERE key = 'train/loss'").fetchall()
    found: dict[str, str] = {}
    for step, value in rows:
        name = f"step {step}: train/loss"
        found[name] = f"{found[name]} and {value.hex()}" if name in found else value.hex()
    wanted = {name: value for name, value in expected.items() if name.endswith(": train/loss")}
    return [f"MLflow, {line}" for line in differences(wanted, found)]


@dataclass
class Chaos:
    """Rounds of kills, each round one pipeline in a fresh store."""

    folder: Path
    code: Path
    sets: list[str]
    through: str
    kills: int
    dice: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    fell: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.fell.total()

    def undisturbed(self) -> None:
        began = time.monotonic()
        with self._pipeline("undisturbed", "plain") as pipeline:
            pipeline.start()
            if wrong := pipeline.finish():
                raise SystemExit(f"the undisturbed run: {wrong}")
            self.expected = findings(pipeline.store)
        print(f"undisturbed: {time.monotonic() - began:.0f} s, {len(self.expected)} values to compare", flush=True)

    @contextmanager
    def _pipeline(self, name: str, through: str) -> Iterator[Pipeline]:
        folder = self.folder / name
        made = Deployed(folder, self.code, self.sets) if through == "worker" else None
        pipeline: Pipeline = made or Process(folder, self.code, self.sets, through)
        try:
            yield pipeline
        finally:
            pipeline.close()

    def round(self, number: int) -> list[str]:
        """One pipeline until it is done; what differs in the end."""
        with self._pipeline(f"pipeline-{number}", self.through) as pipeline:
            pipeline.start()
            # The servers of `worker` take a minute to start: as many kills as can be had of one pipeline.
            most = self.kills - self.done
            wanted = most if self.through == "worker" else min(most, self.dice.randrange(8, 16))
            for aim in roll(self.dice, pipeline.targets, wanted):
                if not self._kill(pipeline, aim):
                    break
            wrong = pipeline.finish()
            found = [wrong] if wrong else differences(self.expected, findings(pipeline.store))
            if not found and self.through != "plain":
                found = tracked(pipeline.store.parent / "mlflow.db", self.expected)
        return [f"pipeline {number}: {line}" for line in found]

    def _kill(self, pipeline: Pipeline, aim: Aim) -> bool:
        """Kill at the moment that is aimed at, if it comes; False if the pipeline ended before."""
        while not aim.fits(now := moment(pipeline.store, pipeline.since)):
            if pipeline.ended():
                return False
            if aim.is_past(now):
                return True
            time.sleep(_LOOK_SECONDS * (10 if now.name in (START, BETWEEN) else 1))
        time.sleep(aim.pause)
        if pipeline.ended():
            return False
        hit = pipeline.kill(aim.target)
        at, lies = moment(pipeline.store, pipeline.since), on_disk(pipeline.store)
        if not hit:
            return False
        self.fell[at.name] += 1
        print(f"kill {self.done:3}  {hit:11}  {at.name:18}  {at.words}\n{'':10}on disk: {lies}", flush=True)
        how = pipeline.go_on(hit)
        print(f"{'':10}then: {how}", flush=True)
        return True


def run(folder: Path, kills: int, seed: int, through: str) -> list[str]:
    """All rounds; what differed."""
    code = folder / "code"  # of its own, so that an edit meanwhile is not taken for a difference
    for room in ("gptmodel", "tasks", "flows", "tests"):
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", code)
    chaos_pipeline.write_corpus(folder / "corpus.jsonl")
    chaos_pipeline.write_gpt2(folder / "theirs")
    digest = hashlib.sha256((folder / "corpus.jsonl").read_bytes()).hexdigest()
    began = time.monotonic()
    with chaos_pipeline.served(folder / "corpus.jsonl") as url:
        sets = chaos_pipeline.settings(url, digest, folder / "theirs")
        chaos = Chaos(folder, code, sets, through, kills, random.Random(seed))
        chaos.undisturbed()
        wrong, rounds, compared = [], 0, 0
        try:
            while chaos.done < kills:
                rounds += 1
                wrong += (found := chaos.round(rounds))
                print(f"pipeline {rounds} is done: {len(found) or 'no'} differences", flush=True)
                if found and chaos.done == compared:
                    break  # it fails by itself, and would for ever
                compared = chaos.done
        finally:  # also when it is stopped
            print("they fell: " + ", ".join(f"{name} {chaos.fell[name]}" for name in MOMENTS if chaos.fell[name]))
            took, unseen = f"{time.monotonic() - began:.0f} s", chaos.done - compared
            also = f"; {unseen} more in one that was not finished" if unseen else ""
            print(f"{compared} kills in {rounds} pipelines, {took}: {len(wrong) or 'no'} differences{also}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--through", choices=("plain", "cli", "worker"), default="plain")
    parser.add_argument("--keep", type=Path, help="an empty directory to work in, kept; else a temporary one")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
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
