"""Reports from any OpenAI-compatible vision endpoint: images travel as data URIs, in one message with the question."""

import asyncio
import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from data.studies import Study, load_image
from rewards.judge_client import ChatClient, TroubleError
from rewards.judge_config import JudgeConfig, is_loopback, read_key
from rewards.judge_prompts import RESPONSE_FORMATS

PLAIN = RESPONSE_FORMATS.index(None)  # the reply is text, not JSON
PROMPT = (
    "Write the report of this chest radiograph as a radiologist does, with the sections Findings and Impression, in "
    "the form: Findings: ... Impression: ..."
)


@dataclass(frozen=True)
class EndpointConfig:
    """A served model, how it is asked, and how patiently."""

    url: str
    """Of the API, such as http://127.0.0.1:8000/v1; /chat/completions is appended."""
    model: str
    """Its name, as the endpoint knows it."""
    prompt: str = PROMPT
    """The question; indication and comparison of the study are added."""
    api_key_env: str | None = None
    """Name of the environment variable with the key."""
    allow_external: bool = False
    """Images may leave this machine: needed for every url that is not a loopback address."""
    max_side: int = 1024
    """Larger images are made smaller, in pixels."""
    max_tokens: int = 512
    """Token limit of a report."""
    temperature: float | None = 0.0
    """0 is greedy; None leaves it to servers that accept no other than their own."""
    concurrency: int = 8
    """Studies asked at a time."""
    retries: int = 4
    """Further requests of a study after faults of the server."""
    backoff_s: float = 1.0
    """Wait before the first retry, in seconds; it doubles with each."""
    timeout_s: float = 300.0
    """Seconds that one request may take."""

    def __post_init__(self) -> None:
        if not self.allow_external and not is_loopback(self.url):
            raise ValueError(
                f"--endpoint {self.url} is not this machine, and images of patients would leave it; use a server at "
                "127.0.0.1, or add --allow-external if the data's owner permits it"
            )
        if self.max_side < 32:
            raise ValueError(f"expected --max-side of at least 32 pixels, got {self.max_side}")
        try:
            self.client()
        except ValueError as error:  # in the words of the judge's options
            raise ValueError(str(error).replace("judge.", "endpoint ")) from error

    def client(self) -> JudgeConfig:
        """The same for the client that the judge uses too."""
        return JudgeConfig(
            url=self.url, model=self.model, api_key_env=self.api_key_env, allow_external=self.allow_external,
            concurrency=self.concurrency, timeout_s=self.timeout_s, retries=self.retries, backoff_s=self.backoff_s,
            temperature=self.temperature, max_tokens=self.max_tokens,
        )  # fmt: skip


class Endpoint:
    """Asks for reports.

    Raises:
        ValueError: the key is not set, or httpx is not installed.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config, self._client_config = config, config.client()
        self._key = read_key(self._client_config)

    def reports(self, studies: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
        """(report, False) of each study, in order; the protocol does not say reliably whether a report was cut.

        Raises:
            ValueError: a study got no report after all retries, or the model refused it; names the study.
        """
        return asyncio.run(self._all(studies, title))

    async def _all(self, studies: Sequence[Study], title: str) -> list[tuple[str, bool]]:
        client, gate = ChatClient(self._client_config, self._key), asyncio.Semaphore(self.config.concurrency)
        try:
            with tqdm(total=len(studies), desc=title, unit="report", disable=None, leave=False) as bar:

                async def one(study: Study) -> tuple[str, bool]:
                    async with gate:  # images are encoded when it is their turn, so that few are held
                        report = await self._ask(client, study)
                    bar.update()
                    return report, False

                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(study)) for study in studies]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await client.close()
        return [task.result() for task in tasks]

    async def _ask(self, client: ChatClient, study: Study) -> str:
        config, chat = self.config, question(study, self.config)
        for attempt in range(config.retries + 1):
            try:
                reply = await client.send(chat, PLAIN)
            except TroubleError as trouble:
                if not trouble.retry or attempt == config.retries:
                    raise ValueError(
                        f"study {study.id}: no report from {config.url} after {attempt + 1} requests: {trouble}; start "
                        "the command again when the server is well, finished parts are kept"
                    ) from None
                wait = config.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait, min(trouble.wait_s or 0.0, 60.0)))
                continue
            if reply.refused or not reply.content.strip():
                what = "refused to report it" if reply.refused else "answered with an empty report"
                raise ValueError(
                    f"study {study.id}: the model {config.model} {what}; drop the study, or change --prompt"
                )
            return reply.content.strip()
        raise AssertionError("the last attempt returns or raises")


def question(study: Study, config: EndpointConfig) -> list[dict[str, object]]:
    """The chat about a study: context and images of one user message."""
    context = {"Indication": study.indication, "Comparison": study.comparison}
    text = "\n".join([config.prompt, *(f"{name}: {value}" for name, value in context.items() if value)])
    parts: list[dict[str, object]] = []
    for title, sources in (("Earlier study:", study.prior_images), ("This study:", study.images)):
        if sources and study.prior_images:
            parts.append({"type": "text", "text": title})
        for source in sources:
            image = load_image(source, study_id=study.id, window=study.window)
            parts.append({"type": "image_url", "image_url": {"url": png_uri(image, config.max_side)}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def png_uri(image: Image.Image, side: int) -> str:
    """An image as PNG in a data URI, at most `side` pixels wide and high: lossless, as the model would see the file."""
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
