"""Reports to graphs with a published RadGraph model, many at a time, with the output of the radgraph package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards.radgraph_archive import read_archive
from rewards.radgraph_decoder import SpanDecoder
from rewards.radgraph_encoder import WordEncoder, build_encoder, encoder_shapes, fill_encoder, load_tokenizer
from rewards.radgraph_text import Graph, RadGraphModel, graph_of, tokenise
from rewards.radgraph_weights import check_weights, head_shapes

# Words whose vectors and candidate spans are held at a time.
WORDS_AT_ONCE = 4096
# What an encoder's config says about where it was read, and by what.
PLACES = ("_name_or_path", "transformers_version")


class RadGraphAnnotator:
    """Texts to graphs: for each text the package's `entities`, empty for a text without words.

    Identical texts are annotated once and share one graph, which is not to be changed. The result does not depend on
    what a text is annotated beside.
    """

    def __init__(self, encoder: WordEncoder, decoder: SpanDecoder, *, model: RadGraphModel, fingerprint: str) -> None:
        self.encoder, self.decoder, self.model = encoder, decoder, model
        self.fingerprint = fingerprint  # of everything that its graphs depend on

    @classmethod
    def load(
        cls,
        path: Path | None,
        *,
        model: RadGraphModel,
        encoder: Path | None,
        device: str,
        max_tokens: int,
        bf16: bool,
    ) -> RadGraphAnnotator:
        """From an archive; the arguments are those of `RadGraphConfig`.

        Raises:
            ValueError: the archive, or config and tokenizer of its encoder, are absent or not as published.
        """
        import torch

        archive = read_archive(path, model)
        architecture, local = archive.architecture, str(encoder) if encoder else None
        network = build_encoder(local or architecture.encoder)
        hidden_size = network.config.hidden_size
        check_weights(archive, encoder_shapes(network) | head_shapes(architecture, hidden_size))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        fill_encoder(network, archive).to(device, torch.bfloat16 if bf16 else torch.float32)
        tokenizer = load_tokenizer(architecture, local)
        settings = {key: value for key, value in network.config.to_dict().items() if key not in PLACES}
        parts = [archive.digest, model, bf16, settings, tokenizer.backend_tokenizer.to_str()]
        return cls(
            WordEncoder(network, tokenizer, max_length=architecture.max_length, max_tokens=max_tokens),
            SpanDecoder(archive, device=device),
            model=model,
            fingerprint=hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest(),
        )

    def __call__(self, texts: Sequence[str]) -> list[Graph]:
        import torch

        graphs: dict[str, Graph] = {}
        words: dict[str, list[str]] = {}
        for text in dict.fromkeys(texts):
            cut = tokenise(text, self.model)
            if cut:
                words[text] = cut
            else:
                graphs[text] = {}
        # A caller's autocast would otherwise reach the encoder.
        with torch.inference_mode(), torch.autocast(self.encoder.model.device.type, enabled=False):
            for part in windows(words):
                reports = [words[text] for text in part]
                found = self.decoder(self.encoder(reports), [len(report) for report in reports])
                for text, report, (spans, relations) in zip(part, reports, found, strict=True):
                    graphs[text] = graph_of(report, spans, relations)
        return [graphs[text] for text in texts]


def windows(words: dict[str, list[str]]) -> Iterator[list[str]]:
    """Texts in order of length, so many at a time that their words stay within WORDS_AT_ONCE, or one longer text."""
    part: list[str] = []
    held = 0
    for text in sorted(words, key=lambda text: len(words[text])):
        if part and held + len(words[text]) > WORDS_AT_ONCE:
            yield part
            part, held = [], 0
        part.append(text)
        held += len(words[text])
    if part:
        yield part
