"""
Trains, samples and evaluates a list of settings, one after the other, and writes one table and one plot.

    python sweep.py config/sweep_hindi.py
    python sweep.py config/sweep_hindi.py --nproc_per_node=4
    python sweep.py config/sweep_hindi.py --evaluate_options="{'provider': 'mistral', 'max_cost': 5.0}"
    python sweep.py config/sweep_regional.py    # tokenizers and sizes

Each setting has its own folder in out_dir with the files of train.py, sample.py and evaluate.py. The table and the plot
are results.json, results.md and results.png in out_dir. They are updated after each setting. A setting with the key
`tokenizer` is trained on data that prepare.py makes with this tokenizer, once for all its settings.

If the sweep stops, the same command continues it. done.json in the folder of a setting records the finished commands.
They run again only if their options change; the content of config files is not compared. A training with other options
is never overwritten. If a setting fails, the sweep continues with the next one and lists the failure at the end.
"""

import json
import os
import re
import subprocess
import sys

# -----------------------------------------------------------------------------
out_dir = 'out/sweep'  # each setting has a folder in here, beside the table
train_config = 'config/train_hindi.py'  # config file of train.py for all settings
settings = []  # a list of dicts with keys of train.py, one dict per model; `tokenizer` is a key of prepare.py
prepare_options = {}  # keys of prepare.py for settings with a tokenizer
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


def run_commands(commands, folder):
    """Run the commands, {stage: command line}, that are not done -> what failed, or ''."""
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
    if resume and done.get('begun') != commands.get('train'):
        return f'{folder} has a training with other options; remove it, or use another out_dir'
    finished = {'begun': commands.get('train')}
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


def run_setting(setting, name):
    """Prepare the data, train, sample and evaluate -> what failed, or ''."""
    failure = ''
    if 'tokenizer' in setting:
        setting = dict(setting)
        options = prepare_options | {'tokenizer': setting.pop('tokenizer')}
        options['dataset'] = file_name(f'{options.get("dataset", "sweep")}_{options["tokenizer"]}')
        setting['dataset'] = options['dataset']
        failure = run_commands({'prepare': command_line('prepare.py', '', options)}, f'{out_dir}/{options["dataset"]}')
    folder = f'{out_dir}/{name}'
    return failure or run_commands(commands_for(setting, folder), folder)


def file_name(text):
    return re.sub(r'[/\\:]', '-', text)


# -----------------------------------------------------------------------------
# results


def read_results(setting, folder):
    """A row of results.json: the results of evaluate.py for a setting, with the tokens and seconds of its training."""
    with open(f'{folder}/results.json', encoding='utf-8') as f:
        results = json.load(f)
    name, model = next((name, model) for name, model in results['models'].items() if not model['reference'])
    *_, last = read_log(f'{folder}/log.jsonl')
    row = {'setting': setting, 'text': model['text'], 'grades': {}, 'exam': {}}
    for judge, scores in model['grades'].items():
        for criterion, estimate in scores.items():
            row['grades'][f'{criterion} ({judge})'] = estimate
    for language, scores in results['exam'].get(name, {}).items():
        row['exam'][f'exam ({language})'] = scores['all']
    row |= model['checkpoint'] | (model['loss'] or {})  # n_layer, n_embd, n_params; val_loss, perplexity, bits_per_byte
    return row | {'train_tokens': last['tokens'], 'train_seconds': last['seconds']}


def format_row(row):
    """{column: text} of a row."""
    cells = {'width': str(row['n_embd']), 'layers': str(row['n_layer'])}
    cells |= {key: str(value) for key, value in row['setting'].items() if key not in ('n_embd', 'n_layer')}
    cells['parameters'] = f'{row["n_params"]:,}'
    for key in ('val_loss', 'perplexity', 'bits_per_byte'):
        cells[key] = f'{row[key]:.3f}' if key in row else ''
    cells['ended'] = report.format_value(row['text']['ended'], 'ended')
    cells['minutes'] = f'{row["train_seconds"] / 60:.1f}'
    for name, estimate in (row['exam'] | row['grades']).items():
        cells[name] = report.format_value(estimate, name)
    return cells


def make_table(rows):
    return report.as_markdown([report.table('Settings', [format_row(row) for row in rows])])


def draw(rows, path):
    """Plot the loss, the grades and the exam's score against the number of parameters.

    Losses have a line for each depth. Each tokenizer has its own lines, and then the loss is per byte.
    """
    from matplotlib.figure import Figure
    measure, unit = 'val_loss', 'validation loss (nats per token)'
    if len({row['setting'].get('tokenizer') for row in rows}) > 1:
        measure, unit = 'bits_per_byte', 'validation loss (bits per byte)'
    plots = {unit: {}, 'grade': {}, 'exam: fraction of right choices': {}}  # {title: {line: [(parameters, estimate)]}}
    for row in rows:
        tokenizer = row['setting'].get('tokenizer', '')
        loss = {}
        if measure in row:
            loss[f'{row["n_layer"]} layers'] = {'mean': row[measure], 'low': None, 'high': None}
        for lines, values in zip(plots.values(), (loss, row['grades'], row['exam'])):
            for name, estimate in values.items():
                lines.setdefault(f'{name} {tokenizer}', []).append((row['n_params'], estimate))
    plots = {title: lines for title, lines in plots.items() if lines}
    figure = Figure(figsize=(6 * max(1, len(plots)), 4.5), layout='tight')
    for i, (title, lines) in enumerate(plots.items()):
        axis = figure.add_subplot(1, len(plots), i + 1)
        for name, points in sorted(lines.items()):
            sizes, estimates = zip(*points)
            means = [estimate['mean'] for estimate in estimates]
            axis.errorbar(sizes, means, report.error_bars(estimates), fmt='o-', capsize=3, label=name)
        axis.set(xscale='log', xlabel='parameters', ylabel=title)
        axis.grid(alpha=0.3)
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
    name = file_name('_'.join(f'{key}={value}' for key, value in setting.items())) or 'default'
    failure = run_setting(setting, name)
    if failure:
        failed.append(f'{name} ({failure})')
        continue
    rows.append(read_results(setting, f'{out_dir}/{name}'))
    rows.sort(key=lambda row: row['n_params'])
    write_json(f'{out_dir}/results.json', {'rows': rows, 'config': hide_folders(config)})
    write_text(f'{out_dir}/results.md', make_table(rows))
    draw(rows, f'{out_dir}/results.png')
if rows:
    print(make_table(rows))
    print(f'{len(rows)} of {len(settings)} settings are in {out_dir}/results.json, .md and .png')
if failed:
    fail('not done: ' + '; '.join(failed) + '. The same command tries again')
