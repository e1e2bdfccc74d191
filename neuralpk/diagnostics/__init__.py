"""Numbers and figures that judge a fitted model: arrays in, numbers or a matplotlib `Figure` out.

``metrics`` errors, coverage, scores, residuals; ``simulation_checks`` VPC and npde; ``below_quantification`` values
below the limit in both; ``plots`` figures of fits; ``population_plots`` figures of a population; ``parameter_plots``
figures of individual parameters; ``correction_plots`` and ``term_plots`` what networks have learned; ``style`` how all
figures look.
"""
