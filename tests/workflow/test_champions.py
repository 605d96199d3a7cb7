"""Aliases in a real MLflow follow the ledger: after a crash, after an outage, after a person's hand, and no further."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from flows.__main__ import cli
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.pretraining.step import run_dir_of
from gptmodel.retraining.ledger import Draft, Ledger, Named
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic
from gptmodel.upkeep.collection import Rules, plan
from gptmodel.upkeep.pins import pin
from tasks.promoting import promote, resolved, rollback, standing, tell
from tasks.tracking import aliases
from tasks.tracking.aliases import aliases_of, follow, version_of
from tasks.tracking.cards import model_card, save_card
from tasks.tracking.syncing import sync_run

NAME = "nightly"


class Shelf:
    """A store of small models, and a registry of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.client = MlflowClient()
        self.client.create_registered_model(NAME)

    def model(self, number: int) -> Artifact:
        def build(directory: Path) -> dict[str, int]:
            write_atomic(directory / "weights", f"{number}")
            return {}

        return self.store.produce(Request("checkpoint", 1, {"number": number}, ()), build)[0]

    def registered(self, number: int) -> Artifact:
        """A model with a version of this number."""
        made = self.model(number)
        tags = {"gptflow.model": made.digest, "gptflow.fingerprint": made.fingerprint}
        version = self.client.create_model_version(NAME, str(made.path), tags=tags)
        assert int(version.version) == number
        return made

    def decide(self, model: Artifact, outcome: str, champion: Artifact | None = None) -> None:
        facts = {"outcome": outcome, "key": model.digest, "said": f"{outcome}: loss 1.5"}
        facts |= {"champion": {"label": champion.label, "digest": champion.digest}} if champion else {}  # type: ignore[dict-item]
        self.ledger.update(lambda _: Draft("decide", Named.of(model), by="gate", facts=facts))

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, NAME)


@pytest.fixture
def shelf(tmp_path: Path, fresh_mlflow: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_mlflow(tmp_path / "mlflow.db"))
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, arguments)
    code = getattr(done.exception, "exit_code", done.exit_code)
    return code, done.output + str(done.exception or "")


def test_aliases_and_tags_follow_the_decisions(shelf: Shelf) -> None:
    a, b, c = (shelf.registered(number) for number in (1, 2, 3))
    shelf.decide(a, "promoted")
    shelf.decide(b, "kept", a)
    follow(shelf.store, NAME)
    assert aliases_of(NAME) == {"champion": "1", "challenger": "2"}
    shelf.decide(c, "promoted", a)
    assert follow(shelf.store, NAME)[1]
    assert aliases_of(NAME) == {"champion": "3", "previous": "1", "challenger": "2"}
    tags = [shelf.client.get_model_version(NAME, str(n)).tags for n in (1, 2, 3)]
    assert "as challenger: kept: loss 1.5" in tags[1]["gptflow.gate"]
    assert "as champion: promoted" in tags[0]["gptflow.gate"]
    assert tags[2]["gptflow.gate.entry"].startswith("3 ")
    assert not follow(shelf.store, NAME)[1], "told already"


def test_a_death_between_two_aliases_is_healed_by_the_next(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = shelf.registered(1), shelf.registered(2)
    shelf.decide(a, "promoted")
    follow(shelf.store, NAME)
    shelf.decide(b, "promoted", a)

    class Dying:
        """MLflow's client, whose second alias finds the process dead."""

        def __init__(self) -> None:
            self.inner, self.left = MlflowClient(), 1

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def set_registered_model_alias(self, *arguments: str) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.inner.set_registered_model_alias(*arguments)

    with monkeypatch.context() as patch:
        dying = Dying()
        patch.setattr(aliases, "client", lambda: dying)
        with pytest.raises(KeyboardInterrupt):
            follow(shelf.store, NAME)
    assert aliases_of(NAME) == {"champion": "1", "previous": "1"}, "there is a champion all the while"
    follow(shelf.store, NAME)
    assert aliases_of(NAME) == {"champion": "2", "previous": "1"}


def test_promote_and_rollback_by_hand_stand_in_the_ledger(shelf: Shelf) -> None:
    shelf.registered(1)
    shelf.registered(2)
    assert run("promote", f"{NAME}/1", "--reason", "the first one")[0] == 0
    assert run("promote", f"{NAME}/2", "--reason", "reads better")[0] == 0
    assert aliases_of(NAME) == {"champion": "2", "previous": "1"}
    code, said = run("promote", f"{NAME}/2", "--reason", "again")
    assert code == 0
    assert "already" in said
    assert len(shelf.ledger.read().entries) == 2, "promoting twice does nothing"
    code, said = run("rollback", NAME, "--reason", "it swears", "--json")
    assert json.loads(said)["changed"]
    assert aliases_of(NAME) == {"champion": "1"}
    last = shelf.ledger.read().entries[-1]
    assert (last.action, last.reason) == ("rollback", "it swears")
    code, said = run("champions", NAME)
    assert "reads better" in said
    assert "rollback" in said
    told = json.loads(run("champions", "--json")[1])["names"][NAME]
    assert told["champion"] == last.facts["to"]["label"]
    assert told["told"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("promote", f"{NAME}/1"), 2, "give a reason"),
        (("promote", f"{NAME}/9", "--reason", "x"), 1, f"{NAME}/9"),
        (("promote", "checkpoint/abcd1234", "--reason", "x"), 1, "no artifact"),
        (("rollback", NAME, "--reason", " "), 2, "give a reason"),
        (("rollback", NAME, "--reason", "x"), 2, "no previous champion"),
        (("champions", "nobody"), 2, "no ledger"),
    ],
)
def test_what_cannot_be_done_is_told(shelf: Shelf, arguments: tuple[str, ...], code: int, said: str) -> None:
    shelf.registered(1)
    shelf.model(7)
    found = run(*arguments)
    assert (found[0], said in found[1]) == (code, True), found


def test_a_model_of_no_version_cannot_be_champion(shelf: Shelf) -> None:
    unregistered = shelf.model(7)
    with pytest.raises(ConfigError, match="not registered as nightly"):
        promote(shelf.store, unregistered.label, NAME, "why not")


def test_with_mlflow_away_the_word_is_kept_and_told_at_sync(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.registered(1)
    shelf.registered(2)
    promote(shelf.store, f"{NAME}/1", "", "first")
    model = promote(shelf.store, f"{NAME}/2", "", "second")[1]
    assert model is not None
    follow(shelf.store, NAME)
    there = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, said = run("rollback", NAME, "--reason", "outage")
    assert code == 0
    assert "told later" in said
    assert standing(shelf.store, NAME).previous is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    assert aliases_of(NAME)["champion"] == "2"
    code, said = run("sync")
    assert code == 0
    assert f"registry/{NAME}: sent" in said
    assert aliases_of(NAME) == {"champion": "1"}
    assert f"registry/{NAME}: current" in run("sync")[1]


def test_an_alias_moved_by_hand_in_mlflow_is_taken_into_the_ledger(shelf: Shelf) -> None:
    a, b = shelf.registered(1), shelf.registered(2)
    shelf.client.set_registered_model_alias(NAME, "champion", "1")  # before there was a ledger
    assert standing(shelf.store, NAME).champion == Named.of(a)
    shelf.client.set_registered_model_alias(NAME, "champion", "2")
    state = standing(shelf.store, NAME)
    assert (state.champion, state.previous) == (Named.of(b), Named.of(a))
    assert [entry.action for entry in state.entries] == ["adopt", "adopt"]
    assert aliases_of(NAME) == {"champion": "2", "previous": "1"}


def test_a_champion_that_the_store_does_not_hold_stops_whoever_asks(shelf: Shelf) -> None:
    shelf.registered(1)
    foreign = {"gptflow.model": "f" * 64, "gptflow.fingerprint": "e" * 64}
    shelf.client.create_model_version(NAME, "elsewhere", tags=foreign)
    shelf.client.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(ArtifactError, match="this store does not hold it"):
        standing(shelf.store, NAME)
    assert shelf.ledger.read().champion is None


def test_first_weights_of_a_version_are_the_artifact_that_it_names(shelf: Shelf) -> None:
    first, second = shelf.registered(1), shelf.registered(2)
    shelf.client.set_registered_model_alias(NAME, "best", "1")

    def init(text: str) -> str:
        return resolved(shelf.store, load_config("smoke", sets=[f"init_from={text}"])).init_from

    named = {f"{NAME}/1": first, f"{NAME}/2": second, f"{NAME}@best": first, f"models:/{NAME}/2": second}
    assert {text: init(text) for text in named} == {text: model.label for text, model in named.items()}
    Path(NAME, "7").mkdir(parents=True)
    others = (f"{NAME}/7", "openai-community/gpt2", f"{NAME}@{'0' * 40}", f"owner/1@{'0' * 40}", f"weights/{'0' * 16}")
    assert [init(text) for text in others] == list(others), "a folder, the hub's repositories, the store"
    shelf.client.create_model_version(NAME, "elsewhere")
    for unknown in (f"{NAME}/3", f"{NAME}/9", "nobody/1", f"{NAME}@worst", f"models:/{NAME}/9"):
        with pytest.raises(ConfigError, match=rf"init_from is {unknown}: .*MLflow") as error:
            init(unknown)
        assert "\n" not in str(error.value)


def test_old_versions_are_retired_but_never_one_with_a_name_or_a_pin(shelf: Shelf) -> None:
    made = [shelf.registered(number) for number in range(1, 8)]
    shelf.decide(made[0], "promoted")
    shelf.client.set_model_version_tag(NAME, "2", "pinned", "true")
    pin(shelf.store, made[2].label, "for the paper")
    shelf.client.set_registered_model_alias(NAME, "candidate", "4")
    shelf.client.create_model_version(NAME, "by-hand")  # none of ours
    follow(shelf.store, NAME, keep_versions=2)
    left = {str(v.version) for v in shelf.client.search_model_versions(f"name = '{NAME}'")}
    assert left == {"1", "2", "3", "4", "6", "7", "8"}
    retired = shelf.ledger.read().entries[-1]
    assert (retired.action, retired.facts["versions"][0]["version"]) == ("retire", "5")
    assert not follow(shelf.store, NAME, keep_versions=2)[1], "nothing is left to retire"


def test_former_champions_are_not_retired_so_that_a_rollback_reaches_mlflow(shelf: Shelf) -> None:
    champion = None
    for number in range(1, 8):
        model, outcome = shelf.registered(number), "promoted" if number in (1, 2, 6) else "kept"
        shelf.decide(model, outcome, champion)
        champion = model if outcome == "promoted" else champion
        follow(shelf.store, NAME, keep_versions=1)
    assert {v.version for v in shelf.client.search_model_versions(f"name = '{NAME}'")} == {1, 2, 6, 7}
    rollback(shelf.store, NAME, "it is bad")
    assert tell(shelf.store, NAME) == ""
    assert aliases_of(NAME) == {"champion": "2", "previous": "1", "challenger": "7"}


def test_a_rollback_reaches_mlflow_where_the_champion_before_last_has_no_version(shelf: Shelf) -> None:
    a, b, c = (shelf.registered(number) for number in (1, 2, 3))
    for model, champion in ((a, None), (b, a), (c, b)):
        shelf.decide(model, "promoted", champion)
    follow(shelf.store, NAME)
    shelf.client.delete_model_version(NAME, "1")
    rollback(shelf.store, NAME, "it is bad")
    assert tell(shelf.store, NAME) == ""
    assert aliases_of(NAME) == {"champion": "2"}


@pytest.fixture
def trained(shelf: Shelf, undisturbed: Artifact) -> Artifact:
    """A model of the shelf's store with a run of its own, that MLflow was not told of yet."""
    shutil.copytree(undisturbed.path.parents[1], shelf.store.root, dirs_exist_ok=True)
    model = shelf.store.resolve(undisturbed.label)
    save_card(run_dir_of(shelf.store, model.fingerprint), model_card(model, NAME))
    return model


@pytest.mark.slow
def test_a_retired_model_that_is_promoted_is_registered_again(shelf: Shelf, trained: Artifact) -> None:
    run_dir = run_dir_of(shelf.store, trained.fingerprint)
    sync_run(shelf.store, run_dir)
    shelf.registered(2)
    shelf.client.delete_model_version(NAME, "1")
    assert sync_run(shelf.store, run_dir).what == "current", "it stays retired"
    promote(shelf.store, trained.label, NAME, "it was good after all")
    assert tell(shelf.store, NAME) == ""
    assert aliases_of(NAME) == {"champion": "3"}
    assert version_of(shelf.store, NAME, Named.of(trained)) == "3"
    assert not follow(shelf.store, NAME)[1], "told already"


@pytest.mark.slow
def test_an_mlflow_from_an_older_backup_demotes_nobody(
    shelf: Shelf, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = shelf.registered(1)
    shelf.decide(older, "promoted")
    follow(shelf.store, NAME)
    shutil.copyfile(tmp_path / "mlflow.db", tmp_path / "backup.db")
    sync_run(shelf.store, run_dir_of(shelf.store, trained.fingerprint))
    shelf.decide(trained, "promoted", older)
    follow(shelf.store, NAME)
    told = {"champion": "2", "previous": "1"}
    assert aliases_of(NAME) == told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'backup.db'}")
    assert aliases_of(NAME) == {"champion": "1"}
    state = standing(shelf.store, NAME)
    assert (state.champion, state.previous) == (Named.of(trained), Named.of(older))
    assert [entry.action for entry in state.entries] == ["decide", "decide"], "nothing is adopted"
    assert aliases_of(NAME) == told


def test_the_collector_keeps_what_the_ledger_names(shelf: Shelf) -> None:
    a, b, c, d = (shelf.model(number) for number in (1, 2, 3, 4))
    for model in (a, b, c):
        shelf.decide(model, "promoted")
    doomed = {item.label for item in plan(shelf.store, Rules(0, 0), {}).doomed}
    assert doomed == {a.label, d.label}, "champion and previous stay without MLflow's word"


def test_rollback_refuses_a_champion_that_is_gone(shelf: Shelf, remove: Callable[[Artifact], None]) -> None:
    a, b = shelf.registered(1), shelf.registered(2)
    shelf.decide(a, "promoted")
    shelf.decide(b, "promoted", a)
    remove(a)
    with pytest.raises(ArtifactError):
        rollback(shelf.store, NAME, "b is bad")
    assert shelf.ledger.read().champion == Named.of(b)


@pytest.fixture
def remove() -> Callable[[Artifact], None]:
    return lambda artifact: shutil.rmtree(artifact.path)
