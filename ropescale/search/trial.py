"""Candidates on trial in a live model: their frequencies swapped in place, with no reload and no patch for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from ropescale.families.parts import rescaled_parts, text_of
from ropescale.families.reading import part_geometry
from ropescale.geometry import Geometry
from ropescale.injection.patch import patch_of
from ropescale.methods import FixedMethod, Method
from ropescale.patching import put_in, unpatch
from ropescale.request import Request
from ropescale.wrappers import config_of

Put = Callable[[Method | None], None]


@contextmanager
def trials(model: nn.Module, request: Request) -> Iterator[Put]:
    """Within the block the model is patched by whatever method is put on trial; by none it is as it was.

    The first method is patched, proven and verified as every patch is. The frequencies of another one take the place
    of those that stand, where both are fixed; anything else is patched anew. After the block the model is as it was.

    Args:
        model: not patched.
        request: what is asked for beside the method.

    Raises:
        RopescaleError: whatever `patch` raises, from the function that the block is given.
    """
    parts = rescaled_parts(text_of(config_of(model)), request.layers)
    chief = part_geometry(parts[0], original_length=request.original_length, existing=request.existing)
    geometries = {
        part.prefix: part_geometry(part, original_length=chief.original_length, existing=request.existing)
        for part in parts
    }
    swapped = False  # whether what stands may be swapped

    def put(method: Method | None) -> None:
        nonlocal swapped
        standing = patch_of(model)
        swaps = request.multiplied is None and _swaps(method, chief)
        if swaps and swapped and standing is not None:
            assert isinstance(method, FixedMethod)
            spectra = {prefix: method.spectrum(geometry) for prefix, geometry in geometries.items()}
            for substitution in standing.substitutions:
                substitution.retune(spectra)
            return
        if standing is not None:
            unpatch(model)
        swapped = False
        if method is not None:
            put_in(model, replace(request, method=method))
            standing = patch_of(model)
            # over two lists, and where some layers keep their rotation, attention rotates and the module does not
            swapped = swaps and standing is not None and standing.late is None

    try:
        yield put
    finally:
        put(None)


def _swaps(method: Method | None, geometry: Geometry) -> bool:
    """Whether a method is its frequencies and its attention factor, at every length."""
    return isinstance(method, FixedMethod) and method.when_read(geometry) is None
