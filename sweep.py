"""
Trains, samples and evaluates a list of settings, one after the other, and writes one table and one plot.

    python sweep.py config/sweep_hindi.py
    python sweep.py config/sweep_hindi.py --nproc_per_node=4
    python sweep.py config/sweep_hindi.py --evaluate_options="{'provider': 'mistral', 'max_cost': 5.0}"

Each setting has its own folder in out_dir with the files of train.py, sample.py and evaluate.py. The table and the plot
are results.json, results.md and results.png in out_dir. They are updated after each setting.

If the sweep stops, the same command continues it. done.json in the folder of a setting records the finished commands.
They run again only if their options change; the content of config files is not compared. A training with other options
is never overwritten. If a setting fails, the sweep continues with the next one and lists the failure at the end.
"""

import collections
import json
import os
import subprocess
import sys

# -----------------------------------------------------------------------------
out_dir = 'out/sweep'  # each setting has a folder in here, beside the table
train_config = 'config/train_hindi.py'  # config file of train.py for all settings
settings = []  # a list of dicts with keys of train.py, one dict per model; see config/sweep_hindi.py
train_options = {}  # more keys of train.py for all settings
start = 'FILE:data/hindi/prompts.txt'  # prompts; see sample.py
num_samples = 1  # stories per prompt
sample_options = {}  # more keys of sample.py
evaluate_config = 'config/evaluate_stories.py'  # rubric
evaluate_options = {}  # more keys of evaluate.py, such as {'provider': 'mistral', 'max_cost': 5.0}
nproc_per_node = 1  # GPUs per training, used by torchrun
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'sweep.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import report
from files import check, check_writable, fail, hide_folders, lock, read_log, replacing, write_json, write_text

# -----------------------------------------------------------------------------
# commands


def command_line(script, config_file, options):
    arguments = [script, config_file] if config_file else [script]
    for key, value in options.items():
        arguments.append(f'--{key}={value}')
    return arguments


def commands_for(setting, folder):
    """{stage: command line} in the order in which they run."""
    samples = f'{folder}/samples.jsonl'
    for_train = train_options | setting | {'out_dir': folder}
    for_sample = {'out_dir': folder, 'start': start, 'num_samples': num_samples, 'out': samples} | sample_options
    for_evaluate = {'samples': samples, 'out_dir': folder} | evaluate_options
    return {
        'train': command_line('train.py', train_config, for_train),
        'sample': command_line('sample.py', '', for_sample),
        'evaluate': command_line('evaluate.py', evaluate_config, for_evaluate),
    }


def run(script, options):
    """Run a script to its end and return its exit status. Ctrl-C and SIGTERM stop the script first, then the sweep."""
    launcher = [sys.executable]
    if script == 'train.py' and nproc_per_node > 1:
        launcher += ['-m', 'torch.distributed.run', f'--nproc_per_node={nproc_per_node}']
    process = subprocess.Popen([*launcher, f'{here}/{script}', *options])
    try:
        return process.wait()
    except KeyboardInterrupt:
        pass  # the terminal sends Ctrl-C to the script too
    except SystemExit:  # configurator.py raises it at SIGTERM
        process.terminate()
    process.wait()
    fail('stopped; the same command continues')


def run_setting(setting, folder):
    """Run the commands of a setting that are not done -> what failed, or ''."""
    commands = commands_for(setting, folder)
    done_path = f'{folder}/done.json'
    check_writable(done_path, out_dir)
    done = {}  # stage: its finished command; 'begun': the last training command that was started
    if os.path.exists(done_path):
        try:
            with open(done_path, encoding='utf-8') as f:
                done = dict(json.load(f))
        except (ValueError, TypeError):
            return f'{done_path} is damaged; remove {folder}'
    resume = os.path.exists(f'{folder}/ckpt.pt')
    if resume and done.get('begun') != commands['train']:
        return f'{folder} has a training with other options; remove it, or use another out_dir'
    finished = {'begun': commands['train']}
    for stage, (script, *options) in commands.items():
        if done.get(stage) != commands[stage]:
            done = {}  # later stages must run again
            write_json(done_path, finished)
            print(f'\n--- {os.path.basename(folder)}:', *commands[stage], flush=True)
            if stage == 'train' and resume:
                options.append('--init_from=resume')
            status = run(script, options)
            if status:
                return f'{stage}, status {status}'
        finished[stage] = commands[stage]
    write_json(done_path, finished)
    return ''


# -----------------------------------------------------------------------------
# results


def read_results(setting, folder):
    """A row of results.json: the results of evaluate.py for a setting, with the tokens and seconds of its training."""
    with open(f'{folder}/results.json', encoding='utf-8') as f:
        models = json.load(f)['models']
    model = next(model for model in models.values() if not model['reference'])
    *_, last = read_log(f'{folder}/log.jsonl')
    row = {'setting': setting, 'text': model['text'], 'grades': model['grades']}
    row |= model['checkpoint'] | (model['loss'] or {})  # n_layer, n_embd, n_params; val_loss, perplexity, bits_per_byte
    return row | {'train_tokens': last['tokens'], 'train_seconds': last['seconds']}


def list_grades(row):
    """{'criterion (judge)': estimate} of a row."""
    grades = {}
    for judge, scores in row['grades'].items():
        for criterion, estimate in scores.items():
            grades[f'{criterion} ({judge})'] = estimate
    return grades


def format_row(row):
    """{column: text} of a row."""
    cells = {'width': str(row['n_embd']), 'layers': str(row['n_layer']), 'parameters': f'{row["n_params"]:,}'}
    for key in ('val_loss', 'perplexity', 'bits_per_byte'):
        cells[key] = f'{row[key]:.3f}' if key in row else ''
    cells['ended'] = report.format_value(row['text']['ended'], 'ended')
    cells['minutes'] = f'{row["train_seconds"] / 60:.1f}'
    for name, estimate in list_grades(row).items():
        cells[name] = report.format_value(estimate)
    return cells


def make_table(rows):
    return report.as_markdown([report.table('Settings', [format_row(row) for row in rows])])


def draw(rows, path):
    """Plot the loss, one line per depth, and the grades against the number of parameters."""
    from matplotlib.figure import Figure
    losses = collections.defaultdict(list)  # layers: [(parameters, loss), …]
    grades = collections.defaultdict(list)  # name: [(parameters, estimate), …]
    for row in rows:
        if 'val_loss' in row:
            losses[row['n_layer']].append((row['n_params'], row['val_loss']))
        for name, estimate in list_grades(row).items():
            grades[name].append((row['n_params'], estimate))
    figure = Figure(figsize=(12, 4.5), layout='tight')
    left, right = figure.subplots(1, 2)
    for n_layer, points in sorted(losses.items()):
        left.plot(*zip(*points), 'o-', label=f'{n_layer} layers')
    for name, points in grades.items():
        sizes, estimates = zip(*points)
        means = [estimate['mean'] for estimate in estimates]
        right.errorbar(sizes, means, report.error_bars(estimates), fmt='o-', capsize=3, label=name)
    left.set(ylabel='validation loss (nats per token)')
    right.set(ylabel='grade, with 95 % intervals')
    for axis in (left, right):
        axis.set(xscale='log', xlabel='parameters')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


# -----------------------------------------------------------------------------
# main

check(settings, 'settings is empty; config/sweep_hindi.py shows a list')
lock(f'{out_dir}/results.json')
rows = []
failed = []
for setting in settings:
    check('out_dir' not in setting, 'out_dir of a setting is chosen by the sweep')
    name = '_'.join(f'{key}={value}' for key, value in setting.items()).replace('/', '-') or 'default'
    folder = f'{out_dir}/{name}'
    failure = run_setting(setting, folder)
    if failure:
        failed.append(f'{name} ({failure})')
        continue
    rows.append(read_results(setting, folder))
    rows.sort(key=lambda row: row['n_params'])
    write_json(f'{out_dir}/results.json', {'rows': rows, 'config': hide_folders(config)})
    write_text(f'{out_dir}/results.md', make_table(rows))
    draw(rows, f'{out_dir}/results.png')
if rows:
    print(make_table(rows))
    print(f'{len(rows)} of {len(settings)} settings are in {out_dir}/results.json, .md and .png')
if failed:
    fail('not done: ' + '; '.join(failed) + '. The same command tries again')
