"""Importers: samples worked out by hand, random trees written in the foreign formats, and every reason to refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path as File

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.data.importers import FORMATS, blocks, columns, convert, load_format, markup, medverse, threadweaver
from mvtrain.data.importers import parallel_r1 as r1
from mvtrain.data.importers.blocks import LONGEST_OUTLINE, first_sentence
from mvtrain.data.importers.columns import choose_columns
from mvtrain.data.importers.convert import RejectedRow, convert_row
from mvtrain.grammar import Block, Outline, Path, Think, Trace, check, parse

SAMPLES = File(__file__).parent / "import_samples"


def convert_fields(name, fields, **options):
    """A row as it is converted when it is the first of its file."""
    form = load_format(name)
    return convert_row(fields, form, choose_columns("row 1", fields, form.columns), "id", "source", **options)


def trace_of(name, fields):
    converted = convert_fields(name, fields).fields
    assert check(converted["deepseek_thinking_trajectory_parallel"]) == []
    return parse(converted["deepseek_thinking_trajectory_parallel"])


def reasons_of(name, fields, **options):
    with pytest.raises(RejectedRow) as error:
        convert_fields(name, fields, **options)
    return [rejected.reason for rejected in error.value.reasons]


def sample(name, number=1):
    return json.loads((SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[number - 1])


def block(*pairs, conclusion="", parent=""):
    """A block from (outline, path's parts) pairs."""
    labels = [f"{parent}{i}" for i in range(1, len(pairs) + 1)]
    outlines = [Outline(label, text) for label, (text, _) in zip(labels, pairs, strict=True)]
    paths = [Path(label, tuple(parts)) for label, (_, parts) in zip(labels, pairs, strict=True)]
    return Block(tuple(outlines), tuple(paths), conclusion)


# By hand


def test_threadweaver_in_two_columns():
    converted = convert_fields("threadweaver", sample("threadweaver"))
    assert converted.fields == {
        "id": "id",
        "question": "What is 12 * 14?",
        "deepseek_thinking_trajectory_parallel": (
            "<Think>\nTwo ways.\n<Parallel>\n<Goal>\n<Outline>\n1: Split 14\n</Outline>\n<Outline>\n"
            "2: Difference of squares\n</Outline>\n</Goal>\n<Path>\n1: 120 + 48 = 168.\n</Path>\n<Path>\n"
            "2: 13 * 13 - 1 = 168.\n</Path>\n<Conclusion>\nBoth give 168.\n</Conclusion>\n</Parallel>\n"
            "So it is 168.\n</Think>"
        ),
        "deepseek_attempt": "The product is \\boxed{168}.",
        "answer": "168",
        "source": "source",
        "outlines": "given",
    }
    assert (converted.num_blocks, converted.num_without_conclusion, converted.num_one_path) == (1, 0, 0)


def test_threadweaver_threads_come_in_the_order_of_the_outlines_and_need_no_conclusion():
    expected = block(("Divide by 3", ["9 + 1 = 10, no."]), ("Divide by 7", ["91 = 7 * 13."]))
    assert trace_of("threadweaver", sample("threadweaver", 2)) == Trace((Think((expected, "It is 7 * 13.")),))
    assert convert_fields("threadweaver", sample("threadweaver", 2)).num_without_conclusion == 1
    assert reasons_of("threadweaver", sample("threadweaver", 2), require_conclusion=True) == [convert.NO_CONCLUSION]
    assert convert_fields("threadweaver", sample("threadweaver"), require_conclusion=True)


THREADS = (
    "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
    "<Thread>1: A</Thread><Thread>2: B</Thread></Parallel>"
)


@pytest.mark.parametrize("as_text", [False, True])
def test_threadweaver_as_a_conversation(as_text):
    instruction = "Let's think step by step and output the final answer within \\boxed{}."
    turns = [("system", "Be good."), ("user", f"Q? {instruction}"), ("assistant", f"<think>{THREADS}</think> 7")]
    fields = {"messages": [{"role": role, "content": content} for role, content in turns]}
    if as_text:
        fields = {"qwen_text": "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)}
    converted = convert_fields("threadweaver", fields).fields
    assert (converted["question"], converted["deepseek_attempt"], converted["answer"]) == ("Q?", "7", None)
    assert parse(converted["deepseek_thinking_trajectory_parallel"]).parts[0].parts == (block(("a", "A"), ("b", "B")),)


def test_a_template_may_have_written_the_opening_think():
    for text in (f"Hm.\n{THREADS}\n</think>\n7", f"<THINK>Hm.\n{THREADS}\n</ Think >\n7"):
        converted = convert_fields("threadweaver", {"question": "Q", "response": text}).fields
        assert parse(converted["deepseek_thinking_trajectory_parallel"]) == Trace(
            (Think(("Hm.", block(("a", "A"), ("b", "B")))),)
        )
        assert converted["deepseek_attempt"] == "7"


def test_parallel_r1_gets_outlines_from_first_sentences_and_says_so():
    converted = convert_fields("parallel-r1", sample("parallel-r1")).fields
    first = "Multiply first. 3 * 4 = 12, then 12 - 2 = 10."
    expected = block(
        ("Multiply first.", [first]),
        ("Add up 4 + 4 + 4 = 12", ["Add up 4 + 4 + 4 = 12\nMinus 2 is 10."]),
        conclusion="Both ways give 10.",
    )
    assert parse(converted["deepseek_thinking_trajectory_parallel"]) == Trace(
        (Think(("Tom starts with bags.", expected, "Nothing else happens.")),)
    )
    assert converted["outlines"] == "first sentence of the path"
    assert (converted["deepseek_attempt"], converted["answer"]) == ("Final Answer: 10", "10")
    assert converted["question"].startswith("Tom has 3 bags")


def test_parallel_r1_without_a_final_answer_line():
    paths = "<Parallel><Path>A.</Path><Path>B.</Path></Parallel><Summary>S</Summary>"
    converted = convert_fields("parallel-r1", {"question": "Q", "response": f"{paths} So it is 4.", "answer": 4}).fields
    assert (converted["deepseek_attempt"], converted["answer"]) == ("So it is 4.", "4")
    converted = convert_fields("parallel-r1", {"question": "Q", "response": paths, "answer": 4}).fields
    assert converted["deepseek_attempt"] == "\\boxed{4}"
    converted = convert_fields("parallel-r1", {"question": "Q", "answer": f"{paths}\n**Final Answer:** 5"}).fields
    assert (converted["deepseek_attempt"], converted["answer"]) == ("**Final Answer:** 5", None)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("We try 3.5 first. Then more.", "We try 3.5 first."),
        ("### 2. By cases:\nCase one", "By cases"),
        ("**Idea**: add", "Idea"),
        ("One line\nand another", "One line"),
        ("Is it so? Yes.", "Is it so?"),
        ("no end", "no end"),
        ("word " * 100, ("word " * 39).strip() + " ..."),
        ("x" * 300, "x" * (LONGEST_OUTLINE - 4) + " ..."),
        ("先算一。再算二。", "先算一。"),
        ("- ", ""),
    ],
)
def test_first_sentences(text, sentence):
    assert first_sentence(text) == sentence
    assert len(sentence) <= LONGEST_OUTLINE


def test_npr_has_one_block_for_each_guideline():
    converted = convert_fields("npr", sample("npr"))
    roots = block(("Take roots.", ["x = 3 or x = -3."]), ("Factor.", ["(x - 3)(x + 3) = 0."]), conclusion="They agree.")
    checked = block(("Check both.", ["9 = 9 twice."]), conclusion="Both hold.")
    assert trace_of("npr", sample("npr")) == Trace((Think((roots, checked)),))
    assert converted.fields["deepseek_attempt"] == "The solutions are \\boxed{3, -3}."
    assert (converted.num_blocks, converted.num_one_path) == (2, 1)


def test_npr_takes_the_format_instruction_off_a_prompt():
    prompt = "What is 2 + 2?\n\nYou must write your answer strictly following the XML-like format defined below. ..."
    fields = {"prompt": [{"role": "user", "content": prompt}], "response": sample("npr")["response"]}
    assert convert_fields("npr", fields).fields["question"] == "What is 2 + 2?"


def test_npr_without_a_takeaway_and_with_text_between_blocks():
    text = "Start.<guideline><plan>1: a</plan></guideline><step>1: A</step>\nThen.\n<guideline><plan>b</plan>"
    text += "</guideline><step>B</step><takeaway>T</takeaway>"
    parts = ("Start.", block(("a", "A")), "Then.", block(("b", "B"), conclusion="T"))
    assert trace_of("npr", {"question": "Q", "response": text, "answer": "1"}) == Trace((Think(parts),))


def test_medverse_levels_become_blocks_and_single_steps_text():
    converted = convert_fields("medverse", sample("medverse")).fields
    parts = (
        "1: Pain->Ischemia->Infarct->STEMI\n2: Sweat->Stress->Acute event->STEMI",
        block(("Pain -> Ischemia", ["Pain points to the heart."]), ("Sweat -> Stress", ["Sweat is a stress sign."])),
        block(("Ischemia -> Infarct", ["Long ischemia is an infarct."]), ("Stress -> Acute event", ["It is acute."])),
        "Infarct, Acute event -> STEMI\nThe two mean STEMI.\nExplanation: an acute infarct.\nAnswer: B",
    )
    assert parse(converted["deepseek_thinking_trajectory_parallel"]) == Trace((Think(parts),))
    assert converted["question"] == "What does the patient have?\nA. Reflux\nB. STEMI"
    assert converted["deepseek_attempt"] == converted["answer"] == "B. STEMI"


def test_medverse_as_ready_text_and_with_a_block_at_the_end():
    row = sample("medverse")
    plan = "<Plan><Outline>1. A; Dependency: []</Outline><Outline>2. B; Dependency:[]</Outline></Plan>"
    steps = "<Execution><Step>Transient Step 2: B is so.</Step><Step>Transient Step 1: A\nA is so.</Step></Execution>"
    text = (
        f"<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\nQuestion: \n{row['Question']}\n<|im_end|>\n"
        f"<|im_start|>assistant\n<Think>\nFind it.\n{plan}\n{steps}\n<Conclusion>\nC\n</Conclusion>\n</Think>\n"
        "Answer: B\n<|im_end|>\n"
    )
    converted = convert_fields("medverse", {"id": "0", "text": text}).fields
    assert parse(converted["deepseek_thinking_trajectory_parallel"]) == Trace(
        (Think(("Find it.", block(("A", ["A is so."]), ("B", ["B is so."]), conclusion="C"))),)
    )
    assert (converted["question"], converted["deepseek_attempt"]) == (row["Question"], "Answer: B")


# Random trees

WORDS = "so we add x^2 $y$ \\frac{a}{b} then 12 , = und früh 求".split()


def random_text(seed):
    """One or two lines of words; two seeds hardly ever give the same."""
    source = random.Random(seed)
    lines = [" ".join(source.choices(WORDS, k=source.randint(1, 4))) for _ in range(source.randint(1, 2))]
    return f"Now{seed} " + "\n".join(lines)


texts = st.integers(0, 10**6).map(random_text)


@st.composite
def block_trees(draw, depth=2):
    """([(outline, parts of the path)], conclusion), where parts are texts and such trees, a text first."""
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        parts = [draw(texts)]
        while depth > 1 and draw(st.integers(0, 3)) == 3:
            parts += [draw(block_trees(depth - 1)), draw(texts)]
        pairs.append((draw(texts), parts))
    return pairs, draw(st.one_of(st.just(""), texts))


top_levels = st.lists(st.tuples(texts, block_trees()), min_size=1, max_size=2)


def expected_block(tree, parent="", outline=lambda text, first: text):
    pairs, conclusion = tree
    converted = []
    for i, (text, parts) in enumerate(pairs, 1):
        inside = [part if isinstance(part, str) else expected_block(part, f"{parent}{i}.", outline) for part in parts]
        converted.append((outline(text, parts[0]), inside))
    return block(*converted, conclusion=conclusion, parent=parent)


class Writer:
    """Writes trees in a foreign format, with tags and white space in all the variants that are read."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def tag(self, name, inside):
        styles = [name, name.lower(), name.upper(), f" {name} "]
        left, right = self.random.choice(styles), self.random.choice(styles)
        space = [self.random.choice(["", "\n", " \n ", "\t"]) for _ in range(4)]
        return f"{space[0]}<{left}>{space[1]}{inside}{space[2]}</{right}>{space[3]}"

    def parts(self, parts):
        return "".join(part if isinstance(part, str) else self.block(part) for part in parts)

    def labelled(self, name, pairs):
        return [self.tag(name, f"{i}{self.random.choice(['', ' '])}: {text}") for i, text in enumerate(pairs, 1)]


class ThreadWeaver(Writer):
    def block(self, tree):
        pairs, conclusion = tree
        outlines = self.tag("Outlines", "".join(self.labelled("Outline", [text for text, _ in pairs])))
        threads = self.labelled("Thread", [self.parts(parts) for _, parts in pairs])
        self.random.shuffle(threads)
        end = self.tag("Conclusion", conclusion) if conclusion else ""
        return self.tag("Parallel", outlines + "".join(threads) + end)


class ParallelR1(Writer):
    def block(self, tree):
        pairs, conclusion = tree
        paths = "".join(self.tag("Path", self.parts(parts)) for _, parts in pairs)
        return self.tag("Parallel", paths) + (self.tag("Summary", conclusion) if conclusion else "")


class Npr(Writer):
    def block(self, tree):
        pairs, conclusion = tree
        plans = self.tag("guideline", "".join(self.labelled("plan", [text for text, _ in pairs])))
        steps = "".join(self.labelled("step", [self.parts(parts) for _, parts in pairs]))
        return plans + steps + (self.tag("takeaway", conclusion) if conclusion else "")


WRITERS = {
    "threadweaver": (ThreadWeaver, lambda text, first: text),
    "parallel-r1": (ParallelR1, lambda text, first: first.split("\n")[0]),
    "npr": (Npr, lambda text, first: text),
}


@pytest.mark.parametrize("name", WRITERS)
@given(tops=top_levels, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_tree_written_in_a_foreign_format_comes_back(name, tops, seed):
    writer_class, outline = WRITERS[name]
    writer = writer_class(seed)
    text = "".join(before + writer.block(tree) for before, tree in tops)
    expected = [part for before, tree in tops for part in (before, expected_block(tree, "", outline))]
    fields = {"question": "Q?", "response": writer.tag("think", text) + " Final Answer: 7"}
    assert trace_of(name, fields) == Trace((Think(tuple(expected)),))
    without_think = trace_of(name, {"question": "Q?", "response": f"{text}\nFinal Answer: 7"})
    assert without_think == Trace((Think(tuple(expected)),))


graphs = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*(st.sets(st.integers(1, k)) if k else st.just(set()) for k in range(n)))
)


@given(graph=graphs, seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_medverse_steps_see_what_they_need_as_early_as_can_be(graph, seed):
    """The graph is drawn in order and renumbered at random, so that a step may need one with a higher number."""
    source = random.Random(seed)
    numbers = source.sample(range(1, 100), len(graph))
    needs = {numbers[i]: {numbers[need - 1] for need in graph[i]} for i in range(len(graph))}

    def longest_way(step):
        return max((1 + longest_way(need) for need in needs[step]), default=0)

    listed = source.sample(numbers, len(numbers))
    outlines = "".join(
        f"<Outline> Transient Step {n}: title{n} -> t; Dependency: {sorted(needs[n])} </Outline>\n" for n in listed
    )
    steps = "".join(
        f"<Step> Transient Step {n}: title{n} -> t\nbody{n}\n</Step>" for n in source.sample(listed, len(listed))
    )
    fields = {
        "Question": "Q", "Transient Plan Prompt": f"<Plan>{outlines}</Plan>",
        "Transient Execution Prompt": f"<Execution>{steps}</Execution>", "Goal": "g",
    }  # fmt: skip
    level_of = {n: longest_way(n) for n in numbers}
    by_level = [[n for n in listed if level_of[n] == level] for level in range(max(level_of.values()) + 1)]
    if all(len(level) == 1 for level in by_level):
        assert reasons_of("medverse", fields) == [convert.NO_BLOCK]
        return
    expected = [
        f"title{level[0]} -> t\nbody{level[0]}"
        if len(level) == 1
        else block(*((f"title{n} -> t", [f"body{n}"]) for n in level))
        for level in by_level
    ]
    assert trace_of("medverse", fields) == Trace((Think(tuple(expected)),))


REAL = File(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"
AS_THREADWEAVER = {"Goal>": "Outlines>", "Path>": "Thread>"}


@pytest.mark.skipif(not REAL.exists(), reason="the real traces are not at hand")
def test_real_traces_come_back_from_threadweavers_tags():
    """ThreadWeaver's blocks differ from ours in the names of two tags; so real texts can be tried."""
    tried = 0
    for line in REAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if check(row["response"]) or "<Parallel>" not in row["response"]:
            continue
        trace = parse(row["response"])
        (think,) = (part for part in trace.parts if isinstance(part, Think))
        text = row["response"]
        for ours, theirs in AS_THREADWEAVER.items():
            text = text.replace(f"<{ours}", f"<{theirs}").replace(f"</{ours}", f"</{theirs}")
        fields = {"question": row["question"], "response": text}
        assert trace_of("threadweaver", fields) == Trace((think,))
        assert (convert_fields("threadweaver", fields).fields["deepseek_attempt"],) == trace.parts[1:]
        tried += 1
    assert tried > 20


# Refused

TW_OPEN = "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
TW_THREADS = "<Thread>1: A</Thread><Thread>2: B</Thread>"
NPR_PLANS = "<guideline><plan>1: a</plan><plan>2: b</plan></guideline>"
NPR_STEPS = "<step>1: A</step><step>2: B</step>"
PATHS = "<Parallel><Path>A</Path><Path>B</Path></Parallel>"


def mv(plan, steps, **more):
    outlines = "".join(f"<Outline>{outline}</Outline>" for outline in plan)
    execution = "".join(f"<Step>{step}</Step>" for step in steps)
    return {
        "Question": "Q", "Transient Plan Prompt": f"<Plan>{outlines}</Plan>",
        "Transient Execution Prompt": f"<Execution>{execution}</Execution>", "Goal": "g", **more,
    }  # fmt: skip


A, B = "Step 1: A; Dependency: []", "Step 2: B; Dependency: []"
REFUSED = [
    ("threadweaver", TW_OPEN + "<Thread>1: A</Parallel>", markup.LEFT_OPEN),
    ("threadweaver", TW_OPEN + TW_THREADS, markup.LEFT_OPEN),
    ("threadweaver", "<Parallel><Outlines><Outline> 1: a\n<Outline> 2: b</Outlines>", markup.LEFT_OPEN),
    ("threadweaver", TW_OPEN + TW_THREADS + "</Parallel></Thread>", markup.CLOSES_NOTHING),
    ("threadweaver", "<Thread>1: A</Thread>", markup.OUT_OF_PLACE),
    ("threadweaver", TW_OPEN + "<Thread>1: A</Thread><Outline>2: B</Outline></Parallel>", markup.OUT_OF_PLACE),
    ("threadweaver", THREADS + "<think>a</think><think>b</think>", markup.OUT_OF_PLACE),
    ("threadweaver", "<think>a</think>" + THREADS, markup.OUT_OF_PLACE),
    ("threadweaver", THREADS.replace("1: a", "1: <Thread>a</Thread>"), markup.OUT_OF_PLACE),
    ("threadweaver", TW_OPEN + "stray" + TW_THREADS + "</Parallel>", markup.STRAY_TEXT),
    ("threadweaver", "<Thread>" * 101, markup.TOO_DEEP),
    ("threadweaver", TW_OPEN + "</Parallel>", threadweaver.PARTS),
    ("threadweaver", "<Parallel>" + TW_THREADS + "</Parallel>", threadweaver.PARTS),
    ("threadweaver", "<Parallel></Parallel>", threadweaver.PARTS),
    ("threadweaver", TW_OPEN + "<Conclusion>c</Conclusion>" + TW_THREADS + "</Parallel>", threadweaver.PARTS),
    ("threadweaver", THREADS.replace("2: B", "2: [placeholder]"), threadweaver.PLACEHOLDER),
    ("threadweaver", THREADS.replace("2: B", "3: B"), blocks.NO_OUTLINE),
    ("threadweaver", THREADS.replace("<Thread>2: B</Thread>", ""), blocks.NO_PATH),
    ("threadweaver", THREADS.replace("2: B", "B"), blocks.NO_LABEL),
    ("threadweaver", THREADS.replace("2: b", "1: b"), blocks.SAME_LABEL),
    ("threadweaver", THREADS.replace("2: B", "2: "), blocks.EMPTY_PATH),
    ("threadweaver", THREADS.replace("2: b", "2: "), blocks.EMPTY_OUTLINE),
    ("threadweaver", "Just text.", convert.NO_BLOCK),
    ("threadweaver", THREADS, convert.NO_ANSWER),
    ("threadweaver", THREADS.replace("1: A", "1: <Path>") + "7", convert.TAG_IN_TEXT),
    ("threadweaver", THREADS + "7<|im_end|>", convert.CHAT_TOKEN),
    ("threadweaver", THREADS + "7 \ud800", convert.NOT_UNICODE),
    ("threadweaver", "", columns.EMPTY),
    ("threadweaver", None, columns.MISSING),
    ("threadweaver", 7, columns.NOT_TEXT),
    ("threadweaver", [{"role": "user", "content": "Q"}], columns.NO_TURN),
    ("threadweaver", "<|im_start|>user\nQ<|im_end|>", columns.NO_TURN),
    ("parallel-r1", "<Parallel><Path>A</Path>", markup.LEFT_OPEN),
    ("parallel-r1", "<Parallel></Parallel><Summary>S</Summary>", r1.NO_PATHS),
    ("parallel-r1", "<Parallel><Path></Path><Path>B</Path></Parallel>", blocks.EMPTY_PATH),
    ("parallel-r1", f"<Parallel><Path>{PATHS}</Path><Path>B</Path></Parallel>", r1.NO_FIRST_SENTENCE),
    ("parallel-r1", PATHS.replace("A", "##"), blocks.EMPTY_OUTLINE),
    ("parallel-r1", f"{PATHS} but <Summary>S</Summary>", markup.OUT_OF_PLACE),
    ("parallel-r1", f"<Summary>S</Summary>{PATHS}", markup.OUT_OF_PLACE),
    ("parallel-r1", f"{PATHS}<Summary>S {PATHS}</Summary>", markup.OUT_OF_PLACE),
    ("parallel-r1", f"{PATHS}<Summary><Goal></Summary> 7", convert.TAG_IN_TEXT),
    ("npr", f"{NPR_PLANS}<step>1: A</step>", blocks.NO_PATH),
    ("npr", f"{NPR_PLANS}{NPR_STEPS}<step>3: C</step>", blocks.NO_OUTLINE),
    ("npr", f"{NPR_PLANS}<step>1: A</step>and<step>2: B</step>", markup.STRAY_TEXT),
    ("npr", f"{NPR_PLANS}{NPR_STEPS}and<takeaway>T</takeaway>", markup.STRAY_TEXT),
    ("npr", f"{NPR_PLANS}{NPR_STEPS}<takeaway>T</takeaway><takeaway>T</takeaway>", markup.OUT_OF_PLACE),
    ("npr", NPR_STEPS, markup.OUT_OF_PLACE),
    ("npr", f"{NPR_PLANS}{NPR_STEPS}<takeaway>T", markup.LEFT_OPEN),
    ("npr", f"{NPR_PLANS}{NPR_STEPS}<Parallel>7", convert.TAG_IN_TEXT),
    ("medverse", mv([A, "Step 2: B"], ["Step 1: A is so.", "Step 2: B"]), medverse.BAD_PLAN),
    ("medverse", mv([A, "Step 2: B; Dependency: [x]"], ["Step 1: A is so."]), medverse.BAD_PLAN),
    ("medverse", mv([], ["Step 1: A is so."]), medverse.BAD_PLAN),
    ("medverse", mv([A, B], ["Step 1: A is so.", "B is so."]), medverse.BAD_STEP),
    ("medverse", mv([A, B.replace("[]", "[3]")], ["Step 1: A x", "Step 2: B x"]), medverse.NO_SUCH_STEP),
    ("medverse", mv([A, B.replace("[]", "[2]")], ["Step 1: A x", "Step 2: B x"]), medverse.CYCLE),
    ("medverse", mv([A.replace("[]", "[2]"), B.replace("[]", "[1]")], ["Step 1: x", "Step 2: x"]), medverse.CYCLE),
    ("medverse", mv([A, B], ["Step 1: A is so."]), blocks.NO_PATH),
    ("medverse", mv([A], ["Step 1: A is so.", "Step 2: x"]), blocks.NO_OUTLINE),
    ("medverse", mv([A, A], ["Step 1: A is so."]), blocks.SAME_LABEL),
    ("medverse", mv([A, B], ["Step 1: A is so.", "Step 1: x", "Step 2: x"]), blocks.SAME_LABEL),
    ("medverse", mv([A, B], ["Step 1: A is so.", "Step 2: B"]), blocks.EMPTY_PATH),
    ("medverse", mv([A, B.replace("[]", "[1]")], ["Step 1: x", "Step 2: x"]), convert.NO_BLOCK),
    ("medverse", mv([A, B], ["Step 1: x", "Step 2: x"], **{"Transient Plan Prompt": "no plan"}), medverse.PARTS),
    ("medverse", mv([A, B], ["Step 1: x", "Step 2: x"], **{"Transient Plan Prompt": None}), columns.MISSING),
    ("medverse", mv([A, B], ["Step 1: <Path>", "Step 2: x"]), convert.TAG_IN_TEXT),
    ("medverse", mv([A, B], ["Step 1: x", "Step 2: x"], Conclusion="<Step>c</Step>"), markup.OUT_OF_PLACE),
]  # fmt: skip


@pytest.mark.parametrize("name, response, reason", REFUSED)
def test_refused(name, response, reason):
    fields = response if isinstance(response, dict) else {"question": "Q", "response": response}
    assert reasons_of(name, fields) == [reason]


def test_every_reason_is_tested():
    """`NOT_WELL_FORMED` is a guard: no text is known that gets as far as that."""
    modules = [load_module for load_module in (markup, blocks, columns, convert, threadweaver, r1, medverse)]
    reasons = {
        value for module in modules for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value[0].islower()
    }  # fmt: skip
    tested = {reason for _, _, reason in REFUSED} | {convert.NO_CONCLUSION, convert.TAG_IN_QUESTION}
    assert reasons - tested == {convert.NOT_WELL_FORMED}


def test_a_row_has_all_its_reasons():
    fields = {"question": "Write <Path>.", "response": "<Parallel>"}
    assert reasons_of("threadweaver", fields) == [convert.TAG_IN_QUESTION, markup.LEFT_OPEN]
    assert reasons_of("npr", sample("npr", 2)) == [convert.TAG_IN_QUESTION, blocks.NO_OUTLINE]


def test_places_of_faults():
    with pytest.raises(RejectedRow, match=r"line 2, column 3: <thread> is never closed"):
        convert_fields("threadweaver", {"question": "Q", "response": "Hm.\n  <Thread>"})


def test_text_that_only_looks_like_a_tag_is_text():
    text = THREADS.replace("1: A", '1: a < b, <b>bold</b>, <Thread id="1">') + "7"
    parts = trace_of("threadweaver", {"question": "Q", "response": text}).parts[0].parts
    assert parts[0].paths[0].parts == ('a < b, <b>bold</b>, <Thread id="1">',)


def test_nested_threads_get_labels_of_the_path_around_them():
    text = THREADS.replace("1: A", f"1: A {THREADS} end") + "7"
    expected = block(("a", ["A", block(("a", "A"), ("b", "B"), parent="1."), "end"]), ("b", "B"))
    assert trace_of("threadweaver", {"question": "Q", "response": text}) == Trace((Think((expected,)),))


def test_columns():
    form = load_format("parallel-r1")
    fields = {"extra_info": {"question": None, "answer": "x"}, "mine": "Q"}
    chosen = choose_columns("f row 1", fields, form.columns)
    assert (chosen.question, chosen.response, chosen.answer) == ("extra_info.question", "extra_info.answer", None)
    chosen = choose_columns("f row 1", fields, form.columns, question="mine", answer="extra_info.answer")
    assert (chosen.question, chosen.answer) == ("mine", "extra_info.answer")
    with pytest.raises(
        ValueError, match=r"f row 1: no column yours; name one with --question-column: extra_info, mine"
    ):
        choose_columns("f row 1", fields, form.columns, question="yours")
    with pytest.raises(ValueError, match=r"f row 1: no column question or .*: a"):
        choose_columns("f row 1", {"a": 1}, form.columns)


def test_unknown_format():
    assert [load_format(name).name for name in FORMATS] == list(FORMATS)
    with pytest.raises(ValueError, match="unknown format 'os'; choose one of threadweaver"):
        load_format("os")


def test_long_and_hostile_texts_take_linear_time():
    for text in ("< " * 200_000, "<" + " " * 400_000, "<Thread" * 100_000, "\n" * 300_000 + THREADS + "7"):
        try:
            convert_fields("threadweaver", {"question": "Q", "response": f"x {text}"})
        except RejectedRow as error:
            assert error.reasons[0].reason == convert.NO_BLOCK
