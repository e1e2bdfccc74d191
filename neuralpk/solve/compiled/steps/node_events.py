"""The events at the nodes of each subject, forward and in the reverse sweep."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from neuralpk.solve.compiled.matrix_product import within
from neuralpk.solve.compiled.steps.jit_options import inner

Array = NDArray[Any]


class Clock(NamedTuple):
    """A `neuralpk.solve.event_nodes.Mesh` as arrays, with the order in which the wanted times are reached."""

    times: Array  # [subject, node]
    reset: Array  # [subject, node]
    jump: Array  # [subject, node, state]
    input: Array  # [subject, node, state]
    period: Array  # [subject, node]
    wanted: Array  # [subject, time] node after which the state is read
    since: Array  # [subject, time] time from this node to the wanted time
    order: Array  # [subject, time] the wanted times, sorted
    periods: int


@inner
def enter(clock, i, lane, node, seen, state, place, out):
    """Apply the events at the next nodes, up to the next interval between two nodes that has a length.

    Returns whether there is one and a time is still wanted in it or later. Then ``place[:, lane]`` becomes
    (0, length of the interval).
    """
    within()
    nodes, wanted = clock.times.shape[1], clock.wanted.shape[1]
    while True:
        node[lane] += 1
        j = node[lane]
        for d in range(state.shape[0]):
            state[d, lane] = clock.jump[i, j, d] + (0.0 if clock.reset[i, j] else state[d, lane])
        length = 0.0 if j + 1 >= nodes else float(clock.times[i, j + 1]) - float(clock.times[i, j])
        while seen[lane] < wanted:
            m = clock.order[i, seen[lane]]
            if clock.wanted[i, m] != j or (clock.since[i, m] > 0.0 and length > 0.0):
                break
            for d in range(state.shape[0]):
                out[i, m, d] = state[d, lane]
            seen[lane] += 1
        if seen[lane] == wanted:
            return False
        if length > 0.0:
            place[0, lane], place[1, lane] = 0.0, length
            return True
        if j + 1 >= nodes:
            return False


@inner
def leave(clock, i, lane, node, until, cotangent, seen, upstream, gradients):
    """Gradients of the events of subject `i`, from ``node[lane]`` down to the node after `until`."""
    within()
    states = cotangent.shape[0]
    while node[lane] > until:
        j = node[lane]
        while seen[lane] > 0:
            m = clock.order[i, seen[lane] - 1]
            if clock.wanted[i, m] != j:
                break
            for d in range(states):
                cotangent[d, lane] += upstream[i, m, d]
            seen[lane] -= 1
        for d in range(states):
            gradients.jump[i, j, d] = cotangent[d, lane]
            if clock.reset[i, j]:
                cotangent[d, lane] = 0.0
        node[lane] -= 1
    if until < 0:
        for d in range(states):
            gradients.initial[i, d] = cotangent[d, lane]
            cotangent[d, lane] = 0.0
