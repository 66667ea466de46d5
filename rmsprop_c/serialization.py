"""Objects as ``{"class_name": ..., "config": ...}``, in the manner of Keras 2.0."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def serialize(instance: Any) -> dict[str, Any]:
    """The class name and config of an object with `get_config`.

    Returns
    -------
    dict
        ``{"class_name": str, "config": dict}`` of plain JSON types.
    """
    return {"class_name": type(instance).__name__, "config": instance.get_config()}


def deserialize(
    serialized: Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]],
    custom_objects: Mapping[str, Callable[..., Any]] | None,
    kind: str,
) -> Any:
    """Make the object that `serialize` described.

    Parameters
    ----------
    serialized : mapping
        With the keys ``class_name`` and ``config``. Not changed.
    known : mapping
        Classes by name, tried in lower case too.
    custom_objects : mapping or None
        More classes by name; they come first.
    kind : str
        What errors call the object.

    Raises
    ------
    ValueError
        If the mapping is of another form, or its class is not known.
    """
    if (
        not isinstance(serialized, Mapping)
        or not isinstance(serialized.get("class_name"), str)
        or not isinstance(serialized.get("config", {}), Mapping)
    ):
        raise ValueError(
            f"Improper config format: {serialized!r}; expected 'class_name' and 'config' in a dict"
        )
    name = serialized["class_name"]
    found = (custom_objects or {}).get(name) or known.get(name) or known.get(name.lower())
    if found is None:
        raise ValueError(f"Unknown {kind}: {name}")
    config = dict(serialized.get("config", {}))
    from_config = getattr(found, "from_config", None)
    if from_config is None:
        return found(**config)
    if custom_objects and "custom_objects" in inspect.signature(from_config).parameters:
        return from_config(config, custom_objects=custom_objects)
    return from_config(config)


def get(identifier: Any, known: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """Make the object that a class name alone, or a serialized object, describes.

    Raises
    ------
    ValueError
        If it is neither, or the class is not known.
    """
    if isinstance(identifier, str):
        identifier = {"class_name": identifier, "config": {}}
    if not isinstance(identifier, Mapping):
        raise ValueError(f"Could not interpret {kind} identifier: {identifier!r}")
    return deserialize(identifier, known, None, kind)
