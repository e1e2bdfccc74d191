"""linCmt(): one to three linear compartments as equations, chosen by the names of their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuralpk.dynamics.expression import Expression, Token
from neuralpk.rxode2.r_syntax import read_statements

STATES = ("depot", "central", "peripheral1", "peripheral2")
_CENTRAL = ("v", "vc", "v1")
_CLEARANCE = ("cl",)
_ELIMINATION = ("k", "ke", "kel", "k10")
# names of a clearance between compartments and of the volume behind it, of the first and the second peripheral one
_PERIPHERAL = (
    (("q", "q1", "cld", "cld1", "cl2"), ("v2", "vp", "vp1", "vt", "vt1")),
    (("q2", "q3", "cld2", "cl3"), ("v3", "vp2", "vt2")),
)
_RATES = (("k12", "k21"), ("k13", "k31"))
_HOW = (
    "linCmt() finds its parameters by their names: cl and v (or k and v); q and v2 (or vp), q2 and v3 (or vp2), or k12 "
    "and k21, k13 and k31; ka for a depot; tlag"
)


@dataclass(frozen=True)
class LinearCompartments:
    """The equations of linCmt().

    Args:
        slopes: by state, in R.
        concentration: amount in the central compartment over its volume.
        lag: of the first compartment; None for none.
    """

    slopes: dict[str, Expression]
    concentration: Expression
    lag: Expression | None

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the compartments."""
        return (*self.slopes,)


def linear_compartments(known: Iterable[str], place: Token) -> LinearCompartments:
    """The equations for the parameters that are known.

    Args:
        known: names above the line of linCmt().
        place: of linCmt().

    Raises:
        EquationError: parameters that are missing, or names that may mean two things.
    """
    names = {name.lower(): name for name in known}

    def one_of(candidates: tuple[str, ...]) -> str | None:
        found = [names[c] for c in candidates if c in names]
        if len(found) > 1:
            raise place.error(f"linCmt(): {' and '.join(found)} may both be meant; rename one")
        return found[0] if found else None

    central, peripheral = one_of(_CENTRAL), list(_PERIPHERAL)
    if central is None and "v2" in names and "v3" in names:  # of NONMEM: v2 is central after a depot
        central = names["v2"]
        peripheral = [(_PERIPHERAL[0][0], ("v3", "vp", "vp1")), (_PERIPHERAL[1][0], ("v4", "vp2"))]
    clearance, elimination = one_of(_CLEARANCE), one_of(_ELIMINATION)
    if clearance is not None and elimination is not None:
        raise place.error(f"linCmt(): {clearance} and {elimination} may both be meant; rename one")
    if central is None or (clearance is None and elimination is None):
        raise place.error(_HOW)
    out = elimination if clearance is None else f"{clearance}/{central}"
    exchange = []
    for (flow, volume), (there, back) in zip(peripheral, _RATES, strict=True):
        by_flow = one_of(flow), one_of(volume)
        by_rate = one_of((there,)), one_of((back,))
        if any(by_flow) and any(by_rate):
            raise place.error(f"linCmt(): {by_flow[0] or by_flow[1]} and {by_rate[0] or by_rate[1]} exclude each other")
        if any(by_flow) and clearance is not None:
            if None in by_flow:
                raise place.error(f"linCmt(): {by_flow[0] or by_flow[1]} stands alone. {_HOW}")
            exchange.append((f"{by_flow[0]}/{central}", f"{by_flow[0]}/{by_flow[1]}"))
        elif any(by_rate):
            if None in by_rate:
                raise place.error(f"linCmt(): {by_rate[0] or by_rate[1]} stands alone. {_HOW}")
            exchange.append((str(by_rate[0]), str(by_rate[1])))
        else:
            exchange.append(("", ""))
    if exchange[1][0] and not exchange[0][0]:
        raise place.error(f"linCmt(): the first peripheral compartment is missing. {_HOW}")
    slopes, absorption, lag = {}, one_of(("ka",)), one_of(("tlag",))
    inflow, outflow = ("", f"{out}*central")
    if absorption is not None:
        slopes["depot"] = f"-{absorption}*depot"
        inflow = f"{absorption}*depot - "
    else:
        outflow = f"-{out}*central"
    slopes["central"] = inflow + outflow
    for state, (there, back) in zip(STATES[2:], exchange, strict=True):
        if there:
            slopes["central"] += f" - {there}*central + {back}*{state}"
            slopes[state] = f"{there}*central - {back}*{state}"

    def at_place(text: str) -> Expression:
        (expression,) = read_statements(text)
        return _moved(expression, place)

    return LinearCompartments(
        {state: at_place(slope) for state, slope in slopes.items()},
        at_place(f"central/{central}"),
        None if lag is None else at_place(lag),
    )


def _moved(expression: Expression, place: Token) -> Expression:
    """The expression with the place of linCmt(), where its mistakes are shown."""
    token = place._replace(kind=expression.token.kind, text=expression.token.text)
    return Expression(expression.operation, tuple(_moved(one, place) for one in expression.arguments), token)
