"""
Overrides a script's config: the plain globals that stand above the line that executes this file.

    python train.py config/train_hindi.py --batch_size=32
    python train.py theirs.json
    python train.py --help

A config file is Python and may use the keys' defaults (`lr_decay_iters = max_iters`); names with a leading
underscore are its own. Files and --key=value pairs are applied from left to right. Only keys that the script has are
accepted, and only values of the default's type (an int will do for a float). The result is also in the dict `config`.
A .json file is a config of TinyNews; config/train_tinynews_3m.py says what its names mean here.

The idea is nanoGPT's: not a module, just lines that every script would otherwise hold.
"""


def _configure(scope):
    import ast
    import builtins  # `compile` is a key of train.py
    import difflib
    import errno
    import io
    import json
    import os
    import re
    import signal
    import sys
    import threading
    import tokenize
    import traceback

    keys = {k: v for k, v in scope.items()
            if not k.startswith('_') and isinstance(v, (bool, int, float, str, list, dict, type(None)))}

    def fail(message):
        print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr)
        sys.exit(2)

    def override(where, key, value):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            fail(f'{where}: there is no key {key!r}' + (f', did you mean {near[0]!r}?' if near else '; --help lists the keys'))
        default = keys[key]
        if type(default) is float and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            wants = 'True or False' if type(default) is bool else f'{type(default).__name__}, such as {default!r}'
            fail(f'{where}: {key} wants {wants}, not {value!r:.80}')
        if isinstance(value, str) and '\0' in value:
            fail(f'{where}: {key} holds a NUL character, which no file name can')
        scope[key] = value

    def run_file(path):
        values = {k: scope[k] for k in keys}
        try:
            with open(path, encoding='utf-8-sig') as f:
                text = f.read()
            if path.endswith('.json'):
                values['_json'], text = json.loads(text), "exec(open('config/train_tinynews_3m.py', encoding='utf-8').read())"
            exec(builtins.compile(text, path, 'exec'), values)
        except (Exception, SystemExit) as e:  # whatever a config file can raise is the user's to mend, so no traceback of ours
            lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
            if isinstance(e, OSError) and not lines:  # not one that the file's own lines raised
                fail(f'{path}: {e.strerror}')
            line = e.lineno if getattr(e, 'filename', path) == path and hasattr(e, 'lineno') else lines[-1] if lines else '?'
            fail(f'{path}, line {line}: {type(e).__name__}: {getattr(e, "msg", e)}')
        for key, value in values.items():
            if not key.startswith('_') and not callable(value) and not isinstance(value, type(os)):
                override(path, key, value)

    def show_help():
        with open(scope['__file__'], encoding='utf-8') as f:
            source = f.read().split('\nexec(open(')[0]  # keys are assigned again below the config
        tree = ast.parse(source)
        lines = [ast.get_docstring(tree), '', 'keys, as --key=value or in a config file:']
        comments = {t.start[0]: t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
        nodes = {n.lineno: n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') in keys}
        for line in range(1, max(nodes) + 1):
            comment = comments[line].string.lstrip('#- ') if line in comments else ''
            if line in nodes:
                node = nodes[line]
                default = ' '.join(ast.get_source_segment(source, node.value).split())[:40]
                end = comments.get(node.end_lineno)
                lines.append(f'  {node.targets[0].id} = {default}'.ljust(40) + ('  ' + end.string.lstrip('# ') if end else ''))
            elif comment and comments[line].start[1] == 0 and line > tree.body[0].end_lineno:
                lines += ['', comment]
        print(*map(str.rstrip, lines), sep='\n')
        sys.exit(0)

    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe of another encoding must not end a training
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(encoding='utf-8', errors='replace')
    usual_hook = sys.excepthook

    def hook(kind, error, trace):
        if kind is KeyboardInterrupt:
            print('stopped', file=sys.stderr)
        elif issubclass(kind, (MemoryError, RuntimeError)) and re.search('out of memory|not enough memory|allocate', f'{kind.__name__} {error}'):
            said = (str(error).splitlines() or ['more than there is was asked for'])[0]  # torch and numpy raise kinds of their own
            print(f'{os.path.basename(sys.argv[0])}: out of memory, smaller sizes may fit: {said:.200}', file=sys.stderr)
        elif issubclass(kind, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again when it ends
        elif issubclass(kind, OSError) and error.errno == errno.ENOSPC:
            print(f'{os.path.basename(sys.argv[0])}: {error.strerror}', file=sys.stderr)
        else:
            usual_hook(kind, error, trace)
    sys.excepthook = hook
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))  # as Ctrl-C: temporary files go, what is half said is said
    in_notebook = 'launcher' in os.path.basename(sys.argv[0])  # the arguments are the notebook kernel's own
    for argument in [] if in_notebook else sys.argv[1:]:
        if argument in ('--help', '-h'):
            show_help()
        elif not argument.startswith('-'):
            run_file(argument)
        elif argument.startswith('--') and '=' in argument:
            key, text = argument[2:].split('=', 1)
            try:
                value = text if isinstance(scope.get(key), str) else ast.literal_eval(text)
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
                value = text
            override('command line', key, value)
        else:
            fail(f'{argument!r} is neither a config file nor --key=value')
    return {k: scope[k] for k in keys}


config = _configure(globals())
del _configure
