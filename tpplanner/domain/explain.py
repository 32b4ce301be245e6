"""One line of an explanation: a term, its equation, the numbers put in, and their evidence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainLine:
    """A term of a step or of a memory budget, as ``tpplanner explain`` prints it.

    Attributes
    ----------
    term
        Name of the term: ``scalable``, ``comm`` ...
    equation, inputs
        The equation in words and symbols, and the numbers that were put in.
    value, unit
        The result in the SI unit that ``unit`` names (``s``, ``bytes``, ``tok``, ``1`` ...).
    provenance, source
        The kind of evidence behind the numbers, and where it lies.
    level
        Depth of the term below the sum that it belongs to, 0 for the sum itself.
    """

    term: str
    equation: str
    inputs: str
    value: float
    unit: str
    provenance: str
    source: str
    level: int = 0
