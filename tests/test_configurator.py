"""The configurator: what a script's config accepts, what it refuses in one line, and what --help shows."""

import ast
import io
import json
import time
import tokenize

import pytest
from conftest import PROJECT

SCRIPT = '''"""A throw-away script."""

# -----------------------------------------------------------------------------
# sizes
width = 8  # how wide
rate = 0.5  # how fast
name = 'plain'  # what it is called
flag = False
choice = None  # anything
words = ['a']  # a list
table = {'a': 1}  # a dict
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

import json
assert config == {key: globals()[key] for key in config}
name = name or 'later'  # not a key again
print(json.dumps(config))
'''


@pytest.fixture
def script(project):
    """`script('--width=3')` -> the config that the throw-away script ends up with."""
    (project.path / 'script.py').write_text(SCRIPT, encoding='utf-8')

    def configure(*arguments):
        return json.loads(project.run('script.py', *arguments))

    def write(file, text):
        (project.path / file).write_text(text, encoding='utf-8')
        return file

    configure.refuses = lambda *arguments: refuses(project, *arguments)
    configure.write = write
    return configure


def refuses(project, *arguments):
    process = project.start('script.py', *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == '' and err.count('\n') == 1 and err.startswith('script.py: '), err
    return err


def test_defaults(script):
    assert script() == {'width': 8, 'rate': 0.5, 'name': 'plain', 'flag': False, 'choice': None, 'words': ['a'], 'table': {'a': 1}}


def test_files_and_pairs_from_left_to_right(script):
    a, b = script.write('a.py', "width = 1\nname = 'a'\n"), script.write('b.py', "name = 'b'\n")
    both = script(a, b)
    assert (both['width'], both['name']) == (1, 'b')
    assert script(b, a)['name'] == 'a'
    assert script('--width=2', a)['width'] == 1
    assert script(a, '--width=2')['width'] == 2
    assert script('--width=2', '--width=3')['width'] == 3


def test_values(script):
    got = script('--name=a=b=c', '--rate=3', "--words=['x', 'डर']", "--table={'b': [1, 2]}", '--flag=True', '--choice=7')
    assert got == {'width': 8, 'rate': 3.0, 'name': 'a=b=c', 'flag': True, 'choice': 7, 'words': ['x', 'डर'], 'table': {'b': [1, 2]}}
    assert isinstance(got['rate'], float)
    assert script('--rate=1e-3')['rate'] == 0.001
    assert script('--name=12')['name'] == '12'
    assert script('--name=')['name'] == ''
    assert script('--name=None')['name'] == 'None'
    assert script('--choice=word')['choice'] == 'word'


def test_a_key_without_default_can_be_set_again(script):
    assert script(script.write('a.py', 'choice = True\n'), '--choice=None')['choice'] is None


def test_a_config_file_is_python(script):
    config = script.write('a.py', '''import math
from math import floor
_helper = 3
width = width * _helper
rate = rate * 2 + math.floor(0.5)
def double(x):
    return 2 * x
name = double(name)
words = [word for word in words] + ['b']
''')
    got = script('--width=5', config)
    assert (got['width'], got['rate'], got['name'], got['words']) == (15, 1.0, 'plainplain', ['a', 'b'])


def test_a_config_file_executes_another(script):
    script.write('base.py', 'width = 100\nrate = 0.25\n')
    got = script(script.write('a.py', "exec(open('base.py', encoding='utf-8').read())\nwidth += 1\n"))
    assert (got['width'], got['rate']) == (101, 0.25)


def test_a_config_file_with_a_byte_order_mark(script):
    assert script(script.write('a.py', "\ufeffname = 'हिन्दी'\n"))['name'] == 'हिन्दी'


def test_unknown_keys(script):
    assert "command line: there is no key 'widht', did you mean 'width'?" in script.refuses('--widht=3')
    line = script.refuses(script.write('a.py', 'raet = 1.0\n'))
    assert "a.py: there is no key 'raet', did you mean 'rate'?" in line
    assert "there is no key 'zzz'; --help" in script.refuses('--zzz=3')
    assert "there is no key '_private'" in script.refuses('--_private=3')


@pytest.mark.parametrize('argument, wants', [
    ('--width=wide', 'width wants int'), ('--width=1.5', 'width wants int'), ('--width=True', 'width wants int'), ('--width=', 'width wants int'),
    ('--rate=fast', 'rate wants float'), ('--rate=True', 'rate wants float'), ('--flag=true', 'flag wants True or False'),
    ('--flag=1', 'flag wants True or False'), ('--words=x', 'words wants list'), ("--words=('x',)", 'words wants list'), ('--table=[1]', 'table wants dict')])
def test_wrong_types_on_the_command_line(script, argument, wants):
    line = script.refuses(argument)
    assert f'command line: {wants}' in line and repr(argument.split('=')[1].replace("'", ''))[1:-1] in line.replace("'", '')


@pytest.mark.parametrize('line, wants', [('name = 3', 'name wants str'), ('width = 2.0', 'width wants int'), ('flag = 0', 'flag wants True or False')])
def test_wrong_types_in_a_file(script, line, wants):
    assert f'a.py: {wants}' in script.refuses(script.write('a.py', line + '\n'))


def test_arguments_of_another_form(script):
    assert "'--width' is neither a config file nor --key=value" in script.refuses('--width', '3')
    assert "'-width=3'" in script.refuses('-width=3')


def test_a_missing_file(script):
    assert 'nowhere.py: No such file' in script.refuses('nowhere.py')
    line = script.refuses(script.write('a.py', "width = 1\nexec(open('nowhere.py').read())\n"))
    assert 'a.py, line 2: ' in line and "'nowhere.py'" in line


def test_a_config_file_that_raises(script):
    assert 'a.py, line 3: ZeroDivisionError: ' in script.refuses(script.write('a.py', 'width = 3\n\nrate = 1 / 0\n'))
    assert "a.py, line 2: NameError: name 'unknown'" in script.refuses(script.write('a.py', 'def f():\n    return unknown\nwidth = f()\n'))


def test_a_config_file_with_a_syntax_error(script):
    assert 'a.py, line 2: SyntaxError: ' in script.refuses(script.write('a.py', 'width = 3\nrate == = 2\n'))
    script.write('base.py', '\n\n\n\nrate == = 2\n')  # the line that executes it is the one in a.py
    assert 'a.py, line 2: SyntaxError: ' in script.refuses(script.write('a.py', "width = 3\nexec(open('base.py').read())\n"))


def test_the_arguments_of_a_notebook_are_not_ours(project):
    (project.path / 'colab_kernel_launcher.py').write_text(SCRIPT, encoding='utf-8')
    assert json.loads(project.run('colab_kernel_launcher.py', '-f', 'kernel.json'))['width'] == 8


def scripts():
    return sorted(path.name for path in PROJECT.glob('*.py') if "\nexec(open('configurator.py'" in path.read_text(encoding='utf-8'))


def keys_of(source):
    """{key: (its default as written, its comment)} of the config block."""
    block = source.split('\nexec(open(')[0]
    comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(block).readline) if token.type == tokenize.COMMENT}
    return {node.targets[0].id: (' '.join(ast.get_source_segment(block, node.value).split()), comments.get(node.end_lineno, '#').lstrip('# '))
            for node in ast.parse(block).body if isinstance(node, ast.Assign)}


@pytest.mark.parametrize('name', scripts())
def test_help_shows_every_key_and_imports_nothing_heavy(project, name):
    # a torch that cannot be imported: --help must not get that far
    (project.path / 'torch.py').write_text('raise RuntimeError("torch was imported")', encoding='utf-8')
    started = time.perf_counter()
    text = project.run(name, '--help')
    assert time.perf_counter() - started < 2
    source = (project.path / name).read_text(encoding='utf-8')
    assert text.startswith(ast.get_docstring(ast.parse(source)))
    lines = text.split('keys, as --key=value or in a config file:')[1].split('\n')
    keys = keys_of(source)
    assert keys
    for key, (default, comment) in keys.items():
        shown = [line for line in lines if line.startswith(f'  {key} = ')]
        assert len(shown) == 1, (key, shown)
        assert shown[0].startswith(f'  {key} = {default[:40]}') and shown[0].endswith(comment)
    assert len([line for line in lines if line.startswith('  ')]) == len(keys)


def test_nobody_at_the_other_end_of_a_pipe(project):
    (project.path / 'x.py').write_text("exec(open('configurator.py', encoding='utf-8').read())\nfor i in range(10**5):\n    print(i)\n", encoding='utf-8')
    process = project.start('x.py')
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait() == 1
