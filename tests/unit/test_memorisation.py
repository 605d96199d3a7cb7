"""What samples take from training text, beside what unseen text does; and `gptflow overlap`, which says from where."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from flows.commands.overlap import overlap as command
from gptmodel.errors import ConfigError
from gptmodel.judging.memorisation import overlaps, remembered, spelled, unseen_passages
from gptmodel.judging.origins import Origin, covered, origin_report, origins
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import iter_documents
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import open_split

Data = tuple[Store, Artifact]


def texts_of(data: Data, split: str) -> dict[str, str]:
    store, shards = data
    return {d.id: d.text for d in iter_documents(store.input_of(shards, "corpus"), split)}


def test_the_stream_is_spelled_as_the_documents_are(tiny_data: Data) -> None:
    train = open_split(tiny_data[1], "train")
    data = b"".join(block.tobytes() for block in spelled(train))
    assert data == b"".join(text.encode() + b"\xff" for text in texts_of(tiny_data, "train").values())
    assert train.documents().ids == list(texts_of(tiny_data, "train"))


def test_a_passage_is_found_over_the_borders_of_tokens(tiny_data: Data) -> None:
    document, text = list(texts_of(tiny_data, "train").items())[3]
    inside = text[41:120]  # begins and ends within words
    assert f" {' '.join(gpt2().decode([i]) for i in gpt2().encode(inside))}" not in text
    (found,) = overlaps([f"##{inside}##".encode()], open_split(tiny_data[1], "train"))
    assert found.document == document
    assert (found.text, found.characters) == (inside, 79)
    assert found.tokens == len(gpt2().encode(inside))


def test_what_the_prompt_holds_is_not_memorised(tiny_data: Data) -> None:
    text = next(iter(texts_of(tiny_data, "train").values()))
    prompt, rest = text[40:100], text[140:170]
    sample = {"prompt": prompt, "text": f" {prompt}#{rest}#"}
    rows, _ = remembered([sample], *(open_split(tiny_data[1], s) for s in ("train", "validation")), 50)
    assert rows[0]["overlap_text"] == rest
    assert rows[0]["overlap_prompt_characters"] == len(prompt)


def test_unseen_passages_are_validation_text_of_the_samples_lengths(tiny_data: Data) -> None:
    validation = open_split(tiny_data[1], "validation")
    found = [p.decode() for p in unseen_passages(validation, [7, 30], n=10)]
    documents = list(texts_of(tiny_data, "validation").values())
    assert len(found) == len(set(found)) == 10
    assert all(any(passage in text for text in documents) for passage in found)
    assert [len(gpt2().encode(p)) for p in found] == [7, 30] * 5
    assert len({next(n for n, text in enumerate(documents) if p in text) for p in found}) > len(documents) // 2
    assert unseen_passages(validation, [10_000]) == []


def test_the_rate_counts_samples_that_could_reach_it(tiny_data: Data) -> None:
    train, validation = (open_split(tiny_data[1], split) for split in ("train", "validation"))
    text = next(iter(texts_of(tiny_data, "train").values()))
    samples = [{"prompt": "", "text": t} for t in (text[:200], "zq " * 60, text[:20])]
    rows, figures = remembered(samples, train, validation, 12)
    assert figures["memorisation_rate"] == 0.5, "the third is too short to tell"
    assert figures["overlap_tokens_max"] == rows[0]["overlap_tokens"] == len(gpt2().encode(text[:200]))
    assert figures["overlap_tokens_mean"] == pytest.approx(sum(row["overlap_tokens"] for row in rows) / 3)
    assert 0 <= figures["unseen_memorisation_rate"] < 1
    assert 3 < figures["unseen_overlap_tokens_mean"] < figures["overlap_tokens_max"]
    assert "memorisation_rate" not in remembered(samples, train, validation, 1_000)[1]


def test_origins_name_all_documents_of_every_passage(tiny_data: Data) -> None:
    texts = texts_of(tiny_data, "train")
    (first, one), (second, two) = list(texts.items())[:2]
    text = one[:60] + "éé" + two[:60] + "##" + two[20:50]
    found = origins(text, open_split(tiny_data[1], "train"), 25)
    assert {o.start: (o.text, first in o.documents, second in o.documents) for o in found if len(o.text) >= 60} == {
        0: (one[:60], True, False),
        62: (two[:60], False, True),
    }
    for origin in found:
        assert text[origin.start : origin.stop] == origin.text
        assert {d for d, t in texts.items() if origin.text in t} >= set(origin.documents)
    assert two[20:50] in [o.text for o in found], "it stands in the second passage too, but elsewhere in the text"
    assert [len(o.text) for o in found] == sorted((len(o.text) for o in found), reverse=True)


def test_covered_characters_count_once() -> None:
    found = [Origin(0, "a" * 10, 1, ()), Origin(5, "b" * 10, 1, ()), Origin(40, "c" * 3, 1, ())]
    assert covered(found) == 18


def test_the_command_names_documents_and_sources(tiny_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shards = tiny_data
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    document, text = list(texts_of(tiny_data, "train").items())[2]
    asked = ["--shards", shards.label, "--at-least", "100"]
    done = CliRunner().invoke(command, [*asked, "-"], input=f"He said: {text[:150]}\n", catch_exceptions=False)
    assert f"in {document} (" in done.output
    assert ".txt)" in done.output
    assert "150 characters" in done.output
    assert "94% of the text's 159 characters" in done.output
    nothing = json.loads(CliRunner().invoke(command, [*asked, "--json", "a harbour"]).output)
    assert nothing["passages"] == []
    assert nothing["longest"]["text"] == " harbour"
    with pytest.raises(ConfigError, match="the text is empty"):
        CliRunner().invoke(command, [*asked, " \n"], catch_exceptions=False)


def test_documents_of_a_lost_corpus_have_ids(tiny_data: Data) -> None:
    store, shards = tiny_data
    text = next(iter(texts_of(tiny_data, "train").values()))[:80]
    known = origin_report(store, shards, text, 30)
    elsewhere = origin_report(replace(store, root=store.root / "none"), shards, text, 30)
    ids, lost = ([d["id"] for d in r["passages"][0]["documents"]] for r in (known, elsewhere))
    assert ids == lost
    assert elsewhere["passages"][0]["documents"][0]["source"] == ""
