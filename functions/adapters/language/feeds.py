"""Inputs of a decoder besides keys and values: tokens, attention mask, positions."""

from array import array
from collections.abc import Sequence

from functions.adapters.onnx.buffers import BoundRuns
from functions.adapters.onnx.capi import ELEMENT_DATATYPES
from functions.adapters.onnx.nodes import Node
from functions.core.errors import InvalidModel, shown

_CODES = {"INT64": "q", "INT32": "i", "UINT8": "B", "BOOL": "B"}  # type codes of the module array
_TOKENS = ("input_ids", "tokens")
_MASK, _POSITIONS = "attention_mask", "position_ids"
_BRANCH = "use_cache_branch"  # optimum's merged decoders: true with a past
_LAST = ("num_logits_to_keep", "logits_to_keep")


class Feed:
    """Input of a decoder, in the integers that the graph declares.

    `last` is true if it lets the graph give the logits of the last token alone.
    """

    def __init__(self, node: Node, context: int) -> None:
        """Prepare an input for up to `context` tokens.

        Raises:
            InvalidModel: `UNKNOWN_INPUT`.
        """
        self.name = node.name
        self.last = node.name in _LAST
        self._rank = len(node.shape)
        self._datatype = ELEMENT_DATATYPES.get(node.element or 0, "")
        names = (*_TOKENS, _MASK, _POSITIONS, _BRANCH, *_LAST)
        if node.name not in names or self._datatype not in _CODES:
            raise InvalidModel(
                f"input {shown(node.name)} ({node.type}) of the decoder is unknown; export it "
                f"with {_TOKENS[0]}, {_MASK}, {_POSITIONS} and keys and values as inputs",
                code="UNKNOWN_INPUT",
            )
        numbers = [1] * context if node.name == _MASK else range(context)
        self._numbers = array(_CODES[self._datatype], numbers if self._by_length else [])

    @property
    def _by_length(self) -> bool:
        return self.name in (_MASK, _POSITIONS)

    def bind(self, runs: BoundRuns, tokens: Sequence[int], before: int) -> tuple[int, object]:
        """Return the input's value for tokens after `before` others, and its memory."""
        count, first = len(tokens), 0
        numbers, shape = self._numbers, [1, count]
        if self.name == _MASK:
            shape = [1, before + count]
        elif self.name == _POSITIONS:
            first = before
        elif self.name in _TOKENS:
            numbers = array(numbers.typecode, tokens)
        else:
            numbers = array(numbers.typecode, [before > 0 if self.name == _BRANCH else 1])
            shape = [1] * self._rank
        address = numbers.buffer_info()[0] + first * numbers.itemsize
        return runs.value(address, self._datatype, shape), numbers
