"""Schedules and limits on a real Prefect server: switched by a word, kept on, and never a pile of nights or GPUs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending, Scheduled

from gptmodel.config import TrainConfig
from gptmodel.errors import ConfigError
from tasks.operations import slots
from tasks.operations.processes import ask
from tasks.operations.schedules import DEPLOYMENT, keep_on, states, switch


@pytest.fixture
def client(workplace: Path) -> SyncPrefectClient:
    return get_client(sync_client=True)


@pytest.fixture
def api(client: SyncPrefectClient) -> str:
    return str(PREFECT_API_URL.value())


def deploy(client: SyncPrefectClient, name: str = DEPLOYMENT) -> UUID:
    """As `prefect deploy` does with our file: an inactive schedule without a name, one run at a time."""
    flow = client.create_flow_from_name("nights")
    return client.create_deployment(
        flow_id=flow,
        name=name,
        entrypoint="flows.pipeline.pipeline",
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *", timezone="UTC"), active=False)],
        concurrency_limit=1,
        concurrency_options=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ).model_dump(include={"collision_strategy"}),  # type: ignore[arg-type]
    )


def nightly(api: str) -> bool:
    return any(on for (_, name), of in states(api).items() if name == DEPLOYMENT for on in of.values())


def test_the_nightly_schedule_is_switched_by_a_word_and_stays_on(client: SyncPrefectClient, api: str) -> None:
    said: list[str] = []
    deploy(client)
    switch(api, None, said.append)
    assert not nightly(api), "shipped off"
    switch(api, "on", said.append)
    assert nightly(api)
    before = states(api)
    deploy(client)  # what `make up` does after an update
    assert not nightly(api), "else `keep_on` would not be needed"
    keep_on(api, before, said.append)
    assert nightly(api)
    switch(api, "off", said.append)
    assert not nightly(api)
    with pytest.raises(ConfigError, match="say on or off"):
        switch(api, "yes", said.append)


def test_nights_that_fell_due_together_are_one(client: SyncPrefectClient) -> None:
    deployment = deploy(client, "piled-up")
    now = datetime.now(UTC)
    late = [
        client.create_flow_run_from_deployment(
            deployment, state=Scheduled(scheduled_time=now - timedelta(days=days)), idempotency_key=str(uuid4())
        )
        for days in (3, 2, 1)
    ]
    for run in late:  # what a worker does with what it finds due
        client.set_flow_run_state(run.id, Pending())
    states = [client.read_flow_run(run.id).state for run in late]
    assert [state.type.value for state in states if state] == ["PENDING", "CANCELLED", "CANCELLED"]


def test_a_gpu_is_one_slot(api: str) -> None:
    said: list[str] = []
    slots.install(api, 0, said.append)
    assert ask(f"{api}/v2/concurrency_limits/{slots.GPU_LIMIT}") is None
    slots.install(api, 1, said.append)
    slots.install(api, 4, said.append)  # changes nothing
    assert ask(f"{api}/v2/concurrency_limits/{slots.GPU_LIMIT}")["limit"] == 1
    another = {"names": [slots.GPU_LIMIT], "slots": 1, "mode": "concurrency"}
    with slots.slots(1):
        assert ask(f"{api}/v2/concurrency_limits/{slots.GPU_LIMIT}")["active_slots"] == 1
        assert ask(f"{api}/v2/concurrency_limits/increment", another) is None, "another training has to wait"
    assert ask(f"{api}/v2/concurrency_limits/{slots.GPU_LIMIT}")["active_slots"] == 0
    assert ask(f"{api}/v2/concurrency_limits/increment", another) is not None


def test_a_processor_takes_no_slot() -> None:
    assert slots.slots_wanted(TrainConfig(device="cpu")) == 0
    with slots.slots(0):
        pass
