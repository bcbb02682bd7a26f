"""The training recipe that a network's paper or released code gives."""

from __future__ import annotations

import itertools
import math
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
CLASS_WEIGHTS = (None, "enet", "espnet", "median_frequency", "segnet")
CROP_PADS = ("random", "centre", "end")
CROP_COLOURS = ("mean", "black")


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
        square_eps: What RMSprop adds to the mean square, under the root; or ``None`` for torch's
            rule, 1e-8 added to the root.
        weight_decay: Factor of L2 regularisation, added to the gradient.
        schedule: ``"constant"``, ``"step"`` (``lr * gamma ** (iteration // step_size)``),
            ``"multistep"`` (``lr * gamma ** milestones passed``) or ``"poly"``
            (``lr * (1 - iteration / iterations) ** power``).
        step_size: Iterations between two steps of ``"step"``; or
        step_epochs: epochs between them, whatever the size of the training set; one of both is 0.
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
        micro_batch: Images that pass the network at once, whose gradients are accumulated until
            there are those of ``batch_size``, the loss being the mean over the parts; or ``None``
            for all of them. Batch norm sees these images, and those at once have to have one size.
        epochs: Passes over the training set, at most.
        patience: Epochs after which a run ends if its score has not risen meanwhile; 0 for never.
        input: Scaling of the input, one of the modes of
            :func:`segkern.models.preprocess`: ``"unit"``, ``"caffe"``, ``"bgr"``, ``"imagenet"``,
            and others.
        loss: A loss of :func:`segkern.losses.pixel_loss`, or several with ``+`` between; or
            ``"network"``: the network returns its own losses in training, a dict whose sum is
            minimised, as those of instances do.
        loss_options: Their numbers by name, as ``{"gamma": 2.0}``.
        label_smoothing: Share of the target spread over all classes.
        class_weights: ``None``, ``"enet"``, ``"espnet"``, ``"median_frequency"`` or ``"segnet"``,
            see :func:`segkern.data.class_weights`.
        loss_reduction: ``"pixels"`` divides the weighted sum by the number of pixels that count,
            ``"weights"`` by the sum of their weights, ``"batch"`` by the number of images.
        bias_lr_mult: Factor on the learning rate of convolution biases.
        bias_decay_mult: Factor on the weight decay of convolution biases.
        norm_decay: Whether normalisation parameters and PReLU slopes are decayed.
        norm_shift_decay: Whether with them the shifts of normalisation are.
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
        resize: Size every image is resized to first, or ``None``.
        passes: ``(height, width, trim)`` of the passes over the training set, which take turns:
            factors on the size of ``resize``, or else of the image, rounded to multiples of 8; and
            the most pixels that half of the images lose at each border before they are brought to
            that size again, see :class:`segkern.transforms.TrimAndResize`. Empty: all alike.
        scale: Range of a random scale, or ``None``.
        scale_step: Step of the scales drawn from, or ``None`` for any in the range.
        rotate: Largest angle in degrees that half of the images are turned by, either way, or
            ``None``. Outside of the image are its ``crop_colour`` and no label.
        blur: Side in pixels of a Gaussian blur of half of the images, or ``None``.
        crop: Size of a random crop, or ``None``.
        crop_pad: Where an image lies in a crop larger than it: ``"random"``, anywhere;
            ``"centre"``; or ``"end"``, all that is added being at the bottom and the right.
        crop_colour: What is added: ``"mean"``, the colour that ``input`` brings nearest to 0, or
            ``"black"``.
        crop_margin: Pixels around the crop that are seen and not labelled; images are mirrored
            beyond their border for them, and ``crop_pad`` says nothing then.
        elastic: Standard deviation in pixels of an elastic deformation, see
            :class:`segkern.transforms.ElasticDeformation`, or ``None``.
        flip: Whether images are mirrored at random, left and right.
        vertical_flip: Whether they are mirrored at random, top and bottom.
        jitter: Range of the scale of a large-scale jitter, see
            :func:`segkern.transforms.build_instance_transform`, or ``None``; for instances.
        aspect_groups: Whether the images of a batch are all upright or all not; for instances.
        notes: What the source says that is not a number, and what the fields cannot say.
        source: Where the numbers are from.

    Raises:
        ValueError: If a named choice is not one of those above.
    """

    optimizer: str = "sgd"
    lr: float
    momentum: float = 0.9
    smoothing: float = 0.99
    square_eps: float | None = None
    weight_decay: float = 0.0
    schedule: str = "constant"
    step_size: int = 0
    step_epochs: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    clip_norm: float | None = None
    batch_size: int
    micro_batch: int | None = None
    epochs: int
    patience: int = 0
    input: str = "unit"
    loss: str = "cross_entropy"
    loss_options: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0
    class_weights: str | None = None
    loss_reduction: str = "pixels"
    bias_lr_mult: float = 1.0
    bias_decay_mult: float = 1.0
    norm_decay: bool = True
    norm_shift_decay: bool = True
    crf_weights_lr_mult: float = 1.0
    crf_compatibility_lr_mult: float = 1.0
    depthwise_decay: bool = True
    head_lr_mult: float = 1.0
    freeze_norm: bool = False
    outputs: Mapping[str, float] = field(default_factory=lambda: {"out": 1.0})
    label_grid: str = "nearest"
    resize: tuple[int, int] | None = None
    passes: tuple[tuple[float, float, int], ...] = ()
    scale: tuple[float, float] | None = None
    scale_step: float | None = None
    rotate: float | None = None
    blur: int | None = None
    crop: tuple[int, int] | None = None
    crop_pad: str = "random"
    crop_colour: str = "mean"
    crop_margin: int = 0
    elastic: float | None = None
    flip: bool = False
    vertical_flip: bool = False
    jitter: tuple[float, float] | None = None
    aspect_groups: bool = False
    notes: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("sgd", "adam", "rmsprop", "fit"),
            "schedule": ("constant", "step", "multistep", "poly"),
            "input": INPUT_MODES,
            "class_weights": CLASS_WEIGHTS,
            "loss_reduction": ("pixels", "weights", "batch"),
            "label_grid": LABEL_GRIDS,
            "crop_pad": CROP_PADS,
            "crop_colour": CROP_COLOURS,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(map(repr, allowed))
                raise ValueError(f"Recipe: {name} must be one of {shown}, got {value!r}")
        if not self.outputs:
            raise ValueError("Recipe: outputs must name at least one output, got none")
        self._check_schedule()
        self._check_numbers()
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
        steps = (self.step_size, self.step_epochs)
        if self.schedule == "step" and (max(steps) < 1 or min(steps) != 0):
            raise ValueError(
                "Recipe: step_size or step_epochs must be at least 1 and the other 0, got "
                f"{self.step_size} and {self.step_epochs}"
            )
        marks = (0.0, *self.milestones, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(marks)):
            raise ValueError(
                "Recipe: milestones must rise and lie between 0 and 1, got "
                f"{tuple(self.milestones)}"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("Recipe: milestones must name at least one for schedule 'multistep'")

    def _check_numbers(self) -> None:
        passes_fit = all(
            len(one) == 3 and min(one[:2]) > 0 and one[2] >= 0 and one[2] == int(one[2])
            for one in self.passes
        )
        rules = {
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "warmup_factor": (0 <= self.warmup_factor <= 1, "between 0 and 1"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0"),
            "square_eps": (self.square_eps is None or self.square_eps > 0, "above 0"),
            "micro_batch": (self.micro_batch is None or self.micro_batch >= 1, "at least 1"),
            "patience": (self.patience >= 0, "at least 0"),
            "jitter": (
                self.jitter is None or 0 < self.jitter[0] <= self.jitter[1],
                "0 < low <= high",
            ),
            "elastic": (self.elastic is None or 0 <= self.elastic < math.inf, "from 0 on"),
            "rotate": (self.rotate is None or 0 <= self.rotate <= 180, "between 0 and 180"),
            "blur": (
                self.blur is None or (self.blur > 0 and self.blur % 2 == 1),
                "an odd number of pixels",
            ),
            "crop_margin": (self.crop_margin >= 0, "at least 0"),
            "passes": (passes_fit, "(height, width, trim) each, factors above 0 and whole pixels"),
        }
        for name, (fits, rule) in rules.items():
            if not fits:
                raise ValueError(f"Recipe: {name} must be {rule}, got {getattr(self, name)}")
