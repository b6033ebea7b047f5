"""Reports to graphs with a published RadGraph model, many at a time, with the output of the radgraph package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from radflow.rewards.metrics.encoder import pick_device, place_encoder
from radflow.rewards.radgraph.archive import check_weights, head_shapes, read_archive
from radflow.rewards.radgraph.decoder import SpanDecoder
from radflow.rewards.radgraph.encoder import WordEncoder, build_encoder, encoder_shapes, fill_encoder, load_tokenizer
from radflow.rewards.radgraph.text import Graph, RadGraphConfig, RadGraphModel, graph_of, tokenise

WORDS_AT_ONCE = 4096  # whose vectors and candidate spans are held at a time
# Keys of an encoder's config that do not change its output.
IRRELEVANT = ("_name_or_path", "transformers_version")


class RadGraphAnnotator:
    """Texts to graphs: for each text the package's `entities`, empty for a text without words.

    Identical texts are annotated once and share one graph, which is not to be changed. A graph does not depend on the
    other texts of the call.
    """

    def __init__(self, encoder: WordEncoder, decoder: SpanDecoder, *, model: RadGraphModel, fingerprint: str) -> None:
        self.encoder, self.decoder, self.model = encoder, decoder, model
        self.fingerprint = fingerprint  # of everything that its graphs depend on

    @classmethod
    def load(cls, config: RadGraphConfig) -> RadGraphAnnotator:
        """With an archive, and config and tokenizer of its encoder; ValueError if one is absent or not as published."""
        import torch

        archive = read_archive(config.path, config.model)
        architecture, local = archive.architecture, str(config.encoder) if config.encoder else None
        network = build_encoder(local or architecture.encoder)
        check_weights(archive, encoder_shapes(network) | head_shapes(architecture, network.config.hidden_size))
        device = pick_device(config.device)
        dtype = torch.bfloat16 if config.bf16 else torch.float32
        fill_encoder(network, archive).to(dtype)  # type: ignore[arg-type]  # transformers hides the signature
        place_encoder(network, device)
        tokenizer = load_tokenizer(local or architecture.tokenizer)
        settings = {key: value for key, value in network.config.to_dict().items() if key not in IRRELEVANT}
        parts = [archive.digest, config.model, config.bf16, settings, tokenizer.backend_tokenizer.to_str()]
        fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        words = WordEncoder(network, tokenizer, max_length=architecture.max_length, max_tokens=config.max_tokens)
        return cls(words, SpanDecoder(archive, device=device), model=config.model, fingerprint=fingerprint)

    def __call__(self, texts: Sequence[str]) -> list[Graph]:
        import torch

        words = {text: tokenise(text, self.model) for text in dict.fromkeys(texts)}
        graphs: dict[str, Graph] = {text: {} for text, cut in words.items() if not cut}
        # A caller's autocast would otherwise reach the encoder.
        with torch.inference_mode(), torch.autocast(self.encoder.model.device.type, enabled=False):
            for part in windows({text: cut for text, cut in words.items() if cut}):
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
