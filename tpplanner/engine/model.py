"""Llama, Qwen2 and Qwen3 dense decoders: one rank's share of the forward.

Axes: N tokens, E hidden, H query heads, K KV heads, D head size, V vocabulary of this rank, S rows that sample.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tpplanner.engine.attention import AttentionPlan, PagedAttention
from tpplanner.engine.linear import Linear
from tpplanner.engine.parallel import Ranks
from tpplanner.engine.rope import cos_sin_table, rotate
from tpplanner.engine.weights import Loader


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    out_bias: Tensor | None
    post_norm: Tensor
    gate_up: Linear
    down: Linear


def _load_layer(loader: Loader, index: int) -> Layer:
    model, part, name = loader.model, loader.part, f"model.layers.{index}."
    attn = name + "self_attn."
    sources = (("q_proj", model.num_heads, part.heads), ("k_proj", model.num_kv_heads, part.kv_heads),
               ("v_proj", model.num_kv_heads, part.kv_heads))
    qkv = torch.cat([loader.head_rows(f"{attn}{n}.weight", total, heads) for n, total, heads in sources])
    bias = torch.cat([loader.head_rows(f"{attn}{n}.bias", total, heads, bias=True)
                      for n, total, heads in sources]) if model.qkv_bias else None
    columns = partial(loader.rows, total=model.intermediate_size, span=part.columns, padded=part.num_columns)
    gate_up = torch.cat([columns(f"{name}mlp.gate_proj.weight"), columns(f"{name}mlp.up_proj.weight")])
    down = loader.columns(f"{name}mlp.down_proj.weight", model.intermediate_size, part.columns, part.num_columns)
    norm = partial(loader.whole, size=model.head_dim)
    return Layer(
        input_norm=loader.whole(name + "input_layernorm.weight", model.hidden_size), qkv=Linear(qkv, bias),
        q_norm=norm(attn + "q_norm.weight") if model.qk_norm else None,
        k_norm=norm(attn + "k_norm.weight") if model.qk_norm else None,
        out=Linear(loader.head_columns(attn + "o_proj.weight", part.heads)),
        out_bias=loader.whole(attn + "o_proj.bias", model.hidden_size) if model.output_bias else None,
        post_norm=loader.whole(name + "post_attention_layernorm.weight", model.hidden_size), gate_up=Linear(gate_up),
        down=Linear(down))


class Decoder:
    """The model of one rank."""

    def __init__(self, loader: Loader, ranks: Ranks, *, max_context_tok: int | None = None) -> None:
        self.model, self._part, self._ranks = loader.model, loader.part, ranks
        model, part = self.model, self._part
        rows = partial(loader.rows, total=model.vocab_size, span=part.vocabulary, padded=part.num_tokens)
        self.embedding = rows("model.embed_tokens.weight")
        head = self.embedding if model.tied_embeddings else rows("lm_head.weight")
        self.head = Linear(head)
        self.layers = [_load_layer(loader, i) for i in range(model.num_layers)]
        self.norm = loader.whole("model.norm.weight", model.hidden_size)
        self._cos_sin = cos_sin_table(model, max_context_tok or model.max_context_tok, self.norm.device)
        for layer in self.layers:
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
                linear.drop_plain()

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self.norm.dtype

    def forward(self, token_ids_N: Tensor, attention: PagedAttention, plan: AttentionPlan) -> Tensor:
        """Hidden states after the last norm; [N, E]."""
        x_NE = self._embed(token_ids_N)
        cos_sin = self._cos_sin.index_select(0, plan.positions_N)
        for i, layer in enumerate(self.layers):
            attended = self._attend(i, self._normed(x_NE, layer.input_norm), cos_sin, attention, plan)
            x_NE = x_NE + attended
            gate_up = layer.gate_up(self._normed(x_NE, layer.post_norm))
            gate, up = gate_up.chunk(2, dim=-1)
            x_NE = x_NE + self._ranks.all_reduce(layer.down(functional.silu(gate) * up))
        return self._normed(x_NE, self.norm)

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """Logits of this rank's part of the vocabulary; [S, V]."""
        return self.head(hidden_SE)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.model.eps)

    def _embed(self, token_ids_N: Tensor) -> Tensor:
        begin, end = self._part.vocabulary
        if self._part.tp == 1:
            return self.embedding.index_select(0, token_ids_N)
        inside = (token_ids_N >= begin) & (token_ids_N < end)
        local = torch.where(inside, token_ids_N - begin, 0)
        return self._ranks.all_reduce(self.embedding.index_select(0, local) * inside.unsqueeze(1))

    def _attend(self, index: int, x_NE: Tensor, cos_sin: Tensor, attention: PagedAttention, plan: AttentionPlan) -> Tensor:
        layer, num_tok, dim = self.layers[index], x_NE.shape[0], self.model.head_dim
        num_heads, num_kv = len(self._part.heads), len(self._part.kv_heads)
        qkv_NHD = layer.qkv(x_NE).view(num_tok, num_heads + 2 * num_kv, dim)
        q, k, v = torch.split(qkv_NHD, [num_heads, num_kv, num_kv], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._normed(q, layer.q_norm), self._normed(k, layer.k_norm)
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        else:
            q, k = torch.split(rotate(qkv_NHD[:, : num_heads + num_kv], cos_sin), [num_heads, num_kv], dim=1)
        out = self._ranks.all_reduce(layer.out(attention(index, q, k, v, plan)))
        return out if layer.out_bias is None else out + layer.out_bias
