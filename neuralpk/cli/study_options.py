"""``neuralpk fit --table T.csv --structure NAME``: the short options of a fit, as the configuration they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from neuralpk.callbacks import TensorBoardRuns
from neuralpk.cli.argument_tokens import Argument
from neuralpk.cli.faults import UsageError
from neuralpk.cli.merged_configuration import Configuration, Node
from neuralpk.cli.signatures import Option, options_of, options_of_reader, path_of
from neuralpk.datamodules import TableDataModule
from neuralpk.dynamics import structure, structures
from neuralpk.objectives import MarginalLikelihood
from neuralpk.part import describe
from neuralpk.residual_error import CombinedError, ErrorByEndpoint, error_class

_EFFECT = re.compile(r"([^:~=\s]+)\s*[:~]\s*([^:~=^*\s]+)(?:\s*=\s*(\S+))?")
_HOW = (
    "is not PARAMETER:COVARIATE for an effect that is learned, or PARAMETER:COVARIATE=NUMBER for one that is fixed, as "
    "in CL:WT V1:WT=1, or PARAMETER:COVARIATE=KIND, as in CL:AGE=linear CL:FFM+AGE=network"
)
_LONG_EFFECTS = ("model.parameters.effects", "model.parameters.init_args.effects")
_CLEARANCES, _VOLUMES = ("CL", "VMAX"), ("V1", "V")
_KAPPA, _OMEGA = 0.2, 0.3  # starting values
_EPOCHS = 200  # a bound: the fit ends when it has converged


def study(
    table: str | None = None,
    structure: str | None = None,
    covariates: list[str] | str | None = None,
    effects: list[str] | str | None = None,
    kappa: dict[str, float] | list[str] | str | None = None,
    omega: dict[str, float] | list[str] | str | None = None,
    correlated: list[str] | str | None = None,
    error: list[str] | str | None = None,
    outputs: list[int] | None = None,
    units: list[str] | None = None,
    out: str | None = None,
    **reading: Any,
) -> Node:
    """Configuration of a population fit to one's own table.

    Args:
        table: event table of the patients; needs no preset and no configuration then.
        structure: structural model, such as two_compartment_oral; help lists them.
        covariates: columns that are covariates, as in WT AGE; default those of the effects.
        effects: covariate effects, as in CL:WT V1:WT=1 (=1 fixes the coefficient) CL:AGE=linear CL:FFM+AGE=network;
            all or none. Default each covariate on clearance and central volume.
        kappa: parameters that change between the occasions of a patient, as in CL V1, or CL=0.1 with the starting value
            of the standard deviation; the occasions are in OCC, or the column of --occasion.
        omega: starting values of standard deviations of random effects, as in CL=0.5; KA=0 for a parameter without
            variability, RUV=0.3 for a residual error that differs between patients.
        correlated: parameters with correlated random effects, as in CL V1; all for a full Omega.
        error: residual error: additive, proportional, combined (default), log_normal or student; of several endpoints
            one by DVID.
        outputs: output of the model that each DVID reads, as in 1 1 for two assays of one output; needs an error by
            DVID. Default its own.
        units: of time, amount and value, as in h mg mg/L; kept with the model.
        out: folder of the results; default lightning_logs/version_N.
        reading: how the table is read.

    Raises:
        UsageError: a value that cannot be, by option.
    """
    node: Node = {"data": {}, "model": {}, "trainer": {}}
    if structure is not None:
        node["model"]["dynamics"] = _dynamics(structure)
    if table is not None:
        given = {name: value for name, value in reading.items() if value is not None}
        asked = _effects(effects, covariates, structure)
        population = {"effects": asked} if asked else {}
        if kappa:
            population |= {
                "kappa": _by_parameter("kappa", kappa, _KAPPA),
                "occasions": given.get("occasion", "OCC"),
            }
        if omega:
            population["omega"] = _by_parameter("omega", omega, _OMEGA)
        if correlated:
            names = _words(correlated)
            population["correlated"] = True if names == ["all"] else names
        if population:
            node["model"]["parameters"] = {"class_path": "PopulationParameters", "init_args": population}
        own = {"table": table, "covariates": _covariates(covariates, asked), "units": units} | given
        node["data"] = {"class_path": path_of(TableDataModule), "init_args": own}
        node["model"]["objective"] = path_of(MarginalLikelihood)
        mechanism = structure is None or "CompartmentModel" in node["model"]["dynamics"]["class_path"]
        if error is None and mechanism:
            node["model"]["error"] = path_of(CombinedError)
        node["trainer"] |= {"max_epochs": _EPOCHS, "check_val_every_n_epoch": 5, "log_every_n_steps": 1}
    else:
        own_words = {"effects": effects, "covariates": covariates, "kappa": kappa, "omega": omega, "units": units}
        named = {**own_words, "correlated": correlated, **reading}
        first = next((name for name, value in named.items() if value is not None), None)
        if first is not None:
            raise UsageError(
                f"--{first} is of a --table, which is not given; of another data module it is --data.{first}"
            )
    if error is not None:
        node["model"]["error"] = _error([error] if isinstance(error, str) else error, outputs)
    elif outputs is not None:
        raise UsageError("--outputs needs --error with an error for each DVID, as in --error proportional additive")
    if out is not None:
        where = {"save_dir": out, "name": None, "version": ""}
        logger = {"class_path": path_of(TensorBoardRuns), "init_args": where}
        node["trainer"] |= {"logger": logger, "default_root_dir": out}  # also with another logger, or none
    return {name: inside for name, inside in node.items() if inside}


_SEED = Option("seed", int | None, None, "of everything that is drawn: patients, split, starting weights, posterior")


def options(command: str) -> dict[str, Option]:
    """Short options of one of the commands of a training."""
    own = options_of(study)
    return ({**own, **options_of_reader(study), **own} if command == "fit" else {}) | {_SEED.name: _SEED}


def expanded(command: str, given: Sequence[Argument]) -> tuple[Node, list[Argument]]:
    """The configuration of the short options among the arguments, and the other arguments.

    Raises:
        UsageError: a value that does not fit.
    """
    known = options(command)
    short = Configuration(known)
    others = []
    for argument in given:
        if argument.name not in known:
            others.append(argument)
            continue
        bare = argument.value is None and known[argument.name].hint is bool
        short.give(Argument(argument.name, "true") if bare else argument)
    if short.values.get("table") is not None and any(one.name.startswith(_LONG_EFFECTS) for one in others):
        if short.values.get("effects") is not None:
            raise UsageError("give --effects or --model.parameters.effects, not both")
        short.values["effects"] = "none"  # no default beside them
    seed = short.values.pop("seed", None)
    if seed is not None:  # after a class that is named, whose options it is
        seeded = ("seed_everything", "model.seed", *(("data.seed",) if command == "fit" else ()))
        others += [Argument(name, str(seed)) for name in seeded]
    return (study(**short.values) if short.values else {}), others


def structures_help() -> str:
    """The structural models, one a line."""
    return "\n".join(["Structural models, for --structure:", *(f"  {name}" for name in structures())])


def _dynamics(name: str) -> dict[str, Any]:
    try:
        described: dict[str, Any] = describe(structure(name))
    except ValueError as error:
        raise UsageError(f"--structure: {error}") from error
    return described


def _error(names: Sequence[str], outputs: list[int] | None) -> Any:
    try:
        classes = [path_of(error_class(name)) for name in names]
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if outputs is not None and (len(outputs) != len(classes) or len(classes) == 1):
        raise UsageError(f"--outputs holds one number for each name of --error, of which there are {len(classes)}")
    if len(classes) == 1:
        return classes[0]
    of_endpoints = {"errors": classes} | ({} if outputs is None else {"outputs": outputs})
    return {"class_path": path_of(ErrorByEndpoint), "init_args": of_endpoints}


def _words(given: list[str] | str | None) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else given or []
    return [part.strip() for part in parts if part.strip()]


def _covariates(given: list[str] | str | None, effects: Any) -> Any:
    """Covariates to read: those that are named, else those of the effects."""
    if given is not None:
        return given
    if not isinstance(effects, dict):
        return effects or None
    named = [key.split("~")[1:] or value for key, value in effects.items()]
    return sorted({name for names in named for one in names for name in one.split("+")})


def _effects(given: list[str] | str | None, covariates: list[str] | str | None, name: str | None) -> Any:
    """Effects as `PopulationParameters` takes them."""
    words = _words(given)
    if words in (["none"], ["all"]):
        return {} if words == ["none"] else "all"
    if given is None:
        return _default_effects(_words(covariates), name)
    found: dict[str, Any] = {}
    for word in words:
        parts = _EFFECT.fullmatch(word)
        if parts is None:
            raise UsageError(f"--effects {word!r} {_HOW}")
        parameter, covariate, said = parts.groups()
        if said is None:
            found.setdefault(parameter, []).append(covariate)
            continue
        name = f"{parameter}~{covariate}"
        if name in found:
            raise UsageError(f"--effects names {parameter}:{covariate} twice")
        try:
            found[name] = said if said.isalpha() else float(said)
        except ValueError:
            raise UsageError(f"--effects {word!r} {_HOW}") from None
    return found


def _by_parameter(option: str, given: dict[str, float] | list[str] | str, usual: float) -> dict[str, float]:
    """Starting values by parameter; the usual one where none is given."""
    if isinstance(given, dict):
        return given
    found = {}
    for word in _words(given):
        name, equals, number = (part.strip() for part in word.partition("="))
        try:
            found[name] = float(number) if equals else usual
        except ValueError:
            raise UsageError(f"--{option} {word!r} is not PARAMETER or PARAMETER=NUMBER, as in CL or CL=0.1") from None
    return found


def _default_effects(covariates: list[str], name: str | None) -> Any:
    """Every covariate that is named on clearance and central volume."""
    if not covariates or name is None:
        return {}
    parameters = structure(name).population_names
    kinds = (_CLEARANCES, _VOLUMES)
    chosen = [next((one for one in kind if one in parameters), None) for kind in kinds]
    if covariates == ["all"]:
        raise UsageError("--covariates all needs --effects: which of them act on what, or all or none")
    found = {parameter: list(covariates) for parameter in chosen if parameter is not None}
    said = ", ".join(f"{parameter}:{c}" for parameter in found for c in covariates)
    print(f"Covariate effects: {said or 'none'} (default; --effects for others)")
    return found
