"""What a class is found by that is known once it is defined."""

from collections.abc import Mapping

from ropescale.errors import InvalidArgumentError


def entered(kind: str, cls: type, name: object, registry: Mapping[str, type]) -> str:
    """The name under which a class goes into a registry.

    Args:
        kind: of class, as in "method".
        cls: the class.
        name: as it was given when the class was defined; None where the class has it already.
        registry: the classes that are known.

    Raises:
        InvalidArgumentError: no registry name, or one that another class has.
    """
    # dataclass(slots=True) makes the class a second time and passes no keyword
    name = cls.__dict__.get("name") if name is None else name
    if not isinstance(name, str) or not name.isidentifier() or name != name.lower():
        raise InvalidArgumentError(
            f"{kind} class {cls.__qualname__}: name must be a registry name in lower_snake, got {name!r}; "
            f'write class {cls.__qualname__}({kind.capitalize()}, name="...")'
        )
    # the same class again is a notebook cell run again
    taken = registry.get(name, cls)
    if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InvalidArgumentError(
            f"{kind} class {cls.__qualname__}: name must be new, got {name!r}, which is taken by "
            f"{taken.__qualname__}; choose another"
        )
    return name
