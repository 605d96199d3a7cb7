"""Two real processes take a step together: what each holds, what they send each other, and that it is counted right."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.model import GPT
from gptmodel.planning.trial import RandomTokens
from gptmodel.sharding import own_part, shard
from gptmodel.tokens.batches import Batches
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal, Validation
from tests.traffic import Traffic

RANKS, BATCH = 2, 16
SHAPE = ModelConfig(vocab_size=502, context_length=16, n_layer=3, n_head=2, n_embd=32, dropout=0.0)
MACHINE = Machine(torch.device("cpu"), "float32", 1, "cpu", 1e9, "measured", "as configured")
WEIGHTS = 4 * sum(p.numel() for p in GPT(SHAPE, seed=1).parameters())
GROUPS = 4 * SHAPE.n_layer * (12 * SHAPE.n_embd**2 + 9 * SHAPE.n_embd)  # attention and feed-forward, without norms
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="no gloo in this torch"),
]


@dataclass(frozen=True)
class Asked:
    """How two processes train."""

    micro_batches: int = 2
    sharded: bool = True
    kind: Any = "adamw"
    precision: str = "float32"
    compiled: bool = False


def trainer_of(directory: Path, micro_batches: int, asked: Asked, rank: int = 0, world: int = 1) -> Trainer:
    """A trainer whose steps have so many micro-batches in each process."""
    model, machine = GPT(SHAPE, seed=1), replace(MACHINE, precision=asked.precision)
    if world > 1 and asked.sharded:
        shard(model, machine.device, asked.precision, compiled=asked.compiled)
    optimizer = OptimizerConfig(kind=asked.kind, learning_rate=1e-2, warmup_steps=0, schedule="constant")
    config = TrainConfig(batch_size=BATCH, micro_batch_size=BATCH // world // micro_batches, optimizer=optimizer)
    return Trainer(
        model=model,
        optimizer=make_optimizer(model, optimizer),
        batches=Batches(
            RandomTokens(100_000, SHAPE.vocab_size),
            context_length=SHAPE.context_length,
            batch_size=BATCH,
            micro_batch_size=config.micro_batch_size,
            seed=1,
            rank=rank,
            world=world,
        ),
        evaluate=lambda: Validation(1.0, 1.0),
        metrics=MetricsLog(directory / "metrics.jsonl"),
        checkpoints=Checkpointer(directory / "checkpoints", 1, read_only=rank != 0),
        config=config,
        machine=machine,
        byte_lengths=torch.ones(SHAPE.vocab_size, dtype=torch.int64),
        stop=StopSignal(),
        documents=lambda _: [],
        replay="",
        rank=rank,
        world=world,
    )


def one_rank(rank: int, folder: str, runs: dict[str, Asked]) -> None:
    """What one process does and sees in each of some runs, as JSON in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    told = {}
    for name, asked in runs.items():
        directory = Path(folder) / name
        directory.mkdir(exist_ok=True)
        trainer = trainer_of(directory, asked.micro_batches, asked, rank, RANKS)
        state, seen = TrainState(), []
        trainer.model.train()
        for _ in range(3):
            with Traffic() as traffic:
                seen.append(asdict(trainer.advance(state)))
        trainer.checkpoints.save(trainer.model, trainer.optimizer, state)
        trainer.checkpoints.close()
        moments = [own_part(value) for fields in trainer.optimizer.state.values() for value in fields.values()]
        told[name] = {
            "seen": seen,
            "weights": sum(own_part(parameter).nbytes for parameter in trainer.model.parameters()),
            "moments": sum(value.nbytes for value in moments if value.dim()),
            "bytes": traffic.bytes,
        }
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


Told = tuple[Path, dict[str, Any], dict[str, Any]]


def two_ranks(folder: Path, runs: dict[str, Asked]) -> Told:
    """Three steps of two processes in each run; the folder, and what each saw."""
    mp.spawn(one_rank, (str(folder), runs), RANKS)  # type: ignore[no-untyped-call]
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS))
    return folder, first, second


RUNS = {
    "averaged-1": Asked(1, sharded=False),
    "averaged-4": Asked(4, sharded=False),
    "float32": Asked(1),
    "float32-4": Asked(4),
    "bfloat16": Asked(precision="bfloat16"),
    "muon": Asked(kind="muon"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All but what torch's compiler takes part in, in one pair of processes: starting them takes most of the time."""
    return two_ranks(tmp_path_factory.mktemp("ranks"), RUNS)


@pytest.mark.parametrize("name", ["averaged-1", "averaged-4"])
def test_averaging_sends_the_gradients_once_a_step_whatever_the_number_of_micro_batches(told: Told, name: str) -> None:
    for rank in told[1:]:
        # 16 bytes are the loss and the bytes of its targets, two float64
        assert rank[name]["bytes"] == {"allreduce_": WEIGHTS + 16}
        assert (rank[name]["weights"], rank[name]["moments"]) == (WEIGHTS, 2 * WEIGHTS)


@pytest.mark.parametrize("name", ["float32", "float32-4", "bfloat16"])
def test_parts_send_what_the_page_on_scaling_says(told: Told, name: str) -> None:
    asked = RUNS[name]
    for rank in told[1:]:
        sent = dict(rank[name]["bytes"])
        assert sent.pop("_reduce_scatter_base_") == WEIGHTS, "gradients go once a step"
        groups = GROUPS if asked.precision == "float32" else GROUPS // 2
        # the groups forward and back; the rest once, since it is kept
        assert sent.pop("_allgather_base_") == asked.micro_batches * (WEIGHTS - GROUPS + 2 * groups)
        assert sum(sent.values()) < 100, f"beside them only loss and norm: {sent}"


def test_parts_send_updates_of_muon_once_in_16_bits(told: Told) -> None:
    matrices = GROUPS // 4 - 9 * SHAPE.n_layer * SHAPE.n_embd
    for rank in told[1:]:
        assert rank["muon"]["bytes"]["all_gather_into_tensor"] == 2 * matrices // RANKS  # counted as it goes in


def test_each_process_holds_its_part_of_weights_and_moments_and_no_more(told: Told) -> None:
    found = [rank["float32"] for rank in told[1:]]
    assert sum(held["weights"] for held in found) == WEIGHTS
    assert sum(held["moments"] for held in found) == 2 * WEIGHTS
    for held in found:
        assert held["weights"] == pytest.approx(WEIGHTS / RANKS, rel=0.02)
        assert held["moments"] == pytest.approx(2 * WEIGHTS / RANKS, rel=0.02)


@pytest.mark.parametrize(
    ("name", "loss", "norm", "weight"),
    [("float32-4", 1e-6, 1e-5, 1e-4), ("muon", 1e-4, 1e-3, 1e-3), ("bfloat16", 1e-4, 1e-3, 1e-3)],
)
def test_losses_gradient_norms_and_updates_are_those_of_one_process(
    told: Told, tmp_path: Path, name: str, loss: float, norm: float, weight: float
) -> None:
    """Muon multiplies in bfloat16, whatever the rest does: what differs by rounding comes out further apart."""
    compare_with_one(told, tmp_path, name, RUNS[name], loss, norm, weight)


def test_compiled_parts_follow_what_is_not_compiled(tmp_path: Path) -> None:
    asked = Asked(compiled=True)
    told = two_ranks(tmp_path, {"compiled": asked})
    compare_with_one(told, tmp_path, "compiled", asked, 1e-5, 1e-4, 1e-3)


def compare_with_one(
    told: Told, folder: Path, name: str, asked: Asked, loss: float, norm: float, weight: float
) -> None:
    """Hold what two processes saw and saved against one that did the same steps."""
    one, other = (trainer_of(folder / new, 2 * asked.micro_batches, asked) for new in ("one", "other"))
    state = TrainState()
    steps = [one.advance(state) for _ in range(3)]
    for rank in told[1:]:
        seen = rank[name]["seen"]
        assert [step["loss"] for step in seen] == pytest.approx([step.loss for step in steps], abs=loss)
        assert [step["grad_norm"] for step in seen] == pytest.approx([step.grad_norm for step in steps], rel=norm)
    found = Checkpointer(told[0] / name / "checkpoints", 1).load_newest(other.model, other.optimizer)
    assert found is not None
    assert (found.step, found.tokens) == (state.step, state.tokens)
    for (label, mine), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        apart = float((mine - theirs).detach().abs().max())
        assert apart < weight, (label, apart)
        assert {*one.optimizer.state[mine]} == {*other.optimizer.state[theirs]}, label
