"""From plain settings to a model: the one place that knows which parts there are."""

from __future__ import annotations

from typing import Literal, TypedDict, get_args

from neuralpk.dynamics import (
    Absorption,
    CompartmentModel,
    Dynamics,
    Elimination,
    FluctuatingClearance,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    OrnsteinUhlenbeck,
    StochasticDynamics,
    StochasticLotkaVolterra,
)
from neuralpk.encoders import ENCODERS, RecurrentEncoder
from neuralpk.models.individual import IndividualParameters
from neuralpk.models.latent_ode import LatentODE
from neuralpk.models.latent_sde import LatentSDE
from neuralpk.residual_error import ERRORS
from neuralpk.scaling import Scaling
from neuralpk.solve import Engine, Gradient, SolverOptions

System = Literal["compartments", "lotka_volterra", "ornstein_uhlenbeck"]
Field = Literal["mechanistic", "neural", "free", "hybrid"]


class DynamicsSettings(TypedDict, total=False):
    """The vector field.

    system: ``compartments`` (pharmacokinetics), ``lotka_volterra`` or ``ornstein_uhlenbeck``.
    field: ``mechanistic`` (the equations, with individual parameters from z); ``neural`` (compartments whose rates
        are a network of state and z; for Lotka–Volterra the same as free); ``free`` (dy/dt is a network of state
        and z); ``hybrid`` (mechanistic plus neural).
    compartments, absorption, elimination, transits, lag: as for `CompartmentModel`; `lag` delays doses into the first.
    latent_size: latent dimensions beside those of the named parameters; by default 4 for a free field, 0 else.
    hidden, layers: size of its network.
    bend: how far the network of a neural or hybrid field is expected to bend the rates of compartments, by default 0.3.
    noise: starting value of sigma of a stochastic mechanistic field, per square root of time: a fluctuating clearance
        of compartments, multiplicative noise of Lotka–Volterra (`neuralpk.dynamics.StochasticDynamics`); left out,
        the field has none. The model is then a latent SDE, with a recurrent encoder.
    typical: starting values of named parameters; those left out are guessed from the data.
    omega: starting value of the standard deviation of every eta.
    omega_spread: of log(omega) around it in a weak prior; none is left out.
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
    noise: float
    typical: dict[str, float]
    omega: float
    omega_spread: float
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


def build_dynamics(settings: DynamicsSettings, scaling: Scaling) -> Dynamics:
    """The vector field that the settings name."""
    field = settings.get("field", "neural")
    if "noise" in settings:
        return _build_stochastic(settings, scaling)
    mechanism = build_mechanism(settings)
    if field == "mechanistic":
        return mechanism
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


def _build_stochastic(settings: DynamicsSettings, scaling: Scaling) -> StochasticDynamics:
    system, sigma = settings.get("system", "compartments"), settings["noise"]
    if system == "ornstein_uhlenbeck":
        return OrnsteinUhlenbeck(sigma)
    mechanism = build_mechanism(settings)
    if isinstance(mechanism, CompartmentModel):
        return FluctuatingClearance(mechanism, sigma, 4.0 / scaling.time)
    return StochasticLotkaVolterra(sigma)


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
    learned = dynamics.get("field", "neural") in ("neural", "free")
    if learned and (dynamics.get("lag", False) or dynamics.get("elimination", "linear") != "linear"):
        raise ValueError("lag and elimination are of a mechanistic or hybrid field; a learned one has neither")
    stochastic = "noise" in dynamics
    if stochastic and (dynamics.get("field") != "mechanistic" or encoder.get("kind") != "recurrent"):
        raise ValueError("noise is of a mechanistic field with a recurrent encoder: set dynamics.field, encoder.kind")
    if dynamics.get("system") == "ornstein_uhlenbeck" and not stochastic:
        raise ValueError("an Ornstein–Uhlenbeck process has noise: set dynamics.noise")
    for name, number in (
        ("omega", dynamics.get("omega", 1)),
        ("omega_spread", dynamics.get("omega_spread", 1)),
        ("noise", dynamics.get("noise", 1)),
        ("hidden", dynamics.get("hidden", 1)),
        ("layers", dynamics.get("layers", 1)),
        *dynamics.get("typical", {}).items(),
    ):
        if not number > 0:
            raise ValueError(f"dynamics.{name} must be positive, not {number}")
    if dynamics.get("latent_size", 0) < 0 or encoder.get("hidden", 1) < 1:
        raise ValueError(f"sizes may not be negative: dynamics {dynamics}, encoder {encoder}")


def build_model(
    dynamics: DynamicsSettings, encoder: EncoderSettings, error: str, solver: SolverSettings, scaling: Scaling
) -> LatentODE:
    """A latent ODE, or with noise a latent SDE, from plain settings.

    Raises:
        ValueError: a setting outside its list, by name.
    """
    _check(dynamics, encoder, error, solver)
    kind = encoder.get("kind", "set")
    field = build_dynamics(dynamics, scaling)
    if len(scaling.value) > len(field.endpoints):
        raise ValueError(f"the data have {len(scaling.value)} endpoints (DVID); this field has {len(field.endpoints)}")
    typical = field.guess(scaling)
    given = dynamics.get("typical", {})
    if set(given) - set(typical):
        raise ValueError(f"typical names {sorted(set(given) - set(typical))}; this field has {sorted(typical)}")
    latent = len(field.parameter_names) - len(typical)
    effects = dynamics.get("effects")
    if effects is None and dynamics.get("field", "neural") in ("neural", "free"):
        effects = {name: sorted(scaling.covariates) for name in typical}
    omega, spread = dynamics.get("omega", 0.3), dynamics.get("omega_spread")
    individual = IndividualParameters(typical | dict(given), latent, scaling, omega, effects, spread)
    reader = ENCODERS[kind](scaling, individual.latent_size, encoder.get("hidden", 64))
    options = SolverOptions(**solver)
    if isinstance(field, StochasticDynamics) and isinstance(reader, RecurrentEncoder):
        return LatentSDE(reader, individual, field, ERRORS[error](scaling), options, dynamics.get("hidden", 32))
    return LatentODE(reader, individual, field, ERRORS[error](scaling), options)
