"""PReLU with a backward of vectorised passes on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PReLU(nn.PReLU):
    """:class:`torch.nn.PReLU`, whose gradient on the CPU costs a quarter.

    torch computes both gradients element by element in one scalar loop, in ENet a quarter of a
    training step. Constructor, ``state_dict``, outputs and input gradients are torch's; the slope
    gradients differ from torch's by the order of a sum. Elsewhere than on the CPU, and without
    gradients, this is torch's own operator.
    """

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.device.type == "cpu"
            and torch.is_grad_enabled()
            and input.dtype == self.weight.dtype
            and input.dim() > 1
        ):
            return _PReLU.apply(input, self.weight)
        return functional.prelu(input, self.weight)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return functional.prelu(input, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        # The gradient where the input is positive, and where it is not: one of the two is zero.
        positive = torch.ops.aten.threshold_backward(grad, input, 0)
        negative = grad - positive
        grad_input = grad_weight = None
        if ctx.needs_input_grad[1]:
            product = negative * input
            axes = [axis for axis in range(input.dim()) if axis != 1]
            grad_weight = product.sum() if weight.numel() == 1 else product.sum(axes)
            grad_weight = grad_weight.view_as(weight)
        if ctx.needs_input_grad[0]:
            slope = weight.view(1, -1, *[1] * (input.dim() - 2))
            grad_input = positive.addcmul_(negative, slope)
        return grad_input, grad_weight
