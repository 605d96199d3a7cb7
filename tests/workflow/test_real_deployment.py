"""Servers as docs/operations.md sets them up: PostgreSQL, an S3-compatible store, passwords, pools, backups."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import ROOT, NotHere, Site, environment, site, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
POOLS = ("docker", "kubernetes")


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    try:
        folder = environment()
    except NotHere as reason:
        pytest.skip(str(reason))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def deployed(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    try:
        with site(installed, tmp_path_factory.mktemp("site")) as found:
            yield found
    except NotHere as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def trained(deployed: Site, tiny_sets: list[str]) -> dict[str, Any]:
    """What `gptflow run --json` says of a tiny run with these servers."""
    sets = [word for text in tiny_sets for word in ("--set", text)]
    done = deployed.run("flows", "run", "--preset", "smoke", "--json", *sets)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    sent = deployed.run(
        "flows", "sync"
    )  # what MLflow, on a busy machine, did not take in the seconds that a step waits
    assert sent.returncode == 0, sent.stderr[-3000:]
    return found


def test_a_run_is_recorded_in_postgresql_and_nowhere_else(deployed: Site, trained: dict[str, Any]) -> None:
    ask = deployed.database.ask
    assert ask("prefect", "select count(*) from flow_run where state_type = 'COMPLETED'") == "1"
    fingerprint = trained["model"]["fingerprint"]
    assert (
        ask("mlflow", f"select count(*) from tags where key = 'gptflow.fingerprint' and value = '{fingerprint}'") == "1"
    )
    assert ask("mlflow", "select count(*) from metrics where key = 'train/loss'") == "12"
    assert ask("mlflow", "select name from registered_models") == "tiny"
    assert not list(deployed.folder.rglob("*.db"))


def test_the_models_files_are_in_the_object_store(deployed: Site, trained: dict[str, Any]) -> None:
    with urllib.request.urlopen(f"{deployed.s3}/models?list-type=2", timeout=10) as answer:
        keys = re.findall(r"<Key>([^<]+)</Key>", answer.read().decode())
    assert any(key.endswith("model.safetensors") for key in keys), keys
    assert not (deployed.folder / "mlruns").exists()
    done = deployed.run("flows", "verify", "tiny/1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_neither_server_answers_without_the_password(deployed: Site) -> None:
    prefect, mlflow = f"{deployed.prefect}/api/flows/filter", f"{deployed.mlflow}/api/2.0/mlflow/experiments/search"
    right = (deployed.env["PREFECT_API_AUTH_STRING"], f"admin:{deployed.env['MLFLOW_TRACKING_PASSWORD']}")
    for url, body, login in ((prefect, b"{}", right[0]), (mlflow, b'{"max_results": 1}', right[1])):
        assert [status(url, each, body) for each in ("", "admin:wrong", login)] == [401, 401, 200]


def test_the_commands_use_the_passwords_and_say_which_is_wrong(deployed: Site) -> None:
    told = {f["what"]: f for f in json.loads(deployed.run("flows", "doctor", "--json").stdout)["findings"]}
    assert (told["Prefect"]["state"], told["MLflow"]["state"]) == ("ok", "ok"), told
    wrong = {"PREFECT_API_AUTH_STRING": "admin:wrong", "MLFLOW_TRACKING_PASSWORD": "wrong"}
    told = {f["what"]: f for f in json.loads(deployed.run("flows", "doctor", "--json", **wrong).stdout)["findings"]}
    assert (told["Prefect"]["state"], told["MLflow"]["state"]) == ("bad", "bad")
    done = deployed.run("flows", "prepare", "--preset", "smoke", **wrong)
    assert done.returncode == 1
    assert "PREFECT_API_AUTH_STRING" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_backup_gives_back_what_was_there(deployed: Site, trained: dict[str, Any], tmp_path: Path) -> None:
    """pg_dump, then pg_restore into new databases; the store copied while nothing writes to it, and verified."""
    database = deployed.database
    tables = {"prefect": ("flow_run", "task_run", "artifact"), "mlflow": ("runs", "metrics", "model_versions")}
    for name, counted in tables.items():
        database.tool("pg_dump", "-Fc", "-d", name, "-f", str(tmp_path / f"{name}.dump"))
        database.tool("createdb", f"{name}_restored")
        database.tool("pg_restore", "-d", f"{name}_restored", str(tmp_path / f"{name}.dump"))
        for table in counted:
            counts = [database.ask(each, f"select count(*) from {table}") for each in (name, f"{name}_restored")]
            assert counts[0] == counts[1] != "0", table
    urls = database.url("asyncpg", "prefect_restored"), database.url("psycopg2", "mlflow_restored")
    words = ("prefect", "--no-prompt", "server", "database", "upgrade", "-y")
    for done in (
        deployed.run(*words, PREFECT_API_DATABASE_CONNECTION_URL=urls[0]),
        deployed.run("mlflow", "db", "upgrade", urls[1]),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    archive = tmp_path / "store.tar"
    subprocess.run(["tar", "-C", deployed.env["GPTFLOW_STORE"], "-cf", archive, "."], check=True)
    (tmp_path / "store").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "store", "-xf", archive], check=True)
    label = f"checkpoint/{trained['model']['fingerprint'][:16]}"
    done = deployed.run("flows", "verify", label, GPTFLOW_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_work_pools_are_made_from_the_templates(deployed: Site) -> None:
    for kind in POOLS:
        template = ROOT / "deploy" / f"{kind}-pool.json"
        words = ("work-pool", "create", f"gptflow-{kind}", "--type", kind, "--base-job-template", str(template))
        done = deployed.run("prefect", "--no-prompt", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        deployed.database.ask("prefect", "select string_agg(type, ',' order by type) from work_pool")
        == "docker,kubernetes"
    )


CHECK = """
import asyncio, json, sys
import jsonschema
from prefect.client.schemas.objects import FlowRun
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from uuid import uuid4

async def main(folder):
    for kind, worker, configuration in (
        ("docker", DockerWorker, DockerWorkerJobConfiguration),
        ("kubernetes", KubernetesWorker, KubernetesWorkerJobConfiguration),
    ):
        template = json.load(open(f"{folder}/{kind}-pool.json"))
        jsonschema.Draft7Validator.check_schema(template["variables"])
        usual = worker.get_default_base_job_template()
        lost = set(usual["variables"]["properties"]) - set(template["variables"]["properties"])
        keys = set(usual["job_configuration"]) ^ set(template["job_configuration"])
        given = template["variables"]["properties"].items()
        defaults = {n: p["default"] for n, p in given if p.get("default") is not None}
        jsonschema.validate(defaults, template["variables"])
        made = await configuration.from_template_and_values(base_job_template=template, values={})
        made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="x"))
        print(json.dumps({"kind": kind, "lost": sorted(lost | keys), "job": made.model_dump(mode="json")}))

asyncio.run(main(sys.argv[1]))
"""


def test_the_templates_fit_the_workers_own_schemas(installed: Path) -> None:
    command = [installed / "bin" / "python", "-c", CHECK, ROOT / "deploy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    docker, kubernetes = (json.loads(line) for line in done.stdout.splitlines())
    assert docker["lost"] == kubernetes["lost"] == []
    assert docker["job"]["volumes"] == ["gptflow-store:/srv/gptflow/store"]
    assert docker["job"]["env"]["GPTFLOW_STORE"] == "/srv/gptflow/store"
    assert docker["job"]["container_create_kwargs"] == {
        "shm_size": "8g",
        "device_requests": [{"count": -1, "capabilities": [["gpu"]]}],
    }
    job = kubernetes["job"]["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]} == {"store", "shm"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "GPTFLOW_STORE", "value": "/srv/gptflow/store"} in container["env"]
    assert job["spec"]["backoffLimit"] == 0  # Prefect decides what is tried again
    assert "{{" not in json.dumps(job)
