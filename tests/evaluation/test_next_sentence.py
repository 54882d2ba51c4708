"""Tasks made from the package's parallel text: right answers continue the text, wrong ones are of other documents."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from benchmarks.studies.next_sentence import END, LANGUAGES, NEXT, parallel_documents, write_tasks
from mbs_ray.evaluation.zero_shot import open_tasks, questions_digest

pytestmark = pytest.mark.usefixtures("own_tasks_only")


def documents(language: str) -> list[str]:
    text = (files("mbs_ray") / "mini" / "text" / "evaluation" / f"{language}.txt").read_text(encoding="utf-8")
    return [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("next-sentence")
    assert write_tasks(folder) == {NEXT: 32, END: 41}
    return folder


def read(folder: Path, name: str, language: str) -> list[dict]:
    lines = (folder / f"{name}_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", [NEXT, END])
def test_questions_are_parallel_and_have_one_right_answer(folder: Path, name: str) -> None:
    places = []
    for language in LANGUAGES:
        texts, own = documents(language), []
        for one in read(folder, name, language):
            (document,) = [n for n, text in enumerate(texts) if text.startswith(one["question"] + " ")]
            right = [f"{one['question']} {answer}" in texts[document] for answer in one["answers"]]
            assert right == [place == one["label"] for place in range(4)]
            own.append(
                (one["label"], [[n for n, text in enumerate(texts) if answer in text] for answer in one["answers"]])
            )
            assert all(len(found) == 1 for found in own[-1][1]) and len({n for (n,) in own[-1][1]}) == 4
        places.append(own)
    assert all(own == places[0] for own in places)
    assert {label for label, _ in places[0]} == {0, 1, 2, 3}


def test_wrong_answers_are_about_as_long_as_the_right_one(folder: Path) -> None:
    for language in LANGUAGES:
        longest = [
            max(range(4), key=lambda place, one=one: len(one["answers"][place].encode())) == one["label"]
            for one in read(folder, NEXT, language)
        ]
        # By chance a quarter; a right answer that gave itself away by its length would be so in nearly all or none.
        assert 0.1 < sum(longest) / len(longest) < 0.4


def test_the_harness_opens_them_and_they_are_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    tasks = open_tasks([NEXT, END], folder)
    assert set(tasks) == {f"{name}_{language}" for name in (NEXT, END) for language in LANGUAGES}
    write_tasks(tmp_path)
    again = open_tasks([NEXT, END], tmp_path)
    assert questions_digest(tasks) == questions_digest(again) != questions_digest(tasks, limit=5)
    # Examples are drawn anew with the same seed, whatever was asked before.
    tasks = open_tasks([NEXT], folder)
    shots = [questions_digest(tasks, shots=2, limit=3) for _ in range(2)]
    assert shots[0] == shots[1] != questions_digest(tasks, limit=3)


def test_languages_that_are_cut_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same number of sentences"):
        parallel_documents(["en", "ar"])
