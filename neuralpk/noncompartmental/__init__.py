"""Non-compartmental analysis: event tables and curves in, tables of CDISC parameters out; without a model or torch.

``profile_analysis`` one profile as arrays; ``profiles`` the profiles of a cohort, one for each dose; ``nca_table``
their parameters as a table; ``cdisc_names`` names and units.
"""

from neuralpk.noncompartmental.nca_table import nca, summarise, wide
from neuralpk.noncompartmental.profile_analysis import analyse_dosing_interval, analyse_single_dose

__all__ = ["analyse_dosing_interval", "analyse_single_dose", "nca", "summarise", "wide"]
