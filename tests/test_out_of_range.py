"""Options that mean nothing are refused where they stand."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from neuralpk.callbacks import Dashboard, Report
from neuralpk.cohort_simulation import Design, Population, PopulationPrior, omega_from_cv
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, FluctuatingClearance, HybridDynamics
from neuralpk.solve import Auto, RungeKutta, TorchDiffEq, TorchSDE
from neuralpk.task import LatentTask

CASES = {
    "learning_rate 0": lambda: LatentTask(CompartmentModel(), learning_rate=0.0),
    "learning_rate -1": lambda: LatentTask(CompartmentModel(), learning_rate=-1.0),
    "learning_rate nan": lambda: LatentTask(CompartmentModel(), learning_rate=math.nan),
    "learning_rate inf": lambda: LatentTask(CompartmentModel(), learning_rate=math.inf),
    "transits 0": lambda: CompartmentModel(absorption="transit", transits=0),
    "transits -2": lambda: CompartmentModel(transits=-2),
    "rtol inf": lambda: Auto(rtol=math.inf),
    "rtol nan": lambda: RungeKutta(rtol=math.nan),
    "atol inf": lambda: TorchDiffEq(atol=math.inf),
    "max_evaluations 0": lambda: Auto(max_evaluations=0),
    "step inf": lambda: TorchDiffEq(method="rk4", step=math.inf),
    "step -1": lambda: TorchDiffEq(method="rk4", step=-1.0),
    "SDE step nan": lambda: TorchSDE(step=math.nan),
    "sigma inf": lambda: FluctuatingClearance(CompartmentModel(), math.inf),
    "reversion nan": lambda: FluctuatingClearance(CompartmentModel(), 0.1, math.nan),
    "overlap nan": lambda: HybridDynamics(CompartmentModel(), overlap=math.nan),
    "cv -30": lambda: SimulatedPKDataModule(cv={"CL": -30.0}),
    "cv nan": lambda: omega_from_cv(math.nan),
    "omega -0.3": lambda: SimulatedPKDataModule(omega={"CL": -0.3}),
    "lloq -1": lambda: SimulatedPKDataModule(lloq=-1.0),
    "lloq 0": lambda: SimulatedPKDataModule(lloq=0.0),
    "jitter -1": lambda: SimulatedPKDataModule(jitter=-1.0),
    "times that decrease": lambda: SimulatedPKDataModule(times=[3.0, 2.0], samples=None),
    "times below 0": lambda: SimulatedPKDataModule(times=[-3.0, 2.0], samples=None),
    "times nan": lambda: SimulatedPKDataModule(times=[math.nan], samples=None),
    "samples -1": lambda: SimulatedPKDataModule(samples=-1),
    "samples that decrease": lambda: SimulatedPKDataModule(samples=[8, 2]),
    "repeats 0": lambda: SimulatedPKDataModule(repeats=0),
    "interval missing": lambda: SimulatedPKDataModule(repeats=3),
    "infusion -1": lambda: SimulatedPKDataModule(infusion=-1.0),
    "covariates that decrease": lambda: SimulatedPKDataModule(covariates={"WT": [90.0, 50.0]}),
    "probability 2": lambda: SimulatedPKDataModule(covariates={"SEX": 2.0}),
    "populations inf": lambda: PopulationPrior(typical=math.inf),
    "num_workers -1": lambda: SimulatedPKDataModule(num_workers=-1),
    "batch_size 0": lambda: SimulatedPKDataModule(batch_size=0),
    "every 0": lambda: Dashboard(every=0),
    "panels 0": lambda: Report(subjects=0),
}


@pytest.mark.parametrize("name", CASES)
def test_an_option_out_of_its_range(name: str) -> None:
    with pytest.raises(ValueError) as error:
        CASES[name]()
    option = name.split()[0]
    assert option in str(error.value) or option in ("SDE", "rtol", "atol", "panels", "probability", "infusion")


def test_the_ends_of_the_ranges_are_taken() -> None:
    Design(((),), times=(0.0, 0.0, 1.0), samples=0, lloq=1e-9)
    Population({"CL": 1.0}, {"CL": 0.0}, {"SEX": 1.0, "WT": (70.0, 70.0)})
    SimulatedPKDataModule(cv={"CL": 0.0}, samples=[0, 8], repeats=2, interval=12.0)


@pytest.mark.parametrize("text", ["runs/a[/b]c", "CL~CRCL [mL/min]", "CL~[bold]x", "a:smile:b", "[link=x]"])
def test_a_name_with_square_brackets_is_printed_as_it_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(text).mkdir(parents=True)
    report = Report()
    report.console = Console(file=io.StringIO(), width=300, highlight=False, soft_wrap=True)
    report._next(SimpleNamespace(loggers=[]), SimulatedPKDataModule(subjects=2), Path(text), text)
    # checkpoint, and of two commands checkpoint, table and output
    assert report.console.file.getvalue().count(text) == 7
