"""A subject's line does not depend on its batch mates, and one that cannot be solved does not spoil the others."""

import copy
import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from solving import engine_with, solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import CompartmentModel, Dynamics
from neuralpk.solve import Auto, Exact, RungeKutta, SolveError, Status, TorchDiffEq, engines
from neuralpk.solve.solve_result import EngineFailure


def subject(name, doses, times):
    return Subject(str(name), np.asarray(times, float), np.full(len(times), np.nan), tuple(doses))


def lines(model, theta, subjects, options=None, y0=None):
    batch = collate(subjects, dtype=torch.float64)
    theta = torch.as_tensor(theta, dtype=torch.float64)
    return solve_batch(model, theta, batch, engine=options)


class Oscillator(Dynamics):
    """d²x/dt² = −w²·x: the faster, the harder."""

    states = ("x", "v")
    parameter_names = ("w",)

    def forward(self, t, y, theta):
        return torch.stack([y[:, 1], -(theta[:, 0] ** 2) * y[:, 0]], dim=-1)

    def initial_state(self, theta):
        return torch.ones_like(theta).expand(-1, 2) * torch.tensor([1.0, 0.0], dtype=theta.dtype)


@pytest.mark.parametrize("easy", [10, 100, 1000])
def test_a_hard_subject_is_as_accurate_among_easy_ones_as_alone(easy):
    # torchdiffeq's own norm, a mean over the batch, allows sqrt(1000) = 32 times the error here
    options = Auto(rtol=1e-4, atol=1e-4)
    model, hard = Oscillator().double(), subject("hard", (), [0.0, 10.0])
    others = [subject(k, (), [0.0, 10.0]) for k in range(easy)]
    with torch.no_grad():
        alone = lines(model, [[5.0]], [hard], options).states[0, 1, 0]
        among = lines(model, [[5.0]] + [[0.01]] * easy, [hard, *others], options).states[0, 1, 0]
    exact = np.cos(50.0)
    assert abs(float(among) - exact) <= 1.1 * abs(float(alone) - exact)


@pytest.mark.parametrize("easy", [10, 1000])
def test_the_gradient_of_a_hard_subject_is_as_accurate_among_easy_ones_as_alone(easy):
    options = Auto(rtol=1e-4, atol=1e-4)
    model = Oscillator().double()

    def gradient(n):
        theta = torch.tensor([[5.0]] + [[0.01]] * n, dtype=torch.float64, requires_grad=True)
        people = [subject(k, (), [0.0, 10.0]) for k in range(n + 1)]
        lines(model, theta, people, options).states[0, 1, 0].backward()
        return float(theta.grad[0])

    exact = -10 * np.sin(50.0)
    assert abs(gradient(easy) - exact) <= 1.1 * abs(gradient(0) - exact)


MIXED = [
    subject("a", [Dose(0, 100, interval=8, additional=2)], [0.5, 4, 9, 20, 30]),
    subject("b", [Dose(0, 80, duration=2), Dose(5, 10)], [1.0, 2.0, 2.0, 2.0]),
    subject("c", [Dose(0, 60, interval=12, steady_state=1)], [3.0]),
    subject("d", [Dose(2, 100), Dose(10, 50, reset=True)], [2.0, 9, 10, 48]),
    subject("e", [], [0.0, 7.0]),
]
THETA = [[5.0, 20.0, 3.0, 40.0, 0.1], [9.0, 10.0, 1.0, 20.0, 0.5], [2.0, 30.0, 5.0, 60.0, 1.0]]
THETA = [*THETA, [4.0, 25.0, 2.0, 30.0, 0.2], [3.0, 15.0, 4.0, 50.0, 0.3]]
# torchdiffeq chooses its steps for all subjects together; to the other engines their batch mates are nothing
ENGINES = {
    "exact": (Exact(), 1e-12),
    "runge_kutta": (RungeKutta(), 1e-12),
    "torchdiffeq": (TorchDiffEq(rtol=1e-7, atol=1e-8), 1e-5),
}


def mixed_model():
    return CompartmentModel(2, lag="central").double()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_subject_gives_the_same_line_alone_and_in_any_batch(engine):
    options, tolerance = ENGINES[engine]
    with torch.no_grad():
        together = lines(mixed_model(), THETA, MIXED, options).states
        for order in ([4, 3, 2, 1, 0], [2, 0]):
            other = lines(mixed_model(), [THETA[k] for k in order], [MIXED[k] for k in order], options).states
            for row, k in zip(other, order, strict=True):
                n = len(MIXED[k].times)
                np.testing.assert_allclose(row[:n], together[k, :n], rtol=tolerance, atol=tolerance)
        for k, one in enumerate(MIXED):
            alone = lines(mixed_model(), [THETA[k]], [one], options).states[0]
            np.testing.assert_allclose(together[k, : len(alone)], alone, rtol=tolerance, atol=tolerance)


def test_the_padding_does_not_matter():
    model, theta = mixed_model(), torch.tensor(THETA, dtype=torch.float64)
    batch = collate(MIXED, dtype=torch.float64)
    # any other finite numbers, as long as no padded time lies before the start or after the last record
    doses = batch.doses
    moved = {n: torch.where(doses.mask, getattr(doses, n), 3) for n in ("time", "amount", "rate", "interval")}
    moved |= {n: torch.where(doses.mask, getattr(doses, n), 1) for n in ("compartment", "steady_state")}
    moved["reset"] = doses.reset | ~doses.mask
    changed = {"doses": dataclasses.replace(doses, **moved), "value": torch.where(batch.mask, batch.value, 99.0)}
    first, last = batch.start[:, None], batch.time.amax(1, keepdim=True)
    changed["time"] = torch.where(batch.mask, batch.time, (first + last) / 2)
    other = dataclasses.replace(batch, **changed)
    with torch.no_grad():
        expected = solve_batch(model, theta, batch).states[batch.mask]
        found = solve_batch(model, theta, other).states[batch.mask]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)  # other nodes, other rounding


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dose_may_be_split_in_two(engine):
    options, tolerance = ENGINES[engine]
    times = [0.0, 1.0, 5.0, 20.0]
    whole = subject("whole", [Dose(0, 100), Dose(1, 60, duration=3)], times)
    doses = [Dose(0, 30, row=1), Dose(0, 70, row=2), Dose(1, 20, duration=3), Dose(1, 40, duration=3)]
    with torch.no_grad():
        line = lines(mixed_model(), [THETA[0]] * 2, [whole, subject("split", doses, times)], options).states
    np.testing.assert_allclose(line[1], line[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clock", [-37.0, 1000.0])
def test_the_clock_may_start_anywhere(engine, clock):
    options, tolerance = ENGINES[engine]
    moved = [
        dataclasses.replace(
            s, times=s.times + clock, doses=[dataclasses.replace(d, time=d.time + clock) for d in s.doses]
        )
        for s in MIXED
    ]
    with torch.no_grad():
        found, expected = (lines(mixed_model(), THETA, people, options).states for people in (moved, MIXED))
    # at 1000 h a time has three digits less
    np.testing.assert_allclose(found, expected, rtol=100 * tolerance, atol=100 * tolerance)


def test_the_unit_of_time_does_not_matter():
    minutes = [
        dataclasses.replace(
            s,
            times=s.times * 60,
            doses=[
                dataclasses.replace(d, time=d.time * 60, duration=d.duration * 60, interval=d.interval * 60)
                for d in s.doses
            ],
        )
        for s in MIXED
    ]
    theta = np.array(THETA) * [1 / 60, 1, 1 / 60, 1, 60]  # CL, V1, Q, V2, LAG
    options = TorchDiffEq()
    with torch.no_grad():
        hours = lines(mixed_model(), THETA, MIXED, options).states
        found = lines(mixed_model(), theta, minutes, options).states
    np.testing.assert_allclose(found, hours, rtol=1e-9, atol=1e-9)  # the same steps, rounded differently


class Growth(Dynamics):
    """dy/dt = −rate·y + blow·y² + a NaN where `spoilt` is 1; a shared weight multiplies the slope."""

    states = ("y",)
    parameter_names = ("rate", "blow", "spoilt")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, t, y, theta):
        rate, blow, spoilt = theta.unbind(-1)
        slope = -rate[:, None] * y + blow[:, None] * y**2
        return self.weight * torch.where(spoilt[:, None] > 0, torch.nan, 1.0) * slope

    def initial_state(self, theta):
        return torch.ones_like(theta[:, :1])


class Oscillating(Dynamics):
    """dy/dt = sin(w·t): many steps for a large w."""

    states = ("y",)
    parameter_names = ("w",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, t, y, theta):
        return self.weight * torch.sin(theta[:, :1] * t[:, None])


BAD = [0, 5, 11]
GRADIENTS, METHODS = ["adjoint", "backprop"], ["dopri5", "rk4"]


def with_bad(cause):
    """(dynamics, theta of 16 subjects) in which those of `BAD` cannot be solved."""
    if cause == "evaluations":
        theta = torch.linspace(0.5, 1.0, 16, dtype=torch.float64)[:, None].clone()
        theta[BAD] = 500.0
        return Oscillating().double(), theta
    theta = torch.zeros(16, 3, dtype=torch.float64)
    theta[:, 0] = torch.linspace(0.5, 1.0, 16)
    theta[BAD, 1 if cause == "blow-up" else 2] = 5.0
    return Growth().double(), theta


def outcome(dynamics, theta, options, ids):
    """Trajectory, and the gradients of a loss over the subjects that were solved."""
    dynamics.zero_grad()
    theta = theta.clone().requires_grad_()
    people = [subject(k, (), [0.0, 0.5, 2.0]) for k in ids]
    batch = collate(people, dtype=torch.float64)
    solution = solve_batch(dynamics, theta, batch, engine=options)
    solution.states[solution.ok].square().sum().backward()
    return solution, theta.grad, dynamics.weight.grad.clone()


# where nothing asserts, the limit is what ends a NaN: it must not be far away
CASES = [("nan", m, g) for m in METHODS for g in GRADIENTS] + [("blow-up", m, g) for m in METHODS for g in GRADIENTS]
CASES += [("evaluations", "dopri5", g) for g in GRADIENTS]
CASES += [(cause, None, "discrete") for cause in ("nan", "blow-up", "evaluations")]


@pytest.mark.parametrize(("cause", "method", "gradient"), CASES)
def test_subjects_that_cannot_be_solved_are_named_and_spoil_nothing(cause, method, gradient):
    dynamics, theta = with_bad(cause)
    options = engine_with(gradient, method, 0.05, rtol=1e-8, atol=1e-8, max_evaluations=300)
    good = [k for k in range(16) if k not in BAD]
    expected, expected_theta, expected_weight = outcome(dynamics, theta[good], options, good)
    assert bool(expected.ok.all())
    found, found_theta, found_weight = outcome(dynamics, theta, options, range(16))
    assert found.status.nonzero().flatten().tolist() == BAD
    assert found.states[BAD].isnan().all()
    # the survivors are solved with other batch mates: their steps differ, to the tolerance of 1e-8 for each
    torch.testing.assert_close(found.states[good], expected.states, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_theta[good], expected_theta, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_weight, expected_weight, rtol=1e-6, atol=1e-6)
    assert (found_theta[BAD] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_bad_subjects_only_is_an_error_with_names(method):
    dynamics, theta = with_bad("nan")
    theta = theta[BAD]
    batch = collate([subject(f"patient {k}", (), [0.0, 1.0]) for k in BAD], dtype=torch.float64)
    options = engine_with("backprop", method, 0.1)
    solution = solve_batch(dynamics, theta, batch, engine=options)
    assert (solution.status != Status.OK).all()
    how = "(non_finite|step_underflow)"
    message = rf"3 of 3 subjects not solved by TorchDiffEq\(method='{method}'"
    message += rf".*patient 0: {how}; patient 5.*patient 11: {how}"
    with pytest.raises(SolveError, match=message):
        solution.check(batch.ids)


@pytest.mark.parametrize("gradient", ["adjoint", pytest.param("backprop", marks=pytest.mark.slow)])
def test_a_subject_without_a_steady_state_spoils_nothing(gradient):
    # 100 mg every 8 h where at most 2 mg/h can be eliminated accumulate without end
    model = CompartmentModel(1, elimination="michaelis_menten").double()
    people = [subject(k, [Dose(0, 100, interval=8, steady_state=1)], [0.0, 4.0]) for k in range(3)]
    theta = torch.tensor([[30.0, 1.0, 20.0], [2.0, 1.0, 20.0], [40.0, 1.0, 20.0]], dtype=torch.float64)
    options = engine_with(gradient, max_evaluations=200)
    solution = lines(model, theta.requires_grad_(), people, options)
    assert solution.ok.tolist() == [True, False, True]
    solution.states[solution.ok].sum().backward()
    alone = theta.detach()[[0, 2]].requires_grad_()
    expected = lines(model, alone, [people[0], people[2]], options)
    expected.states.sum().backward()
    # the default tolerance of 1e-5, which repeated doses amplify a little
    torch.testing.assert_close(solution.states[[0, 2]], expected.states, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theta.grad[[0, 2]], alone.grad, rtol=1e-4, atol=1e-4)


def test_many_doses_do_not_use_up_the_evaluations_of_the_backward_sweep():
    # the limit is one between two nodes, not one for all
    class Counting(CompartmentModel):
        calls = 0

        def forward(self, t, y, theta):
            self.calls += 1
            return super().forward(t, y, theta)

    model = Counting(1, elimination="michaelis_menten").double()
    theta = torch.tensor([[30.0, 1.0, 20.0]], dtype=torch.float64, requires_grad=True)
    given = [subject("a", [Dose(0, 100, interval=4, additional=20)], [80.0])]
    solution = lines(model, theta, given, TorchDiffEq(gradient="adjoint", rtol=1e-7, max_evaluations=200))
    assert solution.ok.all()
    forward = model.calls
    solution.states.sum().backward()
    assert model.calls - forward > 200 < forward
    assert solution.evaluations == forward - 1  # one more looked for captured tensors
    assert theta.grad.isfinite().all()


@pytest.mark.slow
def test_nothing_hangs_where_assertions_are_switched_off():
    program = """
        import torch
        from test_solve_batches import *
        torch.set_num_threads(1)
        assert False  # passed over under -O
        for cause, method, gradient in CASES[::4]:  # dopri5 through each cause
            dynamics, theta = with_bad(cause)
            options = engine_with(gradient, method, 0.05, max_evaluations=200)
            found, *gradients = outcome(dynamics, theta, options, range(16))
            if found.status.nonzero().flatten().tolist() != BAD or not all(g.isfinite().all() for g in gradients):
                raise SystemExit(f"{cause} {method} {gradient}: {found.status}")
    """
    path = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(program)],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=240,  # without a limit on the evaluations torchdiffeq would go on for ever
    )
    assert done.returncode == 0, done.stderr


def test_a_clearance_that_changes_with_time_runs_on_the_clock_of_the_subject():
    model = CompartmentModel(1, elimination="time_varying").double()
    theta = torch.tensor([[4.0, 0.3, 0.05, 20.0]] * 3, dtype=torch.float64)
    moved = [subject(str(by), [Dose(by, 100.0)], np.array([1.0, 10.0, 30.0]) + by) for by in (0.0, 100.0, -24.0)]
    line = lines(model, theta, moved, Auto(rtol=1e-9, atol=1e-9)).states
    # the same system solved on the same clock: only the rounding of the times differs
    torch.testing.assert_close(line[1:], line[:1].expand(2, -1, -1), rtol=1e-7, atol=1e-9)


def test_a_steady_state_of_a_system_that_changes_with_time_is_refused():
    model = CompartmentModel(1, elimination="time_varying").double()
    theta = torch.tensor([[4.0, 0.3, 0.05, 20.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="no steady state"):
        lines(model, theta, [subject("1", [Dose(0.0, 100.0, interval=12.0, steady_state=1)], [1.0])])


SATURABLE = CompartmentModel(1, elimination="michaelis_menten").double()
TYPICAL = [[2.0, 0.5, 10.0]]


@pytest.mark.parametrize("engine", [RungeKutta(1e-8, 1e-8), TorchDiffEq(rtol=1e-8, atol=1e-8)], ids=["steps", "stops"])
@pytest.mark.parametrize("asked", [False, True], ids=["records", "times"])
def test_a_batch_that_is_changed_in_place_is_solved_as_it_is_now(engine, asked):
    # what follows from the events of a batch is kept with it from the first solve
    theta = torch.tensor(TYPICAL, dtype=torch.float64)
    batch = collate([subject(1, [Dose(0.0, 10.0)], [0.0, 1.0, 5.0])], dtype=torch.float64)
    times = batch.time.clone() if asked else None

    def states():
        return solve_batch(SATURABLE, theta, batch, times, engine).states

    def anew():
        fresh = collate([subject(1, [Dose(0.0, 10.0)], [0.0, 1.0, 5.0])], dtype=torch.float64)
        fresh.doses.amount.copy_(batch.doses.amount)
        fresh.time.copy_(batch.time)
        return solve_batch(SATURABLE, theta, fresh, times, engine).states

    first = states()
    assert torch.equal(states(), first)
    batch.doses.amount.mul_(2.0)
    assert torch.equal(states(), anew())
    assert float((states() - first).abs().max()) > 1.0
    (batch.time if times is None else times)[0, 2] = 3.0
    assert torch.equal(states(), anew())
    (batch.time if times is None else times)[0, 1] = -1.0
    with pytest.raises(ValueError, match="before the first record"):
        states()


def test_another_model_on_the_same_batch_is_checked_anew():
    batch = collate([subject(1, [Dose(0.0, 10.0, compartment=2)], [0.0, 1.0])], dtype=torch.float64)
    two, theta = CompartmentModel(2).double(), torch.ones(1, 4, dtype=torch.float64)
    solve_batch(two, theta, batch).check()
    with pytest.raises(ValueError, match="beyond the 1 of this model"):
        solve_batch(SATURABLE, torch.tensor(TYPICAL, dtype=torch.float64), batch)


def _events(name):
    """A batch with an infusion, and the tensor of its events of a name."""
    batch = collate([subject(1, [Dose(0.0, 10.0, duration=0.5), Dose(1.0, 5.0)], [0.5, 1.5, 5.0])], dtype=torch.float64)
    return batch, (batch.time.clone() if name == "times" else getattr(batch.doses, name))


@pytest.mark.parametrize("name", ["times", "amount", "time", "duration"])
def test_a_gradient_may_be_asked_for_after_a_first_solve(name):
    theta = torch.tensor(TYPICAL, dtype=torch.float64)

    def gradient(batch, tensor):
        tensor.grad = None
        states = solve_batch(SATURABLE, theta, batch, tensor if name == "times" else None, RungeKutta()).states
        states.square().sum().backward()
        return tensor.grad.clone()

    batch, tensor = _events(name)
    expected = gradient(batch, tensor.requires_grad_())
    assert torch.equal(gradient(batch, tensor), expected)  # a second backward pass
    batch, tensor = _events(name)
    with torch.no_grad():
        solve_batch(SATURABLE, theta, batch, tensor if name == "times" else None, RungeKutta())
    assert torch.equal(gradient(batch, tensor.requires_grad_()), expected)
    copied = copy.deepcopy(batch)
    assert torch.equal(solve_batch(SATURABLE, theta, copied).states, solve_batch(SATURABLE, theta, batch).states)


def test_a_batch_of_inference_mode_that_is_changed_is_solved_as_it_is_now():
    theta = torch.tensor(TYPICAL, dtype=torch.float64)
    with torch.inference_mode():
        batch, _ = _events("amount")
        first = solve_batch(SATURABLE, theta, batch).states
        batch.doses.amount.mul_(2.0)
        assert float((solve_batch(SATURABLE, theta, batch).states - first).abs().max()) > 1.0
        batch.time[0, 0] = -5.0
        with pytest.raises(ValueError, match="before the first record"):
            solve_batch(SATURABLE, theta, batch)


@pytest.mark.parametrize("asked", [False, True], ids=["records", "times"])
def test_the_events_of_a_batch_are_sorted_once(asked, monkeypatch):
    theta, sorted_ = torch.tensor(TYPICAL, dtype=torch.float64), []
    build = engines.build_mesh
    monkeypatch.setattr(engines, "build_mesh", lambda *given: sorted_.append(1) or build(*given))
    batch, times = _events("times")
    for _ in range(2):
        solve_batch(SATURABLE, theta, batch, times if asked else None)
        batch = batch.to("cpu")  # as Lightning moves every batch
    assert len(sorted_) == 1
    solve_batch(SATURABLE, theta, dataclasses.replace(batch, doses=_events("times")[0].doses), times)
    assert len(sorted_) == 2


class _WithoutNegative(TorchDiffEq):
    """An engine that does not know which subject it could not solve."""

    def integrate(self, dynamics, y0, theta, mesh):
        if bool((theta < 0).any()):
            raise EngineFailure(Status.STEP_UNDERFLOW)
        return super().integrate(dynamics, y0, theta, mesh)


@pytest.mark.parametrize("bad", [(), (1,), (0, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("asked", [False, True], ids=["records", "times"])
def test_subjects_that_an_engine_cannot_name_are_found_by_halving(bad, asked):
    theta = torch.tensor(TYPICAL * 5, dtype=torch.float64)
    theta[list(bad), 0] = -1.0
    batch = collate([subject(k, [Dose(0.0, 10.0 + k)], [0.5, 1.0 + k]) for k in range(5)], dtype=torch.float64)
    times, engine = batch.time.flip(1) if asked else None, _WithoutNegative()
    solution = solve_batch(SATURABLE, theta, batch, times, engine)
    well = [k for k in range(5) if k not in bad]
    assert solution.ok.tolist() == [k in well for k in range(5)]
    assert bool(solution.states[list(bad)].isnan().all())
    for k in well:
        alone = batch.select(torch.tensor([k]))
        own = solve_batch(SATURABLE, theta[[k]], alone, None if times is None else times[[k]], engine).states
        assert torch.allclose(solution.states[[k]], own, rtol=1e-3)
