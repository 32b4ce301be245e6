"""Plans of sweeps: which points they have, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.api.question import Asked
from tpplanner.api.simulation import OptionsAsked
from tpplanner.api.traffic import TrafficAsked
from tpplanner.domain.sweep import ColumnKind, SweepKind, SweepPlan
from tpplanner.errors import WorkloadError
from tpplanner.io.sweep_plan import read_plan
from tpplanner.io.sweep_settings import SETTINGS

HEAD = '[grid]\nmodel = "m"\ngpus = "g"\nisl = 1\nosl = 1\n'

NO_FIGURE = {"num_timeline_steps"}
"""Arguments that change a log and no figure."""


def points(text, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return list(read_plan(path).points())


def test_the_product_in_the_order_of_the_file_the_last_key_fastest(tmp_path):
    found = points('[fixed]\nengine = "vllm"\n[grid]\nmodel = ["a", "b"]\ngpus = "g"\nosl = 8\nisl = [1, 2]\n', tmp_path)
    fixed = {"engine": "vllm", "gpus": "g", "osl": 8}
    assert found == [{**fixed, "model": m, "isl": i} for m in "ab" for i in (1, 2)]


def test_settings_that_go_together_are_one_axis(tmp_path):
    found = points("[grid]\nmodel = 'm'\ngpus = 'g'\nworkloads = [{isl = 1, osl = 2}, {trace = 't.csv'}]\n"
                   "loads = [{request_rate = 4}, {concurrency = 64}, {offline = true}]\n", tmp_path)
    both = {"model": "m", "gpus": "g"}
    assert found == [{**both, **workload, **load} for workload in ({"isl": 1, "osl": 2}, {"trace": "t.csv"})
                     for load in ({"request_rate": 4.0}, {"concurrency": 64.0}, {"offline": True})]


def test_explicit_points_come_after_the_grid_with_the_fixed_settings(tmp_path):
    found = points(HEAD.replace("osl = 1", "") + "[fixed]\nosl = 7\n[[points]]\nmodel = 'x'\ngpus = 'y'\nisl = 3\n", tmp_path)
    assert found == [{"osl": 7, "model": "m", "gpus": "g", "isl": 1}, {"osl": 7, "model": "x", "gpus": "y", "isl": 3}]


def test_points_alone_are_a_plan(tmp_path):
    assert points("[[points]]\nmodel = 'x'\ngpus = 'y'\nworkload = 'sharegpt'\n", tmp_path) == [
        {"model": "x", "gpus": "y", "workload": "sharegpt"}]


def test_degrees_are_no_axis():
    plan = read_plan({"grid": {"model": "m", "gpus": "g", "isl": 1, "osl": [1, 2], "tp": [4, 1, 4]}})
    assert [p["tp"] for p in plan.points()] == [(1, 4), (1, 4)]
    assert next(read_plan({"grid": {"model": "m", "gpus": "g", "isl": 1, "osl": 1, "tp": "all"}}).points())["tp"] == "all"


def test_a_mapping_reads_as_a_file_does(tmp_path):
    text = HEAD.replace("isl = 1", "isl = [1, 'lognormal:8:1']") + "switches = [{async_sched = true}, {async_sched = false}]\n"
    data = {"grid": {"model": "m", "gpus": "g", "isl": (1, "lognormal:8:1"), "osl": range(1, 2),
                     "switches": [{"async_sched": True}, {"async_sched": False}]}}
    plan = read_plan(data)
    assert list(plan.points()) == points(text, tmp_path)
    assert plan.num_points == 4
    assert plan.inputs() == {"model": ColumnKind.TEXT, "gpus": ColumnKind.TEXT, "isl": ColumnKind.TEXT,
                             "osl": ColumnKind.INTEGER, "switches": ColumnKind.TEXT}


def test_whole_numbers_are_real_where_a_real_number_is_meant():
    plan = read_plan({"grid": {"model": "m", "gpus": "g", "isl": 1, "osl": 1, "request_rate": [4, 0.5]}})
    assert [type(p["request_rate"]) for p in plan.points()] == [float, float]
    assert plan.inputs()["request_rate"] is ColumnKind.REAL


def test_the_settings_are_the_arguments_of_the_functions():
    simulate = {*Asked.__annotations__, *TrafficAsked.__annotations__, *OptionsAsked.__annotations__, "tp"} - NO_FIGURE
    assert set(SETTINGS[SweepKind.SIMULATE]) == simulate
    assert set(SETTINGS[SweepKind.RECOMMEND]) == {*Asked.__annotations__, "tp"}


BAD = {
    "unknown table": ("[gird]\nx = 1\n", "keys must be among run, fixed, grid, points (did you mean grid", "gird"),
    "unknown key": (HEAD + "num_request = 5\n",
                    "keys of grid must be arguments of simulate (did you mean num_requests", "num_request"),
    "unknown key of points": ("[[points]]\nmodle = 'x'\n", "keys of points[1] must be", "did you mean model"),
    "unknown key of run": ("[run]\njobs = 4\n", "keys of run must be kind", "jobs"),
    "kind": ("[run]\nkind = 'fast'\n", "run.kind must be simulate or recommend", "fast"),
    "key of the other kind": ("[run]\nkind = 'recommend'\n" + HEAD + "seed = 1\n", "keys of grid must be arguments of recommend",
                              "run.kind = 'simulate'"),
    "length of the other kind": ("[run]\nkind = 'recommend'\n" + HEAD.replace("isl = 1", "isl = 'gamma:9:1'"),
                                 "grid.isl must be an integer", "gamma"),
    "text for a number": (HEAD + "request_rate = ['4']\n", "grid.request_rate must be a finite number", "'4'"),
    "flag for a number": (HEAD + "seed = true\n", "grid.seed must be an integer", "True"),
    "number for a flag": (HEAD + "offline = 1\n", "grid.offline must be true or false", "1"),
    "number for text": (HEAD + "dtype = 8\n", "grid.dtype must be text on one line", "8"),
    "real for an integer": (HEAD.replace("isl = 1", "isl = 1.5"), "grid.isl must be tokens", "1.5"),
    "empty text": (HEAD.replace('"m"', '" "'), "grid.model must be text on one line", "' '"),
    "line break": (HEAD.replace('"m"', '"a\\nb"'), "grid.model must be text on one line", "\\n"),
    "nan": (HEAD + "burstiness = nan\n", "grid.burstiness must be a finite number", "nan"),
    "huge": (HEAD + "seed = 9223372036854775808\n", "grid.seed must have at most 18 digits", "64 bits"),
    "date": (HEAD + "concurrency = 2024-01-01\n", "grid.concurrency must be a finite number", "date"),
    "list of lists": (HEAD.replace("isl = 1", "isl = [[1]]"), "grid.isl must be tokens", "[1]"),
    "empty list": (HEAD + "engine = []\n", "grid.engine must have a value at least", "[]"),
    "same value twice": (HEAD.replace("isl = 1", "isl = [5, 6, 5]"), "grid.isl must have values that differ", "got 5"),
    "degrees": (HEAD + "tp = [1, 'all']\n", "grid.tp must be all, a degree, or a list of degrees", "all"),
    "no degrees": (HEAD + "tp = []\n", "grid.tp must be all, a degree, or a list", "[]"),
    "switches": (HEAD + "switches = {async_sched = 'off'}\n", "grid.switches must be a table of switch", "off"),
    "empty grid": ("[grid]\n", "grid must have a key at least", "{}"),
    "empty file": ("", "grid and points must be one of them at least", "neither"),
    "fixed alone": ("[fixed]\nmodel = 'm'\n", "grid and points must be one of them at least", "neither"),
    "grid is no table": ("grid = 5\n", "grid must be a table", "5"),
    "points are no tables": ("points = [1]\n", "points[1] must be a table", "1"),
    "point with a list": ("[[points]]\nmodel = ['a', 'b']\n", "points[1].model must be text", "['a', 'b']"),
    "fixed with a list": ("[fixed]\nisl = [1, 2]\n" + HEAD, "fixed.isl must be tokens", "[1, 2]"),
    "loads are no tables": (HEAD + "loads = [4]\n", "grid.loads must be a table", "4"),
    "loads of nothing": (HEAD + "loads = [{}]\n", "grid.loads must have tables with a key at least", "{}"),
    "no loads": (HEAD + "loads = []\n", "grid.loads must have a value at least", "[]"),
    "fixed and grid": ("[fixed]\nisl = 1\n" + HEAD, "isl must be given once", "fixed and grid"),
    "grid twice": (HEAD + "workloads = [{isl = 5}]\n", "isl must be given once", "grid, twice"),
    "no model": (HEAD.replace('model = "m"\n', ""), "model must be given in fixed or grid", "neither"),
    "no gpus in a point": (HEAD + "[[points]]\nmodel = 'm'\nisl = 1\nosl = 1\n",
                           "gpus must be given in fixed or points[1]", "neither"),
    "no lengths": ("[grid]\nmodel = 'm'\ngpus = 'g'\nisl = 4\n", "isl and osl must be given in fixed or grid", "['isl']"),
    "two loads": (HEAD + "request_rate = 1\nconcurrency = 1\n", "load of grid must be given in one way", "concurrency"),
    "two loads in tables": (HEAD + "batch_per_gpu = 1\nloads = [{concurrency = 1}]\n",
                            "load of grid must be given in one way", "batch"),
    "too many": (HEAD.replace("isl = 1", f"isl = {list(range(1, 1001))}").replace("osl = 1", f"osl = {list(range(1, 1003))}"),
                 "points must be at most 1e+06", "1002000"),
    "no TOML": ("[grid\n", "must be valid TOML", "line"),
    "key twice": (HEAD + "isl = 2\n", "must be valid TOML", "overwrite"),
}


@pytest.mark.parametrize(("text", "rule", "named"), BAD.values(), ids=BAD)
def test_bad_plans_are_one_line_with_file_key_rule_and_value(tmp_path, text, rule, named):
    with pytest.raises(WorkloadError) as error:
        points(text, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'plan.toml'}: ")
    assert rule in message
    assert named in message
    assert message.isprintable()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (5 * 10**6 + 1)], ids=["encoding", "size"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    for wrong in (path, tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(WorkloadError, match="must be"):
            read_plan(wrong)


def test_a_million_points_are_a_plan_and_one_more_is_not():
    axes = tuple(tuple({name: i} for i in range(1000)) for name in ("isl", "osl"))
    common = {"place": "p", "kind": SweepKind.SIMULATE, "fixed": {}, "axes": axes}
    assert SweepPlan(**common, explicit=()).num_points == 10**6
    with pytest.raises(WorkloadError, match="at most"):
        SweepPlan(**common, explicit=({"isl": 1},))


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["all", "m", "lognormal:5:1"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["isl", "tp", "model", "x\n"]), inner,
                                                                         max_size=2)), max_leaves=5)
TABLES = st.dictionaries(st.sampled_from([*SETTINGS[SweepKind.SIMULATE], "loads", "workloads", "deployments", "", "x\n"]), VALUES,
                         max_size=4)


@given(fixed=TABLES, grid=TABLES, listed=st.one_of(VALUES, st.lists(TABLES, max_size=2)), rest=st.dictionaries(
    st.sampled_from(["run", "x\ny"]), VALUES, max_size=1))
def test_any_plan_is_points_or_one_line(fixed, grid, listed, rest):
    grid = {"model": "m", "gpus": "g", "isl": 1, "osl": 1, **grid}
    try:
        plan = read_plan({"fixed": fixed, "grid": grid, "points": listed, **rest})
    except WorkloadError as error:
        assert str(error).isprintable()
        return
    for _, point in zip(range(5), plan.points(), strict=False):
        json.dumps(point, allow_nan=False)
        assert set(point) <= set(plan.inputs())
