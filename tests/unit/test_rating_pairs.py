"""Asked preferences: blind pairs, sheets, the keyboard, the sign test on them, and the gate that reads them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptmodel.criteria import NAMES
from gptmodel.errors import ConfigError, DataError
from gptmodel.rating.deliveries import Comparison, Rating
from gptmodel.rating.gate import PeopleGate, decide
from gptmodel.rating.journal import Journal, Opening
from gptmodel.rating.pair_sheets import is_pair_sheet, pair_sheet_text, read_pair_sheet
from gptmodel.rating.pairs import Pair, answer_of, comparison, pairs_in_order, pairs_of, sides
from gptmodel.rating.results import comments_of, preferences_of, publish
from gptmodel.rating.rounds import Item, read_items
from gptmodel.retraining.gate_facts import ratings_on
from gptmodel.store.artifacts import Artifact, Request, Store

PROMPTS = 6


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def found(store: Store) -> Artifact:
    """A round of two models whose texts say in themselves who wrote them, for the tests alone."""

    def weights(number: int) -> Artifact:
        def build(folder: Path) -> dict[str, Any]:
            (folder / "model.txt").write_text(f"model {number}")
            return {}

        return store.produce(Request("weights", 1, {"seed": number}), build)[0]

    items = [
        Item(f"t-{model}{place}", f"beginning {place}", f" text {place} of {model}", "model", model, place, "")
        for model in (0, 1)
        for place in range(PROMPTS)
    ]
    checks = [("real", 0), ("salad", 1), ("real", 2), ("salad", 3)]
    items += [Item(f"t-c{n}", f"check {n}", f" {kind} {n}", kind, -1, PROMPTS + n, "") for kind, n in checks]

    def build(folder: Path) -> dict[str, Any]:
        (folder / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
        return {}

    inputs = tuple(weights(number).ref for number in (0, 1))
    return store.produce(Request("rating-round", 1, {"seed": 0}, inputs), build)[0]


@pytest.fixture
def pairs(found: Artifact) -> list[Pair]:
    return pairs_of(found, read_items(found))


def says(found: Artifact, pairs: list[Pair], rater: int, winner: str, *, reads: bool = True) -> list[Comparison]:
    """A rater who for every prompt prefers `first`, `second` or neither (`tie`), and passes the checks or not."""
    said = []
    for pair in pairs:
        way = ("first" if reads else "second") if pair.is_check else winner
        chosen = "" if way == "tie" else getattr(pair, way).id
        said.append(Comparison(rater, pair.id, chosen))
    return said


def test_pairs_are_all_of_a_prompt_and_the_checks(found, pairs):
    assert len(pairs) == PROMPTS + 2
    for pair in pairs:
        if pair.is_check:
            assert (pair.first.kind, pair.second.kind) == ("real", "salad")
        else:
            assert (pair.first.model, pair.second.model) == (0, 1)
            assert pair.first.prompt == pair.second.prompt == pair.prompt
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_texts_that_are_the_same_are_not_asked_about_nor_one_model(store, found):
    from dataclasses import replace

    items = [replace(item, text=" the same") if item.passage == 0 else item for item in read_items(found)]
    assert len(pairs_of(found, items)) == PROMPTS - 1 + 2

    def build(folder: Path) -> dict[str, Any]:
        (folder / "items.jsonl").touch()
        return {}

    alone, _ = store.produce(Request("rating-round", 1, {"seed": 1}, found.request.inputs[:1]), build)
    assert pairs_of(alone, items) == []


def test_sides_are_drawn_for_each_pair_and_rater_and_stay(found, pairs):
    lefts = {rater: [sides(found, rater, pair)[0] is pair.first for pair in pairs] for rater in range(1, 40)}
    assert [sides(found, 1, pair)[0] is pair.first for pair in pairs] == lefts[1]
    share = sum(map(sum, lefts.values())) / (39 * len(pairs))
    assert 0.38 < share < 0.62, "of 312 draws"
    assert len({tuple(left) for left in lefts.values()}) > 20, "each rater has his own"
    assert all(0 < sum(column) < 39 for column in zip(*lefts.values(), strict=True)), "and each pair"


def test_the_order_is_each_raters_own_and_the_checks_are_not_at_the_end(found, pairs):
    orders = [[pair.id for pair in pairs_in_order(found, rater, pairs)] for rater in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    checks = [pair.is_check for rater in range(1, 9) for pair in pairs_in_order(found, rater, pairs)[-2:]]
    assert 0 < sum(checks) < len(checks)


def test_an_answer_means_the_text_that_stood_there(found, pairs):
    for pair in pairs:
        for rater in (1, 2, 3):
            left, right = sides(found, rater, pair)
            meant = [comparison(found, rater, pair, answer, "", "csv") for answer in ("A", " b ", "TIE", "C")]
            assert [word and word.chosen for word in meant] == [left.id, right.id, "", None]
            assert [answer_of(found, pair, word) for word in meant[:3]] == ["A", "B", "tie"]


def sheet(found: Artifact, pairs: list[Pair], path: Path, answers: dict[int, str], **others: Any) -> Path:
    """Rater 2's sheet with answers by row."""
    text = pair_sheet_text(found, 2, pairs_in_order(found, 2, pairs), {})
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    for number, answer in answers.items():
        rows[number] |= {"preferred": answer, **others}
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_sheet_of_pairs_goes_out_blind_and_comes_back(found, pairs, tmp_path):
    text = pair_sheet_text(found, 2, pairs, {})
    assert not [name for ref in found.request.inputs for name in (ref.fingerprint[:8], ref.digest[:8]) if name in text]
    path = sheet(found, pairs, tmp_path / "a.csv", {0: "A", 2: "b", 5: "Tie"}, comment='so; "so"')
    assert is_pair_sheet(path)
    words = read_pair_sheet(path, found, [1, 2], pairs)
    order = pairs_in_order(found, 2, pairs)
    wanted = [sides(found, 2, order[0])[0].id, sides(found, 2, order[2])[1].id, ""]
    assert [(word.pair, word.chosen) for word in words] == [
        (order[n].id, chosen) for n, chosen in zip((0, 2, 5), wanted, strict=True)
    ]
    assert {(word.rater, word.comment, word.channel) for word in words} == {(2, 'so; "so"', "csv")}
    again = pair_sheet_text(found, 2, order, {(2, word.pair): word for word in words})
    filled = [row["preferred"] for row in csv.DictReader(io.StringIO(again.removeprefix("\ufeff"), newline=""))]
    assert [filled[n] for n in (0, 1, 2, 5)] == ["A", "", "B", "tie"]


def test_a_sheet_of_pairs_with_wrong_rows_names_each_and_gives_nothing(found, pairs, tmp_path):
    path = sheet(found, pairs, tmp_path / "a.csv", {0: "C", 1: "A"})
    path.write_text(path.read_text(encoding="utf-8-sig").replace(pairs_in_order(found, 2, pairs)[1].id, "p-none"))
    with pytest.raises(DataError, match="nothing of it is kept") as error:
        read_pair_sheet(path, found, [2], pairs)
    assert "line 2: preferred is 'C'; write A, tie, B" in str(error.value)
    assert "line 3: there is no pair 'p-none'" in str(error.value)
    with pytest.raises(DataError, match="rater '2' was never given"):
        read_pair_sheet(sheet(found, pairs, tmp_path / "b.csv", {0: "A"}), found, [1], pairs)


def test_asked_preferences_count_prompts_and_ties_and_leave_flagged_raters_out(store, found, pairs):
    a, b = (ref.label for ref in found.request.inputs)
    words = [
        *says(found, pairs, 1, "first"),
        *says(found, pairs, 2, "first"),
        *says(found, pairs, 3, "tie"),
        *says(found, pairs, 4, "second", reads=False),
    ]
    told = publish(store, found, [], words)[0].summary
    (pair,) = told["asked"]
    assert (pair["a"], pair["b"], pair["a_wins"], pair["b_wins"], pair["ties"]) == (a, b, PROMPTS, 0, 0)
    assert pair["p_value"] == pytest.approx(2 * 0.5**PROMPTS)
    assert [pair[f"answers_{name}"] for name in ("a", "b", "tie")] == [2 * PROMPTS, 0, PROMPTS]
    assert [rater["flagged"] for rater in told["by_rater"]] == [False, False, False, True]
    assert (
        told["by_rater"][0] | {"rater": 1, "compared": PROMPTS, "checks_right": 2, "checks_compared": 2}
        == (told["by_rater"][0])
    )
    assert told["with_flagged"]["asked"][0]["answers_b"] == PROMPTS
    undecided = publish(store, found, [], [*says(found, pairs, 1, "first"), *says(found, pairs, 2, "second")])[0]
    (even,) = undecided.summary["asked"]
    assert (even["a_wins"], even["b_wins"], even["ties"], even["p_value"], even["share_a"]) == (
        *(0, 0, PROMPTS, None),
        0.5,
    )


def points(found: Artifact, rater: int, first: int, second: int) -> list[Rating]:
    given = {0: first, 1: second, -1: 5}
    return [
        Rating(rater, item.id, dict.fromkeys(NAMES, 1 if item.kind == "salad" else given[item.model]), "short")
        for item in read_items(found)
    ]


def test_results_say_whether_a_preference_was_asked_and_old_ones_stay_as_they_are(store, found, pairs):
    rated = points(found, 1, 4, 2)
    old, _ = publish(store, found, rated)
    assert set(old.summary) == {
        *("ratings", "prompts", "raters", "raters_flagged", "models", "alpha", "preference", "with_flagged"),
        "by_rater",
    }
    assert set(old.summary["by_rater"][0]) == {"rater", "rated", "real", "salad", "flagged"}
    assert "comparisons" not in old.request.config
    assert old.names() == ["ratings.jsonl", "results.json"]
    (derived,) = preferences_of(old.summary)
    assert (derived["how"], derived["a_wins"]) == ("derived", PROMPTS)
    asked, _ = publish(store, found, rated, says(found, pairs, 1, "second"))
    assert asked.fingerprint != old.fingerprint
    (told,) = preferences_of(asked.summary)
    assert (told["how"], told["a_wins"], told["b_wins"]) == ("asked", 0, PROMPTS)
    assert asked.summary["preference"][0]["a_wins"] == PROMPTS, "what the points say stands beside it"


def test_comments_on_texts_and_pairs_are_told_of_the_models_that_they_are_about(store, found, pairs):
    said = [Comparison(1, pair.id, "", f"about {pair.prompt}") for pair in pairs[:1] + pairs[-1:]]
    ratings, _ = publish(store, found, points(found, 1, 4, 2)[:1], said)
    first, second = (ref.label for ref in found.request.inputs)
    assert comments_of(ratings, first) == ["short", "about beginning 0"]
    assert comments_of(ratings, second) == ["about beginning 0"]
    assert len(comments_of(ratings)) == 3


def test_the_gate_tells_too_few_ratings_from_bad_ones(store, found, pairs):
    model, rival = (ref.digest for ref in found.request.inputs)
    wanted = PeopleGate(requirements=("coherence>=3.0",), least_raters=2, least_ratings=12)
    assert decide(store, model, wanted).outcome == "not enough ratings"
    publish(store, found, points(found, 1, 4, 2))
    few = decide(store, model, wanted)
    assert (few.outcome, few.raters, few.n_ratings) == ("not enough ratings", 1, PROMPTS)
    alone = PeopleGate(requirements=("coherence>=4", "coherence.low>=1"), least_raters=1, least_ratings=1)
    assert [str(verdict) for verdict in decide(store, model, alone).verdicts] == [
        "coherence>=4: met, 4.00, no interval",
        "coherence.low>=1: NOT met, 4.00, no interval",
    ]
    one = decide(store, model, PeopleGate(least_raters=2, least_ratings=PROMPTS))
    assert (one.outcome, one.why) == ("not enough ratings", "6 ratings by 1 raters who read; 6 by 2 are needed")
    both = [*points(found, 1, 4, 2), *points(found, 2, 4, 2)]
    publish(store, found, both)
    good, bad = decide(store, model, wanted), decide(store, rival, wanted)
    assert (good.outcome, good.raters, good.n_ratings, good.verdicts[0].mean) == ("pass", 2, 12, 4.0)
    assert (bad.outcome, bad.why) == ("fail", "coherence>=3: NOT met, 2.00 [2.00, 2.00]")
    assert decide(store, "0" * 64, wanted).outcome == "not enough ratings"
    assert decide(store, model, wanted, "0" * 64).why == "nobody has rated it beside its rival"


def test_retraining_waits_for_as_many_ratings_as_the_gate_of_people(store, found):
    model = next(store.at(*ref.label.split("/")) for ref in found.request.inputs)
    asked = ("coherence>=3.0", "coherence.low>=3.0")
    assert ratings_on(store, model, asked) == (None, None)
    publish(store, found, points(found, 1, 4, 2))
    assert ratings_on(store, model, asked) == (None, None), "6 by 1"
    publish(store, found, points(found, 1, 4, 2) + points(found, 2, 4, 2)[:3])
    assert ratings_on(store, model, asked) == (None, None), "9 by 2"
    enough, _ = publish(store, found, points(found, 1, 4, 2) + points(found, 2, 4, 2))
    ratings, verdicts = ratings_on(store, model, asked)
    assert ratings.label == enough.label
    assert [met for _, met in verdicts] == [True, True]
    assert ratings_on(store, model, ()) == (None, None)


def test_the_gate_fails_a_model_whose_rival_is_preferred_with_confidence(store, found, pairs):
    model, rival = (ref.digest for ref in found.request.inputs)
    rated = [*points(found, 1, 4, 4), *points(found, 2, 4, 4)]
    some = PeopleGate(least_ratings=12)
    publish(store, found, rated)
    assert decide(store, model, some).outcome == "pass"
    publish(store, found, rated, [*says(found, pairs, 1, "second"), *says(found, pairs, 2, "second")])
    beaten, winner = decide(store, model, some, rival), decide(store, rival, some, model)
    assert (beaten.outcome, winner.outcome) == ("fail", "pass")
    assert beaten.why == "its rival is preferred after 6 prompts against 0, p = 0.0312 (asked)"
    assert winner.preference is not None
    assert (winner.preference["a_wins"], winner.preference["answers_a"]) == (PROMPTS, 2 * PROMPTS)
    assert decide(store, model, PeopleGate(least_ratings=12, alpha=0.01), rival).outcome == "pass"


@pytest.mark.parametrize("wrong", [{"least_raters": 0}, {"least_ratings": 0}, {"alpha": 1.0}, {"requirements": ("x",)}])
def test_a_gate_that_cannot_be_is_told(wrong):
    with pytest.raises(ConfigError):
        PeopleGate(**wrong)


def test_at_the_keyboard_pairs_are_answered_put_off_and_left(store, found, pairs, monkeypatch):
    from flows.commands.rate import rate

    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    journal = Journal(store, found.path.name)
    refused = CliRunner().invoke(rate, ["terminal", "--rater", "anna", "--pairs"])
    assert isinstance(refused.exception, ConfigError)
    journal.open(Opening("2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", 9, (), True))
    order = pairs_in_order(found, 1, pairs)
    first = CliRunner().invoke(rate, ["terminal", "--rater", "anna", "--pairs"], input="xsacso so\nbtq")
    assert first.exit_code == 0, first.output
    assert "t for a tie" in first.output
    assert "Saved: 3 of 8" in first.output
    left, right = sides(found, 1, order[1])[0], sides(found, 1, order[2])[1]
    wanted = {order[1].id: (left.id, ""), order[2].id: (right.id, "so so"), order[3].id: ("", "")}
    assert {pair: (word.chosen, word.comment) for (_, pair), word in journal.comparisons().items()} == wanted
    rest = CliRunner().invoke(rate, ["terminal", "--rater", "anna", "--pairs"], input="aaaaa")
    assert "All 8 pairs are compared" in rest.output
    assert journal.comparisons()[1, order[0].id].chosen == sides(found, 1, order[0])[0].id
    assert not [ref for ref in found.request.inputs if ref.fingerprint[:8] in first.output + rest.output]
