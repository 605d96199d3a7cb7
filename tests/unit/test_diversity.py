"""Figures of repetition, by hand and against a library."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from gptmodel.judging.diversity import bleu, distinct, repeated, repetition, self_bleu

ROOT = Path(__file__).resolve().parents[2]


def test_distinct_ngrams_of_all_texts_together() -> None:
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5
    assert distinct(texts, 4) == 1.0
    assert distinct(texts, 5) is None


def test_repetition_is_each_texts_own() -> None:
    assert repeated([[1, 2, 1, 2, 1], [1, 2, 1]], 2) == pytest.approx((1 - 2 / 4 + 0) / 2)
    assert repeated([[7] * 9], 4) == pytest.approx(1 - 1 / 6)
    assert repeated([[1, 2]], 3) is None


def test_bleu_by_hand() -> None:
    assert bleu([1, 2, 3, 4, 5], [[1, 2, 3, 4, 5]]) == pytest.approx(1.0)
    assert bleu([1, 2, 3, 4, 5], [[6, 7, 8, 9]]) == 0.0
    # 4 of 5, 2 of 4, 1 of 3, and half of one of 2; as long as the reference
    assert bleu([1, 2, 3, 9, 5], [[1, 2, 3, 4, 5]]) == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25)
    assert bleu([1, 2, 3, 4], [[1, 2, 3, 4, 5, 6], [9] * 20]) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu([1, 2, 3, 4], [[1, 2, 3], [1, 2, 3, 4, 5]]) == pytest.approx(1.0), "of two as close the shorter"
    # a word counts as often as the one reference has it that has it most: 1 of 2, and half of one of 1
    assert bleu([1, 1], [[1, 2], [1, 3]]) == pytest.approx((1 / 2 * 0.5) ** 0.5)
    # each order without a match counts half as much as the one before it
    assert bleu([1, 9, 2, 8], [[1, 2, 3, 4]]) == pytest.approx((2 / 4 * 0.5 / 3 * 0.25 / 2 * 0.125) ** 0.25)


def test_self_bleu_tells_the_same_from_the_different() -> None:
    same, different = [[1, 2, 3, 4, 5]] * 3, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert self_bleu(same) == pytest.approx(1.0)
    assert self_bleu(different) == 0.0
    assert self_bleu(same[:1]) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bleu_is_that_of_sacrebleu(tmp_path: Path) -> None:
    draw = random.Random(3)
    cases = [
        [[draw.randrange(9) for _ in range(draw.randrange(1, 25))] for _ in range(draw.randrange(2, 6))]
        for _ in range(500)
    ]
    program = (
        "import json, sys, sacrebleu\n"
        "say = lambda ids: ' '.join(map(str, ids))\n"
        "score = lambda c: sacrebleu.sentence_bleu(say(c[0]), [say(r) for r in c[1:]], tokenize='none').score\n"
        "print(json.dumps([score(case) / 100 for case in json.load(sys.stdin)]))\n"
    )
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *extras["sacrebleu"]]
    subprocess.run(pip, check=True, env=env, stdout=sys.stderr)
    told = subprocess.run(
        [python, "-c", program], check=True, env=env, input=json.dumps(cases), capture_output=True, text=True
    )
    ours = [bleu(case[0], case[1:]) for case in cases]
    assert ours == pytest.approx(json.loads(told.stdout), abs=1e-12)
    assert 0 < sum(score > 0.1 for score in ours) < 500


def test_repetition_of_samples_counts_greedy_ones_once() -> None:
    greedy = {"prompt": "p", "decoding": "greedy", "temperature": 0.0, "text": "one two three four five"}
    drawn = {"prompt": "p", "decoding": "temperature 1", "temperature": 1.0, "text": "six seven eight nine ten"}
    once = repetition([greedy, drawn])
    assert repetition([greedy, greedy, greedy, drawn]) == once
    assert once["distinct_1"] == 1.0
    assert repetition([drawn, drawn])["distinct_1"] == 0.5
    assert repetition([drawn, drawn])["self_bleu"] == pytest.approx(1.0)
    assert set(repetition([{**drawn, "text": "six"}])) == {"distinct_1"}


def test_greedy_samples_of_other_decodings_are_texts_of_their_own() -> None:
    """Two of one name that stop elsewhere: no one of them may stand for the other."""
    short = {"prompt": "p", "decoding": "greedy", "temperature": 0, "max_new_tokens": 7, "text": "a b c d e f g"}
    long = {**short, "max_new_tokens": 12, "text": "x" + " x" * 11}
    alone = [repetition([sample])["repeated_4"] for sample in (short, long)]
    assert repetition([short, short, long, long])["repeated_4"] == pytest.approx(sum(alone) / 2)
    assert repetition([short, {**short, "longest_match": "a"}]) == repetition([short]), "what was found in it aside"
