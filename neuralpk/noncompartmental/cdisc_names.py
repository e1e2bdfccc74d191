"""Parameters of a non-compartmental analysis: the codes of CDISC (PPTESTCD), their names (PPTEST) and their units."""

from __future__ import annotations

from neuralpk.cohort import Units

_TIME, _VALUE, _AUC, _AUMC = "{time}", "{value}", "{time}*{value}", "{time}^2*{value}"
_CLEARANCE, _VOLUME = "{volume}/{time}", "{volume}"

PARAMETERS: dict[str, tuple[str, str]] = {
    "C0": ("Initial Conc", _VALUE),
    "CMAX": ("Max Conc", _VALUE),
    "TMAX": ("Time of CMAX", _TIME),
    "CLST": ("Last Nonzero Conc", _VALUE),
    "TLST": ("Time of Last Nonzero Conc", _TIME),
    "AUCLST": ("AUC to Last Nonzero Conc", _AUC),
    "AUCIFO": ("AUC Infinity Obs", _AUC),
    "AUCIFP": ("AUC Infinity Pred", _AUC),
    "AUCPEO": ("AUC %Extrapolation Obs", "%"),
    "AUCPBEO": ("AUC %Back Extrapolation Obs", "%"),
    "AUMCLST": ("AUMC to Last Nonzero Conc", _AUMC),
    "AUMCIFO": ("AUMC Infinity Obs", _AUMC),
    "LAMZ": ("Lambda z", "1/{time}"),
    "LAMZHL": ("Half-Life Lambda z", _TIME),
    "LAMZNPT": ("Number of Points for Lambda z", ""),
    "LAMZLL": ("Lambda z Lower Limit", _TIME),
    "LAMZUL": ("Lambda z Upper Limit", _TIME),
    "R2ADJ": ("R Squared Adjusted", ""),
    "MRTEVLST": ("MRT Extravasc to Last Nonzero Conc", _TIME),
    "MRTEVIFO": ("MRT Extravasc Infinity Obs", _TIME),
    "MRTIBIFO": ("MRT Intravasc Bolus Infinity Obs", _TIME),
    "MRTICIFO": ("MRT Intravasc Cont Inf Infinity Obs", _TIME),
    "CLFO": ("Total CL Obs by F", _CLEARANCE),
    "VZFO": ("Vz Obs by F", _VOLUME),
    "CLO": ("Total CL Obs", _CLEARANCE),
    "VZO": ("Vz Obs", _VOLUME),
    "VSSO": ("Vol Dist Steady State Obs", _VOLUME),
    "TAU": ("Dosing Interval", _TIME),
    "AUCTAU": ("AUC Over Dosing Interval", _AUC),
    "CMIN": ("Min Conc", _VALUE),
    "TMIN": ("Time of CMIN Observation", _TIME),
    "CTROUGH": ("Conc Trough", _VALUE),
    "CAVG": ("Average Conc", _VALUE),
    "FLUCP": ("Fluctuation%", "%"),
    "SWING": ("Swing", ""),
    "CLFTAU": ("Total CL by F for Dose Int", _CLEARANCE),
    "CLTAU": ("Total CL for Dose Int", _CLEARANCE),
    "AILAMZ": ("Accumulation Index using Lambda z", ""),
    "ARAUC": ("Accumulation Ratio AUCTAU", ""),
    "ARCMAX": ("Accumulation Ratio Cmax", ""),
}
"""Code to name and pattern of the unit, in the order of the tables."""


def unit_of(code: str, units: Units) -> str:
    """Unit of a parameter; amounts over values are volumes, which are named so where the value unit begins with the
    amount unit (mg and mg/L give L)."""
    volume = units.value.removeprefix(f"{units.amount}/")
    if volume == units.value:
        volume = f"{units.amount}/({units.value})"
    return PARAMETERS[code][1].format(time=units.time, value=units.value, volume=volume)
