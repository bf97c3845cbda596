"""
Generates children's stories: word lists -> prompts -> a grammar or a chat API -> stories.jsonl.

    python generate_data.py --language=hindi --total=20000
    python generate_data.py config/generate_hindi.py --provider=mistral --dry_run=3
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=chat.jsonl --max_cost=20
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=part2.jsonl --shard=2/8

- Prompt i combines a noun, a verb, an adjective and a feature of data/<language>/*.txt; each combination comes
  once per epoch. The grammar picks a plot first, then words that fit it.
- A story's id is the number of its prompt (with several stories per reply: number * items, and on).
- The same command resumes: it generates only the stories that are missing.
- The provider `grammar` needs no key and no network. It fills in the plots of data/<language>/plots.txt.
- With a chat API, only stories that pass every check of replies.py are written.
"""

import collections
import functools
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
world = ''  # grammar: use only words and characters with this tag, such as demo: a small world is easier to learn
dry_run = 0  # print this many prompts, with the grammar's stories or one reply of the API; write nothing
write_prompts = ''  # a .jsonl file: write all prompts of a chat API there, and request nothing
push = ''  # user/dataset on the Hugging Face hub: upload the complete file

# provider
provider = 'grammar'  # or openai, mistral, gemini, groq, together, openrouter, sarvam, ollama, vllm, llama.cpp
base_url = ''  # address of any other API that speaks OpenAI's /chat/completions
model = ''  # empty = the provider's default
num_workers = 16  # concurrent requests; fewer while the provider reports a rate limit
temperature = 1.0  # None = leave this field out of a request
max_tokens = 1024  # limit of a reply; None = leave this field out
extra = {}  # more fields of a request, such as {'reasoning_effort': 'low'}
timeout = 120.0  # seconds to wait for a reply
max_tries = 5  # tries per prompt; after that it is written to failed.jsonl
max_cost = 0.0  # US dollars for all runs on this `out`; 0 = no limit
max_failed = 0.05  # the exit status is not 0 if more than this fraction of the prompts was given up
price_in = -1.0  # US dollars per million tokens, for a model without a price in chat.py
price_out = -1.0
batch = False  # use the provider's Batch API: half the price, done within a day

# prompt of a chat API; config/generate_hindi.py sets these
template = ''  # {noun} and the others stand for the seed words, {level} for levels[complexity]
complexity = '2+'
levels = {}  # complexity -> a part of the prompt
lists = {}  # {hero} stands for a random line of data/<language>/heroes.txt if this is {'hero': 'heroes.txt'}
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
can_be_none = ('temperature', 'max_tokens')  # for configurator.py
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

from tqdm import tqdm

from files import (append_rows, check, check_push, count_scripts, fail, find, language_code, open_append, parse_shard,
                   read_jsonl, replacing, upload_dataset)

use_grammar = provider == 'grammar' and not base_url
if not use_grammar:
    import chat
    import replies

# -----------------------------------------------------------------------------
# word lists


def read_lines(name):
    """The lines of data/<language>/<name> without comments and surrounding white space; [] if there is no such file."""
    path = find(os.path.join('data', language, name))
    try:
        with open(path, encoding='utf-8-sig') as f:
            return [line.strip() for line in f if not line.startswith('#')]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as e:
        fail(f'{path} could not be read as UTF-8: {e}')


def read_words(name):
    """A word list -> one dict per line: `word`, `tags` (a list) and a form of the word for each further column.

    If the first line is `word<TAB>tags<TAB>…` it names the columns. A form that is not given is the word itself.
    """
    lines = [line for line in read_lines(name) if line]
    columns = ['word']
    if lines and lines[0].startswith('word\t'):
        columns = lines.pop(0).split('\t')
    rows = []
    for line in lines:
        fields = dict(zip(columns, line.split('\t')))
        row = {column: fields.get(column) or fields['word'] for column in columns}
        rows.append(row | {'tags': fields.get('tags', '').split()})
    if not rows:
        fail(f'data/{language}/{name} is missing or empty; a language is a folder with word lists, such as data/hindi')
    return rows


# -----------------------------------------------------------------------------
# prompt number -> seed words


def permute(i, n, key):
    """Element i of a pseudo-random permutation of range(n), without computing the rest of it.

    A Feistel network on enough bits for n; a result that is not below n is encrypted again (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half_bits = (max(2, (n - 1).bit_length()) + 1) // 2
    size = 2 ** half_bits
    while True:
        left, right = divmod(i, size)
        for turn in range(4):
            digest = hashlib.blake2b(b'%d %d %d' % (key, turn, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, 'little') % size)
        i = left * size + right
        if i < n:
            return i


def seed_words(i):
    """Prompt i -> {'noun': row, 'verb': row, …}."""
    return plot_and_words(i)[1] if use_grammar else combination(i, word_lists)


def combination(i, lists, key=0):
    """Combination i of one row of each list: {kind: rows} -> {kind: row}. Every combination comes once per epoch.

    key: another number gives another order.
    """
    n = math.prod(len(rows) for rows in lists.values())
    epoch, place = divmod(i, n)
    number = permute(place, n, seed + (epoch << 32) + (key << 64))
    word_rows = {}
    for kind, rows in lists.items():
        number, index = divmod(number, len(rows))
        word_rows[kind] = rows[index]
    return word_rows


def word_columns(word_rows):
    """{'noun': 'cat', …}, as in a row of the output."""
    return {kind: row['word'] for kind, row in word_rows.items()}


# -----------------------------------------------------------------------------
# the grammar

PLOT_WORDS = ('noun', 'verb', 'adjective')

# plots.txt has plots, "== plot name | role=tag", and fragments, "== name" with one alternative per line. A plot begins
# with the words that fit it: "noun: kite, ball, #fruit", where #fruit stands for all words with this tag. The words
# stand in plot_nouns.txt, plot_verbs.txt and plot_adjectives.txt. In plots and fragments,
# - (a|b) stands for one of these at random
# - {noun} is a seed word, {noun.plural} another column of its list, {hero} a character, {hero:he|she} agrees with it
# - {hero+friend:he|she} agrees with both: the first form unless all of them have the gender of the other
# - {name} is a random line of the fragment; {name@noun} a line of "== name@tag" if the noun has such a tag
# - {^name} begins with a capital
# BRACKET finds the innermost brackets: (options) or, in five groups with the options, {^ name .@: detail}
BRACKET = re.compile(r'\(([^(){}]*)\)|\{(\^?)([^(){}.@:]+)([.@:]?)([^(){}]*)\}')


def read_plots():
    """plots.txt -> genders, plots (dicts of name, cast, words and text) and fragments {name: lines}."""
    text = '\n'.join(read_lines('plots.txt'))
    if '== plot ' not in text:
        fail(f'data/{language}/plots.txt has no plot for the grammar; use a chat API: --provider=…')
    head, *blocks = re.split(r'^== *', text, flags=re.M)
    settings = collections.defaultdict(str, re.findall(r'^(\w+):(.*)', head, flags=re.M))
    characters = read_words('characters.txt')
    lists = {kind: read_words(f'plot_{kind}s.txt') for kind in PLOT_WORDS}
    plots = []
    fragments = {}
    for block in blocks:
        title, _, body = block.partition('\n')
        if not title.startswith('plot '):
            fragments[title.strip()] = list(filter(None, body.split('\n')))
            continue
        name, _, roles = title.removeprefix('plot ').partition('|')
        name = name.strip()
        words = {}
        for kind, rows in lists.items():
            line, _, body = body.partition('\n')
            if not line.startswith(f'{kind}:'):
                fail(f'plots.txt: plot {name} needs a line "{kind}: …" with the words that fit it')
            words[kind] = in_world(matching(rows, line.partition(':')[2]))
        cast = read_cast(name, f'{settings["cast"]} {roles}', characters)
        if all(words.values()) and all(cast.values()):  # else it has no place in this world
            plots.append({'name': name, 'cast': cast, 'words': words, 'text': body})
    if not plots:
        fail(f'world is {world!r}; data/{language} has no plot for which words and characters have this tag')
    return settings['genders'].split(), plots, fragments


def in_world(rows, role=''):
    """The words or characters of this world: with its tag, such as demo, or with that of a role, such as demo-hero."""
    tags = {world, f'{world}-{role}'}
    return [row for row in rows if not world or tags & set(row['tags'])]


def matching(rows, names):
    """'kite, #fruit' -> the row of kite and all rows with the tag fruit."""
    found = []
    for name in names.strip().split(', '):
        hits = [row for row in rows if row['word'] == name or (name[:1] == '#' and name[1:] in row['tags'])]
        if not hits:
            fail(f'plots.txt names {name!r}, which no list of words for plots contains')
        found += [row for row in hits if row not in found]
    return found


def read_cast(name, roles, characters):
    """'hero=child elder=family+old' -> {role: the characters of this world that have all these tags}."""
    cast = {}
    for role, tags in dict(re.findall(r'(\w+)=(\S+)', roles)).items():
        candidates = [row for row in characters if set(tags.split('+')) <= set(row['tags'])]
        if not candidates:
            fail(f'plots.txt: plot {name} has the role {role}={tags}, and no line of characters.txt has this tag')
        cast[role] = in_world(candidates, role)
    return cast


def plot_and_words(i):
    """Story i -> its plot and its seed words {'noun': row, …}. Every plot comes once in each len(plots) stories."""
    turn, place = divmod(i, len(plots))
    number = permute(place, len(plots), seed + (turn << 32))
    return plots[number], combination(turn, plots[number]['words'], number)


def compose(plot, word_rows):
    """A plot with its seed words -> a story."""
    slots = dict(word_rows)
    try:
        for role, candidates in plot['cast'].items():
            slots[role] = pick([row for row in candidates if row not in slots.values()])
        text = expand(plot['text'], slots)
        if re.search(r'[(){}|]', text):
            raise ValueError('a bracket without its partner')
    except (LookupError, ValueError, RecursionError) as e:
        fail(f'plots.txt: plot {plot["name"]} or one of its fragments is broken ({type(e).__name__}: {e})')
    paragraphs = re.split(r'\n\n+', text.strip())
    return '\n\n'.join(' '.join(paragraph.split()) for paragraph in paragraphs)


def expand(text, slots):
    """Replace all brackets, the innermost ones first."""

    def replace(match):
        options, capital, name, mark, detail = match.groups()
        if options is not None:
            return pick(options.split('|'))
        text = text_for(name, mark, detail, slots)
        return text[:1].upper() + text[1:] if capital else text

    while BRACKET.search(text):
        text = BRACKET.sub(replace, text)
    return text


def text_for(name, mark, detail, slots):
    """The text for noun, noun.plural, hero:he|she, fragment or fragment@noun; mark is one of . : @ or empty."""
    if mark == ':':
        return agree([slots[role] for role in name.split('+')], detail.split('|'))
    if name in slots:
        return slots[name][detail or 'word']
    for tag in slots[detail]['tags'] if detail else []:
        if f'{name}@{tag}' in fragments:
            name = f'{name}@{tag}'
            break
    return expand(pick(fragments[name]), slots)


def agree(rows, forms):
    """The form for the gender of one or several words. forms: one for each of `genders`, such as ['he', 'she'].

    Of several words with different genders, the one that is first in `genders` counts.
    """
    form_of = dict(zip(genders, forms, strict=True))
    found = []
    for row in rows:
        own = [tag.removesuffix('p') for tag in row['tags'] if tag.removesuffix('p') in genders]  # mp, fp: respectful
        if not own:
            raise LookupError(f'{row["word"]} has no gender')
        found.append(own[0])
    return form_of[min(found, key=genders.index)]


def pick(options):
    return options[int(rng.random() * len(options))]


def grammar_row(i):
    rng.seed(seed << 40 | i)
    plot, word_rows = plot_and_words(i)
    return {'id': i, **word_columns(word_rows), 'text': compose(plot, word_rows), 'plot': plot['name'],
            'model': 'grammar', 'prompt_tokens': 0, 'completion_tokens': 0}


# -----------------------------------------------------------------------------
# a chat API


def prompt_slots(i):
    """Prompt i -> {slot: text}: its seed words, and random lines of `lists` and `themes`."""
    rng.seed(seed << 40 | i)
    slots = word_columns(seed_words(i))
    for slot, lines in random_lines.items():
        slots[slot] = rng.choice(lines)
    return slots


def write_prompt(i):
    """Prompt i as text."""
    slots = prompt_slots(i) | {'language': language.capitalize(), 'items': str(items), 'books': books}
    if examples:
        slots['examples'] = '\n'.join(rng.sample(example_lines, examples))
    return chat.fill(prompt_template, slots)


def read_reply(i, reply):
    """A reply to prompt i -> the rows of its stories that pass; raises chat.Rejected if none passes."""
    word_rows = seed_words(i)
    slots = prompt_slots(i)
    rows = []
    reasons = []
    for headline, text in replies.stories_in(reply, reply_format)[-items:]:  # drafts come before the last ones
        try:
            text = check_story(headline, text)
        except chat.Rejected as e:
            reasons.append(e)
            continue
        # with several stories per reply, the ids of prompt i begin at i * items
        row = {'id': i * items + len(rows), **slots, 'text': text}
        row['missing'] = replies.missing(word_rows, text)
        if levels:
            row['complexity'] = complexity
        rows.append(row)
    if not rows:
        raise reasons[0]  # stories_in rejects a reply without stories
    return rows


def check_story(headline, text):
    """The story as it is written to `out`, or chat.Rejected."""
    text = replies.check(clean(text), min_words, max_words, proper_nouns)
    if headline:
        headline = replies.check(clean(headline), 2, 30, proper_nouns, is_headline=True)
        text = f'{headline}</h> {text}'  # </h> ends a headline, and becomes one token
    if seen.add(text):
        raise chat.Rejected('duplicate')
    return text


def connect():
    name = '' if provider == 'grammar' else provider  # with --base_url
    return chat.connect(name, base_url, model, temperature, max_tokens, extra, price_in, price_out,
                        'or generate stories without a key: --provider=grammar and no config file')


# -----------------------------------------------------------------------------
# stages


def print_prompts():
    """The dry run."""
    for i in ids[:dry_run]:
        text = grammar_row(i)['text'] if use_grammar else write_prompt(i)
        print(f'--- {i}: {", ".join(word_columns(seed_words(i)).values())}\n{text}\n')
    if use_grammar:
        return
    reply = chat.ask(connect(), write_prompt(ids[0]), timeout)
    print(f'--- the reply to {ids[0]}\n{reply}\n')
    try:
        for row in read_reply(ids[0], reply):
            print(f'--- passes; missing seed words: {", ".join(row["missing"]) or "none"}')
    except chat.Rejected as e:
        print(f'--- does not pass: {e}')


def save_prompts():
    """Write all prompts to a file, one row for each: id, slots, prompt."""
    with replacing(write_prompts) as temporary, open(temporary, 'wb') as f:
        for i in tqdm(ids, unit=' prompts', desc=write_prompts):
            append_rows(f, {'id': i, **prompt_slots(i), 'prompt': write_prompt(i)})
    print(f'{len(ids):,} prompts in {write_prompts}')


def prompt_of(row):
    """The prompt of a row of `out` or failed.jsonl. Ends the script if this run would not write such a row."""
    match row:
        case {'id': int(i), 'reason': _}:  # in failed.jsonl the id is the prompt's number
            return i
        case {'id': int(i), 'model': model}:
            has_words = word_columns(seed_words(i // items)).items() <= row.items()
            if has_words and (model == 'grammar') == use_grammar:
                return i // items
            row = f'{i} by {model}'
    fail(f'{out} holds stories of another provider, seed or word list, such as {row!s:.60}; use another --out')


def generate():
    """Write the stories that are missing in `out` -> '' if it is complete, else why not."""
    f = open_append(out)  # locks it, so that no other process generates the same stories
    spent = [0, 0, 0]  # prompt tokens, completion tokens and US dollars of earlier runs
    done = {}  # prompt -> whether it failed
    rows = read_jsonl(out) if use_grammar else chat.finished(out, spent)
    for row in tqdm(rows, desc=f'reading {out}', unit=' rows', leave=False, delay=1):
        done.setdefault(prompt_of(row), 'reason' in row)
        if not use_grammar and 'text' in row:
            seen.add(str(row['text']))
    n_done = sum(i in done for i in ids)
    if n_done < len(done):
        print(f'{out} also holds {len(done) - n_done:,} prompts beyond --total={total} or of other shards than {shard}')
    missing_ids = (i for i in ids if i not in done)

    if use_grammar:
        for i in tqdm(missing_ids, total=len(ids), initial=n_done, unit=' stories', desc=out, smoothing=0.1):
            append_rows(f, grammar_row(i))
        print(f'{len(done.keys() | set(ids)):,} stories in {out}')
        return ''
    n_failed = sum(done.get(i, False) for i in ids)
    if n_done == len(ids):
        print(f'all {len(ids):,} prompts are done in {out}; {n_failed:,} of them failed (see failed.jsonl beside it)')
        return chat.too_many_failed(n_failed, len(ids), max_failed, out)
    return chat.collect(
        connect(), missing_ids, write_prompt, read_reply, f, total=len(ids), n_done=n_done, n_failed=n_failed,
        spent=spent, num_workers=num_workers, timeout=timeout, max_tries=max_tries, max_cost=max_cost,
        max_failed=max_failed, batch=batch,
        whole=reply_format == 'json',  # HTML that is cut off can still be read
        done=done)


# -----------------------------------------------------------------------------
# settings

check(parse_shard(shard), f'shard is {shard!r}; it must be a part and the number of parts, such as 2/8')
check(not out or out.endswith('.jsonl'), f'out is {out!r}; it must end in .jsonl')
check(0 <= min_words <= max_words and 0 <= min_script <= 1, 'min_words must be from 0 to max_words, min_script to 1')
check_push(push)

out = out or os.path.join('data', language, 'stories.jsonl')
check(use_grammar != bool(template),
      f'provider is {provider!r}; a chat API needs a config file with a prompt template, such as '
      'config/generate_hindi.py, and the grammar takes none')
check(total > 0, f'total is {total}; it must be at least 1')
part, n_parts = parse_shard(shard)
ids = range(part - 1, total, n_parts)
rng = random.Random()  # seeded for each prompt

if use_grammar:
    items = 1
    check(not write_prompts, 'the grammar has no prompts to write; use a config such as config/generate_hindi.py')
    genders, plots, fragments = read_plots()
else:
    word_lists = {kind: read_words(f'{kind}s.txt') for kind in words}
    n_prompts = epochs * math.prod(len(rows) for rows in word_lists.values())
    check(total <= n_prompts, f'total is {total:,}; these word lists and epochs give at most {n_prompts:,} prompts')
    check(not levels or complexity in levels, f'complexity is {complexity!r}; it must be one of {list(levels)}')
    prompt_template = template.replace('{level}', levels.get(complexity, ''))
    n_letters = count_scripts(' '.join(row['word'] for row in word_lists[words[0]]))
    script = max(n_letters, key=n_letters.get, default='')
    refuses = replies.compile_refusals(read_lines('refusals.txt'))
    clean = functools.partial(replies.clean, script=script, min_script=min_script, refuses=refuses)
    random_lines = {}
    for slot, name in lists.items():
        lines = list(filter(None, read_lines(name)))
        if lines:
            random_lines[slot] = lines
        else:
            print(f'data/{language} has no {name}; the prompts have no line with {{{slot}}}')
            prompt_template = re.sub(rf'.*\{{{slot}\}}.*\n?', '', prompt_template)
    if themes:
        random_lines['theme'] = themes
    example_lines = list(filter(None, read_lines('examples.txt')))
    check(examples <= len(example_lines), f'examples.txt has {len(example_lines)} lines, and examples is {examples}')
    seen = replies.Seen()

# -----------------------------------------------------------------------------
# main part

if dry_run:
    print_prompts()
elif write_prompts:
    save_prompts()
else:
    problem = generate()
    if problem:
        fail(problem)
    if push:
        upload_dataset(push, {'train': out}, language_code(language))
