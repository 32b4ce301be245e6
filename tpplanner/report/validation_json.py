"""A validation as plain data and as CSV of every decision."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from tpplanner.domain.scores import POLICIES, Scores
from tpplanner.domain.validated import Validated

_DECISION_COLUMNS = (
    "predictions", "definition", "group", "kind", "load_per_gpu", "best_tp", *(f"{p}_tp" for p in POLICIES), "regret_frac",
    "is_censored", "measured_tok_s_per_gpu", "predicted_tok_s_per_gpu",
)


def validation_dict(validated: Validated) -> dict[str, object]:
    """Return every figure; fields are those of `tpplanner.domain.scores`, shares and errors as fractions."""
    return {
        "source": validated.source, "dropped": dict(validated.dropped), "left_out": dict(validated.left_out),
        "scores": [_scores(scores) for scores in validated.scores],
    }


def _scores(scores: Scores) -> dict[str, object]:
    data = asdict(scores)
    # Every single choice is in decisions.csv.
    del data["choices"]
    return data


def validation_json(data: dict[str, object]) -> str:
    """Return the data as JSON text."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)


def decisions_csv(results: Sequence[Scores]) -> str:
    """Return every decision as a row of CSV text; throughputs as ``tp:value``, ``-`` where a degree cannot serve."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_DECISION_COLUMNS)
    for scores in results:
        for one in scores.choices:
            sides = (" ".join(f"{tp}:{'-' if value is None else format(value, '.6g')}" for tp, value in side.items())
                     for side in (one.measured, one.predicted))
            writer.writerow((
                scores.name, one.definition, one.group.name, one.kind,
                "" if one.load_per_gpu is None else f"{one.load_per_gpu:g}", one.best_tp,
                *(one.chosen.get(policy, "") for policy in POLICIES), f"{one.regret_frac():.6g}",
                str(one.is_censored).lower(), *sides,
            ))
    return out.getvalue()
