"""`mvtrain curate` around the curating: progress, interruption, the lock, settings, input formats, the hub."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvtrain.cli import main
from mvtrain.curate.progress import CurationProgress
from mvtrain.curate.records import Done, Source
from mvtrain.curate.spending import SpendingSnapshot, StageSpending
from mvtrain.folders import FolderLock
from tests import curate_model
from tests.chat_server import ChatServer, Reply
from tests.curate_chains import CHAINS

pytest.importorskip("openai")
pytest.importorskip("rapidfuzz")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_endpoint_in_the_environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def chains(tmp_path) -> Path:
    file = tmp_path / "chains.jsonl"
    file.write_text("".join(json.dumps(chain.row()) + "\n" for chain in CHAINS[:4]))
    return file


def curate(source: Path, out: Path, server: ChatServer, *flags: str) -> int:
    return main(["curate", str(source), str(out), "--model", "played", "--base-url", server.url, *flags])


def accepted(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (out / "traces.jsonl").read_text().splitlines()]


def test_the_log_says_how_far_it_is(chains, tmp_path, capsys):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server) == 0
    said = capsys.readouterr()
    assert f"curate: 4 of 4 records, 4 accepted, 0 rejected, {len(server.requests)} requests, 0 cached" in said.err
    assert f"4 accepted, 0 rejected: {tmp_path / 'out'}" in said.out


def test_the_table_counts_by_stage():
    stages = {"rewrite": StageSpending(requests=5, answers=4, cached=2, retries=1, cost=0.5, failures={"time-out": 1})}
    snapshot = SpendingSnapshot(stages, StageSpending(requests=5, cached=2), 0.5, 0.0, 0.0, None)
    progress = CurationProgress(4, lambda: snapshot, io.StringIO())
    for stage, what in (("groups", "begin"), ("rewrite", "begin"), ("rewrite", "end"), ("rewrite", "retry")):
        progress.stage(stage, what)
    progress.finished(Done(0, Source("a", "q", "c", "1"), "accepted"))
    cells = [list(column.cells) for column in progress.table().columns]
    rows = {row[0]: row[1:] for row in zip(*cells, strict=False)}
    assert rows["groups"][:3] == ("1", "0", "0") and rows["rewrite"][:6] == ("0", "1", "1", "4", "2", "1")
    assert progress.line().startswith(
        "curate: 1 of 4 records, 1 accepted, 0 rejected, 5 requests, 2 cached, 1 repeated, $0.50, "
    )
    assert progress.line().endswith(" left")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_files_and_goes_on(chains, tmp_path, how):
    """Ctrl-C, or a scheduler, once a record is finished and others are on their way."""

    def play(request: dict) -> Reply:
        slow = curate_model.chain_of(request).id != "absolute"
        return Reply(curate_model.competent(request), delay=30.0 if slow else 0.0)

    out, journal = tmp_path / "out", tmp_path / "out" / "work" / "finished.jsonl"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # not so in the background
    code = f"import signal, sys; from mvtrain.cli import main; {heard}; sys.exit(main())"
    with ChatServer(play) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "curate", str(chains), str(out), "--model", "m", "--base-url", server.url],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not (journal.exists() and journal.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in errors and "Traceback" not in errors
    assert not (out / ".lock").exists() and accepted(out) == ["absolute"]
    with ChatServer(curate_model.competent) as server:
        assert main(["curate", str(chains), str(out), "--model", "m", "--base-url", server.url]) == 0, "another address"
        asked = {curate_model.chain_of(seen.body).id for seen in server.requests}
    assert asked == {chain.id for chain in CHAINS[1:4]}, "what is finished is not made again"
    assert accepted(out) == [chain.id for chain in CHAINS[:4]]


def test_two_at_once_in_a_folder_are_refused(chains, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    lock = FolderLock(tmp_path / "out", "curation")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server) == 2
        assert "another curation works here" in capsys.readouterr().err and not server.requests
        lock.release()
        assert curate(chains, tmp_path / "out", server) == 0


def test_settings_in_a_file_and_flags_before_them(chains, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("model: from-file\ntemperature: 0.3\nextra_body: {top_p: 0.9}\nmax_tokens: 700\n")
    with ChatServer(curate_model.competent) as server:
        flags = ["--config", str(file), "--base-url", server.url, "--temperature", "0.1", "--rows", "1"]
        assert main(["curate", str(chains), str(tmp_path / "out"), *flags]) == 0
    body = server.requests[0].body
    assert [body[k] for k in ("model", "temperature", "top_p", "max_tokens")] == ["from-file", 0.1, 0.9, 700]
    for text, said in (("modle: x", "unknown modle; known:"), ("- a", "a mapping of settings"), ("a: [", "not YAML")):
        file.write_text(text)
        assert main(["curate", str(chains), str(tmp_path / "other"), "--config", str(file)]) == 2
        assert said in capsys.readouterr().err


def test_a_users_own_prompt_is_what_the_model_reads(chains, tmp_path):
    (tmp_path / "prompts").mkdir()
    ours = (ROOT / "mvtrain" / "curate" / "prompts_text" / "summary.md").read_text()
    (tmp_path / "prompts" / "summary.md").write_text(ours + "\nWrite titles in French.")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, "--prompts", str(tmp_path / "prompts"), "--rows", "1") == 0
    assert server.requests[0].body["messages"][0]["content"].endswith("Write titles in French.")


def test_parquet_and_responses_with_think_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"problem": c.question, "response": f"<think>\n{c.text}\n</think>\n\n\\boxed{{{c.answer}}}", "answer": c.answer}
        for c in CHAINS[:2]
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with ChatServer(curate_model.competent) as server:
        assert curate(tmp_path / "rows.parquet", tmp_path / "out", server) == 0
    assert accepted(tmp_path / "out") == ["row-1", "row-2"]


def test_push_sends_traces_and_card_and_nothing_else(chains, tmp_path, monkeypatch, capsys):
    sent = []
    api = SimpleNamespace(
        create_repo=lambda name, **options: sent.append((name, options)),
        upload_folder=lambda **options: sent.append(options),
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, "--push", "me/traces") == 0
    assert sent[0] == ("me/traces", {"repo_type": "dataset", "exist_ok": True})
    assert sent[1]["allow_patterns"] == ["traces.jsonl", "README.md"] and sent[1]["repo_id"] == "me/traces"

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no such token")

    api.create_repo = refuse
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, "--overwrite", "--push", "me/traces") == 2
    assert "--push me/traces: no such token; the folder is complete" in capsys.readouterr().err


def test_settings_that_finished_nothing_bind_nobody(chains, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--base-url", "http://127.0.0.1:9/v1", "--retries", "0"]
    assert main(["curate", str(chains), str(out), "--model", "wrong", *flags]) == 3
    assert "is the server running, and base_url right?" in capsys.readouterr().err
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, out, server) == 0
    assert len(accepted(out)) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "m"], "OPENAI_API_KEY is not set"),
        (["--model", "m", "--base-url", "http://localhost:1/v1", "--api-key-env", "NOPE"], "NOPE is not set"),
        (["--model", "m", "--extra-body", "{bad"], "not JSON"),
        (["--model", "m", "--extra-body", "[1]"], "expected a JSON object"),
    ],
)
def test_mistakes_leave_no_folder(flags, said, chains, tmp_path, capsys):
    with contextlib.suppress(SystemExit):
        assert main(["curate", str(chains), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_is_no_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k" * 20)
    assert main(["curate", str(tmp_path), str(tmp_path / "out"), "--model", "m"]) == 2
    assert f"{tmp_path} is a folder; name a file in it" in capsys.readouterr().err


def test_rows_that_stand_twice_are_told(chains, tmp_path, capsys):
    lines = chains.read_text().splitlines()[:2]
    chains.write_text("\n".join([*lines, lines[0]]) + "\n")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server) == 0
    assert "1 of them have the question and the chain of another" in capsys.readouterr().out
    assert "**Repeated**: 1 of them" in (tmp_path / "out" / "README.md").read_text()


def test_a_sentence_that_is_not_the_reference_is_not_wrong():
    """It may say the same; a bare answer that is another one is wrong."""
    from mvtrain.commands.curate import _same_answer
    from mvtrain.evaluate.grading_pool import GradingPool

    cases = {
        ("7", "7"): True,
        ("8", "7"): False,
        (r"\frac{1}{2}", "0.5"): True,
        (r"2 \sqrt{3} \text{cm}", "5"): False,
        ("the field has seven rows of apples", "7"): None,
        (r"There are many, but \boxed{8}.", "7"): False,
        ("x" * 200, "7"): None,
    }

    async def same_all() -> list[bool | None]:
        with GradingPool() as pool:
            return [await _same_answer(pool, *case) for case in cases]

    assert dict(zip(cases, asyncio.run(same_all()), strict=True)) == cases
