"""Listeners of requests that a test waits for."""

import threading
from dataclasses import dataclass, field

WAIT_S = 60.0


@dataclass
class Listener:
    """What the outputs of one request add up to; ``act`` runs after each, in the engine's thread."""

    act: object = None
    ids: list = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    num_ends: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, output):
        assert not self.num_ends, "an output after the last"
        self.ids += output.new_ids
        self.text += output.text
        assert output.num_output_tok == len(self.ids)
        if self.act is not None:
            self.act(self, output)
        if output.finish_reason is not None:
            self.reason, self.num_ends = str(output.finish_reason), self.num_ends + 1
            self.done.set()

    def told(self):
        assert self.done.wait(WAIT_S), f"no end after {len(self.ids)} tokens"
        return self.ids, self.text, self.reason
