"""CRFAsRNN against a float64 loop of the five steps over explicit matrices, and its promises."""

from __future__ import annotations

import copy
import doctest
import io

import pytest
import torch

from segkern import nn, ops
from segkern.nn import CRFAsRNN, crf_rnn
from segkern.reference import dense_crf as reference
from segkern.reference import permutohedral as lattices

LABELS, SIZE = 4, (7, 9)
GAUSSIAN, BILATERAL = (2.0, 1.5), (10.0, 40.0, 2.0)
NAMES = ("spatial_weights", "bilateral_weights", "compatibility")


def pictures(batch: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, LABELS, *SIZE, generator=generator)
    image = torch.randint(0, 256, (batch, 3, *SIZE), generator=generator, dtype=torch.uint8)
    return logits, image


def layer(seed: int = 1, **options) -> CRFAsRNN:
    """A layer with random parameters, none of them symmetric."""
    crf = CRFAsRNN(LABELS, **{"gaussian": GAUSSIAN, "bilateral": BILATERAL, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return crf


def averages(image, sxy, srgb=None):
    """(P, P) float64: each row the weights of a pixel's average, the lattice's Gaussian."""
    features = reference.image_features(image.float(), sxy, srgb).double()
    lattice = lattices.build(features)
    kernel = lattices.permutohedral_filter(torch.eye(len(features)).double(), lattice)
    return kernel / kernel.sum(1, keepdim=True)


def five_steps(logits, image, spatial, bilateral, compatibility, iterations, sign=-1.0):
    """q_T of (N, L, H, W) scores in float64; sign -1 is the release's, +1 the port's."""
    results = []
    for scores, picture in zip(logits.double(), image):
        near = averages(picture, GAUSSIAN[0])
        alike = averages(picture, *BILATERAL[:2])
        u = scores.flatten(1).T
        q = u
        for _ in range(iterations):
            marginals = torch.softmax(q, 1)
            weighted = near @ marginals @ spatial.T + alike @ marginals @ bilateral.T
            q = u + sign * (weighted @ compatibility.T)
        results.append(q.T.reshape(scores.shape))
    return torch.stack(results)


def exact_parameters(crf):
    return [getattr(crf, name).detach().double().requires_grad_() for name in NAMES]


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_scores_and_gradients(memory):
    logits, image = pictures()
    crf = layer(memory=memory)
    exact = exact_parameters(crf)
    unary, exact_unary = logits.clone().requires_grad_(), logits.double().requires_grad_()
    q = crf(unary, image)
    wanted = five_steps(exact_unary, image, *exact, iterations=5)
    torch.testing.assert_close(q.double(), wanted, atol=2e-5, rtol=0)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))
    q.backward(weight)
    wanted.backward(weight.double())
    own = [unary, *(getattr(crf, name) for name in NAMES)]
    for one, other in zip(own, [exact_unary, *exact]):
        scale = other.grad.abs().max()
        torch.testing.assert_close(one.grad.double() / scale, other.grad / scale, atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["logits", *NAMES])
def test_gradients_are_those_of_finite_differences(name):
    """Along a random direction, of the float64 loop."""
    logits, image = pictures(batch=1)
    crf = layer()
    unary = logits.clone().requires_grad_()
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(logits.shape, generator=generator)
    (crf(unary, image) * weight).sum().backward()
    own = {"logits": unary, **{key: getattr(crf, key) for key in NAMES}}
    values = {key: tensor.detach().double() for key, tensor in own.items()}
    direction = torch.randn(values[name].shape, generator=generator, dtype=torch.float64)

    def along(step: float) -> float:
        moved = {**values, name: values[name] + step * direction}
        return (five_steps(image=image, iterations=5, **renamed(moved)) * weight).sum().item()

    step = 1e-5
    slope = (along(step) - along(-step)) / (2 * step)
    assert (own[name].grad.double() * direction).sum().item() == pytest.approx(slope, rel=2e-5)


def renamed(values):
    spatial, bilateral, compatibility = (values[name] for name in NAMES)
    return {
        "logits": values["logits"],
        "spatial": spatial,
        "bilateral": bilateral,
        "compatibility": compatibility,
    }


def test_five_updates_in_training_and_ten_in_test():
    logits, image = pictures(batch=1)
    crf = layer()
    exact = exact_parameters(crf)
    for training, iterations in ((True, 5), (False, 10)):
        wanted = five_steps(logits, image, *exact, iterations=iterations)
        with torch.no_grad():
            q = crf.train(training)(logits, image)
        torch.testing.assert_close(q.double(), wanted, atol=3e-5, rtol=0)
    one = layer(training_iterations=1, iterations=2)
    wanted = five_steps(logits, image, *exact, iterations=1)
    torch.testing.assert_close(one(logits, image).double(), wanted, atol=2e-5, rtol=0)


def test_starts_as_mean_field_with_the_weights_of_the_release():
    logits, image = pictures()
    crf = CRFAsRNN(LABELS)
    for training, iterations in ((True, 5), (False, 10)):
        q = crf.train(training)(logits, image).softmax(1)
        wanted = ops.dense_crf(
            -logits,
            image,
            gaussian={"sxy": 3.0, "weight": 3.0},
            bilateral={"sxy": 160.0, "srgb": 3.0, "weight": 5.0},
            normalization="after",
            iterations=iterations,
        )
        torch.testing.assert_close(q, wanted, atol=1e-6, rtol=0)


def test_marginals_of_the_original_code():
    """The published 5 x 6 vector, computed by the authors' program; normalised after."""
    height, width, labels = 5, 6, 3
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([(37 * x + 71 * y + 29 * c * (x + 1)) % 256 for c in range(3)])
    pixel = torch.arange(height * width).view(height, width)
    energies = torch.stack([((5 * label + 7 * pixel) % 11) / 5 for label in range(labels)])
    crf = CRFAsRNN(labels, gaussian=(3.0, 3.0), bilateral=(60.0, 20.0, 5.0), iterations=5).eval()
    q = crf(-energies[None], image[None].to(torch.uint8)).softmax(1)[0].flatten(1).T
    wanted = torch.tensor(
        [
            [0.98968, 0.00790, 0.00243],
            [0.00386, 0.00780, 0.98834],
            [0.00086, 0.99522, 0.00392],
            [0.00217, 0.00254, 0.99529],
        ]
    )
    torch.testing.assert_close(q[[0, 7, 14, 29]], wanted, atol=1.01e-5, rtol=0)


def test_vector_and_scalar_are_the_matrices_they_stand_for():
    logits, image = pictures()
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    for form in ("vector", "scalar"):
        small, full = layer(kernel_weights=form), layer()
        with torch.no_grad():
            full.compatibility.copy_(small.compatibility)
            for name in NAMES[:2]:
                value = getattr(small, name)
                getattr(full, name).copy_(torch.diag(value.expand(LABELS)))
        for crf in (small, full):
            (crf(logits, image) * weight).sum().backward()
        assert torch.equal(small(logits, image), full(logits, image))
        for name in NAMES[:2]:
            wanted = getattr(full, name).grad.diagonal()
            wanted = wanted.sum() if form == "scalar" else wanted
            torch.testing.assert_close(getattr(small, name).grad, wanted, rtol=1e-4, atol=1e-4)


def test_parameters_and_their_start():
    counts = {"matrix": 1323, "vector": 483, "scalar": 443}
    for form, count in counts.items():
        crf = CRFAsRNN(21, kernel_weights=form)
        assert sum(p.numel() for p in crf.parameters()) == count
        assert list(crf.state_dict()) == list(NAMES)
    crf = CRFAsRNN(21)
    assert torch.equal(crf.spatial_weights, 3 * torch.eye(21))
    assert torch.equal(crf.bilateral_weights, 5 * torch.eye(21))
    assert torch.equal(crf.compatibility, -torch.eye(21))


@pytest.mark.parametrize("prefix", ["crfrnn.", ""])
def test_weights_of_the_port(prefix):
    logits, image = pictures(batch=1)
    generator = torch.Generator().manual_seed(6)
    values = [torch.randn(LABELS, LABELS, generator=generator) for _ in NAMES]
    names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
    state = {prefix + name: value for name, value in zip(names, values)}
    crf = layer().eval()
    crf.load_port({"conv1_1.weight": torch.zeros(3), **state})
    exact = [value.double() for value in values]
    wanted = five_steps(logits, image, *exact, iterations=10, sign=1.0)
    torch.testing.assert_close(crf(logits, image).double(), wanted, atol=3e-5, rtol=0)


def test_weights_that_are_not_the_ports():
    crf = layer()
    before = copy.deepcopy(crf.state_dict())
    with pytest.raises(ValueError, match="must hold crfrnn.spatial_ker_weights"):
        crf.load_port(before)
    names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
    with pytest.raises(ValueError, match=r"compatibility_matrix must be \(4, 4\)"):
        crf.load_port(dict(zip(names, [torch.eye(4), torch.eye(4), torch.eye(3)])))
    assert all(torch.equal(value, before[key]) for key, value in crf.state_dict().items())


def test_saved_and_loaded():
    logits, image = pictures()
    crf = layer()
    wanted = crf(logits, image)
    other = layer(seed=2)
    other.load_state_dict(crf.state_dict())
    assert torch.equal(other(logits, image), wanted)
    assert torch.equal(copy.deepcopy(crf)(logits, image), wanted)
    file = io.BytesIO()
    torch.save(crf, file)
    assert file.tell() < 20_000  # the lattice it keeps is not in it
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(logits, image), wanted)


def test_what_is_kept_of_an_image_does_not_matter():
    """Another size, and training after inference mode: the kept lattice stays right and usable."""
    logits, image = pictures()
    crf, fresh = layer(), layer()
    with torch.inference_mode():
        crf(logits, image)
        crf(logits[..., :5], image[..., :5])
        first = crf(logits[..., :5], image[..., :5])
    crf(logits, image).sum().backward()
    fresh(logits, image).sum().backward()
    assert torch.equal(crf.spatial_weights.grad, fresh.spatial_weights.grad)
    assert torch.equal(first, fresh(logits[..., :5], image[..., :5]))


def test_batches_dtypes_layouts_and_autocast():
    logits, image = pictures()
    crf = layer()
    wanted = crf(logits, image)
    for item in range(2):
        assert torch.equal(crf(logits[item : item + 1], image[item : item + 1])[0], wanted[item])
    shared = crf(logits, image[:1])
    assert torch.equal(shared[0], wanted[0])
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crf(last, image.contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(crf(logits, image.double()), wanted)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        q = crf(logits.to(dtype), image)
        assert q.dtype == dtype
        torch.testing.assert_close(q.float(), wanted, atol=0.2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crf(logits, image), wanted)


def test_no_gradient_to_the_image():
    logits, image = pictures(batch=1)
    image = image.float().requires_grad_()
    layer()(logits.requires_grad_(), image).sum().backward()
    assert image.grad is None
    assert bool(logits.grad.any())


def test_hard_inputs():
    crf = layer()
    logits, image = pictures(batch=1)
    assert crf(logits[..., :1, :1], image[..., :1, :1]).isfinite().all()
    assert crf(logits, torch.full_like(image, 200)).isfinite().all()
    assert crf(1e4 * logits, image).isfinite().all()
    one = CRFAsRNN(1)
    assert one(logits[:, :1], image).shape == (1, 1, *SIZE)
    assert crf(logits[:0], image[:0]).shape == (0, LABELS, *SIZE)
    logits = logits.repeat(2, 1, 1, 1)
    logits[0, 0, 3, 4] = float("nan")
    q = crf(logits, image)
    assert bool(q[0].isnan().any())
    assert bool(q[1].isfinite().all())


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    logits, image = pictures(batch=1)
    gradients = []
    for compiled in (False, True):
        crf = layer()
        run = torch.compile(crf, fullgraph=True, backend="aot_eager") if compiled else crf
        (run(logits, image) ** 2).mean().backward()
        gradients.append([p.grad for p in crf.parameters()])
    torch._dynamo.reset()
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 0}, "num_labels must be an integer"),
        ({"num_labels": 2.0}, "num_labels must be an integer"),
        ({"iterations": 0}, "iterations must be an integer"),
        ({"training_iterations": True}, "training_iterations must be an integer"),
        ({"kernel_weights": "diagonal"}, "kernel_weights must be one of 'matrix'"),
        ({"memory": "disk"}, "memory must be one of"),
        ({"gaussian": (3.0,)}, r"gaussian must be \(sxy, weight\)"),
        ({"gaussian": None}, "gaussian must be"),
        ({"bilateral": (160.0, -3.0, 5.0)}, "bilateral must be .* positive widths"),
        ({"bilateral": (160.0, 3.0, float("nan"))}, "bilateral must be"),
        ({"bilateral": ((1.0, 0.0), 3.0, 5.0)}, "bilateral must be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"CRFAsRNN: {message}"):
        CRFAsRNN(**{"num_labels": LABELS, **options})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(1, 3, *SIZE)}, ValueError, r"logits must be \(N, 4, H, W\)"),
        ({"logits": torch.zeros(LABELS, *SIZE)}, ValueError, "logits must be"),
        ({"logits": torch.zeros(1, LABELS, *SIZE).int()}, TypeError, "logits must be floating"),
        ({"image": torch.zeros(1, 3, 7, 8)}, ValueError, "image must be"),
        ({"image": torch.zeros(3, 3, *SIZE)}, ValueError, "image must be"),
        ({"image": torch.zeros(3, *SIZE)}, ValueError, "image must be"),
    ],
)
def test_wrong_inputs(change, error, message):
    logits, image = pictures()
    inputs = {"logits": logits, "image": image, **change}
    with pytest.raises(error, match=f"CRFAsRNN: {message}"):
        layer()(**inputs)


def test_too_many_channel_widths():
    logits, image = pictures()
    with pytest.raises(ValueError, match="CRFAsRNN: srgb must be"):
        layer(bilateral=(10.0, (1.0, 2.0), 1.0))(logits, image)


def test_half_precision_values_do_not_overflow_in_the_bilateral_filter():
    smooth = nn.BilateralFilter(sxy=80.0, srgb=13.0)
    values = torch.full((1, 1, 96, 128), 50.0, dtype=torch.float16)  # sums of hundreds of thousands
    guide = torch.zeros(1, 3, 96, 128)
    torch.testing.assert_close(smooth(values, guide), values, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v, g: nn.BilateralFilter(4.0, 9.0)(v.int(), g), TypeError, "values must be"),
        (lambda v, g: nn.BilateralFilter(4.0, 9.0)(v, g[..., 1:]), ValueError, "guide must have"),
        (
            lambda v, g: nn.BilateralFilter(4.0, 9.0)(v, g.repeat(3, 1, 1, 1)),
            ValueError,
            "guide must be one image or 1",
        ),
        (lambda v, g: nn.DenseCRF(LABELS)(v.int(), g), TypeError, "logits must be floating"),
        (lambda v, g: nn.DenseCRF(3)(v, g), ValueError, "logits must be"),
        (lambda v, g: nn.DenseCRF(3, gaussian=(0.0, 1.0)), ValueError, "gaussian must be"),
        (lambda v, g: nn.DenseCRF(3, iterations=-1), ValueError, "iterations must be"),
        (lambda v, g: nn.DenseCRF(3, normalization="mean"), ValueError, "normalization must be"),
    ],
)
def test_wrong_calls_of_the_other_layers(call, error, message):
    logits, image = pictures(batch=1)
    with pytest.raises(error, match=message):
        call(logits, image)


@pytest.mark.parametrize("subject", [CRFAsRNN, nn.DenseCRF, nn.BilateralFilter])
def test_examples_in_the_documentation(subject):
    scope = {**vars(crf_rnn), **vars(nn)}
    (example,) = doctest.DocTestFinder(recurse=False).find(subject, globs=scope)
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)
