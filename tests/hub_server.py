"""
The part of the Hugging Face hub that an upload and the download of a file need, on loopback. It prints its port.

It keeps what is uploaded. GET / returns the repositories and the files: the text of a small file, the number of bytes
of a large one (LFS). The option `folder` names a folder whose user/repository/file can be downloaded.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
from pathlib import Path

TOKEN = 'hf_test'
FOLDER = json.loads(sys.argv[1]).get('folder', '')
files, repos = {}, []
sizes = {}  # of uploaded bytes by their SHA-256, until a commit names their file


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def do_HEAD(self):
        """Answer a request for a file without its content."""
        path = Path(FOLDER, re.sub(r'/resolve/\w+/', '/', self.path).lstrip('/'))
        self.send_response(200 if FOLDER and path.is_file() else 404)
        if FOLDER and path.is_file():
            self.send_header('Content-Length', str(path.stat().st_size))
            self.send_header('ETag', '"1"')
            self.send_header('X-Repo-Commit', '1' * 40)
        self.end_headers()
        return path

    def do_GET(self):
        if '/resolve/' in self.path:
            self.wfile.write(self.do_HEAD().read_bytes())
        elif self.path == '/':
            self.answer(200, {'files': files, 'repos': repos})
        else:
            self.answer(401, {'error': 'Invalid username or password.'})

    def do_PUT(self):
        data = self.body()
        sizes[hashlib.sha256(data).hexdigest()] = len(data)
        self.answer(200, {})

    def do_POST(self):
        body, path, url = self.body(), self.path.split('?')[0], f'http://{self.headers["Host"]}'
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self.answer(401, {'error': 'Invalid username or password.'})
        elif path == '/api/repos/create':
            repo = json.loads(body)
            repos.append(repo)
            kind = 'datasets/' if repo.get('type') == 'dataset' else ''
            self.answer(200, {'url': f'{url}/{kind}{repo["organization"]}/{repo["name"]}'})
        elif '/preupload/' in path:
            modes = []
            for file in json.loads(body)['files']:
                mode = 'lfs' if file['path'].endswith('.safetensors') else 'regular'
                modes.append({'path': file['path'], 'uploadMode': mode, 'shouldIgnore': False})
            self.answer(200, {'files': modes})
        elif path.endswith('/info/lfs/objects/batch'):
            objects = json.loads(body)['objects']
            for blob in objects:
                blob['actions'] = {'upload': {'href': f'{url}/blob/{blob["oid"]}'}}
            self.answer(200, {'transfer': 'basic', 'objects': objects})
        elif '/commit/' in path:
            for line in body.splitlines():
                part = json.loads(line)
                if part['key'] == 'file':
                    files[part['value']['path']] = base64.b64decode(part['value']['content']).decode()
                elif part['key'] == 'lfsFile':
                    files[part['value']['path']] = sizes[part['value']['oid']]
            repo = path.removeprefix('/api/').removeprefix('models/').split('/commit/')[0]
            self.answer(200, {'commitUrl': f'{url}/{repo}/commit/1', 'commitOid': '1', 'success': True})
        else:
            self.answer(200, {'errors': [], 'warnings': []})

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
