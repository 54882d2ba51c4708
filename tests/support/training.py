"""A tiny corpus of the paper's 20 languages and a training on it, small enough for a test."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbs_ray.languages.facts import PAPER_LANGUAGES

LANGUAGES = list(PAPER_LANGUAGES)
STEPS, BATCH, LENGTH = 40, 3, 16


def write_training_corpus(folder: Path) -> Path:
    """Documents of words made up of each language's own few letters."""
    folder.mkdir()
    for number, language in enumerate(LANGUAGES):
        generator = np.random.default_rng(number)
        letters = [chr(0x61 + number), chr(0x3B1 + number), chr(0x905 + number)]
        texts = [
            " ".join("".join(generator.choice(letters, 4)) for _ in range(int(generator.integers(20, 60))))
            for _ in range(8)
        ]
        pq.write_table(pa.table({"text": texts}), folder / f"{language}.parquet")
    return folder


def start_training(corpus: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """40 steps on the CPU in a process of its own, one thread, a checkpoint every 5 steps."""
    sizes = ["--shape", "2m", "--tokens", str(STEPS * BATCH * LENGTH), "--batch", str(BATCH)]
    sizes += ["--sequence-length", str(LENGTH), "--vocabulary", "320", "--checkpoint-every", "5"]
    command = [sys.executable, "-m", "minis.train", str(corpus), str(out), *sizes]
    command += ["--device", "cpu", "--threads", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
