"""Fields that were translated from torch, as compiled fields."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from neuralpk.dynamics import Dynamics
from neuralpk.solve.compiled import equations as kernel
from neuralpk.solve.compiled.steps import RODAS5P, TSIT5
from neuralpk.solve.compiled_field import Array, CompiledField, as_array
from neuralpk.solve.field_translation import Translation
from neuralpk.solve.tsit5_coefficients import COMPILED_STIFF_STEPS


class EquationField(CompiledField):
    """A translated field with the parameters of its subjects.

    Args:
        translation: the compiled field.
        dynamics: where its weights are.
        theta: ``[subject, period, parameter]``.
        implicit: whether it takes implicit steps; the translation then has code for them.
    """

    stiff_steps = COMPILED_STIFF_STEPS

    def __init__(self, translation: Translation, dynamics: Dynamics, theta: Tensor, implicit: bool = False) -> None:
        weights = dict(dynamics.named_parameters()) if translation.weights else {}
        used = [weights[name] for name in translation.weights]
        self.tensors = (theta, *used)
        own = as_array(theta).reshape(theta.shape[0] * theta.shape[1], theta.shape[2]).astype(np.float64, copy=False)
        flat = [as_array(weight).ravel().astype(np.float64, copy=False) for weight in used]
        shared = np.concatenate(flat) if flat else np.zeros(0)
        code = translation.implicit if implicit else translation.code
        assert code is not None
        self.method = RODAS5P if implicit else TSIT5
        self.arrays = kernel.Equations(code.slope, code.step, code.pull_step, own, shared)
        self.own, self.shared = {"own": own}, {"shared": shared}
        self.translation = translation  # it holds the memory of the code

    def finite(self, subjects: int) -> Array:
        finite: Array = np.isfinite(self.arrays.own.reshape(subjects, -1)).all(axis=1)
        return finite

    def gradients(self, **arrays: Array) -> kernel.Gradients:
        return kernel.Gradients(**arrays)

    def to_tensors(self, own: Mapping[str, Array], shared: Mapping[str, Array]) -> list[Array | None]:
        theta, *weights = (tensor for tensor in self.tensors if tensor is not None)
        kind = as_array(theta).dtype
        found: list[Array | None] = [own["own"].reshape(theta.shape).astype(kind, copy=False)]
        first = 0
        for weight in weights:
            part = shared["shared"][first : first + weight.numel()]
            found.append(part.reshape(weight.shape).astype(kind, copy=False))
            first += weight.numel()
        return found
