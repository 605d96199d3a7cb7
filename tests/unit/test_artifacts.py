"""An artifact is whole or it is not there, and it is what its name says; one process writes it at a time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptmodel.errors import ArtifactError, ConfigError, LockHeldError, StorageError
from gptmodel.store import artifacts
from gptmodel.store.artifacts import (
    MANIFEST,
    Artifact,
    Ref,
    Request,
    Store,
    canonical,
    find_model,
    load_artifact,
    open_store,
)
from gptmodel.store.locks import exclusive
from gptmodel.store.uses import USES, in_use, using
from tasks.console import start_server_apart
from tasks.operations.servers import child_environment, services_of

REQUEST = Request("corpus", 1, {"fraction": 0.1, "steps": 3}, (Ref("source", "f" * 64, "d" * 64),))

# Publishes artifacts one after the other until it is killed; says so when it has begun.
PUBLISHER = """
import sys
from pathlib import Path
from gptmodel.store.artifacts import Request, Store

def build(directory):
    for n in range(5):
        (directory / f"part-{n}").write_bytes(bytes([n]) * 100_000)
    return {"parts": 5}

store = Store(Path(sys.argv[1]))
number = int(sys.argv[2])
print("begun", flush=True)
while True:
    store.produce(Request("thing", 1, {"number": number}), build)
    number += 1
"""
HOLDER = """
import sys
from pathlib import Path
from gptmodel.store.locks import exclusive
with exclusive(Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline()
    return started


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def parts(directory: Path) -> dict[str, Any]:
    (directory / "data").mkdir(exist_ok=True)
    (directory / "data" / "a.bin").write_bytes(b"a" * 1000)
    (directory / "b.txt").write_text("bee")
    (directory / ".work").mkdir(exist_ok=True)
    (directory / ".work" / "scratch").write_text("of no use to readers")
    return {"files": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return store.produce(REQUEST, parts)[0]


def test_the_fingerprint_is_the_same_for_ever() -> None:
    assert REQUEST.fingerprint == "1096ab303802649539b205ae232cb9f15b702d7d2a178f6de7346f30b438a729"
    assert canonical({"b": [1, None, True], "a": "é"}) == '{"a":"é","b":[1,null,true]}'


def test_only_the_contents_of_inputs_enter_the_fingerprint() -> None:
    same = Request("corpus", 1, {"steps": 3, "fraction": 0.1}, (Ref("source", "0" * 64, "d" * 64),))
    assert same.fingerprint == REQUEST.fingerprint
    others = [
        Request("shards", 1, REQUEST.config, REQUEST.inputs),
        Request("corpus", 2, REQUEST.config, REQUEST.inputs),
        Request("corpus", 1, {**REQUEST.config, "steps": 4}, REQUEST.inputs),
        Request("corpus", 1, REQUEST.config, (Ref("source", "f" * 64, "e" * 64),)),
        Request("corpus", 1, REQUEST.config),
    ]
    assert len({REQUEST.fingerprint, *(r.fingerprint for r in others)}) == 6


def test_whole_floats_are_integers_and_other_floats_keep_every_digit() -> None:
    assert canonical([1.0, -0.0, 1e15]) == canonical([1, 0, 10**15])
    assert canonical(0.1 + 0.2) == "0.30000000000000004"
    assert canonical(True) != canonical(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Path("a"), b"a", {1: 2}, {"a": {3}}, len])
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="stable form"):
        canonical({"value": [value]})


def test_an_artifact_is_found_again_without_its_scratch(store: Store, artifact: Artifact) -> None:
    again, reused = store.produce(REQUEST, parts)
    assert reused
    assert again.digest == artifact.digest
    assert artifact.names() == ["b.txt", "data/a.bin"]
    assert not (artifact.path / ".work").exists()
    assert artifact.file("data/a.bin").read_bytes() == b"a" * 1000
    assert artifact.summary == {"files": 2}
    assert store.resolve(artifact.fingerprint[:6]).path == artifact.path
    with pytest.raises(ArtifactError, match="no file c"):
        artifact.file("c")


def test_a_name_that_is_too_short_is_told_what_it_lacks(store: Store) -> None:
    made = [store.produce(Request(kind, 1, {}), parts)[0] for kind in ("corpus", "shards")]
    with pytest.raises(ArtifactError, match="give at least 4 digits"):
        store.resolve(made[0].label[:10])
    for artifact in made:  # the same digits in another kind
        twin = artifact.path.with_name(artifact.path.name[:4] + "0" * 12)
        shutil.copytree(artifact.path, twin)
        with pytest.raises(ArtifactError, match=r"2 artifacts in .*; give kind and more digits") as error:
            store.resolve(artifact.path.name[:4])
        assert f"{artifact.label}" in str(error.value)
        assert f"{artifact.kind}/{twin.name}" in str(error.value)


def test_a_failed_step_leaves_nothing_published(store: Store) -> None:
    def fail(directory: Path) -> dict[str, Any]:
        parts(directory)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        store.produce(REQUEST, fail)
    assert store.find(REQUEST) is None
    assert not list(store.artifacts())
    with pytest.raises(ArtifactError, match="no artifact"):
        load_artifact(store.path_of(REQUEST))
    assert not store.produce(REQUEST, parts)[1]


def test_a_killed_publisher_never_leaves_half_an_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draw = random.Random(5)
    number = turn = 0
    while turn < 8 or (not number and turn < 60):  # a busy machine publishes later
        turn += 1
        process = child(PUBLISHER, str(tmp_path), str(number))
        try:
            process.wait(timeout=draw.uniform(0, 0.15) * max(1, turn // 4))
        except subprocess.TimeoutExpired:
            kill(process)
        published = list(store.artifacts())  # raises for a half one
        for found in published:
            assert [found.file(name).read_bytes() for name in found.names()] == [bytes([n]) * 100_000 for n in range(5)]
        numbers = sorted(found.request.config["number"] for found in published)
        assert numbers == list(range(len(numbers)))
        number = len(numbers)
    assert number > 0


@pytest.mark.parametrize("name", ["b.txt", "data/a.bin"])
def test_a_missing_file_is_named(artifact: Artifact, name: str) -> None:
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactError, match=rf"corpus/.*{name} is missing"):
        load_artifact(artifact.path)


def test_a_cut_file_is_named_before_it_is_used(store: Store, artifact: Artifact) -> None:
    os.truncate(artifact.path / "data" / "a.bin", 900)
    for use in (lambda: load_artifact(artifact.path), lambda: artifact.file("data/a.bin"), lambda: store.find(REQUEST)):
        with pytest.raises(ArtifactError, match=r"data/a\.bin is damaged: 900 bytes, expected 1,000"):
            use()


def test_a_flipped_byte_is_found_when_the_file_is_first_used(artifact: Artifact) -> None:
    (artifact.path / "b.txt").write_text("bed")
    with pytest.raises(ArtifactError, match=r"b\.txt is damaged: sha256"):
        load_artifact(artifact.path).file("b.txt")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "data/../../outside"])
def test_a_manifest_that_leaves_its_directory_is_refused(artifact: Artifact, name: str) -> None:
    def leave(raw: dict[str, Any]) -> None:
        raw["files"][0]["name"] = name

    forge(artifact.path, leave)
    with pytest.raises(ArtifactError, match="outside its directory"):
        load_artifact(artifact.path)


def forge(path: Path, change: Any) -> None:
    """Change a manifest and make it agree with itself again."""
    raw = json.loads((path / MANIFEST).read_text())
    change(raw)
    request = Request(raw["kind"], raw["recipe_version"], raw["config"], tuple(Ref(**ref) for ref in raw["inputs"]))
    lines = sorted(f"{entry['sha256']} {entry['name']}" for entry in raw["files"])
    raw["digest"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    raw["fingerprint"] = request.fingerprint
    del raw["seal"]  # as in a manifest of an older version
    (path / MANIFEST).write_text(json.dumps(raw))


@pytest.mark.parametrize("field", ["fingerprint", "digest", "config"])
def test_a_manifest_that_disagrees_with_itself_is_refused(artifact: Artifact, field: str) -> None:
    raw = json.loads((artifact.path / MANIFEST).read_text())
    raw[field] = {"fraction": 0.2} if field == "config" else "0" * 64
    (artifact.path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="does not agree"):
        load_artifact(artifact.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "corpus"}'])
def test_a_damaged_manifest_is_refused(artifact: Artifact, text: str) -> None:
    (artifact.path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        load_artifact(artifact.path)


def test_an_input_that_changed_is_noticed(store: Store, artifact: Artifact) -> None:
    made = store.produce(Request("shards", 1, {}, (artifact.ref,)), parts)[0]
    assert store.input_of(made, "corpus").path == artifact.path

    def change(raw: dict[str, Any]) -> None:
        raw["files"][0]["sha256"] = "0" * 64

    forge(artifact.path, change)
    with pytest.raises(ArtifactError, match="was made from corpus"):
        store.input_of(made, "corpus")


def test_a_held_lock_refuses_and_names_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = child(HOLDER, str(lock))
    with (
        pytest.raises(LockHeldError, match=rf"the thing is being written by process {holder.pid} "),
        exclusive(lock, "the thing"),
    ):
        pytest.fail("two at once")
    kill(holder)


def test_a_lock_is_waited_for_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = tmp_path / "lock"
    holder = child(HOLDER, str(lock))
    waiter = child(
        HOLDER.replace('"the thing"', '"the thing", wait=True').replace("with ex", "print('x', flush=True)\nwith ex"),
        str(lock),
    )
    holder.communicate("")
    assert holder.returncode == 0
    assert waiter.communicate("")[0] == "held\n"
    with exclusive(lock, "the thing"):
        pass
    assert not caplog.records  # nobody died


def test_the_lock_of_a_killed_holder_is_taken_over_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "lock"
    holder = child(HOLDER, str(lock))
    kill(holder)
    with exclusive(lock, "the thing"):
        pass
    assert [f"process {holder.pid} " in record.getMessage() for record in caplog.records] == [True]
    assert "taking over" in caplog.text


def test_a_directory_that_lost_its_manifest_is_set_aside_and_made_again(store: Store, artifact: Artifact) -> None:
    (artifact.path / MANIFEST).unlink()
    again, reused = store.produce(REQUEST, parts)
    assert not reused
    assert again.digest == artifact.digest
    (aside,) = artifact.path.parent.glob(".without-manifest-*")
    assert (aside / "b.txt").read_text() == "bee"


NOBODY = 65534


def as_nobody(*places: Path, look: Callable[[], object]) -> str:
    """What another user is told who looks, in a child; the places, which are pytest's own, are opened for it."""
    for place in places:
        for folder in (place, *place.parents):
            if folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(folder.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            text = str(look())
        except BaseException as error:  # told to the parent
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")


@root_only
def test_what_is_closed_to_us_is_listed_and_never_taken_for_gone(store: Store, artifact: Artifact) -> None:
    artifact.path.chmod(0o700)
    assert as_nobody(store.root, look=store.directories) == str([artifact.path])
    for look in (lambda: store.find(REQUEST), lambda: list(store.artifacts()), lambda: store.resolve(artifact.label)):
        said = as_nobody(store.root, look=look)
        wanted = f"{artifact.path / MANIFEST} cannot be read: Permission denied; give this user the right to read it"
        assert said == f"ArtifactError: {wanted}"
    assert as_nobody(store.root, look=lambda: store.locate(str(artifact.path))) == str(artifact.path)
    artifact.path.parent.chmod(0o700)
    said = as_nobody(store.root, look=store.directories)
    assert said.startswith(f"ArtifactError: {artifact.path.parent} cannot be listed (Permission denied)")
    said = as_nobody(store.root, look=lambda: store.at("corpus", artifact.path.name))
    assert said.startswith("ArtifactError: "), "and no bare PermissionError"


def test_the_newest_model_is_found_beside_what_is_damaged(
    store: Store, artifact: Artifact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = (f"2026-01-0{day}T00:00:00+00:00" for day in range(1, 4))
    monkeypatch.setattr(artifacts, "now", lambda: next(days))
    made = [store.produce(Request("checkpoint", 1, {"number": number}), parts)[0] for number in range(3)]
    (artifact.path / "b.txt").write_text("be")  # of another kind
    assert find_model(store) == made[2]
    assert not caplog.messages
    (made[2].path / "b.txt").write_text("be")
    (store.root / "checkpoint" / ("0" * 16)).mkdir()  # what a collector is removing just now
    assert find_model(store) == made[1]
    (said,) = caplog.messages
    assert said.startswith(f"{made[2].label}: b.txt is damaged: 2 bytes, expected 3;")
    assert said.endswith("; left out, and it may be newer")
    with pytest.raises(ArtifactError, match="is damaged: 2 bytes"):
        find_model(store, made[2].label)
    for each in made[:2]:
        (each.path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"none of the 3 checkpoints in .* can be read; see `gptflow verify --all`"):
        find_model(store)
    with pytest.raises(ArtifactError, match=r"no checkpoint in .*; train one with `gptflow run`"):
        find_model(Store(store.root / "corpus"))


def test_a_name_of_any_length_is_refused_in_one_line(store: Store, artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="no artifact in"):
        store.resolve("a" * 300)


def test_the_path_of_an_artifact_may_be_a_dot(
    store: Store, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact.path)
    assert store.resolve(".") == artifact
    monkeypatch.chdir("data")
    assert store.locate("..") == artifact.path


@root_only
def test_another_user_sees_what_a_run_uses(store: Store) -> None:
    store.root.mkdir()
    with using(store.root, ["shards/1f2e"]):
        assert as_nobody(store.root, look=lambda: in_use(store.root)) == "{'shards/1f2e'}"
        (path,) = (store.root / USES).iterdir()
        path.chmod(0o600)  # as older versions left it
        assert as_nobody(store.root, look=lambda: in_use(store.root)).startswith(
            f"ArtifactError: {path} cannot be read"
        )
        (store.root / USES).chmod(0o700)
        assert as_nobody(store.root.parent, look=lambda: in_use(store.root)).startswith("ArtifactError: ")


@root_only
def test_another_user_cannot_drop_what_a_dead_run_left_and_goes_on(store: Store) -> None:
    (store.root / USES).mkdir(parents=True)
    left = store.root / USES / "1-a.json"
    left.write_text('["shards/1f2e"]')
    assert as_nobody(store.root / USES, look=lambda: in_use(store.root, clear=True)) == "set()"
    assert left.exists()
    assert in_use(store.root, clear=True) == set()
    assert not left.exists()


def test_an_empty_variable_is_the_usual_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_STORE", "")
    assert open_store().root == Path("store")
    assert child_environment(tmp_path, *services_of(tmp_path)[:2])["GPTFLOW_STORE"] == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a-file", "is not a directory"),
        ("a-file/store", "is not a directory"),
        ("dangling", "is a link that leads to no folder"),
        ("dangling/store", "is a link that leads to no folder"),
        ("/proc/x", "it cannot be made (no such file or directory)"),
    ],
)
def test_a_store_that_cannot_be_one_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_STORE", name)
    Path("a-file").write_text("")
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(StorageError) as told:
        open_store().produce(Request("weights", 1, {}), lambda _: pytest.fail("there is no place"))
    assert str(told.value).startswith(f"{name} cannot be a store: ")
    assert str(told.value).endswith(f"{said}; set GPTFLOW_STORE to another place")
    with pytest.raises(StorageError, match="cannot be a store"):
        start_server_apart()
    assert sorted(path.name for path in Path().iterdir()) == ["a-file", "dangling"]
