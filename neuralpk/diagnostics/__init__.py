"""Numbers and figures that judge a fitted model: arrays in, numbers or a matplotlib `Figure` out.

``metrics`` errors, coverage, scores, residuals; ``record_bins`` bins of records along time; ``below_quantification``
values below the limit in checks by simulation; ``plots`` figures of fits; ``parameter_plots`` figures of individual
parameters; ``correction_plots`` and ``term_plots`` what networks have learned; ``style`` how all figures look. Checks
by simulation, VPC and NPDE, are in `neuralpk.evaluation`.
"""
