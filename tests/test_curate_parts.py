"""The pieces of the curator: units, reading answers, groups, outline, independence, prompts, columns."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvtrain.curate.distance import distance
from mvtrain.curate.independence import references, used_results
from mvtrain.curate.numbers import numbers_in
from mvtrain.curate.prompts import PLACES, Prompts
from mvtrain.curate.reading import read_json, read_text
from mvtrain.curate.records import Complaints, Step
from mvtrain.curate.sources import SourceColumns
from mvtrain.curate.stages.groups import read_groups
from mvtrain.curate.stages.map_reduce import MapReduceForm, read_map_reduce
from mvtrain.curate.stages.refill import read_copy
from mvtrain.curate.stages.rewrite import read_path
from mvtrain.curate.stages.summary import read_steps
from mvtrain.curate.units import at_most, numbered, split_units
from mvtrain.evaluate.grading_answers import last_box

# Units


@given(st.text(alphabet="ab .!?\n$\\(:;\u3002", max_size=200), st.integers(1, 40))
def test_units_joined_are_the_chain_and_none_is_blank(chain, longest):
    units = split_units(chain, longest)
    assert "".join(units) == chain
    assert all(unit.strip() for unit in units) or not chain.strip()


def test_units_by_hand():
    assert split_units("One.\n\nTwo. Three.\n") == ("One.\n\n", "Two. Three.\n")
    assert split_units("Two. Three is $a. b$ so. Four.", longest=10) == ("Two. ", "Three is $a. b$ so. ", "Four.")
    assert split_units("先求x。再求y。最后。", longest=5) == ("先求x。", "再求y。", "最后。")
    assert split_units("\n\nOne") == ("\n\nOne",) and split_units("") == ()
    assert numbered(("One.\n\n", "Two."), 4) == "[4] One.\n[5] Two."


@given(st.integers(1, 50), st.integers(1, 20))
def test_many_units_become_few_and_stay_the_same_text(count, most):
    units = tuple(f"line {k}\n" for k in range(count))
    fewer = at_most(units, most)
    assert "".join(fewer) == "".join(units) and len(fewer) <= most
    assert max(map(len, fewer)) <= -(-count // most) * len("line 00\n")


# Reading answers


def reply(text: str, reason: str = "stop") -> SimpleNamespace:
    return SimpleNamespace(text=text, finish_reason=reason)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(""), "empty"),
        (reply("<think>only thoughts</think>  "), "empty"),
        (reply("only thoughts, whose tag the template wrote</think>"), "empty"),
        (reply("half a", "length"), "cut off"),
        (reply("", "content_filter"), "refused"),
        (reply("", "refusal"), "refused"),
    ],
)
def test_answers_without_a_text(answer, kind):
    with pytest.raises(Complaints) as error:
        read_text(answer)
    assert error.value.complaints[0].kind == kind


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ('{"outlines": [], "conclusion": "a"}', "a"),
        ('Here it is:\n```json\n{"outlines": [], "conclusion": "a"}\n```\nDone.', "a"),
        ('{"outlines": [], "conclusion": "\\frac{1}{2}, \\( x \\neq y \\)"}', r"\frac{1}{2}, \( x \neq y \)"),
        ('{"outlines": [], "conclusion": "half is \\\\frac{1}{2}"}', r"half is \frac{1}{2}"),
        ('{"outlines": [], "conclusion": "one\\nThen \\"two\\",\\t7"}', 'one\nThen "two",\t7'),
        (r'{"outlines": [], "conclusion": "A \rightarrow B, \tanh x, \bigcup, \neg p, \boldsymbol y\nNext"}',
         "A \\rightarrow B, \\tanh x, \\bigcup, \\neg p, \\boldsymbol y\nNext"),
        ('{"outlines": [], "conclusion": "a\nb"}', "a\nb"),
        ('The set {1, 2} is meant: {"outlines": ["x",], "conclusion": "a",}  where {n} is whole', "a"),
        ('```json\n{"outlines": [], "conclusion": "a"}\n```\nNothing else:\n```\nx = {1}\n```', "a"),
        ('{"outlines": [], "conclusion": "caf\\u00e9 \\union"}', r"café \union"),
    ],
)  # fmt: skip
def test_json_as_models_write_it(text, conclusion):
    assert read_json(text, MapReduceForm).conclusion == conclusion


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no object", "expected one JSON object, found none; the answer begins: no object"),
        ('{"outlines": [], "conclusion": "cut', "the answer is not JSON"),
        ('{"outlines": "a", "conclusion": "b"}', "outlines: Input should be a valid list"),
        ("{}", "outlines: Field required; conclusion: Field required"),
        ("[" * 100_000 + '{"a":' * 100_000 + "}", "JSON"),
    ],
)
def test_json_that_is_none(text, said):
    with pytest.raises(Complaints, match=said.replace("(", r"\(")):
        read_json(text, MapReduceForm)


@given(st.recursive(st.text() | st.integers() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_json_that_is_right_is_read_as_it_stands_but_for_commands_of_latex(value):
    """What is doubled is a backslash that stands before a letter of a command; generated texts have none of those."""
    text = json.dumps({"outlines": [], "conclusion": json.dumps(value)})
    if "\\" not in json.dumps(value):
        assert json.loads(read_json(text, MapReduceForm).conclusion) == value


# Stage 1


def summary(*steps) -> str:
    return json.dumps(
        {"steps": [dict(zip(("title", "units", "substeps"), ("t", *step), strict=False)) for step in steps]}
    )


def test_a_tree_by_hand():
    subs = [{"title": "a", "units": [3, 3]}, {"title": "b", "units": [4, 6]}]
    assert read_steps(summary(([1, 2],), ([3, 6], subs), ([7, 7],)), 7) == (
        Step("S1", "t", 1, 2),
        Step("S2", "t", 3, 6, (Step("S2.1", "a", 3, 3), Step("S2.2", "b", 4, 6))),
        Step("S3", "t", 7, 7),
    )
    assert read_steps(summary(([1, 2],), (None,), ([5, 7],)), 7)[1] == Step("S2", "t", None, None)
    assert read_steps(summary(([1, 7], [{"title": "a", "units": [1, 7]}])), 7) == (Step("S1", "t", 1, 7),), "one piece"


def test_substeps_without_a_step_around_them_are_looked_at_too():
    def tree(*units) -> str:
        subs = [{"title": "a", "units": list(u)} for u in units]
        return json.dumps({"steps": [{"title": "t", "units": [1, 1]}, {"title": "w", "substeps": subs}]})

    assert read_steps(tree((2, 3), (4, 7)), 7)[1].substeps[1] == Step("S2.2", "a", 4, 7)
    for units, said in (([(2, 3), (5, 7)], "begin at unit 4"), ([(0, 3), (4, 7)], "has units 1 to 7"),
                        ([(2, 3), (2, 7)], "begin at unit 4"), ([(2, 3), (77, 99)], "has units 1 to 7")):  # fmt: skip
        with pytest.raises(Complaints) as error:
            read_steps(tree(*units), 7)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((([1, 3],), ([5, 7],)), "S2 has units 5 to 7, expected it to begin at unit 4"),
        ((([1, 4],), ([4, 7],)), "S2 has units 4 to 7, expected it to begin at unit 5"),
        ((([1, 5],),), "units 6 to 7 of the chain belong to no step"),
        ((([1, 9],),), "S1 has units 1 to 9, but the chain has units 1 to 7"),
        ((([3, 1],), ([4, 7],)), "the first comes after the last"),
        ((([1, 7], [{"title": "a", "units": [1, 2]}, {"title": "b", "units": [4, 7]}]),), "S1.2 has units 4 to 7"),
        ((([1, 7], [{"title": "a", "units": [1, 2]}, {"title": "b", "units": [3, 9]}]),), "but S1 has units 1 to 7"),
        ((), "steps: List should have at least 1 item"),
        ((("1-7",),), "steps[0].units"),
    ],
)
def test_trees_that_do_not_cover_the_chain(steps, said):
    with pytest.raises(Complaints) as error:
        read_steps(summary(*steps), 7)
    assert said in str(error.value)


# Stage 2

TREE = read_steps(
    summary(([1, 1],), ([2, 2],), ([3, 6], [{"title": "a", "units": [3, 3]}, {"title": "b", "units": [4, 5]},
            {"title": "c", "units": [6, 6]}]), ([7, 7],)), 7,
)  # fmt: skip


def groups(paths, dependencies=None) -> str:
    return json.dumps({"groups": [{"paths": p} for p in paths], "dependencies": dependencies or {}})


def test_groups_by_hand():
    found = read_groups(groups([[["S3.2"], ["S3.3"]], [["S1"], ["S2", "S3"]]], {"S4": ["S1"], "S3": ["S2"]}), TREE)
    assert {group.paths for group in found} == {(("S1",), ("S2", "S3")), (("S3.2",), ("S3.3",))}
    assert read_groups(groups([]), TREE) == ()


@pytest.mark.parametrize(
    ("paths", "dependencies", "said"),
    [
        ([[["S1"], ["S9"]]], {}, "there is no step S9"),
        ([[["S1"]]], {}, "expected at least two paths"),
        ([[["S1"], []]], {}, "expected at least two paths, none of them empty"),
        ([[["S1"], ["S3"]]], {}, "expected neighbours in the order of the chain"),
        ([[["S2"], ["S1"]]], {}, "expected neighbours in the order of the chain"),
        ([[["S2"], ["S3.1"]]], {}, "are mixed"),
        ([[["S1"], ["S2"]], [["S2"], ["S3"]]], {}, "in more than one path: S2"),
        ([[["S1"], ["S2"]]], {"S2": ["S1"]}, "S2 needs S1, which is on another path"),
        ([[["S1"], ["S2", "S3"], ["S4"]]], {"S4": ["S3.1"]}, "S4 needs S3, which is on another path"),
        ([[["S1"], ["S2"], ["S3"]]], {"S3.2": ["S1"]}, "S3 needs S1"),
        ([[["S1"], ["S2"]]], {"S2": ["S4"], "S4": ["S1"]}, "S2 needs S1"),
        ([[["S3.1"], ["S3.2"]]], {"S3.2": ["S3.1"]}, "S3.2 needs S3.1"),
        ([[["S1"], ["S2"]]], {"2": "Step 1"}, "S2 needs S1"),
        ([[["S1"], ["S2"]]], {"S2": ["plan"]}, "dependencies: there is no step plan"),
    ],
)
def test_groups_that_are_none(paths, dependencies, said):
    with pytest.raises(Complaints) as error:
        read_groups(groups(paths, dependencies), TREE)
    assert said in str(error.value)


def test_needs_within_a_path_are_no_fault():
    assert read_groups(groups([[["S1", "S2"], ["S3"]]], {"S2": ["S1"], "S3.2": ["S3.1"], "S4": ["S3", "S1"]}), TREE)


# Stage 5

PATHS = {"1": "Take 12, which gives 30.", "2": "Take 34 and 12 to get 46."}


@pytest.mark.parametrize(
    ("outlines", "conclusion", "said"),
    [
        (["a"], "b", "1 outlines for 2 paths"),
        (["a", " "], "b", "is empty"),
        (["a", "b"], "", "is empty"),
        (["a", "<Path>b"], "c", "tags in it: <Path>"),
        (["a", "b"], "It is 47.", "numbers of its own: 47"),
        (["a", "a"], "c", "two outlines are the same"),
        (["a", "Show that it is 46"], "c", "outline 2 tells a result: 46"),
        (["a", "Knowing 30, go on"], "c", "outline 2 tells a result: 30"),
        (["a", "Similarly to path 1, add"], "c", "outline 2: "),
    ],
)
def test_map_and_reduce_that_do_not_fit(outlines, conclusion, said):
    with pytest.raises(Complaints) as error:
        read_map_reduce(json.dumps({"outlines": outlines, "conclusion": conclusion}), PATHS, "given: 12", "known: 46")
    assert said in str(error.value)


def test_outlines_may_have_what_is_given():
    answer = json.dumps({"outlines": ["Start from 12", "Start from 34"], "conclusion": "30 and 46"})
    assert read_map_reduce(answer, PATHS, "given: 12", " ".join(PATHS.values())).outlines[0] == "Start from 12"


def test_labels_that_a_model_wrote_are_taken_off():
    form = read_map_reduce(
        json.dumps({"outlines": ["1: do\nthis", "Path 2. that"], "conclusion": " c 46 "}), PATHS, "", "46"
    )
    assert (form.outlines, form.conclusion) == (["do this", "that"], "c 46")
    assert read_path("2.1: the text is this", "the text is this", "2.1", "", [], 0.2) == "the text is this"
    assert read_copy("```\nthe text\n```", "all of the text", 0.2) == "the text"
    with pytest.raises(Complaints, match="tags in it: <Path>"):
        read_copy("the <Path> text", "the <Path> text", 0.2)


ORIGINAL = "We compute the second value from the formula, which gives 12 + 30 = 42.\n[[block 1]]\nSo it is 42."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ORIGINAL.replace("[[block 1]]\n", ""), "expected [[block 1]], each once, in order"),
        (ORIGINAL + "\n[[block 1]]", "each once, in order"),
        (
            ORIGINAL + " And a good deal is added here that was never said in the chain.",
            "characters 0 were cut and 64 added",
        ),
        ("Similarly, " + ORIGINAL, "goes on from something that is not in it: 'Similarly'"),
        (ORIGINAL.replace("the formula", "the previous case"), "points at another path"),
        (ORIGINAL.replace("the formula", "path 1"), "speaks of path 1"),
        (ORIGINAL.replace("12 + 30", "770 - 728"), "it uses 770, the result of path 1"),
        (ORIGINAL.replace("12 + 30", "13 + 29"), "numbers that are not in the text: 13, 29"),
        ("The moon is made of cheese. [[block 1]] z is 9.", "were cut and"),
        (ORIGINAL.replace("42", "12"), "what the path came to is gone: 42"),
        ("```\n\n```", "the text of the path is missing"),
        (ORIGINAL.replace("So it is 42.", r"So it is \boxed{42}."), "expected no box, as in the text"),
    ],
)
def test_paths_that_do_not_stand_alone(text, said):
    read_path(ORIGINAL, ORIGINAL, "2", "", [("1", "So it is 770.")], 0.2)
    with pytest.raises(Complaints) as error:
        read_path(text, ORIGINAL, "2", "", [("1", "So it is 770.")], 0.2)
    assert said in str(error.value)


# Independence


STANDING_ALONE = [
    "First we add. In the first sum, 3 and 4 are added. Similarly, the second sum is 9.",
    "Case 2 of the theorem applies. The last digit is 7.",
    "There are two cases. In the other one of them x is 3.",
    "The next prime is 11.",
    "Let x be the smaller root. Then x = 3 - sqrt(5). Next we square: x^2 = 14 - 6 sqrt(5).",
    "Consider n = 2 mod 3. Then n^2 = 4 = 1 mod 3. The same holds for n^4.",
    "To check the second condition, substitute y = 25: 2 * 25 - 10 = 40, which is positive.",
    "The area is given by the other formula, A = 1/2 ab sin C. With a = 10, b = 12 and C = 30 degrees it is 30.",
    "Wait, let me recompute. 17 * 13 = 221. Yes, 221. Again 221 - 200 = 21.",
    "By the first step of the algorithm, gcd(48, 18) = gcd(18, 12). Continue: gcd(12, 6) = 6.",
    "In the first row the sum is 15. In the second row it is also 15. So the rows agree.",
    "Suppose the last digit is 5. Then the number is divisible by 5; the previous digit can be 2 or 7.",
    "The derivative is 3x^2 - 12. Setting it to zero gives x = 2 or x = -2. At x = 2 the value is -16.",
    "For the second approach, use generating functions. The coefficient of x^10 is 66.",
    "Case 2: x < 0. Here |x| = -x, so -x + 2x = 6 and x = 6, which contradicts x < 0.",
    "If the first card is red, the second is black with probability 26/51.",
    "Substituting back into the original equation: 2(7) + 3 = 17. It checks.",
    "The force along the other path is zero. As noted above, it has no work to do.",
    "By the previous step of the sum, s = 3. Next, try x = 12.",
    "Instead of integrating, use symmetry: both halves are equal, so the integral is 2 * 4 = 8.",
    "Now the denominator: 3! * 4! = 6 * 24 = 144.",
]
POINTING_ELSEWHERE = [
    "Similarly, f(3) = 9.",
    "Also, 5 divides n. So n = 5k and k < 20.",
    "Alternatively, we can count the complement: there are 2^10 = 1024 strings.",
    "On the other hand, x < 0 gives nothing.",
    "As in the first case, we square both sides.",
    "We use the same idea as before and get 12.",
    "Unlike the second approach this one needs no calculus.",
    "The value from the previous path is needed here.",
    "By the same argument, b is even.",
    "It is path 1 that gives the bound.",
    "Just like Case 1, we square.",
    "Using the result of Case 1, x is 5.",
    "From case 1 we know that x > 2.",
    "This gives 9, the same as with method 1.",
    "Since that didn't work, let's try another approach.",
    "\u540c\u7406, y = 3.",
]


@pytest.mark.parametrize("text", POINTING_ELSEWHERE)
def test_what_points_out_of_a_path_is_found(text):
    assert list(references(text, "2", ["1", "3"]))


@pytest.mark.parametrize("text", STANDING_ALONE)
def test_what_a_path_says_of_itself_is_no_reference(text):
    assert list(references(text, "2", ["1", "3"])) == []


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("Take 148 and add 2.", True),
        ("The rest is 148 - 5.", True),
        ("So x = 12 * 4 + 100 = 148 + 2.", False),
        ("12 times 4 and 100 = 148. Take 148 and add 2.", False),
        ("The product is 148. Take it.", False),
        ("We get $\\boxed{148}$.", False),
        ("Take 1480 and 14.8 and x148.", False),
    ],
)
def test_results_of_siblings(text, uses):
    sibling = [("1", "Start with 120.\nSo there are 148 of them.")]
    assert bool(list(used_results(text, "", sibling))) is uses
    assert not list(used_results(text, "148 is given.", sibling)), "what the question gives is nobody's result"
    assert not list(used_results("Take 120.", "", sibling)), "it is on the sibling's way"


def test_small_numbers_come_up_by_chance():
    """In a quarter of a year, at 12 o'clock: they say nothing, so what needs them is left to stage 2."""
    assert not list(used_results("Take 48 and add 2.", "", [("1", "So there are 48 of them.")]))
    assert list(used_results("Take 4.8 and add 2.", "", [("1", "So it is 4.8.")]))


@pytest.mark.parametrize("first", STANDING_ALONE)
def test_paths_that_stand_alone_use_nobody(first):
    assert not [c for other in STANDING_ALONE if other != first for c in used_results(first, "", [("1", other)])]


def test_unrelated_paths_stay_independent_however_long_they_are():
    """Arithmetic that is drawn without any relation, a hundred lines a path."""
    source = random.Random(3)

    def path() -> str:
        lines = []
        for _ in range(100):
            a, b = source.randint(2, 99), source.randint(2, 99)
            lines.append(f"Then {a} plus {b} is {a + b}, and we go on with it.")
        return "\n".join(lines)

    flagged = sum(bool(list(used_results(path(), "", [("1", path())]))) for _ in range(100))
    assert flagged <= 10, "of 100"


# Distance, prompts, columns


def test_distance_by_hand():
    assert distance("abcd", "abXd") == 1 / 4
    assert distance("a  b\n\nc", "a b c") == 0 and distance("", "") == 0
    assert distance("kitten", "sitting") == 3 / 7


def test_prompts_of_a_user_replace_ours(tmp_path):
    ours = Prompts.read()
    assert set(ours.texts) == set(PLACES) and "{{" not in ours.fill("groups", steps="S1: {x}")
    with pytest.raises(ValueError, match=r"no prompt in it; expected summary.md"):
        Prompts.read(tmp_path)
    (tmp_path / "groups.md").write_text("Which of {{steps}}?")
    own = Prompts.read(tmp_path)
    assert own.fill("groups", steps="{{x}} $y") == "Which of {{x}} $y?" and own.digest != ours.digest
    (tmp_path / "groups.md").write_text("Which of {{stepps}}?")
    with pytest.raises(ValueError, match=r"groups.md: the prompt lacks \{\{steps\}\}"):
        Prompts.read(tmp_path)


def source(columns=None, **fields):
    return (columns or SourceColumns()).read("f row 1", 0, fields, last_box)


def test_columns_of_public_sets():
    s = source(question="q", deepseek_thinking_trajectory="<think>c</think>", deepseek_attempt="a 7", solution="7")
    assert (s.id, s.question, s.chain, s.answer, s.reference) == ("row-1", "q", "c", "a 7", "7")
    s = source(id=5, problem="q", response="<think>\nc\n</think>\nThe answer is 7.", answer=7)
    assert (s.id, s.chain, s.answer, s.reference) == ("5", "c", "The answer is 7.", "7")
    s = source(problem="q", response="c, without an opening tag\n</think>\nIt is 7.", answer="7")
    assert (s.chain, s.answer) == ("c, without an opening tag", "It is 7.")
    s = source(question="q", chain=r"so \boxed{7}", solution="We count: 3 + 9 = 12 ways, and none is left out.")
    assert (s.answer, s.reference) == (r"\boxed{7}", None), "a worked solution is no answer"
    s = source(question="q", chain=r"so \boxed{7}", solution="long " * 100 + r"\boxed{8}")
    assert (s.answer, s.reference) == (r"\boxed{7}", "8")
    assert source(question="q", chain="c", solution="long " * 100).answer == ""
    assert source(question="q", chain="a\r\nb", answer="7").chain == "a\nb"
    named = SourceColumns(question="ask", chain="how")
    assert source(named, ask="q", how="c", answer="7").answer == r"\boxed{7}"


def test_a_column_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"f row 1: no column .* for the chain; .* --chain-column: question"):
        source(question="q")
    with pytest.raises(ValueError, match="no column ask for the question"):
        source(SourceColumns(question="ask"), question="q", chain="c")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000 and 1000", ["1000", "1000"]),
        ("12{,}345{,}678.5", ["12345678.5"]),
        ("x = .5, 3.5 and 0.5", ["0.5", "3.5", "0.5"]),
        ("the pair 1,2 and 1,2345", ["1", "2", "1", "2345"]),
        (r"\tfrac12 + \frac{3}{40} + \dfrac 56", ["1", "2", "3", "40", "5", "6"]),
    ],
)
def test_numbers_are_the_same_however_they_are_written(text, numbers):
    assert numbers_in(text) == numbers


def test_a_tree_may_say_that_a_step_has_no_substeps():
    (step,) = read_steps('{"steps": [{"title": "a", "units": [1, 2], "substeps": null}]}', 2)
    assert step.substeps == ()


@pytest.mark.parametrize("question", ["modulo 1,000", "modulo 1000", "the 1000th", "1000cm"])
def test_a_number_of_the_question_is_known_however_it_is_written(question):
    sibling = [("1", "Even n: take 64 modulo 1000")]
    assert list(used_results("For odd n we take 81 modulo 1000 and get 81.", question, sibling)) == []
    assert len(list(used_results("For odd n we use 1,000 and get 81.", "modulo 17", sibling))) == 1


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("x is 17, as it was found before.", None),
        ("it is false that x is 17", "11 of 24 characters are not in the units"),
        ("x is 18, as it was found before.", "numbers that are not in the units: 18"),
    ],
)
def test_a_typed_step_says_what_stands_in_its_units(answer, fault):
    given = "Then x is 17, as it was found before. So it fits."
    if fault is None:
        assert read_copy(answer, given, 0.2) == answer
        return
    with pytest.raises(Complaints) as error:
        read_copy(answer, given, 0.2)
    assert fault.partition(" of ")[2] in str(error.value) or fault in str(error.value)


@pytest.mark.parametrize("pointer", ["Now let us go on to case 2.", "This is just like in case 2.", "See path 2."])
def test_a_pointer_at_the_end_of_a_path_may_go(pointer):
    """Its number is not what the path came to."""
    text = "If x is odd, then x equals 5 and nothing else."
    assert read_path(text, f"{text} {pointer}", "1", "", [("2", "another")], 0.2) == text
    with pytest.raises(Complaints, match="what the path came to is gone: 5"):
        read_path("If x is odd, then x equals it and nothing else.", f"{text} {pointer}", "1", "", [("2", "a")], 0.2)
