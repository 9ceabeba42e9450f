"""Files are whole or not there, and a folder has one writer."""

import pytest
from safetensors import SafetensorError

from mgct.errors import UserError
from mgct.files import locked, write_whole


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_failed_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "figure.png"
    path.write_text("before")

    def fail(draft):
        draft.write_text("half")
        raise error

    with pytest.raises(UserError, match=r"figure\.png cannot be written \(No space left on device\)"):
        write_whole(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("figure.png", "before")]
    write_whole(path, lambda draft: draft.write_text("after"))
    assert path.read_text() == "after"


def test_a_file_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "file" / "x.txt", lambda draft: draft.write_text("x"))


def test_a_folder_has_one_writer(tmp_path):
    refused = pytest.raises(UserError, match="another mgct train is writing")
    with locked(tmp_path, "mgct train"), refused, locked(tmp_path, "mgct train"):
        pass
    with locked(tmp_path, "mgct train"):
        pass
