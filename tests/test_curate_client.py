"""The client of the curator against a real server on the loopback network, which fails in every way it can."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise

import pytest

pytest.importorskip("openai")

from mvtrain.curate.client import (
    Client,
    ClientConfig,
    EndpointRefuses,
    RequestFailed,
)
from mvtrain.curate.faults import judge, read_error
from tests.chat_server import ChatServer, Fault, Reply
from tests.curate_asking import KEY, always, ask, config, echo, environment, first, question, run, until

__all__ = ["environment"]


# What is asked, and what comes back


def test_a_question_goes_out_as_it_should():
    with ChatServer(echo) as server:
        changes = {"temperature": 0.25, "extra_body": {"top_p": 0.9}, "token_limit_field": "max_completion_tokens"}
        answer, snapshot = run(server, lambda client: ask(client, "why?", max_tokens=77), **changes)
    assert (answer.text, answer.finish_reason, answer.cached) == ("answer to why?", "stop", False)
    assert server.requests[0].path == "/v1/chat/completions"
    expected = {"model": "m", "messages": question("why?"), "temperature": 0.25, "top_p": 0.9}
    assert server.requests[0].body == {**expected, "max_completion_tokens": 77}
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert snapshot.total.requests == snapshot.total.answers == 1
    assert snapshot.total.retries == 0 and not snapshot.total.failures


@pytest.mark.parametrize(
    ("reply", "text", "reason", "refusal"),
    [
        (Fault.no_content(), "", "stop", ""),
        (Reply(""), "", "stop", ""),
        (Fault.refusal("No."), "", "refusal", "No."),
        (Fault.length("half a sen"), "half a sen", "length", ""),
        (Reply("", finish_reason="content_filter"), "", "content_filter", ""),
        (Reply("fine", finish_reason=None), "fine", "stop", ""),
        (Reply("a\ud800b"), "a?b", "stop", ""),
    ],
)
def test_odd_answers_are_handed_on_and_kept(tmp_path, reply, text, reason, refusal):
    with ChatServer(lambda request: reply) as server:
        for cached in (False, True):
            answer, _ = run(server, ask, tmp_path / "cache")
            assert (answer.text, answer.finish_reason, answer.refusal) == (text, reason, refusal)
            assert answer.cached == cached
    assert server.count == 1


def test_content_in_parts_is_joined():
    body = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}
    with ChatServer(echo, always(Fault.raw(json.dumps(body)))) as server:
        answer, _ = run(server, ask)
    assert answer.text == "ab"


def test_local_servers_need_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer(echo) as server:
        assert run(server, ask)[0].text == "answer to q"


def test_address_and_key_come_from_the_environment(monkeypatch):
    with ChatServer(echo) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OTHER_KEY", "another-key-12345")

        async def main():
            async with Client(ClientConfig("m", api_key_env="OTHER_KEY")) as client:
                return await ask(client)

        assert asyncio.run(main()).text == "answer to q"
    assert server.requests[0].headers["authorization"] == "Bearer another-key-12345"


def test_messages_that_change_while_waiting_do_not_change_the_question():
    with ChatServer(lambda request: Reply("ok", delay=0.05)) as server:

        async def work(client):
            messages = question("first")
            task = asyncio.create_task(client.ask(messages, stage="s", max_tokens=5))
            await asyncio.sleep(0)
            messages.append({"role": "user", "content": "second"})
            await task

        run(server, work)
    assert server.requests[0].body["messages"] == question("first")


def test_text_that_cannot_be_sent_fails_alone():
    with ChatServer(echo) as server:
        error, _ = run(server, lambda client: ask(client, "a\ud800"))
    assert isinstance(error, RequestFailed) and "no valid text" in str(error)
    assert server.count == 0


# What goes wrong once


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(408), "server error"),
        (Fault.status(409), "server error"),
        (Fault.status(429), "rate limit"),
        (Fault.status(429, retry_after="0.01"), "rate limit"),
        (Fault.status(500), "server error"),
        (Fault.status(503, retry_after="0"), "server error"),
        (Fault.html(502), "server error"),
        (Fault.drop(), "connection lost"),
        (Fault.drop_in_body(), "connection lost"),
        (Fault.cut_json(), "no JSON"),
        (Fault.html(), "no JSON"),
        (Fault.raw("[1, 2]"), "no JSON"),
        (Fault.raw(""), "no JSON"),
        (Fault.empty_choices(), "no completion"),
        (Fault.raw('{"choices": [{"finish_reason": "stop"}]}'), "no completion"),
        (Fault.raw('{"error": {"message": "upstream", "code": 502}}'), "server error"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}{value.code}",
)
def test_a_fault_that_passes_is_tried_again(fault, kind):
    with ChatServer(echo, first(fault)) as server:
        answer, snapshot = run(server, ask)
    assert answer.text == "answer to q"
    assert server.count == 2
    assert snapshot.total.failures == {kind: 1}
    assert (snapshot.total.requests, snapshot.total.answers, snapshot.total.retries) == (2, 1, 1)


@pytest.mark.parametrize("fault", [Fault.hang(), Fault.trickle(0.02)], ids=lambda fault: fault.kind)
def test_an_answer_that_never_ends_is_given_up(fault):
    """The trickle: every read brings a byte in time, so only a limit on the whole ends it."""
    with ChatServer(echo, first(fault)) as server:
        answer, snapshot = run(server, ask, timeout_s=0.5)
    assert answer.text == "answer to q"
    assert snapshot.total.failures == {"time-out": 1} and snapshot.total.unknown == 1


def test_what_does_not_pass_fails_after_so_many_attempts():
    with ChatServer(echo, always(Fault.status(500, "the disk is on fire"))) as server:
        error, snapshot = run(server, ask, max_retries=3)
    assert isinstance(error, RequestFailed) and error.kind == "server error"
    assert "after 4 attempts" in str(error) and "the disk is on fire" in str(error)
    assert server.count == 4 and snapshot.total.retries == 3


def test_pauses_grow():
    with ChatServer(echo, always(Fault.status(500))) as server:
        run(server, ask, max_retries=3, backoff_s=0.08)
    times = [seen.began for seen in server.requests]
    for pause, least in zip((b - a for a, b in pairwise(times)), (0.04, 0.08, 0.16), strict=True):
        assert pause >= least - 0.005


def test_a_prompt_that_is_too_long_is_rejected_with_the_words_of_the_endpoint():
    words = "This model's maximum context length is 8192 tokens, but 9000 were given"
    with ChatServer(echo, always(Fault.status(400, words, error_code="context_length_exceeded"))) as server:
        error, _ = run(server, ask)
    assert isinstance(error, RequestFailed) and words in str(error)
    assert server.count == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(401, "bad key"),
        Fault.status(403, "not yours"),
        Fault.status(404, "no such model"),
        Fault.status(402, "pay first"),
        Fault.status(429, "quota", error_code="insufficient_quota"),
        Fault.status(400, "use max_completion_tokens", error_code="unsupported_parameter"),
        Fault.status(429, "slow down", retry_after="3600"),
        Fault.status(503, "maintenance", retry_after="86400"),
    ],
    ids=lambda fault: str(fault.code),
)
def test_a_refusal_stops_everything_at_once(fault):
    with ChatServer(echo, always(fault)) as server:

        async def work(client):
            with pytest.raises(EndpointRefuses) as caught:
                await ask(client)
            with pytest.raises(EndpointRefuses):
                await ask(client, "another")
            return str(caught.value)

        words, _ = run(server, work)
    assert server.count == 1, "what is asked afterwards is not sent"
    assert server.url in words and json.loads(fault.body)["error"]["message"] in words


def test_nothing_listens():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"

    async def main():
        async with Client(ClientConfig("m", url, max_retries=1, backoff_s=0.01)) as client:
            with pytest.raises(EndpointRefuses, match="is the server running") as caught:
                await ask(client)
            assert url in str(caught.value)
            assert client.snapshot().total.failures == {"no connection": 2}

    asyncio.run(main())


def test_many_failures_in_a_row_stop_everything_and_an_answer_in_between_does_not():
    def faults(request, n):
        return None if "good" in request["messages"][0]["content"] else Fault.status(500)

    async def work(client):
        told = []
        for text in ("a", "b", "good", "c", "d", "e", "f"):
            try:
                told.append((await ask(client, text)).text)
            except (RequestFailed, EndpointRefuses) as error:
                told.append(type(error).__name__)
        return told

    with ChatServer(echo, faults) as server:
        told, _ = run(server, work, max_retries=0, stop_after_failures=3)
    failed, stopped = "RequestFailed", "EndpointRefuses"
    assert told == [failed, failed, "answer to good", failed, failed, stopped, stopped]


def test_an_outage_rejects_nobody():
    """Every question that was on its way when the endpoint fell over learns that all stops."""
    down = []

    async def work(client):
        await asyncio.gather(*(ask(client, f"before {i}") for i in range(5)))
        down.append(True)
        return await asyncio.gather(*(ask(client, str(i)) for i in range(30)), return_exceptions=True)

    with ChatServer(echo, lambda request, n: Fault.status(503, "down") if down else None) as server:
        errors, _ = run(server, work, max_retries=2, backoff_s=0.2)
    assert {type(error) for error in errors} == {EndpointRefuses}


def test_a_server_that_goes_away_rejects_nobody():
    async def main():
        with ChatServer(lambda request: Reply("x", delay=0.2)) as server:
            client = Client(config(server, max_retries=2, backoff_s=0.2))
            await client.__aenter__()
            await ask(client, "before")
            tasks = [asyncio.create_task(ask(client, str(i))) for i in range(5)]
            await until(lambda: server.count == 6)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        await client.__aexit__()
        return errors

    assert {type(error) for error in asyncio.run(main())} == {EndpointRefuses}


@pytest.mark.parametrize(
    ("status", "code", "message", "then"),
    [
        (400, "context_length_exceeded", "", "reject"),
        (400, "model_not_found", "", "stop"),
        (403, "", "Your input was flagged by moderation", "reject"),
        (413, "", "", "reject"),
        (422, "", "", "reject"),
        (429, "rate_limit_exceeded", "Request too large for gpt-4o: Limit 10000, Requested 20000", "reject"),
        (429, "rate_limit_exceeded", "Rate limit reached", "again"),
        (529, "", "overloaded", "again"),
    ],
)
def test_what_follows_from_a_status(status, code, message, then):
    said = read_error(json.dumps({"error": {"message": message, "code": code}}), str)
    assert judge(status, {}, said).then == then


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "m"}}', "m"),
        ('{"object": "error", "message": "vllm says"}', "vllm says"),
        ('{"detail": "fastapi says"}', "fastapi says"),
        ('{"error": "plain"}', '"plain"'),
        ("<h1>\n  Bad   gateway</h1>", "<h1> Bad gateway</h1>"),
        ("", "no words"),
    ],
)
def test_words_of_many_kinds_of_errors(body, words):
    assert read_error(body, str).words.strip('"') == words.strip('"')
