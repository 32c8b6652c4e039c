"""`mvtrain generate`: in this process, in real ones, at the end of a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from mvtrain.cli import main
from mvtrain.commands.answer_tree import print_tree
from mvtrain.commands.live_view import LiveView
from mvtrain.engine import Engine, Event
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.grammar import Block, Outline, Path, Trace, parse
from tests.tiny import tiny_model, tiny_tokenizer

MVTRAIN = [sys.executable, "-m", "mvtrain.cli"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("qwen3").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generate_prints_one_object_per_prompt(checkpoint, capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "two?"}\n\n{"prompt": "three?"}\n')
    options = ["--max-tokens", "5", "--temperature", "1", "--seed", "3", "--json"]
    assert main(["generate", checkpoint, "--prompt", "one?", "--prompts-file", str(prompts), *options]) == 0
    rows = lines(capsys)
    assert [row["prompt"] for row in rows] == ["one?", "two?", "three?"]
    assert all(row["num_generated"] == 5 and row["finish_reason"] == "length" for row in rows)
    assert main(["generate", checkpoint, "--prompt", "three?", *options]) == 0
    assert lines(capsys)[0]["text"] == rows[2]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt TEXT"),
        (["--prompt", "x", "--temperature", "-1"], "temperature = -1.0, expected at least 0"),
        (["--prompts-file", "no/such/file"], "No such file"),
        (["--prompt", "q", "--device", "foo"], "unknown device 'foo'; give cpu or cuda"),
    ],
)
def test_generate_says_what_is_wrong(checkpoint, capsys, arguments, message):
    assert main(["generate", checkpoint, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["generate", str(folder), "--prompt", "q"]) == 2
        assert f"no checkpoint in {folder}: expected a folder" in capsys.readouterr().err


def test_a_broken_prompts_file_is_named_with_its_line(checkpoint, capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert main(["generate", checkpoint, "--prompts-file", str(file)]) == 2
    assert f'{file}, line 2: expected an object with a "prompt" or "question"' in capsys.readouterr().err


def test_the_tree_shows_paths_with_their_tokens_and_takes_nothing_for_markup(capsys):
    paths = (Path("1", ("[red]left[/red]",)), Path("2", ("right \x1b[31m",)))
    trace = Trace((Block((Outline("1", "one"), Outline("2", "two")), paths, "[bold]both"), "end"))
    tokenizer = tiny_tokenizer()
    sampler = ScriptedSampler(write_script(trace, tokenizer), len(tokenizer), tokenizer.eos_token_id)
    (completion,) = Engine(tiny_model(), tokenizer, sampler=sampler).generate([[1]])
    print_tree("why [not]?", completion)
    output = capsys.readouterr().out
    for shown in ("why [not]?", "[red]left[/red]", "conclusion: [bold]both", "block of 2 paths"):
        assert shown in output
    assert f"path 1: one ({completion.num_path_tokens[0]} tokens)" in output
    assert "\x1b[31m" not in output and f"parallelism {completion.parallelism:.2f}" in output
    assert parse(completion.text) == completion.trace


def test_to_a_pipe_go_events_and_a_summary(checkpoint):
    command = [*MVTRAIN, "generate", checkpoint, "--prompt", "why?", "--n", "2", "--max-tokens", "12"]
    run = subprocess.run([*command, "--temperature", "1"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    events = [json.loads(line) for line in run.stdout.splitlines()]
    *told, summary = events
    assert {event["kind"] for event in told} == {"text", "finish"}
    for request in range(2):
        text = "".join(event["text"] for event in told if event["kind"] == "text" and event["request"] == request)
        (completion,) = [e["completion"] for e in told if e["kind"] == "finish" and e["request"] == request]
        assert text.startswith(completion["text"]) and completion["num_generated"] == 12
    assert summary["kind"] == "summary" and summary["num_generated"] == 24 and summary["num_answers"] == 2
    assert summary["tokens_per_second"] > 0 and summary["cache_peak_tokens"] >= 32
    assert summary["seconds_to_first_token"] > 0


def test_a_reader_that_leaves_ends_it_quietly(checkpoint):
    command = " ".join([*MVTRAIN, "generate", checkpoint, "--prompt", "why?", "--max-tokens", "3000", "--sequential"])
    run = subprocess.run(f"{command} | head -n 2", shell=True, capture_output=True, text=True, timeout=120)
    assert len(run.stdout.splitlines()) == 2 and "rror" not in run.stderr


def test_the_trace_file_holds_every_token(checkpoint, tmp_path, capsys):
    file = tmp_path / "trace.jsonl"
    flags = ["--prompt", "a", "--prompt", "b", "--max-tokens", "6", "--logprobs", "2", "--trace", str(file), "--json"]
    assert main(["generate", checkpoint, *flags]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {"a", "b"}
    for row in rows:
        assert len(row["token_ids"]) == len(row["position_ids"]) == len(row["logprobs"]) == 6
        assert [len(top) for top in row["top_logprobs"]] == [2] * 6
        assert row["nodes"][0]["start"] == 0 and row["nodes"][-1]["end"] == len(row["prompt_ids"]) + 6
    assert main(["generate", checkpoint, "--prompt", "a", "--trace", str(tmp_path / "no" / "folder")]) == 2


def in_a_terminal(command: list[str], seconds: float, interrupt: bool = False, columns: int = 80) -> tuple[str, int]:
    """What a command writes to a terminal, and its exit status."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
        # Where the tests run in the background of a shell, an interrupt is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    output, began, interrupted = b"", time.monotonic(), False
    while time.monotonic() - began < seconds:
        ready, _, _ = select.select([controller], [], [], 0.2)
        try:
            output += os.read(controller, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if interrupt and not interrupted and b"1 running" in output:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(controller)
    return output.decode(errors="replace"), process.wait(timeout=60)


def test_in_a_terminal_the_answer_is_shown_while_it_grows_and_then_as_a_tree(checkpoint):
    command = [*MVTRAIN, "generate", checkpoint, "--prompt", "why [bold]not[/bold]?", "--max-tokens", "200"]
    output, status = in_a_terminal([*command, "--sequential"], seconds=120)
    assert status == 0
    assert "1 running, 0 waiting, 0 finished" in output and "why [bold]not[/bold]?" in output
    assert "200 tokens, 200 on critical paths, parallelism 1.00" in output and "KV cache" in output


def test_an_interruption_shows_what_there_is_and_says_so(checkpoint):
    command = [*MVTRAIN, "generate", checkpoint, "--prompt", "why?", "--max-tokens", "4000", "--sequential"]
    output, status = in_a_terminal(command, seconds=120, interrupt=True)
    assert status == 130 and "interrupted" in output and "Traceback" not in output


def told(*events: Event, prompts=("why?",)) -> LiveView:
    view = LiveView(prompts)
    for event in events:
        view.tell(event)
    return view


def shown(view: LiveView, width: int = 100, height: int = 40) -> str:
    console = Console(width=width, height=height, force_terminal=True, color_system=None, record=True)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


FORK = (Event("text", 0, (), "Let's think", 3), Event("fork", 0, (), paths=("1", "2", "3"), block=0))


def test_paths_stand_side_by_side_and_below_each_other_where_it_is_narrow():
    view = told(*FORK, *(Event("text", 0, (0, k), f"text of {k}", 4 + k, str(k + 1)) for k in range(3)))
    wide = shown(view)
    (titles,) = [line for line in wide.splitlines() if "tokens" in line and "1 · " in line]
    assert all(f"{k + 1} · {4 + k} tokens" in titles for k in range(3))
    (row,) = [line for line in wide.splitlines() if "text of 0" in line]
    assert "text of 1" in row and "text of 2" in row and "Let's think" in wide
    narrow = shown(view, width=40).splitlines()
    assert all(len(line) <= 40 for line in narrow)
    rows = [k for k, line in enumerate(narrow) if "text of" in line]
    assert len(rows) == 3 and len(set(rows)) == 3


def test_the_view_says_what_it_does_not_show():
    events = [Event("text", k, (), "x", 1) for k in range(9)]
    picture = shown(told(*events, prompts=[f"p{k}" for k in range(12)]), height=30)
    assert "9 running (8 not shown), 3 waiting, 0 finished, 9 tokens" in picture
    many = [Event("text", 0, (), "x", 1), Event("fork", 0, (), paths=tuple(map(str, range(40))), block=0)]
    assert "and 37 more paths" in shown(told(*many), width=90)
    done = told(*FORK, Event("text", 0, (0, 0), "a", 1, "1"), Event("end", 0, (0, 0), label="1", reason="end_path"))
    assert "1 · 1 tokens · done" in shown(done)
    inner = [Event("fork", 0, (0, 1), paths=("2.1", "2.2"), block=0), Event("text", 0, (0, 1, 0, 0), "deep", 7, "2.1")]
    assert "2 paths inside (2.1: 7, 2.2: 0)" in shown(told(*FORK, *inner), width=160)
    joined = told(*FORK, Event("join", 0, (), block=0), Event("text", 0, (), "So it is", 3))
    assert "1 · " not in shown(joined) and "So it is" in shown(joined)


def test_nothing_that_a_model_writes_is_obeyed():
    nasty = "[red]x[/red]\x1b[31m\x1b]0;title\x07\x9b31m\r\x08back"
    picture = shown(told(Event("text", 0, (), nasty, 5), prompts=[nasty]))
    assert "[red]x[/red]" in picture
    assert not any(character in picture for character in "\x1b\x07\x9b\r\x08")


def test_the_help_fits_a_screen():
    run = subprocess.run([*MVTRAIN, "generate", "--help"], capture_output=True, text=True, timeout=60)
    assert len(run.stdout.splitlines()) <= 55 and "--min-p" in run.stdout
