"""Text from token ids while they come, and stop strings in it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """The text of one request. Without a tokenizer there is none.

    What might be the beginning of a stop string, or of a character whose bytes are spread over tokens, is held back.
    """

    __slots__ = ("_ids", "_pending", "_stop", "_stream", "_tokenizer", "length", "text")

    def __init__(self, tokenizer: "Tokenizer | None", stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._stream = None
        if tokenizer is not None:
            from tokenizers.decoders import DecodeStream

            self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self.text = ""
        self.length = 0
        self._pending = max((len(s) for s in stop), default=1) - 1

    def add(self, token_id: int) -> bool:
        """Take one more id; return whether a stop string is complete, which the text then ends before."""
        if self._stream is None or self._tokenizer is None:
            return False
        self._ids.append(token_id)
        piece = self._stream.step(self._tokenizer, token_id)
        if piece is None:
            return False
        return self._extend(piece)

    def _extend(self, piece: str) -> bool:
        begin = max(len(self.text) - self._pending, 0)
        self.text += piece
        found = [at for at in (self.text.find(s, begin) for s in self._stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def take(self, *, ended: bool) -> str:
        """Return the text that was not returned yet and that nothing can change any more."""
        end = len(self.text) if ended else max(len(self.text) - self._pending, self.length)
        new, self.length = self.text[self.length:end], max(end, self.length)
        return new

    def finish(self) -> None:
        """Add what incomplete characters leave at the end of the output."""
        if self._tokenizer is not None and self._ids:
            whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            if whole.startswith(self.text):
                self._extend(whole[len(self.text):])
