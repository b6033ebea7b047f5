"""The table of mutants: each can be made and has tests that could notice it."""

from mutants import mutants


def test_every_text_is_in_its_file_once_and_every_test_exists():
    table = list(mutants())
    assert len(table) > 80 and len(set(table)) == len(table)
    assert not [mutant.error for mutant in table if mutant.error]
