"""Matrix products of one rank; on a CPU with weights laid out once for it."""

import torch
from torch import Tensor
from torch.nn import functional


class Linear:
    """``x @ weight.T + bias`` of a local shard. Weights [out, in].

    On a CPU in 32 bits the weight is reordered once: a plain product would do so at each call, which takes 1.5 to 1.9
    times as long at 8 to 32 rows (SmolLM2-135M, one thread). The plain weight is dropped unless ``keep`` is set.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and weight.dtype is torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            # The size of the batch is a hint: the layout serves every one.
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows [N, in] to [N, out]."""
        if self._packed is None:
            return functional.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def drop_plain(self) -> None:
        """Forget the plain weight where the reordered one serves."""
        if self._packed is not None:
            self.weight = self.weight.new_empty(0)
