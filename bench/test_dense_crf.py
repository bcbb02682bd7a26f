"""dense_crf beside pydensecrf, or a chain of eager torch operations where that has no place.

The image is the photograph that comes with Matplotlib, scaled, with energies of random scores.
Rows: the whole call (lattices and 10 iterations), the lattices with their normalisers, 10
iterations over given lattices, and the backward pass of those. Least bytes of an iteration and
term: 8 a corner for vertex and weight, read once each by splat and slice, the rows of values twice
and those of vertices twice an axis; the backward the same and two more rows a point; of the
lattices the features read, vertex and weight of each corner, and the neighbours of each vertex,
written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.cases import Case, Contender
from bench.crf_peers import EagerCRF, PyDenseCRF, Widths, has_pydensecrf
from segkern import ops
from segkern.ops.dense_crf import bilateral_features, mean_field, pairwise_term, position_features

ITERATIONS = 10
OPERATORS = ("dense_crf", "permutohedral_build", "mean_field", "mean_field_backward")
PARAMETERS = {
    "kk": Widths((3.0, 3.0), (80.0, 13.0, 10.0)),  # pydensecrf's example
    "deeplab": Widths((1.0, 3.0), (67.0, 3.0, 4.0)),  # DeepLab v2 on VOC
}

# title, devices, parameters, full shape (N, labels, H, W), small shape
BOTH, GPU = ("cuda", "cpu"), ("cuda",)
SHAPES = (
    ("VOC image", BOTH, ("kk", "deeplab"), (1, 21, 375, 500), (1, 3, 12, 16)),
    ("Cityscapes image", BOTH, ("kk",), (1, 19, 1024, 2048), (1, 5, 8, 16)),
    ("Cityscapes image", GPU, ("deeplab",), (1, 19, 1024, 2048), (1, 5, 8, 16)),
    ("Batch of VOC images", GPU, ("kk", "deeplab"), (16, 21, 375, 500), (2, 3, 12, 16)),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "dense_crf",
            operator,
            full if timed else small,
            "float32",
            "contiguous",
            parameters,
            title,
            options={"devices": devices},
        )
        for title, devices, names, full, small in SHAPES
        for parameters in names
        for operator in OPERATORS
    ]


def photograph(size: tuple[int, int]) -> Tensor:
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class Inputs:
    """Energies, a gradient, the image, and the two terms over its lattices."""

    def __init__(self, case: Case):
        batch, labels, *size = case.shape
        generator = torch.Generator().manual_seed(0)
        scores = 2 * torch.randn(batch, labels, size[0] * size[1], generator=generator)
        self.unary = -scores.log_softmax(1).to(case.device)
        self.grad = torch.rand(self.unary.shape, generator=generator).to(case.device)
        self.image = photograph(tuple(size)).expand(batch, 3, *size).contiguous().to(case.device)
        self.size, self.widths = tuple(size), PARAMETERS[case.setting]
        self.terms = self.build()
        on_cpu = case.device == "cpu" and has_pydensecrf() and case.operator[-8:] != "backward"
        self.peer = (PyDenseCRF if on_cpu else EagerCRF)(self.unary, self.image, self.widths)
        self.built = self.peer.build()

    def build(self) -> list:
        (near, smooth), (far, like, appearance) = self.widths.gaussian, self.widths.bilateral
        device = self.image.device
        features = [
            position_features("dense_crf", self.size, near, device),
            bilateral_features("dense_crf", self.image, far, like),
        ]
        return [
            pairwise_term(f, torch.full((), -weight, device=device))
            for f, weight in zip(features, (smooth, appearance))
        ]

    def call(self) -> Tensor:
        (near, smooth), (far, like, appearance) = self.widths.gaussian, self.widths.bilateral
        shape = (*self.unary.shape[:2], *self.size)
        gaussian = {"sxy": near, "weight": smooth}
        bilateral = {"sxy": far, "srgb": like, "weight": appearance}
        with torch.no_grad():
            return ops.dense_crf(
                self.unary.view(shape), self.image, gaussian=gaussian, bilateral=bilateral
            ).flatten(2)

    def iterate(self, unary: Tensor | None = None) -> Tensor:
        return mean_field(self.unary if unary is None else unary, self.terms, ITERATIONS)[0]

    def vertices(self) -> list[int]:
        return [int(term.lattice.count.sum()) for term in self.terms]

    def least_bytes(self, operator: str) -> int:
        batch, labels, points = self.unary.shape
        row = 4 * labels
        lattices = rows = 0
        for term, vertices in zip(self.terms, self.vertices()):
            d = term.lattice.dims
            items = len(term.lattice.count)
            lattices += items * points * (4 * d + 8 * (d + 1)) + vertices * 8 * (d + 1)
            share = vertices * batch // items
            rows += batch * points * (d + 1) * 16 + share * row * 2 * (d + 1)
        backward = operator == "mean_field_backward"
        rows += (6 if backward else 4) * batch * points * row
        return {
            "dense_crf": lattices + ITERATIONS * rows,
            "permutohedral_build": lattices,
        }.get(operator, ITERATIONS * rows)


def test_dense_crf(case: Case, runner) -> None:
    backward = case.operator == "mean_field_backward"
    inputs = runner.inputs((case.data, backward), lambda: Inputs(case))
    peer = inputs.peer

    def gradient(function):
        leaf = inputs.unary.detach().requires_grad_()
        with torch.enable_grad():
            output = function(leaf)
        return lambda: torch.autograd.grad(output, leaf, inputs.grad, retain_graph=True)[0]

    calls = {
        "dense_crf": (
            lambda: inputs.call,
            lambda: lambda: peer.iterate(peer.build(), ITERATIONS),
        ),
        "permutohedral_build": (lambda: inputs.build, lambda: peer.build),
        "mean_field": (
            lambda: inputs.iterate,
            lambda: lambda: peer.iterate(inputs.built, ITERATIONS),
        ),
        "mean_field_backward": (
            lambda: gradient(inputs.iterate),
            lambda: gradient(lambda leaf: peer.iterate(inputs.built, ITERATIONS, leaf)),
        ),
    }
    ours, theirs = calls[case.operator]
    least = inputs.least_bytes(case.operator)

    def check(_variant: str, got, expected) -> None:
        if case.operator == "permutohedral_build":
            return  # compared by what is computed over them
        # Points on the border of two simplices may fall to either side.
        apart = (got - expected).abs() > 1e-3 * expected.abs().max()
        assert apart.float().mean() < 1e-3

    runner.run(
        case,
        ours={"segkern": Contender(ours, least, library="segkern")},
        peer=Contender(theirs, least, library=peer.library),
        check=check,
        note=f"{' + '.join(map(str, inputs.vertices()))} vertices",
    )
