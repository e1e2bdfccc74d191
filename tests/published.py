"""Published populations for tests, as a population file has them."""

THEOPHYLLINE = {
    "dynamics": {"compartments": 1, "absorption": "first_order"},
    "typical": {"KA": 1.59, "CL": 2.75, "V1": 31.8},
    "cv": {"KA": 70.6, "CL": 26.8, "V1": 13.9},
    "error": "additive",
    "error_sd": {"a": 0.693},
}
