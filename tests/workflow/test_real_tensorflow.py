"""Our reader against TensorFlow itself, installed in an environment of its own (273 MB): slow."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest

from gptmodel.formats.openai_format import read_openai

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sizes", ["3 2 16 32 300", "12 4 64 128 50257"])
def test_what_tensorflow_writes_now_is_read_to_the_bit(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sizes: str
) -> None:
    python = _environment(tmp_path_factory.getbasetemp() / "tensorflow")
    (tmp_path / "theirs").mkdir()
    writer = ROOT / "tests" / "tensorflow_writer.py"
    subprocess.run([python, writer, tmp_path / "theirs", "5", *sizes.split()], check=True, capture_output=True)
    model, wanted = read_openai(tmp_path / "theirs"), np.load(tmp_path / "theirs.npz")
    assert len(wanted.files) == len(model.bundle.entries)
    for name in wanted.files:
        assert np.array_equal(model.bundle.read(name.replace("|", "/")), wanted[name])
    assert model.load().num_parameters() == sum(wanted[name].size for name in wanted.files)


def _environment(where: Path) -> Path:
    python = where / "bin" / "python"
    if not python.exists():
        venv.create(where, with_pip=True)
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *extras["tensorflow"]]
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)
    return python
