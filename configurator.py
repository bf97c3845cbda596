"""
Overrides the config of a script.

    python train.py config/train_hindi.py --batch_size=32
    python train.py --help

Every script begins with its config: one global variable for each key. The line `here = …` ends the config: names that
are assigned above it are keys, names below it are not.

Config files and --key=value are applied from left to right. A value must have the type of the default. An int is
accepted for a float. A config file is Python:
- It can use the defaults: `lr_decay_iters = max_iters`.
- It can build on another one: `exec(open(find('config/train_hindi.py'), encoding='utf-8').read())`.
- Names with a leading underscore are not keys.
A .json file is a config of the TinyNews project. config/train_tinynews_3m.py translates it. It is data, never code.
A .toml file of Tiny Story Generator is answered with the commands to use here. A file with another ending is refused.

This is not a module (the idea is nanoGPT's). A script executes this text. It sets the script's globals and the dict
`config` of all keys and values. In a notebook it changes nothing else.
"""

import ast
import builtins  # train.py has a key `compile`
import collections
import difflib
import errno
import json
import linecache
import os
import re
import shlex
import signal
import sys
import threading
import traceback

_MODULES = 'files model plan tokenizer hub chat replies batches metrics report cpu_kernels cuda_kernels'.split()
_KEYS_OF_WEIGHTS = 'init_from checkpoints model out_dir'.split()  # what an argument without a key can belong to
_KEYS_OF_FILES = 'source samples start dataset out out_dir'.split()
_KEYS_OF_NAMES = 'source samples dataset out_dir language'.split()
# the answers to the three kinds of configs of Tiny Story Generator, by a key that only this kind has
_TOML_COMMANDS = {
    'input_name': 'python prepare.py --source={input_name} --dataset=mine --tokenizer=gpt2 --trim=False '
                  '--max_stories={ndata} --val_fraction={val_fraction} --seed={split_random_seed}',
    'input_file': 'python prepare.py --source={input_file} --dataset=mine --tokenizer={model_name} --trim=False && '
                  'python train.py config/finetune_gpt2.py --dataset=mine --init_from={model_name} '
                  '--out_dir={model_folder} --lora_rank={lora_rank} --block_size={max_seq_len} --device={device}',
    'output_file': 'python sample.py --out_dir={model_folder} --start=… --out={output_file} '
                   '--max_new_tokens={max_new_tokens} --temperature={temperature} --top_k={top_k} --top_p={top_p} '
                   '--bad_words={bad_words} --repetition_penalty={repetition_penalty} --quantize={quantize} '
                   '--device={device}'}
_OUT_OF_MEMORY = 'out of memory|allocate memory|ALLOC_FAILED'  # in an error of torch, on a GPU or a CPU
_PACKAGES = {'google': 'protobuf', 'google.protobuf': 'protobuf'}  # where the package has another name than its module
_here = globals()['here']  # the folder of the script


def _excepthook(kind, error, trace):
    """Print one line for an error that is not a bug, a traceback for any other."""
    script = os.path.basename(sys.argv[0])
    if '_files' in globals():  # else it is what is missing
        _files.close_bars()
    if isinstance(error, BrokenPipeError):  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains again when it flushes stdout
    elif isinstance(error, KeyboardInterrupt):
        print('stopped', file=sys.stderr)
    elif isinstance(error, MemoryError) or isinstance(error, RuntimeError) and re.search(_OUT_OF_MEMORY, str(error)):
        reason = str(error).partition('\n')[0] or kind.__name__
        advice = 'a smaller --batch_size needs less' if 'batch_size' in globals() else 'less data at once may fit'
        advice = globals().get('out_of_memory_advice', advice)  # train.py has its own
        print(f'{script}: out of memory; {advice}. {reason:.200}', file=sys.stderr)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f'{script}: the disk is full; free some space and run the same command again', file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and error.name in _MODULES:
        print(f'{script}: {error.name}.py is missing: copy it beside {script}', file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError):
        print(f'{script}: a package is missing: pip install {_PACKAGES.get(error.name, error.name)}', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _stop(*_):
    """SIGTERM ends a script like Ctrl-C, so that it removes its temporary files."""
    sys.exit('stopped')


def _remove_shadows():
    """In a notebook, a key such as `compile` must not hide Python's own function in later cells."""
    for key in _defaults:
        if hasattr(builtins, key):
            _shell.user_ns.pop(key, None)


def _apply(argument):
    """Apply one argument of the command line."""
    key, equals, text = argument.removeprefix('--').partition('=')
    if argument in ('--help', '-h'):
        _print_help()
    elif argument == '--version':
        print(f'nanokahani {_files.VERSION}')
        sys.exit(0)
    elif not argument.startswith('-'):
        _run_file(argument)
    elif argument != '-c':  # as TinyNews and Tiny Story Generator have it before a config file
        _check(argument.startswith('--') and equals,
               f'{argument!r} is neither a config file nor --key=value{_hint(argument)}')
        _override('command line', key, _parse(key, text))


def _parse(key, text):
    """The value of --key=text: text as it is for a str, else a Python literal."""
    if isinstance(_defaults.get(key), str):
        return text
    try:
        return ast.literal_eval(text)
    except Exception:  # of many kinds: it is no literal
        return text


def _override(where, key, value):
    """Set a key to a value of its default's type."""
    nearest = difflib.get_close_matches(key, _defaults, 1)
    hint = f', did you mean {nearest[0]!r}?' if nearest else '; --help lists the keys'
    _check(key in _defaults, f'{where}: there is no key {key!r}{hint}')
    default = _defaults[key]
    kind = type(default)
    if kind is float and type(value) is int and abs(value) < 2**1000:  # larger ones are no float
        value = float(value)
    needed = 'True or False' if kind is bool else f'{kind.__name__}, such as {default!r}'
    may_be_none = key in globals().get('can_be_none', ())
    fits = default is None or type(value) is kind or (value is None and may_be_none)
    _check(fits, f'{where}: {key} must be {needed}, not {value!r:.80}')
    globals()[key] = value


def _run_file(path):
    """Execute a config file with the keys as its globals; what it assigns are their new values."""
    values = {key: globals()[key] for key in _defaults}
    values['find'] = _find
    ending = os.path.splitext(path)[1].lower()
    if ending == '.toml':
        _answer_toml(path)
    _check(ending in ('.py', '.json'), f'{path} is not a config file, which ends in .py or .json{_hint(path)}')
    try:
        text = _read(_find(path))
        if ending == '.json':  # of TinyNews; train_tinynews_3m.py reads `_json` and sets the keys
            data = json.loads(text)
            is_config = isinstance(data, dict) and {'model', 'train'} <= data.keys()
            _check(is_config, f'{path} is not a config of TinyNews, {{"model": {{…}}, "train": {{…}}}}{_hint(path)}')
            values['_json'] = data
            text = _read(f'{_here}/config/train_tinynews_3m.py')  # not that of the working directory
    except (OSError, ValueError, RecursionError) as e:
        _check(False, f'{path} could not be read: {e}{_hint(path) if ending == ".json" else ""}')
    try:
        exec(builtins.compile(text, path, 'exec'), values)
    except (Exception, SystemExit) as e:  # a config file is the user's code, so any error is a wrong setting
        _check(False, f'{path}, line {_line_of(e, path)}: {type(e).__name__}: {e}')
    for key, value in values.items():
        if not key.startswith('_') and not callable(value) and not isinstance(value, type(os)):
            _override(path, key, value)


def _answer_toml(path):
    """End the script with the commands to use here in place of a config of Tiny Story Generator."""
    try:
        import tomllib  # since Python 3.11
        values = tomllib.loads(_read(_find(path)))
        values |= values.get('hyper-parameters', {})
        if 'train_fraction' in values:
            values['val_fraction'] = round(1 - values['train_fraction'], 6)
    except (OSError, ValueError, TypeError, RecursionError, ImportError) as e:
        _check(False, f'{path} could not be read: {e}')
    if values.get('lora_peft') is False:
        values['lora_rank'] = 0
    if values.get('quantized'):
        values['quantize'] = 'int8'
    if values.get('max_seq_len') == -1:
        del values['max_seq_len']
    quoted = collections.defaultdict(str)  # a missing value is an empty text
    for key, value in values.items():
        quoted[key] = shlex.quote(_files.printable(str(value)).replace('\n', ' '))
    for key, command in _TOML_COMMANDS.items():
        if key in values:
            words = [word.format_map(quoted) for word in command.split()]
            words = ' '.join(word for word in words if not word.endswith('='))  # without keys that have no value
            _check(False, f'{path} is a config of Tiny Story Generator; use: {words}')
    _check(False, f'{path} is not a config file, which ends in .py or .json')


def _read(path):
    with open(path, encoding='utf-8-sig') as f:
        text = f.read(1_000_000)
        if f.read(1):
            raise ValueError('it has more than a million characters')
    return text


def _hint(argument):
    """The key that was probably meant by an argument that is no config file."""
    if os.path.exists(f'{argument}.py'):
        return f'; did you mean {argument}.py?'
    pair = argument.lstrip('-‐‑‒–—−')  # a word processor makes other dashes of --
    if pair.partition('=')[0] in _defaults:
        return f'; did you mean --{pair}?' if '=' in pair else f'; did you mean --{pair}=…?'
    ending = os.path.splitext(argument)[1].lower()
    keys = _KEYS_OF_FILES if ending else _KEYS_OF_NAMES
    if ending in ('.pt', '.bin', '.safetensors', '.gguf'):
        keys = _KEYS_OF_WEIGHTS
    for key in keys:
        if key in _defaults and pair == argument:
            return f'; did you mean --{key}={"FILE:" if key == "start" else ""}{argument}?'
    return ''


def _line_of(error, path):
    """The line of a config file that raised an error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    line = 1
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    return line


def _print_help():
    """Print the script's docstring and its config block, then exit."""
    tree = ast.parse(_source)
    # above the config there are only the docstring and imports: the config begins after the last of them
    last_line_above = max(node.end_lineno for node in tree.body if not isinstance(node, ast.Assign))
    print(ast.get_docstring(tree))
    print('\nkeys, as --key=value or in a config file:\n')
    for line in _source.splitlines()[last_line_above:]:
        if line and not line.startswith('# ---'):
            print(f'  {line}')
    sys.exit(0)


# 1) error messages and signals; before `from files import`, because files.py may be missing
_shell = builtins.get_ipython() if hasattr(builtins, 'get_ipython') else None  # the notebook's kernel
if not _shell:
    sys.excepthook = _excepthook
    for _stream in (sys.stdout, sys.stderr):
        _stream.reconfigure(encoding='utf-8', errors='replace')  # the terminal's encoding may lack letters
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    # modules come from beside the script; an empty part of PYTHONPATH would add the working directory
    sys.path[:] = [_here] + [path for path in sys.path if os.path.abspath(path) not in (_here, os.getcwd())]

import files as _files
from files import at_end as _at_end
from files import check as _check
from files import find as _find

# 2) the keys: the names that the script or notebook cell assigns above `here = …`
_script = sys._getframe(1).f_code.co_filename  # frame 0 is this text, frame 1 is the script that executes it
linecache.checkcache(_script)
_source = ''.join(linecache.getlines(_script)).partition('\nhere = ')[0]
_names = [node.targets[0].id for node in ast.parse(_source).body if isinstance(node, ast.Assign)]
_defaults = {name: globals()[name] for name in _names}
if _shell:
    _at_end(_remove_shadows)

# 3) the command line; a script that is pasted into a cell has none, one that is started with %run has one
_is_pasted = '__file__' not in globals()
if not _is_pasted:
    for _argument in sys.argv[1:]:
        _apply(_argument)
config = {name: globals()[name] for name in _names}
_files.max_row = config.get('max_row', 1_000_000)
