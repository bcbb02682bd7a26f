"""Everything once, in two or three minutes: train, evaluate, predict, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from segkern.data import open_dataset
from segkern.engine.evaluate import evaluate, spread
from segkern.engine.predict import predict
from segkern.engine.report import EVALUATION, write_report
from segkern.engine.train import fit

DATA = "synthetic:96x128"


def demo(
    output: str | Path = "out",
    *,
    device: str = "auto",
    max_time: float = 120.0,
    epochs: int = 14,
    data: str = DATA,
    limit_train: int | None = None,
    limit_val: int | None = 64,
    photos: int = 4,
    show: Callable[[str], None] = print,
) -> Path:
    """Train a small ENet on drawn street scenes, measure it, segment photos, write the report.

    OUTPUT/run is the run, OUTPUT/photos and OUTPUT/predictions the photos and what came of them,
    and OUTPUT/report.html, which is returned, the report. What an earlier demo left there is
    replaced. Training ends after `epochs`, or after `max_time` seconds on a slower machine. The
    learning rate is four times the paper's, as there are few steps.
    """
    folder = Path(output)
    run = folder / "run"
    show(f"1/4 training ENet on {data}")
    fit(
        "enet",
        run,
        overwrite=True,
        show=show,
        data=data,
        device=device,
        epochs=epochs,
        batch_size=8,
        lr=2e-3,
        max_time=max_time,
        limit_train=limit_train,
        limit_val=limit_val,
    )
    show("2/4 evaluating the best checkpoint")
    result = evaluate(run, device=device, limit=limit_val, output=run / EVALUATION)
    show(f"    mIoU {result['miou']:.3f}, pixel accuracy {result['pixel_accuracy']:.3f}")
    show("3/4 segmenting photos")
    files = _save_photos(folder / "photos", data, photos)
    predict(run, files, folder / "predictions", device=device)
    show("4/4 writing the report")
    page = write_report(run, folder / "report.html", device=device)
    show(f"open {page}")
    return page


def _save_photos(folder: Path, data: str, count: int) -> list[Path]:
    """Write a few images of the validation split as files, as a user would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(data, "val")
    paths = []
    for index in spread(count, len(dataset)):
        image, _ = dataset[index]
        path = folder / f"{dataset.sample_name(index)}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths
