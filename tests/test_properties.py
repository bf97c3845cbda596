"""What holds for any text, any object and any reply, tried with examples that hypothesis makes up.

EXAMPLES=100000 python -m pytest tests/test_properties.py     fuzzes, with other examples every time
"""

import itertools
import json
import os
import re
import time
import unicodedata

import pytest
from conftest import cleaner
from hypothesis import example, given, settings
from hypothesis import strategies as st

import chat
import files
import replies
import tokenizer

N_EXAMPLES = int(os.environ.get('EXAMPLES', 60))
LIMITS = settings(max_examples=N_EXAMPLES, deadline=None, database=None, derandomize='EXAMPLES' not in os.environ)
SIGNS = 'कािी्ँं़।\u200c\u200d\u0301éŞſKİ“”’«» \n\t\r\0\ufeff\u2028\U0001f418'
ANY_TEXT = st.text(st.characters() | st.sampled_from(SIGNS), max_size=300)  # with halves of surrogate pairs
TEXT = st.text(st.characters(exclude_categories=['Cs']) | st.sampled_from(SIGNS), max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4), max_leaves=8)
ROWS = st.lists(st.dictionaries(ANY_TEXT, JSON, max_size=5), max_size=6)
PARTS = st.sampled_from([
    '{', '}', '"', '\\', "\\'", ':', ',', '[', ']', 'null', '-1e999', 'NaN', '"story"', '"story": "', '"translation":',
    '<think>', '</think>', '```json\n', '<h1>', '</h1>', '<p>', '</p>', '&#0;', '&lt;', '<', '>', '(', ')', '|', '\n\n',
    'क', ' ', 'रवि गया।', 'Moral:', '"}'])
REPLY = (st.lists(PARTS | ANY_TEXT, max_size=30).map(''.join) | ANY_TEXT | JSON.map(json.dumps)
         | st.fixed_dictionaries({'story': JSON}).map(json.dumps))
FORMATS = {'hindi': 'json', 'english': 'json', 'news': 'html'}


def flat(lists):
    return [*itertools.chain.from_iterable(lists)]


# -----------------------------------------------------------------------------
# tokenizer.py


@pytest.fixture(scope='module')
def bpe():
    texts = ['एक दिन रवि बाग में गया।', 'The cat sat on the mat.', 'ক খ গ', '12 3 </s> <s>']
    return tokenizer.train(texts * 20, 400, ['</h>'])


@given(TEXT)
@example('e\u0301 क\u093c \u0958')
@LIMITS
def test_any_text_comes_back_in_nfc(bpe, text):
    ids = bpe.encode(text)
    composed = unicodedata.normalize('NFC', text)
    assert bpe.decode(ids) == composed
    assert not {bpe.bos, bpe.eos} & set(ids) and all(0 <= i < bpe.vocab_size for i in ids)
    assert bpe.encode(unicodedata.normalize('NFD', text)) == bpe.encode(composed)


@given(st.lists(TEXT, min_size=1, max_size=4))
@settings(LIMITS, max_examples=max(20, N_EXAMPLES // 20))
def test_a_corpus_is_encoded_like_its_texts(texts):
    tok = tokenizer.train(texts, 300)
    ids, lengths = tok.encoder()(texts)
    expected = tok.encode_batch(texts)
    assert lengths.tolist() == [len(text_ids) for text_ids in expected]
    assert ids.tolist() == flat(expected)


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT)
@settings(LIMITS, max_examples=max(20, N_EXAMPLES // 20))
def test_a_trimmed_tokenizer_encodes_its_corpus_as_before(bpe, corpus, other_text):
    full_ids = bpe.encode_batch(corpus)
    trimmed, new_ids = tokenizer.trim(bpe, set(flat(full_ids)))
    assert trimmed.encode_batch(corpus) == [new_ids[ids].tolist() for ids in full_ids]
    assert trimmed.decode(trimmed.encode(other_text)) == unicodedata.normalize('NFC', other_text)


# -----------------------------------------------------------------------------
# files.py


def write_rows(folder, rows):
    path = folder.getbasetemp() / 'rows.jsonl'
    path.unlink(missing_ok=True)
    with files.open_append(path) as f:
        files.append_rows(f, *rows)
    return path


def join_surrogates(value):
    """A value as JSON reads it back: two halves of a surrogate pair side by side become one character."""
    if isinstance(value, str):
        return value.encode('utf-16', 'surrogatepass').decode('utf-16', 'surrogatepass')
    if isinstance(value, dict):
        return {join_surrogates(key): join_surrogates(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [join_surrogates(inner) for inner in value]
    return value


@given(ROWS)
@LIMITS
def test_rows_are_read_as_they_were_written(tmp_path_factory, rows):
    path = write_rows(tmp_path_factory, rows)
    assert list(files.read_jsonl(path)) == join_surrogates(json.loads(json.dumps(rows)))


@given(ROWS.filter(len), st.data())
@LIMITS
def test_a_cut_loses_only_the_torn_line(tmp_path_factory, rows, data):
    path = write_rows(tmp_path_factory, rows)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = []
    end = 0
    for line in content.split(b'\n')[:-1]:
        end += len(line) + 1
        if end - 1 <= cut:  # only its line end may be missing
            whole.append(json.loads(line))
    assert list(files.read_jsonl(path)) == whole
    with files.open_append(path) as f:
        files.append_rows(f, {'more': 1})
    assert list(files.read_jsonl(path)) == [*whole, {'more': 1}]


# -----------------------------------------------------------------------------
# chat.py and replies.py


MESSAGE = JSON | st.fixed_dictionaries({'content': JSON, 'refusal': JSON})
CHOICE = JSON | st.fixed_dictionaries({'message': MESSAGE, 'finish_reason': JSON})
ANSWER = JSON | st.fixed_dictionaries({'choices': st.lists(CHOICE, max_size=2)})


@given(ANSWER, st.booleans())
@LIMITS
def test_an_answer_contains_text_or_is_rejected(data, whole):
    try:
        text = chat.text_of(data, whole)
    except chat.Rejected as e:
        assert str(e) and '\n' not in str(e)
    else:
        assert isinstance(text, str) and text.strip()


@given(REPLY)
@example('{"a":' * 3000)
@example('{"story": "' + '9' * 5000 + '", "n": ' + '9' * 5000 + '}')
@LIMITS
def test_json_is_found_or_not(reply):
    for key in ('story', 'translation'):
        found = replies.find_json(reply, key)
        assert found is None or key in found


@given(REPLY)
@LIMITS
def test_a_reply_becomes_stories_or_is_rejected(reply):
    for language, reply_format in FORMATS.items():
        try:
            pairs = replies.stories_in(reply, reply_format)
        except chat.Rejected:
            continue
        for headline, text in pairs:
            for part, is_headline in ((headline, True), (text, False)):
                try:
                    passed = replies.check(cleaner(language)(part), 3, 600, language != 'news', is_headline)
                except chat.Rejected as e:
                    assert str(e) and '\n' not in str(e)
                else:
                    assert passed == unicodedata.normalize('NFC', passed).strip()
                    assert not re.search('[\ud800-\udfff\0\ufffd<>{}]', passed)
            replies.missing({'noun': {'word': 'रवि', 'tags': []}, 'verb': {'word': 'जाना'}}, text)


@pytest.mark.parametrize('reply', [
    '<h1>A b</h1><p>A' + 5000 * '\n' + 'a', 100_000 * '"story":"', 20_000 * '{"a":', 2000 * '<h1>', 20_000 * '. "A',
], ids=lambda reply: reply[:4])
def test_a_repetitive_reply_takes_no_long_time(reply):
    """Small models repeat themselves until max_tokens. Done in a second; an hour where a pattern backtracks."""
    started = time.process_time()
    for language, reply_format in FORMATS.items():
        try:
            for _, text in replies.stories_in(reply, reply_format):
                replies.check(cleaner(language)(text), 3, 600, language != 'news')
        except chat.Rejected:
            pass
    assert time.process_time() - started < 60


CRITERIA = ('grammar', 'Plot_K', 'I')
GRADE = st.integers() | st.floats() | JSON | st.sampled_from(
    ['8/10', '8,5', '८', '10/10', '-3', 'B: 4-5', 'ſ', 'K', 'ı', 'group k', '7-8', '9 out of 10'])
NESTED_GRADE = GRADE | st.dictionaries(st.sampled_from([*CRITERIA, 'score']), GRADE)
GRADE_KEY = st.sampled_from([*CRITERIA, 'plot k', 'scores', 'notes', 'GRAMMAR'])
GRADES = st.dictionaries(GRADE_KEY, NESTED_GRADE).map(json.dumps)
GRADE_LINE = st.sampled_from(['grammar: ', 'I = ', 'Plot K is ', '8'])
GRADE_LINES = st.lists(GRADES | PARTS | ANY_TEXT | GRADE_LINE, max_size=12)


@given(GRADES | GRADE_LINES.map(''.join), st.booleans(), st.sampled_from(['', '{"notes": "']))
@example('{"grammar": 8, "Plot_K": 7, "I": "ſ"}', True, '')
@example('{"a":' * 3000, True, '')
@example('{"grammar": ' + '9' * 5000 + '}', False, '')
@LIMITS
def test_a_reply_contains_grades_or_is_rejected(reply, letters, prefill):
    scales = {'grammar': (1, 10), 'Plot_K': (1, 10), 'I': (3, 8.5) if letters else (1, 10)}
    choices = {'I': {'K': 3, 'S': 5, 'I': 8.5}} if letters else {}
    try:
        grades, notes = replies.read_grades(reply, scales, choices, prefill)
    except chat.Rejected as e:
        assert str(e) and '\n' not in str(e)
        return
    assert grades.keys() == scales.keys() and isinstance(notes, str)
    for name, grade in grades.items():
        assert type(grade) is float and scales[name][0] <= grade <= scales[name][1]
