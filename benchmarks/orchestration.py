"""What is paid around the work: starting, Prefect, MLflow, manifests, in a pipeline of which all is there already.

    python -m benchmarks.orchestration [--rounds 5]

In a scratch folder with the servers of `make up` on free ports: the `smoke` preset on a few speeches once, and then
again and again. Also what importing the flows costs, and the reused pipeline without servers, where Prefect starts one
for the time of the run. Wall seconds, and processor seconds of the command and its children, which depend less on what
else the machine does. Of the first run: its wall time less that of its training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RESULTS = Path(__file__).with_name("results") / "orchestration.json"
REPOSITORY = Path(__file__).resolve().parents[1]
SETS = ["corpus.source.first_year=2000", "model.n_layer=1", "train.max_steps=20", "train.eval_every=10"]
RUN = ["-m", "flows", "run", "--preset", "smoke", "--json", *(word for text in SETS for word in ("--set", text))]
IMPORT = ["-c", "import flows.pipeline, flows.evaluate, flows.import_weights, flows.reproduce"]


def run(folder: Path, words: list[str], **env: str) -> tuple[float, float, str]:
    """(wall, processor) seconds of `python WORDS` in the folder, and what it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, env=clean | env, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def medians(runs: list[tuple[float, float, str]]) -> dict[str, Any]:
    walls, cpus = ([round(each[n], 2) for each in runs] for n in (0, 1))
    median = {"wall": statistics.median(walls), "processor": statistics.median(cpus)}
    return {**median, "walls": walls, "processors": cpus}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    (folder / ".git").mkdir()  # Prefect looks here, and not above, for a project
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    up = run(folder, ["-m", "tasks.services", "up"], **ports)
    try:
        first = run(folder, RUN)
        training = json.loads(first[2])["model"]["summary"]["seconds"]
        reused = [run(folder, RUN) for _ in range(rounds)]
        imports = [run(folder, IMPORT) for _ in range(rounds)]
    finally:
        run(folder, ["-m", "tasks.services", "down"])
    alone = [run(folder, RUN) for _ in range(min(rounds, 3))]
    return {
        "machine": machine("prefect", "mlflow"),
        "make_up": medians([up]),
        "first_run": {
            "wall": round(first[0], 2),
            "training": round(training, 2),
            "around": round(first[0] - training, 2),
        },
        "reused_with_servers": medians(reused),
        "import_of_the_flows": medians(imports),
        "reused_without_servers": medians(alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    with tempfile.TemporaryDirectory(prefix="gptflow-orchestration-") as folder:
        found = measure(Path(folder), parser.parse_args().rounds)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for name in ("make_up", "reused_with_servers", "import_of_the_flows", "reused_without_servers"):
        print(f"{name:24} {found[name]['wall']:6.1f} s wall  {found[name]['processor']:6.1f} s of processor")
    print(f"first run: {found['first_run']['around']:.1f} s around {found['first_run']['training']:.1f} s of training")


if __name__ == "__main__":
    main()
