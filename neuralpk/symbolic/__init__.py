"""What did the network learn? A learned correction, replaced by the few terms that do the same.

``network`` trains a hybrid on each series; ``discover`` finds the terms and refits them through the solver;
``equations`` prints them with their uncertainty. Beneath: ``library`` candidate terms; ``dynamics`` the fields on the
way from network to equation; ``sensitivity`` slopes of a solution; ``least_squares`` fits through the solver;
``sparse`` subsets of a regression. ``find_formulas`` and ``find_effects`` find formulas for a network in a model's text
and for a learned effect of covariates.
"""

from neuralpk.symbolic.discover import discover
from neuralpk.symbolic.effect_formulas import EffectFormula, FormulaEffect, find_effects
from neuralpk.symbolic.equations import Equations
from neuralpk.symbolic.individual_network import IndividualNetwork
from neuralpk.symbolic.learn_correction import Learned, learn_correction
from neuralpk.symbolic.library import Library
from neuralpk.symbolic.term_dynamics import TermDynamics
from neuralpk.symbolic.term_formulas import TermFormula, find_formulas

__all__ = [
    "EffectFormula",
    "Equations",
    "FormulaEffect",
    "IndividualNetwork",
    "Learned",
    "Library",
    "TermDynamics",
    "TermFormula",
    "discover",
    "find_effects",
    "find_formulas",
    "learn_correction",
]
