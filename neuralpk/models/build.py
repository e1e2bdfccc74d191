"""From plain settings to a model: the one place that knows which parts there are."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, cast, get_args

from neuralpk.dynamics import (
    SIR,
    Absorption,
    CompartmentModel,
    Compartments,
    ConcentrationModel,
    ContinuousTimeRNN,
    Dynamics,
    Elimination,
    FeatureField,
    FixedParameters,
    FluctuatingClearance,
    GatedRecurrence,
    HybridDynamics,
    JumpingField,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    OrnsteinUhlenbeck,
    RateConstants,
    StateSpace,
    StochasticDynamics,
    StochasticLotkaVolterra,
)
from neuralpk.dynamics.recurrent import Gap
from neuralpk.encoders import ENCODERS, RecurrentEncoder
from neuralpk.models.individual import IndividualParameters
from neuralpk.models.latent_ode import LatentModel, LatentODE
from neuralpk.models.latent_sde import LatentSDE
from neuralpk.models.recurrent import LatentODERNN, LatentRecurrence
from neuralpk.residual_error import ERRORS
from neuralpk.scaling import Scaling
from neuralpk.solve import Engine, Gradient, SolverOptions

System = Literal["compartments", "concentrations", "lotka_volterra", "sir", "ornstein_uhlenbeck"]
Field = Literal["mechanistic", "neural", "free", "hybrid", "gru", "gru_gaps", "gru_decay", "ode_rnn", "ctrnn"]

_GAPS: dict[str, Gap] = {"gru": "ignored", "gru_gaps": "given", "gru_decay": "decay"}


class DynamicsSettings(TypedDict, total=False):
    """The vector field.

    system: ``compartments`` (pharmacokinetics, amounts), ``concentrations`` (two compartments with k_e, k_cp, k_pc),
        ``lotka_volterra``, ``sir`` or ``ornstein_uhlenbeck``.
    field: ``mechanistic`` (the equations, with individual parameters from z); ``neural`` (compartments whose rates
        a network of state and z bends; without compartments the same as free); ``free`` (dy/dt is a network of state
        and z); ``hybrid`` (mechanistic plus neural, as flows where the mechanism has flows); or a recurrent network of
        hidden states: ``gru``, ``gru_gaps``, ``gru_decay`` (steps from event to event), ``ode_rnn`` (an ODE network,
        doses as steps), ``ctrnn`` (in continuous time).
    compartments, absorption, elimination, transits, lag: as for `CompartmentModel`; `lag` delays doses into the first.
    interaction, crowding: as for `LotkaVolterra`.
    fixed: parameters of the mechanism that are known, by name.
    latent_size: latent dimensions beside those of the named parameters; by default 0 for a neural or hybrid
        field of compartments, 4 for other networks.
    hidden, layers: width of its network, by default 32 (16 with `weights: own`), and number of hidden layers where it
        can be chosen, by default 1 for compartments, else 2.
    bend: how far the network of a neural or hybrid field is expected to bend the rates of compartments (logarithms)
        between the empty system and a typical dose, by default 0.5. Elsewhere how large a network's slope is expected
        to be: by default 1 for a correction or with `weights: own`, anything for a free field.
    time: a learned part also reads the time.
    weights: ``shared``, or ``own`` for a network whose weights are the latent of the series (`FeatureField`).
    flows: pairs (source, destination) between which a correction may move something, beside those of the mechanism.
    overlap: weight of the penalty of a correction that does what the mechanism could do (`HybridDynamics.penalty`).
    noise: starting value of sigma of a stochastic mechanistic field, per square root of time: a fluctuating clearance
        of compartments, multiplicative noise of Lotka–Volterra (`neuralpk.dynamics.StochasticDynamics`); left out,
        the field has none. The model is then a latent SDE, with a recurrent encoder.
    typical: starting values of named parameters; those left out are guessed from the data.
    omega: starting value of the standard deviation of eta, of every parameter or by name.
    population: ``learned``; or ``fixed``, which leaves typical and omega as they are, the prior of a Bayesian fit of
        every series by itself.
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
    interaction: bool
    crowding: bool
    fixed: dict[str, float]
    latent_size: int
    hidden: int
    layers: int
    bend: float
    time: bool
    weights: Literal["shared", "own"]
    flows: list[list[str]]
    overlap: float
    noise: float
    typical: dict[str, float]
    omega: float | dict[str, float]
    population: Literal["learned", "fixed"]
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
    system = settings.get("system", "compartments")
    if system == "lotka_volterra":
        return LotkaVolterra(settings.get("interaction", True), settings.get("crowding", False))
    if system == "sir":
        return SIR()
    if system == "concentrations":
        return ConcentrationModel()
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
    field = settings.get("field", "neural")
    if "noise" in settings:
        return _build_stochastic(settings, scaling)
    mechanism = build_mechanism(settings)
    if field == "mechanistic":
        return _with_fixed(mechanism, settings)
    if field in (*_GAPS, "ode_rnn", "ctrnn"):
        return _recurrent(field, settings, mechanism, scaling)
    learned = _learned(mechanism, settings, scaling)
    if field != "hybrid":
        return learned
    return HybridDynamics(_with_fixed(mechanism, settings), learned, settings.get("overlap", 0.0))


def _with_fixed(mechanism: Dynamics, settings: DynamicsSettings) -> Dynamics:
    fixed = settings.get("fixed", {})
    return FixedParameters(mechanism, fixed) if fixed else mechanism


def _learned(mechanism: Dynamics, settings: DynamicsSettings, scaling: Scaling) -> Dynamics:
    """The neural part: flows where the mechanism has flows, else a slope."""
    field, states = settings.get("field", "neural"), mechanism.states
    correction, dosed = field == "hybrid", isinstance(mechanism, CompartmentModel)
    if settings.get("weights", "shared") == "own":
        width, spread = settings.get("hidden", 16), settings.get("bend", 1.0)
        return FeatureField(states, mechanism.endpoints, scaling, width, spread, correction)
    network: Any = {"scaling": scaling, "hidden": settings.get("hidden", 32), "time": settings.get("time", False)}
    if isinstance(mechanism, Compartments) and (correction or (dosed and field != "free")):
        flows = (*mechanism.flows, *((a, b) for a, b in settings.get("flows", [])))
        return NeuralCompartments(
            RateConstants(states, flows) if correction else mechanism,
            settings.get("latent_size", 0),
            layers=settings.get("layers", 1),
            bend=settings.get("bend", 0.5),
            unit=None if dosed else scaling.value[0],
            **network,
        )
    return NeuralField(
        states,
        mechanism.endpoints,
        settings.get("latent_size", 4),
        dosed=dosed,
        layers=settings.get("layers", 2),
        correction=correction,
        bend=settings.get("bend", 1.0 if correction else None),
        **network,
    )


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
        ("dynamics.weights", dynamics.get("weights", "shared"), ("shared", "own")),
        ("dynamics.population", dynamics.get("population", "learned"), ("learned", "fixed")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is one of {', '.join(allowed)}; not {value!r}")
    learned = dynamics.get("field", "neural") not in ("mechanistic", "hybrid")
    if learned and (dynamics.get("lag", False) or dynamics.get("elimination", "linear") != "linear"):
        raise ValueError("lag and elimination are of a mechanistic or hybrid field; a learned one has neither")
    if dynamics.get("flows") and dynamics.get("field") != "hybrid":
        raise ValueError("flows are of the correction of a hybrid field: leave them out, or set dynamics.field hybrid")
    stochastic = "noise" in dynamics
    if stochastic and (dynamics.get("field") != "mechanistic" or encoder.get("kind") != "recurrent"):
        raise ValueError("noise is of a mechanistic field with a recurrent encoder: set dynamics.field, encoder.kind")
    unread = {"interaction", "crowding", "fixed"} & set(dynamics) if stochastic else set()
    if stochastic and (unread or dynamics.get("system", "compartments") in ("concentrations", "sir")):
        raise ValueError(
            "noise is there for compartments, lotka_volterra and ornstein_uhlenbeck, without interaction, crowding or "
            "fixed: leave it out"
        )
    if dynamics.get("system") == "ornstein_uhlenbeck" and not stochastic:
        raise ValueError("an Ornstein–Uhlenbeck process has noise: set dynamics.noise")
    for name, number in (
        ("omega_spread", dynamics.get("omega_spread", 1)),
        ("noise", dynamics.get("noise", 1)),
        ("hidden", dynamics.get("hidden", 1)),
        ("layers", dynamics.get("layers", 1)),
        *dynamics.get("typical", {}).items(),
        *dynamics.get("typical_spread", {}).items(),
        *(omega.items() if isinstance(omega := dynamics.get("omega", 1), dict) else [("omega", omega)]),
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
    correlated, learned = dynamics.get("correlated", False), dynamics.get("population", "learned") == "learned"
    individual = IndividualParameters(
        typical | dict(given), latent, scaling, omega, effects, spread, correlated, sure, learned
    )
    reader = ENCODERS[kind](scaling, individual.latent_size, encoder.get("hidden", 64))
    parts = (ERRORS[error](scaling), SolverOptions(**solver))
    if isinstance(field, GatedRecurrence):
        return LatentRecurrence(reader, individual, field, *parts)
    if isinstance(field, JumpingField):
        return LatentODERNN(reader, individual, field, *parts)
    if isinstance(field, StochasticDynamics) and isinstance(reader, RecurrentEncoder):
        return LatentSDE(reader, individual, field, *parts, dynamics.get("hidden", 32))
    return LatentODE(reader, individual, cast(Dynamics, field), *parts)
