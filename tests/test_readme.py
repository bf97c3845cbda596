"""README.md and docs/: their commands have settings that exist and run, in small; their links and files exist."""

import csv
import json
import os
import re
import shlex
import shutil

import pytest
from conftest import PROJECT, Project

import files

PAGES = {
    path.relative_to(PROJECT).as_posix(): path.read_text(encoding='utf-8')
    for path in sorted([*PROJECT.glob('*.md'), *PROJECT.glob('docs/*.md')])}
WITH_COMMANDS = [page for page in PAGES if page != 'docs/RESULTS.md']  # a log: it has commands of earlier versions, too
OF_OTHERS = {  # options of torchrun, uv, pip and tests/chaos.py
    'nproc_per_node', 'nnodes', 'node_rank', 'master_addr', 'master_port', 'standalone', 'max', 'kills', 'force',
    'extra', 'help', 'version', 'key'}
EXAMPLES = {'config/generate_tamil.py'}  # files that a reader is asked to write
INSTALLS = ('git', 'cd', 'make', 'pip', 'uv', '.', '.venv/bin/python', 'python3', 'export')  # not run here
NEEDS = re.compile(  # the network, several GPUs, or another command that is not run
    r'hf:|--push|translate|gpt2|--batch=True|news|torchrun')
SMALL = {  # settings with which a command takes seconds
    'generate_data.py': ['--total=2000'],
    'train.py': [
        '--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4', '--max_iters=4',
        '--max_epochs=0',
        '--gradient_accumulation_steps=1', '--eval_interval=2', '--eval_iters=2', '--bigram_steps=0', '--device=cpu'],
    'sample.py': ['--max_new_tokens=20'],
    'export.py': ['--examples=1', '--max_new_tokens=20'],
}


def prose(page):
    """The text of a page without its blocks of code; of coming.md without the first cells, which are of others."""
    text = re.sub(r'^```.*?^```', '', PAGES[page], flags=re.M | re.S)
    if page == 'docs/coming.md':
        text = re.sub(r'^\|(\\\||[^|])*\|', '', text, flags=re.M)
    return text


def commands(page, inline=False):
    """[[word, …], …] of the shell blocks; with inline, of the commands in backticks, too."""
    lines = []
    for block in re.findall(r'^```sh\n(.*?)^```', PAGES[page], flags=re.M | re.S):
        lines += block.replace('\\\n', ' ').splitlines()
    if inline:
        spans = re.findall(r'`([^`\n]+)`', prose(page))
        lines += [span for span in spans if span.split()[0] in ('python', 'torchrun', 'make', 'uv')]
    return [words for line in lines if (words := shlex.split(line.rstrip(' &'), comments=True))]


def script_of(words):
    """(script, [argument, …]) of a command that runs a script; ('', []) of another."""
    for i, word in enumerate(words):
        if re.fullmatch(r'\w+\.py', word):
            return word, [word for word in words[i + 1:] if '…' not in word]
    return '', []


def test_every_setting_exists(project):
    """One call of each script reads all arguments of all commands: an unknown key, value or config file ends it."""
    arguments = {}
    for page in WITH_COMMANDS:
        for words in commands(page, inline=True):
            script, its_arguments = script_of(words)
            arguments.setdefault(script, []).extend(its_arguments)
    del arguments['']
    known = set(OF_OTHERS)
    for script, its_arguments in arguments.items():
        its_arguments = dict.fromkeys(its_arguments)
        for argument in ('--help', '--version', 'DIR/config.json', *EXAMPLES):
            its_arguments.pop(argument, None)
        out = project.run(script, *its_arguments, '--help')
        known |= set(re.findall(r'^  (\w+) = ', out, flags=re.M))
    assert {'train.py', 'sample.py', 'export.py'} < set(arguments)
    for page in WITH_COMMANDS:
        for span in re.findall(r'`[^`\n]+`', prose(page)):
            for key in re.findall(r'(?<!\S)`?--(\w+)', span):
                assert key in known, (page, span)


@pytest.mark.parametrize('page', PAGES)
def test_links_and_files_exist(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', PAGES[page]):
        if target.startswith('https://'):
            continue
        name, _, anchor = target.partition('#')
        path = os.path.normpath(os.path.join(os.path.dirname(page), name)) if name else page
        assert (PROJECT / path).is_file(), (page, target)
        if anchor:
            headings = re.findall(r'^#+ (.*)', PAGES[path], flags=re.M)
            slugs = [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]
            assert anchor in slugs, (page, target)
    for name in re.findall(r'`((?:config|docs|tests)/[\w./]+\.\w+|\w+\.(?:py|ipynb))`', prose(page)):
        assert name in EXAMPLES or (PROJECT / name).is_file(), (page, name)


def test_targets_and_variables_of_make_exist():
    makefile = (PROJECT / 'Makefile').read_text(encoding='utf-8')
    targets = re.search(r'^\.PHONY: (.*)', makefile, re.M)[1].split()
    for page in WITH_COMMANDS:
        for command, *words in commands(page, inline=True):
            for word in words if command == 'make' else ():
                name, equals, _ = word.partition('=')
                assert f'({name})' in makefile or f',{name}' in makefile if equals else name in targets, (page, word)


def test_the_changelog_has_this_version():
    assert re.search(r'^## (\S+)', PAGES['CHANGELOG.md'], re.M)[1] == files.VERSION


@pytest.fixture(scope='module')
def stocked(prepared, tmp_path_factory):
    """A project in which the commands of the pages find their input: stories, few openings and pairs."""
    project = Project(tmp_path_factory.mktemp('stocked'))
    stories = (prepared.path / 'data/tiny/stories.jsonl').read_text(encoding='utf-8')
    rows = [json.loads(line) for line in stories.splitlines()]
    with open(project.path / 'my_stories.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows([['text'], *([row['text']] for row in rows)])
    (project.path / 'data/hindi/stories.jsonl').write_text(stories, encoding='utf-8')
    for name in ('prompts.txt', 'exam.tsv'):
        path = project.path / 'data/hindi' / name
        path.write_text('\n'.join(path.read_text(encoding='utf-8').splitlines()[:6]), encoding='utf-8')
    project.run('prepare.py', '--source=data/hindi/stories.jsonl', '--dataset=hindi')
    return project


@pytest.mark.slow
@pytest.mark.parametrize('page', ['README.md', 'docs/install.md', 'docs/generate.md', 'docs/prepare.md'])
def test_the_commands_run(page, stocked, tmp_path, server):
    """In small, from top to bottom; a chat API is a server on loopback. Other tests run what the other pages name."""
    shutil.copytree(stocked.path, tmp_path / 'project')
    project = Project(tmp_path / 'project', scripts=['train.py'])
    writer = server('chat_server.py').url
    for words in commands(page):
        script, arguments = script_of(words)
        if words[0] in INSTALLS or NEEDS.search(' '.join(words)):
            continue
        arguments += SMALL.get(script, [])
        if '--provider=mistral' in arguments:
            arguments += [f'--base_url={writer}', '--model=m', '--total=20', '--max_cost=0']
        if script == 'train.py':  # the pages say: either this one or that
            [out_dir] = [argument for argument in arguments if argument.startswith('--out_dir=')] or ['=out/hindi']
            shutil.rmtree(project.path / out_dir.partition('=')[2], ignore_errors=True)
        project.run(script, *arguments, MISTRAL_API_KEY='key')
