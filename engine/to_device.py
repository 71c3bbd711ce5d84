"""Numbers that the host has worked out, on their way to where tensors are computed."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on the device; on the CPU it shares the array's memory.

    To a GPU it goes through pinned memory, in the order of what was asked for before: from other
    host memory the call would wait for all of that.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda" or not array.size:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
