r"""
Reads the replies of a chat API: finds the stories or the grades in a reply, and checks and cleans the stories.

    refuses = replies.compile_refusals(lines)  # lines of data/<language>/refusals.txt
    seen = replies.Seen()
    for headline, text in replies.stories_in(reply, 'json'):
        text = replies.clean(text, 'DEVANAGARI', min_script=0.9, refuses=refuses)
        text = replies.check(text, min_words=40, max_words=600, proper_nouns=True)
        print(text, seen.add(text), replies.missing(seed_words, text))
    scores, notes = replies.read_grades(reply, {'grammar': (1, 10)}, {})

A reply or story that is not good enough raises chat.Rejected with the reason.
"""

import collections
import functools
import html
import json
import re
import unicodedata
import zlib

import numpy as np

from chat import Rejected

# ISO 639-1 codes of the languages in data/
CODES = {'hindi': 'hi', 'marathi': 'mr', 'bangla': 'bn', 'english': 'en', 'french': 'fr', 'news': 'en'}

# -----------------------------------------------------------------------------
# letters, words and scripts

# Vowel signs and accents are parts of words, but \w does not match them.
MARKS = ''.join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] == 'M')
VIRAMAS = ''.join(char for char in MARKS if unicodedata.combining(char) == 9)  # they join two consonants
LETTER = rf'[\w{MARKS}]'
# scripts without spaces between words, such as Thai and Chinese
UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff'
WORD = re.compile(rf'[{UNSPACED}][{MARKS}]*|[\w{MARKS}\u200c\u200d]+')


def scripts_in(text):
    """How many letters and marks of each script a text has, as a Counter: {'DEVANAGARI': 120, 'LATIN': 3}."""
    letters = [char for char in text if unicodedata.category(char)[0] in 'LM']
    return collections.Counter(unicodedata.name(char, '').split(' ')[0] for char in letters)


# -----------------------------------------------------------------------------
# JSON in a reply

TRAILING_COMMA = re.compile(r',(?=\s*[}\]])')
# a quotation mark before the next key or the end of the object
VALUE_END = re.compile(r'"\s*(?:,\s*(?:"\w+"\s*:|\})|\})')


def objects_in(text, nested=False):
    """Yield the JSON objects (dicts) in a text with anything around them. Line breaks inside strings are allowed.

    nested: also the objects inside objects. The first 200 opening braces are tried.
    """
    decoder = json.JSONDecoder(strict=False)
    position = 0
    for _ in range(200):
        position = text.find('{', position)
        if position < 0:
            return
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        yield found
        position = position + 1 if nested else end


def find_json(text, key):
    """The first JSON object in a text that has `key`, or None.

    It may have trailing commas, \\' for an apostrophe, and quotation marks inside the string at `key`.
    """
    corrected = TRAILING_COMMA.sub('', text.replace("\\'", "'"))
    for candidate in (text, corrected):
        for found in objects_in(candidate, nested=True):
            if key in found:
                return found
    # no valid JSON: take what stands between `"key": "` and the end of the value
    start = re.search(rf'"{re.escape(key)}"\s*:\s*"', corrected)
    end = start and VALUE_END.search(corrected, start.end())
    if not end:
        return None
    value = corrected[start.end():end.start()]
    value = re.sub(r'(?<!\\)"', r'\\"', value)  # escape the quotation marks inside
    try:
        return {key: json.loads(f'"{value}"', strict=False)}
    except ValueError:
        return None


# -----------------------------------------------------------------------------
# stories


def stories_in(reply, reply_format):
    """A reply -> [(headline or '', text), …]; raises Rejected if it contains no complete story.

    reply_format: 'json' for {"story": "…"}, or 'html' for <h1>headline</h1><p>text</p>, repeated.
    """
    if reply_format == 'html':
        return html_stories(reply)
    story = (find_json(reply, 'story') or {}).get('story')
    if isinstance(story, list) and all(isinstance(paragraph, str) for paragraph in story):
        story = '\n\n'.join(story)
    if not isinstance(story, str):
        raise Rejected('no JSON with a story')
    return [('', story)]


def html_stories(reply):
    reply = reply.partition('<think>')[0]  # some models think again after the answer
    stories = []
    for item in re.split(r'<h1\b[^<>]*>', reply, flags=re.I)[1:]:
        headline, *body = re.split(r'</h1\s*>|(?=<p\b)', item, maxsplit=1, flags=re.I)
        *paragraphs, rest = re.split(r'</p\s*>', ''.join(body), flags=re.I)
        is_cut = '<p' in rest.lower()
        headline = strip_tags(headline)
        text = strip_tags(' '.join(paragraphs))
        if headline and text and not is_cut:
            stories.append((headline, text))
    if not stories:
        raise Rejected('no <h1> and <p>')
    return stories


def strip_tags(text):
    text = re.sub(r'<[^>]*>?', ' ', text)
    return ' '.join(html.unescape(text).split())


# at the start of a line or after a sentence, but not after an opening quotation mark: a character may say anything
SENTENCE_START = r'(?:^|(?<=[.!?।॥…:\n])|(?<=[.!?।॥…:)"”»] ))\(?'
SENTENCE_END = r'[.!?।॥…](?: ?[»)]|["\'”’])*$'


def compile_refusals(lines):
    """The lines of a refusals.txt -> a function that says whether a text contains one of its phrases.

    ^phrase: at the start of a sentence in the first 100 characters. phrase$: of one in the last 200 characters.
    """
    at_start, at_end, anywhere = [], [], []
    for line in lines:
        phrase = plain_quotes(line.strip('^$'))
        if not phrase:
            continue
        pattern = re.escape(phrase)
        if re.match(LETTER, phrase[-1]):
            pattern += f'(?!{LETTER})'  # whole words only
        if line.startswith('^'):
            at_start.append(pattern)
        elif line.endswith('$'):
            at_end.append(pattern)
        else:
            anywhere.append(pattern)

    at_start = any_of(at_start, SENTENCE_START)
    at_end = any_of(at_end, SENTENCE_START)
    anywhere = any_of(anywhere, f'(?<!{LETTER})')

    def refuses(text):
        text = plain_quotes(text)
        if anywhere.search(text) or at_start.search(text[:100]):
            return True
        return any(match.start() >= len(text) - 200 for match in at_end.finditer(text))

    return refuses


def plain_quotes(text):
    return text.replace('’', "'").replace('‘', "'").replace(' :', ':')


def any_of(patterns, before):
    """One compiled pattern for any of these after `before`; it matches nothing if there are none."""
    alternatives = '|'.join(patterns) or '(?!)'
    return re.compile(f'{before}(?:{alternatives})', re.I)


# soft hyphens, marks of text direction and the like
INVISIBLE = re.compile('[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]')
# control characters, surrogates, private use, replacement characters
BROKEN = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\uf8ff\ufff9-\uffff]')
# zero-width joiners that join nothing: not after a letter, or neither after a virama nor before a letter
USELESS_JOINERS = re.compile(rf'(?<!{LETTER})[\u200c\u200d]+|(?<![{VIRAMAS}])[\u200c\u200d]+(?!{LETTER})')
MARKUP = re.compile(r'[*#<>{}\[\]|`_\\]|https?:|^[-–—=~ ]+$', re.M)


def clean(text, script, min_script, refuses):
    """A story as the model wrote it -> plain text in the right language without a title, or Rejected.

    script: of the language, as in scripts_in. min_script: the smallest fraction of letters in it, 0 to 1.
    refuses: what compile_refusals returns.
    """
    if BROKEN.search(text):
        raise Rejected('broken characters')
    text = tidy_spaces(text)
    if script in ('DEVANAGARI', 'BENGALI', 'GURMUKHI', 'ORIYA'):
        text = bars_to_dandas(text)
    text = cut_title(text)
    letters = scripts_in(text)
    if not letters or letters[script] < min_script * letters.total():
        raise Rejected(f'not in {script.lower()} script')
    if refuses(text):
        raise Rejected('refusal or meta text')
    if MARKUP.search(text):
        raise Rejected('markup')
    return text


def tidy_spaces(text):
    """Unicode NFC, single spaces, at most one empty line, no invisible characters."""
    text = INVISIBLE.sub('', unicodedata.normalize('NFC', text))
    text = USELESS_JOINERS.sub('', text.replace('\r\n', '\n')).strip()
    lines = [' '.join(line.split()) for line in text.split('\n')]
    return re.sub(r'\n{2,}', '\n\n', '\n'.join(lines))


def bars_to_dandas(text):
    """The bar that many write for a danda, the full stop of Indic scripts -> a danda without a space before it."""
    text = re.sub(r'(?<=[^\s|]) ?\|\|(?=[\s"\'”’»)]|$)', '॥', text)
    text = re.sub(r'(?<=[^\s|]) ?\|(?=[\s"\'”’»)]|$)', '।', text)
    return re.sub(r' +(?=[।॥])', '', text)


def cut_title(text):
    """Cut a first paragraph that does not end like a sentence, if the next one does. (In verse, neither does.)"""
    title, _, rest = text.partition('\n\n' if '\n\n' in text else '\n')
    first_line = rest.partition('\n')[0]
    ends_like_text = re.search(r'\n|[,;:—–-]["”’»)]*$|' + SENTENCE_END, title)
    if len(title) <= 60 and not ends_like_text and re.search(SENTENCE_END, first_line):
        return rest
    return text


# a capital inside a sentence; one inside a word; a title; an initial; a capitalized word alone in quotation marks
PROPER_NOUN = re.compile(
    r'(?<!^)(?<![.!?…:])(?<![.!?…:]["”’)])(?<![.!?…:]["”’)]["”’)])\s\(?(?!I\b)[A-ZÀ-ÖØ-Þ]'
    r'|[\w/-][A-ZÀ-ÖØ-Þ]'
    r'|\b(?:Mrs?|Ms|Dr)\b'
    r'|\b[A-HJ-Z]\.'
    r'|(?<=\s)["“][A-Z][\w’\'-]*["”]')


def check(text, min_words, max_words, proper_nouns):
    """Return a cleaned story that is good enough, or raise Rejected.

    proper_nouns: False rejects a story with names. They are found by their capitals.
    """
    n_words = len(text.split())
    if not min_words <= n_words <= max_words:
        raise Rejected('too short' if n_words < min_words else 'too long')
    if not re.search(SENTENCE_END + '|["”’»]$', text):
        raise Rejected('no end of a sentence')
    if not proper_nouns and PROPER_NOUN.search(text):
        raise Rejected('proper noun')
    return text


def check_headline(text, proper_nouns):
    """Return a cleaned headline that is good enough, or raise Rejected. In Title Case, capitals do not show names."""
    if not 2 <= len(text.split()) <= 30:
        raise Rejected('broken headline')
    long_words = [word for word in re.findall(r'\w+', text)[1:] if len(word) > 3]
    n_capitals = sum(word[0].isupper() for word in long_words)
    is_title_case = len(long_words) > 1 and n_capitals > len(long_words) * 2 / 3
    if not proper_nouns and not is_title_case and PROPER_NOUN.search(text):
        raise Rejected('proper noun')
    return text


# -----------------------------------------------------------------------------
# duplicates


class Seen:
    """Finds exact and near duplicates among the stories so far.

    MinHash over shingles of three words, in bands (Broder 1997, "On the resemblance and containment of documents";
    Leskovec et al., "Mining of Massive Datasets", chapter 3). Two stories that share a fraction s of their shingles
    agree in one of 6 bands of 5 hashes with probability 1 - (1 - s^5)^6: 0.99 for s = 0.9, 0.67 for 0.7, 0.01 for 0.3.
    The tables have a fixed size (100 MB). New stories overwrite old ones, so among millions the oldest are forgotten.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        self.factors = rng.integers(0, 2**63, (6, 5, 1), np.uint64) * 2 + 1  # an odd number for each band and hash
        self.tables = np.zeros((6, 2**22), np.uint32)

    def add(self, text):
        """Add a story -> the fraction of bands in which an earlier story agrees: 0.0 if it is new, 1.0 for a copy."""
        words = text.lower().split()
        shingles = [' '.join(words[i:i + 3]) for i in range(max(1, len(words) - 2))]
        # crc32 is the same in every process; hash() of a str is not
        hashes = [zlib.crc32(shingle.encode('utf-8', 'replace')) for shingle in shingles]
        min_hashes = (np.array(hashes, np.uint64) * self.factors).min(axis=2)  # (6, 5)
        n_agree = 0
        for table, band in zip(self.tables, min_hashes.tolist()):
            mark, place = divmod(hash(tuple(band)) % 2**54, len(table))  # 32 and 22 bits of a hash of integers
            n_agree += int(table[place] == mark)
            table[place] = mark
        return n_agree / len(self.tables)


# -----------------------------------------------------------------------------
# seed words

VERB_ENDING = re.compile('(?<=..)(ना|णे|নো|া|er|ir|re)$')  # of infinitives in Hindi, Marathi, Bangla and French


@functools.lru_cache(2**16)
def words_in(text):
    """The words of a text, in lower case and without accents, which inflection may change (léger, légère)."""
    text = re.sub('[\u0300-\u036f]', '', unicodedata.normalize('NFD', text.lower()))
    return WORD.findall(unicodedata.normalize('NFC', text))


# irregular verbs that say little after a noun: मदद करना, "to do help"
LIGHT_VERBS = words_in('करना देना लेना होना जाना करणे देणे घेणे होणे जाणे করা দেওয়া নেওয়া হওয়া যাওয়া পাওয়া')


def missing(seed_words, text):
    """The kinds of seed words ('noun', 'verb', …) that are not in a text, as far as the stems of words show.

    seed_words: {kind: {column: forms}}, where forms are separated by ', '. One form is enough.
    A feature is never missing: a story shows it without naming it.
    """
    text_words = set(words_in(text))
    kinds = []
    for kind, row in seed_words.items():
        columns = [value for value in row.values() if isinstance(value, str)]
        forms = ', '.join(columns).split(', ')
        if kind != 'feature' and not any(has_form(text_words, form, kind == 'verb') for form in forms):
            kinds.append(kind)
    return kinds


def has_form(text_words, form, is_verb):
    """Whether each word of a seed word, which may be a phrase, is in the text."""
    parts = [part for part in words_in(form) if part not in ('s', 'se')]  # se cacher: il s'est caché
    if len(parts) > 1 and parts[-1] in LIGHT_VERBS:  # मदद करना: मदद की
        parts.pop()
    return all(has_word(text_words, part, is_verb) for part in parts)


def has_word(text_words, word, is_verb):
    """Whether a word of the text begins with the stem of `word` and is not much longer."""
    has_case = word.islower()  # Latin and other scripts with capitals
    stem = VERB_ENDING.sub('', word) if is_verb else word.rstrip(MARKS)
    if stem == word and has_case and len(word) > 4:
        stem = word[:-1]
    max_length = len(word) * 3 // 2 if has_case else len(word) + 5  # cats, but not caterpillars
    for other in text_words:
        if other == word:
            return True
        if other.startswith(stem) and len(other) <= max_length:
            if is_verb or other != stem:  # कल (yesterday) is not कली (bud)
                return True
    return False


# -----------------------------------------------------------------------------
# grades


def plain(name):
    """'Context Awareness' and 'context_awareness' -> 'contextawareness'"""
    return re.sub(r'[\W_]+', '', str(name).lower())


def read_grades(reply, scales, choices):
    """A judge's reply -> ({criterion: float}, notes), or Rejected.

    The reply contains a JSON object, perhaps in prose or code fences, or else lines such as 'Grammar: 8/10'.
    Nothing is guessed: a reply with two different gradings is rejected.
    scales: {criterion: (lowest, highest)}. choices: {criterion: {letter: number}} for grades that are letters.
    """
    gradings = []
    notes = ''
    problem = None
    for found in objects_in(TRAILING_COMMA.sub('', reply), nested=True):
        values = {plain(key): value for key, value in found.items()}
        notes = notes or values.get('notes')
        if not any(plain(name) in values for name in scales):
            continue
        try:
            gradings.append(read_object(values, scales, choices))
        except Rejected as e:
            problem = e
    if not gradings and problem:
        raise problem
    if not gradings:
        gradings.append(read_lines(reply, scales, choices))
    if any(scores != gradings[0] for scores in gradings):
        raise Rejected('several gradings')
    return gradings[0], notes.strip()[:2000] if isinstance(notes, str) else ''


def read_object(values, scales, choices):
    scores = {}
    for name, scale in scales.items():
        if plain(name) not in values:
            raise Rejected(f'no {name}')
        scores[name] = read_grade(values[plain(name)], name, scale, choices.get(name))
    return scores


def read_lines(reply, scales, choices):
    if reply.rfind('{') > reply.rfind('}'):
        raise Rejected('cut off')
    scores = {}
    for name, scale in scales.items():
        pattern = re.sub(r'[\W_]+', r'[\\W_]*', name)
        pattern = rf'(?<![^\W_]){pattern}["\'*_`\s]*(?:[:=|–—-]|\bis\b)[\s"\'*_`]*((?:[^\n|,;"}}]|,(?=\d))+)'
        values = re.findall(pattern, reply, flags=re.I)
        grades = {read_grade(value, name, scale, choices.get(name)) for value in values}
        if not grades:
            raise Rejected(f'no {name}')
        if len(grades) > 1:
            raise Rejected(f'several gradings of {name}')
        scores[name] = grades.pop()
    return scores


def read_grade(value, criterion, scale, letters=None):
    """A judge's grade for one criterion -> float, or Rejected: 8, 8.5, '8', '8/10', '८', 'B: 4-5', [8], {'score': 8}.

    scale: (lowest, highest). letters: {letter: number} if the grade is a letter.
    """
    low, high = scale
    if isinstance(value, dict):
        value = value.get('score')
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and letters:
        return read_letter(value, criterion, letters)
    if isinstance(value, str):
        value = read_number(value, criterion, high)
    if type(value) not in (int, float):
        raise Rejected(f'no grade for {criterion}')
    if not low <= value <= high:  # true for nan, too
        raise Rejected(f'{criterion} out of range')
    return float(value)


def read_letter(text, criterion, letters):
    """'B', 'b: 4-5' or 'Group B' -> the number for B."""
    numbers = {letter.upper(): number for letter, number in letters.items()}
    names = '|'.join(map(re.escape, numbers))
    match = re.match(rf'[\W_]*(?:(?:AGE )?GROUP )?({names})(?=$|\s*[^\w\s]|\s+\d)', text.upper())
    if not match:
        raise Rejected(f'{criterion} is none of its letters')
    return float(numbers[match[1]])


def read_number(text, criterion, high):
    """'8', '8,5', '8/10' or '8 out of 10' -> float; None if there is no number.

    Rejected: '8th', '80 %', '7-8', '4/5' on a scale of ten.
    """
    match = re.match(r'[\W_]*?([-−]?\d+(?:[.,]\d+)?)(.*)', text, flags=re.S)
    if not match:
        return None
    number, rest = match.groups()
    rest = re.sub(rf'^\s*(?:/|out of|of|von|sur)\s*{high:g}(?:\.0+)?(?!\d|\.\d)', '', rest, flags=re.I)
    if re.match(r'\w|\s*[%/+]|\s*(?:[-–−]|to|or|bis|à)\s*\d', rest):
        raise Rejected(f'unclear grade for {criterion}')
    return float(number.replace(',', '.').replace('−', '-'))
