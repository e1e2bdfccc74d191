"""A compartment model as the text of equations."""

from __future__ import annotations

from collections.abc import Mapping

from neuralpk.dynamics import CompartmentModel

_EXCHANGE = {"peripheral": ("Q", "V2"), "peripheral2": ("Q3", "V3")}


def names_in_text(model: CompartmentModel) -> dict[str, str]:
    """What the parameters are called in the text: F is a word of its language."""
    return {name: "F1" if name == "F" else name for name in model.parameter_names}


def compartment_text(model: CompartmentModel, typical: Mapping[str, float]) -> str:
    """The equations of a compartment model; its output is C.

    Args:
        model: the compartments.
        typical: value of every parameter.
    """
    clearance = {
        "linear": "CL",
        "michaelis_menten": "VMAX/(KM + max(central/V1, 0))",
        "time_varying": "CL*(CLR + (1 - CLR)*exp(-KCL*t))",
    }[model.elimination]
    absorption = "KA" if model.absorption == "first_order" else "KTR"

    def rate(source: str, target: str | None) -> str:
        if target is None:
            return f"{clearance}/V1"
        if target in _EXCHANGE:
            return f"{_EXCHANGE[target][0]}/V1"
        if source in _EXCHANGE:
            return "/".join(_EXCHANGE[source])
        return absorption

    lines = [f"parameters: {new} = {float(typical[old])!r}" for old, new in names_in_text(model).items()]
    lines.append(f"states: {', '.join(model.states)}")
    for state in model.states:
        parts = [f" + {rate(a, b)}*{a}" for a, b in model.flows if b == state]
        parts += [f" - {rate(a, b)}*{a}" for a, b in model.flows if a == state]
        slope = "".join(parts)
        lines.append(f"{state}' = {slope[3:] if slope.startswith(' + ') else '-' + slope[3:]}")
    if model.lag_compartment is not None:
        lines.append(f"lag({model.lag_compartment}) = LAG")
    if model.bioavailability_compartment is not None:
        lines.append(f"F({model.bioavailability_compartment}) = F1")
    names = names_in_text(model)
    lines += [f"rate({state}) = {names['R']}" for state in model.with_rate]
    lines += [f"duration({state}) = {names['D']}" for state in model.with_duration]
    return "\n".join([*lines, "C = central/V1", "outputs: C"]) + "\n"
