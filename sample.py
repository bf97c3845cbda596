"""
Generate stories with a trained model, to the terminal or to a .jsonl, .json, .csv or .txt file.

    python sample.py --out_dir=out/hindi --start="एक दिन"
    python sample.py --out_dir=out/hindi --start=FILE:data/hindi/prompts.txt --out=out/hindi/samples.jsonl
    torchrun --nproc_per_node=4 -- sample.py --out_dir=out/hindi --num_samples=10000 --out=out/hindi/samples.jsonl
    python sample.py --init_from=MaxLSB/LeCarnet-3M --start="Il était une fois" --temperature=0.5
    python sample.py --init_from=roneneldan/TinyStories-33M --start="Once upon a time"
    python sample.py --init_from=their/ckpt.pt --tokenizer=sarvamai/sarvam-1 --start="एक दिन"
    python sample.py --init_from=stories15M.bin --tokenizer=tokenizer.bin --start="Once upon a time"

A story depends on its prompt, its seed and the settings, not on the batch in which it was generated.
"""

import os

# -----------------------------------------------------------------------------
# model
init_from = 'resume'  # 'resume' = out_dir; else a checkpoint, a Hugging Face folder or name[@revision]
out_dir = 'out/hindi'  # folder of a training run: its best.pt is used, else ckpt.pt
tokenizer = ''  # for nanoGPT's and llama2.c's models: a name as for prepare.py; empty = the model's own, or beside it
# prompts
start = ''  # beginning of a story, or FILE:prompts.txt with one beginning on each line; empty = the model begins
words = ''  # 'cat, run, small' fills the story_template of prepare.py; FILE:words.txt has such a line for each story
num_samples = 1  # stories for each prompt
max_new_tokens = 500  # a story that has not ended by then is cut off
# sampling
temperature = 0.8  # 1.0 = the model's own probabilities, lower = likelier tokens, 0.0 = always the likeliest token
top_k = 0  # sample from the k likeliest tokens; 0 = from all
top_p = 1.0  # sample from the likeliest tokens that together have this probability
min_p = 0.0  # sample from tokens with at least this fraction of the highest probability
repetition_penalty = 1.0  # above 1.0, tokens that came before become less likely
no_repeat_ngram = 0  # no sequence of this many tokens comes twice; 0 = no limit
bad_words = []  # words that must not come: --bad_words="['डर', 'भूत']"
# output and system
batch_size = 64  # stories that a process generates at a time
seed = 1337  # story i uses seed + i
out = ''  # a .jsonl, .json, .csv or .txt file; empty = the terminal
device = ''  # 'cpu', 'cuda', 'cuda:1' or 'mps'; empty = the fastest here
dtype = ''  # 'float32', 'bfloat16' or 'float16'; empty = float32 on a CPU, else the fastest on the device
quantize = ''  # 'int8' = 8-bit weights: half the memory of a GPU; on a CPU, a few stories in half the time
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'sample.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import csv
import datetime
import io
import itertools
import json
import re

import torch
import torch.distributed as dist
from tqdm import tqdm

from files import check, fail, fill_template, find, lock, normalize, printable, template_of, write_json, write_text
from model import checkpoint_path, choose_device, generate, load_checkpoint, model_from
from tokenizer import common_length, from_checkpoint


def clean_prompt(text):
    """A prompt in the form of the training stories. In the C locale the command line has UTF-8 bytes as surrogates."""
    return normalize(text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace'))


def read_lines(text):
    """The text itself, or the lines of the file in 'FILE:prompts.txt'."""
    if not text.startswith('FILE:'):
        return [clean_prompt(text)]
    path = find(text.removeprefix('FILE:'))
    try:
        with open(path, encoding='utf-8-sig') as f:
            prompts = [clean_prompt(line) for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        fail(f'{path}: {e}')
    if not prompts or '\0' in ''.join(prompts):  # UTF-16 without a byte order mark is valid UTF-8, with NULs
        fail(f'{path} has no line of UTF-8 text')
    return prompts


def read_words(line, template):
    """'cat, run, small' -> {'noun': 'cat', 'verb': 'run', 'adjective': 'small'}, by the slots of a story_template."""
    slots = re.findall(r'\{(\w+)\}', template.removesuffix('{text}'))
    if not slots:
        fail(f'{out_dir if init_from == "resume" else init_from} was trained without a story_template, so that --words '
             'has no meaning')
    values = [' '.join(value.split()) for value in line.split(',')]
    if len(values) != len(slots) or not all(values):
        fail(f'--words needs {len(slots)} words, separated by commas ({", ".join(slots)}), not {line!r}')
    return dict(zip(slots, values))


def load_model():
    """The model on its device, its tokenizer, and the story_template of its training stories.

    A checkpoint of train.py without LoRA does not need hub.py.
    """
    path = init_from
    if init_from == 'resume':
        path = checkpoint_path(out_dir) or out_dir
    checkpoint = {}
    if path.endswith('.pt') and os.path.exists(path) and not tokenizer:
        checkpoint = load_checkpoint(path)
    if 'tokenizer' in checkpoint and 'lora' not in checkpoint:
        model = model_from(checkpoint, path)
        tok = from_checkpoint(checkpoint, path)
    else:
        import hub
        model, tok, checkpoint = hub.load(path, tokenizer=tokenizer)
    template = template_of(checkpoint)
    if quantize and device == 'cpu':
        from cpu_kernels import quantize_int8
        return quantize_int8(model), tok, template
    model.to(device, getattr(torch, dtype))
    if quantize:
        import hub
        hub.quantize_int8(model)
    return model, tok, template


def prefix_of(story):
    """What the story_template puts in front of a story with these words."""
    return fill_template(template.removesuffix('{text}'), story['words']) if 'words' in story else ''


def generate_stories(stories):
    """Generate stories: fills in 'story' and 'ended'. Yields, after each step, how many stories it has completed."""
    prefixes = tok.encode_prefixes([prefix_of(story) for story in stories])
    prompts = tok.encode_batch([prefix_of(story) + story['prompt'] for story in stories])
    n_hidden = []  # bos and the tokens of the words in front, of which the last one can begin the story too
    for i, story in enumerate(stories):
        ids = prompts[i] if story['prompt'] else prefixes[i]
        n_hidden.append(1 + common_length(ids, prefixes[i]))
        prompts[i] = [tok.bos, *ids]
    seeds = [story['seed'] for story in stories]
    new_ids = [[] for _ in stories]
    for step in generate(model, prompts, max_new_tokens, tok.ends, seeds, temperature, top_k, top_p, min_p,
                         repetition_penalty, no_repeat_ngram, bad_ids, batch_size):
        n_complete = 0
        for i, token in step:
            new_ids[i].append(token)
            is_complete = token in tok.ends or len(new_ids[i]) == max_new_tokens
            if is_complete or len(stories) == 1:
                stories[i]['story'] = tok.decode(prompts[i][n_hidden[i]:] + new_ids[i]).lstrip()
            if token in tok.ends:
                stories[i]['ended'] = 'eos'
            if is_complete:
                new_ids[i] = None  # keep the text only: the ids of a million stories would fill the memory
                n_complete += 1
        yield n_complete


def stream_story(story):
    """Generate one story and print its text as it grows."""
    n_shown = 0
    for _ in generate_stories([story]):
        text = story['story'].rstrip('\ufffd')  # a character can take several tokens
        print(printable(text[n_shown:]), end='', flush=True)
        n_shown = len(text)
    print(printable(story['story'][n_shown:]))


def gather_stories(stories):
    """The stories of all processes, ordered by id."""
    parts = [None] * world_size
    dist.init_process_group('gloo', timeout=datetime.timedelta(days=1))  # the fastest process waits for the slowest
    dist.all_gather_object(parts, stories)
    dist.destroy_process_group()
    return sorted(itertools.chain(*parts), key=lambda story: story['id'])


def as_csv(stories):
    """The stories as a table with a header. Each of the words is in a column of its own."""
    rows = []
    for story in stories:
        words = story.pop('words', {})
        rows.append(story | words | story)  # a word that is called `prompt` does not replace the prompt
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write_stories(stories):
    """Print the stories, or write them to `out` in the format of its ending."""
    texts = [story['story'] for story in stories]
    if not out:
        print(printable('\n\n---\n\n'.join(texts)))
        return
    if ending == '.jsonl':
        lines = [json.dumps(story, ensure_ascii=False) + '\n' for story in stories]
        write_text(out, ''.join(lines))
    elif ending == '.json':
        write_json(out, stories)
    elif ending == '.csv':
        write_text(out, as_csv(stories))
    else:
        write_text(out, '\n\n<|endoftext|>\n\n'.join(texts) + '\n')
    n_ended = sum(story['ended'] == 'eos' for story in stories)
    print(f'{len(stories):,} stories in {out}, {n_ended / len(stories):.1%} of them ended by the model')


# -----------------------------------------------------------------------------
million = 1_000_000
limits = {
    'num_samples': (1, million), 'max_new_tokens': (1, million), 'batch_size': (1, million), 'seed': (0, 2**62),
    'temperature': (0, million), 'top_k': (0, million), 'top_p': (1e-9, 1), 'min_p': (0, 1),
    'repetition_penalty': (1e-9, million), 'no_repeat_ngram': (0, million),
}
for key, (low, high) in limits.items():
    check(low <= config[key] <= high, f'{key} is {config[key]}; it must be from {low} to {high}')
check(all(isinstance(word, str) for word in bad_words), f'bad_words is {bad_words}; it must be a list of texts')
ending = os.path.splitext(out)[1].lower()
check(not out or ending in ('.jsonl', '.json', '.csv', '.txt'),
      f'out is {out!r}; it must end in .jsonl, .json, .csv or .txt')
check(not os.path.isdir(out), f'out is {out!r}, which is a folder')
check(init_from != 'resume' or os.path.isdir(out_dir), f'{out_dir} is no folder; train first or set --out_dir')

# torchrun starts several processes and numbers them
rank = int(os.environ.get('RANK', 0))
world_size = int(os.environ.get('WORLD_SIZE', 1))
device, fastest_dtype = choose_device(device, dtype)
if not dtype:
    dtype = 'float32' if device == 'cpu' else fastest_dtype
check(quantize in ('', 'int8'), f"quantize is {quantize!r}; use 'int8'")
check(not quantize or device != 'mps', 'quantize needs --device=cpu or cuda')

prompts = read_lines(start)
word_lines = read_lines(words) if words else []
check(not word_lines or len(prompts) in (1, len(word_lines)),
      f'{len(word_lines)} lines of words need one start, or as many, not {len(prompts)}')
if out and rank == 0:
    lock(out)
model, tok, template = load_model()
bad_ids = []
for word in bad_words:
    word = clean_prompt(word)
    bad_ids += [ids for ids in tok.encode_batch([word, f' {word}']) if ids]
stories = []
for i in range(max(len(prompts), len(word_lines)) * num_samples):
    n = i // num_samples
    story = {'id': i, 'prompt': prompts[n % len(prompts)], 'story': '', 'seed': seed + i, 'ended': 'length'}
    if word_lines:
        story['words'] = read_words(word_lines[n], template)
    stories.append(story)

if len(stories) == 1 and not out and world_size == 1:
    stream_story(stories[0])
else:
    by_length = sorted(stories, key=lambda story: len(story['prompt']))  # prompts in a batch are padded to the longest
    rank_stories = by_length[rank::world_size]  # the stories of this process
    with tqdm(total=len(rank_stories), unit=' stories', desc=out, smoothing=0.1, disable=rank > 0) as bar:
        for n_complete in generate_stories(rank_stories):
            bar.update(n_complete)
    if world_size > 1:
        stories = gather_stories(rank_stories)
    if rank == 0:
        write_stories(stories)
