"""The block ``model({…})``: its statements in their order, as expressions of our equations.

A name may be assigned several times, and within if and else: every assignment is a variable of its own, and a
conditional one is ``where(condition, …, …)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from neuralpk.dynamics.equation_text import TIME
from neuralpk.dynamics.expression import Expression, Token
from neuralpk.dynamics.operator_reader import COMPARISONS
from neuralpk.rxode2.initial_values import CONSTANTS, constant
from neuralpk.rxode2.linear_compartments import STATES, LinearCompartments, linear_compartments
from neuralpk.rxode2.r_syntax import number_text, refusal

SLOPE, INITIAL, LAG, FRACTION, RATE, DURATION = "d/dt", "initial", "lag", "F", "rate", "duration"
EXPIT = "expit"  # lo + (hi − lo)/(1 + exp(−x)); written out in the equations
_SAME = {"exp", "log", "log10", "log1p", "expm1", "sqrt", "abs", "tanh", "sin", "cos"}
_OTHER_NAMES = {"ln": "log", "fabs": "abs", "pow": "pow", "R_pow": "pow", "ifelse": "where"}
_ARGUMENTS = {"pow": 2, "where": 3}
_SIGNS = {"&": "and", "&&": "and", "|": "or", "||": "or"}
_KEPT_SIGNS = {"+", "-", "*", "/", *COMPARISONS, "negative", "not", "pow"}
_OF_DOSES = {
    "tad", "tad0", "tafd", "tafd0", "tlast", "tlast0", "tfirst", "tfirst0", "podo", "podo0", "dose", "dose0", "dosenum",
    "newind", "NEWIND", "rxFlag", "CMT", "AMT", "EVID", "II", "SS", "RATE", "DUR", "ADDL", "DVID", "id", "ID",
}  # fmt: skip
_CONSTANTS = {"pi": CONSTANTS["pi"], "M_PI": CONSTANTS["pi"], "TRUE": 1.0, "FALSE": 0.0}
_WORDS = {
    *_OF_DOSES, *_CONSTANTS, "t", "time", "d", "dt", "if", "else", "for", "while", "repeat", "function", "in", "next",
    "break", "Inf", "NaN", "NA", "NULL", "linCmt", "cmt", "f", "F", "lag", "alag", "rate", "dur",
}  # fmt: skip


def reserved_name(name: str) -> bool:
    """Whether a name has a meaning of its own in R or in a model of rxode2."""
    return name in _WORDS or name in _SAME or name in _OTHER_NAMES


@dataclass(frozen=True)
class Endpoint:
    """A line VALUE ~ error.

    Args:
        token: of the value.
        value: key of the variable, or the name of a state.
        error: what stands after ~.
    """

    token: Token
    value: str
    error: Expression


@dataclass
class ModelBlock:
    """The statements of a model.

    Args:
        variables: by their keys: the name, a blank, and which assignment of it; each after those it is computed from.
        last: the key of the last assignment of each name.
        of_states: for d/dt, initial, lag and F, the expression of every state that has one.
        states: in the order of their compartments.
        ordered: whether cmt() gives that order.
        covariates: names that are neither assigned nor in ini(), where they are first used.
        endpoints: what is measured.
        places: where each variable and each statement of a state stands.
        notes: what changes its meaning.
    """

    variables: dict[str, Expression] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    of_states: dict[str, dict[str, Expression]] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    covariates: dict[str, Token] = field(default_factory=dict)
    endpoints: list[Endpoint] = field(default_factory=list)
    places: dict[str, Token] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expressions(self) -> Iterator[tuple[str, Expression]]:
        """All expressions: of variables by their keys, of states as ``d/dt depot``."""
        yield from self.variables.items()
        for kind, given in self.of_states.items():
            for state, expression in given.items():
                yield f"{kind} {state}", expression


def number(value: float, at: Token) -> Expression:
    """A number that stands at a place."""
    digits = Expression("number", (), at._replace(kind="number", text=repr(abs(value))))
    return Expression("negative", (digits,), at) if value < 0 else digits


def name(text: str, at: Token) -> Expression:
    """A name that stands at a place."""
    return Expression("name", (), at._replace(kind="name", text=text))


def read_model_block(block: Expression, numbers: Collection[str]) -> ModelBlock:
    """The statements of the block.

    Args:
        block: the argument of ``model()``.
        numbers: the names in ``ini()``.

    Raises:
        EquationError: what is not read, by its name.
    """
    return _Statements(block, numbers).finished()


class _Statements:
    """The statements, read one after the other."""

    def __init__(self, block: Expression, numbers: Collection[str]) -> None:
        self.block, self.numbers = block, numbers
        self.model = ModelBlock()
        self.now: dict[str, str] = {}  # the key of the present value of a name, or of "d/dt depot"
        self.count: dict[str, int] = {}
        self.partial: dict[str, Token] = {}  # names with a value only where a condition holds
        self.cmt: dict[str, Token] = {}
        self.linear: LinearCompartments | None = None
        self.slopes = [state.text for state in _slopes(block)]
        has_linear = any(call.token.text == "linCmt" for call in _calls(block))
        self.has_lag = any(call.token.text in ("lag", "alag") for call in _calls(block))
        self.states = {*self.slopes, *(STATES if has_linear else ())}
        self.run(block)

    def finished(self) -> ModelBlock:
        model = self.model
        states = list(dict.fromkeys(self.slopes))
        if self.linear is not None:
            states += [state for state in self.linear.states if state not in states]
        for state, token in self.cmt.items():
            if state not in states:
                raise token.error(f"cmt({state}): there is no d/dt({state})")
        model.states = (*self.cmt, *(state for state in states if state not in self.cmt))
        if not states:
            raise self.block.token.error("a model needs differential equations, d/dt(STATE), or linCmt()")
        for kind in (SLOPE, INITIAL, LAG, FRACTION, RATE, DURATION):
            model.of_states[kind] = {}
        for target, key in self.now.items():
            kind, _, state = target.partition(" ")
            if state:
                self._refuse_partial(target, model.places[key])
                if state in self.numbers:
                    raise model.places[key].error(f"{state} stands in ini() and cannot be a compartment")
                if state not in states:
                    raise model.places[key].error(f"there is no compartment {state!r}: write d/dt({state})")
                model.of_states[kind][state] = model.variables.pop(key)
            else:
                model.last[target] = key
        for target, token in self.partial.items():
            if " " in target:
                self._refuse_partial(target, token)
        for state in model.states:
            if state not in model.of_states[SLOPE]:
                raise self.block.token.error(f"d/dt({state}) is missing")
        if not model.endpoints:
            raise self.block.token.error("which value is measured? A line such as cp ~ add(add.sd) says it")
        return model

    # ---- statements

    def run(self, statement: Expression) -> None:
        operation, token = statement.operation, statement.token
        if operation == "block":
            for one in statement.arguments:
                self.run(one)
        elif operation == "<-":
            self._assign(*statement.arguments)
        elif operation == "~":
            self._endpoint(*statement.arguments)
        elif operation == "if":
            self._if(statement)
        elif operation == "call" and token.text == "cmt":
            (state,) = self._names(statement)
            self.cmt[state.text] = state
        elif operation == "call" and token.text == "locf":
            self._names(statement)  # the last value of a covariate is carried forward, as here
        elif operation == "call" and token.text in ("linear", "nocb", "midpoint"):
            what = f"{token.text}(): an interpolated covariate"
            raise refusal(token, what, "is not read: the last value is carried forward")
        elif operation == "call":
            raise refusal(token, f"the statement {token.text}()", "is not read")
        else:
            raise refusal(
                token, f"a statement {token.text!r} in model()", "is not read: it has assignments and lines with ~"
            )

    @staticmethod
    def _names(call: Expression) -> list[Token]:
        if not call.arguments or any(one.operation != "name" for one in call.arguments):
            raise call.token.error(f"a name is expected in {call.token.text}()")
        if call.token.text != "locf" and len(call.arguments) > 1:
            raise call.token.error(f"{call.token.text}() takes one name")
        return [one.token for one in call.arguments]

    def _assign(self, left: Expression, right: Expression) -> None:
        state = _slope_of(left)
        if state is not None:
            self._define(f"{SLOPE} {state.text}", state, right)
        elif left.operation == "call":
            self._assign_to_state(left, right)
        elif left.operation == "name":
            token = left.token
            if token.text in self.numbers:
                raise token.error(f"{token.text} stands in ini() and cannot be assigned")
            if token.text in self.states:
                raise token.error(f"{token.text} is a compartment and cannot be assigned")
            if token.text in ("t", "time") or token.text in _OF_DOSES:
                raise token.error(f"{token.text} has a meaning of its own and cannot be assigned")
            if token.text in self.model.covariates:
                first = self.model.covariates[token.text]
                raise first.error(f"{token.text} is used before it is assigned, in line {token.line}")
            self._define(token.text, token, right)
        else:
            raise left.token.error("the name of a variable, d/dt(STATE) or STATE(0) is expected on the left side")

    def _assign_to_state(self, left: Expression, right: Expression) -> None:
        token = left.token
        kinds = {"f": FRACTION, "F": FRACTION, "lag": LAG, "alag": LAG, "rate": RATE, "dur": DURATION}
        if token.text in kinds and len(left.arguments) == 1 and left.arguments[0].operation == "name":
            state = left.arguments[0].token
            self._define(f"{kinds[token.text]} {state.text}", state, right)
        elif len(left.arguments) == 1 and left.arguments[0].operation == "number":
            if float(number_text(left.arguments[0].token)) != 0:
                raise left.arguments[0].token.error(f"an initial value is written {token.text}(0) <- …")
            self._define(f"{INITIAL} {token.text}", token, right)
        else:
            raise refusal(token, f"an assignment to {token.text}()", "is not read")

    def _define(self, target: str, token: Token, right: Expression) -> None:
        if right.operation == "<-":
            raise right.token.error("one assignment in a line")
        if " " in target and target in self.now:
            first = self.model.places[self.now[target]]
            raise token.error(f"it is given already, in line {first.line}")
        self._hold(target, token, self.translated(right))

    def _hold(self, target: str, token: Token, expression: Expression) -> str:
        self.count[target] = self.count.get(target, 0) + 1
        key = f"{target} {self.count[target]}"
        self.model.variables[key] = expression
        self.model.places[key] = token
        self.now[target] = key
        self.partial.pop(target, None)
        return key

    def _if(self, statement: Expression) -> None:
        test, *branches = statement.arguments
        condition, before = self.translated(test), dict(self.now)
        after = []
        for branch in (*branches, None)[:2]:
            self.now = dict(before)
            if branch is not None:
                self.run(branch)
            after.append(self.now)
        self.now = before.copy()
        yes, no = after
        for target in dict.fromkeys((*yes, *no)):
            keys = yes.get(target), no.get(target)
            if keys[0] == keys[1] == before.get(target):
                continue
            if keys[0] is None or keys[1] is None:
                self.partial[target] = statement.token
                continue
            places = [self.model.places[key] for key in keys if key is not None]
            parts = [self._taken(str(key), before) for key in keys]
            self._hold(target, places[0], Expression("where", (condition, *parts), statement.token))

    def _taken(self, key: str, before: dict[str, str]) -> Expression:
        """The value of a branch: its expression, where nothing else needs it under a name of its own."""
        own = key not in before.values()
        used = any(token.text == key for one in self.model.variables.values() for token in one.names())
        if own and not used and not any(one.value == key for one in self.model.endpoints):
            return self.model.variables.pop(key)
        return name(key, self.model.places[key])

    def _endpoint(self, left: Expression, right: Expression) -> None:
        token = left.token
        if left.operation == "call" and token.text == "linCmt":
            value = self._hold("cp", token, self.translated(left))
        elif left.operation != "name":
            raise token.error("the name of a variable or a compartment is expected before ~: assign it first")
        elif token.text in self.states:
            value = token.text
        elif token.text in self.now:
            self._refuse_partial(token.text, token)
            value = self.now[token.text]
        else:
            raise token.error(f"there is no variable or compartment {token.text!r} above this line")
        self.model.endpoints.append(Endpoint(token, value, right))

    def _refuse_partial(self, target: str, token: Token) -> None:
        if target in self.partial and target not in self.now:
            line = self.partial[target].line
            what = target if " " not in target else "it"
            raise token.error(f"{what} has no value where the condition in line {line} does not hold: write an else")

    # ---- expressions

    def translated(self, tree: Expression) -> Expression:
        """An expression of R as one of our equations."""
        operation, token = tree.operation, tree.token
        if operation == "number":
            return Expression("number", (), token._replace(text=number_text(token)))
        if operation == "name":
            return self._name(token)
        if _slope_of(tree) is not None:
            raise refusal(token, "d/dt() in an expression", "is not read: write its right side instead")
        if operation in _KEPT_SIGNS or operation in _SIGNS:
            return Expression(_SIGNS.get(operation, operation), (*map(self.translated, tree.arguments),), token)
        if operation == "call":
            return self._call(tree)
        if operation == "string":
            raise refusal(token, f"the text {token.text}", "is not read: covariates are numbers")
        if operation == "if" and len(tree.arguments) == 3 and all(a.operation != "block" for a in tree.arguments):
            return Expression("where", (*map(self.translated, tree.arguments),), token)
        raise refusal(token, f"{token.text!r} in an expression", "is not read")

    def _name(self, token: Token) -> Expression:
        text = token.text
        if text in self.now:
            return name(self.now[text], token)
        self._refuse_partial(text, token)
        if text in self.numbers or text in self.states:
            return name(text, token)
        if text in ("t", "time"):
            note = "time counts from the first record of a subject"
            if note not in self.model.notes:
                self.model.notes.append(note)
            return name(TIME, token)
        if text in _CONSTANTS:
            return number(_CONSTANTS[text], token)
        if text in _OF_DOSES:
            raise refusal(token, f"{text}: a number of the doses or of the record", "cannot be used in a model here")
        if text in ("NA", "NULL", "NaN", "Inf"):
            raise refusal(token, text, "is no number of a model")
        self.model.covariates.setdefault(text, token)
        return name(text, token)

    def _call(self, call: Expression) -> Expression:
        token, text = call.token, call.token.text
        if any(one.operation == "named" for one in call.arguments):
            raise token.error(f"the arguments of {text}() are read without names")
        if text == "linCmt":
            return self._linear_compartments(call)
        given = [self.translated(one) for one in call.arguments]
        if text in _SAME or text in _OTHER_NAMES:
            function = _OTHER_NAMES.get(text, text)
            _count(token, given, _ARGUMENTS.get(function, 1))
            return Expression(function, (*given,), token)
        if text in ("min", "max"):
            if len(given) < 2:
                raise token.error(f"{text}() takes two arguments or more")
            found = given[0]
            for one in given[1:]:
                found = Expression(text, (found, one), token)
            return found
        if text == "log2":
            _count(token, given, 1)
            two = Expression("log", (number(2.0, token),), token)
            return Expression("/", (Expression("log", (*given,), token), two), token)
        if text in (EXPIT, "logit"):
            return self._between_bounds(call, given)
        if text in self.states:
            raise token.error(f"{text} is a compartment: its value is written {text}")
        raise refusal(token, f"the function {text}()")

    @staticmethod
    def _between_bounds(call: Expression, given: Sequence[Expression]) -> Expression:
        """expit() or logit(), whose bounds are numbers."""
        token = call.token
        if not 1 <= len(given) <= 3:
            raise token.error(f"{token.text}() takes a number and its bounds")
        bounds = [constant(one) for one in call.arguments[1:]] + [0.0, 1.0][len(given) - 1 :]
        low, high = (number(one, token) for one in bounds)
        if not bounds[0] < bounds[1]:
            raise token.error(f"{token.text}(): the lower bound must be below the upper")
        if token.text == EXPIT:
            return Expression(EXPIT, (given[0], low, high), token)
        below, above = (given[0], low), (high, given[0])
        shares = Expression("/", (Expression("-", below, token), Expression("-", above, token)), token)
        return Expression("log", (shares,), token)

    def _linear_compartments(self, call: Expression) -> Expression:
        """The equations of linCmt(); its value is the concentration."""
        if call.arguments:
            raise call.token.error("linCmt() is read without arguments: it takes its parameters by their names")
        if self.linear is None:
            if self.partial or any(f"{SLOPE} {state}" in self.now for state in STATES):
                raise call.token.error(f"linCmt() has the compartments {', '.join(STATES)}, of which one is given here")
            known = [*self.now, *self.numbers]
            self.linear = linear_compartments(known, call.token)
            for state, slope in self.linear.slopes.items():
                self._hold(f"{SLOPE} {state}", call.token, self.translated(slope))
            if self.linear.lag is not None and not self.has_lag:
                self.model.notes.append(f"tlag is the lag of {self.linear.states[0]}")
                self._hold(f"{LAG} {self.linear.states[0]}", call.token, self.translated(self.linear.lag))
        return self.translated(self.linear.concentration)


def _count(token: Token, given: Sequence[Expression], count: int) -> None:
    if len(given) != count:
        raise token.error(f"{token.text}() takes {count} argument(s), not {len(given)}")


def _slope_of(left: Expression) -> Token | None:
    """The state of d/dt(STATE); None for another expression."""
    if left.operation != "/" or left.arguments[0].operation != "name" or left.arguments[0].token.text != "d":
        return None
    call = left.arguments[1]
    if call.operation != "call" or call.token.text != "dt":
        return None
    if len(call.arguments) != 1 or call.arguments[0].operation != "name":
        raise call.token.error("the name of a compartment is expected in d/dt()")
    return call.arguments[0].token


def _slopes(tree: Expression) -> Iterator[Token]:
    """The states with an equation, in order."""
    if tree.operation == "<-":
        state = _slope_of(tree.arguments[0])
        if state is not None:
            yield state
    elif tree.operation in ("block", "if"):
        for one in tree.arguments:
            yield from _slopes(one)


def _calls(tree: Expression) -> Iterator[Expression]:
    if tree.operation == "call":
        yield tree
    for one in tree.arguments:
        yield from _calls(one)
