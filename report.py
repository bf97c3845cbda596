"""
Results as tables, Markdown, a bar chart and an HTML page. The docstring of evaluate.py describes the results.

    report.write_report(results, stories_of, checkpoints, out_dir)   # needs report_template.html beside this file
    text = report.as_markdown([report.table('Speed', [{'stage': 'train', 'tokens/s': '9,000'}])])
"""

import base64
import itertools
import json
import math
import os
import re
import time

from files import VERSION, check, quote_markdown, replacing, write_text

# measures that are shown in percent, by the beginning of their names
FRACTIONS = ('ended', 'opening_kept', 'right_script', 'repeated', 'copied_', 'distinct', 'self_rouge2',
             'nearest_rouge2', 'retention', 'same', 'exam', 'unknown', 'renyi_efficiency', 'used',
             'whole_words', 'words_used')

# measures of texts, named as in results.json but without a number at the end: 'name in a table: meaning'
MEASURES = {
    'words': 'words: words of a story',
    'ended': 'ended ↑: stories that the model ended itself, before the limit of tokens',
    'opening_kept': 'opening kept ↑: stories that begin with the opening that the model was given',
    'right_script': 'right script ↑: letters that belong to the script of the language',
    'repeated': 'repetition ↓: runs of {n} words that stand in the same story earlier',
    'words_used': 'asked words used ↑: asked words that the story uses, in any form',
    'copied': 'copied, {n} words ↓: runs of {n} words that stand in a training story',
    'copied_whole': 'copied whole ↓: stories that stand in a training story as a whole',
    'copied_sentences': 'copied sentences ↓: sentences that stand in a training story; compare with unseen stories',
    'longest_copied': 'longest copy ↓: the most words in a row that stand in one training story',
    'longest_copied_of_all': 'longest copy of all ↓: the most words in a row that any story copies',
    'nearest_rouge': 'nearest story ↓: word pairs that the most similar training story contains, too',
    'distinct': 'variety, {n}-grams ↑: different {n}-grams (words in a row) among all; falls with more text',
    'self_rouge': 'stories alike ↓: word pairs that two stories of a model share, the mean of all pairs',
}
MEANINGS = {
    'loss ↓': 'mean negative log-likelihood of a token of unseen stories, in nats',
    'perplexity ↓': 'e to the power of the loss: the number of equally likely tokens with that loss',
    'bits per byte ↓': 'the loss in bits per byte of text, which compares models with different tokenizers; '
                       '– if the tokenizer lacks parts of the text',
    'p': 'probability of such a difference between equally good models: a permutation test with random signs',
    'p (Holm)': 'p, corrected for the number of rows of a judge',
    'Krippendorff’s α ↑': '1: the grades always agree, 0: not more than by chance',
}
ARROWS = '↑ higher is better, ↓ lower is better.'

# -----------------------------------------------------------------------------
# numbers as text


def format_value(value, key=''):
    """A table cell for a text, number, estimate ({'mean', 'low', 'high', …}) or None. key: what it measures."""
    if value is None:
        return ''
    if isinstance(value, (int, str)):
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


def error_bars(estimates):
    """Matplotlib's yerr: how far each interval reaches below and above its mean -> two arrays, nan without interval"""
    import numpy as np
    rows = [(estimate['mean'], estimate['low'], estimate['high']) for estimate in estimates]
    mean, low, high = np.array(rows, float).reshape(-1, 3).T
    return mean - low, high - mean


# -----------------------------------------------------------------------------
# tables


def table(title, rows, note='', meanings=MEANINGS):
    """A table as a dict: title, head, rows (lists of texts), note, and meanings (those of names in the table).

    rows: dicts {column: text}. Columns without any text are left out. note: a text below the table. meanings: {name of
    a column, or text in the first column: what it means}.
    """
    head = []
    for column in dict.fromkeys(itertools.chain(*rows)):
        if any(row.get(column) for row in rows):
            head.append(column)
    cells = []
    for row in rows:
        cells.append([row.get(column, '') for column in head])
    names = [*head, *(line[0] for line in cells)]
    meanings = {name: meaning for name, meaning in meanings.items() if name in names}
    return {'title': title, 'head': head, 'rows': cells, 'note': note, 'meanings': meanings}


def tables_of(results):
    """The tables of results.json; those without rows are left out."""
    tables = [models_table(results)]
    for judge in keys_in('grades', results):
        tables += grades_tables(results, judge)
    tables += [comparisons_table(results), agreement_table(results), text_table(results), *exam_tables(results)]
    return [table for table in tables if table['rows']]


def keys_in(part, results):
    """The keys for which any model has a value in this part: the judges in 'grades', the measures in 'text'."""
    keys = {}
    for row in results['models'].values():
        for key, value in row[part].items():
            if value is not None:
                keys[key] = True
    return list(keys)


def display_name(name, row):
    return f'{name} (reference)' if row['reference'] else name


def models_table(results):
    """What was evaluated: sizes, training and loss."""
    rows = []
    for name, row in results['models'].items():
        cells = {'model': display_name(name, row)}
        cells['stories'] = str(row['stories'])
        cells['openings'] = str(row['prompts'])
        size, loss = row['checkpoint'], row['loss']
        if size:
            cells['width'] = str(size['n_embd'])
            cells['layers'] = str(size['n_layer'])
            cells['parameters'] = f'{size["n_params"]:,}'
            cells['steps'] = row['training'].get('step', '')
        if loss:
            cells['loss ↓'] = f'{loss["val_loss"]:.3f}'
            cells['perplexity ↓'] = f'{loss["perplexity"]:.3f}'
            cells['bits per byte ↓'] = f'{loss["bits_per_byte"]:.3f}' if 'bits_per_byte' in loss else '–'
            cells['measured on'] = f'{loss["tokens"]:,} tokens of {loss["dataset"]}'
        rows.append(cells)
    return table('Models', rows, ARROWS)


def grades_tables(results, judge):
    """The grades of each model, and their retention: the fraction of the references' grades."""
    grades = []
    retention = []
    for name, row in results['models'].items():
        by_criterion = row['grades'].get(judge, {})
        n = max((grade['n'] for grade in by_criterion.values()), default=0)
        grades.append({'model': display_name(name, row), 'stories': f'{n} of {row["stories"]}'})
        retention.append({'model': name})
        for criterion, grade in by_criterion.items():
            grades[-1][criterion] = format_value(grade)
            if grade['retention']:
                retention[-1][criterion] = format_value(grade['retention'], 'retention')
    retention = [row for row in retention if len(row) > 1]
    meanings = results['config']['criteria']
    grades_note = 'Mean and 95 % interval, by resampling prompts. Higher is better.'
    retention_note = 'The mean grade, divided by that of the reference stories. Higher is better.'
    return [table(f'Grades by {judge}', grades, grades_note, meanings),
            table(f'Retention by {judge}', retention, retention_note, meanings)]


def comparisons_table(results):
    rows = []
    for row in results['comparisons']:
        cells = {'judge': row['judge'], 'criterion': row['criterion']}
        cells['models'] = f'{row["a"]} − {row["b"]}'
        cells['difference'] = format_value(row | {'mean': row['difference']})
        cells['p'] = f'{row["p"]:.4f}'
        cells['p (Holm)'] = f'{row["p_holm"]:.4f}'
        cells['prompts'] = str(row['prompts'])
        rows.append(cells)
    return table('Models compared, paired by prompt', rows, 'Above 0, the first model is better.')


def agreement_table(results):
    rows = []
    for judge, criteria in ({'different judges': results['agreement']} | results['consistency']).items():
        for criterion, row in criteria.items():
            alpha = 'all equal'
            if row['alpha'] is not None:
                alpha = format_value(row | {'mean': row['alpha']})
            cells = {'judge': judge, 'criterion': criterion}
            cells['Krippendorff’s α ↑'] = alpha
            cells['same grade ↑'] = format_value(row['same'], 'same')
            cells['mean difference ↓'] = format_value(row['mean_difference'])
            cells['stories'] = str(row['n'])
            rows.append(cells)
    return table('Agreement between judges, and of each judge with itself', rows,
                 'Of stories that were graded more than once.')


def exam_tables(results):
    """A table for each language: a row for each phenomenon, a column for each model."""
    exams = results['exam']
    tables = []
    for language, phenomena in next(iter(exams.values()), {}).items():  # all models took the same exams
        rows = []
        for phenomenon, estimate in phenomena.items():
            row = {'phenomenon': phenomenon.replace('_', ' ')}
            row['number of pairs'] = str(estimate['n'])
            for name, by_language in exams.items():
                row[name] = format_value(by_language[language][phenomenon], 'exam')
            rows.append(row)
        tables.append(table(f'Exam: {language}', rows,
                            'Pairs whose right sentence is more probable. Higher is better; chance: 50 %.'))
    return tables


def describe(key):
    """A measure of texts -> its name, its meaning and its unit

    'copied_4' -> ('copied, 4 words ↓', 'runs of 4 words that … (copied_4 in results.json)', ' %')
    """
    stem, n = re.fullmatch(r'(.*?)_?(\d*)', key).groups()
    name, meaning = MEASURES[stem].replace('{n}', n).split(': ')
    unit = ' %' if key.startswith(FRACTIONS) else ''
    return name, f'{meaning} ({key} in results.json)', unit


def text_table(results):
    """A row for each measure of the texts and a column for each model."""
    rows = []
    for key in keys_in('text', results):
        cells = {'measure of a text': describe(key)[0]}
        for name, row in results['models'].items():
            cells[display_name(name, row)] = format_value(row['text'].get(key), key)
        rows.append(cells)
    meanings = dict(describe(key)[:2] for key in keys_in('text', results))
    return table('Texts', rows, f'Without the openings. {ARROWS}', meanings)


def as_markdown(tables):
    """Tables as a page of Markdown, with the meanings of all names at its end."""
    text = '# Results\n'
    meanings = {}
    for table in tables:
        head = table['head']
        text += f'\n## {quote_markdown(table["title"])}\n\n'
        text += markdown_row(head) + '|' + ' --- |' * len(head) + '\n'
        text += ''.join(map(markdown_row, table['rows']))
        if table['note']:
            text += f'\n{table["note"]}\n'
        meanings |= table['meanings']
    if meanings:
        text += '\n## Names\n\n'
    for name, meaning in meanings.items():
        text += f'- {quote_markdown(name)}: {quote_markdown(meaning)}\n'
    return text


def markdown_row(cells):
    return f'| {" | ".join(map(quote_markdown, cells))} |\n'


# -----------------------------------------------------------------------------
# the bar chart


def draw_grades(results, path):
    """Draw grades as bars with intervals: a panel for each judge, a group for each criterion, a bar for each model."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    judges = keys_in('grades', results)
    criteria = results['criteria']
    models = {name: row for name, row in results['models'].items() if row['grades']}
    width = 0.8 / len(models)  # of a bar
    figure = Figure(figsize=(min(24, 4 + 0.35 * len(criteria) * len(models)), 1 + 3 * len(judges)), dpi=120,
                    layout='constrained')
    panels = figure.subplots(len(judges), squeeze=False)[:, 0]
    for panel, judge in zip(panels, judges):
        panel.set_prop_cycle(color=colormaps['tab20'].colors)
        for i, (name, row) in enumerate(models.items()):
            grades = row['grades'].get(judge, {}).values()  # by all criteria, or none
            positions = [k + (i + 0.5) * width - 0.4 for k in range(len(grades))]
            means = [grade['mean'] for grade in grades]
            panel.bar(positions, means, 0.9 * width, yerr=error_bars(grades), capsize=2, label=display_name(name, row))
        panel.set_xticks(range(len(criteria)), list(criteria))
        panel.set(title=f'grades by {judge}', ylim=(0, max(high for _, high in criteria.values())))
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
# the files


def write_report(results, stories_of, checkpoints, out_dir):
    """Write results.md, report.html and, if there are grades, results.png to out_dir; print the tables.

    stories_of: {name of a model: its stories}. checkpoints: {name of a model: path of its checkpoint}; the page shows
    the loss.png beside it.
    """
    tables = tables_of(results)
    text = as_markdown(tables)
    write_text(os.path.join(out_dir, 'results.md'), text)
    judges = keys_in('grades', results)
    picture = os.path.join(out_dir, 'results.png')
    if judges:
        draw_grades(results, picture)

    page = {'tables': tables, 'settings': settings_table(results), 'models': list(stories_of)}
    models = [name for name, row in results['models'].items() if not row['reference']]
    names = models or list(results['exam'])
    subject = ', '.join(names) if len(names) < 4 else f'{len(names)} models'
    page['title'] = f'Stories by {subject}' if models else f'Exam of {subject}'
    page['about'] = f'{time.strftime("%Y-%m-%d %H:%M")}, nanokahani {VERSION}'
    if judges:
        page['about'] += f', graded by {", ".join(judges)}'
    page['grades'] = data_url(picture) if judges else ''
    page['losses'] = {}
    for name, path in checkpoints.items():
        folder = os.path.dirname(path) if os.path.isfile(path) else path
        page['losses'][name] = data_url(os.path.join(folder, 'loss.png'))
    page['measures'] = {key: describe(key) for key in keys_in('text', results)}
    page['stories'] = story_rows(stories_of)
    write_page(page, os.path.join(out_dir, 'report.html'))
    print(text)


def settings_table(results):
    """The settings of each training and of the evaluation that are not empty."""
    columns = {name: row['training'] for name, row in results['models'].items()}
    columns['of the evaluation'] = results['config']
    rows = {}
    for name, settings in columns.items():
        for key, value in settings.items():
            if value:
                rows.setdefault(key, {'setting': key})[name] = str(value)
    return table('Settings', rows.values())


def data_url(path):
    """A picture as an address that contains it; '' if there is none."""
    if not os.path.exists(path):
        return ''
    with open(path, 'rb') as f:
        return f'data:image/png;base64,{base64.b64encode(f.read()).decode()}'


def story_rows(stories_of):
    """What the page shows of each story."""
    rows = []
    for name, stories in stories_of.items():
        for story in stories:
            row = {key: story.get(key, '') for key in ('id', 'opening', 'continuation', 'grades', 'notes', 'nearest')}
            row['measures'] = {key: value for key, value in story['measures'].items() if not math.isnan(value)}
            rows.append(row | {'model': name})
    return rows


def write_page(data, path):
    """Write one HTML file that needs no other file: the template with the data in it.

    The data are JSON without any <, and the script of the page shows them as text, so markup in a story has no effect.
    """
    template_path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report_template.html')
    check(os.path.exists(template_path), 'report_template.html is missing: copy it beside report.py')
    with open(template_path, encoding='utf-8') as f:
        before, _, after = f.read().partition('{{data}}')
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace('<', '\\u003c')
    write_text(path, before + text + after)
