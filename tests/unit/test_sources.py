"""Files, downloads and hub datasets: what comes out of them, and what is said when they are wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptmodel.config import CorpusConfig, SourceConfig
from gptmodel.errors import ConfigError, DataError, GptflowError
from gptmodel.pretrained import import_weights
from gptmodel.store.artifacts import Store
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.text.names import file_of, parent_of
from gptmodel.text.sources import open_source

TEXTS = [f"Row number {n}." for n in range(30)]
LINES = "".join(json.dumps({"text": text, "body": text + "!"}) + "\n" for text in TEXTS)

# Builds a corpus of a hub dataset and prints what came of it: the hub's settings are read when it is imported.
HUB = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.config import CorpusConfig, SourceConfig
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.errors import GptflowError

for number, settings in enumerate(json.loads(sys.argv[2])):
    source = SourceConfig(kind="huggingface", **settings)
    try:
        store = Store(Path(sys.argv[1]) / str(number))
        corpus, _ = build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3))
        print(json.dumps([corpus.fingerprint, [document.text for document in iter_documents(corpus)]]))
    except GptflowError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def build(tmp_path: Path, *paths: Path, **settings: Any) -> list[str]:
    source = SourceConfig(kind="files", paths=tuple(map(str, paths)), **settings)
    corpus, _ = build_corpus(Store(tmp_path / "store"), CorpusConfig(source=source, validation_fraction=0.3))
    return [document.text for document in iter_documents(corpus)]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_piece_is_told_from_a_row_and_a_line(tmp_path: Path) -> None:
    """`#1` may be a row, a piece, or the end of a file's own name."""
    long = "\n\n".join(f"Paragraph {n} of it." for n in range(20))
    rows = [f"Short {n}." for n in range(3)]
    put(tmp_path / "book.txt", long)
    put(tmp_path / "note.txt", "Short.")
    put(tmp_path / "lines.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in (f"A {long}", "Short one.")))
    parquet(tmp_path / "rows.parquet", text=[f"B {long}", *rows])
    source = SourceConfig(kind="files", paths=(f"{tmp_path}/*.*",))
    cuts = {"cut_above_chars": 100, "cut_to_chars": 90}
    corpus, _ = build_corpus(Store(tmp_path / "store"), CorpusConfig(source=source, **cuts, validation_fraction=0.3))
    asked = corpus.request.config["source"]
    names = [document.source for document in iter_documents(corpus)]
    parents = {name: parent_of(name, asked) for name in names}
    assert {parent for parent in parents.values() if parent} == {"book.txt", "lines.jsonl:1", "rows.parquet#0"}
    whole = ["lines.jsonl:2", "note.txt", "rows.parquet#1", "rows.parquet#2", "rows.parquet#3"]
    assert [name for name in names if not parents[name]] == whole
    assert all(name.startswith(f"{parent}#") for name, parent in parents.items() if parent)
    assert {file_of(name) for name in names} == {"book.txt", "lines.jsonl", "note.txt", "rows.parquet"}


@pytest.mark.parametrize(
    ("source", "parent", "asked"),
    [
        ("notes#1", "", {"kind": "files", "format": "text", "paths": ["notes#1"]}),
        ("notes#1#0", "notes#1", {"kind": "files", "format": "text", "paths": ["notes#1"]}),
        ("rows#1#5", "", {"kind": "files", "format": "parquet", "paths": ["rows#1"]}),
        ("rows#1#5#0", "rows#1#5", {"kind": "files", "format": "parquet", "paths": ["rows#1"]}),
        ("a/b/train#5", "", {"kind": "huggingface", "format": "auto", "paths": []}),
        ("a/b/train#5#0", "a/b/train#5", {"kind": "huggingface", "format": "auto", "paths": []}),
        ("2026-Trump.txt#3", "2026-Trump.txt", {"kind": "embedded", "format": "auto", "paths": []}),
        ("2026-Trump.txt", "", {"kind": "embedded", "format": "auto", "paths": []}),
    ],
)
def test_the_parent_of_a_source_by_its_name(source: str, parent: str, asked: dict[str, Any]) -> None:
    assert parent_of(source, asked) == parent


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "A.JSONL.GZ"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    raw = ("\ufeff" + LINES + "\n \n").encode()
    file = put(tmp_path / name, gzip.compress(raw, mtime=0) if name.lower().endswith(".gz") else raw)
    assert build(tmp_path, file) == TEXTS
    assert build(tmp_path, file, text_column="body") == [text + "!" for text in TEXTS]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    file = parquet(tmp_path / "a.parquet", text=pa.array([*TEXTS, None], kind), n=list(range(31)))
    assert build(tmp_path, file) == TEXTS
    assert build(tmp_path, file, max_documents=25) == TEXTS[:25]


def test_files_of_several_kinds_in_the_order_given(tmp_path: Path) -> None:
    files = [
        put(tmp_path / "b.txt", "Plain."),
        put(tmp_path / "c.txt.gz", gzip.compress(b"Packed.", mtime=0)),
        put(tmp_path / "a.jsonl", LINES),
    ]
    assert build(tmp_path, *files) == ["Plain.", "Packed.", *TEXTS]


def test_a_name_with_brackets_a_link_and_a_file_named_twice(tmp_path: Path) -> None:
    put(tmp_path / "blob", LINES)
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "blob")
    assert build(tmp_path, tmp_path / "linked.jsonl", tmp_path / "*.jsonl") == TEXTS
    assert build(tmp_path, put(tmp_path / "odd[1].jsonl", LINES)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", LINES + "{no json\n", r"a\.jsonl\W+(line )?31\b.*JSON"),
        ("a.jsonl", LINES + "[1]\n", r"a\.jsonl\W+(line )?31\b"),
        ("a.jsonl", LINES + '{"body": "b"}\n', r"a\.jsonl\W+(line )?31\b.*'text'.*text_column"),
        ("a.jsonl", LINES + '{"text": 5}\n', r"a\.jsonl\W+(line )?31\b.*holds int"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl\W+(line )?1\b.*JSON"),
        ("a.parquet", b"PAR1 no table PAR1", r"a\.parquet.*Parquet"),
        ("a.txt.gz", b"not packed", r"a\.txt\.gz.*gzip"),
        ("a.txt.gz", gzip.compress(LINES.encode(), mtime=0)[:-20], r"a\.txt\.gz.*gzip"),
        ("a.txt.gz", gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 20, r"a\.txt\.gz.*gzip"),
        ("a.json", "{}", r"a\.json.*source\.format"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(GptflowError, match=said):
        build(tmp_path, put(tmp_path / name, content))


def test_a_wrong_column_of_a_table_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", body=TEXTS, n=list(range(30)))
    with pytest.raises(DataError, match=r"'text'.*body, n"):
        build(tmp_path, file)
    with pytest.raises(DataError, match=r"'n' holds int64, not text"):
        build(tmp_path, file, text_column="n")


def test_nothing_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paths holds an empty path"):
        build_corpus(Store(tmp_path), CorpusConfig(source=SourceConfig(kind="files", paths=("",))))
    with pytest.raises(DataError, match=r"no file matches .*none\*"):
        build(tmp_path, tmp_path / "none*")
    with pytest.raises(DataError, match=r"is a folder.*\*\.txt"):
        build(tmp_path, tmp_path)


@pytest.mark.parametrize("settings", [{"kind": "files"}, {"kind": "huggingface"}])
@pytest.mark.parametrize(("place", "said"), [("~nosuchuser/x", "no home"), ("x" * 300, "File name too long")])
def test_a_path_that_cannot_be_is_said(tmp_path: Path, settings: dict[str, Any], place: str, said: str) -> None:
    more = {"paths": (place,)} if settings["kind"] == "files" else {"dataset": place}
    with pytest.raises(DataError, match=f"{place[:9]}.*{said}.*check corpus.source"):
        open_source(SourceConfig(**settings, **more), tmp_path)
    with pytest.raises(DataError, match=f"{place[:9]}.*{said}"):
        import_weights(Store(tmp_path / "store"), place)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_a_name_that_is_not_utf_8_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    put(folder / "a.txt", "A text.")
    put(tmp_path / "b.txt", "B text.")
    for pattern, shown in (("**/*.txt", r"'caf\\udce9/a\.txt'"), (f"{folder.name}/*.txt", r"caf\\udce9")):
        with pytest.raises(DataError, match=f"{shown}.*not UTF-8.*rename") as error:
            build(tmp_path, tmp_path / pattern)
        str(error.value).encode()


def test_a_file_that_is_gone_before_it_is_read_is_said(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", "A text.")
    source = open_source(SourceConfig(kind="files", paths=(str(file),)), tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"a\.txt.*No such file.*run again"):
        list(source.texts())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", LINES)
    source = open_source(SourceConfig(kind="files", paths=(str(file),)), tmp_path)
    put(file, LINES * 2)
    with pytest.raises(DataError, match="changed"):
        list(source.texts())


class Files(BaseHTTPRequestHandler):
    """Serves the bytes that its server holds by path, and the status that a path names."""

    def do_GET(self) -> None:
        served: Any = self.server
        status = next((code for code in (404, 503) if f"/{code}" in self.path), 200)
        body = served.files.get(self.path, b"{}")
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    served: Any = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    served.files = {"/deep/a.jsonl": LINES.encode(), "/other/a.jsonl": LINES.encode()}
    served.url = f"http://127.0.0.1:{served.server_port}"
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def test_pinned_downloads_are_the_same_corpus_from_any_address(tmp_path: Path, server: Any) -> None:
    found = []
    for number, address in enumerate(("/deep/a.jsonl?token=hush/b", "/other/a.jsonl")):
        server.files.setdefault(address, LINES.encode())
        source = SourceConfig(
            kind="http",
            paths=(server.url.replace("//", "//me:hunter2@") + address,),
            sha256=(hashlib.sha256(LINES.encode()).hexdigest(),),
            allow_private_addresses=True,
        )
        config = CorpusConfig(source=source, validation_fraction=0.3)
        corpus, _ = build_corpus(Store(tmp_path / str(number)), config)
        assert [document.text for document in iter_documents(corpus)] == TEXTS
        manifest = (corpus.path / "manifest.json").read_text()
        assert "hunter2" not in manifest
        assert "hush" not in manifest
        found.append((corpus.fingerprint, corpus.digest))
    assert found[0] == found[1]


def hub(tmp_path: Path, *settings: dict[str, Any], endpoint: str = "http://127.0.0.1:9") -> list[Any]:
    """What `HUB` prints for each of the settings, with a hub cache of its own."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUB, str(tmp_path / "stores"), json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_local_dataset_plain_and_streaming(tmp_path: Path) -> None:
    for folder, texts in (("one", TEXTS), ("two", TEXTS), ("three", TEXTS[::-1])):
        (tmp_path / folder / "set").mkdir(parents=True)
        parquet(tmp_path / folder / "set" / "train.parquet", text=texts, n=list(range(30)))
    here = [str(tmp_path / folder / "set") for folder in ("one", "two", "three")]
    settings = [
        {"dataset": here[0]},
        {"dataset": here[1]},
        {"dataset": here[2]},
        {"dataset": here[0], "streaming": True},
        {"dataset": here[0], "text_column": "body"},
        {"dataset": here[0], "text_column": "body", "streaming": True},
        {"dataset": here[0], "text_column": "n"},
        {"dataset": here[0], "split": "nowhere"},
        {"dataset": here[0], "streaming": True, "max_documents": 25},
        {"dataset": "some/data"},
    ]
    plain, same, other, streamed, column, streamed_column, kind, split, some, away = hub(tmp_path, *settings)
    assert plain[1] == same[1] == streamed[1] == TEXTS
    assert plain[0] == same[0]
    assert other[1] == TEXTS[::-1]
    assert other[0] != plain[0]
    for name, said in (column, streamed_column):
        assert name == "DataError"
        assert "'body'" in said
        assert "text, n" in said
    assert (kind[0], "not text" in kind[1]) == ("DataError", True)
    assert (split[0], "nowhere" in split[1]) == ("DataError", True)
    assert some[1] == TEXTS[:25]
    assert (away[0], "some/data" in away[1]) == ("NetworkError", True)  # no hub listens there


def test_a_hub_that_fails_is_told_from_a_dataset_that_is_not_there(tmp_path: Path, server: Any) -> None:
    missing, busy = hub(tmp_path, {"dataset": "some/404"}, {"dataset": "some/503"}, endpoint=server.url)
    assert (missing[0], "some/404" in missing[1]) == ("DataError", True)
    assert (busy[0], "some/503" in busy[1]) == ("NetworkError", True)
    assert len(busy[1].splitlines()) == 1


def test_a_local_dataset_gives_its_bytes_of_today_even_with_an_old_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptmodel.text.hub import hub_documents

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "data" / "train.jsonl"
    file.parent.mkdir()
    config = SourceConfig(kind="huggingface", dataset=str(file.parent))
    for text in ("old", "new"):
        file.write_text(f'{{"text": "{text}"}}\n')
        os.utime(file, ns=(10**18, 10**18))
        assert list(hub_documents(config, "")) == [text]
