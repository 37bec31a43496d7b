"""Pushing models, processors, pipelines and data sets to the Hub, each in one commit and with a card."""

import filecmp
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParOSError
from vlm_par_hf.utils import atomic_write_json, read_json, shared_mode

from .model_card import CARD, EVAL_RESULTS, write_model_card


__all__ = ["PushToHub", "push_folder", "take_hub_options"]

_HINTS = {
    401: "no valid token: run `hf auth login` or set HF_TOKEN",
    403: "the token may not write there: use one with write permission for this account or organisation",
    404: "no such repository or revision for this token; a private one looks the same to a stranger",
    409: "something else changed the repository at the same time: push again",
    412: "something else changed the repository at the same time: push again",
    429: "too many requests: push again later",
}
_HUB_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class PushToHub:
    """`save_pretrained` and `push_to_hub` of models, processors and pipelines.

    The inheriting class must name this class before the transformers class among its bases. transformers' own push
    leaves out files in subfolders, always reads the card of `main`, and if there is none pushes a template full of
    "[More Information Needed]".
    """

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """As `save_pretrained` of transformers; writes a folder that `from_pretrained` can load.

        Args:
            save_directory: the folder; created if missing.
            kwargs: of transformers' `save_pretrained`. With `push_to_hub=True` the content is also pushed, to the
                repository `repo_id` or else to one with the name of the folder; then keywords of `push_to_hub` may be
                given too.
        """
        hub_options = take_hub_options(save_directory, kwargs)
        before = _stamps(save_directory)
        result = self._save_files(save_directory, **kwargs)
        written = [path for path, stamp in _stamps(save_directory).items() if before.get(path) != stamp]
        if written:  # safetensors makes files that only this user can read
            mode = shared_mode(save_directory)
            for path in written:
                path.chmod(mode)
        if hub_options is not None:
            files = {name: kwargs[name] for name in ("max_shard_size", "variant") if name in kwargs}
            self.push_to_hub(**{**files, **hub_options})
        return result

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """Writes the files of `save_pretrained`; subclasses override it to write further files."""
        return super().save_pretrained(save_directory, **kwargs)

    def check_pushable(self) -> None:
        """Raises an error if nobody else could load what would be pushed. Does nothing here; subclasses override it.

        Raises:
            ValueError: says why, and what to do.
        """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        tags: str | list[str] | None = None,
        metrics: Any = None,
    ):
        """Pushes in one commit; creates the repository and the branch `revision` if missing.

        A repository without `README.md` gets a model card (except when a processor is pushed). If the weights are
        still those of the folder that the model was loaded from, its card is the one in that folder, or a new one made
        from the records there. Otherwise it is a new card without those records.

        Args:
            repo_id: `"organisation/name"`.
            commit_message, commit_description: of the commit.
            private: whether a new repository is private; None: the account's default.
            token: True or None: the stored one or `HF_TOKEN`.
            revision: branch to push to; None: `main`.
            create_pr: open a pull request instead.
            max_shard_size: largest file of weights.
            variant: part of the names of the files of weights, as in `save_pretrained`.
            tags: further tags of a new model card.
            metrics: evaluation record or records (`metrics.json`) for a new card, which replaces an existing one.

        Returns:
            `huggingface_hub.CommitInfo`, a string with the address of the commit.

        Raises:
            ValueError: nobody else could load the checkpoint.
            OSError: the Hub refused, or the connection broke; the message names the repository and what to do. Nothing
                was committed.
        """
        model = self._model_of_card()
        if model is not None:
            model.check_pushable()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = {} if variant is None else {"variant": variant}
            self.save_pretrained(folder, max_shard_size=max_shard_size, **files)
            _remove_local_paths(folder / "config.json")
            all_tags = [
                *(getattr(model, "model_tags", None) or ()),
                *([tags] if isinstance(tags, str) else tags or ()),
            ]

            def write_card() -> None:
                if model is not None:
                    self._write_card(folder, getattr(model, "name_or_path", ""), repo_id, all_tags, metrics)

            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                write_card=write_card,
                replace_card=metrics is not None,
            )

    def _model_of_card(self) -> Any:
        """The model that the card describes; None: no card is written."""
        return self

    def _write_card(self, folder: Path, source_name: str, repo_id: str, tags: list[str], metrics: Any) -> None:
        """Writes the card of `folder`. Reuses card and records of the source folder only if its weights equal those
        pushed."""
        source = Path(source_name) if source_name else None
        is_source = source is not None and source.is_dir() and _same_weights(source, folder)
        if is_source and metrics is None and (source / CARD).is_file():
            for name in (CARD, EVAL_RESULTS):
                if (source / name).is_file():
                    (folder / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source / name, folder / name)
            return
        self._new_card(source if is_source else folder, folder / CARD, repo_id, tags, metrics)

    def _new_card(self, checkpoint: Path, out: Path, repo_id: str, tags: list[str], metrics: Any) -> None:
        """Writes a new card from a checkpoint's files; subclasses with a card of their own override it."""
        write_model_card(checkpoint, metrics, out=out, name=repo_id, tags=tags, overwrite=True)


def _stamps(folder: str | Path) -> dict[Path, tuple[int, int]]:
    """Files of weights in a folder, each with what changes when it is written anew."""
    found = {path: path.stat() for path in Path(folder).glob("*.safetensors") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def take_hub_options(save_directory: str | Path, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Removes the keywords of `push_to_hub` from those of `save_pretrained(folder, push_to_hub=True, ...)`.

    They must not reach transformers: it would push only the files that it saved itself, without those that `auto_map`
    names.

    Returns:
        Keywords of `push_to_hub`; None if `push_to_hub` was not asked for.
    """
    if not kwargs.pop("push_to_hub", False):
        return None
    options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
    return {"repo_id": Path(save_directory).resolve().name, **options}


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
    ignore_patterns: Sequence[str] = (),
    replaced_folder: str | None = None,
    write_card: Callable[[], None] | None = None,
    replace_card: bool = False,
):
    """Pushes every file of a folder in one commit, so that the repository never holds half a checkpoint.

    Args:
        folder, repo_id, commit_message, commit_description, private, token, revision, create_pr: as in `push_to_hub`.
        repo_type: `"model"` or `"dataset"`.
        ignore_patterns: of files to leave out, such as `".work/*"`.
        replaced_folder: a folder in the repository, such as `"data"`: its files that `folder` does not have are
            deleted in the same commit.
        write_card: called if the repository has no `README.md`, to write one into `folder`.
        replace_card: call it even if the repository has one.

    Raises:
        OSError: as for `push_to_hub`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(library_name="vlm-par-hf", token=token)
    with _explain_hub_errors("creating", repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        with _explain_hub_errors(f"creating the branch {revision!r} of", repo_id):
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
    if write_card is not None:
        with _explain_hub_errors("reading", repo_id):
            has_card = api.file_exists(repo_id, CARD, revision=revision, repo_type=repo_type)
        if replace_card or not has_card:
            write_card()
    files = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    names = list(filter_repo_objects(files, ignore_patterns=list(ignore_patterns)))
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder) / name) for name in names]
    if replaced_folder is not None:
        with _explain_hub_errors("reading", repo_id):
            present = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        stale = {name for name in present if name.startswith(f"{replaced_folder}/")} - set(names)
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
    with _explain_hub_errors("uploading to", repo_id):
        # Not `upload_folder`: it may split a large folder into several commits.
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            repo_type=repo_type,
        )


@contextmanager
def _explain_hub_errors(doing: str, repo_id: str) -> Iterator[None]:
    """Adds to an error of the Hub what was being done and what the user can do.

    Args:
        doing: the action, such as "reading"; the message continues with the repository.
        repo_id: the repository.

    Raises:
        OSError: as for `push_to_hub`.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HfHubHTTPError, HTTPError, RuntimeError) as error:
        # The Hub's library wraps errors during the upload of a large file into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            hint = _HINTS.get(status, "the Hub has a problem: push again later" if status >= 500 else "see above")
            cause.append_to_message(f"\n{doing} {repo_id!r} failed ({status}): {hint}. Nothing was committed.")
            raise cause from cause.__cause__
        raise ParOSError(
            f"{doing} {repo_id!r} failed: the connection to the Hub broke ({type(cause).__name__}: {cause}). "
            "Nothing was committed: push again, files that arrived whole are not sent twice."
        ) from error


def _remove_local_paths(path: Path) -> None:
    """Removes this machine's path of the backbone, or of a retrieval head's recogniser, from a `config.json` before it
    is pushed.

    A full checkpoint does not need the path, because it holds the backbone's weights.
    """
    config = read_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    local = [name for name in ("backbone_name", "recognizer") if Path(config.get(name) or "").is_absolute()]
    if local:
        atomic_write_json(path, {**config, **dict.fromkeys(local)})


def _same_weights(first: Path, second: Path) -> bool:
    """Whether two folders hold the same safetensors files, and at least one."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    if not names or names != sorted(path.name for path in second.glob("*.safetensors")):
        return False
    return all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)
