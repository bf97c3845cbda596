"""Files that survive a kill: append-only JSONL, and files that appear whole or not at all."""

import atexit
import contextlib
import errno
import gzip
import json
import lzma
import os
import zlib


def open_binary(path):
    """A file for reading bytes; .gz and .xz are decompressed on the way."""
    return {'.gz': gzip.open, '.xz': lzma.open}.get(os.path.splitext(path)[1].lower(), open)(path, 'rb')


def read(path):
    """Yield the objects of a .jsonl file (.gz and .xz too), one line in memory at a time.

    A last line that a kill tore is passed over. Any other line that is not JSON ends the program and is named, and so does
    a file that cannot be read.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        try:
            yield json.loads(line.decode('utf-8-sig'))
        except (ValueError, RecursionError):  # wrong JSON, wrong UTF-8, brackets without end
            if line.endswith(b'\n'):
                raise SystemExit(f'{path}, line {number}: not a line of JSON in UTF-8') from None


def read_lines(path):
    """Yield the lines of a file, packed or not, as bytes."""
    try:
        with open_binary(path) as f:
            yield from f
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise SystemExit(f'{path} could not be read: {e}') from None


def parse_shard(text):
    """'2/8', the second of eight shards -> (2, 8); None when it is no such text."""
    part, _, parts = text.partition('/')
    return (int(part), int(parts)) if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) else None


def open_append(path, wait=False):
    """Open a .jsonl file for `append`, creating it and its folder; a line that a kill tore is cut first.

    Until it is closed another run on the same file is refused, or waits.
    """
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        f = open(path, 'ab+')
    except OSError as e:
        raise SystemExit(f'{path} could not be opened: {e.strerror}') from None
    lock(f, path, wait)
    end = f.seek(0, os.SEEK_END)
    tail = b''
    while end and b'\n' not in tail:
        start = max(0, end - 65536)
        f.seek(start)
        tail = f.read(end - start) + tail
        end = start
    tail = tail[tail.rfind(b'\n') + 1:]
    if tail:
        try:
            json.loads(tail)
            f.write(b'\n')  # whole, as an editor may leave it, only the line end is missing
        except ValueError:
            if not tail.startswith((b'{', b'\0')):  # as a kill leaves a row, or a power cut
                raise SystemExit(f'{path} ends in something that is no row of a .jsonl file; name another') from None
            f.truncate(f.seek(0, os.SEEK_END) - len(tail))
    return f


def lock(f, path, wait):
    """Keep others from locking the same file; the operating system unlocks it when it is closed or this process ends, however it ends."""
    try:
        if os.name == 'nt':
            import msvcrt
            f.seek(1 << 40)  # far behind the end, so that others may read
            msvcrt.locking(f.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # another says that the file system has no locks
            raise SystemExit(f'{path} is being written by another run') from None


def claim(path):
    """Refuse this program, in one line, where another run already works on a file or folder that is written whole; else refuse others until it ends.

    What is locked is `path`.lock, beside it. One that a kill left there refuses nobody.
    """
    name = f'{path}.lock'
    while True:
        try:
            os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
            f = open(name, 'ab')
        except OSError as e:
            raise SystemExit(f'{path} could not be written: {name}: {e.strerror}') from None
        lock(f, path, wait=False)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(f.fileno())):  # and not one that its owner was just removing
                break
        f.close()

    @atexit.register
    def release():
        with contextlib.suppress(OSError):  # Windows removes no open file
            os.remove(name)
        f.close()


def append(f, *rows):
    """Write objects as a line each and hand them to the operating system at once, in one piece."""
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    try:
        f.write(text.encode('utf-8', 'backslashreplace'))  # half a surrogate pair becomes its JSON escape
        f.flush()
    except OSError as e:
        raise SystemExit(f'{f.name} could not be written: {e.strerror}; what stands in it is whole, the same command goes on') from None


@contextlib.contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to `temporary`; it takes the place of `path` only when the block ends well."""
    root, ending = os.path.splitext(path)
    temporary = f'{root}.tmp{ending}'  # the ending stays, since writers of pictures go by it
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)  # a kill may have left it, and who appends would go on with it
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())  # or a power cut may leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as e:
        raise SystemExit(f'{path} could not be written: {e}') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
