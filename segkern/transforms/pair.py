"""Running torchvision transforms on one image and its mask, with randomness per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2


class PairTransform:
    """Transforms in turn, on image and mask together.

    torchvision draws from torch's global random numbers. With a generator given, these are seeded
    from it for the duration of the call and put back afterwards, so the result is a function of the
    image, the mask and the generator's state alone. Only the CPU's numbers are touched; do not call
    from several threads at once.

    Args:
        steps: torchvision v2 transforms.

    Example:
        >>> flip = PairTransform([v2.RandomHorizontalFlip(p=1.0)])
        >>> image, mask = flip(torch.zeros(3, 1, 2, dtype=torch.uint8), torch.tensor([[0, 1]]))
        >>> mask
        tensor([[1, 0]])
    """

    def __init__(self, steps: Sequence[v2.Transform]) -> None:
        self.steps = list(steps)

    def __call__(
        self, image: Tensor, mask: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Transform one sample.

        Args:
            image: (3, H, W), uint8 or float.
            mask: (H, W), integers.
            generator: source of the randomness; None takes torch's global numbers as they are.

        Returns:
            the transformed image and mask as plain tensors of the dtypes they came in.
        """
        if image.dim() != 3 or mask.dim() != 2 or image.shape[1:] != mask.shape:
            raise ValueError(
                "PairTransform: image must be (C, H, W) and mask (H, W), got "
                f"{tuple(image.shape)} and {tuple(mask.shape)}"
            )
        if not self.steps:
            return image, mask
        if generator is None:
            return self._run(image, mask)
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the numbers of the GPUs as well.
            torch.default_generator.manual_seed(seed)
            return self._run(image, mask)

    def _run(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pair = (tv_tensors.Image(image), tv_tensors.Mask(mask))
        for step in self.steps:
            pair = step(*pair)
        return pair[0].as_subclass(Tensor), pair[1].as_subclass(Tensor)

    def __repr__(self) -> str:
        return f"PairTransform({self.steps})"
