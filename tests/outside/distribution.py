"""A distribution of a parameter of one's own."""

from neuralpk.parameters import ParameterDistribution


class SquareRootNormal(ParameterDistribution):
    """A parameter whose square root is normal: theta = x²."""

    def transform(self, x):
        return x.square()

    def inverse(self, theta):
        return theta.sqrt()
