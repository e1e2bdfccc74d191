"""Captured tensors: a field that uses a tensor which is neither theta nor a weight of the dynamics.

A backward sweep that computes the field again would silently lose the gradient of that tensor.
"""

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics


def refuse_captured_tensors(dynamics: Dynamics, y0: Tensor, theta: Tensor) -> None:
    """Walk the graph of one evaluation of the field.

    Raises:
        ValueError: it depends on a tensor that is neither theta nor a weight of the dynamics.
    """
    if not torch.is_grad_enabled():
        return
    with torch.enable_grad():
        y, own = y0.detach().requires_grad_(), theta[:, 0].detach().requires_grad_()
        known = {id(y), id(own), *(id(p) for p in dynamics.parameters())}
        todo, seen = [dynamics(torch.zeros_like(y[:, 0]), y, own).grad_fn], set()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                raise ValueError(
                    f"{type(dynamics).__name__} uses a tensor of shape {tuple(leaf.shape)} that needs a gradient but "
                    "is neither theta nor a registered parameter; the backward sweep would compute none for it. Put "
                    "what differs between subjects into theta, register shared weights on the module, or use "
                    "TorchDiffEq(gradient='backprop')."
                )
            todo.extend(parent for parent, _ in node.next_functions)
