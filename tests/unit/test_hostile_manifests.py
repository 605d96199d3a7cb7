"""A manifest that a stranger wrote is refused in one line, soon, and nothing outside the store is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptmodel.errors import ArtifactError
from gptmodel.lineage.walk import chain_of
from gptmodel.store.artifacts import Artifact, Ref, Request, Store, load_artifact
from gptmodel.store.manifests import LONGEST_MANIFEST, MANIFEST, FileEntry, Manifest
from gptmodel.upkeep.nodes import nodes_of
from gptmodel.upkeep.verification import verify

Change = Callable[[dict[str, Any]], object]
SECONDS = 15.0  # the longest manifest that is read at all takes about two, and a busy machine some more
HEX = "ab" * 32


def build(directory: Path) -> dict[str, Any]:
    (directory / "a.txt").write_text("some text")
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "b.txt").write_text("more")
    return {"files": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return store.produce(Request("corpus", 2, {"a": 1}, (Ref("source", HEX, HEX),)), build)[0]


def rewrite(path: Path, change: Change) -> dict[str, Any]:
    """Change a manifest and, as far as that can be, make its hashes agree with the rest again."""
    raw: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    change(raw)
    try:
        request = Request(raw["kind"], raw["recipe_version"], raw["config"], tuple(Ref(**r) for r in raw["inputs"]))
        lines = sorted(f"{entry['sha256']} {entry['name']}" for entry in raw["files"])
        raw["digest"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        raw["fingerprint"] = request.fingerprint
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        pass  # then its form alone must give it away
    unsealed = {name: value for name, value in raw.items() if name != "seal"}
    raw["seal"] = hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(raw))
    return raw


def told(action: Callable[[], object]) -> str:
    began = time.process_time()
    with pytest.raises(ArtifactError) as raised:
        action()
    assert time.process_time() - began < SECONDS
    text = str(raised.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert len(text) < 1_000
    return text


def file(**fields: Any) -> Change:
    return lambda raw: raw["files"][0].update(fields)


def put(**fields: Any) -> Change:
    return lambda raw: raw.update(fields)


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


HOSTILE: dict[str, Change] = {
    "absolute": file(name="/etc/hostname"),
    "parent": file(name="../../outside"),
    "parent inside": file(name="sub/../a.txt"),
    "home": file(name="./a.txt"),
    "backslash": file(name="..\\outside"),
    "nul": file(name="a\0.txt"),
    "line end": file(name="a\n.txt"),
    "escape": file(name="a\x1b[2J"),
    "empty": file(name=""),
    "only slashes": file(name="//"),
    "folder": file(name="sub/"),
    "long": file(name="x" * 300),
    "deep": file(name="/".join("x" * 700)),
    "half a character": file(name="\ud800.txt"),
    "name is no text": file(name=["a.txt"]),
    "the manifest itself": file(name=MANIFEST),
    "scratch": file(name=".work/secret"),
    "twice": lambda raw: raw["files"].append(raw["files"][0]),
    "negative": file(bytes=-1),
    "huge": file(bytes=10**30),
    "size is true": file(bytes=True),
    "size is text": file(bytes="9"),
    "size is a fraction": file(bytes=9.5),
    "hash is short": file(sha256="ab"),
    "hash is no hex": file(sha256="z" * 64),
    "hash in capitals": file(sha256="A" * 64),
    "more in a file": file(mode="0777"),
    "files is an object": put(files={"a.txt": 9}),
    "files is text": put(files="a.txt"),
    "file is a list": put(files=[["a.txt", 9, HEX]]),
    "kind escapes": put(kind="../x"),
    "kind is a pattern": put(kind="*"),
    "kind is empty": put(kind=""),
    "kind is no text": put(kind=7),
    "version is true": put(recipe_version=True),
    "version is negative": put(recipe_version=-1),
    "config is a list": put(config=[]),
    "summary is null": put(summary=None),
    "provenance is text": put(provenance="me"),
    "input escapes": put(inputs=[{"kind": "../..", "fingerprint": HEX, "digest": HEX}]),
    "input's name escapes": put(inputs=[{"kind": "corpus", "fingerprint": "../" * 10, "digest": HEX}]),
    "input is short": put(inputs=[{"kind": "corpus", "fingerprint": "ab", "digest": HEX}]),
    "input's digest is a number": put(inputs=[{"kind": "corpus", "fingerprint": HEX, "digest": 1}]),
    "input lacks": put(inputs=[{"kind": "corpus"}]),
    "inputs is an object": put(inputs={}),
    "unknown": put(hook="rm"),
    "not a number": put(summary={"loss": float("nan")}),
    "infinite": put(config={"a": float("inf")}),
    "deeply nested": put(summary={"a": nested(900)}),
    "broken characters": put(summary={"a": "\udfff"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(store: Store, artifact: Artifact, name: str) -> None:
    rewrite(artifact.path, HOSTILE[name])
    assert MANIFEST in told(lambda: load_artifact(artifact.path))
    told(lambda: list(store.artifacts()))
    told(lambda: store.resolve(artifact.label))
    assert verify(store, [artifact.path]).differences, "and `verify` names it instead of failing"


def test_the_form_of_a_sound_manifest_survives_the_forger(artifact: Artifact) -> None:
    """Otherwise the table above might be refused for the forger's own faults."""
    rewrite(artifact.path, lambda raw: None)
    assert load_artifact(artifact.path) == artifact


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"1" * 100_000,
        b'{"kind": "corpus", "kind": "corpus"}',
        b"null",
        b'"' + b"a" * 1_000_000,
        b" " * (LONGEST_MANIFEST + 1),
    ],
    ids=["lists", "objects", "utf-16", "mark", "digits", "key twice", "null", "endless text", "spaces"],
)
def test_what_is_no_manifest_is_refused(artifact: Artifact, text: bytes) -> None:
    (artifact.path / MANIFEST).write_bytes(text)
    assert MANIFEST in told(lambda: load_artifact(artifact.path))


def test_a_key_that_stands_twice_inside_is_refused(artifact: Artifact) -> None:
    text = (artifact.path / MANIFEST).read_text()
    (artifact.path / MANIFEST).write_text(text.replace('"summary": {', '"summary": {"files": 3, ', 1))
    assert "key twice" in told(lambda: load_artifact(artifact.path))


def test_a_manifest_of_millions_of_entries_is_refused_unread(artifact: Artifact) -> None:
    entries = ",".join([json.dumps({"name": "a.txt", "bytes": 1, "sha256": HEX})] * 200_000)
    text = (artifact.path / MANIFEST).read_text().replace('"files": [', f'"files": [{entries},', 1)
    (artifact.path / MANIFEST).write_text(text)
    assert len(text) > LONGEST_MANIFEST
    assert f"{LONGEST_MANIFEST:,} bytes" in told(lambda: load_artifact(artifact.path))


def test_the_longest_manifest_is_read_or_refused_soon(artifact: Artifact) -> None:
    filler = "[" + "{}," * ((LONGEST_MANIFEST - 10_000) // 3) + "{}]"
    text = (artifact.path / MANIFEST).read_text().replace('"files": 2', f'"files": {filler}')
    assert len(text) < LONGEST_MANIFEST
    (artifact.path / MANIFEST).write_text(text)
    assert "seal" in told(lambda: load_artifact(artifact.path))


def test_what_readers_would_refuse_is_not_published(store: Store) -> None:
    def link(directory: Path) -> dict[str, Any]:
        (directory / "a.txt").symlink_to("/etc/hostname")
        return {}

    def long(directory: Path) -> dict[str, Any]:
        (directory / "a.txt").write_text("text")
        return {"text": "x" * LONGEST_MANIFEST}

    for build_it, said in ((link, "a link"), (long, "longer than")):
        assert said in told(lambda build_it=build_it: store.produce(Request("thing", 1, {"said": said}), build_it))  # noqa: B023
    assert not list(store.artifacts())


def outside(tmp_path: Path, artifact: Artifact) -> Path:
    """A whole artifact beside the store."""
    there = tmp_path / "elsewhere" / artifact.path.name
    there.parent.mkdir()
    shutil.move(artifact.path, there)
    return there


@pytest.mark.parametrize("part", ["file", "folder", "manifest", "artifact", "kind"])
def test_a_link_out_of_the_store_is_not_followed(
    store: Store, artifact: Artifact, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = outside(tmp_path, artifact)
    if part == "kind":
        artifact.path.parent.rename(tmp_path / "locks")
        artifact.path.parent.symlink_to(there.parent)
    elif part == "artifact":
        artifact.path.symlink_to(there)
    else:
        shutil.copytree(there, artifact.path)
        name = {"file": "a.txt", "folder": "sub", "manifest": MANIFEST}[part]
        target = artifact.path / name
        shutil.rmtree(target) if part == "folder" else target.unlink()
        target.symlink_to(there / name)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and watching else None)
    watching = True
    told(lambda: store.resolve(artifact.label))
    told(lambda: list(store.artifacts()))
    told(lambda: store.find(artifact.request))
    report = verify(store, [artifact.path], sources=False)
    watching = False
    assert report.differences
    real = {os.path.realpath(name) for name in opened if name.startswith("/")}
    wanted = {os.path.realpath(there / name) for name in ("a.txt", "sub/b.txt", MANIFEST)}
    tried = {name for name in opened if Path(name).is_symlink()}
    assert not (real & wanted) or tried == {str(artifact.path / MANIFEST)}, "opened with O_NOFOLLOW, which failed"


def test_a_manifest_that_is_a_pipe_holds_nobody_up(store: Store, artifact: Artifact) -> None:
    (artifact.path / MANIFEST).unlink()
    os.mkfifo(artifact.path / MANIFEST)
    told(lambda: load_artifact(artifact.path))
    told(lambda: store.resolve(artifact.label))


def test_a_file_that_is_a_pipe_is_refused(artifact: Artifact) -> None:
    (artifact.path / "a.txt").unlink()
    os.mkfifo(artifact.path / "a.txt")
    assert "no regular file" in told(lambda: load_artifact(artifact.path))
    assert "no regular file" in told(lambda: artifact.file("a.txt"))


@pytest.mark.parametrize("place", ["shards/{name}", "corpus/0123456789abcdef"])
def test_an_artifact_away_from_its_place_is_refused(store: Store, artifact: Artifact, place: str) -> None:
    target = store.root / place.format(name=artifact.path.name)
    target.parent.mkdir(exist_ok=True)
    shutil.move(artifact.path, target)
    for use in (lambda: store.resolve(place.format(name=artifact.path.name)), lambda: list(store.artifacts())):
        assert "put it back" in told(use)
    (difference,) = verify(store, [target], sources=False).differences
    assert (difference.what, difference.found) == ("place", artifact.label)


def plant(store: Store, config: dict[str, Any], inputs: tuple[Ref, ...], text: str) -> Artifact:
    """An artifact with these inputs, whether they are there or not."""
    request = Request("thing", 1, config, inputs)
    path = store.path_of(request)
    path.mkdir(parents=True)
    (path / "a").write_text(text)
    entry = FileEntry("a", len(text), hashlib.sha256(text.encode()).hexdigest())
    (path / MANIFEST).write_text(Manifest(request, (entry,), {}, {}).text())
    return load_artifact(path)


def ring(store: Store, size: int) -> Artifact:
    """Artifacts each of which was made from the next, and the last from the first: names need no digest of a name."""
    digests = []
    for number in range(size):
        sha256 = hashlib.sha256(f"text {number}".encode()).hexdigest()
        digests.append(hashlib.sha256(f"{sha256} a".encode()).hexdigest())
    names = [
        Request("thing", 1, {"n": n}, (Ref("thing", HEX, digests[(n + 1) % size]),)).fingerprint for n in range(size)
    ]
    made = [
        plant(store, {"n": n}, (Ref("thing", names[(n + 1) % size], digests[(n + 1) % size]),), f"text {n}")
        for n in range(size)
    ]
    return made[0]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_inputs_that_go_in_a_circle_are_walked_once(store: Store, size: int) -> None:
    first = ring(store, size)
    assert len(chain_of(store, first)) <= size
    assert len(nodes_of(store, [first.path])) == size
    assert not verify(store, [first.path]).differences


def test_a_chain_as_long_as_you_like_and_a_ladder_are_walked_in_time(store: Store) -> None:
    below: tuple[Ref, ...] = ()
    for number in range(300):  # by two ways at each rung: 2 ** 300 walks
        sides = [plant(store, {"n": number, "side": side}, below, f"{number} {side}") for side in "ab"]
        below = tuple(side.ref for side in sides)
    top = plant(store, {"n": "top"}, below, "top")
    began = time.process_time()
    assert len(nodes_of(store, [top.path])) == 601
    assert len(chain_of(store, top)) == 600
    assert time.process_time() - began < SECONDS
