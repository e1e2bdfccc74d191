"""Recover the rates of 50 simulated predator–prey series through the Python API. Copy it and change it."""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from neuralpk.callbacks import Dashboard, Report
from neuralpk.datamodules import LotkaVolterraDataModule
from neuralpk.tasks import LatentODETask

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=80, help="of 5 passes over the series")
parser.add_argument("--field", default="mechanistic", choices=["mechanistic", "free", "hybrid"])
arguments = parser.parse_args()

torch.set_num_threads(1)  # small matrices: a second thread only waits for the first
L.seed_everything(0)
data = LotkaVolterraDataModule(subjects=50, test_subjects=50, passes_per_epoch=5)
task = LatentODETask(
    scaling=data.scaling(),
    dynamics={"system": "lotka_volterra", "field": arguments.field, "omega": 0.15},
    objective="elbo",
    error="log_normal",
    warmup=0.5,
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
