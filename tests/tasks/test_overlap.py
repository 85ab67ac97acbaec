"""Overlap of training and evaluation prompts, on hand-written texts and on the real sets with their labels."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.tasks.overlap import Text, find_overlap, words

SENTENCE = "a farmer sells seven apples and nine pears on the first day of the market in town"


def texts(*questions: str) -> list[Text]:
    return [Text(f"t{place}", question) for place, question in enumerate(questions)]


def found(train: list[Text], evaluation: list[Text]) -> list[tuple[str, str, str]]:
    return [(hit.train.id, hit.evaluation.id, hit.kind) for hit in find_overlap(train, evaluation).hits]


def test_words_are_what_is_left_without_signs() -> None:
    assert words(r"Find $\frac{1}{2x_1}$, the ROOT²!") == ["find", "frac", "1", "2", "x", "1", "the", "root", "2"]
    assert words("求出所有的整数 n") == [*"求出所有的整数", "n"]
    assert words("$$ -- $$") == []


def test_the_same_text_in_another_dress_is_exact() -> None:
    evaluation = [
        Text("e", r"Let $x^{2}$ be  a square.\nFind the smallest such number of all above $1000$, please; now")
    ]
    same = r"let \(x^2\) be a SQUARE\nfind the smallest such number of all above 1000 please now"
    assert found(texts(same, same + " then"), evaluation) == [("t0", "e", "exact"), ("t1", "e", "13-gram")]


def test_short_texts_differ_by_their_signs() -> None:
    evaluation = [Text("e", "7+5-2="), Text("f", "x > 3")]
    assert found(texts("7-5+2=", "7 + 5 - 2 =", "x<3", "X>3"), evaluation) == [
        ("t1", "e", "exact"),
        ("t3", "f", "exact"),
    ]
    assert found(texts("??", "!!"), [Text("e", "??")]) == [("t0", "e", "exact")]


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none() -> None:
    held = SENTENCE.split()
    evaluation = [Text("e", SENTENCE)]
    thirteen, twelve = (" ".join(["then", *held[2 : 2 + count], "again"]) for count in (13, 12))
    assert found(texts(thirteen), evaluation) == [("t0", "e", "13-gram")]
    assert found(texts(twelve), evaluation) == []
    (hit,) = find_overlap(texts(thirteen), evaluation).hits
    assert hit.shared == " ".join(held[2:15])


def test_a_phrase_of_more_than_ten_training_texts_is_no_evidence() -> None:
    evaluation = [Text("e", "so " + SENTENCE)]
    ten = texts(*(f"number {count} {SENTENCE}" for count in range(10)))
    assert len(found(ten, evaluation)) == 10
    eleven = texts(*(f"number {count} {SENTENCE}" for count in range(11)))
    assert found(eleven, evaluation) == []
    # But the same text eleven times is one text, and an exact copy is one however often it stands there.
    assert len(found(texts(*[f"number 1 {SENTENCE}"] * 11), evaluation)) == 11
    exact = found([*eleven, Text("copy", "so " + SENTENCE)], evaluation)
    assert exact == [("copy", "e", "exact")]


def test_counts() -> None:
    overlap = find_overlap(texts(SENTENCE, f"so {SENTENCE}", "other"), [Text("e", SENTENCE), Text("f", "none")])
    assert (overlap.num_train, overlap.num_evaluation) == (3, 2)
    assert (overlap.count("exact"), overlap.count("13-gram")) == (1, 1)
    assert find_overlap(texts("a"), []).hits == ()


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


EVALUATION = [
    "aime2024",
    "aime2025",
    "amc2023",
    "math500",
    "minerva_math",
    "olympiadbench_math_en",
    "olymmath_en",
    "gsm8k_test",
]


# A near copy but for its equation, and all they share stands in more than ten training texts: "(A) Line (B) Circle ...
# Enter the letter of the correct option".
STOCK = {"math_train.jsonl.gz": {"math-train-7186"}}


@pytest.mark.parametrize(
    ("name", "exact", "near"),
    [
        ("dapo_math_17k.jsonl.gz", 27, 69),
        ("math_train.jsonl.gz", 0, 17),
        ("math_test_minus_math500.jsonl", 1, 12),
        ("aime_1983_2023.jsonl", 6, 2),
        ("gsm8k_train.jsonl.gz", 0, 0),
    ],
)
def test_every_labelled_overlap_of_the_real_sets_is_found(shared_data: Path, name: str, exact: int, near: int) -> None:
    rows = read(shared_data / name)
    train = [Text(row["id"], row["problem"]) for row in rows]
    evaluation = [Text(row["id"], row["problem"]) for file in EVALUATION for row in read(shared_data / f"{file}.jsonl")]
    assert len(evaluation) == 3066
    began = time.process_time()
    overlap = find_overlap(train, evaluation)
    assert time.process_time() - began < 20
    hits = {hit.train.id: hit for hit in overlap.hits}
    kinds = {row["id"]: {label["kind"] for label in row.get("overlaps", [])} for row in rows}
    assert {name for name, kind in kinds.items() if "exact" in kind} == {
        name for name, hit in hits.items() if hit.kind == "exact"
    }
    labelled = {name for name, kind in kinds.items() if kind}
    assert (overlap.count("exact"), len(labelled) - overlap.count("exact")) == (exact, near)
    assert labelled - hits.keys() == STOCK.get(name, set())
