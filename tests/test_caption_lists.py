"""Lists of captions in a cell, however they are spelled; what is no text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written_tables import opened, read

from pipeline.sources.caption_values import captions_in

LISTS = {
    "json": ('["a", "b\'s"]', ["a", "b's"]),
    "json with white space": ('[ "a" ,\n "b" ]', ["a", "b"]),
    "json with escapes": ('["\\u00e9\\ud83e\\udd8a", "a\\nb"]', ["é🦊", "a\nb"]),
    "json with null": ('["a", null, ""]', ["a", "(empty-caption)", ""]),
    "json of objects": ('[{"raw": "a", "id": 1}, {"caption": "b"}]', ["a", "b"]),
    "json with a number": ('["a", 3]', ["a", "(malformed-caption)"]),
    "json of lists": ('[["a"]]', ["(malformed-caption)"]),
    "python": ("['a', \"b's\"]", ["a", "b's"]),
    "python escapes": (
        r"['it\'s', 'a\\b', 'tab\there', '\xe9\u2019\U0001f98a']",
        ["it's", "a\\b", "tab\there", "é’🦊"],
    ),
    "python with None": ("['a', None]", ["a", "(empty-caption)"]),
    "python with nan": ("[nan, 'a']", ["(empty-caption)", "a"]),
    "python of one": ("['a']", ["a"]),
    "python over lines": ("['a',\n 'b',\n]", ["a", "b"]),
    "python of objects": ("[{'raw': 'a', 'tokens': ['a']}, {'raw': \"b's\"}]", ["a", "b's"]),
    "python 2": ("[u'a', u'b']", ["a", "b"]),
    "tuple": ("('a', 'b')", ["a", "b"]),
    "tuple of one": ("('a',)", ["a"]),
    "numpy": ("['a' \"b's\"\n 'c']", ["a", "b's", "c"]),
    "numpy repr": ("array(['a', 'b'], dtype=object)", ["a", "b"]),
    "numpy, wide": ("array(['a', 'b'],\n      dtype='<U1')", ["a", "b"]),
    "empty": ("[]", ["(empty-caption)"]),
    "numpy 2": ("[np.str_('a'), np.str_(\"b's\")]", ["a", "b's"]),
    "a set": ("{'a', 'b'}", ["a", "b"]),
    "a frozen set": ("frozenset({'a'})", ["a"]),
    "an index": ("Index(['a', 'b'], dtype='object', name='caption')", ["a", "b"]),
    "a vector of R": ('c("a", "b")', ["a", "b"]),
    "an array of Postgres": ('{"a","b"}', ["a", "b"]),
    "an object": ("{'tokens': ['a', 'dog'], 'raw': 'a dog', 'imgid': 3}", ["a dog"]),
    "an object in json": ('{"raw": ["a", "b"]}', ["a", "b"]),
    "objects of numpy": ("[{'raw': 'a', 'tokens': array(['a'], dtype=object)}\n {'raw': 'b'}]", ["a", "b"]),
    "json written twice": (json.dumps(json.dumps(["a", "b"])), ["a", "b"]),
    "a list of tuples": ("[('a', 'b')]", ["(malformed-caption)"]),
    "a list of arrays": ("[array(['a'], dtype=object)]", ["(malformed-caption)"]),
    "a quoted word in brackets": ('["quoted" sign]', ['["quoted" sign]']),
    "a brace": ("{smiling} people", ["{smiling} people"]),
    "cut short": ("['a dog', 'a ca", ["(malformed-caption)"]),
    "shortened by numpy": ("['a' 'b' ... 'y' 'z']", ["(malformed-caption)"]),
    "never closed": ('["a dog"', ["(malformed-caption)"]),
    "a quote inside": ("['it's', 'a']", ["(malformed-caption)"]),
    "a caption in brackets": ("[music]", ["[music]"]),
    "a caption that begins so": ("['80s music] plays", ["['80s music] plays"]),
    "a caption in parentheses": ("(a dog) on a sofa (red)", ["(a dog) on a sofa (red)"]),
    "a quote in parentheses": ('("hello")', ['("hello")']),
    "numbers": ("[1, 2]", ["[1, 2]"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_in_a_cell_is_a_list(name: str, tmp_path: Path) -> None:
    text, captions = LISTS[name]
    rows = {
        "t.tsv": "image\tcaption\na.png\t" + text.replace("\n", " ") + "\n",
        "t.csv": 'image,caption\na.png,"' + text.replace('"', '""') + '"\n',
        "t.jsonl": json.dumps({"image": "a.png", "caption": text}) + "\n" + json.dumps({"image": "b.png"}) + "\n",
    }
    for file, content in rows.items():
        assert read(opened(tmp_path / file, content))[0] == ("a.png", captions), file


def test_what_is_no_text_is_told_by_kind_and_never_shown() -> None:
    told = [str(one) for one in (*captions_in(12.5), *captions_in([True, {"x": 1}, object()]))]
    assert told == [
        "malformed-caption: a caption is a number, expected text",
        "malformed-caption: a caption is true or false, expected text",
        "malformed-caption: a caption is an object with the keys x, expected text",
        "malformed-caption: a caption is a value of the type object, expected text",
    ]
    assert captions_in(None) == captions_in(float("nan")) == ()
    said = captions_in([{"from": "human", "value": "Describe it."}])
    assert [getattr(one, "reason", one) for one in said] == ["malformed-caption"], "a question is no caption"
