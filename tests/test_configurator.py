"""configurator.py: keys and their values, config files, --help, and the errors that end in one line."""

import ast
import json
import re
import signal
import sys
import time

import pytest
from conftest import PROJECT

import files
import report

HERE = '''
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'script.py')))
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())
'''
SCRIPT = f'''"""A script for the tests."""

import os

# -----------------------------------------------------------------------------
# sizes
width = 8  # in pixels
rate = 0.5
name = 'plain'
flag = False
choice = None  # any value
words = ['a']
table = {{'a': 1}}
# -----------------------------------------------------------------------------
{HERE}
import json

name = name or 'later'  # below the block: the same name is no key again
other = 1
print(json.dumps(config))
'''
DEFAULTS = {'width': 8, 'rate': 0.5, 'name': 'plain', 'flag': False, 'choice': None, 'words': ['a'], 'table': {'a': 1}}


@pytest.fixture
def script(project):
    """script('--width=3') -> the config with which script.py ends up."""
    (project.path / 'script.py').write_text(SCRIPT, encoding='utf-8')

    def configure(*arguments):
        return json.loads(project.run('script.py', *arguments))
    return configure


@pytest.fixture
def refuses(project, script):
    """refuses('--width=x') -> the line on stderr; the exit status is 2."""
    return lambda *arguments: project.refuses('script.py', *arguments, status=2)


@pytest.fixture
def write(project):
    """write('a.py', text) -> 'a.py'."""
    def write(name, text):
        (project.path / name).write_text(text, encoding='utf-8')
        return name
    return write


def test_the_keys_are_the_names_above_here(script):
    assert script() == DEFAULTS


def test_files_and_pairs_apply_from_left_to_right(script, write):
    a = write('a.py', "width = 1\nname = 'a'\n")
    b = write('b.PY', "name = 'b'\n")
    both = script(a, b)
    assert (both['width'], both['name']) == (1, 'b')
    assert script(b, a)['name'] == 'a'
    assert script('--width=2', a)['width'] == 1
    assert script(a, '--width=2', '--width=3')['width'] == 3


@pytest.mark.parametrize('argument, value', [
    ('--name=a=b=c', 'a=b=c'), ('--name=12', '12'), ('--name=', ''), ('--name=None', 'None'),
    ('--rate=3', 3.0), ('--rate=1e-3', 0.001), ('--flag=True', True), ('--width=-1', -1),
    ("--words=['x', 'डर']", ['x', 'डर']), ("--table={'b': [1, 2]}", {'b': [1, 2]}),
    ('--choice=7', 7), ('--choice=word', 'word'), ('--choice=None', None)])
def test_values(script, argument, value):
    key = argument[2:].split('=')[0]
    got = script(argument)[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize('argument, message', [
    ('--width=wide', "width must be int, such as 8, not 'wide'"),
    ('--width=1.5', 'width must be int, such as 8, not 1.5'),
    ('--width=True', 'width must be int'),
    ('--width=' + '9' * 5000, 'width must be int'),
    ('--rate=fast', 'rate must be float, such as 0.5'),
    ('--flag=true', "flag must be True or False, not 'true'"),
    ('--flag=1', 'flag must be True or False'),
    ("--words=('x',)", 'words must be list'),
    ('--widht=3', "there is no key 'widht', did you mean 'width'?"),
    ('--zzz=3', "there is no key 'zzz'; --help lists the keys"),
    ('--other=3', "there is no key 'other'"),
    ('--rate=' + '9' * 400, 'rate must be float'),
    ('-width=3', "'-width=3' is neither a config file nor --key=value; did you mean --width=3?"),
    ('—width=3', 'did you mean --width=3?'),
    ('--width', "'--width' is neither a config file nor --key=value; did you mean --width=…?")])
def test_wrong_settings_on_the_command_line(refuses, argument, message):
    assert message in refuses(argument)


def test_a_config_file_is_python(script, write):
    config = write('a.py', '''\ufeffimport math
from math import floor
_helper = 3
width = width * _helper
rate = rate * 2 + math.floor(0.5)
def double(x):
    return 2 * x
name = double(name)
words = [word for word in words] + ['हिन्दी']
''')
    got = script('--width=5', config)
    assert (got['width'], got['rate'], got['name'], got['words']) == (15, 1.0, 'plainplain', ['a', 'हिन्दी'])


@pytest.mark.parametrize('text, message', [
    ('width = 1\nraet = 1.0\n', "a.py: there is no key 'raet', did you mean 'rate'?"),
    ('name = 3\n', 'a.py: name must be str'),
    ('width = 2.0\n', 'a.py: width must be int'),
    ('width = 3\n\nrate = 1 / 0\n', 'a.py, line 3: ZeroDivisionError: '),
    ('def f():\n    return unknown\nwidth = f()\n', "a.py, line 2: NameError: name 'unknown'"),
    ('width = 3\nrate == = 2\n', 'a.py, line 2: SyntaxError: '),
    ('width = 1\nexec(open("nowhere.py").read())\n', 'a.py, line 2: FileNotFoundError'),
    ('def f():\n    f()\nf()\n', 'RecursionError'),
    ('import sys\nsys.exit()\n', 'a.py, line 2: SystemExit')])
def test_wrong_settings_in_a_config_file(refuses, write, text, message):
    assert message in refuses(write('a.py', text))


@pytest.mark.parametrize('name, content', [
    ('a.py', b'\x00\x01\x02\xff' * 50),
    ('a.py', 'width = 3\n'.encode('utf-16')),
    ('a.py', 'name = "é"'.encode('latin-1')),
    ('a.json', b'[' * 100_000), ('a.json', b'{"n_layer": 2}')])
def test_a_config_file_that_is_not_python_in_utf8(project, refuses, name, content):
    (project.path / name).write_bytes(content)
    assert name in refuses(name)


RUNS = b'text,__import__("os").system("touch executed")\nopen("executed", "w")\n'
TINYNEWS = {'model': {'context_length': 128, 'd_embedding': 64, 'd_intermediate': 512, 'n_heads': 4, 'n_layers': 4},
            'train': {'peak_lr': 0.001, 'warmup_ratio': 0.01, 'n_epochs': 2, 'batch_size': 8, 'weight_decay': 0.1}}


@pytest.mark.parametrize('command, message', [
    ('prepare.py s.csv', '--source=s.csv?'), ('prepare.py s.jsonl', '--source=s.jsonl?'),
    ('prepare.py s.TXT', '--source=s.TXT?'), ('prepare.py s.py.gz', '--source=s.py.gz?'),
    ('prepare.py s.JSON', 's.JSON could not be read: '), ('translate.py s.pyc', '--source=s.pyc?'),
    ('prepare.py source=s.csv', '--source=s.csv?'), ('evaluate.py s.jsonl', '--samples=s.jsonl?'),
    ('evaluate.py best.pt', '--checkpoints=best.pt?'), ('sample.py best.pt', '--init_from=best.pt?'),
    ('sample.py s.txt', '--start=FILE:s.txt?'), ('train.py hindi', '--dataset=hindi?'),
    ('train.py config/train_hindi', 'did you mean config/train_hindi.py?'), ('train.py .', '--dataset=.?'),
    ('generate_data.py hindi', '--language=hindi?'), ('export.py out/x', '--out_dir=out/x?'),
    ('sweep.py s', '--out_dir=s?'), ('bench.py s.json', '--source=s.json?')])
def test_a_file_that_is_no_config_is_never_executed(project, command, message):
    for name in ('s.csv', 's.jsonl', 's.TXT', 's.py.gz', 's.JSON', 's.json', 's.pyc', 's.txt', 's', 'best.pt'):
        (project.path / name).write_bytes(RUNS)
    assert message in project.refuses(*command.split(), status=2)
    assert not (project.path / 'executed').exists()


@pytest.mark.parametrize('content', ['{}', 'null', '[]', '"text"', '{"model": {}}'])
def test_json_that_is_no_config_of_tinynews(project, content):
    (project.path / 'a.json').write_text(content)
    assert 'a.json is not a config of TinyNews' in project.refuses('train.py', 'a.json', status=2)


@pytest.mark.skipif(sys.version_info < (3, 11), reason='no tomllib')
@pytest.mark.parametrize('text, message', [
    ('ndata = 1000\ntrain_fraction = 0.9\nsplit_random_seed = 7\ninput_name = "my data/V2.txt"\noutname = "s.csv"',
     "use: python prepare.py --source='my data/V2.txt' --dataset=mine --tokenizer=gpt2 --trim=False --max_stories=1000 "
     '--val_fraction=0.1 --seed=7'),
    ('input_file = "s.csv"\nlora_peft = false\nmodel_folder = "out"\nmax_seq_len = -1\nmodel_name = "distilgpt2"',
     'use: python prepare.py --source=s.csv --dataset=mine --tokenizer=distilgpt2 --trim=False && python train.py '
     'config/finetune_gpt2.py --dataset=mine --init_from=distilgpt2 --out_dir=out --lora_rank=0'),
    ('output_file = "o.csv"\nmodel_folder = "a;b"\nquantized = true\n[hyper-parameters]\ntemperature = 1.25\n'
     'top_k = 250\nbad_words = ["Damn"]', "use: python sample.py --out_dir='a;b' --start=… --out=o.csv "
     """--temperature=1.25 --top_k=250 --bad_words='['"'"'Damn'"'"']' --quantize=int8"""),
    ('input_name = "\\u001b[2J\\n"', 'use: python prepare.py'),
    ('input_name = "a"\ntrain_fraction = "x"', 'could not be'),
    ('input_name = "a"\nhyper-parameters = 1', 'could not be read'), ('[project]\nname = "x"', 'is not a config file'),
    ('no TOML', 'could not be read'), ('a = ' + '[' * 9000, 'could not be read')])
def test_a_config_of_tiny_story_generator_is_answered(project, write, text, message):
    line = project.refuses('train.py', '-c', write('a.toml', text), status=2)
    assert message in line and '\x1b' not in line


@pytest.mark.slow
def test_code_of_the_working_directory_is_never_executed(project):
    """Neither its modules nor the file that translates TinyNews' configs, whatever PYTHONPATH is."""
    away = project.path / 'away'
    (away / 'config').mkdir(parents=True)
    modules = [path.name for path in PROJECT.glob('*.py')]
    for name in (*modules, 'tqdm.py', 'config/train_tinynews_3m.py'):
        (away / name).write_bytes(RUNS)
    (away / 'a.JSON').write_text(json.dumps(TINYNEWS))
    project.path = away
    for empty in ({}, {'PYTHONPATH': ':'}, {'PYTHONSAFEPATH': '1'}):
        assert 'data/none has no meta.json' in project.refuses('../train.py', 'a.JSON', '--dataset=none', **empty)
        assert 'no such file' in project.refuses('../prepare.py', '--source=none.txt', **empty)
    assert not (away / 'executed').exists()


def test_a_template_of_the_working_directory_is_not_used(tmp_path, monkeypatch):
    (tmp_path / 'report_template.html').write_text('<script>stolen({{data}})</script>')
    monkeypatch.chdir(tmp_path)
    report.write_page({}, 'page.html')
    assert 'stolen' not in (tmp_path / 'page.html').read_text(encoding='utf-8')


def test_a_config_file_and_its_base_are_found_from_any_folder(project, script, write, tmp_path):
    (project.path / 'config/base.py').write_text("width = 100\n", encoding='utf-8')
    (project.path / 'config/more.py').write_text(
        "exec(open(find('config/base.py'), encoding='utf-8').read())\nwidth += 1\n", encoding='utf-8')
    (project.path / 'elsewhere').mkdir()
    project.path = project.path / 'elsewhere'
    assert json.loads(project.run('../script.py', 'config/more.py'))['width'] == 101
    assert 'nowhere.py could not be read: ' in project.refuses('../script.py', 'nowhere.py', status=2)


def scripts():
    return sorted(path.name for path in PROJECT.glob('*.py') if "'configurator.py'" in path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('name', scripts())
def test_every_script_has_the_line_and_help_imports_nothing_heavy(project, name):
    source = (PROJECT / name).read_text(encoding='utf-8')
    block = source.split('\nhere = ')[0]
    assert f"\nhere = os.path.dirname(os.path.abspath(globals().get('__file__', '{name}')))" in source
    assert "\nexec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())" in source
    for heavy in ('torch', 'numpy', 'requests', 'tqdm', 'tokenizer'):
        (project.path / f'{heavy}.py').write_text('1 / 0')
    assert project.run(name, '--version') == f'nanokahani {files.VERSION}\n'
    text = project.run(name, '--help')
    assert text.startswith(ast.get_docstring(ast.parse(source)))
    keys = [node.targets[0].id for node in ast.parse(block).body if isinstance(node, ast.Assign)]
    assert re.findall(r'^  (\w+) = ', text, flags=re.M) == keys
    assert all(f'  {line}\n' in text for line in block.split('\n') if re.match(r'\w+ = .*#', line))


def test_help_is_fast(project, script):
    """Compared with an empty Python process on the same machine."""
    def seconds(*command):
        started = time.perf_counter()
        project.run(*command)
        return time.perf_counter() - started
    pairs = [(seconds('script.py', '--help'), seconds('-c', 'pass')) for _ in range(5)]
    assert min(slow - fast for slow, fast in pairs) < 0.3


@pytest.mark.parametrize('line, message, status', [
    ('bytearray(10**17)', 'script.py: out of memory; less data at once may fit.', 1),
    pytest.param("import torch\nraise torch.OutOfMemoryError('CUDA out of memory.')",
                 'script.py: out of memory; less data at once may fit. CUDA out of memory.', 1, marks=pytest.mark.slow),
    ('import hub', 'script.py: hub.py is missing: copy it beside script.py', 1),
    ('import no_such_package', 'script.py: a package is missing: pip install no_such_package', 1),
    ("raise OSError(28, 'No space left on device')", 'script.py: the disk is full; free some space', 1),
    ("from files import check\ncheck(width < 8, 'width must be below 8')", 'script.py: width must be below 8', 2),
    ("from files import fail\nfail('a file is damaged')", 'script.py: a file is damaged', 1)])
def test_errors_that_end_in_one_line(project, write, line, message, status):
    (project.path / 'hub.py').unlink(missing_ok=True)
    write('script.py', SCRIPT + line)
    assert project.refuses('script.py', status=status).startswith(message)


def test_a_missing_files_py_is_named(project, script):
    (project.path / 'files.py').unlink()
    assert project.refuses('script.py', status=1) == 'script.py: files.py is missing: copy it beside script.py'


@pytest.mark.parametrize('line', ["raise RuntimeError('could not allocate')", 'assert False', "open('nowhere')"])
def test_other_errors_keep_their_traceback(project, write, line):
    write('script.py', SCRIPT + line)
    process = project.start('script.py')
    _, err = process.communicate()
    assert err.startswith('Traceback') and process.returncode == 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_script_and_its_temporary_file_goes(project, write, number):
    write('script.py', SCRIPT + '''
import files, time
with files.replacing('x.txt') as temporary:
    print('begun', flush=True)
    time.sleep(600)
''')
    process = project.start('script.py')
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate()
    assert err == 'stopped\n' and process.returncode != 0
    assert not list(project.path.glob('x*'))


def test_a_closed_pipe_is_no_error(project, write):
    write('script.py', SCRIPT + 'for i in range(10**5):\n    print(i)\n')
    process = project.start('script.py')
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait() == 1


def test_letters_that_the_terminal_lacks_do_not_end_a_script(project, write):
    write('script.py', SCRIPT + "print('एक \\ud83d')\n")
    assert project.run('script.py', LC_ALL='C', PYTHONUTF8='0', PYTHONIOENCODING='ascii').endswith('एक ?\n')
