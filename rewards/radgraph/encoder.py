"""Vectors of the words of many reports: word pieces, cut into segments, encoded in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from radflow.rewards.hub import at_commit
from radflow.rewards.memory import MB, Kept
from radflow.rewards.metrics.encoder import cut_batches, in_one_line, try_model
from radflow.rewards.radgraph.archive import ENCODER, RadGraphArchive

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class WordEncoder:
    """A vector for each word, the mean of the vectors of its pieces; all zero for a word without pieces.

    Words are cut into pieces one by one. The pieces of a report are cut into segments of `max_length`, each with its
    own [CLS], [SEP] and positions from 0, wherever words begin. Segments of all reports are sorted by length and share
    batches; padding is masked, so that the other segments of a batch change a vector by rounding only.

    Args:
        max_length: pieces of a segment, special ones included; None: a report is one segment.
        max_tokens: pieces of a batch, padding included; one segment may be longer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, max_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self._before, self._after = special_ids(tokenizer)
        self._room = None if max_length is None else max_length - len(self._before) - len(self._after)
        if self._room is not None and self._room < 1:
            raise ValueError(f"expected a max_length that leaves room for word pieces, got {max_length}")
        self._pieces = Kept[list[int]](16 * MB)

    def __call__(self, reports: Sequence[Sequence[str]]) -> Tensor:
        """[W, H] float32 vectors of the words of all reports, one after the other."""
        import torch

        words = [word[1:] if word in ("/.", "/?") else word for report in reports for word in report]
        known = self._pieces(words, self._cut)
        pieces = [known[word] for word in words]
        device = self.model.device
        counts = torch.tensor([len(p) for p in pieces], device=device)
        segments, position = [], 0
        for report in reports:
            ids = [i for p in pieces[position : position + len(report)] for i in p]
            position += len(report)
            room = self._room or max(len(ids), 1)
            segments += [ids[start : start + room] for start in range(0, len(ids), room)]
        if not segments:
            return torch.zeros(len(words), self.model.config.hidden_size, device=device)
        vectors = self._encode(segments)
        return torch.segment_reduce(vectors, "sum", lengths=counts) / counts.clamp(min=1)[:, None]

    def _cut(self, words: list[str]) -> list[list[int]]:
        pieces: list[list[int]] = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        return pieces

    def _encode(self, segments: Sequence[list[int]]) -> Tensor:
        """[P, H] float32 vectors of the pieces of all segments in order, without those of special tokens."""
        import torch

        lengths = [len(segment) for segment in segments]
        groups = cut_batches([length + len(self._before) + len(self._after) for length in lengths], self.max_tokens)
        encoded = torch.cat([self._forward([segments[i] for i in group]) for group in groups])
        starts = [0, *accumulate(lengths)]
        rows = [row for group in groups for i in group for row in range(starts[i], starts[i + 1])]
        vectors = torch.empty_like(encoded)
        vectors[torch.tensor(rows, device=encoded.device)] = encoded
        return vectors

    def _forward(self, segments: Sequence[list[int]]) -> Tensor:
        import torch

        device, first, added = self.model.device, len(self._before), len(self._before) + len(self._after)
        longest = max(len(segment) for segment in segments)
        padding = [self.tokenizer.pad_token_id or 0]
        ids = [self._before + s + self._after + padding * (longest - len(s)) for s in segments]
        lengths = torch.tensor([len(segment) for segment in segments], device=device)[:, None]
        column = torch.arange(longest + added, device=device)
        mask = (column < lengths + added).long()
        hidden = self.model(input_ids=torch.tensor(ids, device=device), attention_mask=mask)[0]
        return hidden[(column >= first) & (column < lengths + first)].float()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a single text."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ValueError(f"expected a tokenizer that puts special tokens around a text, got {bare} inside {whole}")


def build_encoder(name: str) -> PreTrainedModel:
    """The encoder's architecture with random weights; ValueError if its config cannot be read."""
    from transformers import AutoConfig, AutoModel

    model = _read(lambda: AutoModel.from_config(AutoConfig.from_pretrained(**at_commit(name))), name, "config")
    return try_model(model, name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of that name or directory; raises as `build_encoder`."""
    from transformers import AutoTokenizer

    def load() -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(**at_commit(name))
        special_ids(tokenizer)
        tokenizer("\N{SNOWMAN}")  # one without its unknown token fails only at the first word that it lacks
        return tokenizer

    return _read(load, name, "tokenizer")


def _read(load: Callable[[], Any], name: str, what: str) -> Any:
    try:
        return load()
    except Exception as error:  # transformers and tokenizers raise nearly every type for a damaged file
        raise ValueError(
            f"expected the {what} of {name}, which the RadGraph archive names, in a local directory or on the hub, got "
            f"{in_one_line(error)}; without network, or if it is damaged, download its config and tokenizer files (no "
            "weights are needed) and give their directory as `encoder`"
        ) from error


def encoder_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's tensors in weights.th."""
    return {ENCODER + name: tuple(value.shape) for name, value in model.state_dict().items()}


def fill_encoder(model: PreTrainedModel, archive: RadGraphArchive) -> PreTrainedModel:
    """Load the encoder's weights."""
    model.load_state_dict({name: archive.weights[ENCODER + name] for name in model.state_dict()})
    return model
