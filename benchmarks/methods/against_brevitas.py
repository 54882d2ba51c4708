"""Our fit to the dense model beside Qronos and GPTQ of brevitas 0.13.4, on the same weight and sums.

``python benchmarks/methods/against_brevitas.py PYTHON``; PYTHON is that of an environment with torch, safetensors and
brevitas. Errors are ‖W X − Ŵ X̃‖² over ‖W X‖², of a random layer whose inputs X̃ are X with noise, and of other tokens of
the same kind; symmetric grids, one per row.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mbs_ray.methods import GPTQ, Drift, Moment, Statistic, fitted

_CALLS = Path(__file__).with_name("brevitas_calls.py")
_ROWS, _COLUMNS, _TOKENS = 512, 1024, 8192
_NOISE = 0.2
#: Theirs adds a millionth of the largest eigenvalue.
_LEAST_DAMPING = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(_COLUMNS, _COLUMNS, generator=generator) / _COLUMNS**0.5 + torch.eye(_COLUMNS) / 2
    mix *= torch.logspace(-0.5, 0.5, _COLUMNS)
    weight = torch.randn(_ROWS, _COLUMNS, generator=generator)
    dense, other = (torch.randn(_TOKENS, _COLUMNS, generator=generator) @ mix for _ in range(2))
    given, unseen = (
        one + _NOISE * dense.std() * torch.randn(_TOKENS, _COLUMNS, generator=generator) for one in (dense, other)
    )

    def errors(final: torch.Tensor) -> str:
        own = (
            float((weight @ x.t() - final @ y.t()).square().sum() / (weight @ x.t()).square().sum())
            for x, y in ((dense, given), (other, unseen))
        )
        return " | ".join(f"{one:.5f}" for one in own)

    moment, drift = Moment.zeros(_COLUMNS, Statistic.FULL), Drift.zeros(_ROWS, _COLUMNS)
    moment.add(given)
    drift.add((dense - given) @ weight.t(), given)
    print("| bits | weight | calibration | other tokens |\n|---|---|---:|---:|")
    for bits in (4, 3):
        solver = GPTQ(bits=bits, symmetric=True)
        for strength, damping in ((0.0, 0.1), (0.5, 0.1), (1.0, 0.1), (1.0, _LEAST_DAMPING)):
            aim = fitted({"w": weight}, moment, {"w": drift}, {"w": strength}, damping=damping)["w"]
            final = solver.compress(aim, moment).weight
            print(f"| {bits} | ours, strength {strength:g}, λ {damping:g} | {errors(final)} |")
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder, "given.safetensors"), Path(folder, "theirs.safetensors")
            save_file({"weight": weight, "hessian": given.t() @ given, "cross": dense.t() @ given}, file)
            subprocess.run([arguments.python, _CALLS, file, str(bits), out], check=True, capture_output=True)
            for name, final in load_file(out).items():
                if final.shape == weight.shape:
                    print(f"| {bits} | brevitas, {name} | {errors(final)} |", flush=True)


if __name__ == "__main__":
    main()
