"""`make up` and `make down` for real: servers, worker, a deployment's run, repair, and nothing left at the end.

One project folder serves all tests, in this order; the last one takes it down.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tasks.operations.processes import ask
from tasks.operations.servers import environment

REPOSITORY = Path(__file__).resolve().parents[2]
FLOW = """
import time
from pathlib import Path
import mlflow
from prefect import flow

@flow
def hello(seconds: float = 0.0) -> None:
    mlflow.set_experiment("hello")
    with mlflow.start_run():
        mlflow.log_text("good day", "said.txt")
    Path("begun").touch()
    try:
        time.sleep(seconds)
    except BaseException:
        Path("saved").touch()
        raise
"""
DEPLOYMENTS = "deployments:\n- name: once\n  entrypoint: hello_flow.hello\n  work_pool: {name: local}\n"


@dataclass
class Project:
    folder: Path
    prefect_port: int
    mlflow_port: int

    def services(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        ports = {"PREFECT_PORT": str(self.prefect_port), "MLFLOW_PORT": str(self.mlflow_port)}
        return self.run("-m", "tasks.services", command, **(ports | env))

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS` in the folder, as from a shell in which nothing was exported."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=self.folder, env=clean | env, capture_output=True, text=True, timeout=200, check=False
        )

    def pid(self, name: str) -> int:
        return int(json.loads((self.folder / ".run" / f"{name}.json").read_text())["pid"])

    def processes(self) -> list[str]:
        """All that run in the folder, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("a project") / "with spaces"
    folder.mkdir()
    for room in ("gptmodel", "tasks"):
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "hello_flow.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS)
    project = Project(folder, free_port(), free_port())
    try:
        done = project.services("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield project
    finally:
        project.services("down")


def test_second_up_finds_all_there_and_starts_nothing(project: Project) -> None:
    pids = [project.pid(name) for name in ("prefect", "mlflow", "worker")]
    done = project.services("up")
    assert done.returncode == 0, done.stderr
    assert [project.pid(name) for name in ("prefect", "mlflow", "worker")] == pids
    assert done.stdout.count("running already") == 3
    assert "registered already" in done.stdout
    assert "hello/once" in done.stdout
    assert f"http://127.0.0.1:{project.prefect_port}" in done.stdout
    assert f"http://127.0.0.1:{project.mlflow_port}" in done.stdout


def test_a_deployment_runs_with_nothing_exported(project: Project) -> None:
    done = project.run("-m", "prefect", "deployment", "run", "hello/once", "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout


def test_what_the_flow_tracked_is_shown_by_the_server_and_read_without_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.artifacts import download_artifacts

    (run,) = (project.folder / "mlruns").glob("*/*/artifacts/said.txt")
    run_id = run.parents[1].name
    shown = ask(f"http://127.0.0.1:{project.mlflow_port}/get-artifact?path=said.txt&run_uuid={run_id}")
    assert shown == "good day"
    monkeypatch.chdir(project.folder)
    where = {"dst_path": str(tmp_path), "tracking_uri": "sqlite:///mlflow.db"}
    assert Path(download_artifacts(run_id=run_id, artifact_path="said.txt", **where)).read_text() == "good day"


def test_nothing_listens_on_other_addresses(project: Project) -> None:
    found: dict[int, set[str]] = {}
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(project.folder):
                for socket_ in process.net_connections("all"):
                    if socket_.status == psutil.CONN_LISTEN and socket_.laddr:
                        found.setdefault(socket_.laddr.port, set()).add(socket_.laddr.ip)
        except psutil.Error:
            continue
    assert {project.prefect_port, project.mlflow_port} <= set(found)
    assert {address for addresses in found.values() for address in addresses} == {"127.0.0.1"}


def test_a_foreign_host_name_is_refused_by_mlflow(project: Project) -> None:
    """A page elsewhere whose name was made to point at this machine must not read the runs (DNS rebinding)."""
    answers, port = {}, project.mlflow_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "evil.example", f"10.0.0.1:{port}", "127.0.0.1:1"):
        connection = http.client.HTTPConnection("127.0.0.1", project.mlflow_port, timeout=30)
        connection.request("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
        answers[host] = connection.getresponse().status
        connection.close()
    assert list(answers.values()) == [200, 200, 403, 403, 403], answers


def test_a_page_from_elsewhere_gets_no_leave_to_read_from_prefect(project: Project) -> None:
    """By default each page that is open in a browser on this machine could read all runs."""
    ours = [f"http://{host}:{project.prefect_port}" for host in ("127.0.0.1", "localhost")]
    allowed = []
    for origin in (*ours, "http://evil.example", "null"):
        connection = http.client.HTTPConnection("127.0.0.1", project.prefect_port, timeout=30)
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        connection.request("OPTIONS", "/api/deployments/", headers={"Origin": origin} | asked)
        allowed.append(connection.getresponse().getheader("Access-Control-Allow-Origin"))
        connection.close()
    assert allowed == [*ours, None, None]


def test_neither_server_reports_home(project: Project) -> None:
    for name in ("prefect", "mlflow"):
        env = psutil.Process(project.pid(name)).environ()
        told = (env["PREFECT_SERVER_ANALYTICS_ENABLED"], env["DO_NOT_TRACK"], env["MLFLOW_DISABLE_TELEMETRY"])
        assert told == ("false", "1", "true")
    settings = ask(f"http://127.0.0.1:{project.prefect_port}/api/admin/settings")
    assert settings["server"]["analytics_enabled"] is False


def test_the_command_line_is_told_of_the_servers(project: Project) -> None:
    told = environment(project.folder)
    assert told["PREFECT_API_URL"] == f"http://127.0.0.1:{project.prefect_port}/api"
    assert told["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{project.mlflow_port}"


def test_a_taken_port_is_named_with_the_way_out(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder / "tasks", tmp_path / "tasks")
    shutil.copytree(project.folder / "gptmodel", tmp_path / "gptmodel")
    shutil.copy(project.folder / "prefect.yaml", tmp_path)
    second = Project(tmp_path, project.prefect_port, free_port())
    done = second.services("up")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"port {project.prefect_port}" in done.stderr
    assert f"PREFECT_PORT={project.prefect_port + 1} make up" in done.stderr
    assert second.processes() == []


@pytest.mark.slow
def test_up_repairs_what_died_and_leaves_the_rest(project: Project) -> None:
    prefect, mlflow, worker = (project.pid(name) for name in ("prefect", "mlflow", "worker"))
    os.kill(mlflow, signal.SIGKILL)  # its own child lives on, and holds the port
    until(lambda: not psutil.pid_exists(mlflow), "the MLflow server to be gone")
    assert project.services("status").returncode == 1
    done = project.services("up")
    assert done.returncode == 0, done.stderr
    assert (project.pid("prefect"), project.pid("worker")) == (prefect, worker)
    assert project.pid("mlflow") != mlflow
    assert project.services("status").returncode == 0


def test_down_lets_a_running_flow_save_and_leaves_nothing(project: Project) -> None:
    (project.folder / "begun").unlink(missing_ok=True)
    done = project.run("-m", "prefect", "deployment", "run", "hello/once", "--param", "seconds=600")
    assert done.returncode == 0, done.stderr
    until((project.folder / "begun").exists, "the flow to begin")
    done = project.services("down")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped") == 3
    assert (project.folder / "saved").exists()
    assert project.processes() == []
    assert not (project.folder / "prefect.toml").exists()
    again = project.services("down")
    assert (again.returncode, again.stdout.strip()) == (0, "Nothing was running.")
    assert "PREFECT_API_URL" not in environment(project.folder)
