"""What the data gates find in text made bad on purpose, and that they leave good text alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptmodel.config import CorpusConfig, DataGatesConfig, SourceConfig
from gptmodel.datagates import Finding, check, checked, previous_of, report_of
from gptmodel.datagates.pii import find, is_card, is_iban
from gptmodel.datagates.quality import garbage, language
from gptmodel.errors import ConfigError
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.text.minhash import Signatures, clusters
from gptmodel.text.shingles import runs, word_hashes

_HALF = CorpusConfig(validation_fraction=0.5)


@pytest.fixture(scope="session")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pieces of about 2,000 characters of real addresses."""
    source = SourceConfig(first_year=1950, last_year=1962)
    config = CorpusConfig(source=source, cut_above_chars=2_500, cut_to_chars=1_500)
    corpus, _ = build_corpus(Store(tmp_path_factory.mktemp("speeches")), config)
    return [document.text for document in iter_documents(corpus)]


class Texts:
    """Makes corpora of given texts in a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.made = folder, Store(folder / "store"), 0

    def corpus(self, texts: Iterable[str], config: CorpusConfig = _HALF, name: str = "") -> Artifact:
        self.made += 1
        path = self.folder / (name or f"{self.made}.jsonl")
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return build_corpus(self.store, replace(config, source=SourceConfig(kind="files", paths=(str(path),))))[0]


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    return Texts(tmp_path)


def gates(**settings: Any) -> DataGatesConfig:
    """All gates off but for those that are named."""
    off = dict.fromkeys(
        ("size", "length", "language", "garbage", "near_duplicates", "leak", "contamination", "benchmarks", "pii"),
        "off",
    )
    return DataGatesConfig(**{**off, **settings})


def finding(corpus: Artifact, gate: str, previous: Artifact | None = None, **settings: Any) -> Finding:
    """What one gate says with these settings; the others are off."""
    report = check(corpus, previous, gates(**{gate: "fail"}, **settings))
    found = next(each for each in report.findings if each.gate == gate)
    assert report.passed == (found.state != "failed")
    return found


def edited(text: str, share: float, seed: int = 0) -> str:
    """The text with this share of its words replaced."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.random()}" if draw.random() < share else word for word in text.split())


def test_good_text_passes_every_gate(texts: Texts, speeches: list[str]) -> None:
    before, now = texts.corpus(speeches[:300]), texts.corpus(speeches[:330])
    report = check(now, before, DataGatesConfig(languages=("en",), pii="fail"))
    assert [f.state for f in report.findings if f.gate != "benchmarks"] == ["passed"] * 8
    assert report.line.endswith("passes the data gates")


def test_a_corpus_that_lost_half_of_its_text_is_told(texts: Texts, speeches: list[str]) -> None:
    before, now = texts.corpus(speeches), texts.corpus(speeches[: len(speeches) // 3])
    assert finding(now, "size", before).state == "failed"
    assert finding(before, "size", now).state == "passed"
    assert finding(before, "size", now, largest_growth=2.0).state == "failed"
    assert finding(now, "size").state == "not looked at"


def test_documents_of_other_lengths_are_told(texts: Texts, speeches: list[str]) -> None:
    long = texts.corpus(speeches[:200])
    short = texts.corpus([text[:400] for text in speeches[:200]])
    assert finding(short, "length", long).figures["distance"] > 0.9
    assert finding(texts.corpus(speeches[100:300]), "length", long).state == "passed"


FRENCH = "Le gouvernement a décidé que les travaux commenceront au printemps, et que chacun sera payé selon sa peine. "
GERMAN = (
    "Die Regierung hat beschlossen, dass die Arbeiten im Frühjahr beginnen und jeder nach seiner Mühe bezahlt wird. "
)


def test_languages_are_told_and_compared(texts: Texts, speeches: list[str]) -> None:
    assert [language(text) for text in (speeches[0], FRENCH, GERMAN)] == ["en", "fr", "de"]
    english = texts.corpus(speeches[:100])
    mixed = texts.corpus([*speeches[:70], *(f"{FRENCH} {n}" for n in range(30))])
    found = finding(mixed, "language", languages=("en",))
    assert found.state == "failed"
    assert found.figures["other"] == pytest.approx(0.3)
    assert found.offenders[0].why == "looks like fr"
    assert finding(mixed, "language", languages=("en", "fr")).state == "passed"
    assert finding(mixed, "language", english).figures["drift"] == pytest.approx(0.3)
    assert finding(mixed, "language", english).state == "failed"
    assert finding(mixed, "language").state == "not looked at"


POEM = "\n".join(f"So much depends {n}\nupon wheel {n}\nbarrow {n}" for n in range(20))
CODE = "\n".join(
    f"def total_{n}(values):\n    return sum(v * {n} for v in values) / (len(values) or 1)" for n in range(20)
)
TABLE = "\n".join(f"| year {1900 + n} | wheat | {n * 31} bushels | {n}.5 dollars |" for n in range(20))
JAPANESE = "これは長い文章であり、空白なしに書かれているが、文字の羅列ではなく、意味のある普通の文章である。" * 1
BASE64 = "".join(random.Random(1).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=2_000))


@pytest.mark.parametrize("text", [POEM, CODE, TABLE, JAPANESE * 5, FRENCH * 3, "short", "42", "Yes.\nNo.\n" * 3])
def test_unusual_text_is_no_garbage(text: str) -> None:
    assert garbage(text) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("The report \ufffd\ufffd\ufffd says that \ufffd\ufffd", "control characters"),
        ("\x00\x01 bin", "control characters"),
        (" ".join(str(n) for n in range(300)), "are letters"),
        (BASE64, "without a space"),
        ("\n".join(["Home | About | Contact", "Read more of this story", str(1)] * 40), "stand there before"),
        ("buy now cheap watches " * 200, "on and on"),
    ],
)
def test_garbage_is_told_with_its_reason(text: str, why: str) -> None:
    assert why in garbage(text)


def test_too_much_garbage_stops_with_the_documents(texts: Texts, speeches: list[str]) -> None:
    corpus = texts.corpus([*speeches[:50], *(BASE64[n:] + BASE64[:n] for n in range(50))])
    found = finding(corpus, "garbage", examples=3)
    assert (found.state, found.offenders_found, len(found.offenders)) == ("failed", 50, 3)
    assert found.offenders[0].excerpt in "".join(d.text for d in iter_documents(corpus))
    assert finding(corpus, "garbage", garbage_share=0.9).state == "passed"
    warned = check(corpus, None, gates(garbage="warn"))
    assert warned.passed
    assert [f.gate for f in warned.warned] == ["garbage"]


def test_words_are_the_same_whatever_case_spaces_and_punctuation() -> None:
    assert list(word_hashes("The State, of\n the — Union!")) == list(word_hashes("the state of the union"))
    assert len(word_hashes("naïve café, 東京都 3rd")) == 2 + 3 + 1
    assert len(word_hashes(" … --- ")) == 0
    assert len(set(word_hashes("ab ba aab abb a b"))) == 6


def test_words_keep_their_numbers() -> None:
    """The split of a corpus hangs on them: where they change, the recipe of corpora must."""
    assert [int(n) for n in word_hashes("state of the Union")] == [
        9555131389781062070,
        5568121884631988828,
        18322789214718304489,
        15279803916596064990,
    ]
    assert int(runs(word_hashes("we hold these truths to be"), 5)[1]) == 1594155630162501569


def test_near_duplicates_are_found_and_told_apart(tmp_path: Path, speeches: list[str]) -> None:
    copies = [edited(text, 0.01, n) for n, text in enumerate(speeches[:40])]
    signatures = Signatures(tmp_path / "signatures")
    for text in [*speeches[:80], *copies]:
        signatures.add(word_hashes(text))
    first = clusters(signatures.close(), 0.7)
    assert list(first[:80]) == list(range(80))
    assert list(first[80:]) == list(range(40))


def test_a_copy_in_training_of_a_validation_document_is_told(texts: Texts, speeches: list[str]) -> None:
    corpus = texts.corpus([*speeches[:100], *(edited(text, 0.01, n) for n, text in enumerate(speeches[:100]))])
    found = finding(corpus, "leak")
    assert found.state == "failed"
    sides = {d.id: d.split for d in iter_documents(corpus)}
    assert {sides[o.id] for o in found.offenders} == {"train"}
    assert all("validation)" in o.why for o in found.offenders)
    doubled = finding(corpus, "near_duplicates")
    assert doubled.state == "failed"
    assert doubled.figures["clusters"] > 80


def test_validation_text_inside_longer_training_text_is_told(texts: Texts, speeches: list[str]) -> None:
    plain = texts.corpus(speeches[:60])
    held = [d.text for d in iter_documents(plain, "validation")]
    filler = "".join(speeches[100:104])
    corpus = texts.corpus([*speeches[:60], *(f"{filler} {n} {text} {filler}" for n, text in enumerate(held))])
    leak, contamination = finding(corpus, "leak"), finding(corpus, "contamination")
    assert leak.state == "passed"  # not near: a small part of it
    assert contamination.state == "failed"
    assert finding(plain, "contamination").state == "passed"


def test_benchmarks_are_looked_for_in_training_text_alone(texts: Texts, speeches: list[str], tmp_path: Path) -> None:
    corpus = texts.corpus(speeches[:100])
    of = {s: [d.text.split() for d in iter_documents(corpus, s)] for s in ("train", "validation")}
    questions = [" ".join(words[20:50]) for words in of["train"][:5]]
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps({"q": q, "choices": ["yes", "no"]}) + "\n" for q in questions))
    found = finding(corpus, "benchmarks", benchmark_files=(str(file),))
    assert found.state == "failed"
    assert found.figures["quiz.jsonl"] == {"items": 5, "found": 5, "too_short": 0}
    assert {o.split for o in found.offenders} == {"benchmark", "train"}
    short, clean = tmp_path / "short.txt", tmp_path / "clean.txt"
    short.write_text(" ".join(of["train"][7][30:39]) + "\ntoo short to say\n")  # 9 words: looked for whole
    clean.write_text("\n".join(" ".join(words[20:50]) for words in of["validation"][:5]))
    assert finding(corpus, "benchmarks", benchmark_files=(str(short),)).figures["short.txt"] == {
        "items": 1,
        "found": 1,
        "too_short": 1,
    }
    assert finding(corpus, "benchmarks", benchmark_files=(str(clean),)).state == "passed"
    assert finding(corpus, "benchmarks").state == "not looked at"


@pytest.mark.parametrize(("name", "text"), [("gone.txt", None), ("empty.txt", "\n"), ("bad.jsonl", "{not json}\n")])
def test_benchmark_files_that_cannot_be_read(texts: Texts, tmp_path: Path, name: str, text: str | None) -> None:
    corpus = texts.corpus(f"document {n} of a corpus" for n in range(20))
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        checked(texts.store, corpus, gates(benchmarks="fail", benchmark_files=(str(tmp_path / name),)))


def test_a_report_is_made_anew_when_a_benchmark_file_holds_other_text(texts: Texts, tmp_path: Path) -> None:
    corpus = texts.corpus(f"document {n} of a corpus" for n in range(20))
    file, moved = tmp_path / "quiz.txt", tmp_path / "elsewhere" / "quiz.txt"
    file.write_text("the first question of a quiz that nobody has seen\n")
    moved.parent.mkdir()
    first, _ = checked(texts.store, corpus, gates(benchmark_files=(str(file),)))
    moved.write_text(file.read_text())
    assert checked(texts.store, corpus, gates(benchmark_files=(str(moved),))) == (first, True)
    file.write_text("another question of a quiz that nobody has seen\n")
    other, reused = checked(texts.store, corpus, gates(benchmark_files=(str(file),)))
    assert (other.fingerprint != first.fingerprint, reused) == (True, False)


def test_personal_data_is_found_and_not_shown(texts: Texts) -> None:
    text = (
        "Write to jane.doe@example.org or call +44 20 7946 0958, (555) 123-4567; pay to DE89 3704 0044 0532 0130 00 "
        "with 4111 1111 1111 1111."
    )
    kinds = {"e-mail address": 1, "telephone number": 2, "IBAN": 1, "card number": 1}
    corpus = texts.corpus([text, *(f"In {n} the sum was 4111111111111112 dollars, sections 12-34." for n in range(30))])
    found = finding(corpus, "pii")
    assert (found.state, found.figures["documents"]) == ("failed", 1)
    assert found.figures["kinds"] == kinds
    assert "jane" not in json.dumps(found.offenders[0].__dict__)
    assert finding(corpus, "pii", pii_share=0.5).state == "passed"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4111 1111 1111 1111 123", ["41## #### #### ####"]),
        ("Visa 4111 1111 1111 1111 12/27 CVV 123", ["41## #### #### ####"]),
        ("3782 822463 10005 1234", ["37## ###### #####"]),
        ("4111111111111111 123", ["41##############"]),
        ("order 3312 4111-1111-1111-1111 4", ["41##-####-####-####"]),
        ("4111 1111 1111 1111 5500 0055 5555 5559 12", ["41## #### #### ####", "55## #### #### ####"]),
        ("IBAN: AT61 1904 3002 3457 3201 BIC: OPSKATWW", ["AT## #### #### #### ####"]),
        ("BE68 5390 0754 7034 EUR 100", ["BE## #### #### ####"]),
        ("GB82WEST12345698765432 GBP", ["GB##xxxx##############"]),
        ("AB12 DE89 3704 0044 0532 0130 00 BIC COBADEFF", ["DE## #### #### #### #### ##"]),
        ("BE68 5390 0754 70345 or XX61 1904 3002 3457 3201", []),
    ],
)
def test_numbers_end_where_they_do_whatever_stands_beside_them(text: str, masked: list[str]) -> None:
    assert [found.masked for found in find(text)] == masked


@pytest.mark.parametrize("number", ["4111111111111112", "0000000000000000", "1234", "GB82WEST12345698765433"])
def test_wrong_check_digits_are_no_personal_data(number: str) -> None:
    assert not is_card(number)
    assert not is_iban(number) if number[0].isalpha() else True
    assert not list(find(f"No. {number} of the list."))


def test_the_report_is_an_artifact_made_once(texts: Texts, speeches: list[str], tmp_path: Path) -> None:
    corpus, config = texts.corpus(speeches[:60]), DataGatesConfig()
    first, reused = checked(texts.store, corpus, config)
    again, reused_again = checked(texts.store, corpus, config)
    assert (reused, reused_again) == (False, True)
    assert again.digest == first.digest
    assert report_of(again) == check(corpus, None, config)
    other, _ = checked(Store(tmp_path / "other"), corpus, config)
    assert other.digest == first.digest
    assert checked(texts.store, corpus, replace(config, garbage_share=0.3))[0].fingerprint != first.fingerprint
    assert "# Data gates" in (first.path / "report.md").read_text()


def test_the_previous_corpus_is_the_last_of_the_same_source(texts: Texts, speeches: list[str]) -> None:
    one = texts.corpus(speeches[:50], name="a.jsonl")
    two = texts.corpus(speeches[:60], name="a.jsonl")
    texts.corpus(speeches[:70], replace(_HALF, split_key="other"), name="a.jsonl")
    three = texts.corpus(speeches[:80], name="b.jsonl")
    before = [previous_of(texts.store, corpus) for corpus in (one, two, three)]
    assert [found.label if found else None for found in before] == [None, one.label, two.label]


def test_wrong_settings_are_told_together() -> None:
    with pytest.raises(ConfigError) as told:
        load_config("smoke", sets=["data_gates.garbage_share=2", "data_gates.similarity=0.1"])
    assert len(told.value.problems) == 2
