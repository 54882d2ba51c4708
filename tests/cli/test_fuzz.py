"""Whatever a file of text, tokenizer, configuration, index or YAML holds: a result, or one line of an InputError.

Each test takes a valid file, cuts it, loses keys, swaps types or writes numbers as text, and goes through what a
command does before any actor starts. A hundred mutations in all; a thousand under hypothesis' profile ``ci``.
"""

import copy
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
import yaml
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mbs_ray.cli.inputs import one_line_errors
from mbs_ray.model.checkpoint import open_checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.prepare import prepare_runs
from mbs_ray.run.sweep_spec import load_sweep
from mbs_ray.text.corpus import open_corpus
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.architectures import write_architecture
from tests.support.models import documents, write_corpus

PROFILE = settings.get_current_profile_name()
fuzzed = settings(
    max_examples=200 if PROFILE == "ci" else 20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a spoilt file is small enough, and shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

#: No large numbers: a configuration may ask for any amount of memory, and a model of that size is no mistake.
VALUES = st.sampled_from(
    [None, 0, -1, 3, 1.5, 256.0, float("nan"), "8", "text", "", "a\nb", "\0", "../x", True, False, [], ["a"], [[1]], {},
     {"a": 1}, {"": None}]
)  # fmt: skip


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of everything inside a structure of mappings and lists."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*path, key)
        # Of a vocabulary a few entries stand for all.
        if not isinstance(value, dict | list) or len(value) < 60:
            yield from places(value, (*path, key))


@st.composite
def spoilt(draw: st.DrawFn, content: Any) -> Any:
    """A structure in which one or two places are lost, are of another type, or hold their number as a text."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        if not (paths := list(places(content))):
            break
        *above, last = draw(st.sampled_from(paths))
        holder = content
        for key in above:
            holder = holder[key]
        change = draw(st.sampled_from(["lost", "other", "as text", "nested", "renamed"]))
        if change == "lost":
            del holder[last]
        elif change == "other":
            holder[last] = copy.deepcopy(draw(VALUES))
        elif change == "as text":
            holder[last] = str(holder[last])
        elif change == "nested":
            holder[last] = [holder[last]]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "Name", "../x", f"{last}s"]))] = holder.pop(last)
    return content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut, overwritten or filled up somewhere."""
    place = draw(st.integers(0, len(content)))
    noise = draw(st.sampled_from([b"", b"\0", b"\xff", b"\n\n", b'"', b"}", b"\xef\xbb\xbf", b"9" * 40, b"[" * 3000]))
    return content[:place] + noise + draw(st.sampled_from([b"", content[place + len(noise) :], content[place:]]))


def text_or_damage(text: bytes, structure: Any, dump: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    def encoded(content: Any) -> bytes:
        return dump(content).encode("utf-8", "surrogatepass")

    return st.one_of(spoilt(structure).map(encoded), spoilt(structure).map(encoded), damaged(text))


def assert_result_or_one_line(work: Callable[[], object], *names: str) -> None:
    """A result, or one line for the user and exit code 2; the line has one of these names in it."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), one_line_errors():
            work()
    except typer.Exit as end:
        *warnings, line = said.getvalue().splitlines()
        assert end.exit_code == 2 and line.startswith("error: ")
        assert not any("error: " in one or "Traceback" in one for one in warnings), warnings
        assert not names or any(name in line for name in names), line


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in two shards, a corpus and a sweep file, all of them sound."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_architecture(folder / "whole", "llama")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder / "whole").save_pretrained(folder / "model", max_shard_size="40KB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / "whole" / file, folder / "model" / file)
    write_corpus(folder / "corpus")
    write_corpus(folder / "held-out", first=1000)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_of(folder)), encoding="utf-8")
    return folder


def sweep_of(folder: Path) -> dict[str, Any]:
    """The fields of a sound sweep file beside the model and the text."""
    counts = {"name": "counts", "counts": {"en": 3, "sw": 5}}
    return {
        "name": "fuzz",
        "model": "model",
        "corpus": "corpus",
        "languages": ["en", "sw"],
        "segments": 8,
        "sequence_length": 32,
        "seed": 1,
        "microbatch": 2,
        "statistics": {"mode": "dense", "segments_per_language": 4, "weights": "shares"},
        "evaluation": {"held": {"corpus": {"folder": str(folder / "held-out"), "text_column": "text"}, "segments": 2}},
        "layout": {"stages": 1, "replicas": 1},
        "threads": 1,
        "grid": {
            "method": [{"name": "sparsegpt", "sparsity": 0.5, "block_size": 16}, {"name": "gptq", "bits": 4}, "wanda"],
            "sampling": ["equal", counts, {"name": "monolingual", "language": "sw"}],
        },
    }


def prepare(sweep_file: Path, cache: Path) -> object:
    sweep = load_sweep(sweep_file)
    specs = sweep.runs()
    return prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), cache)


def test_the_files_that_are_spoilt_below_are_sound(valid: Path) -> None:
    assert len(list((valid / "model").glob("*.safetensors"))) > 1
    assert len(prepare(valid / "sweep.yaml", valid / "cache")) == 9  # type: ignore[arg-type]


@fuzzed
@given(data=st.data())
def test_a_sweep_file(valid: Path, data: st.DataObject) -> None:
    file = valid / "spoilt.yaml"
    text = (valid / "sweep.yaml").read_bytes()
    file.write_bytes(data.draw(text_or_damage(text, sweep_of(valid), lambda one: yaml.dump(one, allow_unicode=True))))
    assert_result_or_one_line(lambda: prepare(file, valid / "cache"))


def spoilt_model(valid: Path, data: st.DataObject, name: str) -> Path:
    """The model with one spoilt JSON file; all others are linked."""
    folder = valid / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (valid / "model").iterdir():
        if file.name != name:
            (folder / file.name).hardlink_to(file)
    text = (valid / "model" / name).read_bytes()
    (folder / name).write_bytes(data.draw(text_or_damage(text, json.loads(text), json.dumps)))
    return folder


@fuzzed
@given(data=st.data())
def test_a_configuration(valid: Path, data: st.DataObject) -> None:
    folder = spoilt_model(valid, data, "config.json")
    assert_result_or_one_line(lambda: Decoder(open_checkpoint(str(folder)), torch.float32), str(folder))


@fuzzed
@given(data=st.data())
def test_an_index_of_shards(valid: Path, data: st.DataObject) -> None:
    folder = spoilt_model(valid, data, "model.safetensors.index.json")
    assert_result_or_one_line(lambda: Decoder(open_checkpoint(str(folder)), torch.float32), str(folder))


@fuzzed
@given(data=st.data())
def test_the_files_of_a_tokenizer(valid: Path, data: st.DataObject) -> None:
    folder = spoilt_model(valid, data, data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"])))

    def tokenize() -> None:
        tokenizer = DocumentTokenizer(str(folder))
        tokenizer.facts()
        tokenizer.tokenize([document for language in ("en", "hi") for document in some_documents(valid, language)])

    assert_result_or_one_line(tokenize, str(folder))


def some_documents(valid: Path, language: str) -> list[Any]:
    (shard,) = open_corpus(str(valid / "corpus"), [language]).shards[language]
    return list(next(shard.read([0])))[:5]


def texts_of(suffix: str) -> bytes:
    """Documents as a file of this kind has them."""
    lines = "".join(json.dumps({"text": one, "id": place}) + "\n" for place, one in enumerate(documents("sw", 30)))
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": documents("sw", 30), "id": range(30)}), sink, row_group_size=10)
        return sink.getvalue().to_pybytes()
    if suffix == ".txt":
        return "\n\n".join(documents("sw", 30)).encode()
    encode = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor().compress}
    return encode[suffix](lines.encode())


SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
LINE = {"text": documents("sw", 1)[0], "id": 5, "meta": {"url": "x", "more": [1, None]}}


@fuzzed
@given(data=st.data())
def test_a_file_of_text(valid: Path, data: st.DataObject) -> None:
    folder = valid / "spoilt-corpus"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    suffix = data.draw(st.sampled_from(SUFFIXES))
    content = data.draw(damaged(texts_of(suffix)))
    if suffix == ".jsonl":
        content = data.draw(st.one_of(st.just(content), text_or_damage(json.dumps(LINE).encode(), LINE, json.dumps)))
    (folder / f"sw{suffix}").write_bytes(content)

    def read() -> None:
        corpus = open_corpus(str(folder), ["sw"])
        tokenizer = DocumentTokenizer(str(valid / "model"))
        for shard in corpus.shards["sw"]:
            for read_documents in shard.read(range(shard.unit_count)):
                tokenizer.tokenize(list(read_documents))

    assert_result_or_one_line(read, "sw")
