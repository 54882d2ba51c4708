"""The signature of a run, all that can change a bit of it; and whether an earlier command has finished the run."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from mbs_ray.methods import ARITHMETIC, Factored, Method, method_spec
from mbs_ray.methods.kernel import least_columns
from mbs_ray.run.directory import METRICS
from mbs_ray.run.mixture_checks import has_mixtures
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.sweep_folders import SweepFolders


def forward_fields(run: PreparedRun, numerics: Numerics) -> dict[str, Any]:
    """Collect the :data:`~mbs_ray.run.sweep_folders.FORWARD_FIELDS`: all that can change a bit of a model's forward."""
    # Threads of the host change no bit of what a GPU computes.
    of_device = {"gpu": numerics.gpu} if numerics.device == "cuda" else {"threads": numerics.threads}
    return {
        "compute_dtype": numerics.compute_dtype(run.spec.compute_dtype, run.model.decoder.stored_dtype),
        "microbatch": run.microbatch,
        "device": numerics.device,
        **of_device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def signature(run: PreparedRun, numerics: Numerics, replicas: int) -> dict[str, Any]:
    """Collect all that can change a bit of the run's weights, and whether its reports hold the error of each language.

    The latter changes no bit, but blocks that were finished without it cannot be measured any more.
    """
    return {
        "model": run.model.fingerprint,
        "calibration": run.calibration.fingerprint,
        "method": _signed(run.spec.method),
        **_statistics(run),
        **({} if run.spec.fit_to is None else {"fit_to": run.spec.fit_to.model_dump()}),
        **({} if run.amounts is None else {"budget": run.amounts.plain()}),
        **({"expert_tokens": run.spec.expert_tokens} if has_mixtures(run.model.decoder) else {}),
        "true_sequential": run.spec.true_sequential,
        "per_language": run.spec.per_language,
        "replicas": replicas,
        "arithmetic": ARITHMETIC,
        **({"kernel": numerics.kernel} if _meets_kernel(run, numerics.device) else {}),
        **forward_fields(run, numerics),
    }


def finished_result(folders: SweepFolders, run: PreparedRun) -> Mapping[str, Any] | None:
    """Read the result that an earlier command left; None where the run, or one of its evaluations, is not done."""
    result = folders.run(run.label).result()
    wanted = {name: text.fingerprint for name, text in run.evaluation.items()}
    if result is None or result["evaluation"] != wanted:
        return None
    # Weights that were removed are computed again where they are wanted after all.
    return None if run.spec.keep == "checkpoint" and result.get("keep") == METRICS else result


def _signed(method: Method) -> dict[str, Any]:
    """Describe a method, without what runs begun before it was there do not have."""
    return {field: value for field, value in method_spec(method).items() if (field, value) != ("refine", 0)}


def _meets_kernel(run: PreparedRun, device: str) -> bool:
    """Return whether a kernel, where there is one, solves some linears, or sums what they are fitted by."""
    if device == "cpu" and run.spec.fit_to is not None:  # full moments, whatever the method
        return True
    decoder, least = run.model.decoder, least_columns(device)
    shapes = (shape for index in range(decoder.blocks) for shape in decoder.linears(index).values())
    return isinstance(run.spec.method, Factored) and any(columns >= least for _, columns in shapes)


def _statistics(run: PreparedRun) -> dict[str, Any]:
    """Describe which moments are used; the text of a pool is in the fingerprint of the calibration."""
    if run.weights is None:
        return {"statistics": "propagated"}
    return {"statistics": "dense", "weights": run.shares}
