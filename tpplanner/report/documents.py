"""JSON documents of a schema version: written and read the same way, whatever they hold."""

from typing import TypeVar

import msgspec

from tpplanner.errors import TpplannerError, reject

T = TypeVar("T", bound=msgspec.Struct)


class _Version(msgspec.Struct):
    """What is read first: the schema version, whatever else there is."""

    schema_version: int


def document_text(document: msgspec.Struct) -> str:
    """Return a document as JSON, two-space indented, without a final line break."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def parse_document(text: str | bytes, kind: type[T], *, schema_version: int, place: str) -> T:
    """Read a document of a kind.

    Raises
    ------
    TpplannerError
        If the text is no JSON, of another schema version, or if a key is missing, unknown or of the wrong type; the
        message names the place and the key.
    """
    try:
        found = msgspec.json.decode(text, type=_Version).schema_version
        if found != schema_version:
            reject(TpplannerError, "schema_version", f"be {schema_version}", found, place)
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TpplannerError(f"{place}: {error}") from error
