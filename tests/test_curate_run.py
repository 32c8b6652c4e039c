"""`mvtrain curate` against a real server: a competent model, worse ones, faults, kills, the ceiling, the key."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvtrain.cli import main
from mvtrain.curate.distance import distance
from mvtrain.evaluate.grading_answers import final_answer
from mvtrain.grammar import depth, num_blocks, parse
from tests import curate_model
from tests.browser import chromium, visit
from tests.chat_server import ChatServer, Fault, Reply
from tests.curate_chains import AREAS, BY_QUESTION, CHAINS, leaves, rewritten

pytest.importorskip("openai")
pytest.importorskip("rapidfuzz")
ROOT = Path(__file__).parents[1]
KEY = "sk-test-4f9d2c71e8b04a55"


@pytest.fixture(autouse=True)
def endpoint_variables(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def chains(tmp_path) -> Path:
    file = tmp_path / "chains.jsonl"
    file.write_text("".join(json.dumps(chain.row()) + "\n" for chain in CHAINS))
    return file


@pytest.fixture
def settings(tmp_path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text("model: played\nbackoff_s: 0.01\ntimeout_s: 1\n")
    return file


def curate(source: Path, out: Path, server: ChatServer, settings: Path, *flags: str) -> int:
    return main(["curate", str(source), str(out), "--config", str(settings), "--base-url", server.url, *flags])


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def outputs(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text() for name in ("traces.jsonl", "rejected.jsonl", "stages.jsonl")}


def check_complete(out: Path) -> None:
    """Every record is accepted or rejected with its reasons, each once and in order."""
    accepted = [row["id"] for row in read(out / "traces.jsonl")]
    rejected = read(out / "rejected.jsonl")
    assert all(row["reasons"] for row in rejected)
    order = [chain.id for chain in CHAINS]
    assert sorted(accepted + [row["id"] for row in rejected]) == sorted(order)
    assert [row["id"] for row in read(out / "stages.jsonl")] == order
    assert accepted == [id for id in order if id in accepted]


# A competent model


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    file, settings = folder / "chains.jsonl", folder / "settings.yaml"
    file.write_text("".join(json.dumps(chain.row()) + "\n" for chain in CHAINS))
    settings.write_text("model: played\n")
    with ChatServer(curate_model.competent) as server:
        assert curate(file, folder / "out", server, settings) == 0
    return folder / "out"


def test_a_competent_model_makes_the_traces_that_are_in_the_chains(curated):
    check_complete(curated)
    traces = {row["id"]: row for row in read(curated / "traces.jsonl")}
    assert sorted(traces) == sorted(c.id for c in CHAINS if c.is_parallel)
    for chain in CHAINS:
        if not chain.is_parallel:
            continue
        row = traces[chain.id]
        trace = parse(row["deepseek_thinking_trajectory_parallel"])
        said = " ".join(rewritten(leaf.text) for leaf in leaves(chain.parts))
        assert distance(" ".join(texts_of(trace.parts[0].parts)), said) == 0, "the rewritten chain, and nothing else"
        assert 0 <= row["distance"] <= 0.2 and row["distance"] == round(distance(said, chain.text), 4)
        assert row["deepseek_thinking_trajectory"] == chain.text and final_answer(row["response"]) == chain.answer
    assert depth(parse(traces["nested"]["response"])) == 2 and num_blocks(parse(traces["two-blocks"]["response"])) == 2
    assert [p.label for p in parse(traces["areas"]["response"]).parts[0].parts[1].paths] == ["1", "2", "3"]


def texts_of(parts) -> list[str]:
    """Outside of outlines and conclusions."""
    return [
        t for p in parts for t in ([p] if isinstance(p, str) else [t for path in p.paths for t in texts_of(path.parts)])
    ]


def test_chains_that_cannot_become_traces_are_kept_with_the_reason(curated):
    rejected = {row["id"]: row for row in read(curated / "rejected.jsonl")}
    assert {id: (row["stage"], row["kinds"]) for id, row in rejected.items()} == {
        "euclid": ("outline", ["nothing parallel"]),
        "doubling": ("outline", ["nothing parallel"]),
        "wrong-answer": ("source", ["wrong answer"]),
    }
    assert rejected["wrong-answer"]["reasons"] == [r"the answer '\\boxed{41}' is not the reference '51'"]
    assert rejected["euclid"]["deepseek_thinking_trajectory"].startswith("Divide:")


def test_what_was_made_passes_check_loads_and_is_shown(curated, capsys):
    assert main(["check", str(curated / "traces.jsonl"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["rows"], checked["bad_rows"], checked["statistics"]["rows_with_blocks"]) == (10, 0, 10)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(curated), split="train", cache_dir=str(curated / "work" / "datasets"))
    assert [row["id"] for row in loaded] == [row["id"] for row in read(curated / "traces.jsonl")]
    card = (curated / "README.md").read_text()
    verified = "The answers of 10 were found equal to a reference"
    rejected = "| outline | nothing parallel | 2 |"
    for words in ("10 of 13 sequential chains (77%)", verified, rejected, "| model | played |"):
        assert words in card


def test_the_page_shows_each_trace_and_the_chain_before(curated):
    with chromium() as browser:
        seen = visit(browser, curated / "page.html")
        page = seen.page
        page.get_by_text("nested").first.click()
        page.get_by_text("Before: the sequential chain").click()
        nested = next(chain for chain in CHAINS if chain.id == "nested")
        assert page.locator(".mv-question-text", has_text="Likewise").inner_text() == nested.text
        assert page.locator(".mv-path").count() == 4, "two paths, and two in the second of them"
        seen.check_quiet()


def test_both_forms_of_the_file_are_examples_to_train_on(curated):
    from mvtrain.data import build_examples, read_records
    from tests.tiny import tiny_tokenizer

    for kind in ("parallel", "sequential"):
        records = list(read_records(curated / "traces.jsonl", kind))
        examples, report = build_examples(records, tiny_tokenizer(), context=4000)
        assert (len(examples), report.num_kept) == (10, 10)


def test_chains_without_blocks_are_kept_if_asked_for(chains, settings, tmp_path):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--keep-sequential") == 0
    rows = {row["id"]: row for row in read(tmp_path / "out" / "traces.jsonl")}
    assert "euclid" in rows and num_blocks(parse(rows["euclid"]["response"])) == 0 and len(rows) == 12


# Worse ones


def test_a_careless_model_is_told_what_is_wrong_and_then_does_it_right(chains, settings, tmp_path, curated):
    with ChatServer(curate_model.careless) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    assert outputs(tmp_path / "out")["traces.jsonl"] == outputs(curated)["traces.jsonl"]
    said = (message["content"] for seen in server.requests for message in seen.body["messages"])
    told = [text for text in said if "cannot be used" in text]
    faults = ("the answer is empty", "was refused", "was cut off", "is not JSON", "found none", "tags in it: <Path>")
    for words in (*faults, "characters 0 were cut and", "points at another path"):
        assert any(words in text for text in told), words
    kinds = {kind for row in read(tmp_path / "out" / "stages.jsonl") for answer in row["stages"]["faulty_answers"]
             for kind, _ in answer["complaints"]}  # fmt: skip
    assert {"empty", "refused", "cut off", "not JSON", "tags", "content", "reference"} <= kinds


def test_a_hopeless_model_loses_no_record(chains, settings, tmp_path):
    with ChatServer(curate_model.hopeless) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--tries", "2") == 0
    check_complete(tmp_path / "out")
    stages = {row["stage"] for row in read(tmp_path / "out" / "rejected.jsonl")}
    assert stages == {"summary", "groups", "map_reduce", "rewrite", "source"}
    asked = [seen.body["messages"][0]["content"] for seen in server.requests]
    assert max(asked.count(text) for text in asked) <= 2 * 2, "a conversation of two questions, two tries each"


def test_a_server_in_trouble_changes_nothing(chains, settings, tmp_path, curated):
    with ChatServer(curate_model.careless, curate_model.faults) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    assert outputs(tmp_path / "out")["traces.jsonl"] == outputs(curated)["traces.jsonl"]
    check_complete(tmp_path / "out")


def test_a_group_that_proves_dependent_is_asked_for_again(settings, tmp_path):
    """The chain itself uses a sibling's result: no rewriting can mend that, so stage 2 is told and asked again."""
    chain = {
        "id": "d", "question": "What is 31 * 20 + 5?", "deepseek_attempt": r"\boxed{625}", "answer": "625",
        "deepseek_thinking_trajectory": "Work from inside.\nFirst 31 * 20 = 620.\nTake 620 and add 5, to get 625.\n"
        "By hand as a check: 310 + 310 = 620.\nSo 625.",
    }  # fmt: skip
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(chain) + "\n")
    steps = [{"title": f"t{n}", "units": [n, n]} for n in range(1, 6)]

    def play(request: dict) -> str:
        stage = curate_model.stage_of(request)
        if stage == "summary":
            return json.dumps({"steps": steps})
        if stage == "groups":
            told = request["messages"][-1]["content"]
            return json.dumps(
                {"groups": [] if "uses 620, the result of path 1" in told else [{"paths": [["S2"], ["S3"]]}]}
            )
        raise AssertionError("nothing more should be asked")

    with ChatServer(play) as server:
        assert curate(file, tmp_path / "out", server, settings) == 0
    (row,) = read(tmp_path / "out" / "rejected.jsonl")
    assert (row["stage"], row["kinds"], len(server.requests)) == ("outline", ["nothing parallel"], 3)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_path_that_uses_what_it_cannot_know_is_asked_for_again_and_then_its_group(
    chains, settings, tmp_path, stubborn
):
    """A result too small for the rules: the model, who sees one path only, finds it; at last the group is none."""
    chains.write_text(json.dumps(AREAS.row()) + "\n")

    def play(request: dict) -> str:
        stage, prompt = curate_model.stage_of(request), request["messages"][0]["content"]
        if stage == "independence":
            return json.dumps({"unknown": ["the 60 of the rectangle"] if "Knowing the first" in prompt else []})
        if stage == "groups" and curate_model.num_complaints(request):
            return '{"groups": []}'
        answer = curate_model.competent(request)
        uses = stage == "rewrite" and "half of 8" in answer and (stubborn or not curate_model.num_complaints(request))
        return f"Knowing the first, {answer}" if uses else answer

    settings.write_text("model: played\nlimit: 0.3\ntries: 2\n")
    with ChatServer(play) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
        told = [seen.body["messages"][-1]["content"] for seen in server.requests]
    assert any("it uses what it cannot know: the 60 of the rectangle" in text for text in told)
    if not stubborn:
        (row,) = read(tmp_path / "out" / "traces.jsonl")
        assert "Knowing the first" not in row["response"]
        return
    (row,) = read(tmp_path / "out" / "rejected.jsonl")
    assert (row["stage"], row["kinds"]) == ("outline", ["nothing parallel"])
    assert any("S3 is not independent: it uses what it cannot know" in text for text in told)


@pytest.mark.parametrize("stubborn", [False, True])
def test_paths_that_are_too_far_away_together_are_asked_for_again(chains, settings, tmp_path, stubborn):
    """Each is within what a short path may lose; all of them are not."""
    chains.write_text(json.dumps(AREAS.row()) + "\n")

    def play(request: dict) -> str:
        answer = curate_model.competent(request)
        if curate_model.stage_of(request) != "rewrite" or (curate_model.num_complaints(request) and not stubborn):
            return answer
        return answer[12:]

    settings.write_text("model: played\nlimit: 0.08\ntries: 2\n")
    with ChatServer(play) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
        told = [seen.body["messages"][-1]["content"] for seen in server.requests]
    assert any("all texts together are" in text for text in told)
    rejected = read(tmp_path / "out" / "rejected.jsonl")
    assert [(row["stage"], row["kinds"]) for row in rejected] == ([("rewrite", ["content"])] if stubborn else [])
    assert len(read(tmp_path / "out" / "traces.jsonl")) == (not stubborn)


def test_a_bad_answer_about_one_text_counts_for_that_text_alone(chains, settings, tmp_path):
    """Prose about the first text is nothing that was said of the second: that is asked about from the beginning."""
    chains.write_text(json.dumps(AREAS.row()) + "\n")

    def play(request: dict) -> str:
        stage, prompt = curate_model.stage_of(request), request["messages"][0]["content"]
        is_told = curate_model.num_complaints(request) > 0
        if stage == "independence" and "half of 8" in prompt:
            unknown = ["the 60"] if "Knowing the first" in prompt else []
            return json.dumps({"unknown": unknown}) if is_told else "Let me think about it."
        answer = curate_model.competent(request)
        return (
            f"Knowing the first, {answer}" if stage == "rewrite" and "half of 8" in answer and not is_told else answer
        )

    settings.write_text("model: played\nlimit: 0.3\ntries: 2\n")
    with ChatServer(play) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
        judged = [seen.body for seen in server.requests if curate_model.stage_of(seen.body) == "independence"]
    told = [
        ("Knowing the first" in request["messages"][0]["content"], curate_model.num_complaints(request))
        for request in judged
        if "half of 8" in request["messages"][0]["content"]
    ]
    assert told == [(True, 0), (True, 1), (False, 0), (False, 1)]
    assert len(read(tmp_path / "out" / "traces.jsonl")) == 1


def test_nobody_is_asked_where_that_is_not_wanted(chains, settings, tmp_path):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--no-judge") == 0
        assert "independence" not in {curate_model.stage_of(seen.body) for seen in server.requests}


def test_text_that_cannot_be_pointed_at_is_typed_and_checked(settings, tmp_path):
    """A unit that belongs to two steps: the model types what belongs to each, once badly and then well."""
    chain = {
        "id": "t", "question": "Add two areas.", "deepseek_attempt": "46", "answer": "46",
        "deepseek_thinking_trajectory": "Two areas are needed.\nThe first is 4 times 8, so 32; the second is 2 times 7,"
        " so 14.\nTogether 46.",
    }  # fmt: skip
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(chain) + "\n")
    halves = {"S2: a": "The first is 4 times 8, so 32;", "S3: b": "the second is 2 times 7, so 14."}

    def play(request: dict) -> str:
        prompt = request["messages"][0]["content"]
        stage = curate_model.stage_of(request)
        if stage == "summary":
            titles = [("p", [1, 1]), ("a", None), ("b", None), ("s", [3, 3])]
            return json.dumps({"steps": [{"title": title, "units": units} for title, units in titles]})
        if stage == "groups":
            return json.dumps({"groups": [{"paths": [["S2"], ["S3"]]}]})
        if stage == "refill":
            step = next(step for step in halves if step in prompt)
            return (
                halves[step] if curate_model.num_complaints(request) else "Something that is not in the chain at all."
            )
        if stage == "map_reduce":
            return json.dumps({"outlines": ["First area", "Second area"], "conclusion": "They are 32 and 14."})
        if stage == "independence":
            return '{"unknown": []}'
        return next(text for text in halves.values() if text in prompt.partition("as it stands:")[2])

    with ChatServer(play) as server:
        assert curate(file, tmp_path / "out", server, settings) == 0
    (row,) = read(tmp_path / "out" / "traces.jsonl")
    paths = parse(row["response"]).parts[0].parts[1].paths
    assert [path.parts for path in paths] == [(text,) for text in halves.values()] and row["distance"] == 0


# Going on


def command(source: Path, out: Path, url: str, settings: Path) -> list[str]:
    code = "import sys; from mvtrain.cli import main; sys.exit(main())"
    flags = ["--config", str(settings), "--base-url", url, "--concurrency", "3", "--json"]
    return [sys.executable, "-c", code, "curate", str(source), str(out), *flags]


def test_killed_at_random_moments_it_ends_with_the_same_files(chains, settings, tmp_path):
    def slow(request: dict):
        answer = curate_model.careless(request)
        return Reply(answer, delay=0.05) if isinstance(answer, str) else answer

    moments = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with ChatServer(slow, curate_model.faults) as server:
        num_kills = 0
        for _ in range(40):
            process = subprocess.Popen(
                command(chains, tmp_path / "killed", server.url, settings), env=environment, cwd=ROOT,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            before = len(server.requests)
            while process.poll() is None and len(server.requests) == before:
                time.sleep(0.02)
            try:
                output, _ = process.communicate(timeout=moments.uniform(0.1, 1.5) if num_kills < 6 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                num_kills += 1
                continue
            assert process.returncode == 0
            break
        assert num_kills >= 4 and json.loads(output)["num_accepted"] == 10
        asked = len(server.requests)
        assert main(command(chains, tmp_path / "killed", server.url, settings)[3:]) == 0
        assert len(server.requests) == asked, "nothing is asked again"
        assert main(command(chains, tmp_path / "alone", server.url, settings)[3:]) == 0
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "alone")
    check_complete(tmp_path / "killed")


def test_records_that_changed_are_made_anew_and_others_are_not(chains, settings, tmp_path):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
        asked = len(server.requests)
        rows = read(chains)
        changed = [{**rows[2], "deepseek_attempt": "133"}, *rows[1:2], *rows[3:5]]
        chains.write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert curate(chains, tmp_path / "out", server, settings) == 0
        assert len(server.requests) == asked, "the same questions, so the same answers"
    assert [row["id"] for row in read(tmp_path / "out" / "traces.jsonl")] == ["areas", "parity", "prices", "methods"]
    assert read(tmp_path / "out" / "traces.jsonl")[0]["deepseek_attempt"] == "133"


def test_a_record_that_changed_is_in_no_file_until_it_is_made_anew(chains, settings, tmp_path):
    rows = read(chains)[:3]
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, out, server, settings) == 0
        assert [row["id"] for row in read(out / "traces.jsonl")] == ["absolute", "parity", "areas"]
    rows[1]["question"] += " Really?"
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer(curate_model.competent, faults=lambda request, n: Fault.status(401)) as server:
        assert curate(chains, out, server, settings) == 3
        assert [row["id"] for row in read(out / "traces.jsonl")] == ["absolute", "areas"]
        assert curate(chains, out, server, settings, "--rows", "1") == 0
        assert [row["id"] for row in read(out / "traces.jsonl")] == ["absolute", "areas"]


def test_fewer_rows_take_nothing_away(chains, settings, tmp_path):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--rows", "4") == 0
        before = outputs(tmp_path / "out")
        assert curate(chains, tmp_path / "out", server, settings, "--rows", "1") == 0
        assert outputs(tmp_path / "out") == before
        assert "Not complete" in (tmp_path / "out" / "README.md").read_text()
        assert curate(chains, tmp_path / "out", server, settings) == 0
    check_complete(tmp_path / "out")


def test_other_settings_need_another_folder_or_overwrite(chains, settings, tmp_path, capsys):
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--rows", "2") == 0
        assert curate(chains, tmp_path / "out", server, settings, "--rows", "2", "--limit", "0.1") == 2
        assert "limit was 0.2 and is 0.1; give another folder, or --overwrite" in capsys.readouterr().err
        asked = len(server.requests)
        assert curate(chains, tmp_path / "out", server, settings, "--rows", "2", "--limit", "0.1", "--overwrite") == 0
        assert len(server.requests) == asked


def test_what_the_endpoint_failed_is_tried_again_by_the_next_run(chains, settings, tmp_path):
    settings.write_text("model: played\nbackoff_s: 0.01\nmax_retries: 1\n")
    broken = True

    def faults(request: dict, n: int) -> Fault | None:
        return Fault.status(500) if broken and curate_model.chain_of(request).id == "areas" else None

    with ChatServer(curate_model.competent, faults) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
        rejected = {row["id"]: row for row in read(tmp_path / "out" / "rejected.jsonl")}
        assert rejected["areas"]["stage"] == "endpoint" and "status 500" in rejected["areas"]["reasons"][0]
        broken = False
        assert curate(chains, tmp_path / "out", server, settings) == 0
    assert "areas" in {row["id"] for row in read(tmp_path / "out" / "traces.jsonl")}


# Money and the key


def test_the_ceiling_holds_over_all_runs(chains, settings, tmp_path, capsys):
    flags = ["--price-input", "1000", "--price-output", "1000", "--max-tokens", "100", "--concurrency", "8"]
    charged = []

    def play(request: dict) -> Reply:
        text = curate_model.competent(request)
        tokens = (len(json.dumps(request["messages"])) // 4, min(100, len(text) // 4))
        charged.append(sum(tokens) * 1000 / 1e6)
        return Reply(text, prompt_tokens=tokens[0], completion_tokens=tokens[1])

    with ChatServer(play) as server:
        for ceiling in (6, 6, 12):
            assert (
                curate(chains, tmp_path / "out", server, settings, *flags, "--max-spend", str(ceiling), "--json") == 3
            )
            told = json.loads(capsys.readouterr().out)
            assert sum(charged) <= ceiling and told["spending"]["spent"] == pytest.approx(sum(charged))
            assert "ceiling" in told["stopped"] and "Not complete" in (tmp_path / "out" / "README.md").read_text()
        assert sum(charged) > 6
        assert curate(chains, tmp_path / "out", server, settings, *flags, "--max-spend", "1000") == 0
    check_complete(tmp_path / "out")


def test_a_ceiling_for_some_records_finishes_about_as_many(settings, tmp_path, capsys):
    """Not a little of each: the money for 8 of 40 records makes several traces, though 40 could be begun at once."""
    chains = tmp_path / "many.jsonl"
    # Questions of their own, so that no answer is taken from another record's.
    rows = [AREAS.row() | {"id": f"{n}", "question": f"{AREAS.question} Field {n}."} for n in range(40)]
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def play(request: dict) -> Reply:
        answer = curate_model.competent(request)
        return Reply(
            answer, prompt_tokens=len(json.dumps(request["messages"])) // 4, completion_tokens=len(answer) // 4
        )

    def spend(out: Path, status: int, *flags: str) -> float:
        prices = ("--price-input", "1000", "--price-output", "1000", "--max-tokens", "300", "--json")
        assert curate(chains, out, server, settings, *prices, *flags) == status
        return json.loads(capsys.readouterr().out)["spending"]["spent"]

    with ChatServer(play) as server:
        cost = spend(tmp_path / "one", 0, "--rows", "1")
        assert spend(tmp_path / "some", 3, "--max-spend", str(8 * cost)) <= 8 * cost
    assert 3 <= len(read(tmp_path / "some" / "traces.jsonl")) <= 8


def test_a_refused_key_stops_with_one_line_and_stands_nowhere(chains, settings, tmp_path, capsys, caplog):
    caplog.set_level("DEBUG")

    def faults(request: dict, n: int) -> Fault:
        return Fault.status(401, f"Incorrect API key provided: {KEY}")

    with ChatServer(curate_model.competent, faults) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 3
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert "stopped early" in said.err and "OPENAI_API_KEY" in said.err and "Traceback" not in said.err
    assert KEY not in said.out + said.err + caplog.text
    check_no_key(tmp_path)


def test_the_key_stands_nowhere(chains, settings, tmp_path, capsys, caplog):
    """Not even where the model says it."""
    caplog.set_level("DEBUG")

    def play(request: dict) -> str:
        answer = curate_model.competent(request)
        return answer.replace('conclusion": "', f'conclusion": "{KEY} ')

    with ChatServer(play, curate_model.faults) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + caplog.text
    assert "***" in (tmp_path / "out" / "traces.jsonl").read_text(), "it was said"
    check_no_key(tmp_path)


def check_no_key(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


# Mistakes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "no model; give --model"),
        (("--model", "m", "--limit", "2"), "limit is 2.0; expected a number, 0 to 1"),
        (("--model", "m", "--tries", "0"), "tries is 0"),
        (("--model", "m", "--base-url", "nonsense"), "base_url"),
        (("--model", "m", "--max-spend", "3"), "a ceiling needs prices"),
        (("--model", "m", "--chain-column", "no"), "no column no for the chain"),
        (("--model", "m", "--prompts", "/nowhere"), "no prompt in it"),
        (("--model", "m", "--rows", "0"), "--rows 0: expected at least 1"),
        (("--model", "m", "--push", "name"), "--push name: expected owner/name"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, said, chains, tmp_path, capsys):
    assert main(["curate", str(chains), str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_read_are_rejected(chains, settings, tmp_path):
    lines = chains.read_text().splitlines()[:2]
    empty = json.loads(lines[0]) | {"deepseek_thinking_trajectory": "", "scores": [0.5, float("nan")]}
    tagged = json.loads(lines[1]) | {"deepseek_thinking_trajectory": "a <Path> b"}
    chains.write_text("\n".join([lines[0], "{not json", json.dumps(empty), json.dumps(tagged)]) + "\n")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    rejected = read(tmp_path / "out" / "rejected.jsonl")
    assert [row["row"] for row in rejected] == [2, 3, 4] and {row["stage"] for row in rejected} == {"source"}
    assert "the chain has <Path> in it" in rejected[2]["reasons"][0]
    assert "row 2" in rejected[0]["reasons"][0] and "not JSON" in rejected[0]["reasons"][0]
    assert [row["source_row"] for row in rejected] == ["{not json", empty | {"scores": [0.5, None]}, tagged]
    assert len(read(tmp_path / "out" / "traces.jsonl")) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "half of a pair: \ud83d"}, r"the question has '\ud83d' in it"),
        ({"deepseek_thinking_trajectory": "One.\n[[block 1]]\nTwo."}, "the chain has [[block 1]] in it"),
        ({"deepseek_thinking_trajectory": "One.\nso <|im_end|> Two."}, "the chain has <|im_end|> in it"),
        ({"deepseek_thinking_trajectory": "One.\n</think>\nTwo."}, "the chain has </think> in it"),
        ({"deepseek_attempt": "7\u0000"}, r"the answer has '\x00' in it"),
        ({"deepseek_thinking_trajectory": None, "chain": 7}, "the chain is empty"),
        ({"deepseek_attempt": r"\boxed{5}"}, r"the chain ends in '1', its answer is '\\boxed{5}'"),
    ],
)
def test_an_odd_record_is_rejected_and_all_others_go_on(change, reason, chains, settings, tmp_path):
    rows = read(chains)
    rows[1:1] = [{**rows[0], "id": "odd", **change}, {"id": "bare"}]
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    assert [row["id"] for row in read(tmp_path / "out" / "traces.jsonl")] == ["absolute", "parity"]
    odd, bare = read(tmp_path / "out" / "rejected.jsonl")
    assert odd["reasons"] == [reason] and odd["stage"] == bare["stage"] == "source"
    assert "row 3: no column" in bare["reasons"][0]


def test_an_answer_that_nobody_foresaw_costs_one_record(chains, settings, tmp_path, monkeypatch):
    from mvtrain.curate.stages import refill

    copied = refill.distance

    def broken(a: str, b: str) -> float:
        if "metres" in b or "rectangle" in b:
            raise KeyError("S2.1")
        return copied(a, b)

    monkeypatch.setattr(refill, "distance", broken)
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings) == 0
    rejected = {row["id"]: row for row in read(tmp_path / "out" / "rejected.jsonl")}
    assert (rejected["areas"]["stage"], rejected["areas"]["reasons"]) == ("internal", ["KeyError: 'S2.1'"])
    assert len(read(tmp_path / "out" / "traces.jsonl")) == 9


def test_files_of_others_are_left_alone(chains, settings, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("# Mine")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "own", server, settings) == 2
        assert "own holds README.md, which `mvtrain curate` has not written" in capsys.readouterr().err
        (tmp_path / "in").mkdir()
        source = chains.rename(tmp_path / "in" / "traces.jsonl")
        before = source.read_bytes()
        assert curate(source, tmp_path / "in", server, settings) == 2
        assert "where results would take its place" in capsys.readouterr().err and source.read_bytes() == before
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine"


def test_a_dry_run_asks_nothing_and_is_about_right(chains, settings, tmp_path, capsys):
    prices = ["--price-input", "1", "--price-output", "10"]
    assert main(["curate", str(chains), str(tmp_path / "out"), "--dry-run", *prices, "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists() and estimate["num_records"] == len(CHAINS) == len(BY_QUESTION)
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, *prices, "--json") == 0
    spent = json.loads(capsys.readouterr().out)["spending"]["total"]
    assert 1 / 3 < sum(estimate["requests"].values()) / spent["requests"] < 3
    assert 1 / 3 < sum(estimate["prompt_tokens"].values()) / spent["prompt_tokens"] < 3
    assert 1 / 3 < estimate["cost"] / spent["cost"] < 3


def test_a_batch_makes_the_same(chains, settings, tmp_path, curated):
    settings.write_text("model: played\nbatch_quiet_s: 0.4\nbatch_poll_s: 0.02\n")
    with ChatServer(curate_model.competent) as server:
        assert curate(chains, tmp_path / "out", server, settings, "--batch") == 0
        assert not server.requests or all("/chat/" not in seen.path for seen in server.requests)
    assert outputs(tmp_path / "out") == outputs(curated)
