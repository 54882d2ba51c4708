"""Working memory of the methods, in bytes: formulas that the tests compare with what the methods really hold.

As torch's operations take it; kernels in C++ for CPUs take no more, but for a tile of 64 rows in each thread.
"""

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, OBC, OBQ, RTN, Magnitude, Method, SparseGPT, SparseGPTQ, Wanda
from mbs_ray.methods.factor import GATHERED, PANEL
from mbs_ray.methods.factor import LEAF as LEAF_OF_FACTOR
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.greedy import BUFFER_BYTES
from mbs_ray.methods.leaf import LEAF
from mbs_ray.methods.refine import unit_and_block

_FLOAT = 4
#: A scale and a zero point of a grid as float32, the group's range before any update, and what is kept of them.
_GRID_BYTES = 24


def factor_bytes(method: Method, columns: int) -> int:
    """Compute the bytes of the factor while a linear is solved; computing it takes :func:`preparing_bytes`."""
    return _FLOAT * columns**2 if isinstance(method, Factored) else 0


def preparing_bytes(method: Method, columns: int) -> int:
    """Compute the bytes that computing the factor takes, itself included."""
    if not isinstance(method, Factored):
        return 0
    ordered = isinstance(method, GPTQ) and method.activation_order
    return factor_bytes(method, columns) + _factoring(columns, ordered)


def _factoring(columns: int, ordered: bool) -> int:
    """Compute the bytes of a panel while it is factored: its later columns times their pivots, or a leaf."""
    gathering = 2 * GATHERED * columns if ordered else 0  # in its rows, then in its columns
    leaf = LEAF_OF_FACTOR * (columns - LEAF_OF_FACTOR) + 4 * LEAF_OF_FACTOR**2
    return _FLOAT * max(PANEL * (columns - PANEL), leaf, gathering)


def fitting_bytes(rows: int, columns: int, chooses: bool) -> int:
    """Compute the bytes of fitting a linear, without weights, moments, drifts and the fitted weight.

    ``chooses``: its strength is found, with the moment and the factor of those segments that are not held out.
    """
    factors = _FLOAT * columns**2 * (2 if chooses else 1)
    return factors + max(_factoring(columns, False), 3 * _FLOAT * rows * columns)


def solving_bytes(method: Method, rows: int, columns: int, itemsize: int) -> int:
    """Compute the peak bytes of :meth:`Method.compress`, result included, without weight, moment and factor.

    ``itemsize`` is that of the weight's dtype. Raises :class:`InputError` for a method without a formula.
    """
    weights = rows * columns
    match method:
        case GPTQ():
            # The float32 copy, the weight as written, codes; then the results, in the order of the columns.
            solving = (_FLOAT + itemsize + 1) * weights
            sorting = itemsize * weights if method.activation_order else 0
            passing = max(
                _final(itemsize, weights) + weights,
                sorting,
                _fitting_grids(method, rows, columns, itemsize),
                _refining(method, rows, columns, itemsize),
            )
            return solving + passing + _grids(method.group_size, rows, columns) + method.keep_zeros * weights
        case SparseGPTQ():
            solving = (_FLOAT + itemsize + 2) * weights
            masked = _FLOAT * rows * (method.group_size or columns)
            passing = max(
                _final(itemsize, weights) + weights,
                masked + _fitting_grids(method, rows, columns, itemsize),
                _updating(rows, min(method.block_size, columns), itemsize),
                _refining(method, rows, columns, itemsize),
            )
            return solving + passing + _grids(method.group_size, rows, columns)
        case SparseGPT():
            # The float32 copy, the weight as written, the mask; then a block's choice, or the result.
            masks = method.keep_zeros + (method.kept_of_group is None or method.kept_of_group[1] > LEAF)
            choosing = _updating(rows, min(method.block_size, columns), itemsize) if masks else 0
            passing = max(choosing, _final(itemsize, weights), _refining(method, rows, columns, itemsize))
            return (_FLOAT + itemsize + masks) * weights + passing
        case Wanda():
            return round({"n:m": 10.25, "share": 44.0}.get(_kind(method), 12.0) * weights)
        case Magnitude():
            kind = "n:m" if method.kept_of_group else "16 bits" if itemsize < _FLOAT else "32 bits"
            return round({"n:m": 2.25 + itemsize, "16 bits": 6.0, "32 bits": 8.0}[kind] * weights)
        case RTN():
            return (12 if itemsize == _FLOAT else 16) * weights + _grids(method.group_size, rows, columns)
        case OBC():
            return 2 * min(BUFFER_BYTES, 8 * rows * columns**2) + 40 * columns**2
        case OBQ():
            return min(BUFFER_BYTES, 8 * rows * columns**2) + 40 * columns**2
    raise InputError(f"{method.name}: no plan of its memory is known")


def _final(itemsize: int, weights: int) -> int:
    """Compute the bytes of the weight in its own order, which in float32 takes the place of the float32 copy."""
    return 0 if itemsize == _FLOAT else itemsize * weights


def _updating(rows: int, columns: int, itemsize: int) -> int:
    """Compute the bytes of columns as updated, and of what they are found from; selecting among them takes fewer."""
    times = 2 if itemsize == _FLOAT else 3
    return _FLOAT * max(times * rows * columns + columns**2, (times - 2) * rows * columns + 2 * columns**2)


def _fitting_grids(method: GPTQ | SparseGPTQ, rows: int, columns: int, itemsize: int) -> int:
    """Compute the bytes of a group's weights as updated or gathered, and of its errors, as float32 and as rounded."""
    static = isinstance(method, GPTQ) and method.activation_order
    group = method.group_size or columns
    of_weight = _FLOAT if static or method.group_size is not None else 0
    if method.clip_search or not static:
        of_weight += _FLOAT + (0 if itemsize == _FLOAT else itemsize)
    updating = 0 if static or method.group_size is None else _updating(rows, group, itemsize)
    return max(updating, of_weight * rows * group)


def _refining(method: SparseGPT | GPTQ | SparseGPTQ, rows: int, columns: int, itemsize: int) -> int:
    """Compute the bytes of a block of coordinate descent: its part of the Hessian, its gradient and its changes."""
    if method.refine == 0:
        return 0
    group, of_weight = None, 3 * _FLOAT + itemsize
    if not isinstance(method, SparseGPT):
        group = method.group_size or columns
        of_weight = 5 * _FLOAT
    unit, block = (min(one, columns) for one in unit_and_block(group))
    return _FLOAT * block * (columns + rows) + of_weight * unit * rows


def _kind(method: Wanda) -> str:
    return "n:m" if method.kept_of_group else method.scope


def _grids(group_size: int | None, rows: int, columns: int) -> int:
    return _GRID_BYTES * rows * (1 if group_size is None else columns // group_size)
