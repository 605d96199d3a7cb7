"""Killed at chosen moments, damaged, moved to another machine, its data changed: what a resumed training does then."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gptmodel.config import PipelineConfig
from gptmodel.errors import ArtifactError
from gptmodel.pretraining.assembly import _as_planned
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import MANIFEST, Artifact, Store, load_artifact, sha256_file
from gptmodel.training.metrics_log import read_lines

Tiny = Callable[..., PipelineConfig]

# Python runs this file first in every process that has its directory on PYTHONPATH. It kills the process at the moment
# that KILL_AT names: an audit event whose first argument fits a pattern, or the nth sample of an evaluation.
_KILLER = r"""
import os, re, signal, sys
event, _, pattern = os.environ.get("KILL_AT", "").partition(" ")

def die():
    open(os.environ["KILLED"], "w").close()
    os.kill(os.getpid(), signal.SIGKILL)

def sample_to_die_at(left):
    from gptmodel.training.validation import SplitEvaluator
    real = SplitEvaluator._samples
    def samples(self, model):
        nonlocal left
        left -= 1
        return real(self, model) if left else die()
    SplitEvaluator._samples = samples

def look(found, args):
    global event
    if found == event and re.search(pattern, str(args[0])):
        die()
    if event == "sample" and found == "open" and str(args[0]).endswith("machine.json"):  # all is imported by now
        event = ""
        sample_to_die_at(int(pattern))

if event:
    sys.addaudithook(look)
"""

PARENT = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.config import PipelineConfig
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.settings import parse_config
store = Store(Path(sys.argv[1]))
config = parse_config(json.loads(sys.argv[3]), PipelineConfig)
pretrain(store, plan_training(store, config, store.resolve(sys.argv[2])), on_line=lambda l: print(l, flush=True))
"""

HALF_WRITTEN = r"open \.step-00000009\.tmp/state\.json$"
LATER_MOMENTS = {
    "it evaluates": "sample 1",
    "the manifest is being written": r"os.rename /\.manifest\.json\.",
}


class Place:
    """A store of its own, and a training in it that can be killed."""

    def __init__(self, tiny_data: tuple[Store, Artifact], config: PipelineConfig, root: Path) -> None:
        if not root.exists():
            shutil.copytree(tiny_data[0].root, root / "store")
        self.root, self.config = root, config
        self.store = Store(root / "store")
        self.shards = self.store.resolve(tiny_data[1].label)
        self.training = plan_training(self.store, config, self.shards)
        self.checkpoints = self.store.building_path(self.training.request) / ".work" / "checkpoints"

    def killed(self, moment: str) -> list[str]:
        """One attempt in processes of its own, killed at a moment; its lines."""
        (self.root / "sitecustomize.py").write_text(_KILLER)
        mark = self.root / "killed"
        mark.unlink(missing_ok=True)
        paths = os.pathsep.join([str(self.root), str(Path(__file__).parents[2])])
        env = {**os.environ, "PYTHONPATH": paths, "KILL_AT": moment, "KILLED": str(mark)}
        told = [str(self.store.root), self.shards.label, json.dumps(asdict(self.config))]
        done = subprocess.run([sys.executable, "-c", PARENT, *told], env=env, capture_output=True, text=True)
        assert mark.exists(), f"not killed at {moment!r}: {done.stdout}{done.stderr}"
        assert done.returncode != 0
        return done.stdout.splitlines()

    def finish(self) -> tuple[Artifact, list[str]]:
        """An undisturbed attempt; the artifact and its lines."""
        lines: list[str] = []
        return pretrain(self.store, self.training, on_line=lines.append)[0], lines

    def losses(self) -> list[tuple[int, str]]:
        """(step, training loss as a hex float), as logged."""
        lines = read_lines(self.training.metrics_file)
        return [(li["step"], li["metrics"]["train/loss"].hex()) for li in lines if "train/loss" in li["metrics"]]


@pytest.fixture(scope="module")
def whole(tiny_data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact) -> tuple[Place, Artifact]:
    """The run that nothing disturbed."""
    return Place(tiny_data, tiny(), undisturbed.path.parents[2]), undisturbed


@pytest.fixture(scope="module")
def halfway(tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run killed while it wrote the checkpoint of step 9, with those of steps 3 and 6."""
    place = Place(tiny_data, tiny(), tmp_path_factory.mktemp("halfway") / "place")
    place.killed(HALF_WRITTEN)
    assert (place.checkpoints / ".step-00000009.tmp").is_dir()
    assert [path.name for path in sorted(place.checkpoints.glob("step-*"))] == ["step-00000003", "step-00000006"]
    return place


@pytest.fixture
def resumed(halfway: Place, tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path) -> Callable[..., Place]:
    """A copy of that run for each test; arguments are more `--set` values."""

    def make(*sets: str) -> Place:
        shutil.copytree(halfway.root, tmp_path / "place")
        return Place(tiny_data, tiny(*sets), tmp_path / "place")

    return make


def test_a_run_killed_at_every_turn_ends_in_the_same_bytes(
    resumed: Callable[..., Place], whole: tuple[Place, Artifact]
) -> None:
    place = resumed()
    for moment in LATER_MOMENTS.values():
        place.killed(moment)
    artifact, _ = place.finish()
    assert place.losses() == whole[0].losses()
    assert [step for step, _ in place.losses()] == list(range(1, 13))
    assert artifact.digest == whole[1].digest
    assert load_artifact(artifact.path).file("model.safetensors")
    assert pretrain(place.store, place.training)[1], "a second call reuses it"


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_gives_the_same_bytes(
    resumed: Callable[..., Place], whole: tuple[Place, Artifact]
) -> None:
    place = resumed()
    file = place.checkpoints / "step-00000006" / "optimizer.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    artifact, lines = place.finish()
    assert any("step-00000006 is damaged: optimizer.safetensors" in line for line in lines)
    assert "going on from the checkpoint of step 3" in lines
    assert artifact.digest == whole[1].digest


def test_what_has_changed_since_the_first_attempt_is_one_line(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from gptmodel.pretraining.worker import _machine

    first = {"precision": "float32", "threads": 7, "device": "AVX9", "world": 1}
    (tmp_path / "machine.json").write_text(json.dumps(first))
    config, threads = tiny(), torch.get_num_threads()
    with caplog.at_level(logging.WARNING):
        machine = _machine(config, tmp_path, 0, 1)
        torch.set_num_threads(threads)
    (told,) = [record.message for record in caplog.records]
    changed = f"threads 7 -> 1, device AVX9 -> {machine.name}"
    assert told == f"this run began otherwise ({changed}): results may differ by rounding"
    assert json.loads((tmp_path / "machine.json").read_text()) == first, "each attempt is compared with the first"


@pytest.mark.slow
def test_a_resume_on_another_machine_is_told_in_one_line(
    resumed: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    _, lines = resumed("train.threads=2").finish()
    (told,) = [line for line in lines if line.startswith("this run began otherwise")]
    assert "threads 1 -> 2" in told
    if (ours := torch.backends.cpu.get_cpu_capability()) != "DEFAULT":
        assert f"device {ours} -> DEFAULT" in told
    assert "going on from the checkpoint of step 6" in lines


def test_an_input_that_holds_something_else_by_now_is_refused(tiny_data: tuple[Store, Artifact]) -> None:
    path, digest = str(tiny_data[1].path), tiny_data[1].digest
    assert _as_planned(path, digest).digest == digest
    with pytest.raises(ArtifactError, match=r"now holds .* and this run was begun with 0000000000000000"):
        _as_planned(path, "0" * 64)


@pytest.mark.slow
def test_shards_changed_under_a_run_are_refused_by_digest(resumed: Callable[..., Place]) -> None:
    place = resumed()
    before = place.shards
    name = before.names(".arrow")[0]
    changed = bytearray((before.path / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (before.path / name).write_bytes(changed)
    # Others put there in its stead, whole and in order: not damaged, but not what this run began with.
    files = tuple(replace(e, sha256=sha256_file(before.path / e.name)) for e in before.files)
    manifest = json.loads((before.path / MANIFEST).read_text())
    del manifest["seal"]
    manifest |= {"files": [asdict(e) for e in files], "digest": replace(before, files=files).digest}
    (before.path / MANIFEST).write_text(json.dumps(manifest))
    now = load_artifact(before.path)
    with pytest.raises(
        ArtifactError, match=rf"now holds {now.digest[:16]}…, and this run was begun with {before.digest[:16]}…"
    ):
        place.finish()
    assert sorted(path.name for path in place.checkpoints.glob("step-*")) == ["step-00000003", "step-00000006"]
    assert plan_training(place.store, place.config, now).request.fingerprint != place.training.request.fingerprint
