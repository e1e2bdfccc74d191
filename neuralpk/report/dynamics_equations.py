"""The equations of a dynamics, as formulas where there is a text of them, else as its documentation has them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from neuralpk.dynamics import CompartmentModel, Decoder, Equations, HybridDynamics
from neuralpk.dynamics.model_text import ModelText, read_model
from neuralpk.dynamics.wrapper import Wrapper
from neuralpk.report import mathml
from neuralpk.report.mathml import applied, brackets, equation, name, number, row, sub
from neuralpk.rxode2.compartment_text import compartment_text, names_in_text


@dataclass(frozen=True)
class EquationBlock:
    """Some equations of a model.

    Args:
        title: what they are of.
        sentence: what it is, in words.
        formulas: in MathML.
        text: equations as a text, where there are no formulas.
        note: what else is to be said.
    """

    title: str
    sentence: str = ""
    formulas: tuple[Markup, ...] = ()
    text: str = ""
    note: str = ""


def dynamics_equations(dynamics: Decoder) -> Iterator[EquationBlock]:
    """The equations of a dynamics, then those of each dynamics inside it."""
    if isinstance(dynamics, Equations):
        yield _of_text("Equations of the model", "", read_model(dynamics.text), {}, _network_note(dynamics))
    elif isinstance(dynamics, CompartmentModel):
        typical = dict.fromkeys(dynamics.parameter_names, 1.0)
        symbols = {state: sub("A", state) for state in dynamics.states}
        symbols |= {new: name(old) for old, new in names_in_text(dynamics).items()}
        size = sum(state in ("central", "peripheral", "peripheral2") for state in dynamics.states)
        route = {"none": "", "first_order": ", first-order absorption", "transit": ", transit compartments"}
        said = f"{size} compartment{'s' if size > 1 else ''}{route[dynamics.absorption]}, "
        said += f"{dynamics.elimination.replace('_', ' ').replace('michaelis menten', 'Michaelis–Menten')} elimination"
        compartments = read_model(compartment_text(dynamics, typical))
        yield _of_text("Compartments", f"{said}. A is an amount of drug.", compartments, symbols, "")
    else:
        sentence, text = _documented(type(dynamics))
        note = _network_note(dynamics)
        yield EquationBlock(f"Dynamics: {type(dynamics).__name__}", sentence, text=text, note=note)
    if isinstance(dynamics, Wrapper) and isinstance(dynamics.inner, Decoder):
        yield from dynamics_equations(dynamics.inner)
    if isinstance(dynamics, HybridDynamics):
        yield from dynamics_equations(dynamics.correction)


def _documented(cls: type) -> tuple[str, str]:
    """The first paragraph of the documentation of a class and the equations in it."""
    text = inspect.getdoc(cls) or ""
    first, *others = re.split(r"\n\s*\n", text)
    sentence = " ".join(first.split()).removesuffix("::").rstrip()
    blocks = [inspect.cleandoc("\n" + block) for block in others if block.startswith("    ")]
    before_arguments = re.split(r"\n(?:Args|Raises|Attributes):\n", text)[0]
    return sentence, "\n".join(block for block in blocks if block.splitlines()[0] in before_arguments)


def _network_note(dynamics: Decoder) -> str:
    weights = sum(weight.numel() for weight in dynamics.parameters())
    if isinstance(dynamics, Equations):
        terms = dynamics.terms()
        inputs = [f"{term.name} ({len(term.size)} input{'s' if len(term.size) > 1 else ''})" for term in terms]
        return f"N is a network with learned weights: {', '.join(inputs)}; {weights} weights." if terms else ""
    return f"Learned weights: {weights}." if weights else ""


def _of_text(title: str, sentence: str, text: ModelText, symbols: dict[str, Markup], note: str) -> EquationBlock:
    def symbol(of: str) -> Markup:
        return symbols.get(of) or name(of)

    formulas = [equation(mathml.slope(symbol(state)), mathml.draw(s, symbols)) for state, s in text.slopes.items()]
    starts = {state: row(symbol(state), brackets(number("0"))) for state in text.initial}
    formulas += [equation(starts[state], mathml.draw(s, symbols)) for state, s in text.initial.items()]
    formulas += [equation(applied("lag", symbol(s)), mathml.draw(e, symbols)) for s, e in text.lags.items()]
    formulas += [equation(applied("F", symbol(s)), mathml.draw(e, symbols)) for s, e in text.fractions.items()]
    formulas += [equation(applied("rate", symbol(s)), mathml.draw(e, symbols)) for s, e in text.rates.items()]
    formulas += [equation(applied("duration", symbol(s)), mathml.draw(e, symbols)) for s, e in text.durations.items()]
    formulas += [equation(symbol(v), mathml.draw(e, symbols)) for v, e in text.variables.items()]
    measured = f"Measured: {', '.join(f'{v} (DVID {k})' for k, v in enumerate(text.outputs, start=1))}."
    return EquationBlock(title, sentence, tuple(formulas), note=f"{measured} {note}".strip())
