"""What a killed run has left: whole lines count, the last of a record, and one that was cut off is made again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvtrain.curate.journal import Journal
from mvtrain.curate.records import Complaint, Done, Source

SOURCE = Source("a", "Which?", "One.", "7")


def done(number: int, stage: str = "source") -> Done:
    return Done(number, replace(SOURCE, id=f"r{number}"), "rejected", stage, (Complaint("kind", "why"),))


def journal_of(file, *records: Done) -> Journal:
    journal = Journal(file)
    for record in records:
        journal.add(record)
    return journal


@pytest.mark.parametrize(
    "tail", ['{"number": 9, "dig', '{"number": 9}x\n{"number": 8, "digest": "d"}\n', "\0" * 50 + "\n"]
)
def test_what_comes_behind_a_damaged_line_is_made_again(tmp_path, tail):
    file = tmp_path / "work" / "finished.jsonl"
    journal_of(file, done(1), done(0)).close()
    whole = file.read_bytes()
    file.write_bytes(whole + tail.encode())
    journal = Journal(file)
    assert file.read_bytes() == whole and len(journal) == 2
    journal.add(done(2))
    assert [row["source"]["id"] for row in journal.rows()] == ["r0", "r1", "r2"]
    journal.close()
    assert len(Journal(file)) == 3


def test_the_last_line_of_a_record_counts(tmp_path):
    journal_of(tmp_path / "j", done(0, "first"), done(1), done(0, "second")).close()
    assert [row["stage"] for row in Journal(tmp_path / "j").rows()] == ["second", "source"]


def test_what_is_finished(tmp_path):
    journal = journal_of(tmp_path / "j", done(0), done(1, "endpoint"), done(2, "internal"))
    digests = [replace(SOURCE, id=f"r{number}").digest for number in range(3)]
    assert [journal.has(number, digest) for number, digest in enumerate(digests)] == [True, False, False]
    assert not journal.has(0, replace(SOURCE, chain="Another.").digest) and not journal.has(3, digests[0])
    journal.forget_from(1)
    assert len(journal) == 1


def test_a_place_that_another_record_takes_is_empty_until_it_is_finished(tmp_path):
    journal = journal_of(tmp_path / "j", done(0), done(1))
    journal.forget_other(0, replace(SOURCE, id="r0").digest)
    journal.forget_other(1, "another")
    assert [row["number"] for row in journal.rows()] == [0]
    journal.close()
    again = Journal(tmp_path / "j")
    assert [row["number"] for row in again.rows()] == [0], "a later run does not bring it back"
    again.add(done(1, "other"))
    assert [row["stage"] for row in again.rows()] == ["source", "other"]
