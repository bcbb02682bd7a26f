import pytest
import torch


def _devices():
    yield "cpu"
    reason = "no CUDA device"
    yield pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)
    )


@pytest.fixture(params=_devices())
def device(request):
    return request.param
