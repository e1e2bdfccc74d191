"""One report of a model and a table: a single HTML file that needs nothing else."""

from neuralpk.report.writing import write_report

__all__ = ["write_report"]
