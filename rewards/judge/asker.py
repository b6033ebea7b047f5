"""Questions to a language model: nothing is asked twice, within one budget, and what stays unanswered is missing."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from radflow.chat.client import ChatClient
from radflow.chat.endpoint import TroubleError
from radflow.chat.forms import Chat
from radflow.rewards.judge.answer_cache import AnswerCache
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.judge.prompts import Prompt

_POLL_S = 0.1  # while another process asks the same question
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class JudgeStats:
    """Counts of one judge since it was built: answered = questions - missing, of which `cached` were not asked."""

    asked: int = 0  # questions for which at least one request was sent
    cached: int = 0  # answered without a request: known before, asked by another process, or repeated in a batch
    missing: int = 0  # without an answer, for whatever reason
    refused: int = 0  # of them: the model declined
    over_budget: int = 0  # of them: the budget did not allow another request
    retried: int = 0  # requests beyond the first of their question
    spent: float = 0.0  # in the currency of the prices; a request of unknown price counts with the most it can cost


@dataclass
class _Account:
    """What one question cost so far, and how it ended; its requests are paid from the budget of the cache."""

    key: str
    config: JudgeConfig
    cache: AnswerCache
    content: str | None = None  # the reply that answers it
    trouble: str = ""  # why there is none
    requests: int = 0
    refused: int = 0
    over_budget: int = 0
    spent: float = 0.0
    paid: float = 0.0  # for the last request

    def pay(self, chat: Chat, max_tokens: int) -> None:
        # At one token per byte of UTF-8, and 20 per message for its frame.
        size = len(f"{chat.system}{chat.user}".encode("utf-8", "surrogatepass")) + 40
        paid = self._price(size, max_tokens)
        if not self.cache.pay(paid):
            self.over_budget = 1
            raise TroubleError("the budget is used up; raise judge.max_calls or judge.max_money to continue")
        self.requests, self.spent, self.paid = self.requests + 1, self.spent + paid, paid

    def settle(self, usage: tuple[int, int]) -> None:
        cost = self._price(*usage)
        self.cache.settle(self.paid, cost)
        self.spent += cost - self.paid

    def _price(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (prompt_tokens * self.config.input_price + answer_tokens * self.config.output_price) / 1e6


class Asker:
    """Asks many questions at a time, for callers of any thread that wait.

    Raises:
        ValueError: judge.model is not set, the key is not in the environment, httpx or tenacity is not installed, or
            judge.cache is another file.
    """

    def __init__(self, config: JudgeConfig) -> None:
        if config.model is None:
            raise ValueError("expected judge.model, the name under which the endpoint serves its model; it is not set")
        self.config, self.model = config, config.model
        self.last_trouble = ""  # why a question has no answer, in words without report text
        self._client = ChatClient(config, max_tokens=config.max_tokens, temperature=config.temperature)
        claim_s, max_calls, max_money = config.claim_s, config.max_calls, config.max_money
        self._cache = AnswerCache(config.cache, claim_s=claim_s, max_calls=max_calls, max_money=max_money)
        self._threads = ThreadPool(config.concurrency)  # daemons: a program that ends does not wait for them
        self._counts: Counter[str] = Counter()
        self._spent = 0.0

    @property
    def stats(self) -> JudgeStats:
        return JudgeStats(**self._counts, spent=self._spent)

    def close(self) -> None:
        """End connections and threads. A program that ends need not call it."""
        self._threads.terminate()
        self._client.close()
        self._cache.close()

    def ask(self, prompt: Prompt[T], questions: Sequence[Sequence[str]]) -> list[T | None]:
        """An answer to each question, or None if it is missing.

        Args:
            questions: the texts of each, one per title of the prompt.
        """
        keys = [prompt.key(self.model, texts) for texts in questions]
        texts = dict(zip(keys, questions, strict=True))
        replies, accounts, left = self._cache.find(texts), dict[str, _Account](), threading.Event()
        ask_one = partial(self._ask, prompt, texts, left)
        try:
            while waiting := [key for key in texts if key not in replies and key not in accounts]:
                for account in self._threads.imap_unordered(ask_one, waiting):
                    if account is not None:
                        accounts[account.key] = account
                        replies |= {} if account.content is None else {account.key: account.content}
                if others := [key for key in waiting if key not in accounts]:
                    time.sleep(_POLL_S)
                    replies |= self._cache.find(others)
        finally:
            left.set()  # after Ctrl-C nothing further is asked
        self._count(keys, replies, accounts)
        try:
            return [prompt.parse(replies[key]) if key in replies else None for key in keys]
        except (ValueError, RecursionError) as error:  # replies are kept only if they can be read
            raise ValueError(
                f"{self.config.cache}: expected answers, got a damaged one ({error}); restore it, or choose another "
                "judge.cache, for which they are asked again"
            ) from error

    def _ask(
        self, prompt: Prompt[T], texts: dict[str, Sequence[str]], left: threading.Event, key: str
    ) -> _Account | None:
        """How asking ended; None if another process asks this question, or has just done so."""
        if left.is_set() or not self._cache.claim(key):
            return None
        account = _Account(key, self.config, self._cache)
        try:
            for again in (False, True):
                reply = self._client.complete(prompt.chat(texts[key], again=again), account)
                if reply.refused:
                    account.refused, account.trouble = 1, "the model declined to answer"
                    break
                try:
                    prompt.parse(reply.content)
                except (ValueError, RecursionError) as error:
                    account.trouble = f"a reply of wrong form: {error}"
                else:
                    account.content = reply.content
                    self._cache.store(key, reply.content, prompt=prompt.version, model=self.model)
                    break
        except TroubleError as trouble:
            account.trouble = str(trouble)
        finally:
            self._cache.release(key)
        return account

    def _count(self, keys: Sequence[str], replies: dict[str, str], accounts: dict[str, _Account]) -> None:
        asked = {key for key, account in accounts.items() if account.requests}
        missing = sum(key not in replies for key in keys)
        self._counts.update(asked=len(asked), missing=missing, cached=len(keys) - missing - len(asked & replies.keys()))
        for account in accounts.values():
            self._counts.update(
                refused=account.refused, over_budget=account.over_budget, retried=max(0, account.requests - 1)
            )
            self._spent += account.spent
            if account.content is None and account.trouble != self.last_trouble:
                self.last_trouble = account.trouble
                _log.warning("the judge leaves questions unanswered: %s", account.trouble)
