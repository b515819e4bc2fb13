"""`--push`: the upload to the Hub, mocked at the level of HTTP."""

import http.server
import json
import threading

import pytest
from etils import epath

from can_jax.export.hub import Repository
from can_jax.utils.errors import UserError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch):
    """A server that answers as the Hub does, and records what it is sent."""
    requests, refused = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.command, self.path, body))
            status = 403 if any(word in self.path for word in refused) else 200
            content = {"name": "user", "type": "user"}
            if "preupload" in self.path:
                files = json.loads(body)["files"]
                content = {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            elif "/commit/" in self.path:
                content = {
                    "commitUrl": "https://huggingface.co/user/name/commit/1",
                    "commitOid": "1",
                }
            elif "repos/create" in self.path:
                content = {"url": "https://huggingface.co/user/name", "name": "user/name"}
            elif "/api/models/" in self.path:
                content = {"id": "user/name", "sha": "0", "siblings": []}
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_HEAD = do_PUT = reply  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants as constants
    from huggingface_hub import HfApi

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first = HfApi.__init__

    def init(self, *_, **__):
        first(self, endpoint=address, token="hf_test")

    monkeypatch.setattr(HfApi, "__init__", init)
    yield requests, refused
    server.shutdown()


def folder(place):
    (place / "README.md").write_text("# a card\n")
    (place / "config.json").write_text("{}")
    return epath.Path(place)


def test_folder_is_uploaded_as_one_commit(hub, tmp_path):
    requests, _ = hub
    Repository("hf://user/name").upload(folder(tmp_path))
    commits = [body.decode() for method, path, body in requests if "/commit/" in path]
    assert len(commits) == 1 and "README.md" in commits[0] and "config.json" in commits[0]
    assert any("repos/create" in path for _, path, _ in requests)


@pytest.mark.parametrize("word", ["whoami", "repos/create"])
def test_refusal_is_one_line(hub, tmp_path, word):
    _, refused = hub
    refused.append(word)
    message = "not logged in to" if word == "whoami" else "is complete, but was not uploaded"
    with pytest.raises(UserError, match=message) as error:
        Repository("hf://user/name").upload(folder(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["user/name", "hf://name", "hf://a/b/c", "https://hub/a/b"])
def test_address_of_another_form_is_refused(url):
    with pytest.raises(UserError, match="is not of the form hf://user/name"):
        Repository(url)
