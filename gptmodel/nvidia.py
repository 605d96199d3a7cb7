"""NVIDIA's GPUs as the system shows them, asked without torch, which may be built for none or find none."""

from __future__ import annotations

from pathlib import Path

_DEVICES = Path("/dev")


def gpu_files() -> list[Path]:
    """The device files of GPUs whose driver is loaded; none on WSL, which shows them in another way."""
    return sorted(_DEVICES.glob("nvidia[0-9]*"))
