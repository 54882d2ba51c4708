"""Base class for parts of methods: fields that several methods share, and the checks that go with them."""

from typing import ClassVar


class MethodPart:
    """A base class that gives a method some of its fields; a method may have several."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise InputError, naming the field, for an invalid value."""

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take what the fields ask for."""
