"""Compartment models: amounts that flow from one compartment to another, or out of the body."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from neuralpk.dynamics.dynamics_base import Dynamics, at_state
from neuralpk.scaling import Scaling

Absorption = Literal["none", "first_order", "transit"]
Elimination = Literal["linear", "michaelis_menten", "time_varying"]


def inputs_to_central(states: tuple[str, ...]) -> tuple[str, ...]:
    """The depot and the transit compartments after it, in the order in which the drug passes through them."""
    return tuple(state for state in states if state == "depot" or state.startswith("transit"))


def mammillary_flows(states: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """Flows of a central compartment with its peripherals and the chain of its inputs.

    First out of central, then to and from each peripheral, then along the chain.
    """
    flows: list[tuple[str, str | None]] = [("central", None)]
    peripherals = [state for state in states if state.startswith("peripheral")]
    flows += [flow for p in peripherals for flow in (("central", p), (p, "central"))]
    return (*flows, *pairwise((*inputs_to_central(states), "central")))


def flow_indices(states: tuple[str, ...], flows: tuple[tuple[str, str | None], ...]) -> tuple[tuple[int, int], ...]:
    """Source and destination of every flow as indices of the states, -1 for out of the system."""
    return tuple((states.index(a), -1 if b is None else states.index(b)) for a, b in flows)


class Compartments(Dynamics):
    """Amounts that move along flows: dA/dt = K(t, A, theta)·A.

    Flow f moves ``rates[f] · A[source]`` per time from its source to its destination. If no rate constant is negative,
    K is non-negative off its diagonal and its columns sum to at most 0: amounts stay positive and their sum never
    increases without a dose, whatever computes the rate constants.

    States are amounts of drug (`dosed`); a subclass whose states are other quantities sets ``dosed = False``.

    Args:
        states: names of the compartments.
        flows: pairs (source, destination); destination None for out of the system.

    Raises:
        ValueError: a flow from or to a compartment that does not exist.
    """

    dosed = True

    source: Tensor
    incidence: Tensor
    generator: Tensor

    def __init__(self, states: Sequence[str], flows: Sequence[Sequence[str | None]]) -> None:
        super().__init__()
        self.states = states = tuple(states)
        unknown = [f"{a} -> {b}" for a, b in flows if a not in states or (b is not None and b not in states)]
        if unknown:
            raise ValueError(f"flows join two of the compartments {', '.join(states)}, not {', '.join(unknown)}")
        self.flows = tuple((str(a), b) for a, b in flows)
        source = torch.tensor([states.index(a) for a, _ in self.flows])
        incidence = torch.zeros(len(flows), len(states))
        for row, (a, b) in zip(incidence, self.flows, strict=True):
            row[states.index(a)] -= 1
            if b is not None:
                row[states.index(b)] += 1
        generator = incidence[:, :, None] * torch.nn.functional.one_hot(source, len(states))[:, None, :]
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("incidence", incidence, persistent=False)
        self.register_buffer("generator", generator.flatten(1), persistent=False)

    @abstractmethod
    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        """Rate constant of every flow, per time, ``[subject, flow]``."""

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return self.slope(self.rates(t, y, theta), y)

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (scaling.amount,) * len(self.states) if self.dosed else super().state_size(scaling)

    def slope(self, rates: Tensor, y: Tensor) -> Tensor:
        """dA/dt ``[..., state]`` for rate constants ``[..., flow]`` and amounts ``[..., state]``."""
        return (rates * y[..., self.source]) @ self.incidence.to(y.dtype)

    def matrix(self, rates: Tensor) -> Tensor:
        """K ``[..., state, state]`` for rate constants ``[..., flow]``."""
        n = len(self.states)
        return (rates @ self.generator.to(rates.dtype)).reshape(*rates.shape[:-1], n, n)


class CompartmentModel(Compartments):
    """One to three compartments with the absorption and elimination of this list; states are amounts.

    The central compartment exchanges with peripheral ones (Gabrielsson and Weiner, 5th ed., ch. 2)::

        dA1/dt = input − (CL/V1)·A1 − Σ_p (Q_p/V1)·A1 + Σ_p (Q_p/V_p)·A_p
        dAp/dt = (Q_p/V1)·A1 − (Q_p/V_p)·A_p            observed: A1/V1

    Args:
        compartments: 1, 2 or 3.
        absorption: ``none`` (doses go into central); ``first_order`` (depot, input KA·A_depot); ``transit`` (depot
            and `transits` compartments, each emptied at rate KTR).
        elimination: ``linear`` (CL); ``michaelis_menten`` (VMAX·C/(KM + C), amount per time);
            ``time_varying`` (CL(t) = CL·(CLR + (1 − CLR)·exp(−KCL·t)): from CL to CLR·CL).
        transits: number of transit compartments.
        lag: name of the compartment whose doses are delayed by LAG, or None.
        bioavailability: name of the compartment whose doses are multiplied by F, or None.
        rate: name of the compartment whose infusions with RATE -1 have the rate R, or None.
        duration: name of the compartment whose infusions with RATE -2 last D, or None.
        outputs: names of the compartments whose concentrations are measured, in the order of DVID; None for central.

    Parameters are CL (L/h), V1 (L), Q, V2 (L/h, L), Q3, V3, KA, KTR (1/h), VMAX (mg/h), KM (mg/L), LAG (h), F,
    R (mg/h), D (h), in the cohort's units; V1 is always the central volume.

    Raises:
        ValueError: an option outside this list.
    """

    def __init__(
        self,
        compartments: int = 2,
        absorption: Absorption = "none",
        elimination: Elimination = "linear",
        transits: int = 3,
        lag: str | None = None,
        bioavailability: str | None = None,
        outputs: Sequence[str] | None = None,
        rate: str | None = None,
        duration: str | None = None,
    ) -> None:
        if compartments not in (1, 2, 3):
            raise ValueError(f"compartments must be 1, 2 or 3, not {compartments}")
        if transits < 1:
            raise ValueError(f"transits must be 1 or more, not {transits}")
        inputs = {"none": (), "first_order": ("depot",), "transit": ("depot",)}
        parameters = {"linear": ("CL",), "michaelis_menten": ("VMAX", "KM"), "time_varying": ("CL", "CLR", "KCL")}
        if absorption not in inputs or elimination not in parameters:
            raise ValueError(
                f"absorption is one of {list(inputs)}, elimination one of {list(parameters)}; "
                f"not {absorption!r}, {elimination!r}"
            )
        peripherals = ("peripheral", "peripheral2")[: compartments - 1]
        chain = tuple(f"transit{k}" for k in range(1, transits + 1)) if absorption == "transit" else ()
        # the order of CMT in an event table: transits last, so that central is 2 after any absorption
        states = (*inputs[absorption], "central", *peripherals, *chain)
        super().__init__(states, mammillary_flows(states))
        for name in (lag, bioavailability, rate, duration):
            if name is not None and name not in states:
                raise ValueError(
                    f"lag, bioavailability, rate and duration name one of the compartments {states}, not {name!r}"
                )
        self.absorption, self.elimination = absorption, elimination
        self.lag_compartment, self.bioavailability_compartment = lag, bioavailability
        self.with_rate, self.with_duration = (() if name is None else (name,) for name in (rate, duration))
        self.linear = elimination == "linear"
        self.autonomous = elimination != "time_varying"
        self.central = states.index("central")
        unknown = [name for name in outputs or () if name not in states]
        if unknown or outputs == []:
            raise ValueError(f"outputs name compartments among {', '.join(states)}, not {outputs}")
        self.endpoints = tuple(states.index(name) for name in outputs or ("central",))
        names = [*parameters[elimination], "V1", *("Q", "V2", "Q3", "V3")[: 2 * len(peripherals)]]
        names += {"none": [], "first_order": ["KA"], "transit": ["KTR"]}[absorption]
        options = {"LAG": lag, "F": bioavailability, "R": rate, "D": duration}
        names += [name for name, compartment in options.items() if compartment is not None]
        self.parameter_names = tuple(names)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        p = self.named(theta)
        if self.elimination == "michaelis_menten":
            # the solver's error can make the amount slightly negative; the clearance must stay finite
            clearance = p["VMAX"] / (p["KM"] + (y[..., self.central] / p["V1"]).clamp(min=0.0))
        elif self.elimination == "time_varying":
            clearance = p["CL"] * (p["CLR"] + (1 - p["CLR"]) * torch.exp(-p["KCL"] * t))
        else:
            clearance = p["CL"]
        rates = [clearance / p["V1"]]
        for q, v in (("Q", "V2"), ("Q3", "V3")):
            if q in p:
                rates += [p[q] / p["V1"], p[q] / p[v]]
        if self.absorption != "none":
            inflow = p["KA" if self.absorption == "first_order" else "KTR"]
            rates += [inflow] * (len(self.flows) - len(rates))
        return torch.stack(rates, dim=-1)

    def rate_matrix(self, theta: Tensor) -> Tensor:
        if not self.linear:
            return super().rate_matrix(theta)
        return self.matrix(self.rates(theta[..., 0], theta, theta))  # a linear model reads neither t nor y

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        """Concentrations: every compartment over its own volume; amounts where there is no volume (depot)."""
        p = self.named(theta)
        volume = {"central": "V1", "peripheral": "V2", "peripheral2": "V3"}
        one = torch.ones_like(p["V1"])
        return y / torch.stack([p[volume[s]] if s in volume else one for s in self.states], dim=-1)

    def lag(self, theta: Tensor) -> Tensor | None:
        if self.lag_compartment is None:
            return None
        return at_state(self.named(theta)["LAG"], self.states.index(self.lag_compartment), len(self.states), 0.0)

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        if self.bioavailability_compartment is None:
            return None
        return at_state(
            self.named(theta)["F"], self.states.index(self.bioavailability_compartment), len(self.states), 1.0
        )

    def infusion_rate(self, theta: Tensor) -> Tensor | None:
        return self._infused("R", self.with_rate, theta)

    def infusion_duration(self, theta: Tensor) -> Tensor | None:
        return self._infused("D", self.with_duration, theta)

    def _infused(self, name: str, states: tuple[str, ...], theta: Tensor) -> Tensor | None:
        if not states:
            return None
        return at_state(self.named(theta)[name], self.states.index(states[0]), len(self.states), math.nan)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """The rate constants k10 = CL/V1, k12 = Q/V1, k21 = Q/V2 (and k13, k31), per time."""
        p = self.named(theta)
        derived = {"k10": p["CL"] / p["V1"]} if "CL" in p else {}
        for q, v, k in (("Q", "V2", 2), ("Q3", "V3", 3)):
            if q in p:
                derived |= {f"k1{k}": p[q] / p["V1"], f"k{k}1": p[q] / p[v]}
        return derived

    def guess(self, scaling: Scaling) -> dict[str, float]:
        volume = scaling.amount / scaling.value[0]
        rate = 4.0 / scaling.time  # a few half-lives within the sampling period
        values = {"CL": volume * rate, "V1": volume, "Q": volume * rate, "V2": volume, "Q3": volume * rate / 4}
        values |= {"V3": volume, "KA": 4 * rate, "KTR": 8 * rate, "VMAX": scaling.value[0] * volume * rate}
        values |= {"KM": scaling.value[0], "CLR": 0.7, "KCL": rate, "LAG": 0.01 * scaling.time, "F": 0.9}
        values |= {"R": scaling.amount * rate, "D": 1 / rate}
        return {name: values[name] for name in self.parameter_names}


class RateConstants(Compartments):
    """Linear compartments whose parameters are their rate constants, ``base_central_out`` and so on, per time.

    Their starting values are a hundredth of those of a compartment model: a correction of a mechanism starts small.

    Args:
        states: names of the compartments.
        flows: pairs (source, destination); destination None for out of the system.
    """

    linear = True

    def __init__(self, states: Sequence[str], flows: Sequence[Sequence[str | None]]) -> None:
        super().__init__(states, flows)
        self.parameter_names = tuple(f"base_{a}_{b or 'out'}" for a, b in self.flows)
        self.endpoints = (self.states.index("central") if "central" in self.states else 0,)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return theta

    def rate_matrix(self, theta: Tensor) -> Tensor:
        return self.matrix(theta)

    def guess(self, scaling: Scaling) -> dict[str, float]:
        # absorption is usually the fastest process; the other rate constants start equal
        rate, inlets = 0.04 / scaling.time, inputs_to_central(self.states)
        pairs = zip(self.parameter_names, self.flows, strict=True)
        return {name: 4 * rate if source in inlets else rate for name, (source, _) in pairs}


class ConcentrationModel(Compartments):
    """Two compartments in concentrations and rate constants (B. Maurel's talk, 2025)::

        dC_c/dt = input/V1 − k_e·C_c − k_cp·C_c + k_pc·C_p        dC_p/dt = k_cp·C_c − k_pc·C_p

    The same concentrations as of a `CompartmentModel` of two compartments with CL = k_e·V1, Q = k_cp·V1,
    V2 = V1·k_cp/k_pc; C_p is the amount in the peripheral compartment over V1. Parameters: k_e, k_cp, k_pc (1/h) and
    V1 (L). Doses are amounts.
    """

    linear = True

    def __init__(self) -> None:
        states = ("central", "peripheral")
        super().__init__(states, mammillary_flows(states))
        self.parameter_names = ("k_e", "k_cp", "k_pc", "V1")

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (scaling.value[0],) * len(self.states)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return theta[..., :3]

    def rate_matrix(self, theta: Tensor) -> Tensor:
        return self.matrix(theta[..., :3])

    def dose_unit(self, theta: Tensor) -> Tensor:
        return (1.0 / theta[..., 3:]).expand(*theta.shape[:-1], len(self.states))

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """The clearances and the peripheral volume: CL, Q, V2."""
        k_e, k_cp, k_pc, volume = theta.unbind(-1)
        return {"CL": k_e * volume, "Q": k_cp * volume, "V2": volume * k_cp / k_pc}

    def guess(self, scaling: Scaling) -> dict[str, float]:
        rates = dict.fromkeys(("k_e", "k_cp", "k_pc"), 4.0 / scaling.time)  # as for `CompartmentModel`
        return rates | {"V1": scaling.amount / scaling.value[0]}
