"""Settings of the LLM judge: its endpoint, its cache and its budget."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from radflow.chat.config import EndpointConfig


@dataclass(frozen=True)
class JudgeConfig(EndpointConfig):
    """An OpenAI-compatible endpoint that answers questions about reports."""

    section: ClassVar[str] = "judge"

    url: str | None = "http://127.0.0.1:8000/v1"
    """Of the API; /chat/completions is appended. Only this machine, unless allow_external is set."""
    cache: Path = Path("runs/judge.sqlite")
    """SQLite file of answers and spending, shared by all runs and processes of this machine; on a local disk."""
    claim_s: float = 30.0
    """Seconds after which a question that a dead process was asking is free for others."""
    temperature: float | None = 0.0
    """Of the judge's sampling; None leaves it to the server."""
    max_tokens: int = 300
    """Longest answer; one that is cut is asked for again with 4 and 16 times as many."""
    max_calls: int | None = None
    """Budget: requests that all users of the cache file may make together, ever; None for no limit."""
    max_money: float | None = None
    """Budget: what they may spend together, in the currency of the prices; None for no limit."""
    input_price: float = 0.0
    """Of a million prompt tokens."""
    output_price: float = 0.0
    """Of a million answer tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("max_tokens", least=1)
        self.check("claim_s", above=0)
        self.check("max_calls", "max_money", "temperature", "input_price", "output_price", least=0)
        if self.max_money is not None and self.input_price == self.output_price == 0:
            raise ValueError("judge.max_money needs judge.input_price and judge.output_price, both are 0")


ANSWERS_DEPEND_ON = ("model", "temperature", "max_tokens")  # the other settings may change within a run
