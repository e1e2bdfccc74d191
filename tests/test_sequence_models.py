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

from neuralpk.batch import CohortBatch, collate
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.datamodules import PKDataModule
from neuralpk.models import LatentModel, build_model
from neuralpk.objectives import evidence_bound
from neuralpk.scaling import Scaling
from neuralpk.solve import SolverOptions

SCRIPTS = Path(__file__).parent.parent / "scripts"
STEPPING = ("gru", "gru_gaps", "gru_decay")
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


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_sequence_models

    return benchmark_sequence_models


def made(field: str, people: Cohort = DOSED, system: str = "compartments") -> LatentModel:
    """A network with weights that are not zero anywhere, in double precision."""
    settings = {"system": system, "field": field, "hidden": 6, "latent_size": 2}
    model = build_model(settings, {"hidden": 8}, "combined", {"rtol": 1e-9, "atol": 1e-11}, Scaling.of(people))
    for weight in model.dynamics.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return model.double()


def batch_of(people: Cohort) -> CohortBatch:
    return collate(people, dtype=torch.float64)


def places(people: Cohort) -> torch.Tensor:
    return torch.randn(len(people), 2, dtype=torch.float64)


def stepped(model: LatentModel, h: torch.Tensor, gap: float, dose: float, duration: float, z: torch.Tensor):
    """One step of one subject, by hand."""
    network = model.dynamics if hasattr(model.dynamics, "cell") else model.dynamics.doses
    size = math.log1p(dose / float(network.amount) / 0.01) / math.log1p(100.0)
    span = gap / float(network.time)
    inputs = [size, 0.0, duration / float(network.time), *z.tolist()]
    if network.gap == "given":
        inputs += [span, math.log1p(1000 * span) / math.log1p(1000.0)]
    if network.gap == "decay":
        h = h * torch.exp(-network.log_decay.exp() * span)
    return network.cell(torch.tensor([inputs], dtype=torch.float64), h)


@pytest.mark.parametrize("field", STEPPING)
def test_the_states_are_those_of_the_cell_stepped_by_hand_from_event_to_event(field):
    one = Cohort((Subject("1", [1.0, 8.0, 12.0], [2.5, 1.0, 1.5], (Dose(0, 80), Dose(6, 50, duration=2))),))
    model, z = made(field), places(one)
    h = model.dynamics.initial_state(z)
    seen = []
    for gap, dose, duration in ((0, 80, 0), (1, 0, 0), (5, 50, 2), (2, 0, 0), (4, 0, 0)):
        h = stepped(model, h, gap, dose, duration, z[0])
        seen += [] if dose else [h]
    expected = model.dynamics.observe(torch.cat(seen), z)[:, 0]
    torch.testing.assert_close(model.predict(z, batch_of(one)).value[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("field", RECURRENT)
def test_every_network_of_every_system_gives_positive_lines_and_every_weight_a_gradient(field, system):
    people = SYSTEMS[system]
    model, batch = made(field, people, system), batch_of(people)
    loss = evidence_bound(model, batch, places(people))
    (loss.fit + loss.kl).backward()
    assert loss.failures == 0
    assert bool(torch.isfinite(loss.fit))
    for name, weight in model.dynamics.named_parameters():
        assert not weight.requires_grad or bool(weight.grad.any()), name
    assert bool((model.lines(places(people), batch, batch.start[:, None] + torch.linspace(0, 9, 40)) > 0).all())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("field", RECURRENT)
def test_no_value_depends_on_what_else_is_asked_nor_on_batch_mates(field, system):
    people = SYSTEMS[system]
    model, batch, z = made(field, people, system), batch_of(people), places(people)
    grid = batch.start[:, None] + torch.tensor([0.5, 2.5, 7.0, 7.5, 11.0], dtype=torch.float64)
    together = model.lines(z, batch, grid)
    torch.testing.assert_close(model.lines(z, batch, grid[:, [3, 1]]), together[:, [3, 1]], rtol=1e-6, atol=0)
    for k in range(len(people)):
        alone = model.lines(z[k : k + 1], batch_of(people[k : k + 1]), grid[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-6, atol=0)
    # at the times of the records a line is what is predicted of them; a record of a dose's time stands before it
    free = batch.mask & (batch.time[:, :, None] != batch.dose_time[:, None, :]).all(-1)
    at_records = model.lines(z, batch, batch.time).gather(2, batch.endpoint[..., None])[..., 0]
    torch.testing.assert_close(at_records[free], model.predict(z, batch).value[free], rtol=1e-6, atol=0)


@pytest.mark.parametrize("field", RECURRENT)
def test_a_dose_changes_what_comes_after_it_and_nothing_before(field):
    model, batch, z = made(field), batch_of(DOSED), places(DOSED)
    other = dataclasses.replace(batch, dose_amount=batch.dose_amount.clone())
    other.dose_amount[1, 1] *= 2
    before = torch.linspace(0, 5.9, 20, dtype=torch.float64).expand(3, -1) + batch.start[:, None]
    torch.testing.assert_close(model.lines(z, other, before), model.lines(z, batch, before), rtol=0, atol=0)
    after = torch.full((3, 1), 7.0, dtype=torch.float64)
    changed = (model.lines(z, other, after) / model.lines(z, batch, after) - 1).abs()[:, 0, 0]
    assert changed[1] > 1e-6
    assert changed[0] == 0 == changed[2]


@pytest.mark.parametrize("field", STEPPING)
def test_only_the_network_that_counts_is_blind_to_the_length_of_a_gap(field):
    model, z = made(field), places(DOSED)[:1]
    one = Subject("1", [1.0, 2.0, 8.0], [4.0, 3.0, 2.0], (Dose(0, 100),))
    stretched = dataclasses.replace(one, times=np.array([1.0, 2.0, 20.0]))
    near, far = (model.predict(z, batch_of(Cohort((subject,)))).value[0] for subject in (one, stretched))
    torch.testing.assert_close(far[:2], near[:2], rtol=0, atol=0)
    assert bool(far[2] == near[2]) == (field == "gru")


def test_an_ode_rnn_whose_field_rests_is_the_network_that_steps_at_doses():
    model, z = made("ode_rnn"), places(DOSED)
    for weight in model.dynamics.field.parameters():
        torch.nn.init.zeros_(weight)
    lines = model.lines(z, batch_of(DOSED), torch.tensor([[3.0, 9.0]] * 3, dtype=torch.float64))[1]
    first = stepped(model, model.dynamics.initial_state(z[1:2]), 0.0, 80.0, 0.0, z[1])
    second = stepped(model, first, 0.0, 50.0, 2.0, z[1])
    expected = model.dynamics.observe(torch.cat([first, second]), z)[:, :1]
    torch.testing.assert_close(lines, expected, rtol=1e-9, atol=0)


def test_a_continuous_time_network_without_input_decays_at_its_own_rates():
    model, z, batch = made("ctrnn"), places(DOSED)[:1], batch_of(DOSED[:1])
    network = model.dynamics
    for part in (network.recurrent, network.latent):
        for weight in part.parameters():
            torch.nn.init.zeros_(weight)
    states = model.decode(z, batch, torch.tensor([[0.0, 3.0]], dtype=torch.float64)).states[0]
    dose = torch.tensor([100.0] + [0.0] * 5, dtype=torch.float64)
    torch.testing.assert_close(states[0], network.initial_state(z)[0] + dose)
    torch.testing.assert_close(states[1], states[0] * torch.exp(-3 * network._rate()), rtol=1e-7, atol=0)


def test_the_fused_kernel_solves_a_continuous_time_network_as_the_reference_does():
    model, z, batch = made("ctrnn"), places(DOSED), batch_of(DOSED)
    fused = model.predict(z, batch)
    assert fused.trajectory.engine == "runge_kutta"
    model.options = SolverOptions(engine="torchdiffeq", rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fused.value, model.predict(z, batch).value, rtol=1e-6, atol=0)


def test_a_dose_that_a_stepping_network_cannot_take_is_refused_by_name():
    model = made("gru")
    for dose in (Dose(0, 100, interval=12, steady_state=1), Dose(0, 100, compartment=3)):
        people = Cohort((Subject("17", [1.0], [2.0], (dose,)),))
        with pytest.raises(ValueError, match="subject 17"):
            model.predict(places(people), batch_of(people))


@pytest.mark.parametrize("field", RECURRENT)
def test_a_network_learns_the_lines_of_patients(field):
    data = PKDataModule(subjects=12, samples=None, times=[0.5, 1, 2, 4, 8, 16, 24, 48], error_sd={"b": 0.05})
    batch = collate(data.make_cohort())
    settings = {"field": field, "hidden": 8, "layers": 1}
    solver = {"rtol": 1e-3, "atol": 1e-3}
    model = build_model(settings, {"hidden": 16}, "log_normal", solver, Scaling.of(data.make_cohort()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def error() -> float:
        """Root mean square of the log ratio to the truth."""
        with torch.no_grad():
            value = model.predict(model.encoder(batch).mean, batch).value
        return float((value / batch.value).log().square().mean().sqrt())

    untaught = error()
    for _ in range(60):
        loss = evidence_bound(model, batch, torch.randn(12, model.individual.latent_size))
        optimizer.zero_grad()
        (loss.fit + 0.1 * loss.kl).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    # levels within a factor e of each other before; doses differ twelvefold and lines fall tenfold
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
