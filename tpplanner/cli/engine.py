"""``tpplanner engine``: generate, bench and serve with the engine of this package."""

import sys
from typing import Any

import click

from tpplanner.cli.options import length_of
from tpplanner.errors import EngineError, WorkloadError, reject

_LOOPS = ("sequential", "overlap")
_DTYPES = ("auto", "float32", "bfloat16", "float16")

ENGINE = (
    click.option("--model", required=True, metavar="DIR", help="Directory with config.json, safetensors and tokenizer.json."),
    click.option("--tp", type=int, default=1, show_default=True, metavar="T", help="Ranks, one process each."),
    click.option("--engine", "loop", type=click.Choice(_LOOPS), default="sequential", show_default=True,
                 help="overlap switches all three mechanisms on."),
    click.option("--async-sched/--no-async-sched", default=None, help="Schedule step n + 1 while step n runs."),
    click.option("--early-feedback/--no-early-feedback", default=None, help="Patch sampled ids in on the device."),
    click.option("--sp-sampling/--no-sp-sampling", default=None, help="Divide sampling over the ranks."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True),
    click.option("--load-format", type=click.Choice(["auto", "dummy"]), default="auto", show_default=True,
                 help="dummy: random weights of the shapes in config.json."),
    click.option("--num-kv-blocks", type=int, metavar="N", help="KV blocks per rank. Default: what memory has room for."),
    click.option("--kv-block-size", "kv_block_size_tok", type=int, default=16, show_default=True, metavar="TOK"),
    click.option("--max-num-seqs", type=int, default=256, show_default=True, metavar="N"),
    click.option("--max-num-batched-tokens", type=int, default=2048, show_default=True, metavar="N"),
    click.option("--max-model-len", "max_context_tok", type=int, metavar="TOK", help="Default: the model's own limit."),
    click.option("--preemption", type=click.Choice(["recompute", "swap", "reserve"]), default="recompute", show_default=True),
    click.option("--prefix-caching", is_flag=True, help="Find blocks of prompts again."),
    click.option("--gpu-memory-utilization", type=float, default=0.9, show_default=True, metavar="FRAC"),
    click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True),
    click.option("--num-threads", type=int, metavar="N", help="Of each worker on a CPU."),
)

SAMPLING = (
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, metavar="N", help="0 is off."),
    click.option("--top-p", type=float, default=1.0, metavar="P"),
    click.option("--min-p", type=float, default=0.0, metavar="P"),
    click.option("--repetition-penalty", type=float, default=1.0, metavar="X"),
    click.option("--presence-penalty", type=float, default=0.0, metavar="X"),
    click.option("--frequency-penalty", type=float, default=0.0, metavar="X"),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N"),
)
_SAMPLING_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                   "frequency_penalty", "seed")


def _with(options: tuple[Any, ...], command: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: Any) -> Any:
    """Add the flags of the engine."""
    return _with(ENGINE, command)


def sampling_options(command: Any) -> Any:
    """Add the flags of the sampling policy."""
    return _with(SAMPLING, command)


def _policy(given: dict[str, Any], **more: Any) -> Any:
    from tpplanner.engine.sampling_params import SamplingParams

    return SamplingParams(**{name: given.pop(name) for name in _SAMPLING_NAMES}, **more)


def _config(given: dict[str, Any], **more: Any) -> Any:
    """Settings from flags; switches that were typed win over --engine."""
    from tpplanner.domain.engine import Preemption, Switches
    from tpplanner.engine.config import EngineConfig

    overlaps = given.pop("loop") == "overlap"
    chosen = {name: given.pop(name) for name in ("async_sched", "early_feedback", "sp_sampling")}
    on = {name: overlaps if value is None else value for name, value in chosen.items()}
    if chosen["async_sched"] is False and chosen["early_feedback"] is None:
        on["early_feedback"] = False
    switches = Switches(async_sched=on["async_sched"], early_feedback=on["early_feedback"],
                        seq_parallel_sampling=on["sp_sampling"])
    return EngineConfig(switches=switches, preemption=Preemption(given.pop("preemption")), **given, **more)


def _emulation(tp: int | None, machine: str | None, fit: str | None, system: str | None) -> Any:
    """Delays of a machine's collectives; ``None`` where no rank is emulated."""
    from tpplanner.api.emulation import emulation_on

    if tp is None:
        for flag, value in (("--machine", machine), ("--machine-fit", fit)):
            if value is not None:
                reject(WorkloadError, flag, "come with --emulate-tp", value, "engine bench")
        return None
    if (machine or system) is None:
        reject(WorkloadError, "--machine", "name the profile whose collectives --emulate-tp delays", None, "engine bench")
    return emulation_on(machine or str(system), tp, fit=fit)


def _serves_a_rank() -> bool:
    """Be a rank of torchrun that does not drive, to its end."""
    from tpplanner.engine.torchrun import launched_rank, serve_rank

    if launched_rank() in (None, 0):
        return False
    serve_rank()
    return True


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors", "tokenizers") if find_spec(name) is None]
    if missing:
        raise EngineError(f"engine: {', '.join(missing)} not installed: pip install 'tpplanner[engine]'")


@click.group()
def engine() -> None:
    """Run a model: a minimal inference engine with a sequential and an overlapped loop (extra [engine]).

    Several GPUs or nodes: torchrun --nproc-per-node T -m tpplanner engine ... --tp T
    """
    _require_extra()


@engine.command()
@engine_options
@sampling_options
@click.option("--prompt", "prompts", multiple=True, required=True, help="May be given several times.")
@click.option("--max-tokens", type=int, default=64, show_default=True, metavar="N")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the output before this text.")
@click.option("--ignore-eos", is_flag=True)
def generate(prompts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...], ignore_eos: bool, **given: Any) -> None:
    """Continue prompts; prints each output on stdout, counts and times on stderr."""
    if _serves_a_rank():
        return
    from tpplanner.engine.engine import Engine

    params = _policy(given, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos)
    with Engine(_config(given)) as running:
        done = running.generate(prompts, params)
        for completion in done:
            click.echo(completion.text)
        num_tok = sum(len(c.output_ids) for c in done)
        time_s = max(c.finish_s for c in done) - min(c.arrival_s for c in done)
        click.echo(f"{num_tok} tokens in {time_s:.2f} s ({num_tok / time_s:.1f} tok/s), t = {running.config.tp}, "
                   f"{running.workers.device}", err=True)


@engine.command()
@engine_options
@sampling_options
@click.option("--workload", metavar="NAME", help="Named lengths: albireo, sharegpt, azure-conv-2023, azure-code-2023.")
@click.option("--trace", metavar="FILE", help="Requests from a file, at their times unless a load is given.")
@click.option("--isl", metavar="TOK", help="Prompt: tokens, or a distribution such as lognormal:800:1.2.")
@click.option("--osl", metavar="TOK", help="Output: the same.")
@click.option("--concurrency", type=int, metavar="N", help="Clients of a closed loop.")
@click.option("--request-rate", type=float, metavar="REQ_S", help="Requests per second, Poisson unless --arrivals says else.")
@click.option("--arrivals", metavar="KIND", help="poisson, gamma or constant.")
@click.option("--burstiness", type=float, metavar="CV", help="Of the gaps between arrivals (gamma).")
@click.option("--num-requests", type=int, metavar="N", help="Default: 64, or the trace's.")
@click.option("--num-warmup", type=int, default=4, show_default=True, metavar="N")
@click.option("--inject", default=(0.0, 0.0, 0.0), type=(float, float, float), metavar="T1 T2 T5",
              help="Milliseconds that the host sleeps in these tasks of every step.")
@click.option("--emulate-tp", type=int, metavar="T", help="Run as one rank of T on one device, delays in place of collectives.")
@click.option("--machine", metavar="NAME", help="Machine profile whose collectives --emulate-tp delays. Default: --system.")
@click.option("--machine-fit", metavar="ENGINE", help="Fit of that machine with the curves. Default: this engine's, if any.")
@click.option("--system", metavar="NAME", help="Machine profile to write into run.csv, which tpplanner validate reads.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--save-dir", metavar="DIR", help="Write figures, request log, steps and a Chrome trace.")
@click.option("--overwrite", is_flag=True)
def bench(*, inject: tuple[float, float, float], system: str | None, output_format: str, save_dir: str | None,
          overwrite: bool, concurrency: int | None, request_rate: float | None, num_warmup: int, emulate_tp: int | None,
          machine: str | None, machine_fit: str | None, **given: Any) -> None:
    """Serve requests and print the metrics of serving, with the five tasks of a step."""
    if _serves_a_rank():
        return
    from tpplanner.api.engine_bench import engine_bench
    from tpplanner.api.engine_files import check_run_outputs, run_json, run_text, write_run
    from tpplanner.engine.config import Delays

    if save_dir is not None:
        check_run_outputs(save_dir, overwrite=overwrite)
    names = ("workload", "trace", "isl", "osl", "arrivals", "burstiness", "num_requests")
    traffic = {name: value for name in names if (value := given.pop(name)) is not None}
    traffic |= {name: length_of(traffic[name]) for name in ("isl", "osl") if name in traffic}
    traffic["seed"] = given["seed"]
    params = _policy(given)
    t1, t2, t5 = (ms / 1e3 for ms in inject)
    config = _config(given, delays=Delays(schedule_s=t1, prepare_input_s=t2, process_output_s=t5),
                     emulate=_emulation(emulate_tp, machine, machine_fit, system))
    label = "requests" if config.emulate is None else "requests, emulated"
    with click.progressbar(length=1000, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        run = engine_bench(config, traffic, concurrency=concurrency, request_rate=request_rate, params=params,  # type: ignore[arg-type]
                           num_warmup=num_warmup, progress=lambda done, total: bar.update(1000 * done // total - bar.pos))
    click.echo(run_json(run) if output_format == "json" else run_text(run), nl=output_format != "json")
    if save_dir is not None:
        for path in write_run(run, save_dir, model=config.model, system=system, overwrite=overwrite):
            click.echo(f"wrote {path}", err=True)


@engine.command()
@engine_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True)
def serve(host: str, port: int, **given: Any) -> None:
    """Answer OpenAI-compatible completions on http://HOST:PORT/v1/completions until interrupted."""
    if _serves_a_rank():
        return
    from tpplanner.engine.engine import Engine
    from tpplanner.engine.server import serve as serve_http

    with Engine(_config(given)) as running:
        serve_http(running, host=host, port=port)
