"""The other side of each comparison: what torch offers for the same work, in its best forms.

A peer is a callable without arguments. ``TorchPool`` makes the eager ones; ``compiled`` and
``cuda_graph`` turn work into its ``torch.compile`` and CUDA-graph forms.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Window:
    """The arguments of a pooling layer."""

    kernel_size: int
    stride: int
    padding: int = 0
    ceil_mode: bool = False


class TorchPool:
    """torch's pooling with int64 indices over fixed inputs: x (N,C,H,W) and the two gradients."""

    def __init__(self, x: torch.Tensor, window: Window):
        self.x, self.window = x, window
        self.y, self.indices = self.forward(x)
        self.grad_y, self.grad_x = torch.randn_like(self.y), torch.randn_like(x)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.window
        return F.max_pool2d(
            x, w.kernel_size, w.stride, w.padding, ceil_mode=w.ceil_mode, return_indices=True
        )

    def unpool(self, y: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        w = self.window
        return F.max_unpool2d(
            y, indices, w.kernel_size, w.stride, w.padding, output_size=self.x.shape[-2:]
        )

    def pool_forward(self) -> Callable[[], object]:
        return lambda: self.forward(self.x)

    def unpool_forward(self) -> Callable[[], object]:
        return lambda: self.unpool(self.y, self.indices)

    def pool_backward(self) -> Callable[[], object]:
        return backward(lambda x: self.forward(x)[0], self.x, self.grad_y)

    def unpool_backward(self) -> Callable[[], object]:
        return backward(lambda y: self.unpool(y, self.indices), self.y, self.grad_x)

    def compiled(self, operator: str) -> Callable[[], object]:
        """The same work through torch.compile, the backward passes as inductor lowers them."""
        w = self.window
        if operator == "pool_forward":
            return compiled(self.forward, self.x)
        if operator == "unpool_forward":
            return compiled(self.unpool, self.y, self.indices)
        if operator == "pool_backward":

            def pool_backward(grad, x, indices):
                return torch.ops.aten.max_pool2d_with_indices_backward(
                    grad,
                    x,
                    [w.kernel_size] * 2,
                    [w.stride] * 2,
                    [w.padding] * 2,
                    [1, 1],
                    w.ceil_mode,
                    indices,
                )

            return compiled(pool_backward, self.grad_y, self.x, self.indices)

        def unpool_backward(grad, indices):
            picked = grad.flatten(2).gather(2, indices.flatten(2))
            return picked.unflatten(2, indices.shape[2:])

        return compiled(unpool_backward, self.grad_x, self.indices)


def backward(
    function: Callable[[torch.Tensor], torch.Tensor], leaf: torch.Tensor, grad: torch.Tensor
) -> Callable[[], object]:
    """The backward pass alone, through autograd; the forward pass is run here, once."""
    leaf = leaf.detach().requires_grad_()
    with torch.enable_grad():
        output = function(leaf)
    return lambda: torch.autograd.grad(output, leaf, grad, retain_graph=True)[0]


def can_compile(device: str) -> bool:
    """Whether torch.compile finds its compilers: a C++ one, and Triton for CUDA."""
    named = os.environ.get("CXX", "").split()[:1]
    cxx = any(shutil.which(name) for name in [*named, "g++", "clang++"])
    return cxx and (device == "cpu" or importlib.util.find_spec("triton") is not None)


def compiled(function: Callable, *inputs: torch.Tensor) -> Callable[[], object]:
    """``function(*inputs)`` compiled for these very shapes."""
    return functools.partial(torch.compile(function, dynamic=False), *inputs)


def cuda_graph(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """The replay of ``make()``'s work, captured once.

    ``make`` runs on the capturing stream too, because autograd replays a backward pass on the
    stream of its forward pass.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call()

    def replay() -> object:
        graph.replay()
        return result

    return replay
