"""What the tests of `ropescale explain` share."""

from __future__ import annotations

import dataclasses

from ropescale import Geometry, get_method, list_methods

TINY = Geometry(rotary_dim=32, theta=1e4, original_length=128, layers=4)


# what a person can ask for by name alone
PLAIN = [
    name
    for name in list_methods()
    if all(
        field.name == "factor" or not field.default is field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(get_method(name))
    )
]
