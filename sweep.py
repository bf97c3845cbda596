"""
Trains, samples and evaluates a list of settings, one after the other, into one table and one plot.

    python sweep.py config/sweep_hindi.py
    python sweep.py config/sweep_hindi.py --nproc_per_node=4
    python sweep.py config/sweep_hindi.py --evaluate_options="{'provider': 'mistral', 'max_cost': 5.0}"

Each setting has a folder of its own under out_dir, with what train.py, sample.py and evaluate.py leave there, and its row
of the table as soon as it is through: results.json, results.md, results.png in out_dir. Stopped at any time, the same
command goes on; what is done is not done again unless its options changed (what a config file holds is not looked at), and
a training with other options is not overwritten. A setting that fails is passed over, named at the end, and tried again by
the next run.
"""

import json
import os
import signal
import subprocess
import sys

# -----------------------------------------------------------------------------
out_dir = 'out/sweep'  # a folder a setting in here, and the table
train_config = 'config/train_hindi.py'  # what all settings have in common
settings = []  # a dict of train.py's keys for each model; config/sweep_hindi.py has the paper's eight
train_options = {}  # more keys of train.py for all of them
start = 'FILE:data/hindi/prompts.txt'  # what the stories begin with; see sample.py
num_samples = 1  # stories for each beginning
sample_options = {}  # more keys of sample.py
evaluate_config = 'config/evaluate_stories.py'  # the rubric
evaluate_options = {}  # more keys of evaluate.py, such as {'train_stories': 'data/hindi/stories.jsonl', 'provider': 'mistral'}
nproc_per_node = 1  # GPUs that train together, by torchrun
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

import jsonl
import report


def fail(message):
    raise SystemExit(f'sweep.py: {message}')


def command(script, *config_files, **options):
    """A script with its options, as they stand behind python on a command line."""
    return [script, *filter(None, config_files), *(f'--{key}={value}' for key, value in options.items())]


def stages(setting, folder):
    """The commands that a setting takes, in their order: {name: command}"""
    samples = os.path.join(folder, 'samples.jsonl')
    return {'train': command('train.py', train_config, **train_options, **setting, out_dir=folder),
            'sample': command('sample.py', **{'out_dir': folder, 'start': start, 'num_samples': num_samples, 'out': samples} | sample_options),
            'evaluate': command('evaluate.py', evaluate_config, **{'samples': samples, 'out_dir': folder} | evaluate_options)}


def run(arguments, nproc=1):
    """Run a command, several processes of it by torchrun, to its end -> its exit status. Ctrl-C reaches it too, SIGTERM is passed on; both end the sweep."""
    process = subprocess.Popen([sys.executable, *(['-m', 'torch.distributed.run', f'--nproc_per_node={nproc}'] if nproc > 1 else []), *arguments])
    stopped = []

    def stop(number, _):
        stopped.append(number)
        if number == signal.SIGTERM:
            process.terminate()
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    status = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if stopped:
        raise SystemExit('stopped; the same command goes on')
    return status


def save(data, path):
    with jsonl.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
        json.dump(data, f, ensure_ascii=False, indent=1)


def row_of(setting, folder):
    """What the table says of a setting: its results.json, with the speed and time of its training."""
    with open(os.path.join(folder, 'results.json'), encoding='utf-8') as f:
        results = json.load(f)
    model = next(model for model in results['models'].values() if not model['reference'])
    log = list(jsonl.read(os.path.join(folder, 'log.jsonl')))
    return {'setting': setting, **(model['checkpoint'] or {}), **(model['loss'] or {}), 'text': model['text'], 'grades': model['grades'],
            'train_tokens': log[-1]['tokens'], 'train_seconds': log[-1]['seconds']}


def write_table(rows):
    """Write results.json and results.md -> the table"""
    grades = list(dict.fromkeys((judge, criterion) for row in rows for judge, scores in row['grades'].items() for criterion in scores))
    judges = {judge for judge, _ in grades}
    head = ['width', 'layers', 'parameters', 'val loss', 'perplexity', 'bits/byte', 'ended', 'minutes']
    head += [criterion + f' ({judge})' * (len(judges) > 1) for judge, criterion in grades]
    table = report.table('Settings', head, [[
        report.shown(row.get('n_embd')), report.shown(row.get('n_layer')), report.size_of(row.get('n_params')),
        *(f'{row[key]:.3f}' if key in row else '' for key in ('val_loss', 'perplexity', 'bits_per_byte')), report.shown(row['text'].get('ended'), 'ended'),
        f'{row["train_seconds"] / 60:.1f}', *(report.shown(row['grades'].get(judge, {}).get(criterion)) for judge, criterion in grades)] for row in rows])
    save({'rows': rows, 'config': config}, os.path.join(out_dir, 'results.json'))
    with jsonl.replacing(os.path.join(out_dir, 'results.md')) as temporary, open(temporary, 'w', encoding='utf-8') as f:
        f.write(report.as_markdown([table]))
    return table


def draw(rows):
    """Loss, and the mean of each grade, against parameters; a line a depth, since depth and width count differently."""
    from matplotlib.figure import Figure
    grades = list(dict.fromkeys((judge, criterion) for row in rows for judge, scores in row['grades'].items() for criterion in scores))
    figure = Figure(figsize=(6 + 6 * bool(grades), 4.5))
    axes = figure.subplots(1, 1 + bool(grades), squeeze=False)
    losses = [row for row in rows if row.get('val_loss') and row.get('n_params')]
    for n_layer in sorted({row['n_layer'] for row in losses}):
        points = sorted((row['n_params'], row['val_loss']) for row in losses if row['n_layer'] == n_layer)
        axes[0][0].plot(*zip(*points), 'o-', label=f'{n_layer} layers')
    axes[0][0].set(xscale='log', xlabel='parameters', ylabel='validation loss (nats a token)')
    for judge, criterion in grades:
        graded = [row for row in rows if row['grades'].get(judge, {}).get(criterion) and row.get('n_params')]
        if graded:
            sizes, found = [row['n_params'] for row in graded], [row['grades'][judge][criterion] for row in graded]
            axes[0][1].errorbar(sizes, [grade['mean'] for grade in found], report.errors(found), fmt='o-', capsize=3,
                                label=criterion + (f' ({judge})' if len({judge for judge, _ in grades}) > 1 else ''))
            axes[0][1].set(xscale='log', xlabel='parameters', ylabel='grade, with 95 % intervals')
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with jsonl.replacing(os.path.join(out_dir, 'results.png')) as temporary:
        figure.savefig(temporary, dpi=120)


# -----------------------------------------------------------------------------
if not settings or not all(isinstance(setting, dict) for setting in settings):
    fail('settings is a list of dicts, each with the keys of train.py that make a model; config/sweep_hindi.py has one')
if nproc_per_node < 1:
    fail('nproc_per_node is a number from 1')
if {'out_dir', 'init_from'} & {key for setting in [*settings, train_options] for key in setting}:
    fail('out_dir and init_from are chosen here, setting by setting')
names = ['_'.join(f'{key}={value}' for key, value in setting.items()).replace('/', '-') or 'default' for setting in settings]
if len(set(names)) < len(names):
    fail('two settings are the same')
rows, failed = [], []
for name, setting in zip(names, settings):
    folder = os.path.join(out_dir, name)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        fail(f'{folder}: {e.strerror}')
    done_path = os.path.join(folder, 'done.json')
    done = {}  # stage: the command that it was done with, and for 'begun' the training that was begun last
    if os.path.exists(done_path):
        try:
            with open(done_path, encoding='utf-8') as f:
                done = dict(json.load(f))
        except (OSError, ValueError, TypeError) as e:
            fail(f'{done_path}, which says what is done, could not be read ({e}); without it the setting is begun anew')
    commands = stages(setting, folder)
    for number, (stage, arguments) in enumerate(commands.items()):
        if done.get(stage) == arguments:
            continue
        resume = stage == 'train' and os.path.exists(os.path.join(folder, 'ckpt.pt'))
        if resume and done.get('begun') != arguments:
            failed.append(f'{name} ({folder} holds a training with other options; remove it, or name another out_dir)')
            break
        done = {earlier: done[earlier] for earlier in list(commands)[:number]} | {'begun': commands['train']}  # what follows is to be done again
        save(done, done_path)
        print(f'\n--- {name}: {" ".join(arguments)}', flush=True)
        status = run(arguments + ['--init_from=resume'] * resume, nproc_per_node if stage == 'train' else 1)
        if status:
            failed.append(f'{name} ({stage}, status {status})')
            break
        done[stage] = arguments
        save(done, done_path)
    else:
        rows.append(row_of(setting, folder))
        rows.sort(key=lambda row: row.get('n_params', 0))
        table = write_table(rows)
        draw(rows)
if rows:
    lines = [table['head'], *table['rows']]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print('\n' + '\n'.join('  '.join(text.rjust(width) for text, width in zip(line, widths)) for line in lines))
    print(f'\n{len(rows)} of {len(settings)} settings are in {out_dir}/results.json, .md and .png')
if failed:
    fail('not done: ' + '; '.join(failed) + '. The same command tries again')
