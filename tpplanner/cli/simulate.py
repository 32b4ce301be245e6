"""``tpplanner simulate``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tpplanner import api
from tpplanner.cli.options import asked, length_of, traffic_options
from tpplanner.errors import WorkloadError, reject

if TYPE_CHECKING:
    from tpplanner.api.simulated import Simulated

EXIT_NO_PLAN = 1
_TIMELINE_STEPS = 50_000
"""Of the timeline that --save-dir writes: some ten megabytes per degree."""

REQUESTS = (
    click.option("--workload", metavar="NAME", help="Named lengths: albireo, sharegpt, azure-conv-2023, azure-code-2023."),
    click.option("--trace", metavar="FILE", help="Requests from a file, replayed where it has times (docs/workloads.md)."),
    click.option("--trace-format", metavar="NAME",
                 help="tpplanner, vidur, azure, burstgpt, mooncake or sharegpt. Default: told from the file."),
    click.option("--chars-per-tok", type=float, metavar="N", help="Of the texts of a ShareGPT file. Default: 4."),
    click.option("--tokenizer", metavar="FILE", help="tokenizer.json that counts the tokens of a ShareGPT file."),
    click.option("--head", type=int, metavar="N", help="The first N requests of the trace."),
    click.option("--tail", type=int, metavar="N", help="The last N requests of the trace."),
    click.option("--scale-rate", type=float, metavar="X", help="X times the rate of the trace."),
    click.option("--scale-isl", type=float, metavar="X", help="X times its prompts."),
    click.option("--scale-osl", type=float, metavar="X", help="X times its outputs."),
    click.option("--arrivals", metavar="KIND", help="poisson, gamma or constant. Default: the trace's own, else poisson."),
    click.option("--burstiness", type=float, metavar="CV",
                 help="Coefficient of variation of the gaps between arrivals (gamma); 1 is Poisson."),
    click.option("--num-requests", type=int, metavar="N", help="Default: the trace's, else at least 1,000."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of lengths and arrivals."),
)

RUN = (
    click.option("--router", metavar="POLICY", help="round-robin (default) or least-outstanding."),
    click.option("--prefix-caching", is_flag=True, help="Find prompts' blocks again by the ids of the trace."),
    click.option("--watermark", "watermark_frac", type=float, metavar="FRAC",
                 help="Share of the KV blocks that admissions leave free. Default: 0."),
    click.option("--slo-percentile", type=float, metavar="P",
                 help="Compare targets with this percentile of TTFT and TPOT, 99 for p99. Default: the means."),
    click.option("--ramp", "ramp_s", type=float, metavar="S",
                 help="Start the clients of a closed loop within S seconds; 0 all at once. Default: one request's time."),
    click.option("--step-by-step", is_flag=True, help="Every step on its own: slow, the same result."),
)


def simulation_options(command: Any) -> Any:
    """Add the flags of requests and run to a command."""
    for option in reversed((*REQUESTS, *RUN)):
        command = option(command)
    return command


def _names() -> frozenset[str]:
    def nothing() -> None:
        """Take every option."""

    return frozenset(option.name for option in simulation_options(nothing).__click_params__)


SIMULATION_NAMES = _names()
"""Parameters of :func:`simulation_options`."""


def hidden_simulation_options(command: Any) -> Any:
    """Add the same flags without a line each in the help."""
    command = simulation_options(command)
    for option in command.__click_params__:
        option.hidden = option.hidden or option.name in SIMULATION_NAMES
    return command


def flags_given(context: click.Context) -> list[str]:
    """Name the flags of requests and run that the user typed."""
    typed = {name for name in SIMULATION_NAMES
             if context.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)}
    return [param.opts[0] for param in context.command.params if param.name in typed]


def parse_degrees(text: str) -> str | list[int]:
    """Read ``all``, ``4`` or ``2,4,8``."""
    if text.strip() == "all":
        return "all"
    parts = [part.strip() for part in text.split(",")]
    # Other digits, superscripts among them, are digits to Python but no numbers.
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        reject(WorkloadError, "tp", "be all, or degrees such as 2,4,8", text, "--tp")
    return [int(part) for part in parts]


def run_simulation(
    tp: str, given: dict[str, Any], *, save_dir: str | None, overwrite: bool, show_progress: bool
) -> "Simulated":
    """Simulate, with a progress bar on a terminal, and write what ``--save-dir`` asks for."""
    from tpplanner.api.simulated import write_simulated

    quantile = given.pop("slo_percentile")
    if quantile is not None and not 0 < quantile < 100:
        reject(WorkloadError, "slo_percentile", "lie between 0 and 100", quantile, "--slo-percentile")
    arguments = asked(**given)
    arguments |= {name: length_of(arguments[name]) for name in ("isl", "osl") if arguments[name] is not None}
    arguments |= {"slo_quantile": None if quantile is None else quantile / 100.0, "tp": parse_degrees(tp),
                  "num_timeline_steps": 0 if save_dir is None else _TIMELINE_STEPS}
    with _Bars(show_progress) as bars:
        answer = api.simulate(progress=bars.tell, **arguments)
    if save_dir is not None:
        for path in write_simulated(answer, save_dir, overwrite=overwrite):
            click.echo(f"wrote {path}", err=True)
    return answer


class _Bars:
    """One progress bar per run, on stderr."""

    def __init__(self, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bars = Progress(console=Console(stderr=True), disable=not shown, transient=True)
        self._current: tuple[int, Any] | None = None
        self._last = 0

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, tp: int, done: int, total: int) -> None:
        """Move the bar of a degree; a new run of it begins a new one."""
        if self._current is None or self._current[0] != tp or done < self._last:
            if self._current is not None:
                self._bars.remove_task(self._current[1])
            self._current = (tp, self._bars.add_task(f"TP {tp}", total=total))
        self._last = done
        self._bars.update(self._current[1], completed=done)


def show_simulation(answer: "Simulated", output_format: str) -> int:
    """Print the answer on stdout and its notes on stderr; return the exit code."""
    match output_format:
        case "json":
            click.echo(answer.to_json())
        case "csv":
            from tpplanner.report.simulation_json import simulation_csv

            click.echo(simulation_csv(answer.simulation), nl=False)
        case _:
            _print(answer)
    return 0 if answer.best_tp is not None else EXIT_NO_PLAN


def _print(answer: "Simulated") -> None:
    import shutil

    from tpplanner.report.launch import shown_lines
    from tpplanner.report.simulation_text import simulation_notes

    terminal = sys.stdout.isatty()
    click.echo(answer.to_text(width=shutil.get_terminal_size().columns if terminal else None, terminal=terminal))
    if answer.best_plan is not None:
        click.echo("\nLaunch:")
        for line in shown_lines(answer.recommendation, answer.best_plan):
            click.echo(f"  {line}")
    notes: Sequence[str] = simulation_notes(answer.simulation)
    for note in notes:
        click.echo(note, err=True)


def check_save_dir(save_dir: str | None, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written before anything runs."""
    if save_dir is not None:
        from tpplanner.api.simulated import check_simulated_outputs

        check_simulated_outputs(save_dir, overwrite=overwrite)


@click.command()
@traffic_options
@simulation_options
@click.option("--tp", default="all", show_default=True, metavar="T[,T...]", help="Degrees to simulate.")
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--save-dir", metavar="DIR",
              help="Also write figures, plots, and per degree the request log, the load over time and a Chrome trace of steps.")
@click.option("--overwrite", is_flag=True, help="Let --save-dir replace existing files.")
def simulate(
    tp: str, output_format: str, save_dir: str | None, overwrite: bool, **given: Any
) -> int:
    """Serve single requests on the replicas of each degree, step by step of the engine's scheduler.

    Percentiles, goodput under the targets, queues, preemption and the load of the KV cache, where the closed form of
    `recommend` has means of a steady state. Targets without a load ask for the highest rate at which they hold.
    """
    check_save_dir(save_dir, overwrite=overwrite)
    answer = run_simulation(tp, given, save_dir=save_dir, overwrite=overwrite, show_progress=sys.stderr.isatty())
    return show_simulation(answer, output_format)
