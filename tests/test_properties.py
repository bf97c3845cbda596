"""What holds of any text, any objects and any reply, tried with texts that hypothesis makes up.

EXAMPLES=100000 python -m pytest tests/test_properties.py     is a fuzz, with other examples every time
"""

import ast
import functools
import hashlib
import json
import math
import os
import re
import time
import unicodedata

import pytest
from conftest import PROJECT, cleaner
from hypothesis import example, given, settings
from hypothesis import strategies as st

import chat
import jsonl
import replies
import tokenizer

LIMITS = settings(max_examples=int(os.environ.get('EXAMPLES', 60)), deadline=None, database=None, derandomize='EXAMPLES' not in os.environ)
SIGNS = 'कािी्ँं़।\u200c\u200d\u0301éŞſKİ“”’«» \n\t\r\0\ufeff\u2028\U0001f418'
ANY = st.text(st.characters() | st.sampled_from(SIGNS), max_size=300)  # with halves of surrogate pairs
TEXT = st.text(st.characters(exclude_categories=['Cs']) | st.sampled_from(SIGNS), max_size=300)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY,
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY, inner, max_size=4), max_leaves=8)
ROWS = st.lists(st.dictionaries(ANY, JSON, max_size=5), max_size=6)


@functools.cache
def code_of(script, names):
    tree = ast.parse((PROJECT / script).read_text(encoding='utf-8'))
    tree.body = [node for node in tree.body if getattr(node, 'name', '') in names]
    return compile(tree, script, 'exec')


def functions(script, *names, **scope):
    """Some functions of a script, by themselves."""
    exec(code_of(script, names), scope)
    assert scope.keys() >= {*names}
    return scope


def joined(value):
    """A text, or an object with texts in it, with the two halves of a surrogate pair side by side made one character, which is what JSON takes them for."""
    if isinstance(value, str):
        return value.encode('utf-16', 'surrogatepass').decode('utf-16', 'surrogatepass')
    if isinstance(value, dict):
        return {joined(key): joined(inner) for key, inner in value.items()}
    return [joined(inner) for inner in value] if isinstance(value, list) else value


# -----------------------------------------------------------------------------
# tokenizer.py

@pytest.fixture(scope='module')
def bpe():
    words = ['एक दिन रवि बाग में गया।', 'The cat sat on the mat.', 'ক খ গ', '12 3 </s> <s>']
    return tokenizer.train(words * 20, 400, ['</h>'])


@given(TEXT)
@example('e\u0301 क\u093c \u0958')
@LIMITS
def test_any_text_comes_back_composed(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == unicodedata.normalize('NFC', text) and not {bpe.bos, bpe.eos} & {*ids} and all(0 <= i < bpe.vocab_size for i in ids)
    assert bpe.encode(unicodedata.normalize('NFD', text)) == bpe.encode(unicodedata.normalize('NFC', text))


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT)
@settings(LIMITS, max_examples=max(20, LIMITS.max_examples // 20))
def test_a_trimmed_tokenizer_encodes_what_it_was_trimmed_to_as_before(bpe, texts, other):
    before = bpe.encode_batch(texts)
    trimmed, new = tokenizer.trim(bpe, sorted({i for ids in before for i in ids}))
    assert trimmed.encode_batch(texts) == [[new[i] for i in ids] for ids in before]
    assert trimmed.decode(trimmed.encode(other)) == unicodedata.normalize('NFC', other)


# -----------------------------------------------------------------------------
# jsonl.py

@given(ROWS)
@LIMITS
def test_objects_in_are_objects_out(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / 'rows.jsonl'
    path.unlink(missing_ok=True)
    with jsonl.open_append(path) as f:
        jsonl.append(f, *rows)
    assert list(jsonl.read(path)) == joined(json.loads(json.dumps(rows)))


@given(ROWS.filter(len), st.data())
@LIMITS
def test_a_cut_loses_the_torn_line_only(tmp_path_factory, rows, data):
    path = tmp_path_factory.getbasetemp() / 'cut.jsonl'
    path.unlink(missing_ok=True)
    with jsonl.open_append(path) as f:
        jsonl.append(f, *rows)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True) if b'\r' not in whole else [line + b'\n' for line in whole.split(b'\n')[:-1]]
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left = [json.loads(line) for i, line in enumerate(lines) if len(b''.join(lines[:i + 1])) - 1 <= cut]
    assert list(jsonl.read(path)) == left
    with jsonl.open_append(path) as f:
        jsonl.append(f, {'more': 1})
    assert list(jsonl.read(path)) == [*left, {'more': 1}]


# -----------------------------------------------------------------------------
# generate_data.py

@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 3), st.integers(-2**70, 2**70))
@LIMITS
def test_each_number_stands_for_words_of_its_own(sizes, epochs, seed):
    """In every epoch each combination comes once."""
    scope = functions('generate_data.py', 'permuted', 'seed_words', hashlib=hashlib, math=math, seed=seed)
    lists = {f'kind{place}': [{'word': f'{place} {i}'} for i in range(size)] for place, size in enumerate(sizes)}
    n = math.prod(sizes)
    for epoch in range(epochs):
        found = {tuple(row['word'] for row in scope['seed_words'](i, lists).values()) for i in range(epoch * n, (epoch + 1) * n)}
        assert len(found) == n


@given(st.integers(1, 10**15), st.integers(-2**70, 2**70), st.sets(st.integers(0, 10**15), max_size=50))
@LIMITS
def test_two_numbers_of_a_large_range_never_meet(n, seed, places):
    permuted = functions('generate_data.py', 'permuted', hashlib=hashlib)['permuted']
    places = {place % n for place in places}
    found = {permuted(place, n, seed) for place in places}
    assert len(found) == len(places) and all(0 <= i < n for i in found)


PARTS = st.sampled_from(['{', '}', '"', '\\', "\\'", ':', ',', '[', ']', 'null', '-1e999', 'NaN', '"story"',
                         '"story": "', '"translation":', '<think>', '</think>',
                         '```json\n', '<h1>', '</h1>', '<p>', '</p>', '&#0;', '&lt;', '<', '>', '(', ')', '|', '\n\n', 'क', ' ', 'रवि गया।', 'Moral:', '"}'])
REPLY = st.lists(PARTS | ANY, max_size=30).map(''.join) | ANY | JSON.map(json.dumps) | st.fixed_dictionaries({'story': JSON}).map(json.dumps)


@given(REPLY)
@example('{"a":' * 3000)
@example('{"story": "' + '9' * 5000 + '", "n": ' + '9' * 5000 + '}')
@LIMITS
def test_json_is_found_or_not(reply):
    for key in ('story', 'translation'):
        found = replies.find_json(reply, key)
        assert found is None or key in found


@given(JSON | st.fixed_dictionaries({'choices': st.lists(JSON | st.fixed_dictionaries({'message': JSON | st.fixed_dictionaries(
    {'content': JSON, 'refusal': JSON}), 'finish_reason': JSON}), max_size=2)}), st.booleans())
@LIMITS
def test_a_reply_says_a_text_or_is_rejected(data, whole):
    try:
        text = chat.text_of(data, whole)
    except chat.Rejected as e:
        assert str(e) and '\n' not in str(e)
    else:
        assert isinstance(text, str) and text.strip()


# -----------------------------------------------------------------------------
# replies.py

FORMATS = {'hindi': 'json', 'english': 'json', 'news': 'html'}


@given(REPLY)
@LIMITS
def test_a_reply_becomes_stories_or_is_rejected(reply):
    for language, reply_format in FORMATS.items():
        try:
            pairs = replies.stories_in(reply, reply_format)
        except chat.Rejected:
            continue
        for headline, text in pairs:
            for check, part in ((functools.partial(replies.check, min_words=3, max_words=600), text), (replies.check_headline, headline)):
                try:
                    passed = check(cleaner(language)(part), proper_nouns=language != 'news')
                except chat.Rejected as e:
                    assert '\n' not in str(e)
                else:
                    assert passed == unicodedata.normalize('NFC', passed).strip() and not re.search('[\ud800-\udfff\0\ufffd<>{}]', passed)
            replies.missing({'noun': {'word': 'रवि', 'tags': []}, 'verb': {'word': 'जाना'}}, text)


@pytest.mark.parametrize('reply', ['<h1>A b</h1><p>A' + 5000 * '\n' + 'a', 100_000 * '"story":"', 20_000 * '{"a":', 2000 * '<h1>', 20_000 * '. "A'],
                         ids=lambda reply: reply[:4])
def test_a_reply_that_goes_round_in_circles_is_done_with_at_once(reply):
    """As a small model's does that was not stopped in time."""
    started = time.process_time()
    for language, reply_format in FORMATS.items():
        try:
            for _, text in replies.stories_in(reply, reply_format):
                replies.check(cleaner(language)(text), 3, 600, language != 'news')
        except chat.Rejected:
            pass
    assert time.process_time() - started < 5


# -----------------------------------------------------------------------------
# evaluate.py

CRITERIA = ('grammar', 'Plot_K', 'I')
GRADE = st.integers() | st.floats() | JSON | st.sampled_from(['8/10', '8,5', '८', '10/10', '-3', 'B: 4-5', 'ſ', 'K', 'ı', 'group k', '7-8', '9 out of 10'])
GRADES = st.dictionaries(st.sampled_from([*CRITERIA, 'plot k', 'scores', 'notes', 'GRAMMAR']),
                         GRADE | st.dictionaries(st.sampled_from([*CRITERIA, 'score']), GRADE))


@given(GRADES.map(json.dumps) | st.lists(GRADES.map(json.dumps) | PARTS | ANY | st.sampled_from(['grammar: ', 'I = ', 'Plot K is ', '8']), max_size=12).map(
    ''.join), st.booleans(), st.sampled_from(['', '{"notes": "']))
@example('{"grammar": 8, "Plot_K": 7, "I": "ſ"}', True, '')
@example('{"a":' * 3000, True, '')
@example('{"grammar": ' + '9' * 5000 + '}', False, '')
@LIMITS
def test_a_reply_holds_grades_or_is_rejected(reply, letters, prefill):
    scales = {'grammar': (1, 10), 'Plot_K': (1, 10), 'I': (3, 8.5) if letters else (1, 10)}
    try:
        grades, notes = replies.read_grades(prefill + reply, scales, {'I': {'K': 3, 'S': 5, 'I': 8.5}} if letters else {})
    except chat.Rejected as e:
        assert str(e) and '\n' not in str(e)
    else:
        assert grades.keys() == scales.keys() and isinstance(notes, str)
        assert all(type(grade) is float and scales[name][0] <= grade <= scales[name][1] for name, grade in grades.items())
