"""Recurrent networks as decoders: hidden states that move in steps or in time."""

from neuralpk.decoders.continuous_time_rnn import ContinuousTimeRNN
from neuralpk.decoders.gru import GRU, Gap
from neuralpk.decoders.ode_rnn import ODERNN

__all__ = ["GRU", "ODERNN", "ContinuousTimeRNN", "Gap"]
