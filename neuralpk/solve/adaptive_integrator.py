"""Adaptive steps of each subject by itself between its nodes, for any field, with the exact gradient of the steps.

All subjects try one step at a time; a subject whose error is too large tries a smaller step next. Of each step only its
start is stored; the reverse sweep takes the steps again, one at a time from the last to the first, with torch's
gradients inside the step. So memory grows with steps times states, and not with the operations of the field. A step is
a fraction of the interval between two nodes, found without gradients; the times of both nodes have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuralpk.dynamics import Dynamics
from neuralpk.solve import compiled_field, fused_gpu, tsit5_rodas5p
from neuralpk.solve.equation_field import EquationField
from neuralpk.solve.event_nodes import Mesh, with_clock
from neuralpk.solve.field_translation import translated
from neuralpk.solve.perceptron_field import PerceptronField
from neuralpk.solve.refuse_captured_tensors import refuse_captured_tensors
from neuralpk.solve.solve_result import Status
from neuralpk.solve.tsit5_coefficients import GROW, SAFETY, SHRINK, STABILITY, STIFF, STIFF_STEPS
from neuralpk.solve.tsit5_rodas5p import Rodas5P, Scheme, Tsit5

if TYPE_CHECKING:
    from neuralpk.solve.engines import RungeKutta


@dataclass(frozen=True)
class Steps:
    """Steps that some subjects took at the same time: subject, node before the step, time since that node, size of the
    step, state at its start."""

    subject: Tensor
    node: Tensor
    elapsed: Tensor
    size: Tensor
    state: Tensor


@dataclass
class Run:
    """How each subject ended, the evaluations of the field, and the steps for the reverse sweep."""

    status: Tensor
    evaluations: int = 0
    steps: list[Steps] = field(default_factory=list)


def _lengths(mesh: Mesh) -> Tensor:
    """Length of the interval after each node, ``[subject, node]``; 0 after the last."""
    times = mesh.times.detach()
    return torch.nn.functional.pad(times[:, 1:] - times[:, :-1], (0, 1))


def _read_at_node(mesh: Mesh, since: Tensor) -> Tensor:
    """Which wanted times are read at their node, before any step, ``[subject, time]``."""
    return (since.detach() <= 0) | (_lengths(mesh).gather(1, mesh.wanted) <= 0)


def _own(theta: Tensor, mesh: Mesh, subject: Tensor, node: Tensor) -> Tensor:
    return theta[subject, mesh.period[subject, node]]


def _inside(steps: Steps, mesh: Mesh, since: Tensor, at_node: Tensor, lengths: Tensor) -> Tensor:
    """Which wanted times lie inside each of some steps, ``[step, time]``."""
    own, end = since[steps.subject], steps.elapsed + steps.size
    # as the step was taken: its end may be rounded to just before the end of the interval
    last = steps.size >= lengths[steps.subject, steps.node] - steps.elapsed
    within = (own > steps.elapsed[:, None]) & ((own <= end[:, None]) | last[:, None])
    return within & (mesh.wanted[steps.subject] == steps.node[:, None]) & ~at_node[steps.subject]


def _first_size(slope: tsit5_rodas5p.Field, t: Tensor, y: Tensor, engine: RungeKutta, longest: Tensor) -> Tensor:
    """A first step from the slope at the start and a little further on (Hairer et al., Solving ODEs I, II.4)."""
    scale = engine.atol + engine.rtol * y.abs()
    first = slope(t, y)
    near, steep = (y / scale).norm(dim=1), (first / scale).norm(dim=1)
    probe = torch.where((near < 1e-5) | (steep < 1e-5), 1e-6, 0.01 * near / steep.clamp(min=1e-5))
    probe = torch.minimum(probe, longest)
    bend = ((slope(t + probe, y + probe[:, None] * first) - first) / scale).norm(dim=1) / probe
    largest = torch.maximum(steep, bend) / y.shape[1] ** 0.5
    size = torch.where(largest > 1e-15, (0.01 / largest.clamp(min=1e-15)) ** 0.2, 1e-3 * probe)
    return torch.minimum(100 * probe, size)


@torch.no_grad()
def _march(
    method: Scheme,
    dynamics: Dynamics,
    mesh: Mesh,
    engine: RungeKutta,
    y0: Tensor,
    theta: Tensor,
    since: Tensor,
    record: bool,
) -> tuple[Tensor, Run]:
    """Take the steps: states at the wanted times, and what the reverse sweep needs."""
    n, everyone = len(y0), torch.arange(len(y0), device=y0.device)
    lengths, at_node = _lengths(mesh), _read_at_node(mesh, since)
    out = y0.new_full((*mesh.wanted.shape, y0.shape[1]), torch.nan)
    run = Run(torch.zeros(n, dtype=torch.int64, device=y0.device))
    final = mesh.wanted.amax(1)
    y, node = y0.clone(), torch.full_like(run.status, -1)
    elapsed, size, spent = torch.zeros_like(y0[:, 0]), torch.full_like(y0[:, 0], torch.nan), torch.zeros_like(node)
    stiff, calm = torch.zeros_like(node), torch.zeros_like(node)

    def enter(i: Tensor) -> Tensor:
        """Take subjects to their next interval with a length; returns those that have a wanted time in it or later."""
        on = []
        while len(i):
            node[i] += 1
            j = node[i]
            y[i] = torch.where(mesh.reset[i, j, None], 0.0, y[i]) + mesh.jump[i, j]
            here = at_node[i] & (mesh.wanted[i] == j[:, None])
            out[i] = torch.where(here[..., None], y[i][:, None], out[i])
            # wanted times that remain are at a later node, or inside the interval after this one
            more = (j < final[i]) | (~at_node[i] & (mesh.wanted[i] == j[:, None])).any(1)
            i = i[more]
            has_length = lengths[i, node[i]] > 0
            on.append(i[has_length])
            i = i[~has_length]
        started = torch.cat(on) if on else i
        elapsed[started] = 0.0
        spent[started] = 0
        return started

    active = enter(everyone).sort().values
    while len(active):
        i, j = active, node[active]
        slope = tsit5_rodas5p.field(dynamics, _own(theta, mesh, i, j), mesh.input[i, j])
        t, left = mesh.times[i, j] + elapsed[i], lengths[i, j] - elapsed[i]
        new = size[i].isnan()
        if bool(new.any()):
            size[i] = torch.where(new, _first_size(slope, t, y[i], engine, left), size[i])
            run.evaluations += 2 * int(new.sum())
        whole = size[i] >= left
        # two steps of equal size instead of one and a small rest
        h = torch.where(whole, left, torch.where(2 * size[i] > left, left / 2, size[i]))
        increments = method.increments(slope, t, y[i], h)
        run.evaluations += method.evaluations * len(i)
        spent[i] += method.evaluations
        ahead = y[i] + tsit5_rodas5p.combine(method.end, increments)
        scale = engine.atol + engine.rtol * torch.maximum(y[i].abs(), ahead.abs())
        error = (tsit5_rodas5p.combine(method.error, increments) / scale).square().mean(1).sqrt()
        finite = torch.isfinite(error)
        error = torch.where(finite, error, 1e10)
        taken = error <= 1.0
        factor = (SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW)
        proposed = torch.where(taken, h * factor, h * factor.clamp(max=1.0))
        size[i] = torch.where(taken & whole, torch.maximum(proposed, size[i]), proposed)

        steps = Steps(i[taken], j[taken], elapsed[i][taken], h[taken], y[i][taken])
        share = ((since[steps.subject] - steps.elapsed[:, None]) / steps.size[:, None]).clamp(0.0, 1.0)
        read = _inside(steps, mesh, since, at_node, lengths)
        value = tsit5_rodas5p.inside(method, steps.state, increments[taken], share)
        out[steps.subject] = torch.where(read[..., None], value, out[steps.subject])
        if record:
            run.steps.append(steps)
        y[steps.subject] = ahead[taken]
        elapsed[steps.subject] += steps.size
        edge = method.stiffness(increments, scale) > STABILITY
        stiff[i] = torch.where(taken & edge, stiff[i] + 1, stiff[i])
        calm[i] = torch.where(taken, torch.where(edge, 0, calm[i] + 1), calm[i])
        stiff[i] = torch.where(calm[i] >= 6, 0, stiff[i])

        small = ~taken & ((elapsed[i] + 0.01 * size[i] == elapsed[i]) | (size[i] < 1e-13 * lengths[i, j]))
        for failed, status in (
            (stiff[i] >= STIFF_STEPS, STIFF),
            (spent[i] > engine.max_evaluations, Status.MAX_EVALUATIONS),
            (small & finite, Status.STEP_UNDERFLOW),
            (small & ~finite, Status.NON_FINITE),
        ):
            run.status[i] = torch.where(failed & (run.status[i] == 0), int(status), run.status[i])
        well = run.status[i] == 0
        arrived = taken & whole & well
        # an interval whose wanted times have all been read is not solved to its end
        unread = (mesh.wanted[i] == j[:, None]) & ~at_node[i] & (since[i] > elapsed[i][:, None])
        going = well & ~arrived & ((j < final[i]) | unread.any(1))
        active = torch.cat([i[going], enter(i[arrived])]).sort().values
    return out, run


class _Solve(torch.autograd.Function):
    """Forward steps and reverse sweep as one operation of torch's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        method: Scheme,
        dynamics: Dynamics,
        mesh: Mesh,
        engine: RungeKutta,
        runs: list[Run],
        *tensors: Tensor,
    ) -> Tensor:
        y0, theta, since = tensors[:3]
        out, run = _march(method, dynamics, mesh, engine, y0, theta, since, any(ctx.needs_input_grad))
        runs.append(run)
        ctx.solved = method, dynamics, mesh, run
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        method, dynamics, mesh, run = ctx.solved
        y0, theta, since, times, _, input_, *weights = ctx.saved_tensors
        sweep = _Sweep(method, dynamics, mesh, run, theta, since, times, input_, weights, upstream)
        for steps in reversed(run.steps):
            sweep.back(steps)
        sweep.leave(torch.arange(len(y0), device=y0.device), torch.full_like(run.status, -1))
        return (
            *(None,) * 5,
            sweep.cotangent,
            sweep.theta_gradient,
            sweep.since_gradient,
            sweep.times_gradient,
            sweep.jump_gradient,
            sweep.input_gradient,
            *sweep.weight_gradients,
        )


class _Sweep:
    """The reverse sweep through steps and nodes of all subjects, which adds up the gradient of Σ upstream·states."""

    def __init__(
        self,
        method: Scheme,
        dynamics: Dynamics,
        mesh: Mesh,
        run: Run,
        theta: Tensor,
        since: Tensor,
        times: Tensor,
        input_: Tensor,
        weights: list[Tensor],
        upstream: Tensor,
    ) -> None:
        self.method, self.dynamics, self.mesh, self.status = method, dynamics, mesh, run.status
        self.theta, self.since, self.times, self.input, self.weights = theta, since, times, input_, weights
        self.lengths, self.at_node = _lengths(mesh), _read_at_node(mesh, since)
        # a subject that failed adds nothing: neither its NaN nor the derivative of it
        self.upstream = torch.where((run.status == 0)[:, None, None], upstream, 0.0)
        self.cotangent = torch.zeros_like(upstream[:, 0])
        self.node = mesh.wanted.amax(1)
        self.theta_gradient, self.since_gradient = torch.zeros_like(theta), torch.zeros_like(since)
        self.times_gradient, self.input_gradient = torch.zeros_like(times), torch.zeros_like(input_)
        self.jump_gradient = torch.zeros_like(input_)
        self.weight_gradients = [torch.zeros_like(weight) for weight in weights]

    def leave(self, subject: Tensor, until: Tensor) -> None:
        """Take subjects back through their nodes, down to the one after `until`."""
        while len(subject):
            behind = self.node[subject] > until
            subject, until = subject[behind], until[behind]
            j = self.node[subject]
            here = self.at_node[subject] & (self.mesh.wanted[subject] == j[:, None])
            pull = self.cotangent[subject] + (here[..., None] * self.upstream[subject]).sum(1)
            self.jump_gradient[subject, j] = pull
            self.cotangent[subject] = torch.where(self.mesh.reset[subject, j, None], 0.0, pull)
            self.node[subject] -= 1

    def back(self, steps: Steps) -> None:
        """Compute some steps again, and propagate the gradients back through them."""
        well = self.status[steps.subject] == 0
        steps = Steps(*(getattr(steps, name)[well] for name in ("subject", "node", "elapsed", "size", "state")))
        i, j = steps.subject, steps.node
        if len(i) == 0:
            return
        self.leave(i, j)
        length = self.lengths[i, j]
        read = _inside(steps, self.mesh, self.since, self.at_node, self.lengths)
        with torch.enable_grad():
            own = (
                steps.state,
                _own(self.theta, self.mesh, i, j),
                self.since[i],
                self.times[i, j],
                self.times[i, j + 1],
                self.input[i, j],
            )
            leaves = [value.detach().requires_grad_() for value in own]
            y, theta, since, begin, end, input_ = leaves
            elapsed, h = steps.elapsed / length * (end - begin), steps.size / length * (end - begin)
            slope = tsit5_rodas5p.field(self.dynamics, theta, input_)
            increments = self.method.increments(slope, begin + elapsed, y, h)
            ahead = y + tsit5_rodas5p.combine(self.method.end, increments)
            share = (since - elapsed[:, None]) / h[:, None]
            # nothing is read after the end of the step; a time that is later by a rounding error is read at the end
            share = torch.where(read, share, 0.0).clamp(max=1.0)
            value = tsit5_rodas5p.inside(self.method, y, increments, share)
            given = torch.where(read[..., None], self.upstream[i], 0.0)
            found = torch.autograd.grad(
                (ahead, value), (*leaves, *self.weights), (self.cotangent[i], given), allow_unused=True
            )
        zero = torch.zeros((), dtype=y.dtype, device=y.device)
        y_, theta_, since_, begin_, end_, input__, *weights = (zero if g is None else g for g in found)
        self.cotangent[i] = y_
        self.theta_gradient[i, self.mesh.period[i, j]] += theta_
        self.since_gradient[i] += since_
        self.times_gradient[i, j] += begin_
        self.times_gradient[i, j + 1] += end_
        self.input_gradient[i, j] += input__
        for total, part in zip(self.weight_gradients, weights, strict=True):
            total += part


def step_through(
    method: Scheme, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh, engine: RungeKutta
) -> tuple[Tensor, Run]:
    """Solve by one method, for any field: states at the wanted times, and how each subject ended."""
    refuse_captured_tensors(dynamics, y0, theta)
    runs: list[Run] = []
    weights = [weight for weight in dynamics.parameters() if weight.requires_grad]
    tensors = (y0, theta, mesh.since, mesh.times, mesh.jump, mesh.input)
    out: Tensor = _Solve.apply(  # type: ignore[no-untyped-call]
        method, dynamics, mesh, engine, runs, *tensors, *weights
    )
    return out, runs[0]


def _compiled(
    dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh, engine: RungeKutta, implicit: bool = False
) -> tuple[Tensor, Tensor, int] | None:
    """Solve with compiled code; None where there is none for this field, method and device."""
    on_cpu = compiled_field.covers(y0)
    # a perceptron takes explicit steps in blocks of matrices; for implicit ones its Jacobian is that of its translation
    form = None if implicit else dynamics.perceptron(theta)
    field: compiled_field.CompiledField | None = None
    clock = None if form is None else form.clock
    if form is not None and on_cpu:
        field = PerceptronField(form)
    elif on_cpu:
        translation = translated(dynamics, y0, theta)
        if translation is None or (implicit and translation.implicit is None):
            return None
        field = EquationField(translation, dynamics, theta, implicit)
        clock = torch.ones_like(y0[0, 0]) if translation.timed else None
    elif form is None or not (fused_gpu.covers(y0) and fused_gpu.fits(form)):
        return None
    n = y0.shape[1]
    if clock is not None:
        # the time has no error, and the mean square is to be that of the other states
        share = (n / (n + 1)) ** 0.5
        engine = replace(engine, rtol=share * engine.rtol, atol=share * engine.atol)
        y0, mesh = torch.nn.functional.pad(y0, (0, 1)), with_clock(mesh, clock)
    if field is not None:
        states, status, evaluations = compiled_field.integrate(field, y0, mesh, engine)
    else:
        assert form is not None  # the case of the GPU
        states, status, evaluations = fused_gpu.integrate(form, y0, mesh, engine)
    return states[..., :n], status, evaluations


def _solved(
    method: Scheme, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh, engine: RungeKutta
) -> tuple[Tensor, Tensor, int]:
    """Solve by one method, compiled where the field can be."""
    solved = _compiled(dynamics, y0, theta, mesh, engine, isinstance(method, Rodas5P))
    if solved is None:
        states, run = step_through(method, dynamics, y0, theta, mesh, engine)
        solved = states, run.status, run.evaluations
    return solved


def integrate(
    dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh, engine: RungeKutta
) -> tuple[Tensor, Tensor, int]:
    """Solve by the explicit method, and the subjects that turn out to be stiff by the implicit method; both compiled
    where the field can be.

    Returns:
        States at the wanted times, ``[subject, time, state]``; status ``[subject]``; evaluations of the field, all
        subjects together.
    """
    # one set of parameters may serve several periods
    if theta.shape[1] == 1 and not mesh.one_period:
        mesh = replace(mesh, period=torch.zeros_like(mesh.period))
    states, status, evaluations = _solved(Tsit5(), dynamics, y0, theta, mesh, engine)
    if not bool(status.any()):
        return states, status, evaluations
    # at a tight tolerance the steps of a stiff subject never reach the limit of stability: only their number shows it
    stiff = ((status == STIFF) | (status == Status.MAX_EVALUATIONS)).nonzero()[:, 0]
    if len(stiff):
        own, ended, more = _solved(Rodas5P(), dynamics, y0[stiff], theta[stiff], mesh.select(stiff), engine)
        states, status = states.index_copy(0, stiff, own), status.index_copy(0, stiff, ended)
        evaluations += more
    return states, status, evaluations
