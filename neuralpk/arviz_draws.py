"""Posterior draws of patients and of the population as ArviZ holds them, for its plots and diagnostics."""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Any

import numpy as np
import torch

from neuralpk.cohort import FloatArray
from neuralpk.individual_estimates import PosteriorDraws


@torch.no_grad()
def to_arviz(draws: PosteriorDraws) -> Any:
    """The draws as an ``arviz.InferenceData``, or, with ArviZ 1 or later, as an ``xarray.DataTree``.

    Groups:

    - ``posterior``: every individual parameter and random effect, ``[chain, draw, subject]`` with one chain, those of
      the population (``population CL``, ``population omega CL``, …) under each draw, ``[chain, draw]``, where the fit
      knows how uncertain they are.
    - ``observed_data``: the measured values, ``[record]``; a censored one is its limit.
    - ``constant_data``: time, endpoint (from 1), and whether the value is censored, ``[record]``.

    A subject that could not be drawn has NaN.

    Args:
        draws: of `neuralpk.saved_model.SavedModel.draw` or `neuralpk.task.LatentTask.draw`.

    Raises:
        ImportError: ArviZ is not installed.

    Example:
        >>> import arviz
        >>> data = to_arviz(read_model("pop.yaml").draw(cohort))  # doctest: +SKIP
        >>> arviz.summary(data, var_names=["CL"])  # doctest: +SKIP
    """
    try:
        version = metadata.version("arviz")
        import xarray
    except (metadata.PackageNotFoundError, ImportError) as error:
        raise ImportError("draws for ArviZ need it: pip install 'neuralpk[bayes]'") from error
    ids, batch = np.asarray(draws.batch.ids), draws.batch
    parts: dict[str, list[FloatArray]] = {}
    population: dict[str, list[FloatArray]] = {}
    for model, z, repeated in draws.flat():
        values = model.individual_parameters(z, repeated)
        eta = zip(model.population.varying, model.population.eta(z).unbind(-1), strict=True)
        values |= {f"ETA_{name}": one for name, one in eta}
        count = len(repeated) // len(ids)
        for name, value in values.items():
            parts.setdefault(name, []).append(value.double().cpu().numpy().reshape(len(ids), count).T)
        for name, number in (model.reported_values() if len(draws.models) > 1 else {}).items():
            population.setdefault(f"population {name}", []).append(np.full(count, number))
    posterior: dict[str, tuple[tuple[str, ...], FloatArray]] = {}
    posterior |= {name: (("chain", "draw", "subject"), np.concatenate(one)[None]) for name, one in parts.items()}
    posterior |= {name: (("chain", "draw"), np.concatenate(one)[None]) for name, one in population.items()}
    number = len(next(iter(posterior.values()))[1][0])
    subject, column = (place.cpu().numpy() for place in batch.observed.nonzero(as_tuple=True))

    def of_records(values: torch.Tensor) -> tuple[str, FloatArray]:
        return "record", values.cpu().numpy()[subject, column]

    constant = {
        "time": of_records(batch.on_data_clock(batch.time)),
        "endpoint": of_records(batch.endpoint + 1),
        "censored": of_records(batch.censored),
    }
    records = {"record": np.arange(len(subject)), "record_subject": ("record", ids[subject])}
    made_by = {"created_by": f"neuralpk {metadata.version('neuralpk')}"}
    groups: dict[str, Any] = {
        "posterior": xarray.Dataset(
            posterior, {"chain": [0], "draw": np.arange(number), "subject": ids}, attrs=made_by
        ),
        "observed_data": xarray.Dataset({"value": of_records(batch.value)}, records, attrs=made_by),
        "constant_data": xarray.Dataset(constant, records, attrs=made_by),
    }
    if int(version.partition(".")[0]) >= 1:
        return xarray.DataTree.from_dict(groups)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # news of ArviZ 1, at every import
        from arviz import InferenceData
    return InferenceData(**groups)
