"""Runs every CUDA kernel once over the small operator cases, for compute-sanitizer.

compute-sanitizer --tool memcheck python -m tests.kernels.small_cases
"""

from __future__ import annotations

import math
import sys

import torch

from segkern import env, ops
from segkern.ops.dense_crf import mean_field, pairwise_term
from tests.opcases import POOL_CASES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def run_pooling() -> int:
    """Forward, backward, unpooling, its backward and conversion over all cases; returns a count."""
    runs = 0
    for case in POOL_CASES:
        for dtype in DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                if layout == torch.channels_last and len(case.shape) != 4:
                    continue
                for index_format in case.formats:
                    x = torch.randn(case.shape, dtype=torch.float32).to("cuda", dtype)
                    x = x.contiguous(memory_format=layout).requires_grad_()
                    window = (case.kernel, case.stride, case.padding, case.dilation)
                    y, indices = ops.max_pool2d_with_indices(
                        x, *window, ceil_mode=case.ceil_mode, index_format=index_format
                    )
                    y.backward(torch.ones_like(y))
                    plane = case.shape[-2:]
                    flat = ops.convert_pool_indices(
                        indices, "flat", *window, input_size=plane, output_size=y.shape[-2:]
                    )
                    for given in (indices, flat):
                        values = y.detach().requires_grad_()
                        raw = torch.ops.segkern.max_unpool2d
                        out = raw(values, given, *case.window_lists(), *plane)
                        out.backward(torch.ones_like(out))
                    runs += 1
    torch.cuda.synchronize()
    return runs


def run_permutohedral() -> int:
    """Lattices of every dimension and of keys beyond 64 bits; filters and both gradients."""
    runs = 0
    for dims in range(1, 17):
        for spread in (1.0, 1e5 if dims < 6 else 100.0, math.nan):
            for dtype in DTYPES:
                features = (spread * torch.randn(2, 70, dims, device="cuda")).requires_grad_()
                values = torch.rand(2, 5, 70, device="cuda").to(dtype).requires_grad_()
                lattice = ops.permutohedral_build(features)
                filtered = ops.permutohedral_filter(values, lattice, features=features)
                filtered.backward(torch.ones_like(filtered))
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_dense_crf() -> int:
    """Every width of rows, kind of cost and number of launches; objective and gradients."""
    runs = 0
    for labels in (2, 11, 21, 40, 70, 130, 256):
        for shape in ((), (labels,), (labels, labels)):
            for terms in (1, 5):
                unary = torch.rand(2, labels, 77, device="cuda", requires_grad=True)
                start = torch.rand(2, labels, 77, device="cuda").softmax(1).requires_grad_()
                made = []
                for n in range(terms):
                    features = torch.randn(1 + n % 2, 77, 2 + n % 4, device="cuda")
                    cost = torch.rand(shape, device="cuda", requires_grad=True)
                    made.append(pairwise_term(features, cost))
                for memory in ("recompute", "store"):
                    q, _ = mean_field(unary, made, 2, q0=start, memory=memory, return_kl=True)
                    q.square().sum().backward()
                    runs += 1
    torch.cuda.synchronize()
    return runs


def main() -> int:
    if not torch.cuda.is_available():
        print("nothing run:", "; ".join(env()["reasons"]))
        return 1
    print(f"{run_pooling()} pooling cases ran")
    print(f"{run_permutohedral()} lattices ran")
    print(f"{run_dense_crf()} dense CRFs ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
