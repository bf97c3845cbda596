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

import html
import itertools
import re
import unicodedata
import zlib

import numpy as np

from chat import Rejected, json_objects
from files import count_scripts, unicode_form

# -----------------------------------------------------------------------------
# letters, words and scripts

# Vowel signs and accents are parts of words, but \w does not match them.
MARKS = ''.join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] == 'M')
VIRAMAS = ''.join(char for char in MARKS if unicodedata.combining(char) == 9)  # they join two consonants
LETTER = rf'[\w{MARKS}]'
WORD = re.compile(rf'[\w{MARKS}\u200c\u200d]+')  # with zero-width joiners


# -----------------------------------------------------------------------------
# JSON in a reply

TRAILING_COMMA = re.compile(r',(?=\s*[}\]])')


def repair_json(text):
    """Allow trailing commas, and \\' for an apostrophe."""
    return TRAILING_COMMA.sub('', text.replace("\\'", "'"))


# before and after an object: reasoning without a mark, in which the object is no answer yet
DRAFT = re.compile(r'(?i)(?<!final.)(?<![^\W_])(?:draft|attempt|try|version|original|something like|perhaps|maybe'
                   r'|example)\b[^.!?\n]{0,30}$')
DOUBT = re.compile(r"(?i)\b(?:wait|hmm+|actually|too (?:short|long|simple)|improve|revise|rewrite|let me(?! know)|let's"
                   r'|(?:i|we) (?:should|need|must|could|might))\b')
CUT_OFF = re.compile(r'(?:\w+(?:[\s,;]+\w+){3,}[\s,;]*|:\s*)$')  # four words without a full stop, or a colon


def find_json(text, key):
    """The last JSON object in a text that has `key`; None if it seems to be a draft, or if a broken one follows.

    An object inside another one that has `key` does not count.
    """
    text = repair_json(text)
    last, last_start, last_end = None, 0, 0
    for found, start, end in json_objects(text):
        if key in found and start >= last_end:
            last, last_start, last_end = found, start, end
    before, after = text[max(0, last_start - 80):last_start], text[last_end:]
    is_draft = DRAFT.search(before) or DOUBT.search(after) or CUT_OFF.search(after[-80:])
    return None if is_draft or re.search(rf'"{key}"\s*:', after) else last


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
    if any(key.lower().endswith('story') for key in found if key != 'story'):
        raise Rejected('several stories')  # such as a revised_story
    return [('', found['story'])]


def html_stories(reply):
    stories = []
    for item in re.split('<h1[^<>]*>', reply)[1:]:
        headline, *paragraphs = re.split('<p[^<>]*>', item)
        text = ' '.join(paragraph.partition('</p>')[0] for paragraph in paragraphs)
        headline, text = strip_tags(headline), strip_tags(text)
        if headline and text and all('</p>' in paragraph for paragraph in paragraphs):
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
ENTITY = re.compile(r'&(?:#\w{1,9}|\w{1,30});')  # of HTML
MARKUP = re.compile(rf'[*#<>{{}}\[\]|`_\\]|{ENTITY.pattern}|https?:|^[-–—=~ ]+$', re.M)


def clean(text, script, min_script, refuses):
    """A story as the model wrote it -> plain text in the right language without a title, or Rejected.

    script: of the language, as in count_scripts. min_script: the smallest fraction of letters in it, 0 to 1.
    refuses: what compile_refusals returns.
    """
    text = unescape(text)
    if BROKEN.search(text):
        raise Rejected('broken characters')
    text = tidy_spaces(text)
    if script in ('DEVANAGARI', 'BENGALI', 'GURMUKHI', 'ORIYA'):
        text = bars_to_dandas(text)
    text = cut_title(text)
    letters = count_scripts(text)
    if not letters or letters[script] < min_script * letters.total():
        raise Rejected(f'not in {script.lower()} script')
    if refuses(text):
        raise Rejected('refusal or meta text')
    if MARKUP.search(text):
        raise Rejected('markup')
    return text


def unescape(text):
    """&quot; and other entities of HTML -> the characters that they stand for."""
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def tidy_spaces(text):
    """Unicode NFC, single spaces, at most one empty line, no invisible characters."""
    text = INVISIBLE.sub('', unicode_form(text))
    text = USELESS_JOINERS.sub('', text.replace('\r\n', '\n')).strip()
    lines = [' '.join(line.split()) for line in text.split('\n')]
    return re.sub(r'\n{2,}', '\n\n', '\n'.join(lines))


def bars_to_dandas(text):
    """The bar that many write for a danda, the full stop of Indic scripts -> a danda without a space before it."""
    text = re.sub(r'(?<=[^\s|]) ?\|\|(?=[\s"\'”’»)]|$)', '॥', text)
    text = re.sub(r'(?<=[^\s|]) ?\|(?=[\s"\'”’»)]|$)', '।', text)
    return re.sub(r' +(?=[।॥])', '', text)


def cut_title(text):
    """Cut a first paragraph that does not end like a sentence, if the next one does. (In verse, neither does.)

    More than 60 letters are a title only if no sentence ends in them.
    """
    title, _, rest = text.partition('\n\n' if '\n\n' in text else '\n')
    first_line = rest.partition('\n')[0]
    ends_like_text = re.search(r'\n|[,;:—–-]["”’»)]*$|' + SENTENCE_END, title)
    is_short = len(title) <= 60 or (len(title) <= 120 and not re.search(r'[.!?।॥…]', title))
    if is_short and not ends_like_text and re.search(SENTENCE_END, first_line):
        return rest
    return text


# a capital inside a sentence; one inside a word; a title; an initial; a capitalized word alone in quotation marks
PROPER_NOUN = re.compile(
    r'(?<!^)(?<![.!?…:])(?<![.!?…:]["”’)])(?<![.!?…:]["”’)]["”’)])\s\(?(?!I\b)[A-ZÀ-ÖØ-Þ]'
    r'|[\w/-][A-ZÀ-ÖØ-Þ]'
    r'|\b(?:Mrs?|Ms|Dr)\b'
    r'|\b[A-HJ-Z]\.'
    r'|(?<=\s)["“][A-Z][\w’\'-]*["”]')

# 'Moral: ' or 'Words used: ' at the start of the text or of its last line; not if speech follows
LABEL = re.compile(rf'(?:\A|\n(?=[^\n]*\Z))\(?(?:{LETTER}+[ -]){{0,2}}{LETTER}+ ?:\s(?!["“«‘\'–—])')


def check(text, min_words, max_words, proper_nouns, is_headline=False):
    """Return a cleaned story or headline that is good enough, or raise Rejected.

    proper_nouns: False rejects a text with names. They are found by their capitals.
    """
    n_words = len(text.split())
    if not min_words <= n_words <= max_words:
        raise Rejected('too short' if n_words < min_words else 'too long')
    if not is_headline:
        if not re.search(SENTENCE_END + '|["”’»]$', text):
            raise Rejected('no end of a sentence')
        if LABEL.search(text):
            raise Rejected('a label')
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
        self.hash_factors, self.band_factors = rng.integers(0, 2**63, (2, 6, 5), np.uint64) * 2 + 1  # odd numbers
        self.tables = np.zeros((6, 2**22), np.uint32)

    def add(self, text):
        """Add a story -> whether an earlier story agrees with it in a band."""
        words = text.lower().split()
        shingles = [' '.join(words[i:i + 3]) for i in range(max(1, len(words) - 2))]
        # crc32 is the same in every process; hash() of a str is not
        hashes = [zlib.crc32(shingle.encode('utf-8', 'replace')) for shingle in shingles]
        min_hashes = (np.array(hashes, np.uint64) * self.hash_factors[..., None]).min(axis=2)  # (6, 5)
        bands = (min_hashes * self.band_factors).sum(axis=1)  # (6,)
        cells = range(6), bands % 2**22
        marks = (bands >> 32).astype(np.uint32)
        is_duplicate = bool((self.tables[cells] == marks).any())
        self.tables[cells] = marks
        return is_duplicate


# -----------------------------------------------------------------------------
# seed words

VERB_ENDING = re.compile('(?<=..)(ना|णे|নো|া|er|ir|re)$')  # of infinitives in Hindi, Marathi, Bangla and French


def words_in(text):
    """The words of a text, in lower case and without accents, which inflection may change (léger, légère)."""
    text = re.sub('[\u0300-\u036f]', '', unicode_form(text.lower(), 'NFD'))
    return WORD.findall(unicode_form(text))


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

QUOTE = '["\'“”„«»‘’`]'
SCALE_KEY = re.compile('(?i)(?:max(imum)?([_ ]?(score|points))?|scale|out.?of)')
SCORE_KEY = re.compile(r'(?i)\b(score|grade|rating|points|value|total)')
# words that announce numbers other than grades
COUNTS = ('errors?|mistakes?|faults?|typos?|slips?|issues?|problems?|counts?|numbers? of [^\\W_]+|deductions?|deducted'
          '|lost|penalty|penalties|ranks?|weights?|min|max|confidences?|thresholds?|examples?|templates?|formats?'
          '|previous|others|claims?|requested|fautes?|erreurs?|fehler|गलतियाँ|गलतियां|त्रुटियाँ|चुका|ভুল')
COUNT_WORD = re.compile(rf'(?i)(?<![^\W_])(?:{COUNTS})(?![^\W_])')
# Errors: or "errors": {
COUNT_HEADING = re.compile(rf'{COUNT_WORD.pattern}(?:[_ ](?:found|by|per|in|scores?|grades?)\b[ \w]*)?[^\w.!?]*$')


def letters_of(name):
    """'Context Awareness', 'context_awareness' and 'context_awareness_score' -> 'contextawareness'"""
    return re.sub(r'(?<=\w)[ _](?:score|grade|rating)$|[\W_]+', '', str(name).lower())


def read_grades(reply, scales, choices, prefill='', story=''):
    """A judge's reply -> ({criterion: float}, notes), or Rejected.

    The reply contains JSON, lines such as 'Grammar: 8/10' or a table, with any text around them. Nothing is guessed:
    what is not clearly a grade is left out, and all grades for a criterion must be equal.
    scales: {criterion: (lowest, highest)}. choices: {criterion: {letter: number}} for grades that are capital letters.
    prefill: the beginning of the reply. Some judges repeat it.
    story: the graded text. A judge that only quotes it seems to give the grades that the story gives itself, so a reply
        with such a grade is rejected.
    """
    if not reply.lstrip().startswith(('{', '```')):
        reply = prefill + reply
    names = {letters_of(name): name for name in scales}
    values, notes, text = values_in_json(reply, names)
    if not values and text.rfind('{') > text.rfind('}'):
        raise Rejected('cut off')
    values += values_in_lines(text, names)
    highs = [scale[1] for name, scale in scales.items() if name not in choices]
    if highs and states_other_scale(text, highs):
        raise Rejected('another scale')
    scores = {}
    for name, scale in scales.items():
        found = [read_grade(value, scale, choices.get(name)) for criterion, value in values if criterion == name]
        grades = set(found) - {None}
        if len(grades) != 1:
            raise Rejected(f'several grades for {name}' if grades else f'no grade for {name}')
        grade = grades.pop()
        if not scale[0] <= grade <= scale[1]:  # true for nan, too
            raise Rejected(f'{name} out of range')
        scores[name] = float(grade)
    named, labeled = grades_in_story(story, names, choices)
    if any(score in named[name] for name, score in scores.items()) or set(scores.values()) <= labeled:
        raise Rejected('a grade that the story gives itself')
    return scores, notes.strip()[:2000]


def grades_in_story(story, names, choices):
    """The grades that a story gives itself -> {criterion: numbers}, and the numbers after any label.

    All forms of quotation marks, escapes, brackets, spaces and digits are read. A judge may translate the labels:
    'व्याकरण: १०', 'score = 10', '10/10'.
    """
    text = re.sub(r'\\{1,9}u([0-9a-fA-F]{4})', lambda match: chr(int(match[1], 16)), html.unescape(story))
    text = INVISIBLE.sub('', unicode_form(re.sub(r'\\{1,9}n', '\n', text), 'NFKC'))
    text = re.sub(rf'{QUOTE}|[\\*#{{}}\[\]]', '', ascii_digits(text))
    number = r'(\d{1,9}(?:[.,]\d{1,9})?)'  # bounds, since a story may be one long line
    named = {}
    for name in names.values():
        label = rf'(?i){name_pattern(name)}[\W_]{{1,12}}(?:(?:score|grade|rating|group|is)\b\W{{1,12}})?'
        letters = choices.get(name, {})
        named[name] = {letters.get(letter.upper()) for letter in re.findall(label + r'([a-z])(?!\s{0,9}\w)', text)}
        named[name] |= {to_float(found) for found in re.findall(label + number, text)}
    labeled = re.findall(rf'(?<!\d)\s{{0,9}}[:=|–—]\s{{0,9}}{number}(?!\s{{0,9}}\w)', text)  # not '10 cats'
    labeled += re.findall(r'(\d{1,9}) ?/ ?\d', text)
    return named, set(map(to_float, labeled)).union(*named.values())


def to_float(number):
    """'7,5' -> 7.5"""
    return float(number.replace(',', '.'))


def ascii_digits(text):
    """Digits of any script as 0 to 9."""
    return re.sub(r'\d', lambda digit: str(int(digit[0])), text)


def states_other_scale(text, highs):
    """Whether a text beside the grades names a scale whose highest grade is not one of these."""
    asked = rf'(?:{"|".join(f"{high:g}" for high in highs)})\b'
    other = rf'(?!{asked})\d+\b'
    no_asked = rf'(?!.*\b{asked})'  # in the rest of the line
    forms = (
        rf'\bout of:? {other}(?! (?:sentence|word|line))|\bsur {other} ?[:)]',  # Grades are out of 5.
        rf'\b{other} ?(?:में से|पैकी|এর মধ্যে)',
        rf'\(1 ?[-–] ?{other}\)|\(/ ?{other}\)',  # | Grade (1-5) |
        rf'\bmax(?:imum)?\b[^\d\n]{{0,20}}{other}|{other} is the (?:max|best|high)',
        rf'\b(?:overall|average|mean)\b[^\n]{{0,20}}/ ?{other}',
        rf'\b(?:rate|rating|grade|score)s?\b[^.\n\d]{{0,40}}\d+ ?(?:to|[-–]) ?{other}',  # I rate them from 0 to 5
        rf'^{no_asked}(?=.*(?:\d|point)).*(?:\bscale\b|échelle|पैमान|स्केल|স্কেল)',  # on a five-point scale
        rf'^[^\w\n]{{0,9}}[01] ?[=(]{no_asked}.*\b{other} ?[=(]',  # 1 = poor, 5 = excellent
    )
    text = ascii_digits(text)
    return any(re.search(form, text, re.I | re.M) for form in forms)


def values_in_json(reply, names):
    """{"grammar": 8} or {"criterion": "Grammar", "score": 8} -> [(criterion, value or object), …], notes, other text

    names: {letters_of(criterion): criterion}. An object is a tuple of pairs, since a key may be in it twice.
    JSON inside a sentence, in a quoted line or in a broken object is a quotation, maybe of a story that asks for a
    grade: the reply is rejected. Counts, as in {"errors": {"grammar": 3}}, are left out.
    """
    reply = text = repair_json(reply)
    values = []
    notes = ''
    counts_end = 0  # the end of an object with counts
    for found, start, end in json_objects(reply, object_pairs_hook=tuple):
        text = text.replace(reply[start:end], '\0', 1)  # keeps its place in the text
        if start < counts_end or COUNT_HEADING.search(reply[max(0, start - 60):start]):
            counts_end = max(end, counts_end)
            continue
        for key, value in found:
            name = names.get(letters_of(key))
            if name:
                values.append((name, value))
            elif isinstance(value, str) and letters_of(value) in names:
                values.append((names[letters_of(value)], found))
            elif isinstance(value, str) and key == 'notes':
                notes = value
            elif SCALE_KEY.fullmatch(key) and (numbers := re.findall(r'\d+', str(value))):
                text += f'\nout of {numbers[-1]}'  # for states_other_scale
    for line in text.split('\n'):
        around = re.sub(r'^[^\0]*[:.!]|json', '', line)  # 'My grades: ' may stand before it
        if '\0' in line and (re.search(rf'\w|{QUOTE}', around) or line.lstrip().startswith('>')):
            raise Rejected('JSON inside a sentence')
    if values and re.search(rf'{{\s*{QUOTE}', text):
        raise Rejected('broken JSON')
    return values, notes, text


def name_pattern(name):
    """Matches context_awareness, Context Awareness, context-awareness, …"""
    return r'[\W_]{0,3}'.join(re.findall(r'[^\W_]+', name))


def label_pattern(names, text):
    """Finds the name of a criterion with a grade after it.

    Grammar: 8, - **Grammar score** (1-10) = 8, | grammar | 8 |, The grammar is 8. Not 'errors in grammar'.
    In broken JSON the name must be a key, since its notes may quote anything.
    """
    any_name = '|'.join(map(name_pattern, names.values()))
    if re.search(rf'{{\s*{QUOTE}', text):
        return re.compile(rf'(?i){QUOTE}({any_name}){QUOTE}(?=\s*:)')
    return re.compile(rf'''
        (?: ^\s* | (?!{QUOTE})[^\w\s]\s* | _ )             # begins a line or follows punctuation
        (?: the\s+ | (?:score|grade|rating)\s+(?:for|of)\s+ )?
        (?: {QUOTE}(?=(?:{any_name}){QUOTE}) )?             # an opening quotation mark only around the name
        ({any_name})
        (?: \s+(?:score|grade|rating) )?
        (?: [\s*_] | {QUOTE} )* (?: \bis\s+ )?
        (?= [:=|→—\d$\\] | [–-]\s | [(\[]+[^()\[\]]*\d )   # a separator or a number follows
        ''', re.I | re.X)


# a line with only a grade, as in 'Grammar:\n8/10' or '**Grammar**\nScore: 8/10', belongs to the line before it
NUMBER_LINE = re.compile(r'(?im)(?<![.!?।])\n{1,3}[-*•#_ ]{0,9}(?:(?:score|grade|rating)[*_ ]{0,9}:[*_ ]{0,9})?'
                         r'(?=(?:\\boxed|[*_$\[{ ])*\d[\d/.,*_\]}$ ]*$)')


def values_in_lines(text, names):
    """What follows the names of criteria in lines and tables -> [(criterion, text), …]. Rejects counts of errors."""
    text = NUMBER_LINE.sub(' ', text)
    label = label_pattern(names, text)
    lines = [line for line in text.split('\n') if re.search(r'\w', line)]
    for heading, line in zip(['', *lines], lines):  # a heading may be the first row of a table
        found = label.search(line)
        is_count = (COUNT_WORD if '|' in heading else COUNT_HEADING).search(heading)
        is_count = is_count and not re.search(r'(?i)\d|score|grade|rating', heading)
        if found and (is_count or COUNT_HEADING.search(line[:found.start(1)])):
            raise Rejected('counts, not grades')
    values = []
    for line in lines + table_columns(lines):
        pieces = label.split(line)  # text, name, text, name, text, …
        for name, value in zip(pieces[1::2], pieces[2::2]):
            values.append((names.get(letters_of(name)), value))  # None: `ſ` matches s
    return values


def table_columns(lines):
    """For tables with the names in one row and the grades in another: '| a | b |', '| 1 | 2 |' -> 'a | 1', 'b | 2'."""
    rows = [line.split('|') for line in lines if '|' in line]
    columns = []
    for above, below in itertools.combinations(rows[:40], 2):
        if not COUNT_WORD.search(below[0] or below[1]):
            columns += map(' | '.join, zip(above, below))
    return columns


def read_grade(value, scale, letters=None):
    """A judge's grade -> a number; None if it is not clear.

    value: 8, 8.5, '8/10', '८', 'B: 4-5', [8], (('score', 8), ('max', 10)), or anything else.
    scale: (lowest, highest). letters: {letter: number} if the grade is a letter.
    """
    if isinstance(value, list):
        value = str(value)
    if isinstance(value, tuple):  # an object
        value = '/'.join(str(field) for key, field in value if SCORE_KEY.search(key))
    if isinstance(value, str):
        return read_letter(value, letters) if letters else read_number(value, scale)
    return value if type(value) in (int, float) and not letters else None


def read_letter(text, letters):
    """'B', 'b: 4-5' or 'Group B' -> the number for B; None for any other text, such as 'A child of four' or 'B/C'."""
    match = re.match(r'(?i)[\W_]*(?:(?:age )?group )?(\w+)(?=$|\s*[^\w\s]|\s+\d)', text)
    found = {match[1].upper(), *re.findall(r'\b[A-Z]\b', text)} & letters.keys() if match else ()
    return letters.get(match[1].upper()) if len(found) == 1 else None


UNIT = '(?:points?|pts|marks?)'
GRADE = re.compile(rf'(?i) *(-?\d+(?:[.,]\d{{1,2}})?) *{UNIT}?[ @]*{UNIT}? *')  # @ stands for 'of the highest grade'
# '2 mistakes', '2-3 mistakes', '1 point less', '9 without the typo', but not '9 points'
COUNT = re.compile(rf'(?i)\d+(?:[-–.,]\d+)* ?(?!{UNIT}\b(?! ?[^\W\d_]))[^\W\d_]')
COMMENT = re.compile(r'\([^()]*\)|\|[^|]*(?=\||$)')  # a table's cell, too
OTHER_SCALE = re.compile(r'(?i)\bof \d|\d[ -]?(?:max|stars?)\b|\bscale\b|[%٪]|percent')
# No. 3; 3 (errors)
NO_GRADE = re.compile(rf'(?i)\b(?:no|nr|number|rank|ranked|place)\b\W{{0,2}}\d|[#№] ?\d|\((?:{COUNTS})\)')
SEPARATOR = re.compile(r'[()\[\]{}:;!=|→।॥。—]|(?<!\d)[.,]|[.,](?!\d)|(?:^| )[-–](?= )')


def read_number(text, scale):
    """A text that contains clearly one grade -> float; else None.

    - A grade is a number that stands alone between punctuation: '8', '8/10', '8 points out of 10', 'good: 7,5 (1-10)'.
    - Beside '8/10', and in brackets, other numbers may count something: '2 small mistakes, 8/10', '8 (2 mistakes)'.
    - Any other number makes it unclear: '3 errors; score 7', '7-8', '8 (or 9)', '4/5', '80 %', '1,000'.
    """
    if re.search('[<>≤≥]', text):
        return None
    low, high = f'{scale[0]:g}', rf'{scale[1]:g}(?:[.,]0+)?(?![.,]?\d|\w)'
    text = ascii_digits(text)
    text = ' '.join(re.sub(r'(?:\\b|\x08)oxed|[*_`"“”\'$]', '', text.replace('\n', ';')).split())
    text = re.sub(rf'(?i) ?(?:[/⁄／]|out of|of|von|sur|max[.:]?) ?{high}', '@', text)
    text = re.sub(rf'(?i)(?:on )?(?:an? )?(?:scale\W*)?(?:of |from )?(?<![\d.,-]){low} ?(?:[-–]|to|à|bis) ?{high}', '',
                  text)
    if OTHER_SCALE.search(text) or NO_GRADE.search(text):
        return None
    if '@' in text:
        text = COUNT.sub('', text)
    text = COMMENT.sub(lambda comment: COUNT.sub('', comment[0]), text)
    parts = [part for part in SEPARATOR.split(text) if re.search(r'\d', part)]
    grades = {match and match[1] for match in map(GRADE.fullmatch, parts)}
    grade = grades.pop() if len(grades) == 1 else None
    return to_float(grade) if grade else None
