"""Where an actor dies between two excerpts of one document, what arrives a second time counts once."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from ray.exceptions import RayActorError

from mbs_ray.errors import StageDiedError
from mbs_ray.text import ray_data
from mbs_ray.text.ray_data import DEATHS_ALLOWED, Found, Recipe, TokenizeTexts, gather, read_items, read_texts, results
from mbs_ray.text.segment_draw import fill, finished, language_draws
from mbs_ray.text.shards import Shard
from mbs_ray.text.unit_draw import Ask
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_jsonl

LENGTH = 8


class Dying:
    """A pipeline in this process; it dies so many times, each time after so many answers."""

    def __init__(self, deaths: int, after: int) -> None:
        self.deaths, self.after, self.pipelines = deaths, after, 0

    def __call__(
        self, shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, tokenizers: int, asks: Sequence[Ask]
    ) -> Iterator[Found]:
        self.pipelines += 1
        answers = self._answers(shards, recipe, asks)
        if self.deaths < self.pipelines:
            yield from answers
            return
        for _ in range(self.after):
            yield next(answers)
        raise RayActorError

    def _answers(self, shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, asks: Sequence[Ask]) -> Iterator[Found]:
        tokenize = TokenizeTexts(recipe)
        for item in read_items(asks):
            for text in read_texts(pa.Table.from_pylist([item]), shards=shards, seed=recipe.seed):
                for table in tokenize(text):
                    yield from results(table)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of English spots are drawn, several of one document; of Swahili all the text is taken."""
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "en.jsonl", some_texts("en", 3, words=2000))
    write_jsonl(folder / "sw.jsonl", some_texts("sw", 4))
    return folder


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_drawing_that_actors_died_in_is_the_drawing_that_none_died_in(
    corpus: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    asked = request(corpus, tokenizer, {"en": 12, "sw": 4}, sequence_length=LENGTH)
    expected = drawn_here(asked)
    monkeypatch.setattr(ray_data, "_stream", dying := Dying(DEATHS_ALLOWED - 1, after))
    draws = language_draws(asked)
    recipe = Recipe(asked.tokenizer, asked.text_length, asked.seed)
    fill(draws, partial(gather, asked.opened.shards, recipe, 1), None)
    found = finished(asked, draws)
    assert dying.pipelines >= DEATHS_ALLOWED
    assert {language: rows_of(one) for language, one in found.items()} == {
        language: rows_of(one) for language, one in expected.items()
    }
    assert {language: one.facts for language, one in found.items()} == {
        language: one.facts for language, one in expected.items()
    }


def test_one_death_more_than_is_allowed_ends_the_drawing(
    corpus: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(corpus, tokenizer, {"en": 12}, sequence_length=LENGTH)
    monkeypatch.setattr(ray_data, "_stream", dying := Dying(DEATHS_ALLOWED, 1))
    read = partial(gather, asked.opened.shards, Recipe(asked.tokenizer, asked.text_length, asked.seed), 1)
    with pytest.raises(StageDiedError, match=f"processes that draw text died {DEATHS_ALLOWED} times"):
        fill(language_draws(asked), read, None)
    assert dying.pipelines == DEATHS_ALLOWED
