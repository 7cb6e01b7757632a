"""Where a model can run on this machine."""

import torch

from ropescale.errors import InvalidArgumentError


def require_device(name: str) -> None:
    """Refuse a device that this machine does not have, or that no model can run on.

    Raises:
        InvalidArgumentError: names those that there are.
    """
    there = ["cpu"]
    if (kind := torch.accelerator.current_accelerator(check_available=True)) is not None:
        there += [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"device: must be one that torch knows, got {name!r}; leave it out, or give {' or '.join(there)}"
        ) from error
    wanted = "cpu" if device.type == "cpu" else f"{device.type}:{device.index or 0}"
    if wanted not in there:
        raise InvalidArgumentError(
            f"device: must be one that torch {torch.__version__} can use here, got {name!r} where there is "
            f"{', '.join(there)}; leave it out for {there[-1]}"
        )
