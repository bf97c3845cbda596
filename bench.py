"""
Times every stage on this machine, beside what the machine could do at most and, if asked, beside what others do on it.

    python bench.py
    python bench.py --peers=../peers          beside those of the git checkouts nanoGPT and llama2.c that are in that folder, and Transformers
    python bench.py --source=stories.jsonl --tokenizer=llama2.model --n_layer=6 --n_head=6 --n_embd=288 --stages="['generate']"
    python bench.py --stages="['grow']"       how speed and memory change with the width, depth, block, batch and length

What takes long is timed by the scripts' own commands, the rest by the functions that they call. A rate is the best of
`repetitions`, ours and the others' by turns, so that a busy moment does not decide. The tables and the picture go to out_dir.
"""

import importlib.util
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# -----------------------------------------------------------------------------
stages = ['compose', 'chat', 'prepare', 'train', 'evaluate', 'generate']  # what to time; also 'many' and 'grow', which take longer
repetitions = 3
peers = ''  # a folder with a checkout of karpathy/nanoGPT, of karpathy/llama2.c, or both
out_dir = 'out/bench'
source = ''  # stories for prepare.py; empty: 5,000 English ones of the grammar
# the model
vocab_size = 4096  # of a tokenizer trained here
tokenizer = 'train'  # or one from elsewhere, whole
n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
batch_size = 32
train_options = {}  # more keys of train.py
steps = 20  # of training; the first half is not counted
new_tokens = 200  # of a story
batches = [1, 16, 64]  # stories told side by side
n_prompts = 1000  # of the stage 'many': the first words of so many stories, three stories from each, which end where the model ends them
model_dir = ''  # its model; empty: the one that the stage 'train' makes, which knows no end
sizes = {'n_embd': [64, 128, 256, 512], 'n_layer': [1, 2, 4, 8, 16], 'block_size': [64, 128, 256, 512, 1024], 'batch_size': [1, 4, 16, 64]}  # of 'grow'
num_workers = 64  # requests in flight to a chat API on loopback, which answers after a second
device = ''
dtype = ''  # of training
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

import numpy as np
import torch
from tqdm import tqdm

import jsonl
from checkpoint import load, load_checkpoint
from generation import generate
from model import GPT, choose_device, matrix_rate, quantize_int8
from tokenizer import load as load_tokenizer


def fail(message):
    raise SystemExit(f'bench.py: {message}')


known = ('compose', 'chat', 'prepare', 'train', 'evaluate', 'generate', 'many', 'grow')
if not set(stages) <= set(known):
    fail(f'stages is {stages}; there is: {", ".join(known)}')
if min(repetitions, steps, new_tokens, num_workers, *batches) < 1 or new_tokens >= block_size:
    fail('repetitions, steps, new_tokens, num_workers and batches are numbers from 1, and new_tokens is below block_size')
nanogpt, llama2c = (os.path.join(peers, name) if peers and os.path.exists(os.path.join(peers, name)) else '' for name in ('nanoGPT', 'llama2.c'))
if peers and not nanogpt and not llama2c:
    fail(f'{peers} holds neither nanoGPT nor llama2.c; peers is a folder with git checkouts of them')
if llama2c and not shutil.which('cc'):
    fail('run.c of llama2.c wants a C compiler, cc; install one or move llama2.c out of peers')
device, dtype = choose_device(device, dtype)
rows = []


def run(*command, **options):
    """Run a command to its good end -> what it printed, errors too."""
    command = [sys.executable, *command] if command[0].endswith('.py') else command
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', errors='replace', **options)
    if result.returncode:
        fail(f'{" ".join(command)} failed: ' + ' '.join(result.stdout.strip().split('\n')[-3:]))
    return result.stdout


def seconds(work, *arguments):
    started = time.perf_counter()
    work(*arguments)
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def number(x):
    return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'


def measure(stage, unit, here, limits=None, limit_name='', **peers):
    """Add a row. here: functions that measure a rate of ours, by the name of the setting, and limits: the highest that each can be; peers: the others'."""
    best = dict.fromkeys([*here, *peers], 0.0)
    for _ in tqdm(range(repetitions), desc=stage, leave=False):
        for name, rate in (here | peers).items():
            best[name] = max(best[name], rate())
    fastest = max(here, key=best.get)
    ours = best.pop(fastest)
    share = f'{ours / limits[fastest]:.0%} of {limit_name}' if limits else ''
    others = ', '.join(f'{name.replace("_", " ")} {number(rate)} ({ours / rate:.1f} ×)' for name, rate in best.items())
    rows.append([stage, f'{number(ours)} {unit}' + f' ({fastest})' * bool(fastest), share, others])
    tqdm.write(': '.join(filter(None, rows[-1])))


def copy_rate(size=2**28):
    """Bytes a second that a copy reads and writes."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.ones_like(a)
    return 2 * size / min(seconds(b.copy_, a) for _ in range(5))


# -----------------------------------------------------------------------------
# here

run_dir, grown_dir, data = os.path.join(out_dir, 'run'), os.path.join(out_dir, 'grown'), os.path.join('data', 'bench')
composed, asked = os.path.join(out_dir, 'stories.jsonl'), os.path.join(out_dir, 'asked.jsonl')
meta_path, best = os.path.join(data, 'meta.json'), os.path.join(run_dir, 'best.pt')
source = source or composed


def compose():
    """Stories of the grammar a second, with the start of Python."""
    if os.path.exists(composed):
        os.remove(composed)
    return 5000 / seconds(run, 'generate_data.py', '--language=english', '--total=5000', f'--out={composed}')


def ask(url):
    """Stories of a chat API a minute."""
    for path in (asked, os.path.join(out_dir, 'failed.jsonl')):
        if os.path.exists(path):
            os.remove(path)
    text = run('generate_data.py', 'config/generate_hindi.py', f'--base_url={url}', '--model=x', f'--total={10 * num_workers}',
               f'--num_workers={num_workers}', f'--out={asked}')
    return max(int(n.replace(',', '')) for n in re.findall(r'([\d,]+) stories/min', text))


def prepare():
    """Megabytes of text a second, all passes of prepare.py and the training of its tokenizer."""
    shutil.rmtree(data, ignore_errors=True)
    taken = seconds(run, 'prepare.py', f'--source={source}', '--dataset=bench', f'--tokenizer={tokenizer}', '--trim=False', f'--vocab_size={vocab_size}')
    return sum(read_meta()['bytes'].values()) / 1e6 / taken


def encode_raw():
    """Megabytes a second of the tokenizers library alone, on all cores, which leaves what it made unread."""
    from tokenizers import Tokenizer
    bare, texts = Tokenizer.from_file(os.path.join(data, 'tokenizer.json')), [row['text'] for row in jsonl.read(source)]
    return sum(len(text.encode()) for text in texts) / 1e6 / seconds(lambda: [bare.encode_batch_fast(texts[i:i + 1000]) for i in range(0, len(texts), 1000)])


def read_meta():
    with open(meta_path, encoding='utf-8') as f:
        return json.load(f)


def differs(made, **settings):
    """Whether what lies here from before, by its config, was made with others than these settings."""
    return any(made.get(key) != value for key, value in settings.items())


def train(folder, **other):
    """The last line of train.py's log after so many steps."""
    shutil.rmtree(folder, ignore_errors=True)
    options = {'dataset': 'bench', 'out_dir': folder, 'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd, 'block_size': block_size,
               'batch_size': batch_size, 'device': device, 'dtype': dtype, 'max_iters': steps, 'log_interval': steps - steps // 2,
               'eval_interval': steps, 'eval_iters': 1} | train_options | other
    run('train.py', *(f'--{key}={value}' for key, value in options.items()))
    return list(jsonl.read(os.path.join(folder, 'log.jsonl')))[-1]


@torch.no_grad()
def evaluate(model):
    """Tokens a second through the model and its loss, as train.py evaluates."""
    ids = torch.randint(model.args['vocab_size'], (batch_size, block_size + 1), device=device)
    with torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32'):
        return ids[:, 1:].numel() / min(seconds(model, ids[:, :-1], ids[:, 1:]) for _ in range(5))


def tell(model, n):
    """New tokens a second of n stories side by side."""
    def stories():
        for _ in generate(model, [[meta['bos']]] * n, new_tokens, seeds=range(n), temperature=0.8):
            pass
    return n * new_tokens / seconds(stories)


def count_new(stories):
    """Tokens of stories without those of their prompts, which come three times each."""
    return sum(map(len, spelling.encode_batch(stories))) - 3 * sum(map(len, spelling.encode_batch(prompts)))


def tell_many(dtype, processes):
    """New tokens a second of sample.py, three stories for each prompt, with its start and its end."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', '--'] if processes > 1 else []
    taken = seconds(run, *torchrun, 'sample.py', f'--init_from={model_dir or run_dir}', f'--start=FILE:{out_dir}/prompts.txt', '--num_samples=3',
                    f'--max_new_tokens={block_size - 16}', f'--batch_size={max(batches)}', f'--device={device}', f'--dtype={dtype}',
                    f'--out={out_dir}/many.jsonl')
    return count_new([row['story'] for row in jsonl.read(os.path.join(out_dir, 'many.jsonl'))]) / taken


def grow():
    """Measure how speed and memory change with one size at a time, and draw it."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3 * len(sizes) + 3, 5), dpi=80)
    axes = figure.subplots(2, len(sizes) + 1, sharey='row')
    lines = [['of the model above', 'tokens/s in training', 'of the products', 'peak memory, GB'], ['---', '---:', '---:', '---:']]
    for (key, values), (above, below) in zip(sizes.items(), axes.T):
        found = [train(grown_dir, **{'n_head': max(1, value // 64) if key == 'n_embd' else n_head, key: value}) for value in tqdm(values, desc=key)]
        lines += [[f'{key} = {value}', f'{row["tokens_per_s"]:,}', f'{row["mfu"]:.0%}', f'{row["memory"] / 1e9:.2f}'] for value, row in zip(values, found)]
        above.loglog(values, [row['tokens_per_s'] for row in found], marker='o')
        below.semilogx(values, [row['memory'] / 1e9 for row in found], marker='o')
        below.set(xlabel=key)
        for axis in (above, below):
            axis.set_xticks(values, values, minor=False)
            axis.minorticks_off()
    model = GPT(vocab_size=vocab_size, block_size=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd).to(device).eval()
    for n in batches:
        times = [time.perf_counter()]
        for _ in generate(model, [[1]] * n, 1000, seeds=range(n)):
            times.append(time.perf_counter())
        rates = [100 * n / (times[i + 100] - times[i]) for i in range(0, 1000, 100)]
        axes[0, -1].loglog(range(100, 1001, 100), rates, marker='o', label=f'{n} side by side')
        lines += [[f'telling, {n} side by side, the first and the tenth 100 tokens', f'{rates[0]:,.0f} and {rates[-1]:,.0f}', '', '']]
    axes[0, -1].legend()
    axes[0, -1].set(xlabel='tokens of the story')
    axes[1, -1].axis('off')
    axes[0, 0].set(ylabel='tokens/s')
    axes[1, 0].set(ylabel='peak memory, GB', ylim=(0, None))
    figure.suptitle(f'{n_layer} layers × {n_embd}, vocabulary {vocab_size:,}, {batch_size} × {block_size} tokens a step, {device}, {dtype}')
    figure.tight_layout()
    with jsonl.replacing(os.path.join(out_dir, 'growth.png')) as temporary:
        figure.savefig(temporary, format='png')
    return lines


# -----------------------------------------------------------------------------
# the peers, each by its own code

def train_nanogpt(compile):
    """Tokens a second of nanoGPT's train.py on the same bins, by the median of its own step times. On a CPU it computes in float32."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(nanogpt, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.git'))
        shutil.copytree(data, os.path.join(folder, 'data', 'bench'))
        with open(os.path.join(folder, 'data', 'bench', 'meta.pkl'), 'wb') as f:
            pickle.dump({'vocab_size': meta['vocab_size']}, f)
        options = {'dataset': 'bench', 'out_dir': folder + '/out', 'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd, 'block_size': block_size,
                   'batch_size': batch_size, 'gradient_accumulation_steps': 1, 'dropout': 0.0, 'device': device, 'dtype': dtype, 'compile': compile,
                   'max_iters': steps, 'log_interval': 1, 'eval_interval': 10**9, 'eval_iters': 1}
        text = run('train.py', *(f'--{key}={value}' for key, value in options.items()), cwd=folder)
    times = [float(ms) for ms in re.findall(r'iter \d+: .*time ([\d.]+)ms', text)]
    return 1000 * batch_size * block_size / statistics.median(times[steps // 2:])


def tell_nanogpt(n):
    spec = importlib.util.spec_from_file_location('nanogpt_model', os.path.join(nanogpt, 'model.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(block_size=block_size, vocab_size=meta['vocab_size'], n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=0.0, bias=False)
    model = module.GPT(config).to(device).eval()
    ids = torch.full((n, 1), meta['bos'], device=device)
    return lambda: n * new_tokens / seconds(model.generate, ids, new_tokens, 0.8)


def tell_transformers(n, dtype):
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(run_dir, 'hf'), dtype=dtype).to(device).eval()
    ids = torch.full((n, 1), meta['bos'], device=device)
    options = {'do_sample': True, 'temperature': 0.8, 'top_k': 0, 'min_new_tokens': new_tokens, 'max_new_tokens': new_tokens, 'max_length': None,
               'attention_mask': torch.ones_like(ids)}
    return lambda: n * new_tokens / seconds(lambda: model.generate(ids, **options))


def tell_many_transformers(n):
    """New tokens a second of a pipeline of Transformers in batches of n, prompts of a like length together."""
    import transformers
    pipe = transformers.pipeline('text-generation', os.path.join(model_dir or run_dir, 'hf'), dtype=getattr(torch, dtype), device=device)
    pipe.tokenizer.padding_side, pipe.tokenizer.pad_token = 'left', pipe.tokenizer.eos_token
    thrice = sorted((prompt for prompt in prompts for _ in range(3)), key=len)
    told = []

    def stories():
        told[:] = pipe(thrice, batch_size=n, do_sample=True, temperature=0.8, top_k=0, max_length=None, max_new_tokens=block_size - 16)

    def rate():
        taken = seconds(stories)
        return count_new([row['generated_text'] for (row,) in told]) / taken
    return rate


def tell_llama2c():
    """run.c on all cores, by the rate that it tells itself."""
    program = os.path.join(out_dir, 'llama2c')
    run('cc', '-Ofast', '-march=native', '-fopenmp', '-o', program, os.path.join(llama2c, 'run.c'), '-lm')
    folder = os.path.join(run_dir, 'llama2c')
    command = [program, os.path.join(folder, 'model.bin'), '-z', os.path.join(folder, 'tokenizer.bin'), '-t', '0.8', '-n', str(new_tokens)]
    return lambda: float(re.search(r'achieved tok/s: ([\d.]+)', run(*command, env=os.environ | {'OMP_NUM_THREADS': str(torch.get_num_threads())}))[1])


# -----------------------------------------------------------------------------
# the stages

os.makedirs(out_dir, exist_ok=True)
flops, memory = matrix_rate(device, dtype, seconds=1), copy_rate()  # at first not each thread has a core of its own
print(f'{device}, {torch.get_num_threads()} threads: {flops / 1e12:.3g} T operations a second in {dtype} products, memory {memory / 1e9:.3g} GB/s')
if 'compose' in stages or not os.path.exists(source):
    measure('write stories, by the grammar', 'stories/s', {'': compose})
if 'chat' in stages:
    server = subprocess.Popen([sys.executable, os.path.join('tests', 'chat_server.py'), '{"latency": 1}'], stdout=subprocess.PIPE)
    try:
        url = f'http://127.0.0.1:{int(server.stdout.readline())}'
        measure(f'write stories, {num_workers} requests of 1 s in flight', 'stories/min', {'': lambda: ask(url)}, {'': 60 * num_workers}, 'workers / latency')
    finally:
        server.kill()
if 'prepare' in stages or not os.path.exists(meta_path) or differs(
        read_meta()['config'], source=source, tokenizer=tokenizer, vocab_size=vocab_size):
    measure('prepare tokens', 'MB/s', {'': prepare}, **{'tokenizers_alone': encode_raw} if peers and 'prepare' in stages and source.endswith('.jsonl') else {})
    shutil.rmtree(run_dir, ignore_errors=True)  # a model of other tokens
meta = read_meta()
needs_model = {'evaluate', 'generate'} & set(stages) or 'many' in stages and not model_dir
if 'train' in stages or needs_model and (not os.path.exists(best) or differs(
        load_checkpoint(best)['config'], n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, **train_options)):
    last = []
    theirs = {'nanoGPT': lambda: train_nanogpt(False), 'nanoGPT_compiled': lambda: train_nanogpt(True)} if nanogpt and 'train' in stages else {}
    measure('train', 'tokens/s', {'': lambda: last.append(train(run_dir)) or last[-1]['tokens_per_s']}, **theirs)
    rows[-1][2] = f'{max(last, key=lambda row: row["tokens_per_s"])["mfu"]:.0%} of the products'
if {'evaluate', 'generate'} & set(stages):
    model = load(run_dir, device)[0]
    n_params = model.n_params()
if 'evaluate' in stages:
    measure('evaluate', 'tokens/s', {'': lambda: evaluate(model)}, {'': flops / (2 * n_params)}, 'the products')
if 'generate' in stages:
    told = {'float32': model} | ({dtype: load(run_dir, device)[0].to(getattr(torch, dtype))} if dtype != 'float32' else {})
    told |= {'int8': quantize_int8(load(run_dir)[0])} if device == 'cpu' else {}
    widths = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'int8': 1}
    if llama2c and (model.args['mlp'] != 'swiglu' or model.args['qk_norm'] or device != 'cpu'):
        print('run.c is left out: it knows no relu2, no qk_norm and no GPU')
        llama2c = ''
    for format in ['hf'] * bool(peers) + ['llama2c'] * bool(llama2c):
        run('export.py', f'--out_dir={run_dir}', f'--format={format}', '--examples=0')
    for n in batches:
        theirs = {'Transformers': tell_transformers(n, torch.float32)} if peers else {}
        theirs |= {'nanoGPT': tell_nanogpt(n)} if nanogpt and n == 1 else {}  # it reads the whole story again for every token
        theirs |= {f'Transformers_{dtype}': tell_transformers(n, getattr(torch, dtype))} if peers and dtype != 'float32' else {}
        theirs |= {'run.c': tell_llama2c()} if llama2c and n == 1 else {}
        # at least, the weights are read once for each token of a batch
        measure(f'tell stories, {n} at a time', 'tokens/s', {kind: lambda kind=kind, n=n: tell(told[kind], n) for kind in told},
                {kind: n * memory / (widths[kind] * n_params) for kind in told}, 'memory', **theirs)
if 'many' in stages:
    spelling, ids = load_tokenizer(os.path.join(data, 'tokenizer.json')), np.fromfile(os.path.join(data, 'val.bin'), '<u2')
    of_val = np.split(ids, np.flatnonzero(ids == meta['eos']))[:-1]  # behind the last eos there is none
    prompts = [' '.join(spelling.decode(story).split()[:4]) for story in of_val[:n_prompts]]
    with jsonl.replacing(os.path.join(out_dir, 'prompts.txt')) as temporary, open(temporary, 'w', encoding='utf-8') as f:
        f.writelines(prompt + '\n' for prompt in prompts)
    if peers:
        run('export.py', f'--out_dir={model_dir or run_dir}', '--format=hf', '--examples=0')
    processes = torch.get_num_threads() if device == 'cpu' else max(1, torch.cuda.device_count())
    ways = {f'{kind}, {n} process{"es" * (n > 1)}': lambda kind=kind, n=n: tell_many(kind, n) for kind in ('float32', dtype) for n in (1, processes)}
    theirs = {f'Transformers_by_{n}': tell_many_transformers(n) for n in batches if n > 1 and peers} | ({'nanoGPT_by_1': tell_nanogpt(1)} if nanogpt else {})
    measure(f'tell {3 * len(prompts):,} stories', 'tokens/s', ways, **theirs)

tables = {'bench.md': [['stage', 'here', 'of what is possible', 'others'], ['---', '---:', '---', '---'], *rows]} if rows else {}
tables |= {'growth.md': grow()} if 'grow' in stages else {}
for name, lines in tables.items():
    table = ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)
    with jsonl.replacing(os.path.join(out_dir, name)) as temporary, open(temporary, 'w', encoding='utf-8') as f:
        f.write(table)
    print('\n' + table)
