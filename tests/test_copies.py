from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from pyseg._copies import Download, Upload

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_nothing_is_copied_on_the_host() -> None:
    tensor = torch.arange(4.0)
    [same] = Upload(torch.device("cpu"), tensor).tensors()
    assert same.data_ptr() == tensor.data_ptr()
    assert Download(tensor).array().ctypes.data == tensor.data_ptr()


@pytest.mark.cuda
@needs_gpu
def test_copies_wait_for_what_they_need() -> None:
    device = torch.device("cuda")
    weights = torch.randn(4096, 4096, device=device)
    sent: list[Upload] = []
    downloads = []
    for number in range(8):
        host = torch.full((64, 4096), float(number))
        thread = threading.Thread(target=lambda host=host: sent.append(Upload(device, host)))
        thread.start()
        thread.join()
        [moved] = sent.pop().tensors()
        for _ in range(20):  # the stream is busy when the result is copied
            weights = weights @ weights / 4096
        downloads.append(Download(moved + 1))
    for number, download in enumerate(downloads):
        np.testing.assert_array_equal(download.array(), np.full((64, 4096), number + 1.0))
