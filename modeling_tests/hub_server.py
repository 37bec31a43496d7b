"""A small server that speaks the Hub's protocol on the loopback address, for tests of pushing and loading.

It knows repositories of models and data sets with commits, branches and private visibility, keeps file contents in a
folder, and fails where a test tells it to. Files above `lfs_over` bytes travel as large files (LFS, one part each);
Xet, which the Hub prefers today, is not spoken here, and `environment` turns it off in the client.

    with HubServer(folder) as hub:
        hub.fail("POST", "/api/models/org/broken/commit", status=500)
        subprocess.run([...], env={**os.environ, **hub.environment(home)})
        hub.files("org/name")
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


__all__ = ["DROP", "TOKEN", "HubServer"]

TOKEN = "hf_test_token"
DROP = "drop"  # in place of a status: the connection dies in the middle of the body
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Commits are whole trees: path -> name of the content's file."""

    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class _Failure:
    method: str
    pattern: re.Pattern
    status: int | str
    code: str | None
    message: str
    times: int | None
    after: int


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class HubServer:
    """The server as a context manager.

    Args:
        folder: receives the contents of the files, named by their SHA-256.
        lfs_over: size in bytes above which a file is a large one; None: none is.

    Attributes:
        repos: what was pushed, by id: `"org/name"` a model, `"datasets/org/name"` a data set.
        requests: "METHOD path" of every request, in order.
        unknown: requests that no route answers; a test wants it empty.
    """

    def __init__(self, folder: str | Path, *, lfs_over: int | None = None):
        self.folder = Path(folder)
        self.lfs_over = lfs_over
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()
        self._failures: list[_Failure] = []
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a fresh process must have in its environment before it imports anything."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def fail(
        self,
        method: str,
        path: str,
        *,
        status: int | str,
        code: str | None = None,
        message: str = "The test said so.",
        times: int | None = None,
        after: int = 0,
    ) -> None:
        """Answers requests whose path matches the regular expression with an error, always or `times` times.

        The first `after` of them are answered as they should be.
        """
        self._failures.append(_Failure(method, re.compile(path), status, code, message, times, after))

    def mend(self) -> None:
        """Ends all failures; a client does it with `POST /test/mend`."""
        self._failures.clear()

    def failure(self, method: str, path: str) -> _Failure | None:
        with self.lock:
            for failure in self._failures:
                if failure.method == method and failure.times != 0 and failure.pattern.search(path):
                    if failure.after > 0:
                        failure.after -= 1
                        continue
                    failure.times = None if failure.times is None else failure.times - 1
                    return failure
        return None

    def create(self, repo_id: str, *, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(private=private)
        self._commit(repo, "main", {}, "initial commit")
        return repo

    def add(self, repo_id: str, folder: str | Path, message: str = "add") -> str:
        """Commits a folder without a client; returns the commit."""
        repo = self.repos.get(repo_id) or self.create(repo_id)
        tree = dict(repo.commits[repo.branches["main"]])
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                tree[path.relative_to(folder).as_posix()] = self.store(path.read_bytes())
        return self._commit(repo, "main", tree, message)

    def files(self, repo_id: str, revision: str = "main") -> list[str]:
        repo = self.repos[repo_id]
        return sorted(repo.commits[repo.branches.get(revision, revision)])

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        repo = self.repos[repo_id]
        return self.content(repo.commits[repo.branches.get(revision, revision)][path])

    def store(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        (self.folder / name).write_bytes(content)
        return name

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _commit(self, repo: Repo, branch: str, tree: dict[str, str], message: str) -> str:
        parent = repo.branches.get(branch, "")
        text = json.dumps([parent, sorted(tree.items()), message, len(repo.commits)])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repo.commits[commit], repo.parents[commit], repo.branches[branch] = tree, parent, commit
        repo.messages.append(message)
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append(f"{method} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        failure = self.hub.failure(method, path)
        if failure is not None and failure.status == DROP:
            if method == "GET":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"half of i")
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        try:
            if failure is not None:
                raise _Refusal(failure.status, failure.message, failure.code)
            for route_method, pattern, function in _ROUTES:
                match = pattern.fullmatch(path)
                if match and method in route_method:
                    found = match.groupdict()
                    if found.pop("kind", None) == "datasets":
                        found["repo"] = f"datasets/{found['repo']}"
                    with self.hub.lock:
                        function(self, body, **found)
                    return
            self.hub.unknown.append(f"{method} {path}")
            raise _Refusal(404, f"no route for {method} {path}")
        except _Refusal as refusal:
            self._send_json({"error": refusal.message, **refusal.body}, refusal.status, refusal.code, refusal.message)

    def _send_json(self, data: Any, status: int = 200, code: str | None = None, message: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self._send(json.dumps(data).encode(), headers, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _need_user(self) -> None:
        if not self._is_user:
            raise _Refusal(401, "Invalid username or password.")

    def _repo(self, repo: str) -> Repo:
        found = self.hub.repos.get(repo)
        if found is None or (found.private and not self._is_user):
            raise _Refusal(404 if self._is_user else 401, "Repository not found", "RepoNotFound")
        return found

    def _tree(self, repo: str, revision: str) -> tuple[str, dict[str, str]]:
        found = self._repo(repo)
        commit = found.find(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, found.commits[commit]

    # Routes

    def mend(self, body: bytes) -> None:
        self.hub.mend()
        self._send_json({})

    def whoami(self, body: bytes) -> None:
        self._need_user()
        self._send_json({"type": "user", "name": "user", "orgs": [{"name": "org"}], "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        self._need_user()
        wanted = json.loads(body)
        kind = "datasets/" if wanted.get("type") == "dataset" else ""
        repo_id = f"{kind}{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            raise _Refusal(409, "You already created this repository", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.create(repo_id, private=private)
        self._send_json({"url": url, "name": repo_id.removeprefix("datasets/")})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self._need_user()
        self._tree(repo, revision)
        limit = self.hub.lfs_over
        files = [
            {
                "path": one["path"],
                "uploadMode": "regular" if limit is None or one["size"] <= limit else "lfs",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        self._send_json({"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self._need_user()
        self._repo(repo)
        objects = json.loads(body)["objects"]
        for one in objects:
            if not (self.hub.folder / one["oid"]).is_file():  # what is there already need not be sent again
                one["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{repo}/{one['oid']}"}}
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "the content is not what was announced")
        self.hub.store(body)
        self._send(b"", {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        self._need_user()
        parent, tree = self._tree(repo, revision)
        tree, message = dict(tree), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, parent):
                    raise _Refusal(412, "The parent commit has moved")
            elif entry["key"] == "file":
                tree[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                if not (self.hub.folder / value["oid"]).is_file():
                    raise _Refusal(400, f"{value['path']} was never uploaded")
                tree[value["path"]] = value["oid"]
            elif entry["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise _Refusal(400, f"this server has no {entry['key']}")
        found = self._repo(repo)
        is_request = self.query.get("create_pr") == ["1"]
        number = 1 + sum(name.startswith("refs/pr/") for name in found.branches)
        branch = f"refs/pr/{number}" if is_request else revision
        commit = self.hub._commit(found, branch, tree, message)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"}
        if is_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        self._send_json(answer)

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        self._need_user()
        found = self._repo(repo)
        if revision in found.branches:
            raise _Refusal(409, f"Reference already exists: {revision}")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        found.branches[revision] = self._tree(repo, start)[0]
        self._send_json({})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        commit, tree = self._tree(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(tree)]
        private = self.hub.repos[repo].private
        name = repo.removeprefix("datasets/")
        card = self.hub.content(tree["README.md"]).decode() if "README.md" in tree else ""
        said = dict(re.findall(r"^(pipeline_tag|library_name): (.+)$", card, re.MULTILINE))
        self._send_json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": private,
                "siblings": siblings,
                "tags": [],
                **said,
            }
        )

    def list_tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        commit, tree = self._tree(repo, revision)
        start = f"{folder.strip('/')}/" if folder else ""
        names = [name for name in sorted(tree) if name.startswith(start)]
        if start and not names:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        rows, folders = [], set()
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        for name in names:
            inner = name.removeprefix(start)
            if "/" in inner and not recursive:
                folders.add(start + inner.partition("/")[0])
                continue
            rows.append({"type": "file", "path": name, "oid": tree[name], "size": len(self.hub.content(tree[name]))})
        rows += [{"type": "directory", "path": name, "oid": "0"} for name in sorted(folders)]
        self._send_json(rows)

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        _, tree = self._tree(repo, revision)
        fields = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
        paths = fields.get("paths", [])
        self._send_json(
            [
                {"type": "file", "path": name, "oid": tree[name], "size": len(self.hub.content(tree[name]))}
                for name in ([paths] if isinstance(paths, str) else paths)
                if name in tree
            ]
        )

    def refs(self, body: bytes, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self._repo(repo).branches.items()
        ]
        self._send_json({"branches": branches, "tags": [], "converts": []})

    def validate_yaml(self, body: bytes) -> None:
        self._send_json({"errors": [], "warnings": []})

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        commit, tree = self._tree(repo, revision)
        if file not in tree:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{tree[file]}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        self._send(self.hub.content(tree[file]), headers)


_KIND = "(?P<kind>models|datasets)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
_ROUTES = [
    (methods, re.compile(pattern), function)
    for methods, pattern, function in (
        (("POST",), "/test/mend", _Handler.mend),
        (("GET",), "/api/whoami-v2", _Handler.whoami),
        (("POST",), "/api/repos/create", _Handler.create),
        (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
        (("POST",), f"(?:/{_KIND})?/{_REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        (("PUT",), "/lfs/.+/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
        (("POST",), f"/api/{_KIND}/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
        (("POST",), f"/api/{_KIND}/{_REPO}/commit/{_REVISION}", _Handler.commit),
        (("POST",), f"/api/{_KIND}/{_REPO}/branch/{_REVISION}", _Handler.branch),
        (("POST",), f"/api/{_KIND}/{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
        (("GET",), f"/api/{_KIND}/{_REPO}/refs", _Handler.refs),
        (("GET",), f"/api/{_KIND}/{_REPO}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.list_tree),
        (("GET",), f"/api/{_KIND}/{_REPO}/revision/{_REVISION}", _Handler.info),
        (("GET",), f"/api/{_KIND}/{_REPO}", _Handler.info),
        (("GET", "HEAD"), f"(?:/{_KIND})?/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
    )
]
