"""What `make up` makes of a Prefect server that is busy, refuses, or has other things than it left there.

The server is a stub on loopback that answers as Prefect's does; `prefect deploy` is a stub that speaks with it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks import services
from tasks.operations import automations, deployments, notifying, pool, processes, schedules, slots
from tasks.operations.processes import ServiceError, demand, read, start, stop
from tasks.operations.servers import MLFLOW_PORT, services_of

BUSY = (503, {"exception_message": "Service Unavailable"})


class Server:
    """Answers what it was told for a method and path, each in its turn and the last of them for ever; else 404."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.heard: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = f"{self.command} {self.path.removeprefix('/api')}"
                outer.heard.append((asked, json.loads(body or b"null")))
                left = outer.answers.get(asked, [(404, {"detail": "Not Found"})])
                code, said = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(code)
                self.end_headers()
                if code != 204:
                    self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_: object) -> None:
                pass

        for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def says(self, asked: str, *answers: tuple[int, Any]) -> None:
        self.answers[asked] = list(answers)

    def told(self, asked: str) -> list[Any]:
        """Bodies that came with it."""
        return [body for what, body in self.heard if what == asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(processes, "_PAUSES", ())  # it stays busy for longer than is asked
    server = Server()
    yield server
    server.close()


def test_an_answer_that_is_none_is_told_in_the_servers_own_words(server: Server) -> None:
    server.says("POST /it", (422, {"detail": "no such filter"}))
    with pytest.raises(ServiceError) as error:
        demand(f"{server.api}/it", {})
    said = str(error.value)
    assert all(part in said for part in (f"POST {server.api}/it", "422", "no such filter", ".run/"))
    assert len(said.splitlines()) == 1
    assert demand(f"{server.api}/it", {}, none_for=(422,)) is None
    server.close()
    with pytest.raises(ServiceError, match=rf"{server.port}/api/it got no answer \(.*refused"):
        demand(f"{server.api}/it")


def test_a_busy_server_is_not_one_without_automations(server: Server) -> None:
    server.says("POST /automations/filter", BUSY)
    server.says("POST /automations/", (201, {"id": "1"}))
    with pytest.raises(ServiceError, match="503"):
        automations.install(server.api, print)
    assert not server.told("POST /automations/"), "names are not unique: they would stand there twice"
    with pytest.raises(ServiceError, match="503"):
        automations.remove(server.api, "gptflow", keep=())


def test_a_busy_server_is_not_one_without_blocks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(notifying.VARIABLE, raising=False)
    server.says("POST /automations/filter", (200, []))
    server.says("POST /block_documents/filter", BUSY)
    with pytest.raises(ServiceError, match="503"):
        notifying.tell(tmp_path, server.api, print)


def test_a_busy_server_is_not_one_without_deployments_or_schedules(server: Server, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    server.says("POST /deployments/filter", BUSY)
    with pytest.raises(ServiceError, match="503"):
        deployments.register(tmp_path, server.api, dict(os.environ), tmp_path / "log", print)
    with pytest.raises(ServiceError, match="503"):
        schedules.switch(server.api, "on", print)


def test_a_busy_server_is_not_one_without_the_limit_of_gpus(server: Server) -> None:
    where = f"/v2/concurrency_limits/{slots.GPU_LIMIT}"
    server.says(f"GET {where}", BUSY)
    with pytest.raises(ServiceError, match="503"):
        slots.install(server.api, 1, print)
    server.says(f"GET {where}", (404, {}))
    server.says("POST /v2/concurrency_limits/", (201, {}))
    slots.install(server.api, 1, print)
    assert server.told("POST /v2/concurrency_limits/") == [{"name": slots.GPU_LIMIT, "limit": 1, "active": True}]


def test_a_busy_server_does_not_make_its_worker_a_dead_one(server: Server, tmp_path: Path) -> None:
    """`make up` ends a dead worker's runs; for `make status` one of which nothing is heard is just not well."""
    (tmp_path / ".run").mkdir()
    worker = services_of(tmp_path, str(server.port))[2]
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    start(command, tmp_path, dict(os.environ), worker.log, worker.file, server.port)
    try:
        server.says("POST /work_pools/local/workers/filter", BUSY)
        with pytest.raises(ServiceError, match="503"):
            _ = worker.works
        assert not worker.healthy
        server.says("POST /work_pools/local/workers/filter", (200, []))
        assert not worker.works
        late = [{"status": "ONLINE", "last_heartbeat_time": "2100-01-01T00:00:00Z"}]
        server.says("POST /work_pools/local/workers/filter", (200, late))
        assert worker.works
        assert worker.healthy
        before = read(worker.file)
        assert before is not None
        worker.file.write_text(json.dumps(asdict(replace(before, created=before.created + 3600))))
        now = {"status": "ONLINE", "last_heartbeat_time": datetime.now(UTC).isoformat()}
        server.says("POST /work_pools/local/workers/filter", (200, [now]))
        assert worker.works, "the clock was set back by an hour since"
    finally:
        record = read(worker.file)
        assert record is not None
        stop(record)


def run(number: int, state: str) -> dict[str, Any]:
    return {"id": f"r{number}", "name": f"run-{number}", "state_type": state}


def test_runs_that_lost_their_process_are_ended_and_one_that_lives_is_left(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    states = ("RUNNING", "PENDING", "CANCELLING", "RUNNING")
    server.says("POST /flow_runs/filter", (200, [run(number, state) for number, state in enumerate(states)]))
    for number in range(4):
        server.says(f"POST /flow_runs/r{number}/set_state", (201, {"status": "ACCEPT"}))
    env = {**os.environ, "PREFECT_API_URL": server.api, "PREFECT__FLOW_RUN_ID": "r3"}
    record = tmp_path / "flow.json"
    start([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, env, tmp_path / "log", record, 0)
    try:
        pool.end_lost_runs(server.api, said.append)
    finally:
        living = read(record)
        assert living is not None
        stop(living)
    (asked,) = server.told("POST /flow_runs/filter")
    assert asked["work_pools"] == {"name": {"any_": ["local"]}}
    became = [[b["state"]["type"] for b in server.told(f"POST /flow_runs/r{number}/set_state")] for number in range(4)]
    assert became == [["CRASHED"], ["CRASHED"], ["CANCELLED"], []]
    assert [line.split()[2] for line in said] == ["run-0:", "run-1:", "run-2:"]


def test_a_pool_that_is_there_stays_and_one_that_is_refused_is_told(server: Server) -> None:
    server.says("POST /work_pools/", (409, {"detail": "already exists"}), BUSY)
    pool.install(server.api)
    with pytest.raises(ServiceError, match="503"):
        pool.install(server.api)


NIGHTLY = ("flows.pipeline.pipeline", "nightly-retrain")
# What `prefect deploy --all` does to schedules: they are made anew, as prefect.yaml says, and then it fails or not.
DEPLOY = """
import os, pathlib, sys
pathlib.Path("deployed").touch()
sys.exit(int(os.environ["DEPLOY_ENDS_WITH"]))
"""


def deployed(*crons: tuple[str, bool]) -> tuple[int, Any]:
    """The server's answer: the nightly deployment with these schedules, each on or off."""
    each = [{"id": cron.replace(" ", "_"), "active": on, "schedule": {"cron": cron}} for cron, on in crons]
    return 200, [{"id": "d", "flow_id": "f", "entrypoint": NIGHTLY[0], "name": NIGHTLY[1], "schedules": each}]


def registers(server: Server, folder: Path, *, ends_with: int = 0) -> None:
    (folder / "prefect").mkdir(exist_ok=True)
    (folder / "prefect" / "__init__.py").touch()  # `-m prefect` looks in the folder first
    (folder / "prefect" / "__main__.py").write_text(DEPLOY)
    (folder / ".prefect").mkdir(exist_ok=True)
    (folder / "prefect.yaml").write_text(f"deployments:\n- {{entrypoint: {NIGHTLY[0]}, name: {NIGHTLY[1]}}}\n")
    server.says("POST /flows/filter", (200, [{"id": "f", "name": "pipeline"}]))
    env = {**os.environ, "DEPLOY_ENDS_WITH": str(ends_with)}
    deployments.register(folder, server.api, env, folder / "deploy.log", print)


def switched_on(server: Server) -> list[str]:
    """Schedules that were switched on."""
    asked = [what for what, body in server.heard if what.startswith("PATCH") and body == {"active": True}]
    return [what.rpartition("/")[2].replace("_", " ") for what in asked]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({"0 2 * * *": True}, ["0 2 * * *"], ["0 2 * * *"]),
        ({"0 2 * * *": False}, ["0 2 * * *"], []),
        ({"30 3 * * *": True}, ["0 2 * * *"], ["0 2 * * *"]),  # edited in the file, or on Prefect's page
        ({"30 3 * * *": False}, ["0 2 * * *"], []),
        ({"0 2 * * *": True, "0 14 * * *": False}, ["0 2 * * *", "0 14 * * *"], ["0 2 * * *"]),
        ({"0 2 * * *": True, "0 14 * * *": False}, ["0 3 * * *", "0 14 * * *"], ["0 3 * * *"]),
        ({"0 2 * * *": True, "0 14 * * *": False}, ["0 2 * * *", "0 15 * * *"], ["0 2 * * *"]),
    ],
)
def test_a_schedule_that_was_on_is_on_after_its_deployment_is_renewed(
    server: Server, tmp_path: Path, before: dict[str, bool], after: list[str], wanted: list[str]
) -> None:
    anew = deployed(*((cron, False) for cron in after))
    server.says("POST /deployments/filter", deployed(*before.items()), deployed(*before.items()), anew)
    for cron in after:
        server.says(f"PATCH /deployments/d/schedules/{cron.replace(' ', '_')}", (204, None))
    registers(server, tmp_path)
    assert switched_on(server) == wanted


def test_a_schedule_is_on_again_where_the_deploy_failed_midway(server: Server, tmp_path: Path) -> None:
    on, off = deployed(("0 2 * * *", True)), deployed(("0 2 * * *", False))
    server.says("POST /deployments/filter", on, on, off)
    server.says("PATCH /deployments/d/schedules/0_2_*_*_*", (204, None))
    with pytest.raises(ServiceError, match="deploy --all"):
        registers(server, tmp_path, ends_with=1)
    assert switched_on(server) == ["0 2 * * *"]


def test_a_schedule_that_could_not_be_switched_on_again_is_by_the_next_make_up(server: Server, tmp_path: Path) -> None:
    on, off = deployed(("0 2 * * *", True)), deployed(("0 2 * * *", False))
    server.says("POST /deployments/filter", on, on, BUSY)
    with pytest.raises(ServiceError, match="503"):
        registers(server, tmp_path)
    assert (tmp_path / "deployed").exists()
    assert switched_on(server) == []
    server.says("POST /deployments/filter", off)
    server.says("PATCH /deployments/d/schedules/0_2_*_*_*", (204, None))
    registers(server, tmp_path)
    assert switched_on(server) == ["0 2 * * *"]
    server.says("POST /deployments/filter", off)  # a person switches it off
    (tmp_path / ".prefect" / "deployed").unlink()
    registers(server, tmp_path)
    assert switched_on(server) == ["0 2 * * *"], "which stands"


def test_nothing_is_renewed_where_the_server_cannot_say_what_is_on(server: Server, tmp_path: Path) -> None:
    server.says("POST /deployments/filter", deployed(("0 2 * * *", True)), BUSY)
    with pytest.raises(ServiceError, match="503"):
        registers(server, tmp_path)
    assert not (tmp_path / "deployed").exists()


def test_deployments_are_renewed_where_what_they_are_made_of_changed(server: Server, tmp_path: Path) -> None:
    server.says("POST /deployments/filter", deployed())
    folder = tmp_path / "here"
    (folder / "gptmodel" / "config").mkdir(parents=True)
    form = folder / "gptmodel" / "config" / "training.py"
    form.write_text("max_steps: int = 1\n")

    def deployed_in(place: Path) -> bool:
        (place / "deployed").unlink(missing_ok=True)
        registers(server, place)
        return (place / "deployed").exists()

    assert deployed_in(folder)
    assert not deployed_in(folder), "nothing has changed"
    form.write_text("max_steps: int = 1\nmin_steps: int = 1\n")
    assert deployed_in(folder), "the form has a new field"
    moved = folder.rename(tmp_path / "there")
    assert deployed_in(moved), "the server has the folder's path"
    assert not deployed_in(moved)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A project folder in which something is up: a stand-in for its MLflow server."""
    folder = tmp_path / "original"
    (folder / ".run").mkdir(parents=True)
    mlflow = services_of(folder)[1]
    start([sys.executable, "-c", "import time; time.sleep(600)"], folder, dict(os.environ), mlflow.log, mlflow.file, 1)
    record = read(mlflow.file)
    assert record is not None
    yield folder
    stop(record)


def test_a_copy_of_a_running_folder_leaves_the_originals_services_alone(running: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(running, tmp_path / "copy"))
    assert not services_of(copy)[1].alive
    assert services_of(copy)[1].port == MLFLOW_PORT, "and not that of the original"
    said: list[str] = []
    services.down(copy, said.append)
    assert said == [f"MLflow server   left alone: it was started in {running}", "Nothing was running."]
    assert services_of(running)[1].alive
    services.down(copy, said.append)
    assert said[2:] == ["Nothing was running."]
    services.down(running, said.append)
    assert said[3:] == ["MLflow server   stopped"]


def test_a_folder_that_was_moved_keeps_its_services(running: Path, tmp_path: Path) -> None:
    moved = running.rename(tmp_path / "moved")
    said: list[str] = []
    services.down(moved, said.append)
    assert said == ["MLflow server   stopped"]


def test_a_record_of_an_older_version_is_read(running: Path) -> None:
    file = services_of(running)[1].file
    kept = json.loads(file.read_text())
    del kept["folder"]
    file.write_text(json.dumps(kept))
    assert services_of(running)[1].alive
