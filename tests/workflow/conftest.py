"""Real servers, and a real MLflow database, once for all tests of this folder that ask for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.mlflow_server import Server


@pytest.fixture(scope="session")
def workplace(fresh_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with Prefect's server, MLflow's database and a store; the current folder while tests run."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(folder / ".prefect"))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "1")
        # As `make up` does: on a busy machine events are dropped that find the database locked.
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT", "60")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_TRACKING_URI", fresh_mlflow(folder / "mlflow.db"))
        patch.setenv("GPTFLOW_STORE", str(folder / "store"))
        os.chdir(folder)
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=180):
            yield folder
        os.chdir(before)


@pytest.fixture(scope="session")
def fresh_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Makes an empty database with MLflow's tables at a path, and gives its address. The tables are made once: that
    takes seconds."""
    empty = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{empty}").search_experiments()

    def make(path: Path) -> str:
        shutil.copyfile(empty, path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture(scope="session")
def mlflow_server(fresh_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow server of its own process; a test may kill it, and starts it again."""
    folder = tmp_path_factory.mktemp("mlflow")
    fresh_mlflow(folder / "mlflow.db")
    with Server(folder) as server:
        yield server
