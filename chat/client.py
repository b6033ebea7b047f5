"""Chats with a served model: what its server accepts is learned from what it refuses, and used from then on."""

import threading
from functools import partial
from typing import Protocol

from radflow.chat.config import EndpointConfig
from radflow.chat.endpoint import Endpoint, TroubleError
from radflow.chat.forms import Chat, Form
from radflow.chat.replies import Reply, parse_completion

_REFUSES_FORM = {400, 422, 500, 501}  # some servers fail where they should refuse
_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt"}  # error codes of filters before the model


class Budget(Protocol):
    """Pays for requests: each before it is sent, with the most it can cost."""

    def pay(self, chat: Chat, max_tokens: int) -> None:
        """Raises TroubleError if the budget does not hold it."""

    def settle(self, usage: tuple[int, int]) -> None:
        """The tokens of prompt and answer that the last request cost; not called if that is unknown."""


class _Unlimited:
    def pay(self, chat: Chat, max_tokens: int) -> None: ...

    def settle(self, usage: tuple[int, int]) -> None: ...


UNLIMITED = _Unlimited()


class ChatClient:
    """Asks one model, from any number of threads; ValueError as of `Endpoint`.

    Args:
        max_tokens: of a reply.
        temperature: of sampling; None leaves it to the server.
    """

    def __init__(self, config: EndpointConfig, *, max_tokens: int, temperature: float | None) -> None:
        self._endpoint, self._model = Endpoint(config), config.model
        self._max_tokens, self._temperature = max_tokens, temperature
        self._form = Form()
        self._proven: Form | None = None  # the form of the last reply
        self._first, self._tried = threading.Lock(), False

    def close(self) -> None:
        self._endpoint.close()

    def complete(self, chat: Chat, budget: Budget = UNLIMITED) -> Reply:
        """The reply to a chat; its content may be empty.

        Raises:
            TroubleError: there is none after all retries, or it was not paid for.
        """
        if not self._tried:  # one question learns what the server accepts, the others use it
            with self._first:
                if not self._tried:
                    try:
                        return self._learn(chat, budget)
                    finally:
                        self._tried = True
        return self._learn(chat, budget)

    def _learn(self, chat: Chat, budget: Budget) -> Reply:
        form: Form | None = self._form
        while form is not None:
            try:
                reply = self._endpoint.retry(partial(self._complete, chat, form, budget))
            except TroubleError as trouble:
                if trouble.code in _FILTERED:
                    return Reply("", refused=True)
                plainer = form.plainer(trouble.message, chat) if trouble.status in _REFUSES_FORM else None
                # What a server accepted before it refuses for what this question holds.
                if plainer is None or form == self._proven or form.room > self._form.room:
                    raise
                form = plainer
            else:
                proven, answered = form == self._proven, form
                form = form.adapted(chat, reply, max_tokens=self._max_tokens, proven=proven)
                if form is None:
                    self._form = self._proven = answered
        return reply

    def _complete(self, chat: Chat, form: Form, budget: Budget) -> Reply:
        """One request in one form."""
        body = form.body(chat, model=self._model, max_tokens=self._max_tokens, temperature=self._temperature)
        budget.pay(chat, self._max_tokens * form.room)
        try:
            data = self._endpoint.post_once("/chat/completions", body, private=chat.private, public=chat.system)
            reply = parse_completion(data)
        except TroubleError as trouble:
            if not trouble.charged:
                budget.settle((0, 0))
            # A server that fails for a field, and says which, will fail again.
            if trouble.status in _REFUSES_FORM and form.plainer(trouble.message, chat, only_named=True):
                trouble.retry = trouble.retry and form == self._proven
            raise
        except ValueError as error:
            raise TroubleError(f"a reply that is {error}", retry=True) from None
        if reply.usage is not None:
            budget.settle(reply.usage)
        return reply
