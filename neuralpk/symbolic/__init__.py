"""What did the network learn? A learned correction, replaced by the few terms that do the same.

``network`` trains a hybrid on each series; ``discover`` finds the terms and refits them through the solver;
``equations`` prints them with their uncertainty. Beneath: ``library`` candidate terms; ``dynamics`` the fields on the
way from network to equation; ``sensitivity`` slopes of a solution; ``least_squares`` fits through the solver;
``sparse`` subsets of a regression.
"""

from neuralpk.symbolic.discover import discover
from neuralpk.symbolic.dynamics import OwnNetwork, TermDynamics
from neuralpk.symbolic.equations import Equations
from neuralpk.symbolic.library import Library
from neuralpk.symbolic.network import Learned, learn_correction

__all__ = ["Equations", "Learned", "Library", "OwnNetwork", "TermDynamics", "discover", "learn_correction"]
