"""
Translates stories: stories in one language -> a .jsonl in another, with the same ids.

    python translate.py --source_language=english --target_language=hindi
    python translate.py --source=my.jsonl --source_language=fra_Latn --target_language=tam_Taml --out=tamil.jsonl
    CUDA_VISIBLE_DEVICES=1 python translate.py --shard=2/2 --out=part2.jsonl --batch_size=512
    python translate.py --source=hf:roneneldan/TinyStories:validation --target_language=french --out=french.jsonl
    python translate.py --provider=mistral --num_workers=64 --max_cost=20

- A translation model on this machine translates sentence by sentence. Line breaks, quotation marks around sentences and
  parts without letters are copied.
- A chat API translates a whole story per request.
- The same command resumes: it translates only the stories that are missing.
"""

import collections
import itertools
import json
import os
import re
import unicodedata

# -----------------------------------------------------------------------------
source = ''  # whatever prepare.py's source may be; empty = data/<source_language>/stories.jsonl
text_column = ''  # column that contains the story; '' = found by its name
separator = ''  # what stands between two stories of a .txt file; '' = <|endoftext|>, a blank line or the file's end
source_language = 'english'  # hindi, marathi, bangla, english, french, or a code of the model, such as tam_Taml
target_language = 'hindi'
max_row = 1_000_000  # characters of the longest row or story that is read
out = ''  # output, a .jsonl file; empty = data/<target_language>/translated.jsonl
shard = '1/1'  # '2/8' = the second of eight parts of the work, each with its own `out`
dry_run = 0  # print this many translations, or replies of a chat API, and write nothing
model = ''  # empty = facebook/nllb-200-distilled-600M, or the provider's default

# a model on this machine: NLLB, M2M100, mBART-50, Marian, T5 or another seq2seq model; a folder or hub name[@revision]
prefix = ''  # text before every sentence, if the model needs one: 'translate English to French: ', '>>hin<< ', '<2hi> '
num_beams = 1  # 1 = greedy decoding; 4 = beam search, slower
max_new_tokens = 256  # limit of a sentence's translation; a sentence of more than half as many tokens is split
batch_size = 64  # sentences of 32 tokens per batch; fewer if they are longer
device = ''  # 'cpu', 'cuda', 'mps'; empty = the fastest
dtype = ''  # 'float32', 'bfloat16', 'float16'; empty = float32 on a CPU, a faster one on a GPU

# a chat API
provider = ''  # openai, mistral, gemini, groq, together, openrouter, sarvam, ollama, vllm, llama.cpp; empty = none
base_url = ''  # address of any other API that speaks OpenAI's /chat/completions
num_workers = 16  # concurrent requests; fewer while the provider reports a rate limit
temperature = 0.3  # None = not sent
max_tokens = 2048  # limit of a reply; None = not sent
extra = {}  # more fields of a request, such as {'reasoning_effort': 'minimal'}
timeout = 120.0  # seconds to wait for a reply
max_tries = 5  # tries per story; after that it is written to failed.jsonl
max_cost = 0.0  # US dollars for all runs on this `out`; 0 = no limit
max_failed = 0.05  # the exit status is not 0 if more than this fraction of the stories was given up
price_in = -1.0  # US dollars per million tokens, for a model without a price in chat.py
price_out = -1.0
min_ratio = 0.4  # minimum length of a translation, as a fraction of the story's
max_ratio = 2.5  # maximum length
template = '''
Translate this story for children from {source_language} into {target_language}, in the script of {target_language}.
Write natural sentences with simple words, as one tells a story to a child of five to seven. Leave nothing out, add
nothing, and keep every line break.
Answer with JSON only: {"translation": "the whole story, in {target_language}"}

{text}
'''  # the prompt
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'translate.py')))
can_be_none = ('temperature', 'max_tokens')
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

from tqdm import tqdm

from files import (append_rows, check, count_scripts, fail, find, open_append, open_text, parse_shard, printable,
                   read_jsonl, read_rows, unicode_form)

use_chat = bool(provider or base_url)
if use_chat:
    import chat
    import replies

LANGUAGE_CODES = {  # in NLLB, M2M100 and mBART-50
    'hindi': 'hin_Deva hi hi_IN',
    'marathi': 'mar_Deva mr mr_IN',
    'bangla': 'ben_Beng bn bn_IN',
    'english': 'eng_Latn en en_XX',
    'french': 'fra_Latn fr fr_XX',
}

# -----------------------------------------------------------------------------
# story -> sentences

ENDS = tuple('.!?…।॥|۔؟。！？።။។։')
SPACES = ''.join(filter(str.isspace, map(chr, range(0x3001))))
OPENING = '"“„«‘([—–-' + SPACES
CLOSING = '"”»’)]' + SPACES
QUOTE = re.compile(r'["“”„«»‘()\[\]]')  # without ’, which is an apostrophe too
GAP = re.compile(r'\s+|(?<=[।॥۔。！？])(?=\w)')  # between words; also after a danda without a space
NO_VOWELS = re.compile('[b-df-hj-np-tv-xz]+', re.I)  # such a word is an abbreviation
ABBREVIATIONS = set('''
    prof gen col capt maj rev hon gov sen sri shri smt mme mlle ste sept approx dept govt inc corp ing sig sra srta dott
    श्रीमती सुश्री कुमारी प्रोफ़ेसर மாண்புமிகு திரு திருமதி செல்வி செல்வன் டாக்டர் பேரா முனைவர்
    శ్రీమతి కుమారి ಶ್ರೀಮತಿ ಕುಮಾರಿ ശ്രീമതി കുമാരി
    શ્રીમતી শ্রীমতী প্রফেসর ਸ਼੍ਰੀਮਤੀ ਸਰਦਾਰ'''.split())
SHORT_WORDS = 'I है हैं हूँ हूं था थी थे थीं છે છું না'.split()  # they often end a sentence


def split_sentences(text):
    """A text -> [sentence, white space, sentence, …, sentence]. A line break ends a sentence, too."""
    parts = []
    start = 0
    has_danda = '।' in text
    for gap in GAP.finditer(text):
        before = text[max(start, gap.start() - 40):gap.start()]
        after = text[gap.end():gap.end() + 3]
        if '\n' in gap[0] or is_sentence_end(before, after, has_danda):
            parts += [text[start:gap.start()], gap[0]]
            start = gap.end()
    return [*parts, text[start:]]


def is_sentence_end(before, after, has_danda):
    """Whether a sentence ends between these characters before and after white space."""
    before = before.rstrip(CLOSING + "'")
    after = after.lstrip('—–- ')[:1]
    if before.endswith(('..', '…')):  # a pause, unless a capital or a quotation mark follows
        return after.isupper() or not after.isalpha()
    if not before.endswith(ENDS) or after.islower() or after == '»':  # as in « Oui ! »
        return False
    return not before.endswith('.') or not is_abbreviation(before[:-1], after, has_danda)


def is_abbreviation(before, after, has_danda):
    """Whether a full stop between these characters ends no sentence. When in doubt, it does not: a model translates two
    sentences together well, but not half a sentence.

    - In a language with dandas, a full stop ends no sentence: श्री. नरेंद्र
    - So does none of ABBREVIATIONS.
    - A word of one letter, of one syllable in an Indic script, or without vowels is an abbreviation: A. K., रु., Rs.
    - So is a short word before a number: No. 7
    """
    word = re.split(r'[\s"“«‘(\[—–.-]', before)[-1]
    if word in SHORT_WORDS:
        return False
    if word.casefold() in ABBREVIATIONS or NO_VOWELS.fullmatch(word):
        return True
    if has_danda and '\u0900' <= word[-1:] <= '\u0dff':
        return True
    n_letters = sum(map(str.isalpha, word))
    n_viramas = sum(unicodedata.combining(char) == 9 for char in word)  # they join two letters to a syllable
    if n_letters - n_viramas == 1:
        return True
    return 0 < n_letters <= 3 and after.isdigit()


def split_long(text):
    """A sentence -> [piece, white space, piece, …]: halved at a comma, a space or anywhere, until each piece fits."""
    if len(tokenizer(prefix + text).input_ids) <= options['max_new_tokens'] // 2:  # a translation may be twice as long
        return [text]
    for pattern in (r'(?<=[,;:،、，—])\s+', r'\s+', ''):
        gaps = list(re.finditer(pattern, text))
        if gaps:
            break
    gap = min(gaps, key=lambda gap: abs(gap.start() - len(text) // 2))  # nearest to the middle
    return [*split_long(text[:gap.start()]), gap[0], *split_long(text[gap.end():])]


def split_story(text):
    """A story -> [kept, sentence, kept, …, sentence, kept]; joined, they are the story.

    Models tend to drop quotation marks. So marks around a sentence are kept, and a mark whose pair is in another
    sentence.
    """
    parts = ['']
    for part in split_sentences(text):
        sentence = part.lstrip(OPENING).rstrip(CLOSING)
        if not any(map(str.isalpha, sentence)):  # white space, or nothing to translate
            parts[-1] += part
            continue
        if QUOTE.search(sentence):  # “Come!” said Mia.
            sentence = part.strip()
        before, after = part.split(sentence, 1)
        parts[-1] += before
        parts += [*split_long(sentence), after]
    return parts


# -----------------------------------------------------------------------------
# a model on this machine; `tokenizer`, `translator` and `options` are what load_model() returns


def load_model():
    """Load the translation model -> (tokenizer, model, options of its generate())."""
    import torch
    import transformers

    import hub
    from model import choose_device
    best_device, best_dtype = choose_device(device, dtype)
    if best_device == 'cpu':
        best_dtype = dtype or 'float32'
    folder = model if os.path.isdir(model) else hub.download(model)
    hub.stay_inside(folder)
    tokenizer = hub.from_pretrained(transformers.AutoTokenizer, folder)
    translator = hub.from_pretrained(transformers.AutoModelForSeq2SeqLM, folder, dtype=getattr(torch, best_dtype),
                                     output_loading_info=True)
    max_length = getattr(translator.config, 'max_position_embeddings', 512)  # T5 has no such limit
    options = {'num_beams': num_beams, 'do_sample': False, 'max_new_tokens': min(max_new_tokens, max_length - 2)}
    codes = dict(getattr(tokenizer, 'lang_code_to_id', {}))  # M2M100 and mBART-50 have it, NLLB does not
    for token in tokenizer.all_special_tokens:
        if re.fullmatch('[a-z]{2,3}_[A-Z][A-Za-z]+', token):
            codes[token] = tokenizer.convert_tokens_to_ids(token)
    if codes:  # a model without them knows two languages only, or goes by `prefix`
        tokenizer.src_lang = model_code(source_language, codes)
        options['forced_bos_token_id'] = codes[model_code(target_language, codes)]
    return tokenizer, translator.to(best_device).eval(), options


def script_of(language):
    """The script of a language by its story openings, such as 'DEVANAGARI'; '' for a language without a folder."""
    path = find(f'data/{language}/prompts.txt')
    if not os.path.exists(path):
        return ''
    with open_text(path) as f:
        letters = count_scripts(f.read())
    return max(letters, key=letters.get, default='')


def model_code(language, codes):
    """The model's code for a language, which is given by its name or by that code."""
    for code in LANGUAGE_CODES.get(language, language).split():
        if code in codes:
            return code
    fail(f'{model} has no language {language!r}, only {", ".join(codes)}')


def translate(sentences):
    """Distinct sentences -> {sentence: (translation, {'prompt_tokens', 'completion_tokens', 'unfinished'})}."""
    translations = {}
    queue = [(sentence, tokenizer(prefix + sentence).input_ids) for sentence in sentences]
    queue.sort(key=lambda item: len(item[1]))  # sentences of similar length need little padding
    n_given = 2 if 'forced_bos_token_id' in options else 1  # first tokens of the output: start and language
    while queue:
        longest = len(queue[-1][1])  # the longest first: if they fit into memory, all do
        n = max(1, 32 * batch_size // longest)
        batch = queue[-n:]
        del queue[-n:]
        inputs = tokenizer.pad({'input_ids': [ids for _, ids in batch]}, return_tensors='pt').to(translator.device)
        output = translator.generate(**inputs, **options)[:, n_given:]
        texts = tokenizer.batch_decode(output, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for (sentence, ids), text, new_ids in zip(batch, texts, output.tolist()):
            text = re.sub(r'\s*\n\s*', ' ', unicodedata.normalize('NFC', text)).strip()
            n_tokens = len(new_ids) - new_ids.count(tokenizer.pad_token_id)
            # at max_new_tokens some models are forced to end: that does not count
            is_cut = n_tokens > options['max_new_tokens'] - n_given
            translations[sentence] = text, {
                'prompt_tokens': len(ids), 'completion_tokens': n_tokens, 'unfinished': is_cut or not text}
    return translations


def translate_rows(rows):
    """Rows of the source -> rows of `out`. A sentence that occurs more than once is translated once."""
    stories = [split_story(row['text']) for row in rows]
    sentences = {}  # a dict keeps the order
    for parts in stories:
        sentences |= dict.fromkeys(parts[1::2])
    translations = translate(sentences)
    new_rows = []
    for row, parts in zip(rows, stories):
        counts = collections.Counter(prompt_tokens=0, completion_tokens=0, unfinished=0)
        last = ''
        for i in range(1, len(parts), 2):
            sentence = parts[i]
            translation, sentence_counts = translations[sentence]
            if last.endswith(ENDS) and not parts[i - 1] and translation != sentence:
                translation = f' {translation}'  # there is no space after the danda before it
            parts[i] = translation
            last = sentence
            counts.update(sentence_counts)
        new_rows.append(row | {'text': ''.join(parts), 'language': target_language, 'model': model, **counts})
    return new_rows


# -----------------------------------------------------------------------------
# a chat API


def write_prompt(story):
    """The text of a story -> the prompt of a chat request."""
    slots = {'text': story, 'source_language': source_language.title(), 'target_language': target_language.title()}
    return chat.fill(template, slots)


def read_reply(story, reply):
    """The texts of a story and of a reply -> the translation. Raises chat.Rejected.

    The white space between the lines is that of the story.
    """
    translation = (replies.find_json(reply, 'translation') or {}).get('translation')
    if not isinstance(translation, str):
        raise chat.Rejected('no JSON with a translation')
    translation = unicode_form(replies.unescape(translation)).strip()
    parts = re.split(r'(\n\s*)', story)
    old_lines = parts[::2]
    new_lines = re.split(r'\s*\n\s*', translation)
    if len(new_lines) != len(old_lines):
        raise chat.Rejected('another number of lines')
    if new_lines == old_lines or any(line in old_lines for line in new_lines if len(line) > 40):
        raise chat.Rejected('not translated')
    if replies.BROKEN.search(translation):
        raise chat.Rejected('broken characters')
    if replies.ENTITY.search(translation) and not replies.ENTITY.search(story):
        raise chat.Rejected('markup')
    ratio = (len(translation) + 20) / (len(story) + 20)  # + 20: a very short story may grow more
    if not min_ratio <= ratio <= max_ratio:
        raise chat.Rejected('too short or too long')
    letters = count_scripts(translation)
    if target_script and letters[target_script] < letters.total() / 2:
        raise chat.Rejected(f'not in {target_script.lower()} script')
    parts[::2] = new_lines
    return ''.join(parts)


def translate_with_chat():
    """Translate the missing stories -> '' if all are done, else why not."""
    rows = {}  # id -> row of the source, for each story that was sent

    def missing_ids():
        for row in missing_rows():
            rows[row['id']] = row
            yield row['id']

    def prompt(i):
        return write_prompt(rows[i]['text'])

    def accept(i, reply):
        text = read_reply(rows[i]['text'], reply)
        return [rows.pop(i) | {'text': text, 'language': target_language}]

    return chat.collect(
        api, missing_ids(), prompt, accept, out_file, total=total, n_done=len(done), spent=spent,
        num_workers=num_workers, timeout=timeout, max_tries=max_tries, max_cost=max_cost,
        n_failed=n_failed, max_failed=max_failed)


# -----------------------------------------------------------------------------
# source and output

# fields of a translation that differ from its story's
NEW_FIELDS = {'text', 'language', 'model', 'prompt_tokens', 'completion_tokens', 'cost', 'unfinished'}


def read_source():
    """Yield the rows of this shard that have a story, with the story as `text`. A row without an `id` gets its number.
    """
    for number, (row, text) in enumerate(read_rows(source, text_column, separator), 1):
        row = json.loads(json.dumps({'id': number} | row, default=str))  # a date in a .parquet file becomes text
        if not isinstance(row['id'], int | str):
            fail(f'{source}, row {number}: the id is {row["id"]!r:.40}; it must be a whole number or text')
        if text and number % n_parts == part % n_parts:
            yield row | {'text': text}


def missing_rows():
    """The rows of the source that are not translated yet."""
    return (row for row in read_source() if row['id'] not in done)


def read_done():
    """Read `out` and failed.jsonl -> ({id: whether it is translated or failed}, the first translation or {})."""
    rows = chat.finished(out, spent) if use_chat else read_jsonl(out)
    done = {}
    first = {}
    for row in rows:
        match row:
            case {'id': i, 'language': language} if language == target_language:
                done[i] = True
                first = first or row
            case {'id': i, 'reason': _, 'out': _}:  # from failed.jsonl
                done.setdefault(i, False)
            case _:
                fail(f'{out} contains something other than stories in {target_language}; use another --out')
    return done, first


def check_source():
    """Count the stories in the source. Fails if `out` contains translations of another source."""
    ids = set()
    for row in tqdm(read_source(), desc=f'reading {source}', unit=' stories', leave=False, delay=1):
        if row['id'] in ids:
            fail(f'{source} has the id {row["id"]!r} twice')
        ids.add(row['id'])
        if row['id'] == first_row.get('id'):
            for key in row.keys() - NEW_FIELDS:
                if str(row[key]) != str(first_row.get(key)):  # as text: nan is not equal to nan
                    fail(f'{out} holds the translation of another story {row["id"]!r}; use another --out')
    if not ids:
        fail(f'{source} holds no story')
    if done.keys() - ids:
        fail(f'{out} holds stories that are not in {source}, shard {shard}; use another --out')
    return len(ids)


# -----------------------------------------------------------------------------
# main part

source = find(source or f'data/{source_language}/stories.jsonl')
separator = separator.replace('\\n', '\n')  # a shell passes \n as two characters
out = out or f'data/{target_language}/translated.jsonl'
check(parse_shard(shard), f'shard is {shard!r}; it must be a part and the number of parts, such as 2/8')
part, n_parts = parse_shard(shard)
check(out.endswith('.jsonl'), f'out is {out!r}; it must end in .jsonl')
check(source_language != target_language, f'source_language and target_language are both {target_language!r}')
check(batch_size >= 1, 'batch_size must be at least 1')
check(max_new_tokens >= 32, 'max_new_tokens must be at least 32')

done = {}  # id -> True for a translation, False for a story that failed
first_row = {}  # the first translation
spent = [0, 0, 0]  # prompt tokens, completion tokens and US dollars of earlier runs
if not dry_run:
    out_file = open_append(out)  # locks it, so that no other process translates the same stories
    done, first_row = read_done()
total = check_source()
n_failed = list(done.values()).count(False)
problem = ''
target_script = script_of(target_language)

if len(done) == total:
    print(f'all {total:,} stories are done in {out}')
    if n_failed:
        print(f'{n_failed:,} of them failed: see failed.jsonl beside it, and delete it to try them again')
        problem = chat.too_many_failed(n_failed, total, max_failed, out)
else:
    if use_chat:
        check('{text}' in template, 'the template must contain the slot {text}')
        api = chat.connect(provider, base_url, model, temperature, max_tokens, extra, price_in, price_out,
                           otherwise='or translate with a model here, without --provider')
    else:
        model = model or 'facebook/nllb-200-distilled-600M'
        tokenizer, translator, options = load_model()
    if dry_run:
        for row in itertools.islice(missing_rows(), dry_run):
            if use_chat:
                text = chat.ask(api, write_prompt(row['text']), timeout)
            else:
                text = translate_rows([row])[0]['text']
            print(printable(f'--- {row["id"]}\n{row["text"]}\n\n{text}\n'))
    elif use_chat:
        problem = translate_with_chat()
    else:
        rows = missing_rows()
        with tqdm(total=total, initial=len(done), desc=out, unit=' stories') as bar:
            while group := list(itertools.islice(rows, batch_size)):
                append_rows(out_file, *translate_rows(group))
                bar.update(len(group))
        print(f'{total:,} stories in {out}; `unfinished` in a row counts the sentences that came out empty or cut off')
if problem:
    fail(problem)
