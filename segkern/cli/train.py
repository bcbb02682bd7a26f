"""`segkern train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

_RUN = "Run"
_RECIPE = "Recipe (default: the paper's, see `segkern models NAME`)"
_NETWORK = "Network"
_MACHINE = "Machine"


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(
        *names, rich_help_panel=panel, help=help, metavar=metavar, show_default=False
    )


def train(
    model: Annotated[
        str | None,
        typer.Argument(help="Network, see `segkern models`; may be left out with --resume."),
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "--data",
            panel=_RUN,
            metavar="D",
            help="synthetic[:HxW] (default), camvid:DIR, voc:DIR, cityscapes:DIR or folder:DIR; "
            "for instances synthetic-instances[:HxW] (default), coco:DIR or voc-instances:DIR; "
            "panoptic synthetic-panoptic[:HxW] (default) or coco-panoptic:DIR.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        _option(
            "--output",
            "-o",
            panel=_RUN,
            metavar="DIR",
            help="Folder of the run (default runs/MODEL).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        _option(
            "--resume", panel=_RUN, help="Go on with the run in the folder, with its settings."
        ),
    ] = False,
    overwrite: Annotated[
        bool, _option("--overwrite", panel=_RUN, help="Replace the run in the folder.")
    ] = False,
    epochs: Annotated[
        int | None, _option("--epochs", panel=_RUN, help="Passes over the data.")
    ] = None,
    patience: Annotated[
        int | None,
        _option("--patience", panel=_RECIPE, help="Epochs without a better score (0: any number)."),
    ] = None,
    max_steps: Annotated[
        int | None, _option("--max-steps", panel=_RUN, help="Stop after so many optimiser steps.")
    ] = None,
    max_time: Annotated[
        str | None,
        _option(
            "--max-time",
            panel=_RUN,
            metavar="TIME",
            help="Stop training after this time, as 00:50:00, 50m or 1h30m: the step is finished, "
            "the network validated and saved.",
        ),
    ] = None,
    seed: Annotated[
        int | None, _option("--seed", panel=_RUN, help="Seed of all randomness (0).")
    ] = None,
    size: Annotated[
        str | None,
        _option(
            "--size",
            panel=_RUN,
            metavar="HxW",
            help="Bring all images to this size (default: the paper's for files; synthetic ones "
            "are drawn at their own).",
        ),
    ] = None,
    limit_train: Annotated[
        int | None,
        _option("--limit-train", panel=_RUN, help="Use at most so many training images."),
    ] = None,
    limit_val: Annotated[
        int | None,
        _option("--limit-val", panel=_RUN, help="Use at most so many validation images."),
    ] = None,
    absent: Annotated[
        str | None,
        _option(
            "--absent",
            panel=_RUN,
            metavar="RULE",
            help="Classes without a pixel in mIoU: skip (default), zero or one.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", panel=_RECIPE, help="Images a step, over all devices.")
    ] = None,
    micro_batch: Annotated[
        str | None,
        _option(
            "--micro-batch",
            panel=_RECIPE,
            metavar="N|none",
            help="Images at once on a device; gradients are accumulated for a step.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        _option("--optimizer", panel=_RECIPE, metavar="NAME", help="sgd, adam or rmsprop."),
    ] = None,
    lr: Annotated[float | None, _option("--lr", panel=_RECIPE, help="Learning rate.")] = None,
    momentum: Annotated[float | None, _option("--momentum", panel=_RECIPE, help="Of SGD.")] = None,
    square_eps: Annotated[
        str | None,
        _option(
            "--square-eps",
            panel=_RECIPE,
            metavar="E|none",
            help="Added to RMSprop's mean square (none: torch's rule).",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, _option("--weight-decay", panel=_RECIPE, help="L2 added to the gradient.")
    ] = None,
    schedule: Annotated[
        str | None,
        _option(
            "--schedule", panel=_RECIPE, metavar="NAME", help="constant, step, multistep or poly."
        ),
    ] = None,
    step_size: Annotated[
        int | None,
        _option("--step-size", panel=_RECIPE, help="Iterations between two steps of 'step'."),
    ] = None,
    step_epochs: Annotated[
        int | None,
        _option("--step-epochs", panel=_RECIPE, help="Epochs between them instead."),
    ] = None,
    milestones: Annotated[
        str | None,
        _option(
            "--milestones",
            panel=_RECIPE,
            metavar="F,F,...",
            help="Steps of 'multistep' as fractions of the run, as 0.67,0.92.",
        ),
    ] = None,
    gamma: Annotated[
        float | None, _option("--gamma", panel=_RECIPE, help="Factor of 'step' and 'multistep'.")
    ] = None,
    power: Annotated[
        float | None, _option("--power", panel=_RECIPE, help="Exponent of 'poly'.")
    ] = None,
    warmup_steps: Annotated[
        int | None,
        _option("--warmup-steps", panel=_RECIPE, help="Iterations over which the rate rises."),
    ] = None,
    warmup_factor: Annotated[
        float | None,
        _option("--warmup-factor", panel=_RECIPE, help="Factor on the rate at the first of them."),
    ] = None,
    clip_norm: Annotated[
        str | None,
        _option(
            "--clip-norm",
            panel=_RECIPE,
            metavar="NORM|none",
            help="Scale gradients down to at most this L2 norm of all together.",
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        _option(
            "--class-weights",
            panel=_RECIPE,
            metavar="NAME",
            help="none, enet, espnet, median_frequency or segnet.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        _option(
            "--loss",
            panel=_RECIPE,
            metavar="NAME",
            help="cross_entropy, ohem, focal, dice, lovasz or border, or several with + between.",
        ),
    ] = None,
    loss_option: Annotated[
        list[str] | None,
        _option(
            "--loss-option",
            panel=_RECIPE,
            metavar="KEY=NUMBER",
            help="threshold and min_kept of ohem, gamma of focal, smooth of dice, w0 and sigma of "
            "border; may be given several times.",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        _option("--label-smoothing", panel=_RECIPE, help="Share spread over all classes."),
    ] = None,
    loss_reduction: Annotated[
        str | None,
        _option(
            "--loss-reduction",
            panel=_RECIPE,
            metavar="NAME",
            help="Divide the loss by the number of pixels (pixels), their weights (weights) or "
            "the number of images (batch).",
        ),
    ] = None,
    input_mode: Annotated[
        str | None,
        _option(
            "--input",
            panel=_RECIPE,
            metavar="NAME",
            help="Scaling of images: unit, caffe, bgr, imagenet, symmetric, ...",
        ),
    ] = None,
    bias_lr_mult: Annotated[
        float | None, _option("--bias-lr-mult", panel=_RECIPE, help="Factor on the rate of biases.")
    ] = None,
    bias_decay_mult: Annotated[
        float | None,
        _option("--bias-decay-mult", panel=_RECIPE, help="Factor on the decay of biases."),
    ] = None,
    norm_decay: Annotated[
        bool | None,
        _option(
            "--norm-decay/--no-norm-decay",
            panel=_RECIPE,
            help="Decay norm layers and PReLU slopes.",
        ),
    ] = None,
    norm_shift_decay: Annotated[
        bool | None,
        _option(
            "--norm-shift-decay/--no-norm-shift-decay",
            panel=_RECIPE,
            help="Decay the shifts of norm layers with them.",
        ),
    ] = None,
    crf_weights_lr_mult: Annotated[
        float | None,
        _option(
            "--crf-weights-lr-mult",
            panel=_RECIPE,
            help="Factor on the rate of a CRF's kernel weights.",
        ),
    ] = None,
    crf_compatibility_lr_mult: Annotated[
        float | None,
        _option(
            "--crf-compatibility-lr-mult",
            panel=_RECIPE,
            help="Factor on the rate of a CRF's compatibilities.",
        ),
    ] = None,
    passes: Annotated[
        str | None,
        _option(
            "--passes",
            panel=_RECIPE,
            metavar="H,W,TRIM;...|none",
            help="Factors on the images' size in the epochs, by turns, and the pixels lost at "
            "most at a border.",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        _option("--scale", panel=_RECIPE, metavar="LOW,HIGH|none", help="Random scale, as 0.5,2."),
    ] = None,
    scale_step: Annotated[
        float | None, _option("--scale-step", panel=_RECIPE, help="Step of the random scales.")
    ] = None,
    rotate: Annotated[
        str | None,
        _option(
            "--rotate",
            panel=_RECIPE,
            metavar="DEGREES|none",
            help="Turn half of the images by up to so much.",
        ),
    ] = None,
    blur: Annotated[
        str | None,
        _option(
            "--blur",
            panel=_RECIPE,
            metavar="PIXELS|none",
            help="Gaussian blur of half of the images, side of its kernel.",
        ),
    ] = None,
    crop: Annotated[
        str | None, _option("--crop", panel=_RECIPE, metavar="HxW|none", help="Random crop.")
    ] = None,
    crop_pad: Annotated[
        str | None,
        _option(
            "--crop-pad",
            panel=_RECIPE,
            metavar="NAME",
            help="Smaller images lie in the crop at random, in its centre or at the start (end).",
        ),
    ] = None,
    crop_colour: Annotated[
        str | None,
        _option(
            "--crop-colour", panel=_RECIPE, metavar="NAME", help="Of what is added: mean or black."
        ),
    ] = None,
    crop_margin: Annotated[
        int | None,
        _option(
            "--crop-margin", panel=_RECIPE, help="Pixels around the crop, seen and not labelled."
        ),
    ] = None,
    elastic: Annotated[
        str | None,
        _option(
            "--elastic",
            panel=_RECIPE,
            metavar="PIXELS|none",
            help="Elastic deformation: standard deviation of its displacements.",
        ),
    ] = None,
    flip: Annotated[
        bool | None, _option("--flip/--no-flip", panel=_RECIPE, help="Mirror images at random.")
    ] = None,
    vertical_flip: Annotated[
        bool | None,
        _option(
            "--vertical-flip/--no-vertical-flip",
            panel=_RECIPE,
            help="Mirror them top and bottom at random.",
        ),
    ] = None,
    jitter: Annotated[
        str | None,
        _option(
            "--jitter",
            panel=_RECIPE,
            metavar="LOW,HIGH|none",
            help="Large-scale jitter of images with instances, as 0.1,2.",
        ),
    ] = None,
    aspect_groups: Annotated[
        bool | None,
        _option(
            "--aspect-groups/--no-aspect-groups",
            panel=_RECIPE,
            help="Batches of upright or of other images only, for instances.",
        ),
    ] = None,
    head_lr_mult: Annotated[
        float | None,
        _option("--head-lr-mult", panel=_RECIPE, help="Factor on the rate of the last layers."),
    ] = None,
    depthwise_decay: Annotated[
        bool | None,
        _option(
            "--depthwise-decay/--no-depthwise-decay",
            panel=_RECIPE,
            help="Decay depthwise convolutions.",
        ),
    ] = None,
    freeze_norm: Annotated[
        bool | None,
        _option(
            "--freeze-norm/--no-freeze-norm",
            panel=_RECIPE,
            help="Keep batch norm as the weights have it.",
        ),
    ] = None,
    label_grid: Annotated[
        str | None,
        _option(
            "--label-grid",
            panel=_RECIPE,
            metavar="NAME",
            help="Labels of smaller outputs: nearest, corners, stride or centre.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        _option(
            "--weights", panel=_NETWORK, metavar="W", help="Start from a tag or a weights file."
        ),
    ] = None,
    weights_backbone: Annotated[
        str | None,
        _option(
            "--weights-backbone",
            panel=_NETWORK,
            metavar="W",
            help="Start the encoder from a tag or file.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        _option(
            "--option",
            panel=_NETWORK,
            metavar="KEY=VALUE",
            help="An option of the network's own; may be given several times.",
        ),
    ] = None,
    crf: Annotated[
        bool,
        _option(
            "--crf",
            panel=_NETWORK,
            help="End the network with a CRF-as-RNN; for its options "
            '--option \'crf={"kernel_weights": "vector"}\'.',
        ),
    ] = False,
    device: Annotated[
        str | None,
        _option("--device", panel=_MACHINE, metavar="NAME", help="auto (default), cpu or cuda."),
    ] = None,
    devices: Annotated[
        int | None, _option("--devices", panel=_MACHINE, help="GPUs, or processes on the CPU (1).")
    ] = None,
    nodes: Annotated[
        int | None,
        _option(
            "--nodes",
            panel=_MACHINE,
            help="Machines (1); each runs this with MASTER_ADDR, MASTER_PORT and NODE_RANK set.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        _option(
            "--precision", panel=_MACHINE, metavar="P", help="32 (default), bf16-mixed or 16-mixed."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        _option("--workers", panel=_MACHINE, help="Loading processes per device (0 on the CPU)."),
    ] = None,
    cache: Annotated[
        bool | None,
        _option(
            "--cache/--no-cache", panel=_MACHINE, help="Keep decoded image files in memory (yes)."
        ),
    ] = None,
    channels_last: Annotated[
        bool | None,
        _option(
            "--channels-last/--no-channels-last",
            panel=_MACHINE,
            help="Memory format of the network (yes).",
        ),
    ] = None,
    compile_network: Annotated[
        bool | None, _option("--compile/--no-compile", panel=_MACHINE, help="torch.compile (no).")
    ] = None,
    deterministic: Annotated[
        bool | None,
        _option(
            "--deterministic/--no-deterministic",
            panel=_MACHINE,
            help="Equal bits on every run on a GPU too, where torch can (no). The CPU always is.",
        ),
    ] = None,
    progress: Annotated[
        bool | None,
        _option("--progress/--no-progress", panel=_MACHINE, help="Progress bar (on a terminal)."),
    ] = None,
) -> None:
    """Train a network with its paper's recipe; every number can be changed.

    The run folder gets config.json, metrics.csv, last.ckpt, best.safetensors, log.txt and
    tensorboard/.

    Example: segkern train enet --data camvid:DIR --output runs/enet --max-time 50m
    """
    from segkern.cli import values
    from segkern.engine.errors import EngineError
    from segkern.engine.settings import parse_duration, parse_size
    from segkern.engine.train import fit

    if model is None and output is None:
        raise EngineError("train: name the network to train (see `segkern models`)")
    result = fit(
        model,
        output or Path("runs") / str(model),
        resume=resume,
        overwrite=overwrite,
        show=typer.echo,
        data=data,
        epochs=epochs,
        patience=patience,
        max_steps=max_steps,
        max_time=None if max_time is None else parse_duration(max_time),
        seed=seed,
        size=None if size is None else parse_size(size),
        limit_train=limit_train,
        limit_val=limit_val,
        absent=absent,
        batch_size=batch_size,
        micro_batch=values.number("micro_batch", micro_batch, int),
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        square_eps=values.number("square_eps", square_eps),
        weight_decay=weight_decay,
        schedule=schedule,
        step_size=step_size,
        step_epochs=step_epochs,
        milestones=values.numbers("milestones", milestones),
        gamma=gamma,
        power=power,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        clip_norm=values.number("clip_norm", clip_norm),
        class_weights=class_weights,
        loss=loss,
        loss_options=values.pairs(loss_option),
        label_smoothing=label_smoothing,
        loss_reduction=loss_reduction,
        input=input_mode,
        bias_lr_mult=bias_lr_mult,
        bias_decay_mult=bias_decay_mult,
        crf_weights_lr_mult=crf_weights_lr_mult,
        crf_compatibility_lr_mult=crf_compatibility_lr_mult,
        norm_decay=norm_decay,
        norm_shift_decay=norm_shift_decay,
        passes=values.passes(passes),
        scale=values.span("scale", scale),
        scale_step=scale_step,
        rotate=values.number("rotate", rotate),
        blur=values.number("blur", blur, int),
        crop=crop if crop in (None, "none") else parse_size(crop),
        crop_pad=crop_pad,
        crop_colour=crop_colour,
        crop_margin=crop_margin,
        elastic=values.number("elastic", elastic),
        flip=flip,
        vertical_flip=vertical_flip,
        jitter=values.span("jitter", jitter),
        aspect_groups=aspect_groups,
        head_lr_mult=head_lr_mult,
        depthwise_decay=depthwise_decay,
        freeze_norm=freeze_norm,
        label_grid=label_grid,
        weights=weights,
        weights_backbone=weights_backbone,
        model_options={**({"crf": True} if crf else {}), **(values.pairs(option) or {})} or None,
        device=device,
        devices=devices,
        nodes=nodes,
        precision=precision,
        workers=workers,
        cache=cache,
        channels_last=channels_last,
        compile=compile_network,
        deterministic=deterministic,
        progress=progress,
    )
    if result.reason == "complete":
        typer.echo(
            f"nothing to do: the run has all its {result.epochs} epochs ({result.steps} steps)"
        )
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"run: {result.run}")
