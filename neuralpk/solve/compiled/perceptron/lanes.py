"""Lanes: the places in which some subjects go through the stages of a step together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuralpk.solve.compiled.perceptron.jit_options import inner
from neuralpk.solve.tableau import STAGES

Array = NDArray[Any]
LANES = 8


class Lanes(NamedTuple):
    """Where some subjects are that go through the stages together. The lane comes last: loops over it are short, of a
    fixed length, and over neighbours. A lane without a subject goes along, with numbers that lead to nothing."""

    subject: Array  # [lane], -1 for none
    node: Array  # [lane] after which it is
    seen: Array  # [lane] wanted times before it
    step: Array  # [lane] the last step taken, -1 for none
    tally: Array  # [3, lane] forward: steps in a row at the edge of stability, away from it; evaluations
    flag: Array  # [lane] forward: no slope yet; backward: the step ends its stretch
    ends: Array  # [row] backward: lanes whose last stage is evaluated
    place: Array  # [2, lane] forward: since the node, length of the stretch
    size: Array  # [lane] forward: of the next step
    h: Array  # [lane] of this step
    to_size: Array  # [lane] backward: what came back to it, times it
    state: Array  # [state, lane]; backward: what came back to it
    y: Array  # [state, lane] backward: at the start of the step
    start_pull: Array  # [state, lane] what came back to it
    to_point: Array  # [state, lane] and to where a stage stands; forward: the slopes of some lanes
    entering: Array  # [state, lane] rate of input
    gathered: Array  # [state, row] that of some lanes; backward: what came back to their last slope
    k: Array  # [stage, state, lane] slopes
    points: Array  # [stage, state, lane] where they are taken
    pulls: Array  # [stage, state, lane] backward: what came back to the slopes
    weights: Array  # [2, stage] of the dense output


def make_lanes(states: int) -> Lanes:
    """No subject in any lane."""
    by_state, by_stage = (states, LANES), (STAGES, states, LANES)
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
        to_size=np.zeros(LANES),
        state=np.zeros(by_state),
        y=np.zeros(by_state),
        start_pull=np.zeros(by_state),
        to_point=np.zeros(by_state),
        entering=np.zeros(by_state),
        gathered=np.zeros(by_state),
        k=np.zeros(by_stage),
        points=np.zeros(by_stage),
        pulls=np.zeros(by_stage),
        weights=np.zeros((2, STAGES)),
    )


@inner
def count_live(lanes):
    """How many lanes have a subject."""
    live = 0
    for lane in range(LANES):
        live += lanes.subject[lane] >= 0
    return live
