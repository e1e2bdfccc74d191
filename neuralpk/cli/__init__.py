"""The command line: ``neuralpk fit | validate | test | predict | simulate | estimate | population``."""

from neuralpk.cli.entry import main
from neuralpk.cli.presets import PRESETS, preset_path

__all__ = ["PRESETS", "main", "preset_path"]
