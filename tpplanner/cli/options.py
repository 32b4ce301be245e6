"""The flags that describe a deployment, shared by the commands."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from tpplanner.api.question import parse_switch
from tpplanner.errors import WorkloadError, reject

Command = TypeVar("Command", bound=Callable[..., Any])

_DEPLOYMENT = (
    click.option("--model", "--model-path", required=True, metavar="NAME|PATH",
                 help="Packaged name, Hugging Face id, config.json or model directory."),
    click.option("--gpus", "--total-gpus", "gpus", metavar="NxPROFILE",
                 help="GPUs and machine, 8xh100-sxm. PROFILE without N asks for the fewest GPUs that carry "
                      "--request-rate or --concurrency. A plain number needs --system."),
    click.option("--system", "--gpu", "system", metavar="PROFILE", help="Machine, where --gpus is a number or absent."),
    click.option("--engine", "--backend", default="vllm", show_default=True, metavar="PROFILE",
                 help="Engine profile: host work, overlap, defaults."),
    click.option("--set", "switches", multiple=True, metavar="SWITCH=on|off",
                 help="Set async_sched, early_feedback or seq_parallel_sampling. Repeatable."),
)

_MEAN_LENGTHS = (
    click.option("--isl", type=int, required=True, metavar="TOKENS", help="Mean prompt length."),
    click.option("--osl", type=int, required=True, metavar="TOKENS", help="Mean output length."),
)

_LENGTHS = (
    click.option("--isl", metavar="TOKENS", help="Prompts; simulated: or lognormal:MEAN:CV, gamma:MEAN:CV, histogram:FILE."),
    click.option("--osl", metavar="TOKENS", help="Output length, likewise."),
)

_LOAD = (
    click.option("--request-rate", type=float, metavar="REQ/S", help="Offered load of the whole cluster."),
    click.option("--concurrency", type=float, metavar="N", help="Requests in flight in the whole cluster."),
    click.option("--batch-per-gpu", type=float, metavar="N",
                 help="Requests in flight per GPU: a replica of degree t runs t times as many."),
    click.option("--concurrency-per-replica", type=float, metavar="N", help="Requests in flight per replica."),
    click.option("--offline", is_flag=True, help="Everything queued at once (the default without load and targets)."),
    click.option("--ttft", "ttft_ms", type=float, metavar="MS",
                 help="Target on mean TTFT. Targets without a load ask for the capacity under them."),
    click.option("--tpot", "tpot_ms", type=float, metavar="MS", help="Target on mean TPOT."),
)

_LIMITS = (
    click.option("--dtype", metavar="DTYPE", help="Weights: fp32, bf16, fp16, fp8, int8, int4, mxfp4, nvfp4. Default: its own."),
    click.option("--kv-cache-dtype", metavar="DTYPE", help="KV cache: auto, bf16, fp8 ... Default: the model's."),
    click.option("--gpu-memory-utilization", type=float, metavar="FRAC", help="Default: the engine's."),
    click.option("--max-num-seqs", type=int, metavar="N", help="Default: the engine's."),
    click.option("--max-num-batched-tokens", type=int, metavar="N", help="Default: the engine's."),
    click.option("--non-kv-overhead-gib", type=float, metavar="GIB",
                 help="Activations and runtime per GPU, where the engine's log tells it."),
    click.option("--num-gpu-blocks", type=int, metavar="N",
                 help="KV blocks of one GPU as the engine reports them; replaces the modelled number."),
    click.option("--sampling", metavar="POLICY", help="greedy, top-p or full (all penalties). Default: the engine's."),
    click.option("--preemption", metavar="POLICY", help="recompute, swap or reserve. Default: the engine's."),
    click.option("--max-tp", type=int, metavar="N", help="Largest degree; may exceed the node. Default: one node."),
    click.option("--price", "price_usd_h", type=float, metavar="USD/H", help="Per GPU. Default: the profile's list price."),
)


def deployment_options(command: Command) -> Command:
    """Add the flags of a deployment, its mean lengths and its load to a command."""
    return _added((*_DEPLOYMENT, *_MEAN_LENGTHS, *_LOAD, *_LIMITS), command)


def traffic_options(command: Command) -> Command:
    """Add the same flags with lengths that may be distributions, or be left to a trace."""
    return _added((*_DEPLOYMENT, *_LENGTHS, *_LOAD, *_LIMITS), command)


def _added(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def length_of(text: str) -> int | str:
    """Read tokens where the text is a number; other text is left to the reader of distributions."""
    try:
        return int(text)
    except ValueError:
        return text


def mean_length(context: click.Context, name: str, text: str | None) -> int:
    """Read a mean length, which the closed form needs."""
    option = next(p for p in context.command.params if p.name == name)
    if text is None:
        raise click.MissingParameter(ctx=context, param=option)
    return int(click.types.convert_type(int)(text, option, context))


def machine_of(gpus: str | None, system: str | None) -> str:
    """Join ``--gpus`` and ``--system`` into one ``NxPROFILE`` or ``PROFILE``."""
    if system is None:
        if gpus is None:
            reject(WorkloadError, "--gpus", "be given, for example 8xh100-sxm", "nothing")
        return gpus
    if gpus is None:
        return system
    if gpus.strip().isdigit():
        return f"{gpus.strip()}x{system}"
    reject(WorkloadError, "--gpus", "be a number where --system names the machine", gpus)


def asked(gpus: str | None, system: str | None, switches: Sequence[str], **given: Any) -> dict[str, Any]:
    """Return the arguments of :func:`tpplanner.api.question.question`."""
    return {"gpus": machine_of(gpus, system), "switches": dict(parse_switch(s) for s in switches), **given}
