"""neuralpk: neural ordinary differential equations for pharmacokinetics, on PyTorch Lightning."""

__version__ = "0.1.0"
