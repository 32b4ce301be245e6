"""One model as ``tpplanner models NAME`` shows it."""

from collections import Counter

from tpplanner.domain.model import ModelSpec


def model_text(model: ModelSpec) -> str:
    """Return what was read from a configuration: sizes, layers, number formats."""
    p = model.precision
    kinds = Counter[str]()
    for group in model.layer_groups:
        kinds[f"{type(group.attention).__name__} + {type(group.mlp).__name__}"] += group.num_layers
    rows = [
        ("name", model.name),
        ("architecture", model.architecture),
        ("parameters", f"{model.num_params:,} ({model.num_active_params:,} active)"),
        ("layers", ", ".join(f"{n} x {kind}" for kind, n in kinds.items())),
        ("hidden, vocabulary", f"{model.hidden_size:,}, {model.vocab_size:,}"),
        ("context limit", f"{model.max_context_tok:,} tokens"),
        ("weights", f"{p.linear.name} linears, {p.expert.name} experts, {p.lm_head.name} head" if model.is_moe
         else f"{p.linear.name} linears, {p.lm_head.name} head"),
        ("KV cache", p.kv.name),
        ("read from", model.place),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
