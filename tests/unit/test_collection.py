"""What is wanted stays, with all that it was made from; what goes, goes whole, whoever is killed and whoever begins."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptmodel.errors import ArtifactError, StorageError
from gptmodel.reproduction.freshstore import temporary_store
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.store.locks import exclusive
from gptmodel.store.manifests import MANIFEST
from gptmodel.store.uses import collecting, using
from gptmodel.upkeep.collection import Rules, plan
from gptmodel.upkeep.holdings import holdings, usage
from gptmodel.upkeep.pins import pin, pins, unpin
from gptmodel.upkeep.sizes import tree_bytes
from gptmodel.upkeep.sweeping import Swept, sweep
from tasks.holding import hold, holding

NOTHING = Rules(keep_days=0, keep_newest=0)
OLD = time.time() - 30 * 86_400


def make(store: Store, kind: str, name: str, *inputs: Artifact) -> Artifact:
    """An artifact with two files, last used a month ago; a model gets a log as well."""

    def build(directory: Path) -> dict[str, Any]:
        (directory / "a.txt").write_text(f"{kind} {name}")
        (directory / "b.bin").write_bytes(name.encode() * 1_000)
        return {"name": name}

    made, _ = store.produce(Request(kind, 1, {"name": name}, tuple(each.ref for each in inputs)), build)
    if kind == "checkpoint":
        log = store.root / ".runs" / made.path.name
        log.mkdir(parents=True)
        (log / "card.json").write_text("{}")
    age(made.path)
    return made


def age(path: Path) -> None:
    for each in (*path.rglob("*"), path):
        os.utime(each, (OLD, OLD))


def fill(store: Store) -> dict[str, Artifact]:
    """Two corpora; shards of each; two models on the first shards and one on the second; an evaluation of each."""
    made = {name: make(store, "corpus", name) for name in ("c1", "c2")}
    made |= {f"s{n}": make(store, "shards", f"s{n}", made[f"c{n}"]) for n in (1, 2)}
    for model, shards in (("m1", "s1"), ("m2", "s1"), ("m3", "s2")):
        made[model] = make(store, "checkpoint", model, made[shards])
        made[f"e{model[1]}"] = make(store, "evaluation", f"e{model[1]}", made[model], made["s2"])
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def made(store: Store) -> dict[str, Artifact]:
    return fill(store)


def names(store: Store) -> set[str]:
    return {artifact.summary["name"] for artifact in store.artifacts()}


def collect(store: Store, rules: Rules = NOTHING, wanted: dict[str, str] | None = None) -> Swept:
    return sweep(store, plan(store, rules, wanted or {}).doomed, rules, wanted or {})


def hidden(store: Store) -> list[str]:
    found = [*store.root.glob("**/.trash-*"), *store.root.glob("*/.building-*"), *store.root.glob(".uses/*")]
    return [path.relative_to(store.root).as_posix() for path in found]


def test_a_registered_model_keeps_what_it_was_made_from_and_its_evaluation(
    store: Store, made: dict[str, Artifact]
) -> None:
    found = plan(store, NOTHING, {made["m1"].path.name: "registered as m/1"})
    assert found.kept[made["m1"].label] == "registered as m/1"
    assert found.kept[made["c1"].label] == f"{made['s1'].label} was made from it"
    # The evaluation was made on other shards: they belong to its proof.
    doomed = [item.label for item in found.doomed]
    assert sorted(doomed) == sorted(made[name].label for name in ("m2", "e2", "m3", "e3"))
    before = tree_bytes(store.root)
    swept = collect(store, wanted={made["m1"].path.name: "registered"})
    assert names(store) == {"m1", "e1", "s1", "c1", "s2", "c2"}
    assert swept.bytes == sum(item.bytes for item in found.doomed) > 16_000
    # Besides: the locks of the four that went.
    assert 0 <= before - tree_bytes(store.root) - swept.bytes < 1_000
    assert {path.name for path in (store.root / ".runs").iterdir()} == {made["m1"].path.name}, "logs go with models"
    assert hidden(store) == []


def test_products_go_before_what_they_were_made_from(store: Store, made: dict[str, Artifact]) -> None:
    order = [item.label for item in plan(store, NOTHING, {}).doomed]
    assert len(order) == len(made)
    for artifact in made.values():
        for ref in artifact.request.inputs:
            assert order.index(artifact.label) < order.index(ref.label)
    collect(store)
    assert names(store) == set()


def test_pins(store: Store, made: dict[str, Artifact]) -> None:
    pin(store, made["s2"].label, note="for the paper")
    assert pins(store)[made["s2"].label]["note"] == "for the paper"
    collect(store)
    assert names(store) == {"s2", "c2"}
    unpin(store, made["s2"].label)
    with pytest.raises(ArtifactError, match="is not pinned; pinned: nothing"):
        unpin(store, made["s2"].label)
    collect(store)
    assert names(store) == set()


def test_what_was_used_lately_and_the_newest_model_stay(store: Store, made: dict[str, Artifact]) -> None:
    rules = Rules(keep_days=7, keep_newest=0)
    reused, was_there = store.produce(made["s1"].request, lambda _: pytest.fail("it is there"))
    assert (was_there, reused.digest) == (True, made["s1"].digest)
    assert {item.label for item in plan(store, rules, {}).doomed}.isdisjoint({made["s1"].label, made["c1"].label})
    age(made["s1"].path)
    assert len(plan(store, rules, {}).doomed) == len(made)
    kept = plan(store, Rules(keep_days=7, keep_newest=2), {}).kept
    assert len([label for label in kept if label.startswith("checkpoint/")]) == 2


def test_a_law_stays_with_all_that_it_was_fitted_to_and_keeps_none_of_it_alive(
    store: Store, made: dict[str, Artifact]
) -> None:
    law = make(store, "scaling-law", "law", made["e1"], made["e2"])
    lock = store.root / ".runs" / law.path.name / "mlflow.lock"
    lock.parent.mkdir()
    both = {made[name].path.name: "registered" for name in ("m1", "m2")}
    with exclusive(lock, "its run"):
        kept = plan(store, NOTHING, {}).kept
        assert kept[law.label] == "MLflow is being told of it"
        assert kept[made["m2"].label] == f"{made['e2'].label} was made from it"
    pin(store, law.label)
    collect(store)
    assert names(store) == {"law", "e1", "e2", "m1", "m2", "s1", "c1", "s2", "c2"}
    unpin(store, law.label)
    collect(store, wanted=both)
    assert "law" in names(store), "all that it was fitted to is kept for other reasons"
    found = plan(store, NOTHING, {made["m1"].path.name: "registered"})
    assert law.label in {item.label for item in found.doomed}, "it is no reason to keep the other model"
    collect(store, wanted={made["m1"].path.name: "registered"})
    assert names(store) == {"m1", "e1", "s1", "c1", "s2", "c2"}
    assert not lock.parent.exists()


RUN = """
import sys
from pathlib import Path
from gptmodel.store.artifacts import Request, Store
store = Store(Path(sys.argv[1]))
shards = store.resolve(sys.argv[2])
def build(directory):
    (directory / "half").write_text("half")
    print("building", flush=True)
    sys.stdin.read()
    (directory / "half").write_text("whole " + shards.file("a.txt").read_text())
    return {"name": "m9"}
store.produce(Request("checkpoint", 1, {"name": "m9"}, (shards.ref,)), build)
"""


def run(store: Store, shards: Artifact) -> subprocess.Popen[str]:
    """A process that makes a model of the shards, as far as the middle; it goes on when its input is closed."""
    started = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store.root), shards.label],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "building\n"
    return started


def test_what_a_living_run_holds_stays_and_what_a_dead_one_left_goes(store: Store, made: dict[str, Artifact]) -> None:
    living = run(store, made["s1"])
    (building,) = (store.root / "checkpoint").glob(".building-*")
    age(building)
    assert plan(store, NOTHING, {}).kept[made["s1"].label] == "a run uses it"
    collect(store)
    assert names(store) == {"s1", "c1"}
    assert building.is_dir()
    living.communicate("")
    assert living.returncode == 0
    assert names(store) == {"s1", "c1", "m9"}
    assert hidden(store) == []
    shutil.rmtree(next((store.root / "checkpoint").glob("[!.]*")))
    dead = run(store, made["s1"])
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    week = Rules(keep_days=7, keep_newest=0)
    assert made["s1"].label in plan(store, week, {}).kept, "it may be gone on with, and needs its shards then"
    age(building)
    collect(store, week)
    assert (names(store), hidden(store)) == (set(), [])


def test_a_training_of_an_older_version_that_was_stopped_keeps_its_shards(
    store: Store, made: dict[str, Artifact]
) -> None:
    building = store.root / "checkpoint" / ".building-00112233445566aa"
    (building / ".work").mkdir(parents=True)
    log = store.root / ".runs" / "00112233445566aa"
    log.mkdir()
    (log / "job.json").write_text(json.dumps({"shards": f"/gone/store/{made['s2'].label}", "init_from": ""}))
    collect(store, Rules(keep_days=7, keep_newest=0))
    assert names(store) == {"s2", "c2"}
    age(building)
    collect(store, Rules(keep_days=7, keep_newest=0))
    assert (building.exists(), log.exists()) == (False, False)


def stopped(store: Store, shards: Artifact) -> str:
    """The name that the model of a training will have that was killed a month ago."""
    dead = run(store, shards)
    dead.kill()
    dead.communicate()
    (building,) = (store.root / "checkpoint").glob(".building-*")
    name = building.name.removeprefix(".building-")
    (store.root / ".runs" / name).mkdir(exist_ok=True)
    (store.root / ".runs" / name / "job.json").write_text("{}")
    age(building)
    return name


def test_a_training_that_was_stopped_stays_if_it_is_pinned_or_mlflow_has_it_unfinished(
    store: Store, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.commands.store import store as group

    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    name = stopped(store, made["s1"])
    building = store.root / "checkpoint" / f".building-{name}"
    collect(store, wanted={name: "its run in MLflow is KILLED and may go on"})
    assert (names(store), building.is_dir()) == ({"s1", "c1"}, True)
    for said in (f"run/{name[:8]}", f"checkpoint/.building-{name}", name):
        done = CliRunner().invoke(group, ["pin", said])
        assert (done.exit_code, done.stdout) == (0, f"checkpoint/{name} is pinned\n")
    found = plan(store, NOTHING, {})
    assert (found.doomed, found.kept[f"checkpoint/.building-{name}"]) == ([], "pinned")
    assert CliRunner().invoke(group, ["unpin", name[:8]]).exit_code == 0
    collect(store)
    assert (names(store), building.exists()) == (set(), False)


def test_a_pin_waits_for_the_collection_that_is_going_on(store: Store, made: dict[str, Artifact]) -> None:
    said: list[str] = []

    def person() -> None:
        try:
            pin(store, made["m1"].label)
        except ArtifactError as error:
            said.append(str(error))

    with collecting(store.root):
        thread = threading.Thread(target=person)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it pinned what is being taken away"
        shutil.rmtree(made["m1"].path)
    thread.join()
    assert ["was collected just now" in each for each in said] == [True]
    assert pins(store) == {}


def test_a_model_that_cannot_be_moved_keeps_its_log(
    store: Store, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(source) == made["m1"].path:
            raise OSError(errno.EACCES, "Permission denied")
        real(source, target)

    doomed = [item for item in plan(store, NOTHING, {}).doomed if item.label == made["m1"].label]
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError):
        sweep(store, doomed, NOTHING, {})
    assert (store.root / ".runs" / made["m1"].path.name / "card.json").exists()
    assert hidden(store) == []


def test_what_a_killed_reproduction_left_is_shown_and_goes_when_it_is_old(
    store: Store, made: dict[str, Artifact]
) -> None:
    with temporary_store(store, made["m1"], keep=True) as kept, temporary_store(store, made["m1"]) as living:
        age(living.root)
        dead, young = (store.root / ".reproduce" / name for name in ("dead", "young"))
        for path in (dead, young):
            path.mkdir()
            (path / ".lock").write_text('{"pid": 1, "host": "gone", "since": "then"}')
        age(dead)
        shares = {share.what: share for share in usage(store)}
        assert shares["reproductions"].count == 4
        assert shares["reproductions"].bytes > 80
        week = Rules(keep_days=7, keep_newest=0)
        assert [i.label for i in plan(store, week, {}).doomed if i.what == "reproduction"] == [".reproduce/dead"]
        swept = collect(store, week)
        assert [i.label for i in swept.gone if i.what == "reproduction"] == [".reproduce/dead"]
        assert (dead.exists(), young.exists(), living.root.exists(), hidden(store)) == (False, True, True, [])
    collect(store)
    assert (young.exists(), kept.root.exists()) == (False, True), "it was kept on purpose"


def test_between_its_steps_a_flow_holds_what_it_made(
    store: Store, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    with holding():
        assert hold(made["s1"]) is made["s1"]
        collect(store)
        assert names(store) == {"s1", "c1"}
    hold(made["s1"])  # outside of a flow it holds nothing
    collect(store)
    assert (names(store), hidden(store)) == (set(), [])
    (store.root / ".uses").rmdir()
    (store.root / ".uses").write_text("")  # as little to be written to as a store that is read-only
    with holding():
        assert hold(made["s1"]) is made["s1"]


def test_a_run_that_begins_between_the_table_and_the_yes_keeps_what_it_uses(
    store: Store, made: dict[str, Artifact]
) -> None:
    shown = plan(store, NOTHING, {}).doomed
    with using(store.root, [made["s1"].label]):
        swept = sweep(store, shown, NOTHING, {})
    assert names(store) == {"s1", "c1"}
    assert {item.label for item, _ in swept.spared} == {made["s1"].label, made["c1"].label}


def test_what_is_being_written_is_left_alone_with_its_inputs(store: Store, made: dict[str, Artifact]) -> None:
    from gptmodel.store.locks import exclusive

    with exclusive(store.lock_path(made["m1"].request), "m1"):
        swept = collect(store)
    assert names(store) == {"m1", "s1", "c1"}
    assert f"process {os.getpid()} " in next(why for item, why in swept.spared if item.label == made["m1"].label)


def in_child(work: Callable[[], object]) -> int:
    """Its exit code; it shares nothing with us but the disk."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(store: Store, moment: int) -> int:
    """Collect in a child that dies right before it moves or removes something for the `moment`th time."""
    seen = 0

    def watch(event: str, _args: object) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove", "os.rmdir"):
            seen += 1
            if seen == moment:
                os._exit(9)

    def work() -> None:
        sys.addaudithook(watch)
        collect(store)

    return in_child(work)


def test_killed_anywhere_it_leaves_nothing_half_and_the_next_one_finishes(tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole")
    base = make(whole, "corpus", "c1")
    shards = make(whole, "shards", "s1", base)
    make(whole, "evaluation", "e1", make(whole, "checkpoint", "m1", shards), shards)
    pin(whole, base.label)
    moment = 0
    while True:
        moment += 1
        store = Store(tmp_path / f"killed-{moment}")
        shutil.copytree(whole.root, store.root)
        for path in store.directories():
            age(path)
        code = killed_at(store, moment)
        for artifact in store.artifacts():  # raises for a half one
            artifact.verify()
            for ref in artifact.request.inputs:
                assert (store.root / ref.label / MANIFEST).exists(), f"an orphan at moment {moment}"
        logs = {path.name for path in (store.root / ".runs").iterdir()}
        assert logs <= {path.name for path in (store.root / "checkpoint").glob("[!.]*")}, "a log without its model"
        collect(store)
        assert (names(store), hidden(store)) == ({"c1"}, [])
        if code == 0:
            break
        assert code == 9
    assert moment > 15


USER = """
import sys
from pathlib import Path
from gptmodel.store import artifact
from gptmodel.store.artifacts import Request, Store
from gptmodel.errors import ArtifactError

store, label, wanted = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
counts, number = {"made": 0, "gone": 0}, 0
while min(counts.values()) < wanted:
    number += 1
    def build(directory):
        artifact._hashed.clear()
        (directory / "a.txt").write_text("".join(taken.file(name).read_text() for name in taken.names()))
        return {"name": "product"}
    try:
        taken = store.resolve(label)
        store.produce(Request("shards", 1, {"number": number}, (taken.ref,)), build)
        counts["made"] += 1
    except ArtifactError:
        counts["gone"] += 1
print(counts)
"""


def test_a_run_that_begins_while_it_is_collected_has_all_or_nothing(store: Store) -> None:
    """The collector and a user race for one artifact, which is made anew each time."""
    taken = make(store, "corpus", "raced")
    whole = "".join(taken.file(name).read_text() for name in taken.names())
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(store.root), taken.label, "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while user.poll() is None:
        make(store, "corpus", "raced")
        for product in (store.root / "shards").glob("[!.]*"):
            assert (product / "a.txt").read_text() == whole
        collect(store)
    _, failure = user.communicate()
    assert user.returncode == 0, f"it ended otherwise than by a plain ArtifactError: {failure}"


def test_with_a_damaged_manifest_nothing_is_collected(store: Store, made: dict[str, Artifact]) -> None:
    path = made["m2"].path / MANIFEST
    path.write_text(path.read_text().replace('"shards"', '"sharps"'))
    with pytest.raises(ArtifactError, match=f"nobody can tell what hangs on it.*verify {made['m2'].label}"):
        collect(store)
    assert len(store.directories()) == len(made)


def test_leftovers_and_downloads_that_nobody_needs_go(store: Store) -> None:
    needed, idle, young, named = ("ab" * 32, "cd" * 32, "ef" * 32, "12" * 32)

    def with_sources(directory: Path) -> dict[str, Any]:
        (directory / "sources.jsonl").write_text(json.dumps({"name": "a.txt", "bytes": 1, "sha256": needed}) + "\n")
        return {"name": "new"}

    def without(directory: Path) -> dict[str, Any]:
        (directory / "documents-00000.parquet").write_text("")
        return {"name": "old"}

    new, _ = store.produce(Request("corpus", 2, {"source": {"paths": ["a.txt"]}}), with_sources)
    old, _ = store.produce(Request("corpus", 1, {"source": {"paths": ["b.txt"]}}), without)
    for corpus in (new, old):
        pin(store, corpus.label)
    for digest, name in ((needed, "a.txt"), (idle, "c.txt"), (young, "d.txt"), (named, "b.txt")):
        folder = store.root / ".downloads" / digest
        folder.mkdir(parents=True)
        (folder / name).write_text("text")
        if digest != young:
            age(folder)
    for leftover in ("corpus/.trash-1-2", ".trash-log-1-2", "corpus/.without-manifest-1-2"):
        (store.root / leftover).mkdir()
        (store.root / leftover / "file").write_text("left")
        age(store.root / leftover)
    collect(store, Rules(keep_days=7, keep_newest=0))
    assert {path.name for path in (store.root / ".downloads").iterdir()} == {needed, young, named}
    assert hidden(store) == []
    assert not list(store.root.glob("*/.without-manifest-*"))
    with using(store.root, [f".downloads/{young}"]):
        collect(store)
    assert (store.root / ".downloads" / young).exists()
    collect(store)
    assert not (store.root / ".downloads" / young).exists()


def test_what_a_killed_run_had_of_a_followed_address_goes_when_it_is_old_and_nobody_follows(store: Store) -> None:
    cache = store.root / ".downloads"
    for name in ("old", "young"):
        (cache / f".following-{name}").mkdir(parents=True)
        (cache / f".following-{name}" / "a.txt").write_text("te")
    age(cache / ".following-old")
    week = Rules(keep_days=7, keep_newest=0)
    with exclusive(cache / ".followed.lock", "the list"):
        assert not collect(store, week).gone
    shown = plan(store, week, {}).doomed
    with exclusive(cache / ".followed.lock", "the list"):
        assert not sweep(store, shown, week, {}).gone
    assert [item.label for item in collect(store, week).gone] == [".downloads/.following-old"]
    assert [path.name for path in cache.glob(".following-*")] == [".following-young"]
    assert hidden(store) == []


def test_what_is_collected_while_the_store_is_listed_is_left_out(store: Store, made: dict[str, Artifact]) -> None:
    listed = holdings(store, {})
    first = next(listed)
    shutil.rmtree(made["s2"].path)
    shown = {first.label, *(holding.label for holding in listed)}
    assert shown == {artifact.label for artifact in made.values()} - {made["s2"].label}


def test_the_parts_of_a_store_add_up(store: Store, made: dict[str, Artifact]) -> None:
    (store.root / "checkpoint" / ".building-11" / ".work").mkdir(parents=True)
    (store.root / "checkpoint" / ".building-11" / ".work" / "weights").write_bytes(b"w" * 5_000)
    (made["m1"].path / ".work").mkdir()
    (made["m1"].path / ".work" / "rest").write_bytes(b"r" * 700)
    shares = {share.what: share for share in usage(store)}
    assert sum(share.bytes for share in shares.values()) - 700 == tree_bytes(store.root)
    assert shares["checkpoint"].count == 3
    assert shares["scratch"].bytes == 5_700
    assert shares["shards"].shared_bytes == tree_bytes(made["s1"].path), "two models were made from these"


def test_the_commands(store: Store, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.commands.store import store as group

    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))

    def gptflow(*words: str) -> Any:
        done = CliRunner().invoke(group, words)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in words else done.stdout

    gptflow("pin", made["m2"].label, "--note", "good")
    rows = {row["label"]: row for row in gptflow("ls", "--no-mlflow", "--json")["artifacts"]}
    assert rows.keys() == {artifact.label for artifact in made.values()}
    assert rows[made["m2"].label]["kept_by"] == "pinned good"
    shares = gptflow("du", "--json")
    assert shares["bytes"] == sum(share["bytes"] for share in shares["shares"])
    asked = ("gc", "--pins-only", "--keep-newest", "0")
    dry = gptflow(*asked, "--json")
    assert len(dry["doomed"]) == 4
    assert "4 to delete" in gptflow(*asked)
    assert "add --yes" in gptflow(*asked)
    for value in ("nan", "inf", "-inf", "-1", "1e400"):
        refused = CliRunner().invoke(group, [*asked, "--keep-days", value, "--yes"])
        assert refused.exit_code == 2
        assert f"Invalid value for '--keep-days': {value} is" in refused.output
    assert len(store.directories()) == len(made), "without a yes nothing goes"
    done = gptflow(*asked, "--yes", "--json")
    assert [item["label"] for item in done["deleted"]] == [item["label"] for item in dry["doomed"]]
    assert names(store) == {"m2", "e2", "s1", "c1", "s2", "c2"}
    gptflow("unpin", made["m2"].label)
    assert "6 deleted" in gptflow(*asked, "--yes")
    assert "nothing was deleted" in gptflow(*asked, "--yes")


def record(store: Store, name: str, text: str) -> Path:
    """A file kept beside the artifacts, a month old."""
    path = store.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (OLD, OLD))
    return path


def told(kind: str, made: Artifact, *, reused: bool = False) -> str:
    facets = {"gptflow_step": {"reused": reused}}
    output = {"namespace": "gptflow", "name": f"{made.kind}/{made.fingerprint}"}
    return json.dumps({"eventType": kind, "run": {"facets": facets}, "outputs": [output]}) + "\n"


def test_patches_and_package_lists_that_nothing_names_go(store: Store, made: dict[str, Artifact]) -> None:
    (packages,) = (store.root / ".provenance").glob("*.packages")
    os.utime(packages, (OLD, OLD))
    of_a_run = record(store, f".provenance/{'a' * 64}.patch", "of a training that was stopped")
    job = {"provenance": {"code_patch": {"sha256": "a" * 64}}}
    (store.root / ".runs" / made["m1"].path.name / "job.json").write_text(json.dumps(job))
    unnamed = [record(store, f".provenance/{c * 64}.{end}", c) for c, end in (("b", "patch"), ("c", "packages"))]
    young = record(store, f".provenance/{'d' * 64}.patch", "d")
    os.utime(young)
    rules = Rules(keep_days=1, keep_newest=9)
    with using(store.root, [made["c1"].label]):
        assert not [i for i in plan(store, rules, {}).doomed if i.what == "record"], "a run is about to name one"
    collect(store, rules)
    assert [path.exists() for path in (packages, of_a_run, young, *unnamed)] == [True, True, True, False, False]
    (again,) = (make(store, "corpus", "c3"),)
    assert packages.stat().st_mtime > OLD + 1, "used again it is young again"
    assert again.provenance["packages_digest"] == packages.stem


def test_events_stay_while_something_is_there_that_was_made_in_them(store: Store, made: dict[str, Artifact]) -> None:
    m1, m3 = made["m1"], made["m3"]
    files = {
        "made": told("START", m1) + told("COMPLETE", m1),
        "reused": told("COMPLETE", m1, reused=True),
        "gone": told("COMPLETE", m3),
        "failed": told("FAIL", m1),
        "half-sent": told("FAIL", m1),
        "going-on": told("START", m1),
    }
    paths = {name: record(store, f".lineage/{name}.jsonl", text) for name, text in files.items()}
    size = paths["failed"].stat().st_size
    record(store, ".lineage/.failed.jsonl.sent", str(size))
    record(store, ".lineage/.half-sent.jsonl.sent", str(size - 1))
    record(store, ".lineage/.open-1", json.dumps({"file": "going-on.jsonl"}))
    wanted, waiting = {m1.path.name: "registered"}, Rules(keep_days=0, keep_newest=0, events_to_send=True)
    doomed = [item.label for item in plan(store, waiting, wanted).doomed if item.what == "record"]
    assert doomed == [".lineage/failed.jsonl"], "the others are still to be sent"
    collect(store, wanted=wanted)
    assert {name for name, path in paths.items() if path.exists()} == {"made", "half-sent", "going-on"}
    assert not (store.root / ".lineage" / ".failed.jsonl.sent").exists()
    assert hidden(store) == []
