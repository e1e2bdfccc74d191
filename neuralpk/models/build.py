"""From plain settings to a model: the one place that knows which parts there are."""

from __future__ import annotations

from typing import Literal, TypedDict, cast, get_args

from neuralpk.dynamics import (
    Absorption,
    CompartmentModel,
    ContinuousTimeRNN,
    Dynamics,
    Elimination,
    GatedRecurrence,
    HybridDynamics,
    JumpingField,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    StateSpace,
)
from neuralpk.dynamics.recurrent import Gap
from neuralpk.encoders import ENCODERS
from neuralpk.models.individual import IndividualParameters
from neuralpk.models.latent_ode import LatentModel, LatentODE
from neuralpk.models.recurrent import LatentODERNN, LatentRecurrence
from neuralpk.residual_error import ERRORS
from neuralpk.scaling import Scaling
from neuralpk.solve import Engine, Gradient, SolverOptions

System = Literal["compartments", "lotka_volterra"]
Field = Literal["mechanistic", "neural", "free", "hybrid", "gru", "gru_gaps", "gru_decay", "ode_rnn", "ctrnn"]

_GAPS: dict[str, Gap] = {"gru": "ignored", "gru_gaps": "given", "gru_decay": "decay"}


class DynamicsSettings(TypedDict, total=False):
    """The vector field.

    system: ``compartments`` (pharmacokinetics) or ``lotka_volterra``.
    field: ``mechanistic`` (the equations, with individual parameters from z); ``neural`` (compartments whose rates
        are a network of state and z; for Lotka–Volterra the same as free); ``free`` (dy/dt is a network of state
        and z); ``hybrid`` (mechanistic plus neural); or a recurrent network of hidden states: ``gru``, ``gru_gaps``,
        ``gru_decay`` (steps from event to event), ``ode_rnn`` (an ODE network, doses as steps), ``ctrnn`` (in
        continuous time).
    compartments, absorption, elimination, transits, lag: as for `CompartmentModel`; `lag` delays doses into the first.
    latent_size: latent dimensions beside those of the named parameters; by default 0 for a neural or hybrid
        field of compartments, 4 for other networks.
    hidden, layers: size of its network.
    bend: how far the network of a neural or hybrid field is expected to bend the rates of compartments, by default 0.3.
    typical: starting values of named parameters; those left out are guessed from the data.
    omega: starting value of the standard deviation of every eta.
    omega_spread: of log(omega) around it in a weak prior; none is left out.
    typical_spread: likewise of log(typical) around the starting values, by name; parameters left out have none.
    correlated: whether the random effects of named parameters are (a full Omega); by default they are independent.
    effects: parameter to the covariates that act on it; by default none in a mechanistic or hybrid field, all on all
        in a neural or free one.
    """

    system: System
    field: Field
    compartments: int
    absorption: Absorption
    elimination: Elimination
    transits: int
    lag: bool
    latent_size: int
    hidden: int
    layers: int
    bend: float
    typical: dict[str, float]
    omega: float
    omega_spread: float
    typical_spread: dict[str, float]
    correlated: bool
    effects: dict[str, list[str]]


class EncoderSettings(TypedDict, total=False):
    """The encoder: kind ``set`` or ``recurrent``, hidden its width."""

    kind: Literal["set", "recurrent"]
    hidden: int


class SolverSettings(TypedDict, total=False):
    """As for `SolverOptions`."""

    engine: Engine
    gradient: Gradient
    method: str
    rtol: float
    atol: float
    step: float
    max_evaluations: int


def build_mechanism(settings: DynamicsSettings) -> Dynamics:
    """The mechanistic equations that the settings name."""
    if settings.get("system", "compartments") == "lotka_volterra":
        return LotkaVolterra()
    absorption = settings.get("absorption", "none")
    return CompartmentModel(
        settings.get("compartments", 2),
        absorption,
        settings.get("elimination", "linear"),
        settings.get("transits", 3),
        lag=("central" if absorption == "none" else "depot") if settings.get("lag", False) else None,
    )


def _recurrent(field: str, settings: DynamicsSettings, mechanism: Dynamics, scaling: Scaling) -> StateSpace:
    """The recurrent network that the settings name, with doses and samples where the mechanism has them."""
    hidden, latent = settings.get("hidden", 32), settings.get("latent_size", 4)
    where = (mechanism.states, mechanism.endpoints, latent, scaling, hidden)
    if field == "ode_rnn":
        dosed = isinstance(mechanism, CompartmentModel)
        return JumpingField(*where, layers=settings.get("layers", 2), dosed=dosed)
    return ContinuousTimeRNN(*where) if field == "ctrnn" else GatedRecurrence(*where, gap=_GAPS[field])


def build_dynamics(settings: DynamicsSettings, scaling: Scaling) -> StateSpace:
    """The vector field or recurrent network that the settings name."""
    mechanism = build_mechanism(settings)
    field = settings.get("field", "neural")
    if field == "mechanistic":
        return mechanism
    if field in (*_GAPS, "ode_rnn", "ctrnn"):
        return _recurrent(field, settings, mechanism, scaling)
    dosed, correction = isinstance(mechanism, CompartmentModel), field == "hybrid"
    network = {"hidden": settings.get("hidden", 32), "layers": settings.get("layers", 2)}
    learned: Dynamics
    if dosed and field != "free":
        latent = settings.get("latent_size", 0)
        learned = NeuralCompartments(
            mechanism.states, latent, scaling, correction=correction, bend=settings.get("bend", 0.3), **network
        )
    else:
        latent, endpoints = settings.get("latent_size", 4), mechanism.endpoints
        learned = NeuralField(mechanism.states, endpoints, latent, scaling, dosed, correction=correction, **network)
    return HybridDynamics(mechanism, learned) if correction else learned


def _check(dynamics: DynamicsSettings, encoder: EncoderSettings, error: str, solver: SolverSettings) -> None:
    """Refuse settings outside their lists: a misspelt one would quietly train something else."""
    groups = (("dynamics", dynamics, DynamicsSettings), ("encoder", encoder, EncoderSettings))
    for group, settings, kind in (*groups, ("solver", solver, SolverSettings)):
        unknown = set(settings) - set(kind.__annotations__)
        if unknown:
            raise ValueError(f"{group} has no setting {sorted(unknown)}; there are {', '.join(kind.__annotations__)}")
    for name, value, allowed in (
        ("error", error, tuple(ERRORS)),
        ("encoder.kind", encoder.get("kind", "set"), tuple(ENCODERS)),
        ("dynamics.system", dynamics.get("system", "compartments"), get_args(System)),
        ("dynamics.field", dynamics.get("field", "neural"), get_args(Field)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is one of {', '.join(allowed)}; not {value!r}")
    learned = dynamics.get("field", "neural") not in ("mechanistic", "hybrid")
    if learned and (dynamics.get("lag", False) or dynamics.get("elimination", "linear") != "linear"):
        raise ValueError("lag and elimination are of a mechanistic or hybrid field; a learned one has neither")
    for name, number in (
        ("omega", dynamics.get("omega", 1)),
        ("omega_spread", dynamics.get("omega_spread", 1)),
        ("hidden", dynamics.get("hidden", 1)),
        ("layers", dynamics.get("layers", 1)),
        *dynamics.get("typical", {}).items(),
        *dynamics.get("typical_spread", {}).items(),
    ):
        if not number > 0:
            raise ValueError(f"dynamics.{name} must be positive, not {number}")
    if dynamics.get("latent_size", 0) < 0 or encoder.get("hidden", 1) < 1:
        raise ValueError(f"sizes may not be negative: dynamics {dynamics}, encoder {encoder}")


def build_model(
    dynamics: DynamicsSettings, encoder: EncoderSettings, error: str, solver: SolverSettings, scaling: Scaling
) -> LatentModel:
    """A latent model from plain settings.

    Raises:
        ValueError: a setting outside its list, by name.
    """
    _check(dynamics, encoder, error, solver)
    kind = encoder.get("kind", "set")
    field = build_dynamics(dynamics, scaling)
    if len(scaling.value) > len(field.endpoints):
        raise ValueError(f"the data have {len(scaling.value)} endpoints (DVID); this field has {len(field.endpoints)}")
    typical = field.guess(scaling)
    given, sure = dynamics.get("typical", {}), dynamics.get("typical_spread", {})
    unknown = (set(given) | set(sure)) - set(typical)
    if unknown:
        raise ValueError(f"typical names {sorted(unknown)}; this field has {sorted(typical)}")
    latent = len(field.parameter_names) - len(typical)
    effects = dynamics.get("effects")
    if effects is None and dynamics.get("field", "neural") not in ("mechanistic", "hybrid"):
        effects = {name: sorted(scaling.covariates) for name in typical}
    omega, spread = dynamics.get("omega", 0.3), dynamics.get("omega_spread")
    correlated = dynamics.get("correlated", False)
    individual = IndividualParameters(typical | dict(given), latent, scaling, omega, effects, spread, correlated, sure)
    reader = ENCODERS[kind](scaling, individual.latent_size, encoder.get("hidden", 64))
    parts = (ERRORS[error](scaling), SolverOptions(**solver))
    if isinstance(field, GatedRecurrence):
        return LatentRecurrence(reader, individual, field, *parts)
    if isinstance(field, JumpingField):
        return LatentODERNN(reader, individual, field, *parts)
    return LatentODE(reader, individual, cast(Dynamics, field), *parts)
