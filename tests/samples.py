"""Samples as an evaluation writes them, for tests of what is computed from them."""

from mvtrain.evaluate.records import Sample


def make_sample(id: str = "1", sample: int = 0, **changes) -> Sample:
    fields = {
        "task": "sums", "mode": "parallel", "id": id, "sample": sample, "seed": sample, "question": f"question {id}",
        "reference": "7", "kind": "math", "response": "", "answer": "7", "correct": True, "reason": "",
        "finish_reason": "stop", "well_formed": True, "problems": [], "num_blocks": 1, "num_prompt": 10,
        "num_generated": 30, "critical_path": 20, "num_forced": 2, "num_forced_closes": 0, "seconds": 2.0,
        "seconds_to_first_token": 0.1,
    }  # fmt: skip
    return Sample(**{**fields, **changes})


def make_samples(answers: dict[str, str], **changes) -> list[Sample]:
    """Samples by a string a problem: `+` right, `-` wrong, `?` ungradable, `0` no answer."""
    verdicts = {"+": ("7", True), "-": ("8", False), "?": ("x+1", None), "0": (None, False)}
    return [
        make_sample(id, k, answer=verdicts[mark][0], correct=verdicts[mark][1], **changes)
        for id, marks in answers.items()
        for k, mark in enumerate(marks)
    ]
