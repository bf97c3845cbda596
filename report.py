"""
What a person sees of results: a training's loss as a curve; tables, as Markdown and on a page, and bars.

    tables = report.tables_of(results)  # as in results.json; evaluate.py says what stands in it
    print(report.as_markdown(tables))
    report.draw_grades(results, 'results.png')
    report.write_page(tables, 'results.png', sets, template, 'report.html')
"""

import base64
import json
import math
import re

import jsonl

SHARES = ('ended', 'opening_kept', 'right_script', 'repeated', 'copied_', 'distinct', 'self_rouge2', 'nearest_rouge2', 'retention', 'same')


def shown(value, key=''):
    """An estimate, a number or None as the cell of a table; shares in percent."""
    if value is None or isinstance(value, int):
        return '' if value is None else f'{value}'
    share = key.startswith(SHARES)

    def spell(x):
        return f'{100 * x:.1f}' if share else f'{x:.2f}'
    if isinstance(value, float):
        return spell(value) + ' %' * share
    ends = f' ({spell(value["low"])}–{spell(value["high"])})' if value['low'] is not None else ''
    return spell(value['mean']) + ' %' * share + ends


def size_of(n):
    """2634816 -> '2.63 M'"""
    return '' if n is None else f'{n / 1e6:.1f} M' if n >= 1e7 else f'{n / 1e6:.2f} M' if n >= 1e5 else f'{n / 1e3:.0f} k'


def errors(estimates):
    """How far the intervals of estimates reach below and above their means, as Matplotlib's error bars want it: (2, estimates)"""
    return [[abs(each['mean'] - (each['mean'] if each[end] is None else each[end])) for each in estimates] for end in ('low', 'high')]


def table(title, head, rows, note=''):
    """A table for people, all cells text, without the columns in which nothing stands."""
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    return {'title': title, 'head': [head[i] for i in keep], 'rows': [[row[i] for i in keep] for row in rows], 'note': note}


def judges_in(results):
    """The names of those who graded."""
    return list(dict.fromkeys(judge for row in results['models'].values() for judge in row['grades']))


def tables_of(results):
    """The results as tables for people, the paper's first."""
    models, criteria, tables = results['models'], results['criteria'], []
    called = {name: name + ' (reference)' * row['reference'] for name, row in models.items()}

    def about(name):
        row = models[name]
        at, loss = row['checkpoint'] or {}, row['loss'] or {}
        return [called[name], shown(at.get('n_embd')), shown(at.get('n_layer')), size_of(at.get('n_params')), f'{loss["val_loss"]:.3f}' if loss else '']

    for judge in judges_in(results):
        rows = []
        for name, row in models.items():
            grades = row['grades'].get(judge, {})
            n = max((grade['n'] for grade in grades.values()), default=0)
            n = f'{n}' if n == row['stories'] else f'{n} of {row["stories"]}'
            rows.append([*about(name), n, *(shown(grades.get(criterion)) for criterion in criteria)])
        tables.append(table(f'Grades by {judge}', ['model', 'width', 'layers', 'size', 'eval loss', 'stories', *criteria], rows,
                            'Mean and 95 % interval, from resampling prompts.'))
        rows = [[name, *(shown(grade['retention'], 'retention') for grade in row['grades'][judge].values())]
                for name, row in models.items() if any(grade['retention'] for grade in row['grades'].get(judge, {}).values())]
        tables += [table(f'Retention by {judge}: the mean over that of the reference stories', ['model', *criteria], rows)] * bool(rows)
    rows = [[c['judge'], c['criterion'], f'{c["a"]} − {c["b"]}', shown(c | {'mean': c['difference']}), f'{c["p"]:.4f}', f'{c["p_holm"]:.4f}', f'{c["prompts"]}']
            for c in results['comparisons']]
    tables += [table('Models compared, paired by prompt', ['judge', 'criterion', 'models', 'difference', 'p', 'p (Holm)', 'prompts'], rows,
                     'Permutation test with random signs; Holm’s correction over all rows of a judge.')] * bool(rows)

    def alpha(found):
        return 'all alike' if found['alpha'] is None else shown(found | {'mean': found['alpha']})
    rows = [[criterion, alpha(found), f'{found["n"]}'] for criterion, found in results['agreement'].items()]
    tables += [table('Judges among one another', ['criterion', 'Krippendorff’s α', 'stories'], rows)] * bool(rows)
    rows = [[judge, criterion, alpha(found), shown(found['same'], 'same'), shown(found['mean_difference']), f'{found["n"]}']
            for judge, by_criterion in results['consistency'].items() for criterion, found in by_criterion.items()]
    tables += [table('Judges with themselves', ['judge', 'criterion', 'Krippendorff’s α', 'same grade', 'mean difference', 'stories'], rows,
                     'Of stories that were graded more than once.')] * bool(rows)

    rows = [[*about(name), *(f'{row["loss"][key]:.3f}' for key in ('perplexity', 'bits_per_byte')), f'{row["loss"]["tokens"]:,} of {row["loss"]["dataset"]}']
            for name, row in models.items() if row['loss']]
    tables += [table('Loss', ['model', 'width', 'layers', 'size', 'eval loss', 'perplexity', 'bits a byte', 'tokens'], rows)] * bool(rows)
    copying = re.compile('copied|nearest')
    keys = dict.fromkeys(key for row in models.values() for key, value in row['text'].items() if value is not None)
    for title, chosen, note in (
            ('Texts', [key for key in keys if not copying.search(key)],
             'Without the openings. ended: by the model itself; repeated_4: 4-grams that the same story had before; distinct_n: different n-grams among '
             'all of a model’s; self_rouge2: how alike two of its stories are.'),
            ('Copies of training stories', [key for key in keys if copying.search(key)],
             'Without the openings. longest_copied: most words in a row that stand in a training story; copied_n: runs of n words that do; '
             'copied_whole: all that was written does; nearest_rouge2: word pairs that the nearest training story has.')):
        rows = [[key, *(shown(row['text'].get(key), key) for row in models.values())] for key in chosen]
        tables += [table(title, ['measure', *called.values()], rows, note)] * bool(rows)
    return tables


def as_markdown(tables):
    """Tables as a page of Markdown, in which nothing that a name holds is taken for Markdown."""
    def escaped(text):
        return re.sub(r'([|\\`*<\[])', r'\\\1', ' '.join(text.split()))

    def line(cells):
        return '| ' + ' | '.join(map(escaped, cells)) + ' |'

    def section(table):
        lines = ['## ' + escaped(table['title']), '', line(table['head']), '|' + ' --- |' * len(table['head']), *map(line, table['rows']), '', table['note']]
        return '\n'.join(lines).strip()
    return '# Results\n\n' + '\n\n'.join(map(section, tables)) + '\n'


def draw_grades(results, path):
    """Grouped bars with intervals: a panel a judge and scale, a group a criterion, a bar a model."""
    from matplotlib import colormaps, font_manager
    from matplotlib.figure import Figure
    letters = font_manager.get_font(font_manager.findfont('DejaVu Sans')).get_charmap()

    def label(text, number):  # a script that the font lacks would come out as boxes
        return text if all(ord(char) in letters for char in text) else f'({number})'
    models = {name: row for name, row in results['models'].items() if row['grades']}
    criteria = {name: tuple(ends) for name, ends in results['criteria'].items()}
    panels = [(judge, ends, [name for name in criteria if criteria[name] == ends]) for judge in judges_in(results) for ends in dict.fromkeys(criteria.values())]
    widest = max(len(names) for _, _, names in panels) * len(models)
    colours = colormaps['tab10' if len(models) <= 10 else 'tab20']
    figure = Figure(figsize=(min(24, 4 + 0.35 * widest), 1 + 3 * len(panels)), dpi=120, layout='constrained')
    axes = figure.subplots(len(panels), squeeze=False)
    for axis, (judge, (low, high), names) in zip(axes[:, 0], panels):
        for i, (name, row) in enumerate(models.items()):
            bars = [(k + 0.8 * ((i + 0.5) / len(models) - 0.5), row['grades'].get(judge, {}).get(criterion)) for k, criterion in enumerate(names)]
            bars = [(at, grade) for at, grade in bars if grade]
            axis.bar([at for at, _ in bars], [grade['mean'] for _, grade in bars], 0.74 / len(models), yerr=errors([grade for _, grade in bars]), capsize=2,
                     error_kw={'elinewidth': 1}, color=colours(i), alpha=0.5 if row['reference'] else 0.9,
                     label=label(name, i + 1) + ' (reference)' * row['reference'])
        axis.set_xticks(range(len(names)), [label(name, k + 1).replace('_', ' ') for k, name in enumerate(names)])
        axis.set(ylim=(0, high * 1.02), title=f'grades by {label(judge, "judge")}, {low:g} to {high:g}')
        axis.grid(axis='y', alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=min(5, len(models)))
    with jsonl.replacing(path) as temporary:
        figure.savefig(temporary)


def draw_loss(log, title, path):
    """The curve of a training: log, the rows of its log.jsonl."""
    from matplotlib.figure import Figure
    log = list(log)
    figure = Figure(figsize=(7, 4), dpi=120)
    axes = figure.subplots()
    for key, style, label in (('loss', {'alpha': 0.5, 'linewidth': 1}, 'training'), ('val_loss', {'marker': 'o', 'markersize': 4}, 'validation')):
        points = [(row['tokens'] / 1e6, row[key]) for row in log if key in row]
        axes.plot(*zip(*points), label=f'{label}, {points[-1][1]:.3f}', **style) if points else None
    axes.set(xlabel='million tokens', ylabel='loss (nats a token)', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with jsonl.replacing(path) as temporary:
        figure.savefig(temporary)


def write_page(tables, picture, sets, template, path):
    """One file to open: a template with {{data}} in it, filled with the tables, the picture ('' for none) and the stories of each model.

    They are JSON in which no < is left, and shown as text, never as HTML.
    """
    rows = [{key: story.get(key, '') for key in ('id', 'opening', 'continuation', 'grades', 'notes', 'nearest')}
            | {'model': name, 'measures': {key: value for key, value in story['measures'].items() if not math.isnan(value)}}
            for name, stories in sets.items() for story in stories]
    if picture:
        with open(picture, 'rb') as f:
            picture = 'data:image/png;base64,' + base64.b64encode(f.read()).decode()
    data = json.dumps({'tables': tables, 'stories': rows, 'models': list(sets), 'picture': picture}, ensure_ascii=False, allow_nan=False)
    page, _, rest = template.partition('{{data}}')
    with jsonl.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', errors='replace') as f:
        f.write(page + data.replace('<', '\\u003c') + rest)
