r"""
Reads the replies of a chat API: finds the stories or the grades in a reply, and checks and cleans the stories.

    refuses = replies.compile_refusals(lines)  # lines of data/<language>/refusals.txt
    seen = replies.Seen()
    for headline, text in replies.stories_in(reply, 'json'):
        text = replies.clean(text, 'DEVANAGARI', min_script=0.9, refuses=refuses)
        text = replies.check(text, min_words=40, max_words=600, proper_nouns=True)
        print(text, 'is a duplicate:', seen.add(text), 'has no:', replies.missing(seed_words, text))
    scores, notes = replies.read_grades(reply, {'grammar': (1, 10)}, {})

A reply or story that is not good enough raises chat.Rejected with the reason.
"""

import collections
import html
import re
import unicodedata
import zlib

import numpy as np

from chat import Rejected, json_objects

# -----------------------------------------------------------------------------
# letters, words and scripts

# Vowel signs and accents are parts of words, but \w does not match them.
MARKS = ''.join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] == 'M')
VIRAMAS = ''.join(char for char in MARKS if unicodedata.combining(char) == 9)  # they join two consonants
LETTER = rf'[\w{MARKS}]'
WORD = re.compile(rf'[\w{MARKS}\u200c\u200d]+')  # with zero-width joiners


def scripts_in(text):
    """How many letters and marks of each script a text has, as a Counter: {'DEVANAGARI': 120, 'LATIN': 3}."""
    letters = [char for char in text if unicodedata.category(char)[0] in 'LM']
    return collections.Counter(unicodedata.name(char, '').split(' ')[0] for char in letters)


# -----------------------------------------------------------------------------
# JSON in a reply

TRAILING_COMMA = re.compile(r',(?=\s*[}\]])')


def objects_in(text):
    """Yield the JSON objects (dicts) in a text with anything around them, and the objects inside these."""
    for found, _, _ in json_objects(repair_json(text)):
        yield found


def repair_json(text):
    """Allow trailing commas, and \\' for an apostrophe."""
    return TRAILING_COMMA.sub('', text.replace("\\'", "'"))


def find_json(text, key):
    """The last JSON object in a text that has `key`, or None: also if a broken one follows, as earlier ones are drafts.

    An object inside another one that has `key` does not count.
    """
    text = repair_json(text)
    last, last_end = None, 0
    for found, start, end in json_objects(text):
        if key in found and start >= last_end:
            last, last_end = found, end
    return None if re.search(rf'"{key}"\s*:', text[last_end:]) else last


# -----------------------------------------------------------------------------
# stories


def stories_in(reply, reply_format):
    """A reply -> [(headline or '', text), …]; raises Rejected if it contains no complete story.

    reply_format: 'json' for {"story": "…"}, or 'html' for <h1>headline</h1><p>text</p>, repeated.
    """
    if reply_format == 'html':
        return html_stories(reply)
    found = find_json(reply, 'story')
    if not found or not isinstance(found['story'], str):
        raise Rejected('no JSON with a story')
    return [('', found['story'])]


def html_stories(reply):
    stories = []
    for item in re.split('<h1[^<>]*>', reply)[1:]:
        headline, *paragraphs = re.split('<p[^<>]*>', item)
        is_whole = all('</p>' in paragraph for paragraph in paragraphs)
        text = ' '.join(paragraph.partition('</p>')[0] for paragraph in paragraphs)
        headline, text = strip_tags(headline), strip_tags(text)
        if headline and text and is_whole:
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


WORD_END = f'(?:(?<!{LETTER})|(?!{LETTER}))'


def compile_refusals(lines):
    """The lines of a refusals.txt -> a function that says whether a text contains one of its phrases.

    ^phrase: at the start of a sentence in the first 100 characters. phrase$: of one in the last 200 characters.
    """
    phrases = [straight_quotes(line) for line in lines if line]
    at_start = any_of([phrase[1:] for phrase in phrases if phrase[0] == '^'], SENTENCE_START)
    at_end = any_of([phrase[:-1] for phrase in phrases if phrase[-1] == '$'], SENTENCE_START)
    anywhere = any_of([phrase for phrase in phrases if phrase[0] != '^' and phrase[-1] != '$'], f'(?<!{LETTER})')

    def refuses(text):
        text = straight_quotes(text)
        return anywhere.search(text) or at_start.search(text[:100]) or at_end.search(text, len(text) - 200)

    return refuses


def straight_quotes(text):
    """For comparisons: ’ equals ', and " :" equals ":"."""
    return re.sub(' (?=:)', '', re.sub('[’‘]', "'", text))


def any_of(phrases, before):
    """One compiled pattern for any of these after `before`, in whole words; it matches nothing if there are none."""
    alternatives = '|'.join(map(re.escape, phrases)) or '(?!)'
    return re.compile(f'{before}(?:{alternatives}){WORD_END}', re.I)


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


def check(text, min_words, max_words, proper_nouns, is_headline=False):
    """Return a cleaned story or headline that is good enough, or raise Rejected.

    proper_nouns: False rejects a text with names. They are found by their capitals.
    """
    n_words = len(text.split())
    if not min_words <= n_words <= max_words:
        raise Rejected('too short' if n_words < min_words else 'too long')
    if not is_headline and not re.search(SENTENCE_END + '|["”’»]$', text):
        raise Rejected('no end of a sentence')
    if not proper_nouns and PROPER_NOUN.search(text):
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
        """Add a story -> whether an earlier story agrees with it in a band."""
        words = text.lower().split()
        shingles = [' '.join(words[i:i + 3]) for i in range(max(1, len(words) - 2))]
        # crc32 is the same in every process; hash() of a str is not
        hashes = [zlib.crc32(shingle.encode('utf-8', 'replace')) for shingle in shingles]
        min_hashes = (np.array(hashes, np.uint64) * self.factors).min(axis=2)  # (6, 5)
        is_duplicate = False
        for table, band in zip(self.tables, min_hashes.tolist()):
            mark, place = divmod(hash(tuple(band)) % 2**54, len(table))  # 32 and 22 bits of a hash of integers
            if table[place] == mark:
                is_duplicate = True
            table[place] = mark
        return is_duplicate


# -----------------------------------------------------------------------------
# seed words

VERB_ENDING = re.compile('(?<=..)(ना|णे|নো|া|er|ir|re)$')  # of infinitives in Hindi, Marathi, Bangla and French


def words_in(text):
    """The words of a text, in lower case and without accents, which inflection may change (léger, légère)."""
    text = re.sub('[\u0300-\u036f]', '', unicodedata.normalize('NFD', text.lower()))
    return WORD.findall(unicodedata.normalize('NFC', text))


# words of a phrase that the text may inflect beyond recognition or leave out: मदद करना, "to do help"; s'endormir
LIGHT_WORDS = words_in('करना देना लेना होना जाना करणे देणे घेणे होणे जाणे করা দেওয়া নেওয়া হওয়া যাওয়া পাওয়া s se')


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
    words = words_in(form)
    main_words = [word for word in words if word not in LIGHT_WORDS] or words
    return all(has_word(text_words, word, is_verb) for word in main_words)


def has_word(text_words, word, is_verb):
    """Whether a word of the text begins with the stem of `word` and is not much longer."""
    has_case = word.islower()  # Latin and other scripts with capitals
    stem = VERB_ENDING.sub('', word) if is_verb else word.rstrip(MARKS)
    if stem == word and has_case and len(word) > 4:
        stem = word[:-1]
    max_length = len(word) * 3 // 2 if has_case else len(word) + 5  # cats, but not caterpillars
    return any(other.startswith(stem) and len(other) <= max_length for other in text_words)


# -----------------------------------------------------------------------------
# grades


def letters_of(name):
    """'Context Awareness' and 'context_awareness' -> 'contextawareness'"""
    return re.sub(r'[\W_]+', '', str(name).lower())


def read_grades(reply, scales, choices):
    """A judge's reply -> ({criterion: float}, notes), or Rejected.

    The reply contains a JSON object, perhaps in prose or code fences, or else lines such as 'Grammar: 8/10'.
    Nothing is guessed: a reply with two different grades for a criterion is rejected.
    scales: {criterion: (lowest, highest)}. choices: {criterion: {letter: number}} for grades that are capital letters.
    """
    objects = []
    for found in objects_in(reply):
        objects.append({letters_of(key): value for key, value in found.items()})
    values = {}  # criterion -> all values that the reply gives for it
    for name in scales:
        values[name] = [found[letters_of(name)] for found in objects if letters_of(name) in found]
    if not any(values.values()):
        if reply.rfind('{') > reply.rfind('}'):
            raise Rejected('cut off')
        values = {name: values_in_lines(reply, name) for name in scales}
    scores = {}
    for name, scale in scales.items():
        grades = {read_grade(value, name, scale, choices.get(name)) for value in values[name]}
        if len(grades) != 1:
            raise Rejected(f'several grades for {name}' if grades else f'no {name}')
        scores[name] = grades.pop()
    notes = [found['notes'] for found in objects if isinstance(found.get('notes'), str)]
    return scores, notes[0].strip()[:2000] if notes else ''


def values_in_lines(reply, name):
    """What stands after the name: 'Grammar: 8/10', '| grammar | 8 |' or 'the grammar is 8'. -> ['8/10', …]"""
    pattern = re.sub(r'[\W_]+', r'[\\W_]*', name)
    pattern = rf'(?<![^\W_]){pattern}["\'*_`\s]*(?:[:=|–—-]|\bis\b)[\s"\'*_`]*((?:[^\n|,;"}}]|,(?=\d))+)'
    return re.findall(pattern, reply, flags=re.I)


def read_grade(value, criterion, scale, letters=None):
    """A judge's grade for one criterion -> float, or Rejected: 8, 8.5, '8', '8/10', '८', 'B: 4-5', {'score': 8}.

    scale: (lowest, highest). letters: {letter: number} if the grade is a letter.
    """
    if isinstance(value, dict):
        value = value.get('score')
    if isinstance(value, str):
        value = read_letter(value, letters) if letters else read_number(value, scale[1])
    if type(value) not in (int, float):
        raise Rejected(f'no grade for {criterion}')
    if not scale[0] <= value <= scale[1]:  # true for nan, too
        raise Rejected(f'{criterion} out of range')
    return float(value)


def read_letter(text, letters):
    """'B', 'b: 4-5' or 'Group B' -> the number for B; None for any other text, such as 'A child of four'."""
    match = re.match(r'[\W_]*(?:(?:age )?group )?(\w+)(?=$|\s*[^\w\s]|\s+\d)', text, flags=re.I)
    return letters.get(match[1].upper()) if match else None


def read_number(text, high):
    """'8', '8,5', '8/10' or '8 out of 10' -> float; None for any other text, such as '8th', '80 %', '7-8', '4/5'."""
    of_high = rf'(?:\s*(?:/|out of|of|von|sur)\s*{high:g}\b)?'
    unclear = r'\w|[.,]\d|\s*[%/+]|\s*(?:[-–]|to|or|bis|à)\s*\d'
    match = re.match(rf'[\W_]*?(-?\d+(?:[.,]\d+)?){of_high}(?!{unclear})', text)
    return float(match[1].replace(',', '.')) if match else None
