"""Typed access to the keys of a config.json: every failure is one line that names file and key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tpplanner.domain.checks import MAX_COUNT
from tpplanner.errors import ModelError, reject
from tpplanner.io.model_json import one_line

MAX_SIZE: Final = 10**7
"""No width, vocabulary or head count comes near: the largest published (vocabularies) are 3e5."""
MAX_LAYERS: Final = 10_000
MAX_TOKENS: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one JSON object.

    Attributes
    ----------
    values
        The keys, defaults included. An explicit ``null`` stays ``None``, as in transformers.
    place
        The file, as errors name it.
    prefix
        Path of this object inside the file, such as ``text_config.``.
    """

    values: Mapping[str, object]
    place: str
    prefix: str = ""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def with_defaults(self, defaults: Mapping[str, object]) -> "Keys":
        """Return the same keys, those that are absent taken from ``defaults``."""
        return Keys(values={**defaults, **self.values}, place=self.place, prefix=self.prefix)

    def overridden(self, changes: Mapping[str, object]) -> "Keys":
        """Return the same keys, those in ``changes`` replaced."""
        return Keys(values={**self.values, **changes}, place=self.place, prefix=self.prefix)

    def is_null(self, key: str) -> bool:
        """Whether ``key`` is absent or null."""
        return self.values.get(key) is None

    def refuse(self, key: str, rule: str) -> ModelError:
        """Return the error that ``key`` must ``rule``, for the value it has."""
        try:
            reject(ModelError, self.prefix + key, rule, self.values.get(key), self.place)
        except ModelError as error:
            return error
        except RecursionError:
            # repr of a value nested almost as deeply as the decoder allows.
            return ModelError(f"{self.place}: {self.prefix + key} must {rule}, got deeply nested JSON")

    def require(self, key: str) -> object:
        """Return the value of ``key``, which must be there."""
        if key not in self.values:
            raise ModelError(f"{self.place}: {self.prefix + key} is missing")
        return self.values[key]

    def count(self, key: str, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        """Return the integer ``key`` in [minimum, maximum]; booleans, floats and strings are refused."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(key, "be an integer")
        if not minimum <= value <= min(maximum, MAX_COUNT):
            raise self.refuse(key, f"be between {minimum} and {maximum}")
        return value

    def optional_count(self, key: str, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int | None:
        """Return the integer ``key``, or ``None`` where it is null or absent."""
        return None if self.is_null(key) else self.count(key, minimum=minimum, maximum=maximum)

    def flag(self, key: str) -> bool:
        """Return the boolean ``key``."""
        value = self.require(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "be true or false")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return the string ``key``, or ``None`` where it is null or absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.refuse(key, "be a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of strings ``key``; empty where it is null or absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "be a list of strings")
        return tuple(value)

    def counts(self, key: str, *, maximum: int = MAX_LAYERS) -> tuple[int, ...]:
        """Return the list of integers ``key`` in [0, maximum]; empty where it is null or absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= maximum for item in value
        ):
            raise self.refuse(key, f"be a list of integers between 0 and {maximum}")
        return tuple(value)

    def child(self, key: str) -> "Keys | None":
        """Return the keys of the object ``key``, or ``None`` where it is null or absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "be an object")
        return Keys(values=value, place=self.place, prefix=f"{self.prefix}{one_line(key, 60)}.")
