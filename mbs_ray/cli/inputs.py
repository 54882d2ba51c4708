"""Arguments of a command line converted to what the library takes, and its errors to one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from errno import ENOSPC
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mbs_ray.cli.interruption import told_of_interruption
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.errors import InputError, LeaseLostError, StageDiedError

if TYPE_CHECKING:
    from mbs_ray.cluster.stage_pool import StagePool

TEXT_COLUMN = "text"
#: Connects to Ray and starts stages.
Begin = Callable[[ClusterOptions], "StagePool"]


def given(**options: Any) -> dict[str, Any]:
    """Keep the options that are given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def model_given(model: str) -> str:
    """Make a model's folder absolute; return a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def corpus_given(folder: Path, text_column: str, chat: str | None = None) -> str | dict[str, Any]:
    """A corpus as sweep files have it: the folder alone, where its text is in the usual column."""
    return with_text_column(str(folder.resolve()), text_column, chat)


def with_text_column(path: str, text_column: str, chat: str | None = None) -> str | dict[str, Any]:
    """Return a resolved folder as a corpus whose text, or conversations, are in this column."""
    named = {} if text_column == TEXT_COLUMN else {"text_column": text_column}
    named |= given(chat=chat)
    return {"folder": path, **named} if named else path


def evaluation_sets(
    folders: list[Path], segments: int | None, text_column: str, chat: str | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluation sets named after their folders."""
    sets: dict[str, dict[str, Any]] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in sets:
            raise InputError(f"{folder}: another evaluation folder is named {name} too; rename one")
        sets[name] = {"corpus": corpus_given(folder, text_column, chat), "segments": segments}
    return sets


def absolute(out: Path) -> Path:
    """Make ``--out`` absolute; inside a Ray job, whose working directory is a temporary copy, it must be so already."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not out.is_absolute():
        raise InputError(f"--out {out}: inside a Ray job give an absolute folder; the job's own is thrown away")
    return out.resolve()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Say in one line what went wrong: exit code 2 for bad input, 1 for what happened meanwhile, 130 after Ctrl-C."""
    try:
        with told_of_interruption(lambda: "the same command begins again, with what it has kept"):
            yield
    except (InputError, LeaseLostError, StageDiedError) as error:
        _print_error(str(error))
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
    except OSError as error:
        if error.filename is None:
            raise
        # No fault of a program's: a full disk, a folder that may not be read, a name that is too long.
        _print_error(f"{error.filename}: {error.strerror}")
        raise typer.Exit(1 if error.errno == ENOSPC else 2) from None


@contextmanager
def on_ray(address: str | None) -> Iterator[Begin]:
    """Do as :func:`one_line_errors`; where there is no Ray to work on, say so before torch is imported, for seconds.

    The function that is provided connects once it is known what is asked of the cluster, and lends stages that start
    while models and text are still looked at. Ray is left when an error has been printed.
    """
    with ExitStack() as until_printed, one_line_errors():
        from mbs_ray.cluster.connect import check_ray

        check_ray(address)
        yield partial(_started_stages, until_printed)


def _started_stages(until_printed: ExitStack, asked: ClusterOptions) -> "StagePool":
    from mbs_ray.cluster.connect import connected

    # Importing it loads transformers, for seconds in which Ray starts.
    load = partial(import_module, "mbs_ray.cluster.stage_pool")
    until_printed.enter_context(connected(asked.address, asked.cpus, load))
    from mbs_ray.cluster.stage_pool import StagePool

    pool = until_printed.enter_context(StagePool())
    pool.start_ahead(asked)
    return pool


def _print_error(line: str) -> None:
    """Print it on one line, whatever line breaks names have in them."""
    # Not by typer, which writes UTF-8 to terminals that say they know ASCII alone.
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
