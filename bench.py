"""
Measures the speed of preparing, training and generation here, optionally beside nanoGPT, llama2.c and Transformers.

    python bench.py
    python bench.py --peers=../peers          peers contains git checkouts of nanoGPT, llama2.c, or both
    python bench.py --n_layer=6 --n_head=6 --n_embd=288 --tokenizer=llama2.model --stages="['generate']"
    python bench.py --stages="['grow']"       speed and memory against width, depth, block, batch and story length

Each rate is the best of `repetitions`. Our code and the other programs take turns, so that other load on the machine
affects all of them. The tables and the plot are written to out_dir, the tokens to data/bench.
"""

import functools
import importlib.util
import itertools
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
stages = ['prepare', 'train', 'generate']  # what to measure; 'many' and 'grow' take longer
repetitions = 3
peers = ''  # folder with checkouts of karpathy/nanoGPT, karpathy/llama2.c, or both
out_dir = 'out/bench'
source = ''  # stories for prepare.py; '' = 5,000 English stories of the grammar
# model
vocab_size = 4096  # with tokenizer = 'train'
tokenizer = 'train'  # any of prepare.py's
n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
batch_size = 32
train_options = {}  # more keys of train.py
steps = 20  # training steps; the rate is that of the second half
# generation
new_tokens = 200  # per story
batches = [1, 16, 64]  # batch sizes
n_prompts = 1000  # in the stage many: three stories are generated for each prompt
model_dir = ''  # in the stage many: a trained model; '' = the one of this benchmark, which seldom ends a story
# growth: the stage grow changes one of these sizes at a time
sizes = {'n_embd': [64, 128, 256, 512], 'n_layer': [1, 2, 4, 8], 'block_size': [64, 256, 1024], 'batch_size': [1, 64]}
# hardware
device = ''  # 'cpu', 'cuda' or 'mps'; '' = the fastest here
dtype = ''  # 'float32', 'bfloat16' or 'float16'; '' = the fastest on the device
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'bench.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import tokenizers
import torch

import report
from files import check, fail, read_jsonl, read_texts, replacing, write_text
from model import GPT, GPTConfig, checkpoint_path, choose_device, generate, load_checkpoint, model_from, synchronize

run_dir = f'{out_dir}/run'  # the model
data_dir = 'data/bench'
nanogpt = f'{peers}/nanoGPT'
llama2c = f'{peers}/llama2.c'
shape = {'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd, 'block_size': block_size}
FIRST_TOKEN = 1  # of every story; which one does not matter for the speed
rows = []  # of the table

# -----------------------------------------------------------------------------
# measuring


def run(*command, **options):
    """Run a command and return its output with its errors. If it fails, so does the benchmark."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', **options)
    if result.returncode:
        fail(f'{" ".join(command)} failed: {result.stdout[-500:]}')
    return result.stdout


def command_line(options):
    return [f'--{key}={value}' for key, value in options.items()]


def run_script(script, launcher=(), **options):
    """Run one of our scripts."""
    run(sys.executable, *launcher, f'{here}/{script}', *command_line(options))


def seconds(function, *arguments, **options):
    """Seconds that a call takes."""
    started = time.perf_counter()
    function(*arguments, **options)
    synchronize(device)
    return time.perf_counter() - started


def measure(stage, unit, variants, others):
    """Measure rates, print them and add them to the table as a row.

    variants of this project and other programs: {name: function that returns a rate}. The fastest variant is compared
    with all the rest.
    """
    functions = variants | others
    best = dict.fromkeys(functions, 0.0)
    for _ in range(repetitions):
        for name, function in functions.items():
            best[name] = max(best[name], function())
    fastest = max(variants, key=best.get)
    rate = best.pop(fastest)
    slower = [f'{name} {other:,.0f} ({rate / other:.1f} ×)' for name, other in best.items()]
    rows.append({'stage': stage, 'here': f'{rate:,.0f} {unit} ({fastest})', 'others': ', '.join(slower)})
    print(*rows[-1].values(), sep=' | ', flush=True)


def write_table(name, rows):
    text = report.as_markdown([report.table('Speed', rows)])
    write_text(f'{out_dir}/{name}', text)
    print(text)


# -----------------------------------------------------------------------------
# preparing


def prepare():
    run_script('prepare.py', source=source, dataset='bench', tokenizer=tokenizer, trim=False, vocab_size=vocab_size)


def load_tokenizer():
    return tokenizers.Tokenizer.from_file(f'{data_dir}/tokenizer.json')


def bench_prepare():
    texts = list(read_texts(source))
    kilobytes = sum(len(text.encode()) for text in texts) / 1000
    variants = {'prepare.py': lambda: kilobytes / seconds(prepare)}
    others = {'tokenizers, encoding only': lambda: kilobytes / seconds(load_tokenizer().encode_batch_fast, texts)}
    measure('prepare tokens', 'kB/s', variants, others)


# -----------------------------------------------------------------------------
# training


def shared_train_options():
    """Settings that train.py and nanoGPT's train.py have in common."""
    return shape | {'dataset': 'bench', 'batch_size': batch_size, 'max_iters': steps, 'eval_iters': 1,
                    'device': device, 'dtype': dtype}


def train(folder, **changed):
    """Train a new model in a folder -> the last row of its log."""
    shutil.rmtree(folder, ignore_errors=True)
    options = shared_train_options() | {'out_dir': folder, 'log_interval': steps - steps // 2, 'eval_interval': steps}
    run_script('train.py', **options | train_options | changed)
    *_, last = read_jsonl(f'{folder}/log.jsonl')
    return last


def train_nanogpt(compile):
    """Tokens per second of nanoGPT's train.py on the same tokens, by the median of its step times."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(nanogpt, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.git'))
        shutil.copytree(data_dir, f'{folder}/data/bench')
        with open(f'{folder}/data/bench/meta.pkl', 'wb') as f:
            pickle.dump({'vocab_size': load_tokenizer().get_vocab_size()}, f)
        options = shared_train_options() | {
            'gradient_accumulation_steps': 1, 'log_interval': 1, 'eval_interval': 10**9, 'compile': compile}
        output = run(sys.executable, 'train.py', *command_line(options), cwd=folder)
    step_times = [float(ms) for ms in re.findall(r'iter \d+: .*time ([\d.]+)ms', output)]
    return 1000 * batch_size * block_size / statistics.median(step_times[steps // 2:])


def bench_train():
    others = {}
    if os.path.exists(nanogpt):
        others = {'nanoGPT': lambda: train_nanogpt(False), 'nanoGPT, compiled': lambda: train_nanogpt(True)}
    measure('train', 'tokens/s', {'train.py': lambda: train(run_dir)['tokens_per_s']}, others)
    *_, last = read_jsonl(f'{run_dir}/log.jsonl')
    rows[-1]['here'] += f', {last["utilization"]:.0%} of the measured rate of matrix products in the last run'


# -----------------------------------------------------------------------------
# generation


def generate_batch(model, n):
    """Tokens per second of a batch of n stories."""
    steps = generate(model, [[FIRST_TOKEN]] * n, new_tokens, seeds=range(n), temperature=0.8)
    return n * new_tokens / seconds(list, steps)


def generate_nanogpt():
    """Tokens per second of one story with an untrained model. nanoGPT has no cache."""
    spec = importlib.util.spec_from_file_location('nanogpt_model', f'{nanogpt}/model.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(**shape, vocab_size=load_tokenizer().get_vocab_size(), bias=False)
    model = module.GPT(config).to(device).eval()
    ids = torch.full((1, 1), FIRST_TOKEN, device=device)
    return new_tokens / seconds(model.generate, ids, new_tokens, 0.8)


def generate_transformers(kind, n):
    """Tokens per second of a batch of n stories with our model in Transformers; kind: its dtype."""
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(f'{run_dir}/hf', dtype=kind).to(device).eval()
    ids = torch.full((n, 1), FIRST_TOKEN, device=device)
    taken = seconds(model.generate, ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_k=0,
                    min_new_tokens=new_tokens, max_new_tokens=new_tokens, max_length=None)
    return n * new_tokens / taken


def generate_llama2c():
    """Tokens per second of one story by run.c on all cores; it prints the rate itself."""
    run('cc', '-Ofast', '-march=native', '-fopenmp', '-o', f'{out_dir}/run_c', f'{llama2c}/run.c', '-lm')
    folder = f'{run_dir}/llama2c'
    output = run(
        f'{out_dir}/run_c', f'{folder}/model.bin', '-z', f'{folder}/tokenizer.bin', '-t', '0.8', '-n', f'{new_tokens}')
    return float(re.search(r'achieved tok/s: (\S+)', output)[1])


def bench_generate():
    checkpoint = load_checkpoint(checkpoint_path(run_dir))
    models = {}
    for kind in {'float32', dtype}:
        models[kind] = model_from(checkpoint).to(device, getattr(torch, kind))
    if device == 'cpu':
        import cpu_kernels
        models['int8'] = cpu_kernels.quantize_int8(model_from(checkpoint))
    if peers:
        run_script('export.py', out_dir=run_dir, format='hf', examples=0)
    if os.path.exists(llama2c):
        run_script('export.py', out_dir=run_dir, format='llama2c', examples=0)
    for n in batches:
        variants = {kind: functools.partial(generate_batch, model, n) for kind, model in models.items()}
        others = {}
        if peers:
            for kind in ('float32', dtype):
                others[f'Transformers, {kind}'] = functools.partial(generate_transformers, kind, n)
        if os.path.exists(nanogpt) and n == 1:
            others['nanoGPT'] = generate_nanogpt
        if os.path.exists(llama2c) and n == 1:
            others['run.c'] = generate_llama2c
        measure(f'generate, batch of {n}', 'tokens/s', variants, others)


def bench_many():
    """Measure sample.py from its start to its end. A prompt is the first four words of a story."""
    prompts = [' '.join(text.split()[:4]) for text in itertools.islice(read_texts(source), n_prompts)]
    write_text(f'{out_dir}/prompts.txt', '\n'.join(prompts))

    def count_tokens(texts):
        return sum(len(encoding.ids) for encoding in load_tokenizer().encode_batch(texts))

    def rate(kind, processes):
        options = {'init_from': model_dir or run_dir, 'start': f'FILE:{out_dir}/prompts.txt', 'num_samples': 3,
                   'max_new_tokens': block_size - 16, 'batch_size': max(batches), 'device': device, 'dtype': kind,
                   'out': f'{out_dir}/many.jsonl'}
        if processes > 1:
            options['launcher'] = [
                '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', '--']
        taken = seconds(run_script, 'sample.py', **options)
        stories = [row['story'] for row in read_jsonl(f'{out_dir}/many.jsonl')]
        return (count_tokens(stories) - 3 * count_tokens(prompts)) / taken

    variants = {}
    n_processors = torch.get_num_threads() if device == 'cpu' else torch.cuda.device_count()
    for processes in (1, n_processors):
        for kind in ('float32', dtype):
            variants[f'{kind}, processes: {processes}'] = functools.partial(rate, kind, processes)
    measure(f'generate {3 * len(prompts):,} stories', 'tokens/s', variants, {})


# -----------------------------------------------------------------------------
# growth


def grow_training(key, rate_axis, memory_axis):
    """Train with each value of sizes[key] and plot speed and memory -> rows of the table."""
    rates = []
    memory = []  # GB
    lines = []
    for value in sizes[key]:
        changed = {key: value}
        if key == 'n_embd':
            changed['n_head'] = max(1, value // 64)
        last = train(f'{out_dir}/grown', **changed)
        rates.append(last['tokens_per_s'])
        memory.append(last['memory'] / 1e9)
        lines.append({'of this model': f'{key} = {value}', 'tokens/s': f'{rates[-1]:,}',
                      'of the matrix products': f'{last["utilization"]:.0%}', 'peak memory, GB': f'{memory[-1]:.2f}'})
    rate_axis.loglog(sizes[key], rates, marker='o')
    memory_axis.semilogx(sizes[key], memory, marker='o')
    memory_axis.set(xlabel=key)
    for axis in (rate_axis, memory_axis):
        axis.set_xticks(sizes[key], sizes[key])
        axis.minorticks_off()
    return lines


def grow_generation(n, axis):
    """Generate a batch of n stories of 1,000 tokens and plot the speed -> a row of the table."""
    model = GPT(GPTConfig(**shape | {'block_size': 1024}, vocab_size=vocab_size)).to(device).eval()
    steps = generate(model, [[FIRST_TOKEN]] * n, 1000, seeds=range(n))
    rates = []
    for _ in range(10):
        rates.append(100 * n / seconds(list, itertools.islice(steps, 100)))
    axis.loglog(range(100, 1001, 100), rates, marker='o', label=f'batch of {n}')
    name = f'generation, batch of {n}, the first and the tenth 100 tokens'
    return {'of this model': name, 'tokens/s': f'{rates[0]:,.0f} and {rates[-1]:,.0f}'}


def bench_grow():
    """Measure training against each size, and generation against the length of a story: a table and a plot."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3 * len(sizes) + 3, 5), dpi=80, layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=[len(sizes), 1])
    axes = left.subplots(2, len(sizes), sharey='row', squeeze=False).T
    generation_axis = right.subplots()
    lines = []
    for key, (rate_axis, memory_axis) in zip(sizes, axes):
        lines += grow_training(key, rate_axis, memory_axis)
    for n in batches:
        lines.append(grow_generation(n, generation_axis))
    generation_axis.set(xlabel='tokens of the story', ylabel='tokens/s')
    generation_axis.legend()
    axes[0][0].set(ylabel='tokens/s')
    axes[0][1].set(ylabel='peak memory, GB', ylim=(0, None))  # all panels of a row share it
    with replacing(f'{out_dir}/growth.png') as temporary:
        figure.savefig(temporary)
    write_table('growth.md', lines)


# -----------------------------------------------------------------------------
# main

STAGES = {'prepare': bench_prepare, 'train': bench_train, 'generate': bench_generate, 'many': bench_many,
          'grow': bench_grow}
check(set(stages) <= set(STAGES), f'stages can be {", ".join(STAGES)}')
check(not peers or os.path.exists(peers), f'peers: there is no folder {peers!r}')
device, dtype = choose_device(device, dtype)
print(f'{device}, {dtype}, {torch.get_num_threads()} threads')
if not source:
    source = f'{out_dir}/stories.jsonl'
    run_script('generate_data.py', language='english', total=5000, out=source)
prepare()
if 'generate' in stages or 'many' in stages and not model_dir:
    train(run_dir)
for stage in stages:
    STAGES[stage]()
if rows:
    write_table('bench.md', rows)
