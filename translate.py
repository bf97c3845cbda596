"""
Translates stories: a .jsonl in one language -> a .jsonl in another, with the same ids.

    python translate.py --source_language=english --target_language=hindi
    python translate.py --source=mine.jsonl --source_language=fra_Latn --target_language=tam_Taml --out=tamil.jsonl --dry_run=3
    CUDA_VISIBLE_DEVICES=1 python translate.py --shard=2/2 --out=part2.jsonl --batch_size=512
    python translate.py --provider=mistral --num_workers=64 --max_cost=20

A translation model on this machine takes a story sentence by sentence; line breaks, quotation marks around sentences and all
that has no letters are put back as they were. A chat API translates a story at a time. Stopped and started again, it goes on.
"""

import difflib
import itertools
import os
import re
import unicodedata
import warnings

# -----------------------------------------------------------------------------
source = ''  # a .jsonl, or packed as .gz or .xz, with `id` and `text` in every row; data/<source_language>/stories.jsonl when empty
source_language = 'english'  # hindi, marathi, bangla, english, french, or a code that the model has, such as tam_Taml
target_language = 'hindi'
out = ''  # where to: a .jsonl file, data/<target_language>/translated.jsonl when empty
shard = '1/1'  # this run's part of the work: '2/8' is the second of eight, each with an `out` of its own
dry_run = 0  # print this many translations and write nothing
model = ''  # facebook/nllb-200-distilled-600M when empty, or the provider's usual one

# with a model here: NLLB, M2M100, mBART-50, Marian, T5 or another seq2seq model, by its folder or its name on the Hugging Face hub (name@revision pins it)
prefix = ''  # put before every sentence, for a model that is told so what to do: 'translate English to French: ', '>>hin<< ', '<2hi> '
num_beams = 1  # 1: always the likeliest token; 4 weighs four translations, and takes longer
max_new_tokens = 256  # of a sentence's translation; a sentence of more than half as many is cut at a comma or a space
batch_size = 64  # sentences of 32 tokens side by side; of longer ones fewer, of shorter ones more
device = ''  # 'cpu', 'cuda', 'mps'; chosen when empty
dtype = ''  # 'float32', 'bfloat16' or 'float16'; empty: float32 on a CPU, the fast one on a GPU

# with a chat API
provider = ''  # openai, mistral, gemini, groq, together, openrouter, sarvam, ollama, vllm, llama.cpp; empty: a model here
base_url = ''  # the address of any other API that speaks OpenAI's /chat/completions
num_workers = 16  # requests in flight, fewer as long as the provider says that they are too many
temperature = 0.3
max_tokens = 2048  # of a reply
extra = {}  # more fields of a request, such as {'reasoning_effort': 'minimal'}
timeout = 120.0  # seconds to wait for a reply
max_tries = 5  # tries of a story, then it goes to failed.jsonl
max_cost = 0.0  # US dollars, 0: no limit; all runs on this `out` count
price_in = -1.0  # US dollars a million tokens, for a model that the table in chat.py does not hold
price_out = -1.0
min_ratio = 0.4  # a translation passes when its length is at least this much of the story's
max_ratio = 2.5  # and at most this much
template = '''
Translate this story for children from {source_language} into {target_language}, in the script of {target_language}. Write natural sentences
with simple words, as one tells a story to a child of five to seven. Leave nothing out, add nothing, and keep every line break.
Answer with JSON only: {"translation": "the whole story, in {target_language}"}

{text}
'''  # what it is asked
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

from tqdm import tqdm

import chat
import collect
import jsonl
import replies

LANGUAGES = {  # as NLLB, M2M100 and mBART-50 call them
    'hindi': ('hin_Deva', 'hi', 'hi_IN'), 'marathi': ('mar_Deva', 'mr', 'mr_IN'), 'bangla': ('ben_Beng', 'bn', 'bn_IN'),
    'english': ('eng_Latn', 'en', 'en_XX'), 'french': ('fra_Latn', 'fr', 'fr_XX'),
}


def fail(message):
    raise SystemExit(f'translate.py: {message}')


# -----------------------------------------------------------------------------
# a story -> what is translated and what is kept

ENDS = tuple('.!?…।॥۔؟。！？')
OPENING, CLOSING = '"“„«‘([—–- \u00a0\u202f', '"”»’)] \u00a0\u202f'  # French sets a space inside its quotation marks
QUOTE = re.compile(r'["“”„«»‘()\[\]]')  # ’ is an apostrophe too
ABBREVIATION = re.compile(r'(^|[\s"“«‘(\[—–-])(Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|Capt|Rev|Mme|Mlle|[A-HJ-Z]|डॉ|पं|प्रो|मि|रु|ডা|মি|মো)\.$')


def sentences(text):
    """A text -> [sentence, white space, sentence, …, sentence]. Every line break ends one; a danda that no space follows gets one."""
    parts, start = [], 0
    for gap in re.finditer(r'\s+|(?<=[।॥۔。！？])(?=\w)', text):
        before = text[max(start, gap.start() - 40):gap.start()].rstrip(CLOSING + "'")
        after = text[gap.end():gap.end() + 3].lstrip('—–- ')[:1]
        if before.endswith(('..', '…')):  # a pause, unless what follows shows that it is the end
            ends = after.isupper() or not after.isalpha()
        else:
            ends = before.endswith(ENDS) and not after.islower() and after != '»' and not ABBREVIATION.search(before)
        if ends or '\n' in gap[0]:
            parts += [text[start:gap.start()], gap[0] or ' ']
            start = gap.end()
    return [*parts, text[start:]]


def pieces(text):
    """A sentence -> [piece, white space, piece, …], halved after a comma, at a space or anywhere until each fits the model."""
    if len(prefix + text) < longest // 2 or len(tokenizer(prefix + text).input_ids) <= longest:
        return [text]
    for pattern in (r'(?<=[,;:،、，—])\s+', r'\s+', ''):
        cuts = [gap.span() for gap in re.finditer(pattern, text) if len(text) < 4 * gap.start() and 4 * gap.end() < 3 * len(text)]
        if cuts:
            start, end = min(cuts, key=lambda cut: abs(sum(cut) - len(text)))
            return [*pieces(text[:start]), text[start:end], *pieces(text[end:])]
    return [text]


def take_apart(text):
    """A text -> [kept, translated, kept, …, translated, kept]; put together they are the text again.

    Quotation marks around a sentence, and one whose partner is in another sentence, are kept: models tend to lose them.
    """
    parts = ['']
    for place, part in enumerate(sentences(text)):
        body = part.lstrip(OPENING).rstrip(CLOSING)
        if place % 2 or not any(map(str.isalpha, body)):
            parts[-1] += part
            continue
        if QUOTE.search(body):  # “Come!” said Mia.
            body = part.strip()
        before, after = part.split(body, 1)
        parts[-1] += before
        parts += [*pieces(body), after]
    return parts


# -----------------------------------------------------------------------------
# a model here

def load(kind, folder, **options):
    """The tokenizer or the model in a folder. No code from there is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # at a plain pickle, before it is refused
            return kind.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as e:  # of many kinds, for all that a folder can lack
        fail(f'{model}: no translation model that Transformers can open ({reason_in(e):.200})')


def language_code(language):
    """A language's name, or the model's own code for it -> that code."""
    for code in LANGUAGES.get(language, [language]):
        if code in codes:
            return code
    near = difflib.get_close_matches(language, [*LANGUAGES, *codes], 4, cutoff=0.4) or sorted(codes)[:4]
    fail(f'{model} has no language {language!r}; it has, among others, {", ".join(near)}')


def translate(texts, bar, step):
    """Distinct texts -> {text: (translation, tokens in, tokens out, whether it is whole)}; the bar goes on by `step`."""
    found = {}
    waiting = sorted(((text, tokenizer(prefix + text).input_ids) for text in texts), key=lambda pair: len(pair[1]))
    step /= sum(len(ids) for _, ids in waiting) + 1e-6
    while waiting:  # those alike in length together, so that there is little padding; what is too much for the memory shows first
        n = max(1, 32 * batch_size // len(waiting[-1][1]))
        batch, waiting = waiting[-n:], waiting[:-n]
        inputs = tokenizer.pad({'input_ids': [ids for _, ids in batch]}, return_tensors='pt').to(device)
        try:
            new = translator.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, num_beams=num_beams, do_sample=False,
                                      max_new_tokens=max_new_tokens, **forced)
        except torch.OutOfMemoryError:
            fail(f'out of memory; a smaller --batch_size than {batch_size} goes on here')
        new = new[:, 1 + len(forced):]  # without the start token and the language
        translations = tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for (text, ids), translation, new_ids in zip(batch, translations, new.tolist()):
            translation = ' '.join(unicodedata.normalize('NFC', translation).split())
            whole = translation and tokenizer.eos_token_id in new_ids[:max_new_tokens - 1 - len(forced)]  # some models are made to end at the limit
            found[text] = translation, len(ids), len(new_ids) - new_ids.count(tokenizer.pad_token_id), whole
            bar.update(step * len(ids))
    return found


def translated(rows, bar):
    """Rows -> rows, with their texts translated. A sentence that several of them have is translated once."""
    apart = [take_apart(row['text']) for row in rows]
    found = translate({text: 0 for parts in apart for text in parts[1::2]}, bar, len(rows))
    for row, parts in zip(rows, apart):
        results = [found[text] for text in parts[1::2]]
        parts[1::2] = [result[0] for result in results]
        yield row | {'text': ''.join(parts), 'language': target_language, 'model': model, 'prompt_tokens': sum(result[1] for result in results),
                     'completion_tokens': sum(result[2] for result in results), 'unfinished': sum(not result[3] for result in results)}


# -----------------------------------------------------------------------------
# a chat API

def write_prompt(i):
    """Story i as messages of a chat: the template with its slots filled."""
    names = [name.capitalize() if name in LANGUAGES else name for name in (source_language, target_language)]
    slots = dict(zip(('source_language', 'target_language', 'text'), [*names, asked[i]['text']]))
    return [{'role': 'user', 'content': chat.fill(template, slots)}]


def accept(i, reply):
    """A reply to story i -> its row, in which the white space between the lines is the story's."""
    found = (replies.find_json(reply, 'translation') or {}).get('translation')
    if not isinstance(found, str):
        raise chat.Rejected('no JSON with a translation')
    parts = re.split(r'(\r*\n\s*)', asked[i]['text'].strip())
    old, new = parts[::2], [line.strip() for line in re.split(r'\n\s*', unicodedata.normalize('NFC', found).strip())]
    if len(new) != len(old):
        raise chat.Rejected('another number of lines')
    if new == old or any(a == b and len(a) > 40 for a, b in zip(old, new)):
        raise chat.Rejected('not translated')
    if re.search('[\ufffd\ud800-\udfff\x00-\x1f\x7f]', ''.join(new)):
        raise chat.Rejected('broken characters')
    if not min_ratio <= (len(''.join(new)) + 20) / (len(''.join(old)) + 20) <= max_ratio:  # + 20: three letters may well become ten
        raise chat.Rejected('too short or too long')
    parts[::2] = new
    return [asked.pop(i) | {'text': ''.join(parts), 'language': target_language}]


# -----------------------------------------------------------------------------
# what is asked for, what is there already, the rest

source = source or os.path.join('data', source_language, 'stories.jsonl')
out = out or os.path.join('data', target_language, 'translated.jsonl')
chatting = bool(provider or base_url)
part, parts = jsonl.parse_shard(shard) or fail(f'shard is {shard!r}; it is a part and the number of parts, such as 2/8')
if not out.endswith('.jsonl'):
    fail(f'out is {out!r}; it ends in .jsonl')
if not os.path.isfile(source):
    fail(f'{source} is missing; it is a .jsonl file of stories, such as generate_data.py writes')
if os.path.realpath(out) == os.path.realpath(source):
    fail(f'source and out are the same file, {out}')
if source_language == target_language:
    fail(f'source_language and target_language are both {target_language!r}')
if min(num_beams, batch_size) < 1 or max_new_tokens < 32 or dry_run < 0:
    fail('num_beams and batch_size are numbers from 1, max_new_tokens from 32, dry_run from 0')
if not 0 <= min_ratio <= max_ratio:  # or every translation would be paid for and none would pass
    fail('min_ratio is from 0 to max_ratio')
slots = {*re.findall(r'\{(\w+)\}', template)}
if chatting and not {'text'} <= slots <= {'source_language', 'target_language', 'text'}:
    fail(f'the template has the slots {", ".join(sorted(slots)) or "none"}; it needs {{text}}, and may have {{source_language}} and {{target_language}}')


def read_source():
    """Yield (whether it is of this shard, row) for every row of the source, its text in NFC."""
    for number, row in enumerate(jsonl.read(source)):
        if not (isinstance(row, dict) and type(row.get('id')) in (int, str) and isinstance(row.get('text'), str) and row['text'].strip()):
            fail(f'{source}, row {number + 1}: it wants an `id`, a number or a text, and a `text`')
        text = row['text'].encode('utf-8', 'replace').decode()  # half a surrogate pair is nothing to a tokenizer
        yield number % parts == part - 1, row | {'text': unicodedata.normalize('NFC', text)}


def own_fields(row):
    """What a story's row and its translation's have in common: id, seed words and so on."""
    return {key: row[key] for key in row if key not in ('text', 'language', 'model', 'prompt_tokens', 'completion_tokens', 'cost', 'unfinished')}


# Both files are read once before the work, and the source a second time for it; only the ids stay in memory, 150 MB a million.
f = None if dry_run else jsonl.open_append(out)  # before it is read, so that no other run writes what this one takes to be missing
done, first, spent, n_failed = set(), None, [0, 0, 0], 0
for row in tqdm([] if dry_run else collect.finished(out, spent), desc=f'reading {out}', unit=' rows', leave=False, delay=1):
    translation = isinstance(row, dict) and row.get('language') == target_language
    given_up = isinstance(row, dict) and 'reason' in row and 'language' not in row
    if not translation and not given_up:
        fail(f'{out} holds something else than stories translated into {target_language}; name another --out')
    if given_up and not chatting:
        continue  # what a chat API failed at, a model here may do
    n_failed += given_up and row.get('id') not in done
    done.add(row.get('id'))
    first = first or (own_fields(row) if translation else None)
seen, total, n_done = set(), 0, 0
for mine, row in tqdm(read_source(), desc=f'reading {source}', unit=' rows', leave=False, delay=1):
    if row['id'] in seen:
        fail(f'{source} has the id {row["id"]!r} twice')
    seen.add(row['id'])
    total += mine
    n_done += mine and row['id'] in done
    if first and row['id'] == first.get('id') and str(own_fields(row)) != str(first):  # as text, for NaN is not equal to itself
        fail(f'{out} holds the translation of another story {row["id"]!r}; name another --out')
if not seen:
    fail(f'{source} holds no story')
if n_done < len(done):
    fail(f'{out} holds stories that are not in {source}' + f', shard {shard}' * (parts > 1) + '; name another --out')
del seen
todo = (row for mine, row in read_source() if mine and row['id'] not in done)
if dry_run:
    todo = itertools.islice(todo, dry_run)
elif n_done == total:
    print(f'all {total:,} stories are done in {out}'
          + (f', but {n_failed:,} of them failed: see failed.jsonl beside it, and delete it to have them tried again' if n_failed else ''))
    raise SystemExit

if chatting:
    api = chat.connect(provider, base_url, model, temperature, max_tokens, extra, price_in, price_out, 'or translate with a model here, without --provider')
    asked = {}  # id -> row, of the stories in flight; those that are given up stay

    def ids():
        for row in todo:
            asked[row['id']] = row
            yield row['id']

    if dry_run:
        for i in ids():
            print(f'--- {i}\n{asked[i]["text"]}\n')
            try:
                print(accept(i, chat.ask(api, write_prompt(i)))[0]['text'], end='\n\n')
            except chat.Rejected as e:
                print(f'does not pass: {e}\n')
    elif not collect.collect(api, ids(), write_prompt, accept, f, total=total, n_done=n_done, spent=spent, unit='stories', num_workers=num_workers,
                             timeout=timeout, max_tries=max_tries, max_cost=max_cost):
        print('the same command goes on')
    raise SystemExit

import torch
import transformers

from checkpoint import download, reason_in, stay_inside
from model import choose_device

device, fast = choose_device(device, dtype)
dtype = dtype or (fast if device != 'cpu' else 'float32')
model = model or 'facebook/nllb-200-distilled-600M'
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
model_folder = model if os.path.isdir(model) else download(model)
stay_inside(model_folder)
tokenizer = load(transformers.AutoTokenizer, model_folder)
codes = getattr(tokenizer, 'lang_code_to_id', None) or {
    token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens if re.fullmatch('[a-z]{2,3}_[A-Z][A-Za-z]+', token)}
forced = {}
if codes:  # a model without them knows two languages only, or goes by `prefix`
    tokenizer.src_lang = language_code(source_language)
    forced = {'forced_bos_token_id': codes[language_code(target_language)]}
translator = load(transformers.AutoModelForSeq2SeqLM, model_folder, dtype=getattr(torch, dtype)).to(device).eval()
positions = min(tokenizer.model_max_length, getattr(translator.config, 'max_position_embeddings', 512))
max_new_tokens = min(max_new_tokens, positions - 2)
longest = max_new_tokens // 2  # of a sentence, in tokens: its translation may take twice as many, and long ones are translated worse

if dry_run:
    stories = list(todo)
    for story, row in zip(stories, translated(stories, tqdm(disable=True))):
        print(f'--- {row["id"]}\n{story["text"]}\n\n{row["text"]}\n')
    raise SystemExit

unfinished = 0
bar_format = '{desc}: {percentage:3.0f}% {n:,.0f}/{total:,} [{elapsed}<{remaining}, {rate_fmt}]'
with tqdm(total=total, initial=n_done, desc=out, unit=' stories', smoothing=0.1, bar_format=bar_format) as bar:
    while stories := list(itertools.islice(todo, 4 * batch_size)):  # enough to sort by length; a kill costs those that are being translated
        rows = list(translated(stories, bar))
        jsonl.append(f, *rows)
        unfinished += sum(row['unfinished'] > 0 for row in rows)
print(f'{total:,} stories in {out}')
if unfinished:
    print(f'in {unfinished:,} of these a sentence came out empty or ran into max_new_tokens; `unfinished` in their rows says how many')
