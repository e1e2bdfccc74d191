"""Fields that are multilayer perceptrons, as compiled fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from neuralpk.dynamics import Perceptron
from neuralpk.solve.compiled import perceptron as kernel
from neuralpk.solve.compiled.steps import TSIT5
from neuralpk.solve.compiled_field import Array, CompiledField, as_array
from neuralpk.solve.tsit5_coefficients import PERCEPTRON_STIFF_STEPS

_ACTIVATIONS = {"tanh": kernel.TANH, "silu": kernel.SILU, "softplus": kernel.SOFTPLUS}


def _filled(array: Array, *sizes: int) -> Array:
    """The array with zeros after it, each side up to a multiple of its size."""
    shape = tuple(side + -side % size for side, size in zip(array.shape, sizes, strict=True))
    if shape == array.shape:
        return np.ascontiguousarray(array)
    out = np.zeros(shape, array.dtype)
    out[tuple(slice(side) for side in array.shape)] = array
    return out


def _rows(tensor: Tensor | None, dtype: Any, sides: int) -> Array:
    """``[subject, (period,) …]`` as ``[subject·period, …]``; no row where the tensor is None."""
    if tensor is None:
        return np.zeros((0,) * (sides + 1), dtype)
    return as_array(tensor.reshape(-1, *tensor.shape[tensor.dim() - sides :]))


def _network(form: Perceptron) -> kernel.Network:
    first, *hidden, last = (as_array(weight) for weight in form.weights)
    *bias, last_bias = (as_array(b) for b in form.biases)
    width, kind = first.shape[0] + -first.shape[0] % 16, first.dtype
    stacked = np.zeros((len(hidden), width, width), kind)
    biases = np.zeros((len(hidden), width), kind)
    for k, (weight, b) in enumerate(zip(hidden, bias, strict=True)):
        stacked[k, : weight.shape[0], : weight.shape[1]] = weight
        biases[k, : len(b)] = b
    flows = np.array(form.flows, np.int64).reshape(-1, 2)
    return kernel.Network(
        shift=_filled(_rows(form.shift, kind, 1), 1, 16),
        first=_filled(first.T, 4, 16),
        hidden=np.ascontiguousarray(stacked.transpose(0, 2, 1)),
        hidden_back=stacked,
        bias=biases,
        last=_filled(last, 4, 16),
        last_bias=last_bias,
        matrix=_rows(form.matrix, kind, 2),
        base=_rows(form.base, kind, 1),
        source=np.ascontiguousarray(flows[:, 0]),
        destination=np.ascontiguousarray(flows[:, 1]),
        activation=_ACTIVATIONS[form.activation],
        scale=0.0 if form.scale is None else float(form.scale),
    )


class PerceptronField(CompiledField):
    """A `Perceptron` whose matrices multiply blocks of subjects, in explicit steps."""

    method, stiff_steps = TSIT5, PERCEPTRON_STIFF_STEPS

    def __init__(self, form: Perceptron) -> None:
        self.form, self.arrays = form, _network(form)
        self.tensors = (form.shift, form.matrix, form.base, *form.weights, *form.biases)
        self.own = {name: getattr(self.arrays, name) for name in ("shift", "matrix", "base")}
        self.shared = {name: getattr(self.arrays, name) for name in ("first", "hidden", "bias", "last", "last_bias")}

    def finite(self, subjects: int) -> Array:
        finite: Array = np.isfinite(self.arrays.shift.reshape(subjects, -1)).all(axis=1)
        return finite

    def gradients(self, **arrays: Array) -> kernel.Gradients:
        return kernel.Gradients(**arrays)

    def to_tensors(self, own: Mapping[str, Array], shared: Mapping[str, Array]) -> list[Array | None]:
        form = self.form
        first, *hidden, last = form.weights
        weights = [shared["first"].T[: first.shape[0], : first.shape[1]]]
        weights += [w.T[: h.shape[0], : h.shape[1]] for w, h in zip(shared["hidden"], hidden, strict=True)]
        weights += [shared["last"][: last.shape[0], : last.shape[1]]]
        biases = [b[: len(h)] for b, h in zip(shared["bias"], form.biases, strict=False)] + [shared["last_bias"]]
        shift = own["shift"][:, : form.shift.shape[-1]].reshape(form.shift.shape)
        optional = [
            None if tensor is None else own[name].reshape(tensor.shape)
            for name, tensor in (("matrix", form.matrix), ("base", form.base))
        ]
        return [shift, *optional, *weights, *biases]
