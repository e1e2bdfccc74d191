"""Presets: the configurations inside the package."""

from __future__ import annotations

from importlib import resources

from neuralpk.cli.faults import UsageError
from neuralpk.part import did_you_mean

PRESETS = tuple(sorted(item.name.removesuffix(".yaml") for item in (resources.files("neuralpk") / "presets").iterdir()))
"""Names of the presets."""

MAIN_JOB = "two_compartment"
"""The preset of a command without a preset and without a configuration."""


def preset_path(name: str) -> str:
    """Path of a preset.

    Raises:
        UsageError: no preset of that name.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, list(PRESETS))
        raise UsageError(f"there is no preset {name!r}{hint}; there are {', '.join(PRESETS)}")
    return str(resources.files("neuralpk") / "presets" / f"{name}.yaml")
