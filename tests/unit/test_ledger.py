"""The ledger of champions: what its lines come to, and what becomes of a kill, a changed line and two writers."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.retraining.ledger import Draft, Entry, Ledger, Named, State, ledgers, needed_by_ledgers
from gptmodel.store.artifacts import Store


def model(letter: str) -> Named:
    return Named(f"checkpoint/{letter * 16}", letter * 64)


A, B, C = model("a"), model("b"), model("c")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Store(tmp_path), "nightly")


def decided(subject: Named, outcome: str, key: str = "") -> Draft:
    return Draft("decide", subject, by="gate", facts={"outcome": outcome, "key": key, "said": f"{outcome}: 0.1"})


def write(ledger: Ledger, *drafts: Draft) -> State:
    for draft in drafts:
        state, _ = ledger.update(lambda _, draft=draft: draft)  # type: ignore[misc]
    return state


def test_lines_come_to_champion_previous_and_challenger(ledger: Ledger) -> None:
    state = write(ledger, decided(A, "promoted"), decided(B, "kept"))
    assert (state.champion, state.previous, state.challenger) == (A, None, B)
    state = write(ledger, decided(C, "promoted"))
    assert (state.champion, state.previous, state.challenger) == (C, A, B)
    assert ledger.read() == state


def test_a_rollback_leads_back_one_champion_at_a_time(ledger: Ledger) -> None:
    write(ledger, decided(A, "promoted"), Draft("promote", B, "by hand"), decided(C, "promoted"))
    state = write(ledger, Draft("rollback", C, "it swears"))
    assert (state.champion, state.previous) == (B, A)
    state = write(ledger, Draft("rollback", B, "it too"))
    assert (state.champion, state.previous) == (A, None)


def test_a_question_that_was_answered_is_found_again(ledger: Ledger) -> None:
    state = write(ledger, decided(A, "promoted", "k1"), decided(B, "kept", "k2"))
    found = state.decided("k2")
    assert found is not None
    assert (found.subject, found.outcome) == (B, "kept")
    assert state.decided("k3") is None


def test_a_line_that_a_kill_cut_short_is_no_line(ledger: Ledger) -> None:
    write(ledger, decided(A, "promoted"))
    with ledger.path.open("a") as file:
        file.write('{"action": "promote", "subj')
    assert ledger.read().champion == A
    state = write(ledger, decided(B, "promoted"))
    assert state.champion == B
    assert [json.loads(line)["number"] for line in ledger.path.read_text().splitlines()] == [1, 2]


def test_a_changed_line_is_seen_and_so_is_one_that_was_taken_out(ledger: Ledger) -> None:
    write(ledger, decided(A, "promoted"), decided(B, "kept"), decided(C, "kept"))
    whole = ledger.path.read_text()
    ledger.path.write_text(whole.replace('"kept"', '"promoted"', 1))
    with pytest.raises(ArtifactError, match="line 2 is not what was written"):
        ledger.read()
    lines = whole.splitlines(keepends=True)
    ledger.path.write_text(lines[0] + lines[2])
    with pytest.raises(ArtifactError, match="line 2"):
        ledger.read()
    # Whoever takes a line out and seals the next one anew is betrayed by the hash of the line before.
    last = json.loads(lines[2])
    forged = Entry(**{**last, "number": 2, "subject": Named(**last["subject"])})
    ledger.path.write_text(lines[0] + json.dumps({**asdict(forged), "hash": forged.own_hash()}) + "\n")
    with pytest.raises(ArtifactError, match="line 2 does not follow on the line before"):
        ledger.read()


def test_a_last_line_without_its_line_break_stands_and_gets_it_back(ledger: Ledger) -> None:
    write(ledger, decided(A, "promoted"), decided(B, "promoted"))
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole.removesuffix(b"\n"))
    assert ledger.read().champion == B
    state = write(ledger, decided(C, "promoted"))
    assert state == ledger.read()
    assert [entry.subject for entry in state.entries] == [A, B, C]
    assert ledger.path.read_bytes().startswith(whole)
    # What is whole and was not written there is no line that a kill cut short.
    first, second = whole.splitlines(keepends=True)
    for wrong in (first + second.replace(b"promoted", b"kept").strip(), second.strip()):
        ledger.path.write_bytes(wrong)
        with pytest.raises(ArtifactError, match="is not what was written"):
            ledger.read()


def test_wherever_a_kill_cuts_a_line_the_ledger_is_read_and_goes_on(ledger: Ledger) -> None:
    state = write(ledger, decided(A, "promoted"))
    assert state.last is not None
    ledger.note_told(state.last)
    before = ledger.path.stat().st_size
    write(ledger, Draft("promote", B, "schöner"))
    whole = ledger.path.read_bytes()
    for end in range(before - 1, len(whole) + 1):
        ledger.path.write_bytes(whole[:end])
        stands = B if end >= len(whole) - 1 else A
        assert ledger.read().champion == stands
    ledger.path.write_bytes(whole[: before - 1])
    assert write(ledger, decided(C, "promoted")).previous == A


def test_lines_that_mlflow_was_told_of_cannot_go_from_the_end(ledger: Ledger) -> None:
    state = write(ledger, decided(A, "promoted"), decided(B, "promoted"))
    assert state.last is not None
    ledger.note_told(state.last)
    state = write(ledger, decided(C, "kept"))
    told, lines = ledger.folder / ".nightly.told.json", ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text("".join(lines[:2]))
    assert ledger.read().champion == B, "nobody was told of the third"
    ledger.path.write_text(lines[0])
    said = r"ends at line 1, and MLflow was told of line 2: .* remove .*told.json"
    for use in (ledger.read, lambda: write(ledger, decided(C, "kept"))):
        with pytest.raises(ArtifactError, match=said):
            use()
    assert ledger.path.read_text() == lines[0]
    ledger.path.unlink()
    with pytest.raises(ArtifactError, match="ends at line 0"):
        ledger.read()
    # Written on after the loss, or by another hand: as many lines, and not those that were told.
    told.rename(told.with_suffix(".aside"))
    write(ledger, decided(A, "promoted"), decided(C, "promoted"))
    told.with_suffix(".aside").rename(told)
    with pytest.raises(ArtifactError, match="line 2 is not the one that MLflow was told of"):
        ledger.read()
    told.unlink()
    assert ledger.read().champion == C


def test_a_figure_that_is_no_number_can_be_written_by_nobody(ledger: Ledger) -> None:
    with pytest.raises(ConfigError):
        write(ledger, Draft("decide", A, facts={"outcome": "kept", "difference": float("nan")}))
    assert ledger.read().last is None


def test_two_writers_do_not_write_over_each_other(ledger: Ledger) -> None:
    def promote() -> None:
        ledger.update(lambda state: None if state.champion == A else Draft("promote", A, "both want it"))

    threads = [threading.Thread(target=promote) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.read().entries) == 1


def test_what_it_names_is_kept_in_the_store(ledger: Ledger, tmp_path: Path) -> None:
    frozen = Named("shards/" + "f" * 16, "f" * 64)
    write(ledger, Draft("freeze", frozen), decided(A, "promoted"), decided(B, "promoted"), decided(C, "kept"))
    assert needed_by_ledgers(Store(tmp_path)) == {
        B.label: "champion of nightly",
        A.label: "previous of nightly",
        C.label: "challenger of nightly",
        frozen.label: "frozen validation set of nightly",
    }
    assert [each.name for each in ledgers(Store(tmp_path))] == ["nightly"]


def test_what_was_told_is_remembered_by_the_line(ledger: Ledger) -> None:
    state = write(ledger, decided(A, "promoted"))
    assert state.last is not None
    assert not ledger.is_told(state.last)
    ledger.note_told(state.last)
    assert ledger.is_told(state.last)
    assert ledger.last_told() == 1
    state = write(ledger, decided(B, "kept"))
    assert state.last is not None
    assert not ledger.is_told(state.last)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", ".hidden"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name"):
        Ledger(Store(tmp_path), name)
