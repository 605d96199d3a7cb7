"""The benchmarks run from end to end at a tiny size, so that they still do when somebody needs a figure: slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_race_against_transformers_starts_from_the_same_loss(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    sizes = ["--sizes", 1, 2, 32, 2, 16, "--vocab", 300, "--rounds", 1, "--threads", 1, "--dtype", "float32"]
    against = ["--peers", sys.executable, "--against", "transformers:float32,transformers:bfloat16"]
    printed = run("benchmarks.training_step", *sizes, *against, "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert [row["peer_dtype"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert not row["void"]
        assert min(row["wall"]["ratio"], row["cpu"]["ratio"], *row["peak_bytes"].values()) > 0
    assert rows[0]["first_loss"]["ours"] == pytest.approx(rows[0]["first_loss"]["peer"], abs=1e-5)
    assert "| given | transformers bfloat16 |" in printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_curves_of_all_choices_are_compared(tmp_path: Path) -> None:
    run("benchmarks.curves", "--seeds", 1, "--steps", 20, "--width", 16, "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert {len(curve["1"]) for curve in found["curves"].values()} == {21}
    assert all(losses[0] < 10.8 for losses in found["last_validation_loss"].values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_gpus_figures_are_written_row_by_row_and_what_is_missing_is_named(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    whole = ["benchmarks.gpu", "--device", "cpu", "--tiny", "--out", out]
    run(*whole, "--minutes", 10)
    found = json.loads(out.read_text())
    unmeasured = {row["row"] for row in found["not_measured"]}
    assert unmeasured <= {"attention, cudnn_attention", "attention, efficient_attention"}  # a processor has none
    steps = [row for row in found["rows"] if row["group"] in ("124m", "355m", "774m")]
    assert {(row["group"], row["optimizer"]) for row in steps} == {
        (group, optimizer) for group in ("124m", "355m", "774m") for optimizer in ("adamw", "muon")
    }
    for row in steps:
        assert row["tokens_per_second"]["least"] <= row["tokens_per_second"]["median"]
        assert row["mfu_of_measured_peak"] > 0
    heads = [row["loss"] for row in found["rows"] if row["row"].startswith("head")]
    assert heads[0] == pytest.approx(heads[1], abs=1e-2)
    writing = {row["row"]: row for row in found["rows"] if row["group"] == "writing"}
    assert writing["batch 8, greedy"]["same_tokens"]
    assert {row["group"] for row in found["rows"]} == {"machine", "124m", "writing", "race", "355m", "774m"}
    run(*whole, "--only", "machine,355m", "--minutes", 0.09)  # no time for anything
    later = json.loads(out.read_text())
    assert {row["group"] for row in later["rows"]} == {"124m", "writing", "race", "774m"}
    assert {row["row"] for row in later["not_measured"]} >= {"all of machine", "all of 355m"}
    assert later["machine"] == found["machine"]
