"""The code as lineage: real git repositories, and a patch that gives the same code again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptmodel import pretrained
from gptmodel.datagates import step as data_check
from gptmodel.judging import benchmark, comparison, evaluation
from gptmodel.planning import own_law
from gptmodel.pretraining import step as pretraining
from gptmodel.rating import results, rounds
from gptmodel.store import codestate, provenance
from gptmodel.store.artifacts import Artifact, Request, Store, load_artifact
from gptmodel.store.codestate import code_digest, inspect_code, recipe_versions
from gptmodel.text import corpus
from gptmodel.tokens import shards

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "core.autocrlf=false")
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed project of three packages."""
    project = tmp_path / "project"
    for name, text in {
        "gptmodel/__init__.py": "",
        "gptmodel/text/corpus.py": 'KIND = "corpus"\nRECIPE_VERSION = 1\n',
        "gptmodel/no_end.py": "a = 1",
        "flows/run.py": "b = 2\n" * 50,
        "tasks/old.py": "c = 3\n",
        "tasks/dos.py": "d = 4\r\ne = 5\r\n",
        "requirements.lock": "x==1\n",
        "README.md": "words\n",
        ".gitignore": "ignored.py\n",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(text.encode())
    (project / "picture.png").write_bytes(bytes(range(256)))
    git(project, "init", "-q", "-b", "main")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "one")
    return project


@pytest.fixture
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project is the code that runs."""

    def forget() -> None:
        provenance._code.cache_clear()
        provenance._fixed.cache_clear()

    monkeypatch.setattr(provenance, "_PROJECT", checkout)
    forget()
    yield checkout
    forget()


def change(project: Path) -> None:
    """Every kind of change that a patch must hold."""
    (project / "gptmodel/no_end.py").write_text("a = 1\nb = 2")
    (project / "flows/run.py").write_text("b = 2\n" * 49 + "b = 3  # Größe\n")
    (project / "tasks/old.py").unlink()
    (project / "tasks/dos.py").write_bytes(b"d = 4\r\ne = 6\r\n")
    (project / "tasks/more").mkdir()
    (project / "tasks/more/__init__.py").write_text("")
    (project / "tasks/more/new.py").write_text("f = 6\n\n-- a line like a header\n+++ b/x\nlast line without an end")
    (project / "gptmodel/ignored.py").write_text("g = 7\n")
    (project / "picture.png").write_bytes(bytes(range(255, -1, -1)))
    (project / "README.md").write_text("other words\n")


def into(project: Path, larger: Path, name: str) -> Path:
    """The project as a folder of a repository that holds more, which is changed too."""
    larger.mkdir()
    moved = project.rename(larger / name)
    (larger / "other.py").write_text("x = 1\n")
    git(larger, "init", "-q")
    git(larger, "add", "-A")
    git(larger, "commit", "-q", "-m", "one")
    (larger / "other.py").write_text("x = 2\n")
    return moved


def restored(project: Path, patch: bytes, where: Path) -> Path:
    """The commit in another folder, with the patch applied."""
    git(project.parent, "clone", "-q", str(project), str(where))
    (where.parent / "code.patch").write_bytes(patch)
    git(where, "apply", str(where.parent / "code.patch"))
    return where


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    found = inspect_code(checkout)
    assert (found.commit, found.dirty, found.patch, found.problem) == (
        git(checkout, "rev-parse", "HEAD"),
        False,
        b"",
        "",
    )


@pytest.mark.parametrize("where", ["plain", "configured", "in a larger repository"])
def test_the_patch_on_the_commit_restores_the_code(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    below = ""
    if where == "in a larger repository":
        below = "sub"
        shutil.rmtree(checkout / ".git")
        checkout = into(checkout, tmp_path / "larger", below)
    if where == "configured":  # what a person may have set for their own eyes
        mine = tmp_path / "gitconfig"
        mine.write_text(
            "[color]\n ui = always\n[diff]\n noprefix = true\n mnemonicPrefix = true\n external = false\n"
            " context = 0\n renames = copies\n[core]\n quotePath = false\n"
        )
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(mine))
    change(checkout)
    (checkout / "gptmodel/ignored.py").unlink()  # what git is told to ignore is in no patch
    found = inspect_code(checkout)
    assert (found.dirty, found.left_out, found.problem) == (True, (), "")
    assert b"other.py" not in found.patch
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    again = restored(checkout.parent if below else checkout, found.patch, tmp_path / "again") / below
    assert code_digest(again) == code_digest(checkout)
    for name in ("picture.png", "README.md"):
        assert (again / name).read_bytes() == (checkout / name).read_bytes()
    assert not (again / "tasks/old.py").exists()


def test_a_source_file_that_git_does_not_know_makes_the_code_dirty(checkout: Path) -> None:
    (checkout / "notes.py").write_text("not of a package\n")
    assert not inspect_code(checkout).dirty
    (checkout / "tasks/new.py").write_text("x = 1\n")
    found = inspect_code(checkout)
    assert found.dirty
    assert b"+x = 1\n" in found.patch


def test_a_patch_that_grows_too_large_leaves_whole_files_out_and_names_them(checkout: Path, tmp_path: Path) -> None:
    change(checkout)
    (checkout / "gptmodel/ignored.py").unlink()
    (checkout / "README.md").write_text("a new line of words\n" * 60_000)
    (checkout / "gptmodel/zz_table.py").write_text("TABLE = [\n" + "    1,\n" * 200_000 + "]\n")
    found = inspect_code(checkout)
    assert found.left_out == ("README.md", "gptmodel/zz_table.py")
    assert len(found.patch) <= codestate.PATCH_BYTES
    again = restored(checkout, found.patch, tmp_path / "again")
    (checkout / "gptmodel/zz_table.py").unlink()
    assert code_digest(again) == code_digest(checkout)


def test_what_git_cannot_tell_is_said_and_does_no_harm(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "wheel"
    (outside / "gptmodel").mkdir(parents=True)
    assert inspect_code(outside).problem == "not in a git checkout that may be read"
    site = checkout / "site"  # installed into somebody else's checkout
    (site / "gptmodel").mkdir(parents=True)
    (site / "gptmodel/a.py").write_text("a = 1\n")
    found = inspect_code(site)
    assert (found.commit, found.dirty, found.problem) == ("", False, "not in a git checkout of its own")
    git(tmp_path, "init", "-q", "fresh")
    (tmp_path / "fresh/gptmodel").mkdir()
    (tmp_path / "fresh/gptmodel/a.py").write_text("a = 1\n")
    git(tmp_path / "fresh", "add", "-A")
    assert inspect_code(tmp_path / "fresh").problem == "the checkout has no commit yet"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inspect_code(checkout).problem == "git is not installed"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://me:secret@git.example/a/b.git", "https://git.example/a/b.git"),
        ("git@git.example:a/b.git", "git@git.example:a/b.git"),
        ("../another/folder", ""),
    ],
)
def test_the_repository_is_named_without_a_password_or_a_folder(checkout: Path, address: str, told: str) -> None:
    git(checkout, "remote", "add", "origin", address)
    assert inspect_code(checkout).remote == told


@pytest.mark.parametrize("hangs_at", ["ls-files", "--binary"])
def test_a_git_that_hangs_is_given_up(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs_at: str
) -> None:
    """Its child holds the pipe, as a filter does."""
    change(checkout)
    real = subprocess.run(["which", "git"], capture_output=True, text=True).stdout.strip()
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    known = "--name-only" if hangs_at == "--binary" else "no such word"
    fake.write_text(
        f'#!/bin/sh\ncase " $* " in *" {known} "*) ;; *" {hangs_at} "*) sleep 60 & wait;; esac\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(codestate, "_GIT_SECONDS", 1.5)
    before = time.monotonic()
    found = inspect_code(checkout)
    assert time.monotonic() - before < 20
    assert "took longer" in found.problem
    assert found.patch == b""
    assert bool(found.commit) == (hangs_at != "ls-files")
    assert found.dirty == (hangs_at == "--binary")


def test_a_hook_s_git_variables_do_not_mislead(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q", "other")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other/index"))
    assert inspect_code(checkout).commit == commit


def test_the_code_digest_is_of_names_and_bytes_alone(checkout: Path, tmp_path: Path) -> None:
    before = code_digest(checkout)
    moved = checkout.rename(tmp_path / "moved")
    (moved / "README.md").write_text("no code\n")
    assert code_digest(moved) == before
    (moved / "tasks/old.py").rename(moved / "tasks/renamed.py")
    renamed = code_digest(moved)
    (moved / "flows/run.py").write_bytes((moved / "flows/run.py").read_bytes().replace(b"2", b"3", 1))
    assert len({before, renamed, code_digest(moved)}) == 3


def test_the_store_keeps_the_patch_once_and_apart_from_the_artifact(here: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def make(name: str) -> Artifact:
        def build(folder: Path) -> dict[str, str]:
            (folder / "file").write_text("the same")
            return {}

        return store.produce(Request("corpus", 1, {"name": name}), build)[0]

    clean = make("clean")
    assert clean.provenance["git_commit"] == git(here, "rev-parse", "HEAD")
    assert "code_patch" not in clean.provenance
    (here / "flows/run.py").write_text("changed = 1\n")
    provenance._code.cache_clear()
    provenance._fixed.cache_clear()
    dirty = load_artifact(make("dirty").path)
    entry = dirty.provenance["code_patch"]
    (kept,) = (store.root / ".provenance").glob("*.patch")
    seen = kept.stat()
    os.utime(kept, (1, 1))
    make("again")
    assert kept.stat().st_ino == seen.st_ino, "it is not written twice"
    assert kept.stat().st_mtime_ns >= seen.st_mtime_ns, "but young again, so that the collector leaves it"
    assert entry == {"sha256": hashlib.sha256(kept.read_bytes()).hexdigest(), "bytes": kept.stat().st_size}
    assert provenance.stored_patch(store.root, dirty.provenance) == kept.read_bytes()
    assert [f.name for f in dirty.files] == ["file"]
    assert dirty.digest == clean.digest
    assert dirty.provenance["code_digest"] != clean.provenance["code_digest"]
    assert dirty.provenance["lock_digest"] == hashlib.sha256(b"x==1\n").hexdigest()
    assert list(store.artifacts()) == [load_artifact(p) for p in store.directories()]
    kept.write_bytes(kept.read_bytes()[:-1])
    assert provenance.stored_patch(store.root, dirty.provenance) is None


def test_a_store_that_cannot_take_the_patch_is_told_and_fails_nothing(here: Path, tmp_path: Path) -> None:
    (here / "flows/run.py").write_text("changed = 1\n")
    (tmp_path / ".provenance").write_text("in the way")
    found = provenance.provenance(tmp_path)
    assert found["code_patch"]["missing"] == "File exists"
    assert len(found["code_patch"]["sha256"]) == 64
    assert provenance.stored_patch(tmp_path, found) is None


def test_a_folder_without_git_still_names_its_code(here: Path) -> None:
    (here / ".git").rename(here / "not-git")
    found = provenance.provenance()
    assert (found["git_commit"], found["git_dirty"]) == ("", False)
    assert found["git_problem"] == "not in a git checkout that may be read"
    assert found["code_digest"] == code_digest(here)


def test_recipe_versions_are_those_of_the_steps(tiny_data: tuple[Store, Artifact]) -> None:
    stated = {
        "benchmark": benchmark.RECIPE_VERSION,
        "comparison": comparison.RECIPE_VERSION,
        "corpus": corpus.RECIPE_VERSION,
        "data-check": data_check.RECIPE_VERSION,
        "rating-round": rounds.RECIPE_VERSION,
        "ratings": results.RECIPE_VERSION,
        "scaling-law": own_law.RECIPE_VERSION,
        "shards": shards._RECIPE_VERSION,
        "checkpoint": pretraining.RECIPE_VERSION,
        "evaluation": evaluation.RECIPE_VERSION,
        "weights": pretrained.RECIPE_VERSION,
    }
    assert recipe_versions(ROOT) == stated
    for artifact in tiny_data[0].artifacts():
        # what a change of the recipe did not touch keeps its earlier number
        assert artifact.provenance["recipes"][artifact.kind] >= artifact.request.recipe_version


def test_the_packages_are_the_installed_ones(tmp_path: Path) -> None:
    found = provenance.provenance(tmp_path)
    text = (tmp_path / ".provenance" / f"{found['packages_digest']}.packages").read_text()
    kept = dict(line.split("==") for line in text.splitlines())
    for distribution in importlib.metadata.distributions():
        name = provenance.re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        assert kept[name] == distribution.version, name
    assert found["versions"]["torch"] == importlib.metadata.version("torch")


def test_provenance_comes_without_torch() -> None:
    program = "import sys, gptmodel.store.provenance as p; p.provenance(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("given", "found"), [("4,1", 4), (" 3 ", 3), ("many", None), ("0", None), ("", None)])
def test_any_setting_of_openmp_is_read(monkeypatch: pytest.MonkeyPatch, given: str, found: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert provenance.provenance()["threads"] == (found or os.cpu_count())


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("corpus.source.paths=['https://me:secret@host/a.txt']", "corpus.source.paths=['https://host/a.txt']"),
        ("corpus.source.paths=['https://h/a.txt?token=secret']", "corpus.source.paths=['https://h/a.txt']"),
        ('paths=["https://h/a?t=secret", "https://h/b?t=secret#x"]', 'paths=["https://h/a", "https://h/b"]'),
        ("paths=[https://h/a?t=secret,https://me@h/b?t=secret]", "paths=[https://h/a,https://h/b]"),
        ("paths: [https://h/a?t=secret, https://h/b]", "paths: [https://h/a, https://h/b]"),
        ("https://host/models?a[]=1,2&token=secret", "https://host/models"),
        ("https://host?mail=secret@b", "https://host"),
        ("https://host/a#secret", "https://host/a"),
        ("Is it https? Yes, [a] 'b' #1", "Is it https? Yes, [a] 'b' #1"),
    ],
)
def test_what_opens_an_address_is_not_recorded(monkeypatch: pytest.MonkeyPatch, typed: str, kept: str) -> None:
    monkeypatch.setattr("sys.argv", ["gptflow", "--set", typed])
    assert provenance.provenance()["command"] == ["gptflow", "--set", kept]
