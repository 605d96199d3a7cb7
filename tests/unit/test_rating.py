"""People's ratings: the round, the journal, sheets, figures and the gate."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flows.commands.rate import rate
from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.criteria import NAMES
from gptmodel.errors import ConfigError, DataError
from gptmodel.lineage.walk import Lineage
from gptmodel.model import GPT
from gptmodel.pages.card_facts import facts_of
from gptmodel.pages.card_sections import ratings as card_section
from gptmodel.rating.deliveries import Rating
from gptmodel.rating.gate import judge
from gptmodel.rating.journal import Journal, Opening
from gptmodel.rating.results import publish
from gptmodel.rating.rounds import RoundConfig, build_round, in_order, models_of, read_items
from gptmodel.rating.sheets import guide_text, read_sheet, sheet_text
from gptmodel.rating.statistics import bootstrap_weights, krippendorff_alpha, mean_interval, preference, sign_test
from gptmodel.requirements import parse_requirement
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.upkeep.collection import Rules, plan
from gptmodel.upkeep.nodes import with_evaluations
from gptmodel.weights import save_model

NAN = float("nan")
SMALL = RoundConfig(from_validation=3, prompt_words=6, checks=2, decoding=DecodingConfig(max_new_tokens=12))


@pytest.fixture(scope="module")
def store(tiny_data: tuple[Store, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("rating") / "store"
    shutil.copytree(tiny_data[0].root, folder)
    return Store(folder)


@pytest.fixture(scope="module")
def models(store: Store) -> list[Artifact]:
    """Two small models, untrained."""

    def made(seed: int) -> Artifact:
        gpt = GPT(ModelConfig(vocab_size=50_257, context_length=32, n_layer=1, n_head=1, n_embd=8), seed=seed)
        for parameter in gpt.parameters():
            parameter.data.mul_(20.0 if parameter.dim() > 1 else 1.0)  # or both would write what the seed draws

        def build(directory: Path) -> dict[str, object]:
            save_model(gpt, directory)
            return {"n_params": 1, "source": "hand", "config": {}}

        return store.produce(Request("weights", 1, {"seed": seed}), build)[0]

    return [made(1), made(2)]


@pytest.fixture(scope="module")
def found(store: Store, models: list[Artifact]) -> Artifact:
    corpus = next(a for a in store.artifacts() if a.kind == "corpus")
    return build_round(store, models, corpus, SMALL)[0]


def answers(found: Artifact, rater: int, points: dict[str, int]) -> list[Rating]:
    """A rater who gives each kind of text, and each model (`0`, `1`), its points, on all four questions."""
    rated = []
    for item in read_items(found):
        given = points[str(item.model) if item.kind == "model" else item.kind]
        rated.append(Rating(rater, item.id, dict.fromkeys(NAMES, given)))
    return rated


# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: 4 observers, 12 units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level, alpha):
    assert round(krippendorff_alpha(PUBLISHED, level), 3) == alpha


def test_alpha_of_chance_is_near_0_and_of_nothing_is_none():
    drawn = np.random.default_rng(1).integers(1, 6, (6, 400)).astype(float)
    assert abs(krippendorff_alpha(drawn)) < 0.03
    assert krippendorff_alpha(np.full((3, 5), 4.0)) is None
    assert krippendorff_alpha(np.array([[1.0, 2.0, NAN], [NAN, NAN, 3.0]])) is None
    assert krippendorff_alpha(np.empty((0, 0))) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Raters and prompts have leanings of their own: an interval over single ratings would be far too narrow."""
    draw, held = np.random.default_rng(3), 0
    for _ in range(200):
        table = 3 + draw.normal(0, 0.5, (8, 1)) + draw.normal(0, 0.5, (1, 20)) + draw.normal(0, 0.5, (8, 20))
        table[draw.random(table.shape) < 0.2] = NAN
        _, low, high = mean_interval(table, bootstrap_weights(8, 20, 400, 0), 0.95)
        held += low <= 3 <= high
    assert held >= 0.94 * 200


@pytest.mark.parametrize(("n_raters", "n_prompts", "least"), [(2, 10, 0.93), (3, 10, 0.95), (10, 3, 0.95)])
def test_few_raters_or_prompts_give_wide_intervals(n_raters, n_prompts, least):
    draw, held = np.random.default_rng(5), 0
    weights = bootstrap_weights(n_raters, n_prompts, 400, 0)
    for _ in range(300):
        leanings = draw.normal(0, 0.5, (n_raters, 1)) + draw.normal(0, 0.5, (1, n_prompts))
        _, low, high = mean_interval(3 + leanings + draw.normal(0, 0.8, (n_raters, n_prompts)), weights, 0.95)
        held += low <= 3 <= high
    assert held >= least * 300


def test_one_rater_or_one_prompt_gives_no_bounds():
    table = np.array([[4.0, 5.0, NAN], [NAN, NAN, NAN]])
    assert mean_interval(table, bootstrap_weights(2, 3, 100, 0), 0.95) == (4.5, None, None)
    assert mean_interval(table.T, bootstrap_weights(3, 2, 100, 0), 0.95) == (4.5, None, None)
    assert mean_interval(np.full((2, 3), NAN), bootstrap_weights(2, 3, 100, 0), 0.95) is None


def test_the_sign_test_counts_a_prompt_once_and_leaves_ties_out():
    a = np.array([[5, 4, 4, 3, 2], [5, 5, 1, 3, 2], [4, NAN, 4, 3, 5]], dtype=float)
    b = np.array([[1, 1, 1, 3, 5], [1, 1, 1, 3, 5], [4, NAN, 5, 3, 1]], dtype=float)
    said = preference(a, b)
    assert (said["a_wins"], said["b_wins"], said["ties"]) == (2, 1, 2)
    assert said["p_value"] == pytest.approx(1.0)
    assert [round(sign_test(*counts), 4) for counts in ((9, 1), (5, 5), (0, 3))] == [0.0215, 1.0, 0.25]
    many = preference(np.full((2, 8), 4.0), np.full((2, 8), 2.0))
    assert many["p_value"] == pytest.approx(2 * 0.5**8)  # of 8 prompts, not of 16 ratings


def test_a_round_is_blind_seeded_and_holds_its_checks(store, models, found):
    items = read_items(found)
    assert [sum(i.kind == kind for i in items) for kind in ("model", "real", "salad")] == [6, 2, 2]
    prompts = [[i.prompt for i in items if i.model == model] for model in (0, 1)]
    assert prompts[0] == prompts[1], "each model goes on from the same prompts"
    texts = [[i.text for i in items if i.model == model] for model in (0, 1)]
    assert texts[0] != texts[1]
    from gptmodel.weights import load_model
    from gptmodel.writing import continue_texts

    assert texts[1] == continue_texts(load_model(models[1]).eval(), prompts[1], SMALL.decoding)
    names = {model.fingerprint[:6] for model in models} | {model.digest[:6] for model in models}
    assert not [name for name in names for item in items if name in item.id]
    corpus = next(a for a in store.artifacts() if a.kind == "corpus")
    again, reused = build_round(store, models, corpus, SMALL)
    assert (reused, again.digest) == (True, found.digest)


def test_a_real_passage_is_the_documents_own_text_and_a_salad_is_not(store, found):
    from gptmodel.text.corpus import iter_documents

    corpus = next(a for a in store.artifacts() if a.kind == "corpus")
    whole = {d.id: d.text for d in iter_documents(corpus, "validation")}
    for item in read_items(found):
        if item.kind == "real":
            assert item.prompt + item.text in whole[item.document]
        if item.kind == "salad":
            assert item.text not in whole[item.document]
            assert set(item.text.split()) <= set(" ".join(whole.values()).split())


def test_each_rater_has_an_order_of_his_own_that_stays(found):
    items = read_items(found)
    orders = [[item.id for item in in_order(found, rater, items)] for rater in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    kinds = [item.kind for item in in_order(found, 1, items)]
    assert kinds != [item.kind for item in items], "the checks are not at the end"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"from_validation": 0}, "there are no prompts"),
        ({"prompts": ("a", "a")}, "given twice"),
        ({"checks": 21}, "checks is 21"),
        ({"prompt_words": 0}, "prompt_words is 0"),
    ],
)
def test_a_wrong_setting_is_told(changes, said):
    with pytest.raises(ConfigError, match=said):
        RoundConfig(**changes)


def test_a_corpus_with_too_little_text_is_told(store, models):
    corpus = next(a for a in store.artifacts() if a.kind == "corpus")
    with pytest.raises(DataError, match=r"room for 0 passages of 5000 words"):
        build_round(store, models, corpus, RoundConfig(prompt_words=5_000))
    with pytest.raises(ConfigError, match="no corpus"):
        build_round(store, models, None, RoundConfig())


def test_a_model_given_twice_is_named(store, models):
    with pytest.raises(ConfigError, match=f"^{models[1].label}: the same model twice"):
        build_round(store, [models[0], models[1], models[1]], None, SMALL)
    with pytest.raises(ConfigError, match="needs a model"):
        build_round(store, [], None, SMALL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "--prompt", "It"), "name each with --rater, or give --no-queue"),
        (("gate", "checkpoint/1", "--raters", "0"), "Invalid value for '--raters': 0"),
        (("gate", "checkpoint/1", "--ratings", "-1"), "Invalid value for '--ratings': -1"),
    ],
)
def test_what_is_wrong_is_told_by_the_name_that_was_typed(words, said):
    done = CliRunner().invoke(rate, words)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)


def test_the_journal_keeps_what_was_said_through_a_kill(store):
    journal = Journal(store, "aaaa")
    assert [journal.number_of(name) for name in ("anna", "ben", "anna")] == [1, 2, 1]
    first, second = Rating(1, "t-1", dict.fromkeys(NAMES, 3)), Rating(1, "t-2", dict.fromkeys(NAMES, 4))
    assert journal.add([first, second]) == 2
    assert journal.add([first]) == 0
    log = journal.folder / "ratings.jsonl"
    with log.open("ab") as file:  # a kill in the midst of a delivery of two
        file.write(json.dumps({"at": "", "ratings": [{"rater": 1}]}).encode()[:-9])
    assert Journal(store, "aaaa").ratings() == {(1, "t-1"): first, (1, "t-2"): second}
    changed = Rating(1, "t-1", dict.fromkeys(NAMES, 1), "again")
    assert journal.add([changed]) == 1
    assert journal.ratings() == {(1, "t-1"): changed, (1, "t-2"): second}
    assert len(log.read_text().splitlines()) == 2
    text = log.read_text()
    assert "anna" not in text


def test_what_a_queue_said_before_does_not_undo_what_was_said_since(store):
    journal = Journal(store, "bbbb")
    queue = Rating(1, "t-1", dict.fromkeys(NAMES, 3), channel="queue")
    later = Rating(1, "t-1", dict.fromkeys(NAMES, 5))
    assert [journal.add([queue]), journal.add([later]), journal.add([queue])] == [1, 1, 0]
    assert journal.ratings()[1, "t-1"] == later


def filled(found: Artifact, rater: int, path: Path, change=None, delimiter=",") -> Path:
    """A rater's sheet, filled in with 3 everywhere, and then changed."""
    text = sheet_text(found, rater, in_order(found, rater, read_items(found)), {})
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    for row in rows:
        row |= dict.fromkeys(NAMES, "3")
    if change:
        change(rows)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_goes_out_and_comes_back(found, tmp_path, delimiter):
    items = read_items(found)

    def leave_one_and_comment(rows):
        rows[0] |= dict.fromkeys(NAMES, "")
        rows[1] |= {"comment": 'he said; "no",\nand left', "fluency": "4.0"}

    path = filled(found, 2, tmp_path / "a.csv", leave_one_and_comment, delimiter)
    ratings = read_sheet(path, found, [1, 2], items)
    assert len(ratings) == len(items) - 1
    assert ratings[0].comment == 'he said; "no",\nand left'
    assert ratings[0].scores == dict.fromkeys(NAMES, 3) | {"fluency": 4}
    assert {rating.rater for rating in ratings} == {2}


def test_a_misspelt_rater_is_not_a_new_one(store, found, tmp_path, monkeypatch):
    apart = Store(shutil.copytree(store.root, tmp_path / "store"))
    monkeypatch.setenv("GPTFLOW_STORE", str(apart.root))
    shutil.rmtree(apart.root / ".ratings", ignore_errors=True)
    journal = Journal(apart, found.path.name)
    times = ("2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", 9, ())
    for name in ("anna", "ben"):
        journal.number_of(name)
    journal.open(Opening(*times, named=True))
    for words in (("export", "--rater", "ana", "--to", str(tmp_path / "a.csv")), ("terminal", "--rater", "ana")):
        refused = CliRunner().invoke(rate, words)
        assert isinstance(refused.exception, ConfigError)
        assert "rater 'ana' was not named" in str(refused.exception)
        assert "(did you mean anna?); there are anna, ben." in str(refused.exception)
    assert journal.raters() == {"anna": 1, "ben": 2}
    assert not (tmp_path / "a.csv").exists()
    assert journal.number_told(" ben ") == 2
    journal.open(Opening(*times))  # a round for whoever comes
    assert journal.number_told("carl") == 3


@pytest.mark.parametrize(("name", "guide"), [("a.csv", "a.txt"), ("a.txt", "a.guide.txt"), ("a", "a.txt")])
def test_a_sheet_and_its_guide_are_two_files(store, found, tmp_path, monkeypatch, name, guide):
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    sheet = tmp_path / name
    done = CliRunner().invoke(rate, ["export", found.label, "--rater", "anna", "--to", str(sheet)])
    assert f"{tmp_path / guide} says what to do" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {name, guide}
    assert read_sheet(sheet, found, [1], read_items(found)) == []
    assert (tmp_path / guide).read_text() == guide_text()


def test_a_sheet_with_wrong_rows_names_each_and_gives_nothing(found, tmp_path):
    def spoil(rows):
        rows[0]["coherence"] = "6"
        rows[1]["fluency"] = ""
        rows[2]["text_id"] = "t-none"
        rows[3]["relevance"] = "good"
        rows[4]["rater"] = "7"

    with pytest.raises(DataError, match="nothing of it is kept") as error:
        read_sheet(filled(found, 1, tmp_path / "a.csv", spoil), found, [1, 2], read_items(found))
    said = str(error.value)
    for wanted in ("coherence is '6'", "fluency is missing", "no text 't-none'", "relevance is 'good'", "rater '7'"):
        assert wanted in said
    lines = [int(part.split(":")[0]) for part in said.split("line ")[1:]]
    text = (tmp_path / "a.csv").read_text(encoding="utf-8-sig")
    assert "t-none" in "\n".join(text.splitlines()[lines[2] - 1 : lines[3] - 1])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"a,b\n1,2\n", "no column round"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b'round,"rater\n', "no CSV at line"),
        (b"", "no column"),
    ],
)
def test_what_is_no_sheet_is_told(found, tmp_path, raw, said):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said):
        read_sheet(path, found, [1], [])


def test_a_spreadsheet_finds_no_formula_and_no_model_in_a_sheet(found, models):
    from dataclasses import replace

    items = [replace(item, text='=HYPERLINK("x")') for item in read_items(found)]
    text = sheet_text(found, 1, items, {})
    assert "'=HYPERLINK" in text
    assert ",=HYPERLINK" not in text
    assert ',"=HYPERLINK' not in text
    assert not [m for m in models if m.path.name in text]


READER = {"real": 5, "salad": 1, "0": 4, "1": 2}
CARELESS = {"real": 3, "salad": 3, "0": 1, "1": 5}


def test_a_careless_rater_is_flagged_and_left_out(store, found):
    ratings = [*answers(found, 1, READER), *answers(found, 2, READER), *answers(found, 3, CARELESS)]
    artifact, _ = publish(store, found, ratings)
    told, (first, second) = artifact.summary, models_of(found)
    assert [rater["flagged"] for rater in told["by_rater"]] == [False, False, True]
    assert told["models"][first]["coherence"] == {"mean": 4.0, "low": 4.0, "high": 4.0, "ratings": 6}
    assert told["with_flagged"]["models"][first]["coherence"]["mean"] == pytest.approx(3.0)
    assert told["alpha"]["fluency"] == 1.0
    assert told["with_flagged"]["alpha"]["fluency"] < 0.3
    (pair,) = told["preference"]
    assert (pair["a"], pair["b"], pair["a_wins"], pair["p_value"]) == (first, second, 3, 0.25)
    assert [ref.label for ref in artifact.request.inputs] == [first, second, found.label]
    again, reused = publish(store, found, list(reversed(ratings)))
    assert (reused, again.label) == (True, artifact.label)


def test_who_rated_no_checks_is_not_flagged_and_half_a_gap_is_not_enough(store, found):
    only = [r for r in answers(found, 1, READER) if r.item in {i.id for i in read_items(found) if i.kind == "model"}]
    near = answers(found, 2, {**READER, "real": 4, "salad": 3})
    told = publish(store, found, [*only, *near])[0].summary
    assert [rater["flagged"] for rater in told["by_rater"]] == [False, True]


def test_no_rating_is_no_result(store, found):
    checks = [r for r in answers(found, 1, READER) if r.item in {i.id for i in read_items(found) if i.kind != "model"}]
    with pytest.raises(DataError, match=r"no text .* is rated yet"):
        publish(store, found, checks)


def test_the_gate(store, found):
    low = answers(found, 2, {**READER, "0": 3})
    artifact = publish(store, found, [*answers(found, 1, READER), *low])[0]
    first, second = models_of(found)

    def met(text: str, model: str = "") -> bool:
        return judge(artifact, model, [parse_requirement(text)])[0].met

    assert met("coherence>=3.5")
    assert not met("coherence>=3.51")
    assert met("coherence.low>=3.0")
    assert not met("coherence.low>=3.1")
    assert met("overall>=2", second)
    assert not met("overall>=3", second)
    with pytest.raises(ConfigError, match=r"rates .* and not checkpoint/1"):
        judge(artifact, "checkpoint/1", [])
    flagged = publish(store, found, answers(found, 1, CARELESS))[0]
    (verdict,) = judge(flagged, first, [parse_requirement("coherence>=1")])
    assert (verdict.met, str(verdict)) == (False, "coherence>=1: NOT met, no rating that counts")


@pytest.mark.parametrize("text", ["coherence", "beauty>=3", "coherence>=6", "coherence>3", "coherence.high>=3"])
def test_what_is_no_requirement_is_told(text):
    with pytest.raises(ConfigError, match=r"no requirement|points go from 1 to 5"):
        parse_requirement(text)


def test_lineage_verify_card_and_collector_know_ratings(store, models, found):
    time.sleep(1.1)  # the card takes the newest, by the second
    artifact = publish(store, found, answers(found, 1, READER))[0]
    graph = Lineage(store).around(models[0].ref)
    assert {artifact.label, found.label} <= {node.id for node in graph.nodes}
    assert (models[1].label, artifact.label) in graph.edges
    assert artifact.path in with_evaluations(store, models[1].path)
    assert "| coherence | 4.0000 |" in card_section(facts_of(store, models[0]))
    rules = Rules(keep_days=0, keep_newest=0)
    kept = plan(store, rules, {models[1].path.name: "registered"}).kept
    assert kept[artifact.label].startswith("judges weights/")
    assert found.label in kept
    assert found.label not in plan(store, rules, {}).kept
    Journal(store, found.path.name).open(Opening("2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", 9))
    assert plan(store, rules, {}).kept[found.label] == "raters are at it"
