"""Gradient steps of diffrax: the code of one subject, `vmap` over subjects, one `jit` for the whole step."""

from __future__ import annotations

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import optax
from jax import Array

from solver_benchmark.workloads import ATOL, RTOL, Workload

jax.config.update("jax_default_matmul_precision", "highest")

MAX_STEPS = 256
"""Largest number of steps between two doses; diffrax reserves checkpoints for so many."""


def device_peak() -> int:
    """Peak memory of arrays on the GPU, in bytes."""
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def diffrax_step(workload: Workload, device: str, solver: str) -> Callable[..., Array]:
    """A gradient step, or its solve alone; `lax.scan` solves from dose to dose.

    The other method of diffrax for doses is one solve of the state minus all doses so far, with their times as
    `jump_ts`. It takes as long and is less exact: the subtracted amount grows, and the tolerance with it.
    """
    times, where = workload.slots
    slots, index = jnp.array(times), tuple(map(jnp.array, where))
    segments = jax.tree.map(lambda *leaves: jnp.array(leaves, jnp.float32), *workload.segments)
    y0, matrix, others = jnp.array(workload.y0), jnp.array(workload.matrix), len(workload.states) - 2
    latents, targets = jnp.array(workload.latents), jnp.array(workload.targets)
    controller = diffrax.PIDController(rtol=RTOL, atol=ATOL)

    def field(t: Array, y: Array, args: tuple[tuple[Array, ...], Array, Array]) -> Array:
        (w1, b1, w2, b2, w3, b3), z, flow = args
        x = jnp.tanh(w1 @ jnp.concatenate([y[others:], z]) + b1)
        learned = w3 @ jnp.tanh(w2 @ x + b2) + b3
        return matrix @ y + jnp.pad(learned, (others, 0)) + flow

    def solve(weights: tuple[Array, ...], z: Array, times: Array) -> Array:
        def restart(y: Array, segment: tuple) -> tuple[Array, Array]:
            (start, end, jump, flow), wanted = segment
            states = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                getattr(diffrax, solver)(),
                start,
                end,
                None,
                y + jump,
                args=(weights, z, flow),
                saveat=diffrax.SaveAt(ts=wanted),
                stepsize_controller=controller,
                max_steps=MAX_STEPS,
            ).ys
            return states[-1], states

        return jax.lax.scan(restart, y0, (tuple(segments), times))[1]

    def loss(weights: tuple[Array, ...]) -> tuple[Array, Array]:
        states = jax.vmap(solve, (None, 0, 0))(weights, latents, slots)[index]
        return jnp.mean((states - targets) ** 2), states

    adam = optax.adam(0.0)

    @jax.jit
    def update(weights: tuple[Array, ...], state: optax.OptState) -> tuple:
        (_, states), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        change, state = adam.update(gradient, state)
        return optax.apply_updates(weights, change), state, states

    ahead = jax.jit(lambda weights: loss(weights)[1])
    weights = tuple(map(jnp.array, workload.weights))
    carried = [weights, adam.init(weights)]

    def step(gradient: bool = True) -> Array:
        if not gradient:
            return jax.block_until_ready(ahead(weights))
        *carried[:], states = jax.block_until_ready(update(*carried))
        return states

    return step
