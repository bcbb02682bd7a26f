"""The training recipe that a network's paper or released code gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from segkern.losses import check_loss

INPUT_MODES = (
    "unit",
    "caffe",
    "bgr",
    "imagenet",
    "symmetric",
    "espnet",
    "rgb_128",
    "bgr_voc",
    "bgr_camvid",
    "bgr_cityscapes",
)
LABEL_GRIDS = ("nearest", "corners", "stride", "centre")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network was trained, number by number; a default of ``segkern train`` each.

    ``dataclasses.replace(recipe, lr=0.01)`` makes a variant. Sizes are ``(height, width)``.

    Attributes:
        optimizer: ``"sgd"``, ``"adam"`` or ``"rmsprop"``; or ``"fit"`` for methods without
            gradients, which their ``fit`` builds at once: numbers of steps mean nothing then.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        smoothing: Share of the old value in the mean square of RMSprop.
        weight_decay: Factor of L2 regularisation, added to the gradient.
        schedule: ``"constant"``, ``"step"`` (``lr * gamma ** (iteration // step_size)``),
            ``"multistep"`` (``lr * gamma ** milestones passed``) or ``"poly"``
            (``lr * (1 - iteration / iterations) ** power``).
        step_size: Iterations between two steps of ``"step"``.
        milestones: Where ``"multistep"`` takes its steps, as fractions of the run's iterations,
            each above the one before and all between 0 and 1.
        gamma: Factor of a step.
        power: Exponent of ``"poly"``.
        warmup_steps: Iterations over which the rate of any schedule is also multiplied by a factor
            that rises linearly from ``warmup_factor`` to 1; 0 for none.
        warmup_factor: The factor at the first iteration.
        clip_norm: Largest L2 norm of all gradients together, to which larger ones are scaled
            down, or ``None``.
        batch_size: Images per optimiser step.
        epochs: Passes over the training set.
        input: Scaling of the input, one of the modes of
            :func:`segkern.models.preprocess`: ``"unit"``, ``"caffe"``, ``"bgr"``, ``"imagenet"``,
            and others.
        loss: A loss of :func:`segkern.losses.pixel_loss`, or several with ``+`` between; or
            ``"network"``: the network returns its own losses in training, a dict whose sum is
            minimised, as those of instances do.
        loss_options: Their numbers by name, as ``{"gamma": 2.0}``.
        label_smoothing: Share of the target spread over all classes.
        class_weights: ``None``, ``"enet"``, ``"espnet"`` or ``"median_frequency"``.
        loss_reduction: ``"pixels"`` divides the weighted sum by the number of pixels that count,
            ``"weights"`` by the sum of their weights, ``"batch"`` by the number of images.
        bias_lr_mult: Factor on the learning rate of convolution biases.
        bias_decay_mult: Factor on the weight decay of convolution biases.
        norm_decay: Whether normalisation parameters and PReLU slopes are decayed.
        crf_weights_lr_mult: Factor on the learning rate of the kernel weights of a CRF layer,
            which are never decayed.
        crf_compatibility_lr_mult: The same for its compatibilities.
        depthwise_decay: Whether depthwise convolutions are decayed.
        head_lr_mult: Factor on the learning rate of the layers that a network names in its
            ``head_names``, those that no pre-training has seen; biases have ``bias_lr_mult`` too.
        freeze_norm: Whether batch norm keeps its statistics, scale and shift in training, see
            :func:`segkern.nn.freeze_batch_norm`.
        outputs: Weight of the loss of each output of the network in training, by its name.
        label_grid: Where labels are taken for an output smaller than they are: ``"nearest"`` as
            torch's ``interpolate``; ``"corners"``, the corner pixels falling on corner pixels;
            ``"stride"``, each s-th from the first, s being the ratio of the sizes; ``"centre"``,
            those in the middle, for outputs of valid convolutions.
        crop: Size of a random crop, or ``None``.
        resize: Size every image is resized to before the crop, or ``None``.
        flip: Whether images are mirrored at random.
        scale: Range of a random scale, or ``None``.
        scale_step: Step of the scales drawn from, or ``None`` for any in the range.
        jitter: Range of the scale of a large-scale jitter, see
            :func:`segkern.transforms.build_instance_transform`, or ``None``; for instances.
        aspect_groups: Whether the images of a batch are all upright or all not; for instances.
        elastic: Standard deviation in pixels of an elastic deformation, see
            :class:`segkern.transforms.ElasticDeformation`, or ``None``.
        notes: What the source says that is not a number, and what the fields cannot say.
        source: Where the numbers are from.

    Raises:
        ValueError: If a named choice is not one of those above.
    """

    optimizer: str = "sgd"
    lr: float
    momentum: float = 0.9
    smoothing: float = 0.99
    weight_decay: float = 0.0
    schedule: str = "constant"
    step_size: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    clip_norm: float | None = None
    batch_size: int
    epochs: int
    input: str = "unit"
    loss: str = "cross_entropy"
    loss_options: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0
    class_weights: str | None = None
    loss_reduction: str = "pixels"
    bias_lr_mult: float = 1.0
    bias_decay_mult: float = 1.0
    norm_decay: bool = True
    crf_weights_lr_mult: float = 1.0
    crf_compatibility_lr_mult: float = 1.0
    depthwise_decay: bool = True
    head_lr_mult: float = 1.0
    freeze_norm: bool = False
    outputs: Mapping[str, float] = field(default_factory=lambda: {"out": 1.0})
    label_grid: str = "nearest"
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    flip: bool = False
    scale: tuple[float, float] | None = None
    scale_step: float | None = None
    elastic: float | None = None
    jitter: tuple[float, float] | None = None
    aspect_groups: bool = False
    notes: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("sgd", "adam", "rmsprop", "fit"),
            "schedule": ("constant", "step", "multistep", "poly"),
            "input": INPUT_MODES,
            "class_weights": (None, "enet", "espnet", "median_frequency"),
            "loss_reduction": ("pixels", "weights", "batch"),
            "label_grid": LABEL_GRIDS,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(map(repr, allowed))
                raise ValueError(f"Recipe: {name} must be one of {shown}, got {value!r}")
        if not self.outputs:
            raise ValueError("Recipe: outputs must name at least one output, got none")
        if self.schedule == "step" and self.step_size < 1:
            raise ValueError(f"Recipe: step_size must be at least 1, got {self.step_size}")
        self._check_schedule()
        if self.loss != "network":
            try:
                check_loss(self.loss, self.loss_options)
            except ValueError as error:
                raise ValueError(f"Recipe: {error}") from error
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"Recipe: label_smoothing must be in [0, 1), got {self.label_smoothing}"
            )

    def _check_schedule(self) -> None:
        marks = (0.0, *self.milestones, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(marks)):
            raise ValueError(
                "Recipe: milestones must rise and lie between 0 and 1, got "
                f"{tuple(self.milestones)}"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("Recipe: milestones must name at least one for schedule 'multistep'")
        if self.warmup_steps < 0:
            raise ValueError(f"Recipe: warmup_steps must be at least 0, got {self.warmup_steps}")
        if not 0 <= self.warmup_factor <= 1:
            raise ValueError(
                f"Recipe: warmup_factor must be between 0 and 1, got {self.warmup_factor}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"Recipe: clip_norm must be above 0, got {self.clip_norm}")
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"Recipe: jitter must be 0 < low <= high, got {self.jitter}")
