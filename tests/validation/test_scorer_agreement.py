"""Every figure equals that of the project's scorer, on the same predictions."""

import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from sample_files import peer_predictions, sample, scorer

from tpplanner.api.validate_runs import predict_runs, rules_of_thumb
from tpplanner.domain.scores import Scores
from tpplanner.io.silicon_runs import read_silicon_runs
from tpplanner.io.validation_files import predictions_text, read_predictions
from tpplanner.validation.score import figures, match, score

ERRORS = {"mape": ("mean", 100.0), "med": ("median", 100.0), "p90": ("p90", 100.0), "ratio": ("ratio", 1.0)}
QUANTITIES = {"tpot": "tpot", "ttft": "ttft", "thr": "throughput"}
CHOICES = {"top1": "hit", "top1_strict": "strict", "regret": "regret", "regret_p90": "regret_p90", "regret_max": "regret_max",
           "infeasible": "infeasible"}
POLICIES = {"pred": "", "min_tp": "smallest.", "max_tp": "largest."}
SLOS = [10.0, 20.0, 30.0, 50.0, 100.0]


@pytest.fixture(scope="module", params=["peer", "packaged"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, list[Any], Scores]:
    """The scorer, its rows with predictions attached, and our scores of the same file of predictions."""
    module, runs = scorer(), read_silicon_runs(sample())[0]
    if request.param == "peer":
        path = peer_predictions()
    else:
        path = tmp_path_factory.mktemp("validation") / "predictions.csv"
        path.write_text(predictions_text(match(runs, predict_runs(runs))))
    rows, _ = module.load_rows(sample())
    module.attach(rows, module.load_pred(path), False)
    scores = score(match(runs, read_predictions(path)), name="packaged", label="", rules_of_thumb=rules_of_thumb(runs))
    return module, rows, scores


def partitions(rows: list[Any]) -> dict[str, list[Any]]:
    found = defaultdict(list)
    for row in rows:
        kind, conc = row["kind"], row["conc"]
        band = "conc<=8" if conc <= 8 else "conc 9-32" if conc <= 32 else "conc>32"
        for name in ("all", kind, f"{row['system']}/{row['backend']}/{kind}", f"{kind} tp{row['tp']}", f"{kind} {band}",
                     f"source {row['family']}/{kind}", f"model {row['model'].split('/')[-1]} {row['precision']}"):
            found[name].append(row)
        if not row["saturated"]:
            found["all, not saturated"].append(row)
            found[f"{kind}, not saturated"].append(row)
    return found


def test_errors(both: tuple[ModuleType, list[Any], Scores]) -> None:
    module, rows, scores = both
    ours, compared = figures(scores), 0
    for partition, own in partitions(rows).items():
        errors = module.err(own)
        for theirs, name in QUANTITIES.items():
            for key, (stat, scale) in ERRORS.items():
                if not errors["n"]:
                    assert f"{partition}.{name}.{stat}" not in ours
                    continue
                assert ours[f"{partition}.{name}.{stat}"] * scale == pytest.approx(errors[theirs][key], rel=1e-9), partition
                compared += 1
    assert scores.num_predicted == module.err(rows)["n"]
    assert compared > 500


def test_decisions(both: tuple[ModuleType, list[Any], Scores]) -> None:
    module, rows, scores = both
    groups = {key: by_tp for key, by_tp in module.make_groups(rows, "exact").items() if len(by_tp) >= 2}
    assert scores.num_groups == len(groups)
    theirs, _ = module.decide(groups, SLOS, 3)
    ours, compared = figures(scores), 0
    for definition, parts in theirs.items():
        for partition, by_policy in parts.items():
            for policy, name in POLICIES.items():
                for key, stat in CHOICES.items():
                    figure = f"{partition}.{definition}.{name}{stat}"
                    assert ours[figure] == pytest.approx(by_policy[policy][key], rel=1e-9, abs=1e-12), figure
                    compared += 1
    rows_by = {(row.definition, row.partition): row for row in scores.decisions}
    assert {(d, p) for d, parts in theirs.items() for p in parts} == set(rows_by)
    for (definition, partition), row in rows_by.items():
        assert row.policies["ours"].num == theirs[definition][partition]["pred"]["n"]
        assert row.num_censored == theirs[definition][partition]["pred"]["censored"]
        assert row.best_tps == theirs[definition][partition]["best_tp_histogram"]
    assert compared > 700


@pytest.mark.parametrize("kind", ["all", "dense", "moe"])
def test_gain_of_doubling(both: tuple[ModuleType, list[Any], Scores], kind: str) -> None:
    module, rows, scores = both
    own = [row for row in rows if kind in ("all", row["kind"])]
    groups = {key: by_tp for key, by_tp in module.make_groups(own, "exact").items() if len(by_tp) >= 2}
    theirs = module.rank_stats(groups)["tp_scaling_same_load"]
    ours = next(row.errors for row in scores.doubling if row.partition == kind)
    assert ours.num == theirs["n"]
    assert [100 * ours.mean_frac, 100 * ours.median_frac, 100 * ours.p90_frac] == pytest.approx(
        [theirs["mape"], theirs["med"], theirs["p90"]], rel=1e-9)


def test_rule_of_thumb_is_the_scorer_s_up_to_rounding(both: tuple[ModuleType, list[Any], Scores]) -> None:
    module, rows, scores = both
    groups = {key: by_tp for key, by_tp in module.make_groups(rows, "exact").items() if len(by_tp) >= 2}
    theirs, _ = module.decide(groups, SLOS, 3)
    ours = figures(scores)
    # The scorer has rounded weights and memory, the profiles exact ones: a few choices may differ.
    assert ours["dense.c.rule_of_thumb.hit"] == pytest.approx(theirs["c"]["dense"]["albireo"]["top1"], abs=0.1)
