"""How alike languages are to a dense model, block by block: ``mbs similarity``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mbs_ray import __version__
from mbs_ray.cluster.activations.host_memory import host_memory
from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import check_ray, connected
from mbs_ray.compression.device import exact_forward, forward_device
from mbs_ray.driver.progress import Progress
from mbs_ray.errors import InputError
from mbs_ray.evaluation.language_angles import EXPERTS, Similarity, cluster, measure_similarity
from mbs_ray.evaluation.similarity_files import write_experts, write_matrices, write_vectors
from mbs_ray.evaluation.text_warnings import text_warnings
from mbs_ray.files import digest
from mbs_ray.languages.distribution import languages_of
from mbs_ray.model.decoder import Decoder
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.similarity_heatmap import angles_by_block, similarity_heatmap
from mbs_ray.report.increase_table import to_markdown
from mbs_ray.run.journal import Journal
from mbs_ray.run.microbatch import auto_microbatch
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.prepare import CheckedTexts, Model, open_model
from mbs_ray.text.corpus import Location, require_languages
from mbs_ray.text.segment_draw import draw_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.tracked_run import sweep_run
from mbs_ray.tracking.tracked_texts import dataset_input

EXPERIMENT = "similarity"
#: What a figure shows, by statistic.
_TITLES = {
    "diagonal": "input of block {}: mean x²",
    "full": "input of block {}: second moments",
    EXPERTS: "block {}: tokens by expert",
}
_COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SimilarityResult:
    """The measured similarity, its files, and whether MLflow has taken all of it."""

    similarity: Similarity
    files: list[Path]
    tracking_uri: str
    tracked: bool


def language_similarity(
    model: str,
    corpus: Location,
    *,
    revision: str | None,
    languages: str,
    segments: int,
    sequence_length: int,
    seed: int,
    compute_dtype: str,
    cluster: ClusterOptions,
    out: Path,
    progress: Progress,
) -> SimilarityResult:
    """Draw ``segments`` of each language and take them through the dense model in this process, block by block.

    Ray only draws the text: of ``cluster`` threads, device and address count. Raises :class:`InputError` before it is
    drawn where the model, the text, or the host's memory does not suffice.
    """
    asked = languages_of(model, languages, revision)
    require_languages(corpus, asked)
    if len(asked) < 2:
        raise InputError("--languages: similarity needs at least two")
    if compute_dtype not in _COMPUTE_DTYPES:
        raise InputError(f"--compute-dtype {compute_dtype}: there are {', '.join(_COMPUTE_DTYPES)}")
    check_ray(cluster.address)
    opened = open_model(model, revision, out / "cache")
    opened.check_length("--sequence-length", sequence_length)
    request = CheckedTexts(out / "cache").check(
        SegmentRequest(
            corpus=corpus,
            tokenizer=str(opened.checkpoint.folder),
            languages=asked,
            allocation=dict.fromkeys(asked, segments),
            sequence_length=sequence_length,
            seed=seed,
        )
    )
    device = forward_device(cluster.device).type
    dtype = Numerics(device, cluster.threads or torch.get_num_threads()).compute_dtype(
        compute_dtype, opened.decoder.stored_dtype
    )
    _check_room(opened, len(asked), len(asked) * segments * sequence_length, dtype)
    uri = default_tracking_uri(out)
    connection = MlflowConnection(uri, EXPERIMENT, out / "artifacts")
    with connected(cluster.address, cluster.threads or 1, partial(opened.read_through, progress.work)):
        progress.say(f"drawing {segments} segments of each of {len(asked)} languages")
        drawn = draw_segments(request, out / "segments")
        for warning in text_warnings([drawn.facts]):
            progress.say(warning)
    rows = drawn.read()
    token_ids = {
        language: torch.from_numpy(rows.token_ids[np.array(rows.language) == language].astype(np.int64))
        for language in drawn.allocation
    }
    with progress.steps(f"blocks of {opened.name}") as notify, exact_forward(cluster.threads):
        similarity = measure_similarity(
            Decoder(opened.checkpoint, getattr(torch, dtype), device),
            token_ids,
            auto_microbatch(sequence_length, device, opened.decoder),
            ActivationStore(MemoryTier(torch.device("cpu"))),
            notify,
        )
    key = digest(opened.fingerprint, request.fingerprint, dtype, device)
    folder = out / EXPERIMENT / f"{opened.name}-{key[:8]}"
    files = _write(similarity, opened.name, folder)
    params = {
        "model": model,
        "corpus": corpus,
        "languages": ",".join(similarity.languages),
        "segments": segments,
        "sequence_length": sequence_length,
        "seed": seed,
        "fingerprint": {"model": opened.fingerprint, "text": request.fingerprint},
        "resolved": {"compute_dtype": dtype, "device": device, "torch": torch.__version__},
        "version": {"mbs_ray": __version__},
    }
    tracked = _track(connection, opened.name, request, params, similarity, folder, files)
    return SimilarityResult(similarity, files, uri, tracked)


def _track(
    connection: MlflowConnection,
    model: str,
    request: SegmentRequest,
    params: Mapping[str, Any],
    similarity: Similarity,
    folder: Path,
    files: Sequence[Path],
) -> bool:
    """Log a run of the experiment, the same where this was measured before; return whether MLflow has taken all."""
    journal = Journal(folder / "journal.jsonl")
    journal.append_missing({block: similarity.metrics(block) for block in range(similarity.blocks)})
    run = sweep_run(
        connection, digest(str(folder)), f"{EXPERIMENT} {model}", params, {"mbs.folder": str(folder)}, journal=journal
    )
    text = dataset_input("similarity", request, "evaluation")
    run.enqueue(lambda client: client.log_inputs(run.run_id, [text]))
    for path in files:
        run.artifact(path, "figures" if path.suffix == ".png" else "reports")
    run.note(_note(model, similarity))
    run.finish("FINISHED")
    return run.sync()


def _note(model: str, similarity: Similarity) -> str:
    angles = to_markdown(similarity.degrees("diagonal", 0), digits=1)
    note = f"**Angles in degrees between mean x² of languages, input of block 0 of {model}**\n\n{angles}"
    if not similarity.routed:
        return note
    first = min(similarity.routed)
    used = to_markdown(similarity.degrees(EXPERTS, first), digits=1)
    return f"{note}\n\n**Angles in degrees between tokens by expert of languages, block {first}**\n\n{used}"


def _check_room(model: Model, languages: int, tokens: int, dtype: str) -> None:
    width = model.checkpoint.hidden_size
    needed = tokens * width * getattr(torch, dtype).itemsize + (languages + 1) * width**2 * 4
    free = host_memory().budget
    if needed > free:
        raise InputError(
            f"--segments: hidden states of {tokens:,} tokens and second moments of {languages} languages need "
            f"{needed / 2**30:.2f} GiB of host memory, {free / 2**30:.2f} GiB are free; take fewer of either"
        )


def _write(similarity: Similarity, model: str, folder: Path) -> list[Path]:
    """Write tables and figures, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "vectors.parquet", folder / "matrices.parquet"]
    write_vectors(files[0], similarity)
    write_matrices(files[1], similarity)
    if similarity.routed:
        files.append(folder / "experts.parquet")
        write_experts(files[-1], similarity)
    spans = []
    for statistic, blocks in similarity.measured.items():
        shown = (blocks[0], blocks[(len(blocks) - 1) // 2], blocks[-1])
        for block in blocks:
            degrees = similarity.degrees(statistic, block)
            pairs = degrees.to_numpy()[np.triu_indices(len(degrees), 1)]
            spans.append([statistic, block, pairs.min(), pairs.mean(), pairs.max()])
            # Of the blocks between, the matrices tell all.
            if block in shown:
                title = f"{model}, {_TITLES[statistic].format(block)}"
                halves = similarity.degrees_of_halves(statistic, block)
                figure = similarity_heatmap(degrees, halves, cluster(degrees), title)
                files.append(save_figure(figure, folder / "figures" / f"{statistic}-block-{block:05d}.png"))
    by_block = pd.DataFrame(spans, columns=["statistic", "block", "smallest", "mean", "largest"])
    figure = angles_by_block(by_block, f"{model}: angles between languages")
    return [*files, save_figure(figure, folder / "figures" / "blocks.png")]
