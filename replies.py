"""
What becomes of what a chat API replies: a story (what a reply holds, what of it is cleaned, refused, or came before, and which seed words it lacks),
or a judge's grades.

    refuses, seen = replies.compile_refusals(lines), replies.Seen()                 # lines of data/<language>/refusals.txt
    for headline, text in replies.stories_in(reply, 'json'):
        text = replies.check(replies.clean(text, 'DEVANAGARI', 0.9, refuses), min_words=40, max_words=600, proper_nouns=True)
        print(text, seen.add(text), replies.missing(words, text))

Whatever will not do raises chat.Rejected with the reason.
"""

import functools
import html
import json
import re
import unicodedata

import numpy as np

import chat
import measures

TRAILING_COMMA = re.compile(r',(?=\s*[}\]])')


def objects_in(text, nested=False):
    """Yield the JSON objects in a text, whatever is between them; line breaks in their strings are forgiven. nested: those inside of others, too.

    200 opening braces are tried.
    """
    decoder, at = json.JSONDecoder(strict=False), 0
    for _ in range(200):
        at = text.find('{', at)
        if at < 0:
            return
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        yield found
        at = at + 1 if nested else end


def find_json(text, key):
    """The first JSON object in `text` that has `key`, or None. Passed over are code fences, prose, raw line breaks, trailing commas, \\'
    and, where `key` holds a string, quotation marks inside it."""
    for candidate in (text, TRAILING_COMMA.sub('', text.replace("\\'", "'"))):
        found = next((found for found in objects_in(candidate, nested=True) if key in found), None)
        if found:
            return found
    begin = re.search(rf'"{re.escape(key)}"\s*:\s*"', candidate)
    end = begin and re.compile(r'"\s*(?:,\s*(?:"\w+"\s*:|\})|\})').search(candidate, begin.end())  # the next key, or the end
    try:
        return {key: json.loads('"' + re.sub(r'(?<!\\)"', r'\\"', candidate[begin.end():end.start()]) + '"', strict=False)} if end else None
    except ValueError:
        return None


def stories_in(reply, reply_format):
    """A reply -> [(headline or '', text)], those parts of it that can be read, or chat.Rejected where there is none.

    reply_format: 'json' for {"story": "…"}, or 'html' for <h1>headline</h1><p>text</p>, once or more.
    """
    if reply_format == 'json':
        story = (find_json(reply, 'story') or {}).get('story')
        if isinstance(story, list) and all(isinstance(part, str) for part in story):
            story = '\n\n'.join(story)
        if not isinstance(story, str):
            raise chat.Rejected('no JSON with a story')
        return [('', story)]

    def without_tags(part):
        return ' '.join(html.unescape(re.sub(r'<[^>]*>?', ' ', part)).split())

    parts = re.split(r'<h1\b[^<>]*>', reply.partition('<think>')[0], flags=re.I)[1:]  # some think again behind it
    found = []
    for number, part in enumerate(parts, 1):
        headline, _, text = [*re.split(r'(</h1\s*>|(?=<p\b))', part, maxsplit=1, flags=re.I), '', ''][:3]
        closed = re.fullmatch(r'(.*)</p\s*>(.*)', text, flags=re.I | re.S)
        if number == len(parts) and (not closed or '<p' in closed[2].lower()):  # where the reply was cut
            continue
        text = closed[1] if closed else re.sub(r'\n\W{0,9}\d{0,9}\W{0,9}$', '', text)  # without the number of the next
        found.append((without_tags(headline), without_tags(text)))
    found = [pair for pair in found if all(pair)]
    if not found:
        raise chat.Rejected('no <h1> and <p>')
    return found


INVISIBLE = re.compile('[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]')  # soft hyphens, marks of direction and the like
BROKEN = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\uf8ff\ufff9-\uffff]')  # control characters, halves of pairs, private ones, U+FFFD
SIGNS = rf'\w{measures.MARKS}'  # what words are made of, for a class of characters; \w alone has no vowel signs
VIRAMAS = ''.join(c for c in measures.MARKS if unicodedata.combining(c) == 9)
JOINERS = re.compile(rf'(?<![{SIGNS}])[\u200c\u200d]+|(?<![{VIRAMAS}])[\u200c\u200d]+(?![{SIGNS}])')  # those that join nothing
END = r'[.!?।॥…](?: ?[»)]|["\'”’])*$'  # of a sentence
# A capital inside a sentence, inside a word, after a title or before the dot of an abbreviation, and a single word in quotation marks.
NAME = re.compile(r'(?<!^)(?<![.!?…:])(?<![.!?…:]["”’)])(?<![.!?…:]["”’)]["”’)])\s\(?(?!I\b)[A-ZÀ-ÖØ-Þ]'
                  r'|[\w/-][A-ZÀ-ÖØ-Þ]|\b(?:Mrs?|Ms|Dr)\b|\b[A-HJ-Z]\.|(?<=\s)["“][A-Z][\w’\'-]*["”]')


def compile_refusals(lines):
    """The lines of a language's refusals.txt, without comments, which say how it is written -> a function that says whether a text holds such a phrase."""
    def plain_marks(text):
        return text.replace('’', "'").replace('‘', "'").replace(' :', ':')

    found = {'^': [], '$': [], '': []}
    for line in filter(lambda line: line.strip('^$'), lines):
        where = '^' if line[0] == '^' else '$' if line[-1] == '$' else ''
        phrase = re.escape(plain_marks(line.strip('^$')))
        found[where].append(phrase + rf'(?![{SIGNS}])' * bool(re.match(rf'[{SIGNS}]', phrase[-1])))
    begins = r'(?:^|(?<=[.!?।॥…:\n])|(?<=[.!?।॥…:)"”»] ))\(?'  # a sentence, and not one in quotation marks, which somebody in the story says
    start, end, anywhere = (re.compile(before + f'(?:{"|".join(found[where]) or "(?!)"})', re.I)  # (?!) is in no text
                            for where, before in (('^', begins), ('$', begins), ('', rf'(?<![{SIGNS}])')))

    def refuses(text):
        text = plain_marks(text)
        ends = [match.start() for match in end.finditer(text)]
        return bool(anywhere.search(text) or start.search(text[:100]) or ends and ends[-1] >= len(text) - 200)
    return refuses


def clean(text, script, min_script, refuses):
    """A text as it came -> the same with white space, joiners and dandas in order and no title, or chat.Rejected where it is no plain text in the language.

    script: the language's, as in measures.script_of. min_script: the share of the letters that are in it, from 0 to 1. refuses: of compile_refusals.
    """
    if BROKEN.search(text):
        raise chat.Rejected('broken characters')
    text = INVISIBLE.sub('', unicodedata.normalize('NFC', text)).replace('\r\n', '\n')
    text = re.sub(r'\n{2,}', '\n\n', '\n'.join(' '.join(line.split()) for line in JOINERS.sub('', text).strip().split('\n')))
    if script in ('DEVANAGARI', 'BENGALI', 'GURMUKHI', 'ORIYA'):  # | is on every keyboard, the danda is not
        text = re.sub(r'(?<=[^\s|]) ?(\|\|?)(?=[\s"\'”’»)]|$)', lambda match: '।॥'[len(match[1]) - 1], text)
        text = re.sub(r' +(?=[।॥])', '', text)
    title, _, rest = text.partition('\n\n' if '\n\n' in text else '\n')
    if len(title) <= 60 and not re.search(r'\n|[,;:—–-]["”’»)]*$|' + END, title) and re.search(END, rest.partition('\n')[0]):
        text = rest  # a paragraph with no end of a sentence above one with an end; in verse neither has one
    if not measures.script_share(text, script) >= min_script:  # nor nan, where there is no letter
        raise chat.Rejected(f'not in {script.lower()} script')
    if refuses(text):
        raise chat.Rejected('refusal or meta text')
    if re.search(r'[*#<>{}\[\]|`_\\]|https?:|^[-–—=~ ]+$', text, flags=re.M):
        raise chat.Rejected('markup')
    return text


def check(text, min_words, max_words, proper_nouns):
    """A cleaned text -> the same where it will do as a story, or chat.Rejected. proper_nouns: False refuses names, as far as capitals tell them."""
    n = len(text.split())
    if not min_words <= n <= max_words:
        raise chat.Rejected('too short' if n < min_words else 'too long')
    if not re.search(END + '|["”’»]$', text):
        raise chat.Rejected('no end of a sentence')
    if not proper_nouns and NAME.search(text):
        raise chat.Rejected('proper noun')
    return text


def check_headline(text, proper_nouns):
    """The same for a headline."""
    if not 2 <= len(text.split()) <= 30:
        raise chat.Rejected('broken headline')
    long = [word for word in re.findall(r'\w+', text)[1:] if len(word) > 3]
    in_title_case = len(long) > 1 and sum(word[0].isupper() for word in long) > len(long) * 2 / 3  # which Says Nothing about Names
    if not proper_nouns and not in_title_case and NAME.search(text):
        raise chat.Rejected('proper noun')
    return text


class Seen:
    """Stories so far, for finding one that came before, to the letter or nearly.

    MinHash over shingles of three words, in bands of rows (Broder 1997, "On the resemblance and containment of
    documents"; Leskovec et al., "Mining of Massive Datasets", chapter 3): two stories that share a part s of their
    shingles meet in one of 6 bands of 5 rows with probability 1 - (1 - s^5)^6, which is 0.99 at 0.9, 0.67 at 0.7 and
    0.01 at 0.3. A band is a table of fixed size in which a new story takes an old one's place, so that memory stays at
    100 MB and among millions of stories the oldest fade.
    """

    def __init__(self, bands=6, rows=5, bits=22):
        rng = np.random.default_rng(0)
        self.shape, self.bits = (bands, rows), bits
        self.factors = rng.integers(0, 1 << 63, (bands * rows, 1), np.uint64) * 2 + 1
        self.mix = rng.integers(0, 1 << 63, (2, rows), np.uint64) * 2 + 1
        self.tables = np.zeros((bands, 1 << bits), np.uint32)

    def add(self, text):
        """Remember a text -> the share of the bands in which one before it was the same: 1 for an exact copy."""
        hashes = np.fromiter(map(hash, [*text.lower().split(), '', '']), np.int64).view(np.uint64)
        shingles = hashes[:-2] * self.mix[0, 0] + hashes[1:-1] * self.mix[0, 1] + hashes[2:] * self.mix[0, 2]
        shingles ^= shingles >> 29
        least = (shingles * self.factors).min(1).reshape(self.shape)
        keys = (least * self.mix[1]).sum(1)
        places, marks = keys >> (64 - self.bits), (keys & 0xffffffff).astype(np.uint32) | 1
        bands = np.arange(len(keys))
        same = self.tables[bands, places] == marks
        self.tables[bands, places] = marks
        return same.mean()


LIGHT = re.compile('(कर|दे|ले|हो|जा)ना|(कर|दे|घे|हो|जा)णे|(কর|দেওয়|নেওয়|হওয়|যাওয়|পাওয়)া')  # verbs that say little beside a noun, and are irregular


def words_in(text):
    """Its words, in lower case and without accents, which come and go (léger, légère)."""
    text = re.sub('[\u0300-\u036f]', '', unicodedata.normalize('NFD', text.lower()))
    return measures.WORD.findall(unicodedata.normalize('NFC', text))


words_of_form = functools.lru_cache(2**16)(words_in)  # the lists' words come again and again


def missing(words, text):
    """The kinds of seed words that a text does not hold, as far as the beginnings of its words tell. words: {kind: {column: forms of the word}}

    Of a group of words one will do: the prompt asks for some. A feature is said by the story, not named in it.
    """
    def there(word, is_verb):
        """Whether a word of the text begins as this one does without its ending, and is not much longer."""
        stem = re.sub(r'(?<=..)(ना|णे|নো|া|er|ir|re)$', '', word) if is_verb else word.rstrip(measures.MARKS)
        if stem == word and word.islower() and len(word) > 4:  # a script with lower case
            stem = word[:-1]
        longest = len(word) + (max(0, min(3, len(word) - 2)) if word.islower() else 5)  # cats, not caterpillars; the others put more behind a word
        bare = '' if is_verb or stem == word else stem  # कल is not the कली without its ending
        return word in begun or any(other.startswith(stem) and len(other) <= longest and other != bare for other in begun)

    def held(kind, form):
        parts = [part for part in words_of_form(form) if part not in ('s', 'se')]  # se cacher: il s'est caché
        if kind == 'verb' and len(parts) > 1 and LIGHT.fullmatch(parts[-1]):  # मदद करना: मदद की
            parts.pop()
        return all(there(part, kind == 'verb') for part in parts)

    begun = set(words_in(text))
    return [kind for kind, row in words.items() if kind != 'feature' and not any(
        held(kind, form) for forms in row.values() if isinstance(forms, str) for form in forms.split(', '))]


# -----------------------------------------------------------------------------
# grades

def plain(name):
    """'Context Awareness' and 'context_awareness' -> 'contextawareness'"""
    return re.sub(r'[\W_]+', '', str(name).lower())


def number_in(value, criterion, scale, letters):
    """What a judge wrote for a criterion (8, 8.5, '8', '8/10', '८', 'B: 4-5', {'score': 8}) -> a number, or chat.Rejected.

    scale: the lowest and the highest number that it can be. letters: {letter: number} where it is answered with one, or else nothing.
    """
    if isinstance(value, dict):
        named = {plain(key): inner for key, inner in value.items()}
        value = next((named[key] for key in ('score', 'grade', 'rating', 'value') if key in named), None)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    low, high = scale
    if isinstance(value, str) and letters:
        match = re.match(rf'[\W_]*(?:(?:age )?group )?({"|".join(map(re.escape, letters))})(?=$|\s*[^\w\s]|\s+\d)', value, flags=re.I)
        if not match:
            raise chat.Rejected(f'{criterion} is none of its letters')
        return float(next(number for letter, number in letters.items() if re.fullmatch(re.escape(letter), match[1], flags=re.I)))
    if isinstance(value, str):
        match = re.match(r'[\W_]*?([-−]?\d+(?:[.,]\d+)?)(.*)', value, flags=re.S)
        value = match and float(match[1].replace(',', '.').replace('−', '-'))
        rest = match and re.sub(rf'^\s*(?:/|out of|of|von|sur)\s*{high:g}(?:\.0+)?(?!\d|\.\d)', '', match[2], flags=re.I)
        if match and re.match(r'\w|\s*[%/+]|\s*(?:[-–−]|to|or|bis|à)\s*\d', rest):  # '8th', '80 %', '4/5' of ten, '7-8'
            raise chat.Rejected(f'unclear grade for {criterion}')
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise chat.Rejected(f'no grade for {criterion}')
    if not low <= value <= high:  # nor is nan
        raise chat.Rejected(f'{criterion} out of range')
    return float(value)


def grades_in_lines(reply, scales, choices):
    """{criterion: number} from lines such as 'Grammar: 8/10', or chat.Rejected. The rest is as in read_grades."""
    if reply.rfind('{') > reply.rfind('}'):
        raise chat.Rejected('cut off')
    scores = {}
    for name in scales:
        pattern = r'[\W_]*'.join(map(re.escape, re.findall(r'[^\W_]+', name)))
        values = re.findall(rf'(?<![^\W_]){pattern}["\'*_`\s]*(?:[:=|–—-]|\bis\b)[\s"\'*_`]*((?:[^\n|,;"}}]|,(?=\d))+)', reply, flags=re.I)
        numbers = {number_in(value, name, scales[name], choices.get(name)) for value in values}
        if len(numbers) != 1:
            raise chat.Rejected(f'several gradings of {name}' if numbers else f'no {name}')
        scores[name] = numbers.pop()
    return scores


def read_grades(reply, scales, choices):
    """A judge's reply -> ({criterion: number}, notes), or chat.Rejected with what is wrong.

    scales: {criterion: (lowest, highest)}. choices: {criterion: {letter: number}}, for those that are answered with a letter.
    It is JSON with prose or code fences around it, or, failing that, lines such as 'Grammar: 8/10'. Other keys may be there;
    a reply with two different gradings is none.
    """
    gradings, notes, problem = [], '', None
    for found in objects_in(TRAILING_COMMA.sub('', reply)):
        named = {plain(key): value for key, value in found.items()}
        inner = next((named[key] for key in ('scores', 'grades', 'ratings', 'evaluation') if isinstance(named.get(key), dict)), {})
        named |= {plain(key): value for key, value in inner.items()}
        if all(plain(name) in named for name in scales):
            try:
                gradings.append({name: number_in(named[plain(name)], name, scales[name], choices.get(name)) for name in scales})
                notes = next((named[key] for key in ('notes', 'note', 'comments', 'reasoning') if isinstance(named.get(key), str)), '')
            except chat.Rejected as e:
                problem = e
        elif any(plain(name) in named for name in scales):
            problem = chat.Rejected(f'no {next(name for name in scales if plain(name) not in named)}')
    if not gradings and not problem:
        gradings.append(grades_in_lines(reply, scales, choices))
    if not gradings:
        raise problem
    if any(grading != gradings[0] for grading in gradings):
        raise chat.Rejected('several gradings')
    return gradings[0], notes.strip()[:2000]
