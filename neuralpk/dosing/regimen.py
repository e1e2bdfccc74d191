"""Regimens: what is given and when, as a text that people write or as numbers.

The text of a regimen::

    100 mg q12h x 6, infusion 2 h
    1000 mg then 500 mg every 12 h for 5 d
    3.6 mg/kg q21d x 4, infusion 0.5 h
    250 mg q8h steady state

A course is an amount with its unit, an interval (``q12h``, ``every 12 h``, ``qd``, ``bid``, ``tid``, ``qid``), how
often (``x 6``, ``for 3 d``, ``steady state``) and options: ``infusion 2 h``, ``modelled rate`` or ``modelled
duration`` for an infusion whose rate or duration is a parameter of the model (RATE -1, -2), ``at 24 h``, ``cmt 2``.
Courses follow each other after ``then``; one dose without an interval is followed after the interval of the next
course.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from neuralpk.cohort import MODELLED_DURATION, MODELLED_RATE, MOST_ADDITIONAL, Dose, Units

_TIMES = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0, "wk": 168.0}
_TIME_NAMES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("wk", "w", "week", "weeks"), "wk"),
}
_AMOUNTS = {"g": 1e3, "mg": 1.0, "ug": 1e-3, "µg": 1e-3, "μg": 1e-3, "mcg": 1e-3, "ng": 1e-6}
_DAILY = {"qd": 1, "od": 1, "bid": 2, "tid": 3, "qid": 4}

_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)"
_TIME = _NUMBER + r"\s*([A-Za-z]+)"
_NO_UNIT = r"(?!(?:q\s*[\d.]|every|[qo]d|bid|tid|qid|x|for|ss|steady|once|infus|over|modelled|at|cmt)\b|q\d)"
_AMOUNT = re.compile(_NUMBER + rf"\s*({_NO_UNIT}[A-Za-zµμ]+(?:/\w+)?)?(?=[\s,]|$)", re.IGNORECASE)
_PIECES = {
    # 'q12 x 6' has no unit
    "interval": re.compile(r"(?:q|every)\s*" + _NUMBER + r"\s*(?!x\b)([A-Za-z]+)\b", re.IGNORECASE),
    "daily": re.compile(r"(" + "|".join(_DAILY) + r")\b", re.IGNORECASE),
    "count": re.compile(r"[x×]\s*(\d+)\b", re.IGNORECASE),
    "length": re.compile(r"for\s+" + _TIME + r"\b", re.IGNORECASE),
    "steady": re.compile(r"(steady\s*state|ss)\b", re.IGNORECASE),
    "once": re.compile(r"(once)\b", re.IGNORECASE),
    "infusion": re.compile(r"(?:infusion|infused|over)\s+(?:over\s+)?" + _TIME + r"\b", re.IGNORECASE),
    "modelled": re.compile(r"modelled\s+(rate|duration)\b", re.IGNORECASE),
    "at": re.compile(r"at\s+" + _TIME + r"\b", re.IGNORECASE),
    "compartment": re.compile(r"cmt\s+(\d+)\b", re.IGNORECASE),
}
_FORM = "such as '100 mg q12h x 6, infusion 2 h'"


@dataclass(frozen=True)
class Course:
    """Equal doses at equal intervals.

    Args:
        amount: of each dose, amount unit, or amount unit per kg.
        interval: between two doses, time unit; 0 for one dose.
        count: number of doses.
        duration: of the infusion, time unit; 0 for none.
        start: of the first dose since the start of the regimen, time unit.
        compartment: where it goes, counted from 1.
        steady_state: whether the first dose finds the steady state of such doses.
        by_weight: whether the amount is per kg of body weight.
        rate: of the infusion: -1 for that of the model, -2 for the duration of the model, as of
            `neuralpk.cohort.Dose`; 0 for neither.

    Raises:
        ValueError: a number that no course can have.
    """

    amount: float
    interval: float = 0.0
    count: int = 1
    duration: float = 0.0
    start: float = 0.0
    compartment: int = 1
    steady_state: bool = False
    by_weight: bool = False
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.rate not in (0.0, MODELLED_RATE, MODELLED_DURATION) or (self.rate and self.duration):
            raise ValueError(f"an infusion has a duration, or rate -1 or -2 for those of the model: {self}")
        if min(self.amount, self.interval, self.duration, self.start) < 0 or self.count < 1 or self.compartment < 1:
            raise ValueError(f"nothing in a course may be negative, and it has one dose or more: {self}")
        if self.count > MOST_ADDITIONAL:
            raise ValueError(f"a course of {self.count:,} doses; at most {MOST_ADDITIONAL:,}")
        if not self.interval and (self.count > 1 or self.steady_state):
            raise ValueError(f"several doses, or a steady state, need an interval: {self}")

    @property
    def times(self) -> list[float]:
        """Of the doses, since the start of the regimen."""
        return [self.start + k * self.interval for k in range(self.count)]

    @property
    def end(self) -> float:
        """End of the last dosing interval; the time of the dose for one without interval."""
        return self.start + self.count * self.interval


@dataclass(frozen=True)
class Regimen:
    """Courses of doses.

    Args:
        courses: what is given; an empty one gives nothing.
        name: as it stands in tables and figures.
    """

    courses: tuple[Course, ...]
    name: str = ""

    @classmethod
    def parse(cls, text: str, units: Units = Units()) -> Regimen:  # noqa: B008  # immutable
        """From a text.

        Args:
            text: as the module describes it; ``none`` gives nothing.
            units: of the model; amounts and times in other known units are converted to these.

        Raises:
            ValueError: a text that is no regimen; it names the part and the form.
        """
        text = " ".join(text.split())
        if text.lower() in ("none", "nothing", "0"):
            return cls((), text)
        parts = re.split(r"\s*(?:,|;)?\s*\bthen\b\s*|\s*;\s*", text)
        found = [_course(part, units) for part in parts]
        courses: list[Course] = []
        for k, (course, placed) in enumerate(found):
            if not placed and courses:
                before = courses[-1]
                gap = course.interval if not before.interval else 0.0
                if not before.interval and not gap:
                    raise ValueError(
                        f"regimen {text!r}: when is {parts[k]!r} given? One dose follows another at a time, as in "
                        f"'{parts[k]} at 12 {units.time}'"
                    )
                course = dataclasses.replace(course, start=before.end + gap)
            if course.steady_state and courses:
                raise ValueError(f"regimen {text!r}: a steady state can only be where the regimen begins")
            courses.append(course)
        return cls(tuple(courses), text)

    @property
    def by_weight(self) -> bool:
        """Whether an amount is per kg."""
        return any(course.by_weight for course in self.courses)

    @property
    def end(self) -> float | None:
        """End of the last dosing interval since the start; None where the last dose has no interval, and for nothing
        given."""
        last = max(self.courses, key=lambda course: course.times[-1], default=None)
        return last.end if last is not None and last.interval else None

    @property
    def last_interval(self) -> tuple[float, float] | None:
        """The last dosing interval since the start; None as for `end`."""
        end = self.end
        return None if end is None else (max(course.times[-1] for course in self.courses), end)

    def events(self) -> list[float]:
        """Times since the start at which a dose is given or an infusion ends, in order."""
        return sorted({event for dose in self.doses(weight=1.0) for event in (dose.time, *dose.infusion_ends)})

    def doses(self, start: float = 0.0, weight: float | None = None) -> tuple[Dose, ...]:
        """The dose records, each dose one record.

        Args:
            start: of the regimen on the clock of the patient.
            weight: of the patient, kg, for amounts per kg.

        Raises:
            ValueError: an amount per kg without a weight.
        """
        if self.by_weight and weight is None:
            raise ValueError(f"regimen {self.name!r} is per kg: it needs the covariate WT of each patient")
        given = []
        for course in self.courses:
            amount = course.amount * (weight or 1.0) if course.by_weight else course.amount
            if not amount:
                continue
            for k, time in enumerate(course.times):
                steady = course.steady_state and k == 0
                given.append(
                    Dose(
                        time=start + time,
                        amount=amount,
                        compartment=course.compartment,
                        rate=course.rate,
                        duration=course.duration,
                        interval=course.interval if steady else 0.0,
                        steady_state=int(steady),
                    )
                )
        return tuple(sorted(given, key=lambda dose: dose.time))

    def scaled(self, factor: float) -> Regimen:
        """The same with every amount times a factor."""
        scaled = tuple(dataclasses.replace(course, amount=factor * course.amount) for course in self.courses)
        return Regimen(scaled, f"{self.name} × {factor:g}")


def parse_regimens(text: str | Sequence[str], units: Units = Units()) -> list[Regimen]:  # noqa: B008  # immutable
    """Several regimens, from a list of texts or one text with ``|`` between them.

    Raises:
        ValueError: no regimen, one twice, or as `Regimen.parse`.
    """
    texts = text.split("|") if isinstance(text, str) else list(text)
    regimens = [Regimen.parse(one, units) for one in texts]
    names = [one.name for one in regimens]
    if len(set(names)) < len(names):
        raise ValueError(f"a regimen stands twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return regimens


def _course(text: str, units: Units) -> tuple[Course, bool]:
    """A course, and whether its start was stated."""
    amount = _AMOUNT.match(text)
    if amount is None:
        raise ValueError(f"regimen: {text!r} does not begin with an amount; {_FORM}")
    value, by_weight = _amount(float(amount[1]), amount[2] or units.amount, units)
    found: dict[str, re.Match[str]] = {}
    at = amount.end()
    while at < len(text):
        if text[at] in " ,":
            at += 1
            continue
        name, piece = next(
            ((name, match) for name, form in _PIECES.items() if (match := form.match(text, at))), ("", None)
        )
        if piece is None:
            raise ValueError(
                f"regimen: {text[at:]!r} in {text!r} is not understood. There are: q12h, every 12 h, qd, bid, tid, "
                "qid; x 6, for 3 d, steady state, once; infusion 2 h, modelled rate, modelled duration; at 24 h; cmt 2"
            )
        if name in found:
            raise ValueError(f"regimen: {name} stands twice in {text!r}")
        found[name] = piece
        at = piece.end()

    def time(name: str) -> float:
        return time_in(float(found[name][1]), found[name][2], units) if name in found else 0.0

    if "daily" in found and "interval" in found:
        raise ValueError(f"regimen: {text!r} has two intervals, {found['interval'][0]} and {found['daily'][0]}")
    more = [name for name in ("interval", "daily", "count", "length", "steady") if name in found]
    if "once" in found and more:
        raise ValueError(f"regimen: {text!r} is given once, and {found[more[0]][0]}: which of the two?")
    interval = time("interval")
    if "daily" in found:
        interval = time_in(24 / _DAILY[found["daily"][1].lower()], "h", units)
    steady = "steady" in found
    if interval and not ({"count", "length", "steady"} & set(found)):
        raise ValueError(f"regimen: how often is {text!r} given? Add x 6, or for 3 d, or steady state")
    if not interval and ({"count", "length", "steady"} & set(found)):
        raise ValueError(f"regimen: {text!r} needs an interval, such as q12h")
    if "count" in found and "length" in found:
        raise ValueError(f"regimen: {text!r} says how often twice: x {found['count'][1]}, and for how long")
    count = int(found["count"][1]) if "count" in found else 1
    if "length" in found:
        count = round(time("length") / interval)
        if abs(count * interval - time("length")) > 1e-6 * interval or not count:
            raise ValueError(f"regimen: {text!r} does not hold a whole number of intervals")
    compartment = int(found["compartment"][1]) if "compartment" in found else 1
    if "modelled" in found and "infusion" in found:
        two = f"{found['infusion'][0]} and a {found['modelled'][0]}"
        raise ValueError(f"regimen: {text!r} has {two}: which of the two?")
    codes = {"rate": MODELLED_RATE, "duration": MODELLED_DURATION}
    rate = codes[found["modelled"][1].lower()] if "modelled" in found else 0.0
    course = Course(value, interval, count, time("infusion"), time("at"), compartment, steady, by_weight, rate)
    return course, "at" in found


def _amount(value: float, unit: str, units: Units) -> tuple[float, bool]:
    """An amount in the unit of the model, and whether it is per kg."""
    unit, slash, per = unit.partition("/")
    if slash and per.lower() != "kg":
        raise ValueError(f"regimen: amounts are per kg or not, not per {per}")
    if unit == units.amount:
        return value, bool(slash)
    if unit in _AMOUNTS and units.amount in _AMOUNTS:
        return value * _AMOUNTS[unit] / _AMOUNTS[units.amount], bool(slash)
    raise ValueError(f"regimen: the amounts of this model are in {units.amount}; {unit} cannot be converted")


def time_in(value: float, unit: str, units: Units) -> float:
    """A time in the unit of the model.

    Raises:
        ValueError: a unit that cannot be converted.
    """
    if unit == units.time:
        return value
    own, given = _TIME_NAMES.get(units.time.lower()), _TIME_NAMES.get(unit.lower())
    if own is None or given is None:
        raise ValueError(f"regimen: the times of this model are in {units.time}; {unit} cannot be converted")
    return value * _TIMES[given] / _TIMES[own]
