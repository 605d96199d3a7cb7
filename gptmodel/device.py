"""The machine under the training: devices, precision, peak speed, memory, and what must be recorded about them."""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from gptmodel.config import TrainConfig
from gptmodel.errors import ConfigError
from gptmodel.nvidia import gpu_files
from gptmodel.resident import peak_resident_bytes

log = logging.getLogger(__name__)

# Dense bf16 tensor-core peaks from the makers' data sheets, FLOP/s, by words of the name torch gives.
_DATASHEET_BF16 = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
_NOT_WHOLE = r"\b(MIG|Laptop|Max-Q|4090 D)\b"  # a part of a card, or a smaller one under its name
_BF16_GAIN = 1.3  # bfloat16 must be this much faster to be worth its rounding; ours measured 2 or more, or below 1
_GEMM_SIZE = 1024
_SLOW_FLOPS = 8e9  # one core's float32 does better; bfloat16 without instructions for it does 1 to 3e9


@dataclass(frozen=True)
class Machine:
    """What a run computes on. `precision` and `threads` decide bits, and are recorded with the result."""

    device: torch.device
    precision: str
    """float32 or bfloat16 (autocast)."""
    threads: int
    name: str
    """The device's own name, or the processor's vector capability."""
    peak_flops: float
    """FLOP/s of this precision: by data sheet where known, else a measured matrix product."""
    peak_source: str
    """datasheet or measured."""
    choice: str
    """Why this precision."""

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def faster(self, seen: float) -> Machine:
        """Where one device did so many FLOP/s, more than the peak: that was measured while others worked. So again."""
        if self.peak_source != "measured":
            return self
        return replace(self, peak_flops=max(seen, _gemm_flops(self.device, self.precision)))


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; ConfigError where a GPU is asked for and none is there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no CUDA device here; set train.device=cpu or auto")
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if unused := unused_gpu():
            log.warning("%s; working on the processor", unused)
        return torch.device("cpu")
    if local_rank >= (there := torch.cuda.device_count()):
        raise ConfigError(
            f"train.processes asks for more than {local_rank} GPUs, and torch sees {there}; "
            f"set train.processes={there}, or 0 for one each"
        )
    return torch.device("cuda", local_rank)


def unused_gpu() -> str:
    """Why torch cannot use the GPU that the system has, in words; empty where it can, or where there is none."""
    there = gpu_files()
    if not there or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or torch.cuda.is_available():
        return ""
    cuda = torch.version.cuda
    why = f"is built for CUDA {cuda} and finds none: is the driver new enough?" if cuda else "is built without CUDA"
    return f"there is a GPU ({there[0]}), but torch {torch.__version__} {why}"


def set_up(config: TrainConfig, precision: str = "", local_rank: int = 0) -> Machine:
    """Threads, determinism and precision for this process. `precision` repeats the choice of an earlier attempt."""
    device = pick_device(config.device, local_rank)
    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(_float32_products(device))
    if config.compile:
        torch.use_deterministic_algorithms(config.deterministic)
    else:  # the same, but for telling the compiler, whose import takes seconds
        torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wanted = precision or config.precision
    if wanted == "auto":
        speeds = {name: _gemm_flops(device, name) for name in ("float32", "bfloat16")}
        gain = speeds["bfloat16"] / speeds["float32"]
        wanted = "bfloat16" if gain >= _BF16_GAIN else "float32"
        choice = f"auto: bfloat16 matrix products measured at {gain:.2g}x the speed of float32"
    else:
        speeds = {wanted: _gemm_flops(device, wanted)}
        choice = "as an earlier attempt of this run" if precision else "as configured"
    if device.type == "cpu" and wanted == "bfloat16" and speeds[wanted] < _SLOW_FLOPS:
        log.warning(
            "this processor only emulates bfloat16: %.1f GFLOP/s, where its float32 does %.0f; a new training "
            "is many times as fast with train.precision=float32",
            speeds[wanted] / 1e9,
            _gemm_flops(device, "float32") / 1e9,
        )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what was multiplied above is not the training's memory
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    datasheet = datasheet_flops(name) if wanted == "bfloat16" else 0.0
    return Machine(
        device=device,
        precision=wanted,
        threads=threads,
        name=name,
        peak_flops=datasheet or speeds[wanted],
        peak_source="datasheet" if datasheet else "measured",
        choice=choice,
    )


def _float32_products(device: torch.device) -> Literal["highest", "high", "medium"]:
    """TF32 on a GPU, and oneDNN's float32 on a processor: with tiles (AMX) that would be bfloat16 under its name."""
    if device.type == "cuda":
        return "high"
    return "highest" if torch.cpu._is_amx_tile_supported() else "medium"


def datasheet_flops(name: str) -> float:
    """Dense bfloat16 FLOP/s of the GPU with this name; 0 where we do not know it, as of an A10G, which is no A10."""
    known = (flops for part, flops in _DATASHEET_BF16.items() if re.search(rf"\b{part}\b", name))
    return 0.0 if re.search(_NOT_WHOLE, name) else next(known, 0.0)


def _gemm_flops(device: torch.device, precision: str) -> float:
    """Speed of a square matrix product, FLOP/s.

    A processor without instructions for bfloat16 needs seconds for one of full size: there a small one says enough.
    """
    if device.type != "cpu":
        return _fastest_product(device, precision, 8 * _GEMM_SIZE)
    small = _fastest_product(device, precision, _GEMM_SIZE // 8)
    return small if small < _SLOW_FLOPS else _fastest_product(device, precision, _GEMM_SIZE)


def _fastest_product(device: torch.device, precision: str, size: int) -> float:
    """FLOP/s of the fastest of ten, since others on the machine only slow it down."""
    draw = torch.Generator(device).manual_seed(0)  # the global one is the training's
    a, b = (torch.randn(size, size, device=device, generator=draw).to(getattr(torch, precision)) for _ in range(2))
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * float(size) ** 3 / min(seconds[2:])


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()
