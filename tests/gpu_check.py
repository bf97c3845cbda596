"""
Checks and measures the project on one GPU in at most six minutes, and prints a table.

    python tests/gpu_check.py --corpus=stories.jsonl
    python tests/gpu_check.py --corpus=stories.jsonl --peers=../peers     peers: checkouts of nanoGPT, llama2.c
    python tests/gpu_check.py --toy                                       small sizes, to try the check itself

It needs the packages of requirements.txt and no network; without a corpus the grammar writes one. What takes longer
than the time left is stopped, and its row says so. The exit status is 1 if a check failed. All files go to `out`:
table.md, profile_train.txt and profile_generate.txt, and the output of every command.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
SMALL = {'n_layer': 2, 'n_head': 2, 'n_embd': 64, 'block_size': 64, 'batch_size': 8, 'learning_rate': 1e-2,
         'max_iters': 20, 'warmup_iters': 2, 'eval_interval': 20, 'eval_iters': 4, 'log_interval': 1}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--corpus', default='', help='stories, any source of prepare.py')
parser.add_argument('--peers', default='', help='folder with checkouts of nanoGPT and llama2.c, to compare with')
parser.add_argument('--out', default='out/gpu_check')
parser.add_argument('--minutes', type=float, default=6.0)
parser.add_argument('--toy', action='store_true')
parser.add_argument('--part', default='', help='for internal use: a measurement that needs a process of its own')
args = parser.parse_args()
if args.toy:
    MODEL = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'block_size': 32, 'batch_size': 4}
    batches, new_tokens, large_vocab, steps = [1, 4], 8, 2048, 4
else:
    MODEL = {'n_layer': 6, 'n_head': 8, 'n_embd': 512, 'block_size': 512, 'batch_size': 32}
    batches, new_tokens, large_vocab, steps = [1, 256], 200, 65536, 20
out = Path(args.out).resolve()
end_time = time.monotonic() + 60 * args.minutes
rows = []  # what, result
n_failed = 0
losses_of = {}  # of each training: name -> the loss of each step


def options(**values):
    return [f'--{key}={value}' for key, value in values.items()]


def run(name, script, *arguments):
    """Run a script in `out` until the time is over -> its output, which is also in the file <name>.txt."""
    path = out / f'{name}.txt'
    with open(path, 'w', encoding='utf-8') as f:
        env = os.environ | {'PYTHONIOENCODING': 'utf-8', 'PYTHONUNBUFFERED': '1'}
        process = subprocess.Popen([sys.executable, PROJECT / script, *arguments], cwd=out, stdout=f, env=env,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(max(1, end_time - time.monotonic()))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            raise
    text = path.read_text(encoding='utf-8', errors='replace')
    if process.returncode:
        last = text.strip().splitlines()[-1:]
        raise AssertionError(f'{script} ended with {process.returncode}: {"".join(last):.200}; see {path}')
    return text


def train(name, **changed):
    """Train the small model -> the output. The losses are in losses_of[name]."""
    folder = out / 'runs' / name
    if changed.get('init_from') != 'resume' and folder.exists():
        for file in folder.iterdir():
            file.unlink()
    settings = SMALL | {'dataset': 'gpu_check', 'out_dir': f'runs/{name}', 'device': 'cuda', 'compile': False} | changed
    text = run(f'train_{name}', 'train.py', *options(**settings))
    with open(folder / 'log.jsonl', encoding='utf-8') as f:
        losses_of[name] = [json.loads(line)['loss'] for line in f]
    return text


def compare(name, other):
    """Compare the losses of two trainings. train.py allows TF32 products, which have 10 bits of mantissa."""
    a, b = losses_of[name], losses_of[other]
    assert len(a) == len(b), f'{len(a)} and {len(b)} steps'
    difference = max(abs(x - y) for x, y in zip(a, b))
    assert difference < 0.02, f'the losses differ by {difference:.4f} from those of {other}'
    return f'losses differ from those of {other} by at most {difference:.1e}'


# -----------------------------------------------------------------------------
# checks


def prepare():
    source = Path(args.corpus).resolve() if args.corpus else out / 'stories.jsonl'
    if not args.corpus:
        run('stories', 'generate_data.py', '--language=english', '--total=2000', f'--out={source}')
    vocab_size = 1024 if args.toy else 4096
    run('prepare', 'prepare.py', *options(source=source, dataset='gpu_check', vocab_size=vocab_size))
    return 'ready'


def check_float32():
    train('cpu', dtype='float32', device='cpu')
    train('float32', dtype='float32')
    return compare('float32', 'cpu')


def check_mixed_precision(dtype):
    import torch
    if dtype == 'bfloat16' and torch.cuda.get_device_capability() < (8, 0):
        return 'this card has none'
    train(dtype, dtype=dtype)
    first, *_, last = losses_of[dtype]
    assert last < first - 0.5, f'the loss went from {first:.2f} to {last:.2f}'
    return f'loss {first:.2f} to {last:.2f} in 20 steps'


def check_compile():
    text = train('compiled', dtype='float32', compile=True)
    assert 'torch.compile does not work' not in text, 'it fell back to eager; see train_compiled.txt'
    return compare('compiled', 'float32')


def check_resume():
    train('resumed', dtype='float32', max_iters=10, lr_decay_iters=20)
    train('resumed', dtype='float32', init_from='resume')
    return compare('resumed', 'float32')


def check_generation():
    """In float32, a story rarely changes by rounding."""
    stories = []
    for device in ('cuda', 'cpu'):
        run(f'sample_{device}', 'sample.py', *options(
            out_dir='runs/cpu', start='Once', num_samples=16, max_new_tokens=50, device=device, dtype='float32',
            out=f'samples_{device}.jsonl'))
        with open(out / f'samples_{device}.jsonl', encoding='utf-8') as f:
            stories.append([json.loads(line)['story'] for line in f])
    n_equal = sum(a == b for a, b in zip(*stories))
    assert n_equal >= 15, f'{n_equal} of 16 stories are equal'
    return f'{n_equal} of 16 stories are those of the CPU'


# -----------------------------------------------------------------------------
# measurements


def bench(name, *more):
    """Run bench.py, and add a row to the table for each of its rows. If the time is over, those so far count."""
    settings = MODEL | {'steps': steps, 'repetitions': 1, 'batches': batches, 'new_tokens': new_tokens,
                        'source': Path(args.corpus).resolve() if args.corpus else 'stories.jsonl',
                        'vocab_size': 1024 if args.toy else 4096, 'stages': ['train', 'generate']}
    try:
        run(name, 'bench.py', *options(**settings), *more)
    finally:
        for line in (out / f'{name}.txt').read_text(encoding='utf-8').splitlines():
            if re.match(r'\w.* \| .* \|', line):
                add_row(*line.split(' | ', 1))
    with open(out / 'out/bench/run/log.jsonl', encoding='utf-8') as f:
        *_, last = map(json.loads, f)
    return f'training reaches {last["utilization"]:.1%} of the measured rate of matrix products'


def part(name):
    """Run a measurement below in a process of its own -> its last line."""
    arguments = ['--part', name, *(['--toy'] if args.toy else [])]
    return run(name, 'tests/gpu_check.py', *arguments).split()[-1]


def measure_memory():
    chunks, whole = (int(part(f'memory_{kind}')) for kind in ('chunks', 'whole'))
    return f'{chunks / 1e6:,.0f} MB, {chunks / whole:.2f} of the {whole / 1e6:,.0f} MB with whole logits'


def make_model(**changed):
    import torch
    from model import GPT, GPTConfig
    sizes = {key: MODEL[key] for key in ('n_layer', 'n_head', 'n_embd', 'block_size')}
    torch.manual_seed(0)
    return GPT(GPTConfig(**({'vocab_size': 4096} | sizes | changed))).cuda()


def loss_of(model, whole=False):
    import torch
    from model import choose_device
    config = model.config
    ids = torch.randint(config.vocab_size, (MODEL['batch_size'], config.block_size + 1), device='cuda')
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    with torch.autocast('cuda', getattr(torch, choose_device('cuda')[1])):
        if whole:
            return torch.nn.functional.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
        return model(x, y)


def memory(whole):
    """Print the peak memory of a forward and backward pass at a large vocabulary."""
    from model import peak_memory
    model = make_model(vocab_size=large_vocab, n_layer=2, block_size=min(256, MODEL['block_size']))
    loss_of(model, whole).backward()
    print(peak_memory('cuda'))


def profile(function, n):
    """Print where the time of n calls goes, after a warm-up."""
    import torch
    function()
    torch.cuda.synchronize()
    activities = torch.profiler.supported_activities()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(n):
            function()
        torch.cuda.synchronize()
    has_cuda = torch.profiler.ProfilerActivity.CUDA in activities
    key = 'self_cuda_time_total' if has_cuda else 'self_cpu_time_total'
    print(profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))
    print('written')


def profile_train():
    model = make_model()
    optimizers = model.configure_optimizers('adamw', 1e-3, 0.0, 0.1, (0.9, 0.95), 0.95, 5)

    def step():
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    profile(step, 3)


def profile_generate():
    model = make_model().eval()
    from model import generate
    profile(lambda: list(generate(model, [[1]] * batches[-1], 16, seeds=range(batches[-1]))), 1)


PARTS = {'memory_chunks': lambda: memory(False), 'memory_whole': lambda: memory(True),
         'profile_train': profile_train, 'profile_generate': profile_generate}

# -----------------------------------------------------------------------------
# main


def add_row(what, result):
    rows.append([what, result])
    print(what, result, sep=' | ', flush=True)


def measure(what, function, *arguments):
    """Run a check or a measurement and add its row."""
    global n_failed
    start = time.monotonic()
    try:
        result = function(*arguments) if end_time - start > 5 else 'not measured: no time left'
    except subprocess.TimeoutExpired:
        result = 'not measured: the time is over'
    except Exception as e:  # one failure must not hide the other results
        n_failed += 1
        result = f'FAILED: {" ".join(str(e).split()) or type(e).__name__:.300}'
    add_row(what, f'{result} ({time.monotonic() - start:.0f} s)')


def main():
    import torch
    if not torch.cuda.is_available():
        sys.exit('gpu_check.py: torch finds no GPU; make env-gpu says what to do')
    out.mkdir(parents=True, exist_ok=True)
    python = '.'.join(map(str, sys.version_info[:3]))
    title = f'{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {python}'
    print(title)
    measure('prepare the corpus', prepare)
    measure('float32', check_float32)
    measure('generation in float32', check_generation)
    measure('bfloat16', check_mixed_precision, 'bfloat16')
    measure('float16', check_mixed_precision, 'float16')
    measure('torch.compile', check_compile)
    measure('resume', check_resume)
    shape = f'{MODEL["n_embd"]} × {MODEL["n_layer"]}, block {MODEL["block_size"]}, batch {MODEL["batch_size"]}'
    measure(f'speed, {shape}', bench, 'bench')
    measure(f'peak memory, vocabulary {large_vocab:,}', measure_memory)
    for name in ('profile_train', 'profile_generate'):
        measure(f'{name}.txt', part, name)
    if args.peers:
        measure('speed beside peers', bench, 'bench_peers', f'--peers={Path(args.peers).resolve()}')
    lines = [title, '', '| what | result |', '| --- | --- |']
    for row in rows:
        lines.append('| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |')
    (out / 'table.md').write_text('\n'.join([*lines, '']), encoding='utf-8')
    print('', *lines, sep='\n')
    sys.exit(f'gpu_check.py: {n_failed} rows failed; their output is in {out}' if n_failed else 0)


if args.part:
    PARTS[args.part]()
else:
    main()
