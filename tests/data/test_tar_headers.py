"""Headers of tars that are parsed without `tarfile`."""

import io
import tarfile

import pytest

from can_jax.data.formats import tar as tar_format
from can_jax.data.formats.tar import Members, open_tar
from can_jax.data.storage.reading import open_file


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_by_tarfile(tmp_path, form, monkeypatch):
    names = ["a.jpg", "ä/é.png", "b/" * 60 + "c.jpg", "d" * 120 + ".jpg", "\udce9.jpg", "e"]
    names = names if form != tarfile.USTAR_FORMAT else [*names[:3], *names[4:]]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700 * i, 1.6e9 + i
            info.uid = 0 if form == tarfile.USTAR_FORMAT else i * 9**8  # too large for octal digits
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    plain = []
    fast = tar_format._plain
    monkeypatch.setattr(
        tar_format, "_plain", lambda *header: plain.append(fast(*header)) or plain[-1]
    )
    with open_file(str(tmp_path / "a.tar")) as file, open_tar(file, "r:") as mine:
        found = [(m.name, m.size, m.type, m.offset_data) for m in Members(mine)]
    with tarfile.open(tmp_path / "a.tar") as theirs:
        assert found == [(m.name, m.size, m.type, m.offset_data) for m in theirs]
    assert any(plain) and not all(plain)
