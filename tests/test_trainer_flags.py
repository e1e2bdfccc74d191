"""Every argument of Lightning's trainer: it works for ``fit``, or is refused in one sentence before the training."""

from __future__ import annotations

import inspect
from pathlib import Path

import lightning as L
import pytest
import torch

from neuralpk.callbacks import Dashboard, Report
from neuralpk.cli import main, training
from neuralpk.datamodules import SimulatedPKDataModule

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on each flag

CONFIG = f"""
data:
  class_path: {SimulatedPKDataModule.__module__}.{SimulatedPKDataModule.__qualname__}
  init_args: {{subjects: 6, test_subjects: 0, samples: 5, batch_size: 3}}
model:
  dynamics: CompartmentModel
  objective: {{class_path: MarginalLikelihood, init_args: {{draws: 4, map_steps: 2}}}}
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
"""
GPU = torch.cuda.is_available()
WORKS = ""
OF_THE_TASK = "32-true"  # a refusal that names the precision to use, by the task

# value on the command line -> what is said when it is refused
FLAGS: dict[str, dict[str, str]] = {
    "accelerator": {"cpu": WORKS, "auto": WORKS} | ({} if GPU else {"gpu": "this machine has none"}),
    "strategy": {"auto": WORKS, "ddp": WORKS, "dpp": "dpp", "SingleDeviceStrategy": WORKS},
    "devices": {"1": WORKS, "auto": WORKS, "0": "devices"},
    "num_nodes": {"1": WORKS},
    "precision": {
        "32-true": WORKS,
        "64-true": WORKS,
        "16-mixed": WORKS,
        "bf16-mixed": WORKS,
        "16-true": OF_THE_TASK,
        "bf16-true": OF_THE_TASK,
    },
    "logger": {"false": WORKS, "true": WORKS, "CSVLogger": WORKS, "TensorBoardLogger": WORKS},
    "callbacks": {"LearningRateMonitor": WORKS, "[LearningRateMonitor, ModelCheckpoint]": WORKS},
    "fast_dev_run": {"true": WORKS, "2": WORKS},
    "max_epochs": {"2": WORKS, "-2": "max_epochs"},
    "min_epochs": {"1": WORKS},
    "max_steps": {"1": WORKS},
    "min_steps": {"1": WORKS},
    "max_time": {"00:00:10:00": WORKS, "{minutes: 5}": WORKS},
    "limit_train_batches": {"1": WORKS, "0.5": WORKS},
    "limit_val_batches": {"1": WORKS, "0": WORKS},
    "limit_test_batches": {"1": WORKS},
    "limit_predict_batches": {"1": WORKS},
    "overfit_batches": {"1": WORKS, "0.5": WORKS},
    "val_check_interval": {"1": WORKS, "0.5": WORKS, "5": "val_check_interval"},
    "check_val_every_n_epoch": {"2": WORKS},
    "num_sanity_val_steps": {"0": WORKS, "1": WORKS},
    "log_every_n_steps": {"1": WORKS},
    "enable_checkpointing": {"false": WORKS, "true": WORKS},
    "enable_progress_bar": {"true": WORKS, "false": WORKS},
    "enable_model_summary": {"true": WORKS},
    "accumulate_grad_batches": {"2": WORKS, "0": "accumulate_grad_batches"},
    "gradient_clip_val": {"1.0": WORKS},
    "gradient_clip_algorithm": {"value": WORKS, "norm": WORKS, "size": "gradient_clip_algorithm"},
    "deterministic": {"true": WORKS, "warn": WORKS},
    "benchmark": {"true": WORKS},
    "inference_mode": {"false": WORKS},
    "use_distributed_sampler": {"false": WORKS},
    "profiler": {"simple": WORKS, "SimpleProfiler": WORKS, "nobody": "profiler"},
    "detect_anomaly": {"true": WORKS},
    "barebones": {"true": WORKS},
    "plugins": {"TorchCheckpointIO": WORKS},
    "sync_batchnorm": {"true": WORKS},
    "reload_dataloaders_every_n_epochs": {"1": WORKS},
    "default_root_dir": {"elsewhere": WORKS},
    "enable_autolog_hparams": {"false": WORKS},
    "model_registry": {"mine": WORKS},
}
TOGETHER = {
    "--trainer.gradient_clip_val 1 --trainer.precision bf16-mixed": WORKS,
    "--trainer.gradient_clip_val 1 --trainer.precision 16-mixed": WORKS,
    "--trainer.gradient_clip_val 1 --trainer.gradient_clip_algorithm value": WORKS,
    "--trainer.enable_checkpointing false --trainer.callbacks+ ModelCheckpoint": "ModelCheckpoint",
    "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.every_n_epochs 1": WORKS,
    "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor val_loss": WORKS,
    "--trainer.callbacks+ StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01": WORKS,
    "--trainer.enable_progress_bar true --trainer.callbacks+ TQDMProgressBar": WORKS,
    "--trainer.callbacks+ TQDMProgressBar": "enable_progress_bar=False",
    "--trainer.barebones true --trainer.logger CSVLogger": "barebones",
    "--trainer.max_epochs 3 --trainer.max_steps 2 --trainer.check_val_every_n_epoch 2": WORKS,
    "--optimizer AdamW --optimizer.lr 0.003": WORKS,
    "--optimizer Adam --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val_loss": WORKS,
    "--optimizer SGD --optimizer.lr 0.01 --lr_scheduler StepLR --lr_scheduler.step_size 1": WORKS,
}
CASES = [f"--trainer.{name}|{value}" for name, cases in FLAGS.items() for value in cases]


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the figures of dashboard and report take most of the time of a fit this small, and do not depend on a flag
    made = training.default_callbacks()
    monkeypatch.setattr(
        training, "default_callbacks", lambda: [c for c in made if not isinstance(c, Dashboard | Report)]
    )
    Path("tiny.yaml").write_text(CONFIG)
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = False
    torch.set_default_dtype(torch.float32)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fit(words: list[str], refusal: str, capsys) -> None:
    line = ["fit", "--config", "tiny.yaml", *words]
    if refusal == WORKS:
        main(line)
        return
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code in (1, 2)
    said = [one for one in capsys.readouterr().err.splitlines() if one.startswith("neuralpk fit: ")]
    assert len(said) == 1
    assert refusal in said[0]
    assert not list(Path().rglob("*.ckpt"))


def test_every_argument_of_the_trainer_is_tried() -> None:
    assert set(FLAGS) == set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}


@pytest.mark.parametrize("case", CASES)
def test_a_flag_works_or_is_refused(case: str, capsys) -> None:
    name, value = case.split("|")
    fit([name, value], FLAGS[name.removeprefix("--trainer.")][value], capsys)


@pytest.mark.parametrize("line", TOGETHER)
def test_flags_together(line: str, capsys) -> None:
    fit(line.split(), TOGETHER[line], capsys)


def test_the_folder_of_the_run_lies_where_it_was_asked_for() -> None:
    main(["fit", "--config", "tiny.yaml", "--trainer.default_root_dir", "elsewhere"])
    assert list(Path("elsewhere").rglob("last.ckpt"))
    assert not Path("lightning_logs").exists()
