"""Recurrent networks as decoders: what moves them, what they may not know, and that a residual network is Euler's."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.decoders import GRU, ODERNN, ContinuousTimeRNN
from neuralpk.dynamics import CompartmentModel, Decoder, LotkaVolterra
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, Step
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import CombinedError, LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, RungeKutta, TorchDiffEq

SCRIPTS = Path(__file__).parent.parent / "scripts"
STEPPING = {"gru": "ignored", "gru_input": "input", "gru_decay": "decay"}  # how the gap between two events enters
RECURRENT = (*STEPPING, "ode_rnn", "ctrnn")
DOSED = Cohort(
    (
        Subject("1", [0.5, 2.0, 8.0, 8.0], [4.0, 3.0, 2.0, 2.5], (Dose(0, 100),)),
        Subject("2", [1.0, 6.0, 12.0], [2.5, 1.0, 1.5], (Dose(0, 80), Dose(6, 50, duration=2))),
        Subject("3", [3.0, 5.0], [2.0, 1.2], (Dose(1, 150), Dose(4, reset=True), Dose(4.5, 20))),
    )
)
SERIES = Cohort(
    tuple(
        Subject(str(k), [0.0, 0.0, 2.0, 5.0, 5.0], [30.0, 20.0, 25.0, 45.0, 15.0], (), endpoints=[1, 2, 1, 1, 2])
        for k in range(3)
    )
)
SYSTEMS = {"compartments": DOSED, "lotka_volterra": SERIES}
LIKE = {"compartments": CompartmentModel, "lotka_volterra": LotkaVolterra}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_sequence_models

    return benchmark_sequence_models


def decoder(kind: str, system: str = "compartments", latent: int = 2, hidden: int = 6, layers: int = 2) -> Decoder:
    like = LIKE[system]()
    if kind == "ode_rnn":
        return ODERNN(like, latent, hidden, layers)
    return ContinuousTimeRNN(like, latent, hidden) if kind == "ctrnn" else GRU(like, latent, hidden, STEPPING[kind])


def made(kind: str, people: Cohort = DOSED, system: str = "compartments") -> PopulationModel:
    """A network with weights that are not zero anywhere, in double precision."""
    model = PopulationModel(decoder(kind, system), error=CombinedError(), engine=Auto(rtol=1e-9, atol=1e-11))
    model.build(Scaling.of(people))
    for weight in model.dynamics.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return model.double()


def curves(model: PopulationModel, z: torch.Tensor, batch: CohortBatch, times: torch.Tensor) -> torch.Tensor:
    """Of every endpoint, ``[subject, time, endpoint]``."""
    return model.observe(model.trajectory(z, batch, times))


def batch_of(people: Cohort) -> CohortBatch:
    return collate(people, dtype=torch.float64)


def draws(people: Cohort) -> torch.Tensor:
    return torch.randn(len(people), 2, dtype=torch.float64)


def stepped(model: PopulationModel, h: torch.Tensor, gap: float, dose: float, duration: float, z: torch.Tensor):
    """One step of one subject, by hand."""
    network = model.dynamics.cell
    size = math.log1p(dose / float(network.amount) / 0.01) / math.log1p(100.0)
    span = gap / float(network.time)
    inputs = [size, 0.0, duration / float(network.time), *z.tolist()]
    if network.gap == "input":
        inputs += [span, math.log1p(1000 * span) / math.log1p(1000.0)]
    if network.gap == "decay":
        h = h * torch.exp(-network.log_decay.exp() * span)
    return network.cell(torch.tensor([inputs], dtype=torch.float64), h)


@pytest.mark.parametrize("field", STEPPING)
def test_the_states_are_those_of_the_cell_stepped_by_hand_from_event_to_event(field):
    one = Cohort((Subject("1", [1.0, 8.0, 12.0], [2.5, 1.0, 1.5], (Dose(0, 80), Dose(6, 50, duration=2))),))
    model, z = made(field), draws(one)
    h = model.dynamics.initial_state(z)
    seen = []
    for gap, dose, duration in ((0, 80, 0), (1, 0, 0), (5, 50, 2), (2, 0, 0), (4, 0, 0)):
        h = stepped(model, h, gap, dose, duration, z[0])
        seen += [] if dose else [h]
    expected = model.dynamics.observe(torch.cat(seen), z)[:, 0]
    torch.testing.assert_close(model.predict(z, batch_of(one)).value[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("field", RECURRENT)
def test_every_network_of_every_system_gives_positive_values_and_every_weight_a_gradient(field, system):
    people = SYSTEMS[system]
    model, batch = made(field, people, system), batch_of(people)
    encoder = SetEncoder(8)
    encoder.build(Scaling.of(people), 2)
    loss = ELBO().loss(model, encoder.double(), None, batch, Step(0, 1))
    loss.total.backward()
    assert loss.failures == 0
    assert bool(torch.isfinite(loss.fit))
    for name, weight in model.dynamics.named_parameters():
        assert not weight.requires_grad or bool(weight.grad.any()), name
    assert bool((curves(model, draws(people), batch, batch.start[:, None] + torch.linspace(0, 9, 40)) > 0).all())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("field", RECURRENT)
def test_no_value_depends_on_what_else_is_asked_nor_on_batch_mates(field, system):
    people = SYSTEMS[system]
    model, batch, z = made(field, people, system), batch_of(people), draws(people)
    grid = batch.start[:, None] + torch.tensor([0.5, 2.5, 7.0, 7.5, 11.0], dtype=torch.float64)
    together = curves(model, z, batch, grid)
    torch.testing.assert_close(curves(model, z, batch, grid[:, [3, 1]]), together[:, [3, 1]], rtol=1e-6, atol=0)
    for k in range(len(people)):
        alone = curves(model, z[k : k + 1], batch_of(people[k : k + 1]), grid[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-6, atol=0)
    # at the times of the records a curve is what is predicted of them; a record of a dose's time stands before it
    free = batch.mask & (batch.time[:, :, None] != batch.doses.time[:, None, :]).all(-1)
    at_records = curves(model, z, batch, batch.time).gather(2, batch.endpoint[..., None])[..., 0]
    torch.testing.assert_close(at_records[free], model.predict(z, batch).value[free], rtol=1e-6, atol=0)


@pytest.mark.parametrize("field", RECURRENT)
def test_a_dose_changes_what_comes_after_it_and_nothing_before(field):
    model, batch, z = made(field), batch_of(DOSED), draws(DOSED)
    other = batch.clone()
    other.doses.amount[1, 1] *= 2
    before = torch.linspace(0, 5.9, 20, dtype=torch.float64).expand(3, -1) + batch.start[:, None]
    torch.testing.assert_close(curves(model, z, other, before), curves(model, z, batch, before), rtol=0, atol=0)
    after = torch.full((3, 1), 7.0, dtype=torch.float64)
    changed = (curves(model, z, other, after) / curves(model, z, batch, after) - 1).abs()[:, 0, 0]
    assert changed[1] > 1e-6
    assert changed[0] == 0 == changed[2]


@pytest.mark.parametrize("field", STEPPING)
def test_only_the_network_that_counts_is_blind_to_the_length_of_a_gap(field):
    model, z = made(field), draws(DOSED)[:1]
    one = Subject("1", [1.0, 2.0, 8.0], [4.0, 3.0, 2.0], (Dose(0, 100),))
    stretched = dataclasses.replace(one, times=np.array([1.0, 2.0, 20.0]))
    near, far = (model.predict(z, batch_of(Cohort((subject,)))).value[0] for subject in (one, stretched))
    torch.testing.assert_close(far[:2], near[:2], rtol=0, atol=0)
    assert bool(far[2] == near[2]) == (field == "gru")


def test_an_ode_rnn_whose_field_rests_is_the_network_that_steps_at_doses():
    model, z = made("ode_rnn"), draws(DOSED)
    for weight in model.dynamics.field.parameters():
        torch.nn.init.zeros_(weight)
    found = curves(model, z, batch_of(DOSED), torch.tensor([[3.0, 9.0]] * 3, dtype=torch.float64))[1]
    first = stepped(model, model.dynamics.initial_state(z[1:2]), 0.0, 80.0, 0.0, z[1])
    second = stepped(model, first, 0.0, 50.0, 2.0, z[1])
    expected = model.dynamics.observe(torch.cat([first, second]), z)[:, :1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_continuous_time_network_without_input_decays_at_its_own_rates():
    model, z, batch = made("ctrnn"), draws(DOSED)[:1], batch_of(DOSED[:1])
    network = model.dynamics
    for part in (network.recurrent, network.latent):
        for weight in part.parameters():
            torch.nn.init.zeros_(weight)
    states = model.trajectory(z, batch, torch.tensor([[0.0, 3.0]], dtype=torch.float64)).states[0]
    dose = torch.tensor([100.0] + [0.0] * 5, dtype=torch.float64)
    torch.testing.assert_close(states[0], model.dynamics.initial_state(z)[0] + dose)
    torch.testing.assert_close(states[1], states[0] * torch.exp(-3 * network.rate()), rtol=1e-7, atol=0)


def test_the_fused_kernel_solves_a_continuous_time_network_as_the_reference_does():
    model, z, batch = made("ctrnn"), draws(DOSED), batch_of(DOSED)
    fused = model.predict(z, batch)
    assert fused.trajectory.engine == RungeKutta(rtol=1e-9, atol=1e-11)
    model.engine = TorchDiffEq(rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fused.value, model.predict(z, batch).value, rtol=1e-6, atol=0)


def test_a_dose_that_a_stepping_network_cannot_take_is_refused_by_name():
    model = made("gru")
    for dose in (Dose(0, 100, interval=12, steady_state=1), Dose(0, 100, compartment=3)):
        people = Cohort((Subject("17", [1.0], [2.0], (dose,)),))
        with pytest.raises(ValueError, match="subject 17"):
            model.predict(draws(people), batch_of(people))


@pytest.mark.parametrize("field", RECURRENT)
def test_a_network_learns_the_curves_of_patients(field):
    data = SimulatedPKDataModule(subjects=12, samples=None, times=[0.5, 1, 2, 4, 8, 16, 24, 48], error_sd={"b": 0.05})
    batch, scaling = collate(data.make_cohort()), Scaling.of(data.make_cohort())
    dynamics = decoder(field, latent=4, hidden=8, layers=1)
    model = PopulationModel(dynamics, error=LogNormalError(), engine=Auto(rtol=1e-3, atol=1e-3)).build(scaling)
    encoder = SetEncoder(16)
    encoder.build(scaling, model.latent_size)
    weights = [*model.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.02)

    def error() -> float:
        """Root mean square of the log ratio to the truth."""
        with torch.no_grad():
            value = model.predict(encoder(batch).mean, batch).value
        return float((value / batch.value).log().square().mean().sqrt())

    untaught = error()
    for k in range(60):
        loss = ELBO().loss(model, encoder, None, batch, Step(0, k))
        optimizer.zero_grad()
        (loss.fit + 0.1 * loss.kl).backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
    # levels within a factor e of each other before; doses differ twelvefold and concentrations fall tenfold
    assert untaught > 0.8
    assert error() < 0.6 * untaught


def test_a_residual_network_is_eulers_method_and_no_other(script):
    assert script.residual_difference() < 1e-14
    assert script.residual_difference(method="midpoint") > 1e-3


def test_errors_fall_with_the_order_of_the_method(script):
    counts = [8, 16, 32, 64]
    found = script.slopes(counts, script.step_errors(("euler", "midpoint", "rk4"), counts))
    assert found == pytest.approx({"euler": 1, "midpoint": 2, "rk4": 4, "dopri5": 5}, abs=0.15)


def test_the_benchmark_rewrites_its_page(tmp_path):
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("above\n\n<!-- measured -->\n\nold\n\n<!-- end -->\n\nbelow\n", encoding="utf-8")
    few = ["--models", "gru", "--shares", "0.2", "--seeds", "1", "--epochs", "1", "--new", "3"]
    command = [sys.executable, SCRIPTS / "benchmark_sequence_models.py", *few, "--page", page, "--json", rows]
    subprocess.run(command, check=True, capture_output=True)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert text.count("| GRU, counts records |") == 2  # one table for each system
    assert (tmp_path / "step_size.png").stat().st_size > 10_000
    done = json.loads(rows.read_text())["runs"]
    assert {row["system"] for row in done} == set(SYSTEMS)
    assert all(row["reconstruction"] > 0 and row["extrapolation"] > 0 for row in done)
