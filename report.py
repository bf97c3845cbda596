"""
Results as tables, Markdown, a bar chart and an HTML page. The docstring of evaluate.py describes the results.

    tables = report.tables_of(results)
    text = report.as_markdown(tables)
    report.draw_grades(results, 'results.png')
    report.write_page(tables, 'results.png', stories_of, 'report.html')   # needs report_template.html beside this file

A table is a dict: title, head (the names of its columns), rows (lists of texts), note (a text below it).
"""

import base64
import json
import math
import os

from files import check, quote_markdown, replacing, write_text

# measures that are shown in percent, by the beginning of their names
FRACTIONS = ('ended', 'opening_kept', 'right_script', 'repeated', 'copied_', 'distinct', 'self_rouge2',
             'nearest_rouge2', 'retention', 'same', 'exam', 'unknown', 'renyi_efficiency', 'used',
             'whole_words', 'words_used')

# -----------------------------------------------------------------------------
# numbers as text


def format_value(value, key=''):
    """A table cell for an int, a float, an estimate ({'mean', 'low', 'high', …}) or None. key: what it measures."""
    if value is None:
        return ''
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        value = {'mean': value, 'low': None}
    factor, digits, unit = 1, 2, ''
    if key.startswith(FRACTIONS):
        factor, digits, unit = 100, 1, ' %'
    text = f'{factor * value["mean"]:.{digits}f}{unit}'
    if value['low'] is not None:
        text += f' ({factor * value["low"]:.{digits}f}–{factor * value["high"]:.{digits}f})'
    return text


def format_size(n):
    """2634816 -> '2.63 M'"""
    if n >= 1e7:
        return f'{n / 1e6:.1f} M'
    if n >= 1e5:
        return f'{n / 1e6:.2f} M'
    return f'{n / 1e3:.0f} k'


def error_bars(estimates):
    """Matplotlib's yerr: how far each interval reaches below and above its mean -> two arrays, nan without interval"""
    import numpy as np
    rows = [(estimate['mean'], estimate['low'], estimate['high']) for estimate in estimates]
    mean, low, high = np.array(rows, float).reshape(-1, 3).T
    return mean - low, high - mean


# -----------------------------------------------------------------------------
# tables


def table(title, head, rows, note=''):
    """A table without its empty columns; the first one always stays."""
    first, *columns = zip(head, *rows)
    columns = [column for column in columns if any(column[1:])]
    head, *rows = zip(first, *columns)
    return {'title': title, 'head': head, 'rows': rows, 'note': note}


def tables_of(results):
    """The tables of results.json; those without rows are left out."""
    tables = []
    for judge in judges_of(results):
        tables += [grades_table(results, judge), retention_table(results, judge)]
    for make in (comparisons_table, agreement_table, loss_table):
        tables.append(make(results))
    tables += exam_tables(results)
    tables.append(text_table(results))
    return [table for table in tables if table['rows']]


def judges_of(results):
    """The names of all judges."""
    judges = {}
    for row in results['models'].values():
        judges |= row['grades']
    return list(judges)


MODEL_HEAD = ['model', 'width', 'layers', 'size', 'eval loss']


def model_cells(name, row):
    """The cells of a model in the columns of MODEL_HEAD."""
    cells = [display_name(name, row), '', '', '', '']
    if row['checkpoint']:
        size = row['checkpoint']
        cells[1:4] = str(size['n_embd']), str(size['n_layer']), format_size(size['n_params'])
    if row['loss']:
        cells[4] = f'{row["loss"]["val_loss"]:.3f}'
    return cells


def display_name(name, row):
    return f'{name} (reference)' if row['reference'] else name


def grades_table(results, judge):
    rows = []
    for name, row in results['models'].items():
        grades = row['grades'].get(judge, {})
        n_graded = max((grade['n'] for grade in grades.values()), default=0)
        stories = str(n_graded)
        if n_graded < row['stories']:
            stories += f' of {row["stories"]}'
        cells = [format_value(grades.get(criterion)) for criterion in results['criteria']]
        rows.append([*model_cells(name, row), stories, *cells])
    return table(f'Grades by {judge}', [*MODEL_HEAD, 'stories', *results['criteria']], rows,
                 'Mean and 95 % interval, by resampling prompts.')


def retention_table(results, judge):
    rows = []
    for name, row in results['models'].items():
        retentions = [grade['retention'] for grade in row['grades'].get(judge, {}).values()]
        if any(retentions):
            rows.append([name, *(format_value(retention, 'retention') for retention in retentions)])
    return table(f'Retention by {judge}', ['model', *results['criteria']], rows,
                 'The mean grade, divided by the mean grade of the reference stories.')


def comparisons_table(results):
    rows = []
    for row in results['comparisons']:
        models = f'{row["a"]} − {row["b"]}'
        difference = format_value(row | {'mean': row['difference']})
        p = f'{row["p"]:.4f}'
        p_holm = f'{row["p_holm"]:.4f}'
        rows.append([row['judge'], row['criterion'], models, difference, p, p_holm, str(row['prompts'])])
    return table('Models compared, paired by prompt',
                 ['judge', 'criterion', 'models', 'difference', 'p', 'p (Holm)', 'prompts'], rows,
                 'Permutation test with random signs; Holm’s correction over all rows of a judge.')


def agreement_table(results):
    rows = []
    for judge, criteria in ({'different judges': results['agreement']} | results['consistency']).items():
        for criterion, row in criteria.items():
            alpha = 'all equal'
            if row['alpha'] is not None:
                alpha = format_value(row | {'mean': row['alpha']})
            same = format_value(row['same'], 'same')
            difference = format_value(row['mean_difference'])
            rows.append([judge, criterion, alpha, same, difference, str(row['n'])])
    return table('Agreement between judges, and of each judge with itself',
                 ['judge', 'criterion', 'Krippendorff’s α', 'same grade', 'mean difference', 'stories'], rows,
                 'Of stories that were graded more than once.')


def loss_table(results):
    rows = []
    for name, row in results['models'].items():
        loss = row['loss']
        if loss:
            perplexity = f'{loss["perplexity"]:.3f}'
            bits_per_byte = '–'
            if 'bits_per_byte' in loss:
                bits_per_byte = f'{loss["bits_per_byte"]:.3f}'
            tokens = f'{loss["tokens"]:,} of {loss["dataset"]}'
            rows.append([*model_cells(name, row), perplexity, bits_per_byte, tokens])
    return table('Loss', [*MODEL_HEAD, 'perplexity', 'bits per byte', 'tokens'], rows,
                 'Bits per byte: – if the tokenizer does not know parts of the text.')


def exam_tables(results):
    """A table for each language: a row for each phenomenon, a column for each model."""
    exams = results.get('exam', {})
    languages = {}
    for by_language in exams.values():
        languages |= by_language
    tables = []
    for language, phenomena in languages.items():
        rows = []
        for phenomenon in phenomena:
            cells = [format_value(by_language[language][phenomenon], 'exam') for by_language in exams.values()]
            n = str(phenomena[phenomenon]['n'])
            rows.append([phenomenon, n, *cells])
        tables.append(table(f'Exam: {language}', ['phenomenon', 'pairs', *exams], rows,
                            'The fraction of pairs whose right sentence is more probable; chance: 50 %.'))
    return tables


TEXT_NOTE = (
    'Without the openings. ended: with the end-of-story token; repeated_4: 4-grams that the story contains earlier; '
    'words_used: asked words that the story uses; '
    'copied_n: n-grams that appear in training stories; copied_whole: stories that do as a whole; '
    'copied_sentences: sentences that do (compare with unseen stories as references); '
    'longest_copied: the most words in a row from one training story; nearest_rouge2: word pairs that the nearest '
    'training story contains; distinct_n: different n-grams among all n-grams of a model; self_rouge2: similarity of '
    'two stories of a model.')


def text_table(results):
    """A row for each measure of the texts and a column for each model."""
    models = results['models']
    keys = {}
    for row in models.values():
        keys |= row['text']
    rows = []
    for key in keys:
        cells = [format_value(row['text'].get(key), key) for row in models.values()]
        if any(cells):
            rows.append([key, *cells])
    head = ['measure', *(display_name(name, row) for name, row in models.items())]
    return table('Texts', head, rows, TEXT_NOTE)


def as_markdown(tables):
    """Tables as a page of Markdown."""
    text = '# Results\n'
    for table in tables:
        head = table['head']
        text += f'\n## {quote_markdown(table["title"])}\n\n'
        text += markdown_row(head) + '|' + ' --- |' * len(head) + '\n'
        text += ''.join(map(markdown_row, table['rows']))
        if table['note']:
            text += f'\n{table["note"]}\n'
    return text


def markdown_row(cells):
    return f'| {" | ".join(map(quote_markdown, cells))} |\n'


# -----------------------------------------------------------------------------
# the bar chart


def draw_grades(results, path):
    """Draw grades as bars with intervals: a panel for each judge, a group for each criterion, a bar for each model."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    judges = judges_of(results)
    criteria = results['criteria']
    models = {name: row for name, row in results['models'].items() if row['grades']}
    colors = colormaps['tab10' if len(models) <= 10 else 'tab20']
    n_bars = len(criteria) * len(models)
    figure = Figure(figsize=(min(24, 4 + 0.35 * n_bars), 1 + 3 * len(judges)), dpi=120, layout='constrained')
    panels = figure.subplots(len(judges), squeeze=False)[:, 0]
    for panel, judge in zip(panels, judges):
        for i, (name, row) in enumerate(models.items()):
            grades = row['grades'].get(judge, {}).values()  # by all criteria, or none
            width = 0.8 / len(models)
            offset = (i + 0.5) * width - 0.4  # of the bar from the middle of its group
            positions = [k + offset for k in range(len(grades))]
            means = [grade['mean'] for grade in grades]
            opacity = 0.5 if row['reference'] else 0.9
            panel.bar(positions, means, 0.9 * width, yerr=error_bars(grades), capsize=2,
                      color=colors(i), alpha=opacity, label=display_name(name, row))
        panel.set_xticks(range(len(criteria)), list(criteria))
        highest = max(high for _, high in criteria.values())
        panel.set(title=f'grades by {judge}', ylim=(0, highest))
        panel.grid(axis='y', alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=min(5, len(models)))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def draw_tokenizers(rows, path):
    """Draw a panel of bars for each measure of tokenizers. rows: [{'tokenizer': name, measure: number}, …]"""
    from matplotlib.figure import Figure
    names = [row['tokenizer'] for row in rows]
    measures = [key for key in rows[0] if key != 'tokenizer']
    figure = Figure(figsize=(14, 2 + 0.9 * len(rows)), dpi=120, layout='constrained')
    panels = figure.subplots(3, 3, sharey=True).ravel()
    for panel, measure in zip(panels, measures):
        panel.barh(names, [row[measure] for row in rows])
        panel.set_title(measure.replace('_', ' '), fontsize=9)
        panel.grid(axis='x', alpha=0.3)
    panels[0].invert_yaxis()  # the first tokenizer is at the top
    with replacing(path) as temporary:
        figure.savefig(temporary)


# -----------------------------------------------------------------------------
# the page


def write_page(tables, picture, stories_of, path):
    """Write one HTML file that needs no other file: the template with tables, picture and stories in it.

    picture: path of a PNG file, or '' for none. stories_of: {name of a model: its stories}. The data are JSON without
    any <, and the script of the page shows them as text, so markup in a story has no effect.
    """
    template_path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report_template.html')
    check(os.path.exists(template_path), 'report_template.html is missing: copy it beside report.py')
    with open(template_path, encoding='utf-8') as f:
        before, _, after = f.read().partition('{{data}}')
    rows = []
    for name, stories in stories_of.items():
        for story in stories:
            row = {key: story.get(key, '') for key in ('id', 'opening', 'continuation', 'grades', 'notes', 'nearest')}
            row['measures'] = {key: value for key, value in story['measures'].items() if not math.isnan(value)}
            rows.append(row | {'model': name})
    if picture:
        with open(picture, 'rb') as f:
            encoded = base64.b64encode(f.read()).decode()
        picture = f'data:image/png;base64,{encoded}'
    data = {'tables': tables, 'stories': rows, 'models': list(stories_of), 'picture': picture}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace('<', '\\u003c')
    write_text(path, before + text + after)
