"""Measured data sets that every reader of the field knows, as cohorts."""

from importlib import resources

from neuralpk.cohort import Cohort, Units
from neuralpk.tables import read_table

__all__ = ["NAMES", "hare_lynx", "indomethacin", "load", "theophylline"]


def _load(name: str, units: Units) -> Cohort:
    with resources.as_file(resources.files(__package__) / f"{name}.csv") as path:
        return read_table(path, covariates="all", units=units)


def theophylline() -> Cohort:
    """Theophylline after one oral dose: 12 subjects, 132 concentrations over 25 h.

    Doses are in mg (mg/kg times weight) into compartment 1; concentrations, mg/L, are read in compartment 2. WT is the
    body weight, kg. Subjects 1, 7 and 10 have concentrations above 0 before their dose.

    Source: Boeckmann, Sheiner and Beal (1994), NONMEM Users Guide, Part V; ``Theoph`` in R's ``datasets``.
    """
    return _load("theophylline", Units(time="h", amount="mg", value="mg/L"))


def indomethacin() -> Cohort:
    """Indomethacin after an intravenous bolus of 25 mg: 6 subjects, 66 concentrations over 8 h, mg/L.

    Source: Kwan, Breault, Umbenhauer, McMahon and Duggan (1976), Journal of Pharmacokinetics and Biopharmaceutics 4,
    255-280; ``Indometh`` in R's ``datasets``.
    """
    return _load("indomethacin", Units(time="h", amount="mg", value="mg/L"))


def hare_lynx() -> Cohort:
    """Pelts of hare (DVID 1) and lynx (DVID 2) bought by the Hudson's Bay Company, thousands a year, 1900 to 1920.

    One subject without doses, for the Lotka-Volterra model; time is the calendar year.

    Source: Howard (2009), Modeling Basics, after Hewitt (1921), The Conservation of the Wild Life of Canada.
    """
    return _load("hare_lynx", Units(time="year", amount="", value="thousand pelts"))


NAMES = {"theophylline": theophylline, "indomethacin": indomethacin, "hare_lynx": hare_lynx}
"""The data sets by name."""


def load(name: str) -> Cohort:
    """A data set by name.

    Raises:
        KeyError: no data set of that name.
    """
    return NAMES[name]()
