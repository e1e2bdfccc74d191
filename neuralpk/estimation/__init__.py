"""Estimation of the population: the maximum of the marginal likelihood, found by Newton's method on held draws."""
