"""Estimate 50 simulated patients: the main job through the Python API. Copy it and change it."""

import argparse

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from neuralpk.callbacks import BestCheckpoint, Dashboard, LastCheckpoint, Report
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, HybridDynamics, NeuralCompartments, NeuralField
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

DYNAMICS = {
    "neural": lambda: NeuralCompartments(CompartmentModel(2)),
    "mechanistic": lambda: CompartmentModel(2),
    "hybrid": lambda: HybridDynamics(CompartmentModel(2)),
    "free": NeuralField,
}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=8, help="number of epochs, each of 20 passes over the patients")
parser.add_argument("--dynamics", default="neural", choices=list(DYNAMICS))
arguments = parser.parse_args()

torch.set_num_threads(1)  # the matrices are too small for a second thread
L.seed_everything(0)
data = SimulatedPKDataModule(subjects=50, test_subjects=200, samples=8, context="random", passes_per_epoch=20)
task = LatentTask(
    DYNAMICS[arguments.dynamics](),
    parameters=PopulationParameters(omega=0.4, omega_prior_sd=0.7),
    encoder=SetEncoder(),
    objective=MarginalLikelihood(),
    engine=Auto(rtol=1e-4, atol=1e-4),
)
trainer = L.Trainer(
    max_epochs=arguments.epochs,
    accelerator="cpu",
    gradient_clip_val=5.0,
    logger=TensorBoardLogger("lightning_logs", name=None, default_hp_metric=False),
    callbacks=[
        LastCheckpoint(),
        BestCheckpoint(),
        Dashboard(),
        Report(),
    ],
)
trainer.fit(task, data)
print(task.reconstruct(data.part("test")[:3]).individuals())
