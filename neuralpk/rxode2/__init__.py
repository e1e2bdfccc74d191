"""Models written as functions of rxode2 and nlmixr2: import and export."""

from neuralpk.rxode2.export_function import export_rxode2
from neuralpk.rxode2.import_function import import_rxode2
from neuralpk.rxode2.rxode_model import RxodeModel

__all__ = ["RxodeModel", "export_rxode2", "import_rxode2"]
