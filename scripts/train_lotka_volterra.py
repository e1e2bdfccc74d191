"""Estimate the rates of 50 simulated predator–prey series through the Python API. Copy it and change it."""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from neuralpk.callbacks import Dashboard, LastCheckpoint, Report
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule
from neuralpk.dynamics import HybridDynamics, LotkaVolterra, NeuralField
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import LogNormalError
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

DYNAMICS = {
    "mechanistic": LotkaVolterra,
    "free": lambda: NeuralField(LotkaVolterra()),
    "hybrid": lambda: HybridDynamics(LotkaVolterra()),
}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=80, help="number of epochs, each of 5 passes over the series")
parser.add_argument("--dynamics", default="mechanistic", choices=list(DYNAMICS))
arguments = parser.parse_args()

torch.set_num_threads(1)  # the matrices are too small for a second thread
L.seed_everything(0)
data = SimulatedLotkaVolterraDataModule(subjects=50, test_subjects=50, passes_per_epoch=5)
task = LatentTask(
    DYNAMICS[arguments.dynamics](),
    parameters=PopulationParameters(omega=0.15),
    error=LogNormalError(),
    encoder=SetEncoder(),
    objective=ELBO(warmup=0.5),
    engine=Auto(rtol=1e-4, atol=1e-4),
)
trainer = L.Trainer(
    max_epochs=arguments.epochs,
    accelerator="cpu",
    gradient_clip_val=5.0,
    logger=TensorBoardLogger("lightning_logs", name=None, default_hp_metric=False),
    callbacks=[
        LastCheckpoint(),
        ModelCheckpoint(monitor="val_loss", filename="best"),
        Dashboard(),
        Report(),
    ],
)
trainer.fit(task, data)
print(task.reconstruct(data.part("test")[:3]).individuals())
