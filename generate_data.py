"""
Generates children's stories: word lists -> prompts -> a grammar or a chat API -> stories.jsonl.

    python generate_data.py --language=hindi --total=20000
    python generate_data.py config/generate_hindi.py --provider=mistral --dry_run=3
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=chat.jsonl --max_cost=20
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=part2.jsonl --shard=2/8

- Prompt i combines a noun, a verb, an adjective and a feature of data/<language>/*.txt; each combination comes
  once per epoch.
- A story's id is the number of its prompt. The same command resumes: it generates only the stories that are missing.
- The provider `grammar` needs no key and no network. It fills in the plots of data/<language>/plots.txt.
- With a chat API, only stories that pass every check of replies.py are written.
"""

import collections
import hashlib
import math
import os
import random
import re

# -----------------------------------------------------------------------------
# what to generate
language = 'hindi'  # a folder in data/ with word lists
total = 20000  # number of prompts; a larger total keeps the first ones
out = ''  # output, a .jsonl file; empty = data/<language>/stories.jsonl
shard = '1/1'  # '2/8' = the second of eight parts of the work, each with its own `out`
seed = 1337  # another seed gives another order of the combinations
words = ['noun', 'verb', 'adjective', 'feature']  # a prompt has one line of each list: nouns.txt, verbs.txt …
epochs = 1  # how often each combination may be used
n_words = 0  # use only this many words of each list; 0 = all; a small vocabulary is easier to learn
n_characters = 0  # grammar: characters per role of a plot; 0 = all
dry_run = 0  # print this many prompts, with the grammar's stories or one reply of the API; write nothing
push = ''  # user/dataset on the Hugging Face hub: upload the complete file

# provider
provider = 'grammar'  # or openai, mistral, gemini, groq, together, openrouter, sarvam, ollama, vllm, llama.cpp
base_url = ''  # address of any other API that speaks OpenAI's /chat/completions
model = ''  # empty = the provider's default
num_workers = 16  # concurrent requests; fewer while the provider reports a rate limit
temperature = 1.0
max_tokens = 1024  # limit of a reply
extra = {}  # more fields of a request, such as {'reasoning_effort': 'low'}
timeout = 120.0  # seconds to wait for a reply
max_tries = 5  # tries per prompt; after that it is written to failed.jsonl
max_cost = 0.0  # US dollars for all runs on this `out`; 0 = no limit
price_in = -1.0  # US dollars per million tokens, for a model without a price in chat.py
price_out = -1.0
batch = False  # use the provider's Batch API: half the price, done within a day

# prompt of a chat API; config/generate_hindi.py sets these
template = ''  # {noun} and the others stand for the seed words, {level} for levels[complexity]
complexity = '2+'
levels = {}  # complexity -> a part of the prompt
themes = []  # {theme} stands for a random one
books = ''  # {books} stands for this
examples = 0  # {examples} stands for this many random lines of data/<language>/examples.txt
items = 1  # stories per reply
reply_format = 'json'  # 'json' = {"story": "…"}, 'html' = <h1>headline</h1><p>text</p> for each item

# checks of a chat API's stories
min_words = 40
max_words = 600
min_script = 0.9  # minimum fraction of letters in the script of the word lists
proper_nouns = True  # False = reject stories with names, found by capitals inside sentences
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'generate_data.py')))
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

from tqdm import tqdm

from files import append_rows, check, fail, find, on_hub, open_append, parse_shard, read_jsonl

use_grammar = provider == 'grammar' and not base_url
if not use_grammar:
    import chat
    import replies

# -----------------------------------------------------------------------------
# word lists


def read_lines(name, optional=False):
    """The lines of data/<language>/<name>, without comments and surrounding white space."""
    path = find(os.path.join('data', language, name))
    try:
        with open(path, encoding='utf-8-sig') as f:
            text = f.read()
    except FileNotFoundError:
        if optional:
            return []
        fail(f'{path} is missing; a language is a folder with word lists, such as data/hindi')
    except (OSError, UnicodeDecodeError) as e:
        fail(f'{path} could not be read: {e}')
    if '\0' in text:
        fail(f'{path} could not be read: it is in UTF-16 and must be in UTF-8')
    return [line.strip() for line in text.split('\n') if not line.startswith('#')]


def read_words(name):
    """A word list -> one dict per line: `word`, `tags` (a list) and a form of the word for each further column.

    If the first line is `word<TAB>tags<TAB>…` it names the columns. A form that is not given is the word itself.
    """
    lines = [line for line in read_lines(name) if line]
    columns = ['word']
    if lines and lines[0].startswith('word\t'):
        columns = lines.pop(0).split('\t')
    rows = {}
    for line in lines:
        fields = dict(zip(columns, line.split('\t')))
        word = fields['word']
        if word in rows:
            fail(f'data/{language}/{name} has a word twice: {word}')
        rows[word] = {column: fields.get(column) or word for column in columns}
        rows[word]['tags'] = fields.get('tags', '').split()
    if not rows:
        fail(f'data/{language}/{name} holds no word')
    return list(rows.values())


def spread(rows, n, start=0):
    """n rows at equal distances, from row `start` on; all rows if n is 0."""
    n = min(n or len(rows), len(rows))
    return [rows[(start + i * len(rows) // n) % len(rows)] for i in range(n)]


# -----------------------------------------------------------------------------
# prompt number -> seed words


def permute(i, n, key):
    """Element i of a pseudo-random permutation of range(n), without computing the rest of it.

    A Feistel network over the next even number of bits, repeated until the result is below n (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half_bits = (max(2, (n - 1).bit_length()) + 1) // 2
    mask = (1 << half_bits) - 1
    while True:
        left = i >> half_bits
        right = i & mask
        for turn in range(4):
            digest = hashlib.blake2b(b'%d %d %d' % (key, turn, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, 'little') & mask)
        i = left << half_bits | right
        if i < n:
            return i


def seed_words(i):
    """Prompt i -> {'noun': row, 'verb': row, …}. Each epoch contains every combination once, in an order of its own."""
    epoch, place = divmod(i, n_combinations)
    number = permute(place, n_combinations, seed + (epoch << 32))
    seeds = {}
    for kind, rows in word_lists.items():
        number, index = divmod(number, len(rows))
        seeds[kind] = rows[index]
    return seeds


def word_columns(seeds):
    """{'noun': 'cat', …}, as in a row of the output."""
    return {kind: row['word'] for kind, row in seeds.items()}


# -----------------------------------------------------------------------------
# the grammar

BRACKET = re.compile(r'\(([^(){}]*)\)|\{([^(){}]*)\}')  # (options) or {slot} without brackets inside


class Grammar:
    """Composes stories from the plots.txt and characters.txt of a language.

    plots.txt has plots, "== plot name | role=tag", and fragments, "== name" with one alternative per line. In both,
    - (a|b) stands for one of these at random
    - {noun} is a seed word, {noun.plural} another column of its list, {hero} a character, {hero:he|she} agrees with it
    - {name} is a random line of the fragment; {name@noun} of the one for a tag of the noun, "== name@tag"
    - {^name} begins with a capital
    """

    def __init__(self):
        head, *blocks = re.split(r'^== *', '\n'.join(read_lines('plots.txt')), flags=re.M)
        settings = dict(line.split(':', 1) for line in head.split('\n') if ':' in line)
        genders = settings.get('genders', '').split()
        self.n_genders = len(genders)
        self.form_tags = genders + [gender + 'p' for gender in genders]  # m f mp fp: singular, then plural
        self.characters = read_words('characters.txt')
        self.plots = []  # (name, {role: candidates}, text)
        self.fragments = {}  # name -> lines
        for block in blocks:
            title, _, body = block.partition('\n')
            if title.startswith('plot '):
                name, _, roles = title.removeprefix('plot ').partition('|')
                cast = self.read_cast(settings.get('cast', '') + ' ' + roles)
                self.plots.append((name.strip(), cast, body.strip()))
            else:
                self.fragments[title.strip()] = [line for line in body.split('\n') if line]
        if not self.plots:
            fail(f'data/{language}/plots.txt holds no plot')

    def read_cast(self, roles):
        """'hero=child elder=family+old' -> {role: the characters that have all these tags}."""
        tags_of = {}
        for pair in roles.split():
            role, _, tags = pair.partition('=')
            tags_of[role] = set(tags.split('+'))
        cast = {}
        for role, tags in tags_of.items():
            candidates = [row for row in self.characters if tags <= set(row['tags'])]
            cast[role] = spread(candidates, n_characters, start=len(cast))  # two roles start with two people
        return cast

    def compose(self, seeds, rng):
        """Seed words -> (name of the plot, story)."""
        name, cast, text = pick(self.plots, rng)
        slots = dict(seeds)
        try:
            for role, candidates in cast.items():
                slots[role] = pick([row for row in candidates if row not in slots.values()], rng)
            text = self.expand(text, slots, rng)
        except (LookupError, RecursionError) as e:
            fail(f'plots.txt: plot {name}: no such slot, form, character or == block, or a block in itself: {e}')
        if re.search(r'[(){}|]', text):
            fail(f'plots.txt: plot {name}: a bracket without its partner, here or in a == block')
        paragraphs = re.split(r'\n\n+', text)
        return name, '\n\n'.join(' '.join(paragraph.split()) for paragraph in paragraphs)

    def expand(self, text, slots, rng):
        """Replace all brackets, the innermost ones first."""

        def replace(match):
            options, slot = match.groups()
            if slot is None:  # (a|b|c)
                return pick(options.split('|'), rng)
            text = self.fill(slot.removeprefix('^'), slots, rng)
            if slot.startswith('^'):
                text = text[:1].upper() + text[1:]
            return text

        n_replaced = 1
        while n_replaced:
            text, n_replaced = BRACKET.subn(replace, text)
        return text

    def fill(self, slot, slots, rng):
        """The text for noun, noun.plural, hero:he|she, fragment or fragment@noun."""
        slot, _, forms = slot.partition(':')
        name, _, detail = slot.replace('@', '.').partition('.')
        if forms:
            return self.form_for(slots[name], forms.split('|'))
        if name in slots:
            return slots[name][detail or 'word']
        for tag in slots[detail]['tags'] if detail else []:
            if f'{name}@{tag}' in self.fragments:
                name = f'{name}@{tag}'
                break
        return self.expand(pick(self.fragments[name], rng), slots, rng)

    def form_for(self, row, forms):
        """The form that agrees with a word in gender: he|she, or with the plural: he|she|they|they."""
        for tag in row['tags']:
            if tag in self.form_tags and len(forms) in (self.n_genders, 2 * self.n_genders):
                return forms[self.form_tags.index(tag) % len(forms)]
        raise LookupError(f'{len(forms)} forms for {row["word"]}')


def pick(options, rng):
    return options[int(rng.random() * len(options))]


def grammar_row(i):
    seeds = seed_words(i)
    plot, text = grammar.compose(seeds, random.Random(seed << 40 | i))
    row = {'id': i, **word_columns(seeds), 'text': text, 'plot': plot}
    return row | {'model': 'grammar', 'prompt_tokens': 0, 'completion_tokens': 0}


# -----------------------------------------------------------------------------
# a chat API


def write_prompt(i):
    """Prompt i as the messages of a chat request."""
    rng = random.Random(seed << 40 | i)
    slots = word_columns(seed_words(i))
    slots |= {'language': language.capitalize(), 'items': str(items), 'books': books}
    if themes:
        slots['theme'] = rng.choice(themes)
    if examples:
        slots['examples'] = '\n'.join(rng.sample(example_lines, examples))
    return [{'role': 'user', 'content': chat.fill(prompt_template, slots)}]


def read_reply(i, reply):
    """A reply to prompt i -> the rows of its stories that pass; raises chat.Rejected if none passes."""
    seeds = seed_words(i)
    rows = []
    reasons = collections.Counter()
    for headline, text in replies.stories_in(reply, reply_format)[:items]:
        try:
            text = check_story(headline, text)
        except chat.Rejected as e:
            reasons[str(e)] += 1
            continue
        # with several stories per reply, the ids of prompt i begin at i * items
        row = {'id': i * items + len(rows), **word_columns(seeds), 'text': text}
        row['missing'] = replies.missing(seeds, text)
        if levels:
            row['complexity'] = complexity
        rows.append(row)
        counts['with all seed words'] += not row['missing']
    if not rows:
        raise chat.Rejected(reasons.most_common(1)[0][0])
    counts['stories'] += len(rows)
    counts['rejected parts'] += reasons.total()
    return rows


def check_story(headline, text):
    """The story as it is written to `out`, or chat.Rejected."""
    if headline:
        headline = replies.clean(headline, script, min_script, refuses)
        headline = replies.check_headline(headline, proper_nouns) + '</h> '
    text = replies.clean(text, script, min_script, refuses)
    text = headline + replies.check(text, min_words, max_words, proper_nouns)
    similarity = seen.add(text)
    if similarity > 0:
        raise chat.Rejected('duplicate' if similarity == 1 else 'near duplicate')
    return text


def connect():
    otherwise = 'or generate stories without a key: --provider=grammar and no config file'
    return chat.connect(
        provider, base_url, model, temperature, max_tokens, extra, price_in, price_out, otherwise)


# -----------------------------------------------------------------------------
# stages


def print_prompts():
    """The dry run."""
    for i in ids[:dry_run]:
        print(f'--- {i}: {", ".join(word_columns(seed_words(i)).values())}')
        print(grammar_row(i)['text'] if use_grammar else write_prompt(i)[0]['content'], end='\n\n')
    if use_grammar:
        return
    reply = chat.ask(connect(), write_prompt(ids[0]))
    print(f'--- the reply to {ids[0]}\n{reply}\n')
    try:
        rows = read_reply(ids[0], reply)
    except chat.Rejected as e:
        print(f'--- does not pass: {e}')
        return
    for row in rows:
        missing = ', '.join(row['missing']) or 'none'
        print(f'--- passes; missing seed words: {missing}')


def prompt_of(row):
    """The prompt of a row of `out` or failed.jsonl. Ends the script if this run would not write such a row."""
    i = row.get('id') if isinstance(row, dict) else None
    is_known = type(i) is int and 0 <= i < n_prompts * items
    if is_known and 'reason' not in row:
        i //= items  # in failed.jsonl the id is the prompt's number already
        is_known = row.get(words[0]) == word_columns(seed_words(i))[words[0]]
    if not is_known:
        fail(f'{out} holds another story than this seed and these word lists give (id {i}); use another --out')
    if 'reason' not in row and (row.get('model') == 'grammar') != use_grammar:
        fail(f'{out} holds stories by {row.get("model")}; use another --out for this provider')
    return i


def generate():
    """Write the stories that are missing in `out` -> whether it is complete."""
    f = open_append(out)  # locks it, so that no other process generates the same stories
    spent = [0, 0, 0]  # prompt tokens, completion tokens and US dollars of earlier runs
    done = {}  # prompt -> whether it failed
    rows = read_jsonl(out) if use_grammar else chat.finished(out, spent)
    for row in tqdm(rows, desc=f'reading {out}', unit=' rows', leave=False, delay=1):
        done.setdefault(prompt_of(row), 'reason' in row)
        if not use_grammar and 'text' in row:
            seen.add(str(row['text']))
    n_done = sum(i in done for i in ids)
    n_failed = sum(done.get(i, False) for i in ids)
    missing_ids = (i for i in ids if i not in done)

    if use_grammar:
        for i in tqdm(missing_ids, total=len(ids), initial=n_done, unit=' stories', desc=out, smoothing=0.1):
            append_rows(f, grammar_row(i))
        print(f'{len(ids):,} stories in {out}')
        return True
    if n_done == len(ids):
        summary = f'all {len(ids):,} prompts are done in {out}'
        if n_failed:
            summary += f', but {n_failed:,} of them failed: see failed.jsonl beside it, and delete it to try them again'
        print(summary)
        return True
    is_complete = chat.collect(
        connect(), missing_ids, write_prompt, read_reply, f, total=len(ids), n_done=n_done, spent=spent, unit='stories',
        num_workers=num_workers, timeout=timeout, max_tries=max_tries, max_cost=max_cost, batch=batch,
        whole=reply_format == 'json', is_done=done.__contains__)
    if counts['stories']:
        print(f'{counts["with all seed words"] / counts["stories"]:.1%} of them with all seed words')
    if counts['rejected parts']:
        print(f'{counts["rejected parts"]:,} parts of replies left out')
    if not is_complete:
        print('the same command goes on')
    return is_complete


def upload():
    """Upload `out` and a card to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN."""
    import huggingface_hub

    from replies import CODES
    writers = collections.Counter(row['model'] for row in read_jsonl(out))
    language_line = f'language: {CODES[language]}' if language in CODES else f'tags: [{language}]'
    card = f'''---
{language_line}
task_categories: [text-generation]
configs: [{{config_name: default, data_files: stories.jsonl}}]
---
# {push.split("/")[-1]}

{writers.total():,} short texts in {language.capitalize()}, written by {", ".join(writers)} for training
small language models. Each has a `text` and the seed words of its prompt ({", ".join(words)}).
'''
    if template:
        card += f'\nThe prompt:\n\n```\n{prompt_template.strip()}\n```\n'
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(push, repo_type='dataset', exist_ok=True)
        api.upload_file(path_or_fileobj=out, path_in_repo='stories.jsonl', repo_id=push, repo_type='dataset')
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo='README.md', repo_id=push, repo_type='dataset')
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as e:
        reason = ' '.join(str(e).split())
        fail(f'{push} was not uploaded: {reason:.300}; the same command tries again')
    print(f'uploaded to {push}')


# -----------------------------------------------------------------------------
# settings

part, n_parts = parse_shard(shard) or (0, 0)
check(part, f'shard is {shard!r}; it must be a part and the number of parts, such as 2/8')
check(not out or out.endswith('.jsonl'), f'out is {out!r}; it must end in .jsonl')
check(items >= 1, 'items must be at least 1')
for text in [*words, *themes, *levels, *levels.values()]:
    check(isinstance(text, str), f'words, themes and levels must contain strings, not {text!r}')
check(words, 'words must name at least one word list')
check(0 <= min_words <= max_words, 'min_words must be from 0 to max_words')
check(0 <= min_script <= 1, 'min_script must be from 0 to 1')
if push:
    on_hub(push)  # ends the script if the upload would not be encrypted

out = out or os.path.join('data', language, 'stories.jsonl')
word_lists = {kind: spread(read_words(f'{kind}s.txt'), n_words) for kind in words}
n_combinations = math.prod(len(rows) for rows in word_lists.values())
n_prompts = n_combinations * epochs
check(0 < total <= n_prompts, f'total is {total:,}; these word lists and epochs give from 1 to {n_prompts:,} prompts')
ids = range(part - 1, total, n_parts)

if use_grammar:
    check(not template, 'a prompt template is for a chat API: set --provider=mistral or another, or use no config file')
    items = 1
    grammar = Grammar()
else:
    known = ', '.join(['grammar', *chat.PROVIDERS])
    check(base_url or provider in chat.PROVIDERS, f'no provider {provider!r}; use --base_url, or one of {known}')
    check(template, f'a chat API needs a prompt template: use config/generate_{language}.py, or a config file like it')
    check(not levels or complexity in levels, f'complexity is {complexity!r}; it must be one of {", ".join(levels)}')
    check(reply_format in ('json', 'html'), "reply_format must be 'json' or 'html'")
    check(items == 1 or reply_format == 'html', "more than one item per reply needs reply_format='html'")
    prompt_template = template.replace('{level}', levels.get(complexity, ''))
    letters = replies.scripts_in(' '.join(row['word'] for row in word_lists[words[0]]))
    script = max(letters, key=letters.get, default='')
    refuses = replies.compile_refusals(read_lines('refusals.txt', optional=True))
    example_lines = [line for line in read_lines('examples.txt') if line] if examples else []
    check(examples <= len(example_lines), f'examples.txt has {len(example_lines)} lines, and examples is {examples}')
    seen = replies.Seen()
    counts = collections.Counter()  # of the stories of this run

# -----------------------------------------------------------------------------
# main part

if dry_run:
    print_prompts()
elif generate() and push:
    upload()
