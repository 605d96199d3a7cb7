"""The two web pages and the worker behind them, on this machine alone: `make up`, `make down`.

    python -m tasks.services up|down|status

Three processes, started in the project folder (the current one) and reachable on 127.0.0.1 only: the Prefect server,
the MLflow server, and a worker that carries out flow runs. All they keep lies in the folder: `.prefect/` and
`mlflow.db` with `mlruns/`, the same places that a run without servers uses, so each sees the other's runs. Who they
are stands in `.run/NAME.json`, what they said in `.run/NAME.log`. PREFECT_PORT and MLFLOW_PORT choose other ports,
NIGHTLY=on|off switches the nightly schedule.

While they are up, a `prefect.toml` in the folder tells every `prefect` command typed there which server is meant.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from gptmodel.errors import ConfigError, GptflowError
from gptmodel.store.locks import exclusive
from tasks.operations import automations, pool, slots
from tasks.operations.deployments import register
from tasks.operations.notifying import addresses, tell
from tasks.operations.processes import ServiceError, port_taken, read, start, stop
from tasks.operations.schedules import SETTING, switch
from tasks.operations.servers import (
    HOST,
    Service,
    child_environment,
    forget_server,
    services_of,
    write_prefect_toml,
)

_START_SECONDS = 180  # a new Prefect database takes 16 CPU seconds, and the cores may be busy
_FLOW_STOP_SECONDS = 90  # a training child finishes its step and saves a checkpoint first

Say = Callable[[str], None]


def up(folder: Path, say: Say = print) -> None:
    """Start what does not run yet, register deployments and automations, and say where the pages are.

    Raises ConfigError for a port that is taken or a folder that is no project, ServiceError for a service that died.
    """
    if not (folder / "prefect.yaml").is_file():
        raise ConfigError(f"no prefect.yaml in {folder}; run this in the project folder")
    (folder / ".run").mkdir(exist_ok=True)
    addresses(folder)  # a wrong one is said before anything is started
    with _alone(folder):
        prefect, mlflow, worker = services_of(folder, os.environ.get("PREFECT_PORT"), os.environ.get("MLFLOW_PORT"))
        fresh = [service for service in (prefect, mlflow) if not service.healthy]
        moved = (before := mlflow.record) is not None and before.port != mlflow.port
        for service in fresh:
            _end(service, say)  # what a half-dead one left
            _refuse_taken_port(service)
        for service in fresh:
            _begin(service, prefect, mlflow, say)
        for service in (prefect, mlflow):
            _await(service, say, fresh=service in fresh)
        write_prefect_toml(folder, prefect)
        api = f"{prefect.url}/api"
        automations.install(api, say)  # they are to see which runs are marked
        restart = moved or not worker.works  # else it may be at work on a run, which the repair must not end
        if restart:
            _end(worker, say)
            pool.install(api)
            pool.end_lost_runs(api, say)
            _begin(worker, prefect, mlflow, say)
        env = child_environment(folder, prefect, mlflow)
        register(folder, api, env, folder / ".run" / "deploy.log", say)
        switch(api, os.environ.get(SETTING), say)
        tell(folder, api, say)
        slots.install(api, slots.gpus_here(), say)
        _await(worker, say, fresh=restart)
    say(f"\nPrefect  {prefect.url}\nMLflow   {mlflow.url}\n")
    say("Run the pipeline:  .venv/bin/prefect deployment run 'pipeline/quickstart' --watch")
    say("Stop the servers:  make down")


def down(folder: Path, say: Say = print) -> None:
    """Stop the services that `up` started in this folder and nothing else. A running flow is asked to save first."""
    stopped = False
    if (folder / ".run").is_dir():
        with _alone(folder):
            for service in reversed(services_of(folder)):
                if _end(service, say):
                    stopped = True
                    say(f"{service.title:<15} stopped")
            forget_server(folder)
    if not stopped:
        say("Nothing was running.")


def status(folder: Path, say: Say = print) -> bool:
    """Say how each service is; True if all run and answer."""
    services = services_of(folder)
    for service in services:
        how = "not running" if not service.alive else "running" if service.healthy else "running, but not answering"
        say(f"{service.title:<15} {how}" + (f" at {service.url}" if service.alive and service.name != "worker" else ""))
    return all(service.healthy for service in services)


def _refuse_taken_port(service: Service) -> None:
    if port_taken(HOST, service.port):
        variable = f"{service.name.upper()}_PORT"
        raise ConfigError(
            f"port {service.port}, where the {service.title} is to listen, is taken by another program; "
            f"stop that one, or choose another port: {variable}={service.port + 1} make up"
        )


def _begin(service: Service, prefect: Service, mlflow: Service, say: Say) -> None:
    say(f"{service.title:<15} starting (log: {service.log.relative_to(service.folder)})")
    env = child_environment(service.folder, prefect, mlflow)
    start(service.command, service.folder, env, service.log, service.file, service.port)


def _await(service: Service, say: Say, *, fresh: bool) -> None:
    """Return when it answers. ServiceError with the end of its log if it dies, or does not answer in time."""
    began = time.monotonic()
    while fresh and not service.healthy:
        late = time.monotonic() - began > _START_SECONDS
        if late or not service.alive:
            what = f"did not answer within {_START_SECONDS} s" if late else "stopped while starting"
            last = (service.log.read_text(errors="replace").split("\n\n")[-1].strip() or "nothing").splitlines()[-1]
            where = service.log.relative_to(service.folder)
            raise ServiceError(f"the {service.title} {what}; its last words: {last.strip()!r}; read {where}")
        time.sleep(0.2)
    say(f"{service.title:<15} {'ready' if fresh else 'running already'}")


def _end(service: Service, say: Say) -> bool:
    """Stop it and all that it started; whether there was anything."""
    if (record := service.record) is None:
        if copied := read(service.file):
            say(f"{service.title:<15} left alone: it was started in {copied.folder}")
            service.file.unlink()
        return False
    found = stop(record, kin_seconds=_FLOW_STOP_SECONDS if service.name == "worker" else 0)
    service.file.unlink(missing_ok=True)
    return found > 0


def _alone(folder: Path) -> AbstractContextManager[object]:
    return exclusive(folder / ".run" / "lock", "the services of this folder", wait=True)


def main(arguments: list[str]) -> int:
    """Exit code 0, or that of the error; `status` gives 1 if something is not well."""
    commands = {"up": up, "down": down, "status": status}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: python -m tasks.services up|down|status", file=sys.stderr)
        return 2
    try:
        return 1 if commands[arguments[0]](Path.cwd()) is False else 0
    except GptflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
