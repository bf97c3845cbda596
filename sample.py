"""
Tells stories with a trained model: prompts -> the terminal, or a .jsonl, .json or .txt file.

    python sample.py --out_dir=out/hindi --start="एक दिन"
    python sample.py --out_dir=out/hindi --start=FILE:data/hindi/prompts.txt --num_samples=3 --out=out/hindi/samples.jsonl
    torchrun --nproc_per_node=4 -- sample.py --out_dir=out/hindi --start=FILE:data/hindi/prompts.txt --out=out/hindi/samples.jsonl
    python sample.py --init_from=MaxLSB/LeCarnet-3M --start="Il était une fois" --temperature=0.5
    python sample.py --init_from=roneneldan/TinyStories-33M --start="Once upon a time"
    python sample.py --init_from=their/ckpt.pt --tokenizer=sarvamai/sarvam-1 --start="एक दिन"

A story depends on its prompt, its seed and the settings, not on the batch that it was told in.
"""

import datetime
import json
import os
import re
import sys
import unicodedata

# -----------------------------------------------------------------------------
# the model
init_from = 'resume'  # 'resume': the best checkpoint in out_dir; or a checkpoint (nanoGPT's too), a Hugging Face folder or hub name, pinned by name@revision
out_dir = 'out/hindi'
tokenizer = ''  # a name as for prepare.py, for a model without one, such as nanoGPT's; empty: the model's own
# the prompts
start = ''  # how a story begins, or FILE:prompts.txt with a beginning a line; empty: the model begins by itself
num_samples = 1  # stories for each beginning
max_new_tokens = 500  # a story that has not ended by then is cut
# the choice of each next token
temperature = 0.8  # below 1.0 likelier tokens gain, 0: always the likeliest
top_k = 0  # only the k likeliest, 0: all
top_p = 1.0  # only the likeliest that together have this probability
min_p = 0.0  # only those at least this probable, relative to the likeliest
repetition_penalty = 1.0  # above 1.0 tokens that came before lose
no_repeat_ngram = 0  # no run of this many tokens twice, 0: as it comes
bad_words = []  # words that must not come: --bad_words="['डर', 'भूत']"
# how and where to
batch_size = 64  # stories told side by side, by each process
seed = 1337  # story number i uses seed + i
out = ''  # a .jsonl, .json or .txt file; empty: the terminal
device = ''  # 'cpu', 'cuda', 'mps'; chosen when empty
dtype = ''  # 'float32', 'bfloat16' or 'float16'; empty: float32 on a CPU, the fast one on a GPU
quantize = ''  # 'int8': weights of 8 bits and the rest in bfloat16, which on a CPU tells a story, or a few at a time, twice as fast
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())


def fail(message):
    raise SystemExit(f'sample.py: {message}')


def utf8(text):
    """A text from the command line without bytes that are no UTF-8, and without halves of surrogate pairs."""
    return re.sub('[\ud800-\udc7f\udd00-\udfff]', '\ufffd', text).encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')


rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in (('RANK', 0), ('LOCAL_RANK', 0), ('WORLD_SIZE', 1)))
ending = os.path.splitext(out)[1].lower()
if out and ending not in ('.jsonl', '.json', '.txt'):
    fail(f'out is {out!r}; it ends in .jsonl, .json or .txt')
if os.path.isdir(out):
    fail(f'out is {out!r}, a folder; it is a file')
if min(num_samples, max_new_tokens, batch_size) < 1 or max(num_samples, max_new_tokens) > 1e6:
    fail('num_samples and max_new_tokens are numbers from 1 to a million, batch_size from 1')
if not (0 <= temperature < 1e6 and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1 and 0 < repetition_penalty < 1e6 and no_repeat_ngram >= 0):
    fail('temperature, top_k and no_repeat_ngram are numbers from 0, repetition_penalty above 0, top_p above 0 and up to 1, min_p from 0 to 1')
if not 0 <= seed < 2**62 or not all(isinstance(word, str) for word in bad_words):
    fail('seed is a number from 0 to below 2**62, bad_words a list of texts')
if quantize not in ('', 'int8'):
    fail(f"quantize is {quantize!r}; it is 'int8' or empty")
if init_from == 'resume' and not os.path.isdir(out_dir):
    fail(f'{out_dir} is no folder; train first, or name another --out_dir')
if start.startswith('FILE:'):
    try:
        with open(start[5:], encoding='utf-8-sig') as f:
            prompts = [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        fail(f'{start[5:]}: {e}')
    if not prompts:
        fail(f'{start[5:]} has no line in it')
    if any('\0' in prompt for prompt in prompts):  # UTF-16 without its mark is valid UTF-8, and gibberish
        fail(f'{start[5:]} holds NUL characters; it wants to be UTF-8')
else:
    prompts = [utf8(start.strip())]

prompts = [unicodedata.normalize('NFC', prompt) for prompt in prompts]

import torch
import torch.distributed as dist
from tqdm import tqdm

import jsonl
from checkpoint import load
from generation import generate
from model import choose_device, quantize_int8

if out and rank == 0:
    jsonl.claim(out)
device, fast = choose_device(device, dtype)
if device == 'cuda':
    device, fast = choose_device(f'cuda:{local_rank}', dtype)  # a GPU for each process
dtype = dtype or (fast if device != 'cpu' else 'float32')
if quantize and device != 'cpu':
    fail('quantize is for a CPU: --device=cpu')
model, tokenizer, _ = load(out_dir if init_from == 'resume' else init_from, device, tokenizer)
if quantize:
    quantize_int8(model)
else:
    model.to(getattr(torch, dtype))
bad_ids = [ids for word in map(utf8, bad_words) for ids in tokenizer.encode_batch([word, ' ' + word]) if ids]
stories = [{'id': i, 'prompt': prompt, 'story': '', 'seed': seed + i, 'ended': 'length'}
           for i, prompt in enumerate(prompt for prompt in prompts for _ in range(num_samples))]
heads = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch([story['prompt'] for story in stories])]
if lost := next((story['prompt'] for story, head in zip(stories, heads) if story['prompt'] and len(head) == 1), ''):
    fail(f'this model has no token for anything in {lost[:40]!r}')


def told(some):
    """Continue some stories, filling them in: yields after every step, with the number of stories that have ended."""
    new_ids = [[] for _ in some]
    for new in generate(model, [heads[story['id']] for story in some], max_new_tokens, tokenizer.eos, [story['seed'] for story in some],
                        temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram, bad_ids, batch_size):
        ended = 0
        for row, token in new:
            if token == tokenizer.eos:
                some[row]['ended'] = 'eos'
            else:
                new_ids[row].append(token)
            done = token == tokenizer.eos or len(new_ids[row]) == max_new_tokens
            if done or len(some) == 1:
                some[row]['story'] = tokenizer.decode(heads[some[row]['id']] + new_ids[row])
            if done:
                new_ids[row] = None
                ended += 1
        yield ended


if len(stories) == 1 and not out and world_size == 1:  # as it comes
    shown = 0
    for _ in told(stories):
        text = stories[0]['story'].rstrip('\ufffd')  # a letter may come in several tokens
        print(text[shown:], end='', flush=True)
        shown = len(text)
    print(stories[0]['story'][shown:])
    sys.exit(0)

mine = sorted(stories, key=lambda story: len(heads[story['id']]))[rank::world_size]  # little padding, and equal shares
with tqdm(total=len(mine), unit=' stories', desc=(out or 'telling') + (f', process 1 of {world_size}' if world_size > 1 else ''),
          smoothing=0.1, disable=rank > 0) as bar:
    for ended in told(mine):
        if ended:
            bar.update(ended)
if world_size > 1:
    dist.init_process_group('gloo', timeout=datetime.timedelta(days=1))  # for which the quickest waits for the slowest
    parts = [None] * world_size
    dist.gather_object(mine, parts if rank == 0 else None)
    dist.destroy_process_group()
    if rank > 0:
        sys.exit(0)
    stories = sorted((story for part in parts for story in part), key=lambda story: story['id'])
if not out:
    print(*(story['story'] for story in stories), sep='\n\n---\n\n')
    sys.exit(0)
with jsonl.replacing(out) as temporary, open(temporary, 'wb') as f:
    if ending == '.jsonl':
        for story in stories:
            jsonl.append(f, story)
    elif ending == '.json':
        f.write(json.dumps(stories, ensure_ascii=False, indent=1).encode('utf-8'))
    else:
        f.write('\n\n<|endoftext|>\n\n'.join(story['story'] for story in stories).encode('utf-8') + b'\n')
print(f'{len(stories):,} stories in {out}, {sum(story["ended"] == "eos" for story in stories) / len(stories):.1%} of them ended by the model')
