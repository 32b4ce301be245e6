import csv
import io

import pandas as pd
from plan_factory import make_infeasible, make_outcome, make_plan, make_rec

from tpplanner.report.frame import COLUMNS, to_csv, to_frame


def test_frame_and_csv_have_the_same_columns_and_rows() -> None:
    rec = make_rec()
    frame, text = to_frame(rec), to_csv(rec)
    read = list(csv.DictReader(io.StringIO(text)))
    assert tuple(frame.columns) == tuple(read[0]) == COLUMNS
    assert len(frame) == len(read) == 4
    assert len(set(COLUMNS)) == len(COLUMNS)
    for name in (
        "tp",
        "tpot_s",
        "step_scalable_s",
        "step_hidden_s",
        "memory_weight_bytes",
        "kv_capacity_tok",
        "best_prob_frac",
        "throughput_low_tok_s",
    ):
        assert name in COLUMNS
    for row, tp in zip(read, (1, 2, 4, 8), strict=True):
        assert row["tp"] == str(tp)
        tpot_s = frame.set_index("tp").loc[tp, "tpot_s"]
        assert row["tpot_s"] == "" if tp == 1 else float(row["tpot_s"]) == tpot_s


def test_numbers_are_numbers_and_gaps_are_nan() -> None:
    frame = to_frame(make_rec()).set_index("tp")
    assert frame["throughput_tok_s"].dtype == "float64"
    assert pd.isna(frame.loc[1, "step_scalable_s"])
    assert frame.loc[8, "step_scalable_s"] == 0.01
    assert frame["best_prob_frac"].dropna().tolist() == [0.0, 0.04, 0.96]
    assert frame.index[frame["best"]].tolist() == [8]
    assert frame["feasible"].tolist() == [False, True, True, True]
    assert frame.loc[1, "reason"] == "weights"


def test_frames_of_several_questions_can_be_joined() -> None:
    both = pd.concat([to_frame(make_rec()), to_frame(make_infeasible())], ignore_index=True)
    assert len(both) == 7
    assert set(both["model"]) == {"meta-llama/Llama-3.1-70B-Instruct"}


def test_csv_writes_gaps_as_nothing_and_quotes_text() -> None:
    outcome = make_outcome(8, 540.1, extrapolated=("comm", "host"), cost_usd_per_mtok=None)
    plan = make_plan(8, 540.1, outcome=outcome, reason_detail='says "no", twice')
    (row,) = csv.DictReader(io.StringIO(to_csv(make_rec(plans=(plan,)))))
    assert row["extrapolated"] == "comm; host"
    assert row["cost_usd_per_mtok"] == ""
    assert row["reason_detail"] == 'says "no", twice'
    assert (row["best"], row["saturated"]) == ("true", "false")


def test_no_plans() -> None:
    rec = make_rec(plans=(), best_tp=None)
    assert to_csv(rec) == ",".join(COLUMNS) + "\n"
    assert to_frame(rec).empty
