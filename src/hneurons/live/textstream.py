"""Text as it grows token by token: whole characters only, and nothing that may be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character that is not complete yet."""


class TextStream:
    """Turns token ids into text that is safe to show.

    Tokens are decoded together with those just before them, since some tokenizers write a token differently at the
    beginning of a text; only a few are, so that a long response costs no more a token than a short one.

    Args:
        decode: text of token ids.
        stop: texts that end the response; the first that appears does.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.text = ""
        """All that was given out."""
        self.stopped = False
        """Whether a stop string was written."""
        self._decode = decode
        self._stop = [word for word in stop if word]
        self._ids: list[int] = []
        self._begin = 0  # the first token that is decoded again
        self._read = 0  # the first token whose text was not taken yet
        self._held = ""  # text that may be the beginning of a stop string

    def add(self, token: int) -> str:
        """The text that is safe to show now that this token was written; nothing after a stop string."""
        self._ids.append(token)
        known = self._decode(self._ids[self._begin : self._read])
        both = self._decode(self._ids[self._begin :])
        if len(both) <= len(known) or both.endswith(UNFINISHED):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._give(both[len(known) :], last=False)

    def end(self) -> str:
        """What was held back, once nothing more will come."""
        rest = self._decode(self._ids[self._begin :])[len(self._decode(self._ids[self._begin : self._read])) :]
        self._begin = self._read = len(self._ids)
        return self._give(rest, last=True)

    def _give(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if places:
            self.stopped = True
            safe = min(places)
        else:
            safe = len(self._held) if last else len(self._held) - self._possible()
        given, self._held = self._held[:safe], self._held[safe:]
        self.text += given
        return given

    def _possible(self) -> int:
        """Characters at the end of the held text that a stop string may begin with."""
        longest = 0
        for word in self._stop:
            for length in range(min(len(word) - 1, len(self._held)), longest, -1):
                if self._held.endswith(word[:length]):
                    longest = length
                    break
        return longest
