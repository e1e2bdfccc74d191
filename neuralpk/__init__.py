"""Neural ordinary differential equations for pharmacokinetics, on PyTorch Lightning.

The names here are loaded when they are first used, so that ``import neuralpk`` takes no time.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralpk.arviz_draws import to_arviz
    from neuralpk.cohort import Cohort, Dose, Subject
    from neuralpk.datamodules import SimulatedPKDataModule, TableDataModule
    from neuralpk.dynamics import CompartmentModel, Dynamics, HybridDynamics, NeuralCompartments
    from neuralpk.encoders import Encoder, RecurrentEncoder, SetEncoder
    from neuralpk.evaluation import Evaluation, evaluate
    from neuralpk.fitting import FittedModel, fit
    from neuralpk.noncompartmental import nca
    from neuralpk.objectives import ELBO, MarginalLikelihood, Objective, SquaredError
    from neuralpk.parameters import PopulationParameters
    from neuralpk.population_model import PopulationModel
    from neuralpk.report import write_report
    from neuralpk.residual_error import (
        AdditiveError,
        CombinedError,
        ErrorByEndpoint,
        LogNormalError,
        ProportionalError,
        ResidualError,
    )
    from neuralpk.rxode2 import export_rxode2, import_rxode2
    from neuralpk.saved_model import read_model
    from neuralpk.tables import read_table, write_table
    from neuralpk.task import LatentTask

__version__ = metadata.version("neuralpk")

_MODULES = {
    "arviz_draws": ("to_arviz",),
    "cohort": ("Cohort", "Dose", "Subject"),
    "datamodules": ("SimulatedPKDataModule", "TableDataModule"),
    "dynamics": ("CompartmentModel", "Dynamics", "HybridDynamics", "NeuralCompartments"),
    "encoders": ("Encoder", "RecurrentEncoder", "SetEncoder"),
    "evaluation": ("Evaluation", "evaluate"),
    "fitting": ("FittedModel", "fit"),
    "noncompartmental": ("nca",),
    "objectives": ("ELBO", "MarginalLikelihood", "Objective", "SquaredError"),
    "parameters": ("PopulationParameters",),
    "population_model": ("PopulationModel",),
    "report": ("write_report",),
    "residual_error": (
        "AdditiveError",
        "CombinedError",
        "ErrorByEndpoint",
        "LogNormalError",
        "ProportionalError",
        "ResidualError",
    ),
    "rxode2": ("export_rxode2", "import_rxode2"),
    "saved_model": ("read_model",),
    "tables": ("read_table", "write_table"),
    "task": ("LatentTask",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ELBO",
    "AdditiveError",
    "Cohort",
    "CombinedError",
    "CompartmentModel",
    "Dose",
    "Dynamics",
    "Encoder",
    "ErrorByEndpoint",
    "Evaluation",
    "FittedModel",
    "HybridDynamics",
    "LatentTask",
    "LogNormalError",
    "MarginalLikelihood",
    "NeuralCompartments",
    "Objective",
    "PopulationModel",
    "PopulationParameters",
    "ProportionalError",
    "RecurrentEncoder",
    "ResidualError",
    "SetEncoder",
    "SimulatedPKDataModule",
    "SquaredError",
    "Subject",
    "TableDataModule",
    "evaluate",
    "export_rxode2",
    "fit",
    "import_rxode2",
    "nca",
    "read_model",
    "read_table",
    "to_arviz",
    "write_report",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"neuralpk.{_HOME[name]}"), name)
    raise AttributeError(f"module 'neuralpk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
