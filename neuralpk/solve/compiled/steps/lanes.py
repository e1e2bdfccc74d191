"""Lanes: the working memory of the subjects that go through the stages of a step together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuralpk.solve.compiled.steps.jit_options import allocating, inner

Array = NDArray[Any]
LANES = 8


class Lanes(NamedTuple):
    """Working memory of the subjects that go through the stages of a step together, one subject in each lane.

    The lane is the last index: loops over it are short, of a fixed length, and over contiguous numbers. Lanes without a
    subject are evaluated too; their results are not used.
    """

    subject: Array  # [lane], -1 for none
    node: Array  # [lane] the last node before the step
    seen: Array  # [lane] number of wanted times before the step
    step: Array  # [lane] the last step recorded; backward: the step itself; -1 for none
    tally: Array  # [3, lane] forward: steps at the limit of stability; consecutive steps below it; evaluations
    flag: Array  # [lane] forward: slope not yet computed; backward: the step ends at the next node
    ends: Array  # [row] backward: lanes whose last stage is evaluated
    place: Array  # [2, lane] forward: time since the node; time from this node to the next
    size: Array  # [lane] forward: size of the next step
    h: Array  # [lane] size of this step
    verdict: Array  # [4, lane] forward: squared error; squared distances of the last two slopes and of their states;
    # factor of the size of the next step
    to_size: Array  # [lane] backward: gradient with respect to the logarithm of the time between the two nodes
    state: Array  # [state, lane]; backward: gradient with respect to the state at the end of the step
    y: Array  # [state, lane] backward: state at the start of the step
    start_pull: Array  # [state, lane] backward: gradient with respect to y
    to_point: Array  # [state, lane] backward: gradient with respect to the state of a stage; forward: gathered slopes
    entering: Array  # [state, lane] rate of input
    gathered: Array  # [state, row] forward: gathered rates of input; backward: gathered gradients of last slopes
    k: Array  # [stage, state, lane] slopes of the stages
    points: Array  # [stage, state, lane] states of the stages; the last is that at the end of the step
    pulls: Array  # [stage, state, lane] backward: gradient with respect to the slopes
    weights: Array  # [2, stage] of the slopes in the dense output, and their derivatives
    scratch: Array  # [2, lane] of one calculation


@allocating
def make_lanes(states, method):
    """Lanes without subjects, for the steps of a method."""
    stages = len(method.dense)
    return Lanes(
        subject=np.full(LANES, -1),
        node=np.full(LANES, -1),
        seen=np.full(LANES, -1),
        step=np.full(LANES, -1),
        tally=np.zeros((3, LANES), np.int64),
        flag=np.zeros(LANES, np.bool_),
        ends=np.zeros(LANES, np.int64),
        place=np.zeros((2, LANES)),
        size=np.zeros(LANES),
        h=np.zeros(LANES),
        verdict=np.zeros((4, LANES)),
        to_size=np.zeros(LANES),
        state=np.zeros((states, LANES)),
        y=np.zeros((states, LANES)),
        start_pull=np.zeros((states, LANES)),
        to_point=np.zeros((states, LANES)),
        entering=np.zeros((states, LANES)),
        gathered=np.zeros((states, LANES)),
        k=np.zeros((stages, states, LANES)),
        points=np.zeros((stages + 1 - method.overlap, states, LANES)),
        pulls=np.zeros((stages, states, LANES)),
        weights=np.zeros((2, stages)),
        scratch=np.zeros((2, LANES)),
    )


@inner
def count_live(lanes):
    """Number of lanes that have a subject."""
    live = 0
    for lane in range(LANES):
        live += lanes.subject[lane] >= 0
    return live
