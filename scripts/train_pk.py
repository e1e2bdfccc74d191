"""Reconstruct the lines of 50 simulated patients: the main job through the Python API. Copy it and change it."""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from neuralpk.callbacks import Dashboard, Report
from neuralpk.datamodules import PKDataModule
from neuralpk.tasks import LatentODETask

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=8, help="of 20 passes over the patients")
parser.add_argument("--field", default="neural", choices=["neural", "mechanistic", "hybrid", "free"])
arguments = parser.parse_args()

torch.set_num_threads(1)  # small matrices: a second thread only waits for the first
L.seed_everything(0)
data = PKDataModule(subjects=50, test_subjects=200, samples=8, context="random", passes_per_epoch=20)
task = LatentODETask(
    scaling=data.scaling(),
    dynamics={"field": arguments.field, "compartments": 2, "omega": 0.4, "omega_spread": 0.7},
    objective="iwae",
    draws=8,
    refine=2,
    solver={"rtol": 1e-4, "atol": 1e-4},
)
trainer = L.Trainer(
    max_epochs=arguments.epochs,
    accelerator="cpu",
    gradient_clip_val=5.0,
    logger=TensorBoardLogger("lightning_logs", name=None, default_hp_metric=False),
    callbacks=[
        ModelCheckpoint(monitor="val_loss", filename="best", save_last=True, save_on_exception=True),
        Dashboard(),
        Report(),
    ],
)
trainer.fit(task, data)
print(task.reconstruct(data.part("test")[:3]).individuals())
