"""What is known of a machine, by its name and by measuring."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptmodel import device, nvidia
from gptmodel.config import ModelConfig, TrainConfig
from gptmodel.device import Machine, datasheet_flops, pick_device, set_up
from gptmodel.errors import ConfigError
from gptmodel.model import GPT
from gptmodel.settings import load_config
from gptmodel.training.checkpoint import TrainState
from gptmodel.training.metrics_log import MetricsLog, read_lines
from gptmodel.training.seen import Seen
from gptmodel.training.telling import Teller


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 0),  # another part, at half the speed
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0),
        ("NVIDIA GeForce RTX 4090 D", 0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 0),  # a seventh of the card
        ("Tesla T4", 0),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_data_sheet(name: str, teraflops: float) -> None:
    assert datasheet_flops(name) == teraflops * 1e12


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"more than 2 GPUs, and torch sees 2; set train\.processes=2"):
        pick_device("cuda", 2)


@pytest.mark.parametrize(
    ("files", "cuda", "hidden", "said"),
    [
        (["nvidia0", "nvidiactl"], None, None, r"there is a GPU \(.*nvidia0\), but torch \S+ is built without CUDA; w"),
        (
            ["nvidia1"],
            "13.0",
            None,
            r"\(.*nvidia1\).* is built for CUDA 13\.0 and finds none: is the driver new enough",
        ),
        (["nvidia0"], "13.0", "", ""),
        (["nvidiactl"], "13.0", None, ""),
    ],
)
def test_a_gpu_that_is_there_and_not_used_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    files: list[str],
    cuda: str | None,
    hidden: str | None,
    said: str,
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(nvidia, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")
    assert len(caplog.messages) == bool(said)
    assert re.search(said, " ".join(caplog.messages))


@pytest.mark.parametrize(("tiles", "products"), [(True, "highest"), (False, "medium")])
def test_float32_is_float32_on_a_processor_with_bfloat16_tiles(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, products: str
) -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    try:
        set_up(TrainConfig(device="cpu", precision="float32", threads=before[1]))
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before[0])


@pytest.mark.parametrize(("bfloat16", "sizes"), [(2e9, [128]), (3e11, [128, 1024])])
def test_a_processor_that_only_emulates_bfloat16_is_not_kept_busy_by_large_products(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, sizes: list[int]
) -> None:
    made: list[tuple[str, int]] = []

    def product(_: torch.device, precision: str, size: int) -> float:
        made.append((precision, size))
        return bfloat16 if precision == "bfloat16" else 1e11

    monkeypatch.setattr(device, "_fastest_product", product)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        found = set_up(TrainConfig(device="cpu", precision="auto", threads=before[0]))
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert [size for precision, size in made if precision == "bfloat16"] == sizes
    assert [size for precision, size in made if precision == "float32"] == [128, 1024]
    assert (found.precision == "bfloat16", found.peak_flops) == (bfloat16 > 1e11, max(bfloat16, 1e11))
    assert f"measured at {'3' if bfloat16 > 1e11 else '0.02'}x the speed of float32" in found.choice


@pytest.mark.parametrize(("precision", "earlier"), [("bfloat16", ""), ("auto", "bfloat16")])
def test_emulated_bfloat16_is_told_where_it_must_be_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: Any, earlier: str
) -> None:
    monkeypatch.setattr(device, "_fastest_product", lambda _, name, size: 1.4e9 if name == "bfloat16" else 1.3e11)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        found = set_up(TrainConfig(device="cpu", precision=precision, threads=before[0]), earlier)
        assert found.precision == "bfloat16"
        assert "emulates bfloat16: 1.4 GFLOP/s, where its float32 does 130" in caplog.text
        caplog.clear()
        set_up(TrainConfig(device="cpu", precision="auto", threads=before[0]))
        assert not caplog.text
    finally:
        torch.set_float32_matmul_precision(before[1])


def machine(peak: float, source: str = "measured") -> Machine:
    return Machine(torch.device("cpu"), "float32", 1, "AVX2", peak, source, "as configured")


def test_a_peak_below_what_was_seen_is_measured_again_and_no_draw_of_the_training_is_taken() -> None:
    before = torch.get_rng_state()
    assert machine(1.0).faster(2.0).peak_flops > 1e8  # any processor of today
    assert machine(1.0).faster(1e18).peak_flops == 1e18
    assert torch.equal(torch.get_rng_state(), before)
    assert machine(1.0, "datasheet").faster(2.0).peak_flops == 1.0


def test_a_step_is_told_as_no_more_than_the_peak(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path / "metrics.jsonl")
    metrics.start(-1)
    config = replace(load_config("smoke").train, log_every=1)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8), seed=0)
    teller = Teller(metrics, config, model, machine(1.0), world=1)
    seen = Seen(loss=1.0, grad_norm=1.0, n_bytes=1)
    for step, seconds in enumerate((1.0, 1e-9, 1.0), start=1):  # the median of two steps lies between them
        teller.step(TrainState(step=step), seen, seconds)
    metrics.close()
    shares = [line["metrics"]["speed/mfu"] for line in read_lines(metrics.path)]
    assert shares[0] < 0.5
    assert max(shares) <= 1
