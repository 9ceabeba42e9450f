"""Files are whole or not there, and a folder has one writer."""

import pickle

import pytest
import torch
from safetensors import SafetensorError

from mgct.convert import read_state_dict
from mgct.errors import UserError
from mgct.files import check_can_make, locked, replace_folder, restore_folders, write_whole


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


def written(text):
    def write(draft):
        draft.mkdir()
        (draft / "weights").write_text(text)

    return write


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    replace_folder(folder, written("first"))
    replace_folder(folder, written("second"))

    def fail(draft):
        written("half")(draft)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"model cannot be written \(No space left on device\)"):
        replace_folder(folder, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "second"
    rename, refuse = type(folder).rename, iter([False, True, False])

    def full(path, target):
        if next(refuse):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", full)
    with pytest.raises(UserError, match="model cannot be written"):
        replace_folder(folder, written("third"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "second"


def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    """At the second rename: the old folder is put back at the next start, and kept where the new one is there."""
    folder = tmp_path / "model"
    replace_folder(folder, written("first"))
    rename, calls = type(folder).rename, []

    def killed_at_the_second(path, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, written("second"))
    monkeypatch.undo()
    assert not folder.exists()
    restore_folders(tmp_path)
    assert (folder / "weights").read_text() == "first"
    written("older")(tmp_path / ".model.old")
    restore_folders(tmp_path)
    assert (folder / "weights").read_text() == "first"
    replace_folder(folder, written("third"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "third"


def test_a_folder_has_one_writer(tmp_path):
    refused = pytest.raises(UserError, match="another mgct train is writing")
    with locked(tmp_path, "mgct train"), refused, locked(tmp_path, "mgct train"):
        pass
    with locked(tmp_path, "mgct train"):
        pass


def test_a_folder_that_cannot_be_made_is_refused_before_it_is_needed(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file/new", "file/new/deeper"):
        with pytest.raises(UserError, match=r"new.* cannot be made \(Not a directory\): choose another"):
            check_can_make(tmp_path / place)
    check_can_make(tmp_path / "new" / "deeper")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": object}), pickle.dumps([1])])
def test_a_file_that_is_no_state_dict_is_one_line_with_our_advice(tmp_path, suffix, content):
    path = (tmp_path / "weights").with_suffix(suffix)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"save its state_dict alone, as \.pt or \.safetensors$") as caught:
        read_state_dict(path)
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pt")
    assert read_state_dict(tmp_path / "good.pt").keys() == {"a"}
