"""One engine step: the batch that goes in and the times that come out."""

from dataclasses import dataclass

from tpplanner.domain.matrix import FloatOrArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step processes on one replica. Scalars, or arrays that broadcast with each other.

    Attributes
    ----------
    num_decode_seqs
        Sequences that get one new token.
    decode_context_tok
        Mean tokens in the cache of each of them.
    num_prefill_tok
        Prompt tokens processed, over all sequences in prefill.
    prefill_context_tok
        Mean tokens that each of those attends to (half the prompt length for a whole prompt).
    num_prefill_seqs
        Sequences they belong to.
    num_prefill_ends
        Those of them whose prompt ends here: they sample their first token.
    """

    num_decode_seqs: FloatOrArray
    decode_context_tok: FloatOrArray
    num_prefill_tok: FloatOrArray = 0.0
    prefill_context_tok: FloatOrArray = 0.0
    num_prefill_seqs: FloatOrArray = 0.0
    num_prefill_ends: FloatOrArray = 0.0

    @property
    def num_tok(self) -> FloatOrArray:
        """Rows that the linears multiply."""
        return self.num_decode_seqs + self.num_prefill_tok

    @property
    def num_seqs(self) -> FloatOrArray:
        """Sequences that the host handles."""
        return self.num_decode_seqs + self.num_prefill_seqs

    @property
    def num_sampled(self) -> FloatOrArray:
        """Rows of the LM head and of sampling."""
        return self.num_decode_seqs + self.num_prefill_ends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTime:
    """The terms of one step [s]: total = scalable + comm + sampling + host - hidden.

    ``scalable_s`` is T3 without communication and is the sum of ``linear_s``, ``attention_s``,
    ``elementwise_s`` and ``launch_s``; ``host_s`` is the sum of ``schedule_s`` (T1),
    ``prepare_input_s`` (T2), ``process_output_s`` (T5) and ``overlap_overhead_s``.
    """

    linear_s: FloatOrArray
    attention_s: FloatOrArray
    elementwise_s: FloatOrArray
    launch_s: FloatOrArray
    comm_s: FloatOrArray
    sampling_s: FloatOrArray
    schedule_s: FloatOrArray
    prepare_input_s: FloatOrArray
    process_output_s: FloatOrArray
    overlap_overhead_s: FloatOrArray
    hidden_s: FloatOrArray

    @property
    def scalable_s(self) -> FloatOrArray:
        """T3 on the device, without communication [s]."""
        return self.linear_s + self.attention_s + self.elementwise_s + self.launch_s

    @property
    def host_s(self) -> FloatOrArray:
        """T1 + T2 + T5 and the cost of overlapping them [s]."""
        return self.schedule_s + self.prepare_input_s + self.process_output_s + self.overlap_overhead_s

    @property
    def device_s(self) -> FloatOrArray:
        """Time that the device works: T3, its communication and T4 [s]."""
        return self.scalable_s + self.comm_s + self.sampling_s

    @property
    def total_s(self) -> FloatOrArray:
        """Wall time of the step [s]."""
        return self.device_s + self.host_s - self.hidden_s
